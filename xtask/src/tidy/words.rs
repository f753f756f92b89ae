//! Rules about what may stand where in the source.

use super::{Finding, Tree, source::Source};

/// A crate, and the only places in `lb-userspace/src` that may name it.
const EDGES: [(&str, &[&str]); 6] = [
    ("aya", KERNEL),
    ("aya_obj", KERNEL),
    ("aya_log", KERNEL),
    ("kube", &["source.rs", "source/"]),
    ("k8s_openapi", &["source.rs", "source/"]),
    ("notify", &["source.rs", "source/"]),
];
const KERNEL: &[&str] = &["kernel.rs", "kernel/", "store/kernel.rs", "store/kernel/"];

/// What no code may say, and what to do about it. The last letters are apart, so that this list keeps its own rule.
const BANNED_IN_CODE: [(&str, &str); 6] = [
    ("#[ignore", "a test runs, or its need is declared with the harness"),
    ("#[allow(", "say #[expect(…, reason = \"…\")]"),
    ("#![allow(", "say #![expect(…, reason = \"…\")]"),
    ("todo!", "finish it"),
    ("unimplemented!", "finish it"),
    ("dbg!", "use tracing"),
];

/// What no comment may say.
const BANNED_IN_COMMENTS: [&str; 4] = ["TODO", "FIXME", "XXX", "HACK"];

/// `aya` stays where programs are loaded and maps are written, `kube` where the cluster is watched.
pub(super) fn imports_stay_at_the_edges(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.with_ending(".rs") {
        let Some(module) = path.strip_prefix("lb-userspace/src/") else { continue };
        let code = Source::split(text).code;
        for (name, places) in EDGES {
            if places.iter().any(|place| module.starts_with(place)) {
                continue;
            }
            for (number, line) in code.iter().enumerate() {
                if names_crate(line, name) {
                    let what = format!("`{name}` belongs in {} only", places.join(", "));
                    findings.push(Finding::new(path, number + 1, what));
                }
            }
        }
    }
    findings
}

/// Nothing unfinished, silenced or skipped.
pub(super) fn no_banned_words(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.with_ending(".rs") {
        let source = Source::split(text);
        for (number, (code, comment)) in source.code.iter().zip(&source.comments).enumerate() {
            for (banned, instead) in BANNED_IN_CODE {
                let found =
                    if banned.starts_with('#') { code.contains(banned) } else { has_word(code, banned) };
                if found {
                    findings.push(Finding::new(path, number + 1, format!("`{banned}`: {instead}")));
                }
            }
            for banned in BANNED_IN_COMMENTS {
                if has_word(comment, banned) {
                    findings.push(Finding::new(path, number + 1, format!("`{banned}`: finish it")));
                }
            }
        }
    }
    findings
}

/// Whether a line of code uses a crate: `use name`, `name::…`, `extern crate name`.
fn names_crate(line: &str, name: &str) -> bool {
    let path = format!("{name}::");
    starts_of(line, &path).any(|start| !line.get(..start).unwrap_or_default().ends_with("::"))
        || starts_of(line, name).any(|start| {
            let before = line.get(..start).unwrap_or_default().trim_end();
            let after = line.get(start + name.len()..).unwrap_or_default().trim_start();
            (before.ends_with("use") || before.ends_with("extern crate"))
                && (after.starts_with(';') || after.starts_with("as "))
        })
}

/// Whether a word stands in a line as a whole; a `!` at its end is part of it.
fn has_word(line: &str, word: &str) -> bool {
    starts_of(line, word).any(|start| {
        let after = line.get(start + word.len()..).unwrap_or_default();
        word.ends_with('!') || !after.starts_with(is_word_part)
    })
}

/// Where a word starts in a line.
fn starts_of(line: &str, word: &str) -> impl Iterator<Item = usize> {
    line.match_indices(word)
        .map(|(start, _)| start)
        .filter(|start| !line.get(..*start).unwrap_or_default().ends_with(is_word_part))
}

fn is_word_part(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(findings: &[Finding]) -> Vec<(&str, usize)> {
        findings.iter().map(|finding| (finding.path.as_str(), finding.line)).collect()
    }

    #[test]
    fn an_import_in_the_middle_is_found() {
        let bad = "//! Not aya::maps.\nuse aya::maps::HashMap;\nfn f() { kube::run() }\nuse kube;\nuse crate::notify;";
        let tree = Tree::of([
            ("lb-userspace/src/plan.rs", bad),
            ("lb-userspace/src/kernel/load.rs", "use aya::Ebpf;"),
            ("lb-userspace/src/store/kernel.rs", "use aya::Ebpf;"),
            ("lb-userspace/src/source/cluster.rs", "use kube::Client;"),
            ("tests/src/lib.rs", "use aya::Ebpf;"),
        ]);
        let path = "lb-userspace/src/plan.rs";
        assert_eq!(found(&imports_stay_at_the_edges(&tree)), [(path, 2), (path, 3), (path, 4)]);
    }

    #[test]
    fn a_module_of_our_own_may_have_a_crates_name() {
        assert!(!names_crate("use crate::kube::Client;", "kube"));
        assert!(!names_crate("let kube_client = make_kube::client();", "kube"));
        assert!(names_crate("pub use kube::Client;", "kube"));
        assert!(names_crate("use kube as k;", "kube"));
    }

    #[test]
    fn unfinished_and_silenced_code_is_found() {
        let bad = "#[ignore]\n#[allow(unused)]\n#![allow(unused)]\nfn f() { todo!() }\n// XXX later\nunimplemented!()";
        let good =
            "#[expect(unused, reason = \"\")]\nlet s = \"todo!\"; // ignored, a todo\nfn my_todo!() {}";
        let tree = Tree::of([("a/src/bad.rs", bad), ("a/src/good.rs", good), ("notes.md", "TODO")]);
        let expected: Vec<_> = (1..=6).map(|line| ("a/src/bad.rs", line)).collect();
        assert_eq!(found(&no_banned_words(&tree)), expected);
    }
}
