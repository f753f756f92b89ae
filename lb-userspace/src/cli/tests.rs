use clap::CommandFactory as _;
use expect_test::expect;

use super::{version::Binary, *};
use crate::output::{Format, render};

#[test]
fn the_command_line_is_well_formed() {
    Cli::command().debug_assert();
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
