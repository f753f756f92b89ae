//! docs/conformance.md says which test shows a rule: the test must be there.

use super::{Finding, Tree};

/// The page.
const PAGE: &str = "docs/conformance.md";

/// A line names a file and after it, in backticks, functions of that file.
pub(super) fn named_tests_exist(tree: &Tree) -> Vec<Finding> {
    let Some(page) = tree.files.get(PAGE) else { return Vec::new() };
    let mut findings = Vec::new();
    for (number, line) in page.lines().enumerate() {
        let mut file = None;
        for word in line.split('`').skip(1).step_by(2) {
            if let Some((_, text)) = tree.files.get_key_value(word).filter(|_| is_source(word)) {
                file = Some((word, text));
            } else if let Some((path, text)) = file.filter(|_| is_function(word))
                && !text.contains(&format!("fn {word}("))
            {
                findings.push(Finding::new(PAGE, number + 1, format!("{path} has no function `{word}`")));
            }
        }
    }
    findings
}

fn is_source(word: &str) -> bool {
    word.rsplit_once('.').is_some_and(|(_, ending)| ending == "rs")
}

/// The names of tests are sentences.
fn is_function(word: &str) -> bool {
    word.contains('_') && word.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_that_is_gone_is_found() {
        let page = "| I1 | `not_a_test`, `spec.type` | `a/src/lib.rs` | `a/tests/b.rs`: `it_is_there`, `it_is_gone`; `a/src/lib.rs`: `it_is_there` |\n";
        let tree = Tree::of([
            (PAGE, page),
            ("a/src/lib.rs", "fn other() {}\n"),
            ("a/tests/b.rs", "#[test]\nfn it_is_there() {}\n"),
        ]);
        let texts: Vec<_> = named_tests_exist(&tree).iter().map(ToString::to_string).collect();
        assert_eq!(
            texts,
            [
                "docs/conformance.md:1: a/tests/b.rs has no function `it_is_gone`",
                "docs/conformance.md:1: a/src/lib.rs has no function `it_is_there`",
            ]
        );
    }
}
