//! Rules about the documents: they say what the code says.

use super::{Finding, Tree, source::Source};

/// Where the maps' names are declared.
const MAP_NAMES: &str = "lb-common/src/config.rs";
/// The map reference.
const MAP_REFERENCE: &str = "docs/maps.md";
/// Where the flags of `sockeye run` are declared.
const FLAGS: &str = "lb-userspace/src/cli/run.rs";
/// The reference of the command line.
const CLI_REFERENCE: &str = "docs/cli.md";
/// A word in backticks that starts with one of these is a path.
const FOLDERS: [&str; 9] =
    ["lb-common/", "lb-ebpf/", "lb-userspace/", "xtask/", "tests/", "deploy/", "docs/", "examples/", "fuzz/"];

/// Each pinned map has a section in the map reference, and each section is of a map.
pub(super) fn maps_are_documented(tree: &Tree) -> Vec<Finding> {
    let Some(config) = tree.files.get(MAP_NAMES) else { return Vec::new() };
    let maps: Vec<&str> = config
        .lines()
        .skip_while(|line| !line.starts_with("pub mod maps"))
        .take_while(|line| *line != "}")
        .filter_map(|line| line.trim().strip_prefix("pub const ")?.split_once(": &str").map(|(name, _)| name))
        .collect();
    if maps.is_empty() {
        return vec![Finding::new(MAP_NAMES, 0, "no map names found in `pub mod maps`")];
    }
    let reference = tree.files.get(MAP_REFERENCE).map_or("", String::as_str);
    let sections: Vec<(usize, &str)> = reference
        .lines()
        .enumerate()
        .filter_map(|(number, line)| Some((number + 1, line.strip_prefix("## `")?.split_once('`')?.0)))
        .collect();
    let missing = maps
        .iter()
        .filter(|map| !sections.iter().any(|(_, section)| section == *map))
        .map(|map| Finding::new(MAP_REFERENCE, 0, format!("has no section \"## `{map}`\"")));
    let surplus = sections
        .iter()
        .filter(|(_, section)| !maps.contains(section))
        .map(|(line, section)| Finding::new(MAP_REFERENCE, *line, format!("there is no map {section}")));
    missing.chain(surplus).collect()
}

/// Each flag of `sockeye run` is in the reference of the command line.
pub(super) fn flags_are_documented(tree: &Tree) -> Vec<Finding> {
    let (Some(code), Some(reference)) = (tree.files.get(FLAGS), tree.files.get(CLI_REFERENCE)) else {
        return Vec::new();
    };
    let flags = long_flags(code);
    if flags.is_empty() {
        return vec![Finding::new(FLAGS, 0, "no flags found")];
    }
    flags
        .into_iter()
        .filter(|flag| !reference.contains(&format!("`--{flag}")))
        .map(|flag| Finding::new(CLI_REFERENCE, 0, format!("does not document `--{flag}`")))
        .collect()
}

/// The long flags that clap derives: `#[arg(long)]` before a field, or `long = "name"`.
fn long_flags(text: &str) -> Vec<String> {
    let mut flags = Vec::new();
    let mut pending = false;
    for (raw, code) in text.lines().zip(Source::split(text).code) {
        let code = code.trim();
        if code.starts_with("#[arg(") && code.split(['(', ',', ')', ' ']).any(|word| word == "long") {
            match raw.split_once("long = \"").and_then(|(_, rest)| rest.split_once('"')) {
                Some((name, _)) => flags.push(name.to_owned()),
                None => pending = true,
            }
        } else if pending && let Some((field, _)) = code.split_once(':') {
            let name = field.rsplit(' ').next().unwrap_or(field);
            flags.push(name.replace('_', "-"));
            pending = false;
        }
    }
    flags
}

/// A relative link, and a path in backticks, names something that exists.
pub(super) fn links_and_paths_lead_somewhere(tree: &Tree) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (path, text) in tree.with_ending(".md") {
        let mut fenced = false;
        for (number, line) in text.lines().enumerate() {
            if line.trim_start().starts_with("```") {
                fenced = !fenced;
            }
            if fenced {
                continue;
            }
            for target in links(line).filter(|target| !leads_to(tree, path, target)) {
                findings.push(Finding::new(path, number + 1, format!("the link {target} leads nowhere")));
            }
            for named in paths(line).filter(|named| !tree.contains(named)) {
                findings.push(Finding::new(path, number + 1, format!("there is no `{named}`")));
            }
        }
    }
    findings
}

/// The targets of a line's relative links, without anchors.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split_once(')'))
        .map(|(target, _)| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
}

/// The paths that a line names in backticks.
fn paths(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2).filter(|word| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
        FOLDERS.iter().any(|folder| word.starts_with(folder)) && word.chars().all(plain)
    })
}

/// Whether a link in a document leads to a file or folder.
fn leads_to(tree: &Tree, document: &str, target: &str) -> bool {
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "." | "" => {}
            ".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    tree.contains(&parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(findings: &[Finding]) -> Vec<String> {
        findings.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_map_without_a_section_and_a_section_without_a_map_are_found() {
        let config = "pub const OTHER: &str = \"\";\npub mod maps {\n    pub const ONE: &str = \"ONE\";\n    \
                      pub const TWO: &str = \"TWO\";\n    pub const ALL: [&str; 2] = [ONE, TWO];\n}\n";
        let tree =
            Tree::of([(MAP_NAMES, config), (MAP_REFERENCE, "# Maps\n## `ONE`\n## `GONE`\n## Other\n")]);
        assert_eq!(
            texts(&maps_are_documented(&tree)),
            ["docs/maps.md: has no section \"## `TWO`\"", "docs/maps.md:3: there is no map GONE"]
        );
    }

    #[test]
    fn names_that_cannot_be_found_are_a_finding() {
        let tree = Tree::of([(MAP_NAMES, "pub mod names {}\n")]);
        assert_eq!(maps_are_documented(&tree).len(), 1);
    }

    #[test]
    fn flags_are_read_as_clap_names_them() {
        let code = "struct Options {\n    /// Doc: text\n    #[arg(long, value_name = \"DIR\")]\n    \
                    manifests: Option<PathBuf>,\n    #[arg(long = \"node-name\")]\n    node: String,\n    \
                    #[arg(short, long)]\n    pub(crate) max_services: u32,\n    #[arg(last = true)]\n    rest: u8,\n}";
        assert_eq!(long_flags(code), ["manifests", "node-name", "max-services"]);
        let tree = Tree::of([(FLAGS, code), (CLI_REFERENCE, "`--manifests DIR`, `--node-name`")]);
        assert_eq!(texts(&flags_are_documented(&tree)), ["docs/cli.md: does not document `--max-services`"]);
    }

    #[test]
    fn a_dead_link_and_a_dead_path_are_found() {
        let text = "[a](maps.md) [b](../README.md#top) [c](gone.md) [d](https://example.com) [e](#here)\n\
                    `lb-common/src/lib.rs` `lb-common/gone.rs` `docs/` `docs/*.md`\n```\n[f](gone.md)\n```\n";
        let tree = Tree::of([
            ("docs/a.md", text),
            ("docs/maps.md", ""),
            ("README.md", ""),
            ("lb-common/src/lib.rs", ""),
        ]);
        assert_eq!(
            texts(&links_and_paths_lead_somewhere(&tree)),
            ["docs/a.md:1: the link gone.md leads nowhere", "docs/a.md:2: there is no `lb-common/gone.rs`"]
        );
    }
}
