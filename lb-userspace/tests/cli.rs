//! The command as a process: exit codes, what goes where, and the environment. Needs no privileges.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::{
    path::Path,
    process::{Command, Output, Stdio},
};

/// `sockeye` with these words, in an environment of its own.
fn sockeye(words: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockeye"));
    command.args(words.split_whitespace()).env_clear().stdin(Stdio::null());
    command
}

#[track_caller]
fn check(mut command: Command, code: i32, stderr: &str) -> String {
    let Output { status, stdout, stderr: said } = command.output().unwrap();
    let said = String::from_utf8(said).unwrap();
    assert_eq!(status.code(), Some(code), "{said}");
    assert!(said.contains(stderr), "{said}");
    String::from_utf8(stdout).unwrap()
}

/// Flags of an instance that nobody has used.
fn unused_instance(directory: &Path) -> String {
    format!("--bpffs {0}/none --socket {0}/none.sock", directory.display())
}

#[test]
fn an_error_is_one_line_with_exit_code_2() {
    for (words, message) in [
        ("run", "sockeye: no source: give --manifests DIR or --kubeconfig FILE"),
        (
            "run --manifests /nowhere --node-name n --cgroup /",
            "sockeye: cannot read manifest folder /nowhere: No such",
        ),
        ("run --manifests m --kubeconfig k", "sockeye: --manifests and --kubeconfig exclude each other"),
        ("status --bpffs relative", "sockeye: --bpffs relative: give an absolute path"),
    ] {
        let command = sockeye(words);
        assert_eq!(check(command, 2, message), "", "{words}: an error is nothing for standard output");
        let said = sockeye(words).output().unwrap().stderr;
        assert_eq!(String::from_utf8(said).unwrap().lines().count(), 1, "{words}");
    }
}

#[test]
fn a_wrong_flag_is_told_with_exit_code_2() {
    check(sockeye("run --snat-ports 80"), 2, "invalid value '80' for '--snat-ports <FIRST-LAST>'");
    check(sockeye("dance"), 2, "unrecognized subcommand 'dance'");
    check(sockeye(""), 2, "Usage: sockeye <COMMAND>");
}

#[test]
fn variables_stand_for_flags_and_empty_ones_for_nothing() {
    let mut command = sockeye("run --manifests m --node-name n");
    command.env("SOCKEYE_KUBECONFIG", "k");
    check(command, 2, "--manifests and --kubeconfig exclude each other");
    let mut command = sockeye("run");
    for name in [
        "SOCKEYE_MANIFESTS",
        "SOCKEYE_KUBECONFIG",
        "SOCKEYE_DEVICES",
        "SOCKEYE_LEGACY_ENDPOINTS",
        "KUBECONFIG",
    ] {
        command.env(name, "");
    }
    check(command, 2, "no source");
}

#[test]
fn without_an_agent_status_says_so_with_exit_code_1() {
    let directory = tempfile::tempdir().unwrap();
    let words = format!("status -o json {}", unused_instance(directory.path()));
    let text = check(sockeye(&words), 1, "sockeye: no agent answers on");
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(status["state"], "notRunning");
    assert_eq!(status["agent"], serde_json::Value::Null);
    let problems = status["problems"].as_array().unwrap();
    assert!(problems.iter().any(|problem| problem["object"] == "pinned maps"), "{text}");
}

#[test]
fn lists_need_an_agent_or_pinned_maps() {
    let directory = tempfile::tempdir().unwrap();
    for verb in ["service", "backend"] {
        let words = format!("{verb} list {}", unused_instance(directory.path()));
        assert_eq!(check(sockeye(&words), 2, "nothing is pinned at"), "");
    }
}

#[test]
fn version_in_each_format() {
    let text = check(sockeye("version"), 0, "");
    assert!(text.starts_with(concat!("sockeye ", env!("CARGO_PKG_VERSION"))), "{text}");
    let json: serde_json::Value = serde_json::from_str(&check(sockeye("version -o json"), 0, "")).unwrap();
    assert_eq!(json["layoutVersion"], lb_common::config::LAYOUT_VERSION);
    assert!(check(sockeye("version --output yaml"), 0, "").contains("layoutVersion: "));
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = sockeye("version");
    command.stdout(writer);
    check(command, 0, "");
}
