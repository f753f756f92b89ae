use expect_test::expect;

use super::{version::Binary, *};
use crate::output::{Format, render};

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
}

/// The flags and their variables of a verb and the verbs below it.
fn collect_flags(verb: &Command, names: &mut Vec<String>) {
    for flag in verb.get_arguments().filter(|flag| !["help", "version"].contains(&flag.get_id().as_str())) {
        names.extend(flag.get_long().map(|long| format!("--{long}")));
        names.extend(flag.get_env().map(|variable| variable.to_string_lossy().into_owned()));
    }
    for nested in verb.get_subcommands() {
        collect_flags(nested, names);
    }
}

#[test]
fn the_reference_names_every_flag_and_variable() {
    let reference = include_str!("../../../docs/cli.md");
    let mut names = Vec::new();
    for verb in Cli::command().get_subcommands() {
        names.push(format!("sockeye {}", verb.get_name()));
        let nested =
            verb.get_subcommands().map(|nested| format!("sockeye {} {}", verb.get_name(), nested.get_name()));
        names.extend(nested);
        collect_flags(verb, &mut names);
    }
    for name in names {
        assert!(reference.contains(&format!("`{name}")), "docs/cli.md does not tell of {name}");
    }
}

#[test]
fn an_error_is_one_line_with_its_causes() {
    let cause = io::Error::new(io::ErrorKind::NotFound, "no such\nfile");
    let error = anyhow::Error::new(cause).context("opening the socket").context("asking the agent");
    assert_eq!(one_line(&error), "asking the agent: opening the socket: no such file");
}

#[test]
fn a_reader_that_went_away_is_found_among_the_causes() {
    let broken = anyhow::Error::new(io::Error::from(io::ErrorKind::BrokenPipe)).context("writing");
    assert!(is_broken_pipe(&broken));
    let other = anyhow::Error::new(io::Error::from(io::ErrorKind::NotFound)).context("writing");
    assert!(!is_broken_pipe(&other));
}

#[test]
fn version_in_each_format() {
    let binary = Binary { version: "1.2.3", commit: Some("0a80f9d"), layout_version: 4 };
    expect![[r#"
        sockeye 1.2.3 (0a80f9d), map layout 4
    "#]]
    .assert_eq(&render(&binary, Format::Table).unwrap());
    expect![[r#"
        {
          "version": "1.2.3",
          "commit": "0a80f9d",
          "layoutVersion": 4
        }
    "#]]
    .assert_eq(&render(&binary, Format::Json).unwrap());
    let released = Binary { commit: None, ..binary };
    expect![[r#"
        version: "1.2.3"
        layoutVersion: 4
    "#]]
    .assert_eq(&render(&released, Format::Yaml).unwrap());
}
