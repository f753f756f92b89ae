//! The house rules that a program can check (CONTRIBUTING.md says why they are there).
//!
//! A rule is a function from the repository's texts to findings: no I/O, so that each is tested on small inputs.
//! `./x lint` and `cargo test` run them all.

use std::{collections::BTreeMap, fmt, fs};

use anyhow::{Context as _, bail};

use crate::command::{output, program, root_dir, say};

mod conformance;
mod documents;
mod layout;
mod source;
mod words;

/// The repository's text files: path from the root → content.
#[derive(Default)]
struct Tree {
    files: BTreeMap<String, String>,
}

/// A rule that is broken somewhere.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    /// From 1; 0: the whole file.
    line: usize,
    what: String,
}

/// All rules.
const RULES: [fn(&Tree) -> Vec<Finding>; 9] = [
    layout::members_inherit_the_lints,
    layout::files_belong_to_a_module,
    layout::files_are_short,
    words::imports_stay_at_the_edges,
    words::no_banned_words,
    documents::maps_are_documented,
    documents::outcomes_are_documented,
    documents::links_and_paths_lead_somewhere,
    conformance::named_tests_exist,
];

/// Checks the repository as it stands on disk, new files included.
pub(crate) fn check_repository() -> anyhow::Result<()> {
    let tree = Tree::read()?;
    let findings: Vec<Finding> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    for finding in &findings {
        say(&finding.to_string());
    }
    if !findings.is_empty() {
        bail!("house rules: {} findings", findings.len());
    }
    Ok(())
}

impl Tree {
    fn read() -> anyhow::Result<Self> {
        let list =
            output(program("git").args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"]))?;
        let mut files = BTreeMap::new();
        for path in list.split('\0').filter(|path| !path.is_empty()) {
            let bytes = match fs::read(root_dir().join(path)) {
                Ok(bytes) => bytes,
                // In the index, but removed from disk.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).with_context(|| format!("cannot read {path}")),
            };
            // What is not text is still a file that links may lead to.
            files.insert(path.to_owned(), String::from_utf8(bytes).unwrap_or_default());
        }
        Ok(Self { files })
    }

    /// The files with this ending.
    fn with_ending(&self, ending: &str) -> impl Iterator<Item = (&str, &str)> {
        self.files
            .iter()
            .filter(move |(path, _)| path.ends_with(ending))
            .map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// Whether there is a file, or a folder with files, of this name.
    fn contains(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        let folder = format!("{path}/");
        self.files.contains_key(path)
            || self.files.range(folder.clone()..).next().is_some_and(|(next, _)| next.starts_with(&folder))
    }

    #[cfg(test)]
    fn of<const N: usize>(files: [(&str, &str); N]) -> Self {
        Self { files: files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect() }
    }
}

impl Finding {
    fn new(path: &str, line: usize, what: impl Into<String>) -> Self {
        Self { path: path.to_owned(), line, what: what.into() }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}: {}", self.path, self.what),
            line => write!(f, "{}:{line}: {}", self.path, self.what),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_keeps_the_house_rules() {
        let tree = Tree::read().unwrap();
        let findings: Vec<String> =
            RULES.iter().flat_map(|rule| rule(&tree)).map(|finding| finding.to_string()).collect();
        assert!(findings.is_empty(), "\n{}\n", findings.join("\n"));
    }

    #[test]
    fn a_folder_is_contained_if_a_file_in_it_is() {
        let tree = Tree::of([("docs/adr/0001.md", ""), ("docs.md", "")]);
        assert!(tree.contains("docs") && tree.contains("docs/adr/") && tree.contains("docs/adr/0001.md"));
        assert!(!tree.contains("doc") && !tree.contains("docs/ad"));
    }
}
