//! Rules about manifests and files.

use std::collections::BTreeSet;

use super::{Finding, Tree, source::Source};

/// The most lines that a source file may have.
const MOST_LINES: usize = 500;
/// And one that holds only tests: tables of cases are long, and read one case at a time.
const MOST_LINES_OF_TESTS: usize = 800;

/// Longer files, each with its reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// A lint table that a member does not inherit is decoration.
pub(super) fn members_inherit_the_lints(tree: &Tree) -> Vec<Finding> {
    tree.with_ending("Cargo.toml")
        .filter(|(path, _)| *path != "Cargo.toml")
        .filter(|(_, text)| {
            let mut lines = text.lines().map(str::trim).skip_while(|line| *line != "[lints]").skip(1);
            lines.next() != Some("workspace = true")
        })
        .map(|(path, _)| Finding::new(path, 0, "does not inherit the workspace's lints"))
        .collect()
}

/// A file that no `mod` line leads to is never compiled.
pub(super) fn files_belong_to_a_module(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    let placed = placed_by_attribute(tree);
    for (path, _) in tree.with_ending(".rs") {
        if is_crate_root(tree, path) || placed.contains(path) {
            continue;
        }
        let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
        let module = file.trim_end_matches(".rs");
        let parents = [
            format!("{folder}.rs"),
            format!("{folder}/lib.rs"),
            format!("{folder}/main.rs"),
            format!("{folder}/mod.rs"),
        ];
        let declared = parents.iter().filter_map(|parent| tree.files.get(parent)).any(|text| {
            Source::split(text).code.iter().any(|line| {
                line.trim().strip_suffix(';').and_then(|line| line.rsplit_once("mod ")).is_some_and(
                    |(before, name)| name == module && (before.is_empty() || before.starts_with("pub")),
                )
            })
        });
        if !declared {
            findings.push(Finding::new(path, 0, format!("no `mod {module};` leads to this file")));
        }
    }
    findings
}

/// The files that a `#[path = "…"]` names, from the folder of the file that it stands in.
fn placed_by_attribute(tree: &Tree) -> BTreeSet<String> {
    let attributes = tree.with_ending(".rs").flat_map(|(path, text)| {
        let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
        let names =
            text.lines().filter_map(|line| line.trim().strip_prefix("#[path = \"")?.strip_suffix("\"]"));
        names.map(move |name| format!("{folder}/{name}"))
    });
    attributes.collect()
}

/// Whether cargo finds this file by itself.
fn is_crate_root(tree: &Tree, path: &str) -> bool {
    let Some(package) = path
        .match_indices('/')
        .map(|(at, _)| path.get(..at).unwrap_or_default())
        .rfind(|folder| tree.files.contains_key(&format!("{folder}/Cargo.toml")))
    else {
        return false;
    };
    let inside = path.get(package.len() + 1..).unwrap_or_default();
    let parts: Vec<&str> = inside.split('/').collect();
    matches!(
        parts.as_slice(),
        ["build.rs"]
            | ["src", "lib.rs" | "main.rs"]
            | ["src", "bin", _]
            | ["src", "bin", _, "main.rs"]
            | ["tests" | "benches" | "examples" | "fuzz_targets", _]
            | ["tests" | "benches" | "examples", _, "main.rs"]
    )
}

/// A file holds one concept.
pub(super) fn files_are_short(tree: &Tree) -> Vec<Finding> {
    let listed = |path: &str| LONG_FILES.iter().any(|(long, _)| *long == path);
    let long = tree.with_ending(".rs").map(|(path, text)| (path, text.lines().count()));
    let mut findings: Vec<Finding> = long
        .filter(|(path, lines)| *lines > most_lines(path) && !listed(path))
        .map(|(path, lines)| Finding::new(path, 0, format!("{lines} lines, more than {}", most_lines(path))))
        .collect();
    for (path, _) in LONG_FILES {
        if tree.files.get(*path).is_none_or(|text| text.lines().count() <= most_lines(path)) {
            findings.push(Finding::new(path, 0, "listed as a long file, and is none"));
        }
    }
    findings
}

fn most_lines(path: &str) -> usize {
    // The crate of integration tests has its harness in `tests/src`.
    let only_tests = path.ends_with("/tests.rs") || path.contains("/tests/");
    if only_tests { MOST_LINES_OF_TESTS } else { MOST_LINES }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: (&str, &str) = ("a/Cargo.toml", "[lints]\nworkspace = true\n");

    #[test]
    fn a_member_without_the_lints_is_found() {
        let tree = Tree::of([
            ("Cargo.toml", "[workspace]"),
            MANIFEST,
            ("b/Cargo.toml", "[package]\n"),
            ("c/Cargo.toml", "[lints]\nworkspace = false\n"),
        ]);
        let paths: Vec<_> = members_inherit_the_lints(&tree).into_iter().map(|f| f.path).collect();
        assert_eq!(paths, ["b/Cargo.toml", "c/Cargo.toml"]);
    }

    #[test]
    fn an_orphan_is_found() {
        let tree = Tree::of([
            MANIFEST,
            ("a/build.rs", ""),
            ("a/src/lib.rs", "pub mod one;\n// mod orphan;\nmod two;"),
            ("a/src/one.rs", "mod inner;"),
            ("a/src/one/inner.rs", ""),
            ("a/src/two.rs", "pub(crate) mod part;"),
            ("a/src/two/part.rs", ""),
            ("a/src/orphan.rs", ""),
            ("a/src/one/orphan.rs", ""),
            ("a/src/bin/tool.rs", ""),
            ("a/src/bin/big/main.rs", "mod part;"),
            ("a/src/bin/big/part.rs", ""),
            ("a/tests/whole.rs", "mod story;\n#[path = \"support/shared.rs\"]\nmod shared;"),
            ("a/tests/support/shared.rs", ""),
            ("a/tests/whole/story.rs", ""),
        ]);
        let paths: Vec<_> = files_belong_to_a_module(&tree).into_iter().map(|f| f.path).collect();
        assert_eq!(paths, ["a/src/one/orphan.rs", "a/src/orphan.rs"]);
    }

    #[test]
    fn a_file_may_have_so_many_lines_and_no_more() {
        let most = "\n".repeat(MOST_LINES);
        let more = "\n".repeat(MOST_LINES + 1);
        let tree = Tree::of([
            ("a/src/lib.rs", &most),
            ("a/src/lib/tests.rs", &more),
            ("a/tests/long.rs", &more),
            ("b/src/lib.rs", &more),
            ("long.md", &more),
        ]);
        assert_eq!(
            files_are_short(&tree),
            [Finding::new("b/src/lib.rs", 0, format!("{} lines, more than {MOST_LINES}", MOST_LINES + 1))]
        );
    }
}
