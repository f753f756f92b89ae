//! Rules about the documents: they say what the code says.

use std::collections::BTreeMap;

use super::{Finding, Tree};

/// Where the maps' names are declared.
const MAP_NAMES: &str = "lb-common/src/config.rs";
/// The map reference.
const MAP_REFERENCE: &str = "docs/maps.md";
/// Where outcomes and reasons are numbered and named.
const OUTCOMES: &str = "lb-common/src/outcome.rs";
/// A word in backticks that starts with one of these is a path.
const FOLDERS: [&str; 9] =
    ["lb-common/", "lb-ebpf/", "lb-userspace/", "xtask/", "tests/", "deploy/", "docs/", "examples/", "fuzz/"];

/// Each pinned map has a section in the map reference that names all fields of its key and value, and each section
/// is of a map.
pub(super) fn maps_are_documented(tree: &Tree) -> Vec<Finding> {
    let Some(config) = tree.files.get(MAP_NAMES) else { return Vec::new() };
    let maps = map_types(config);
    if maps.is_empty() {
        return vec![Finding::new(MAP_NAMES, 0, "no map names found in `pub mod maps`")];
    }
    let reference = tree.files.get(MAP_REFERENCE).map_or("", String::as_str);
    let sections = sections(reference);
    let mut findings = Vec::new();
    for (map, types) in &maps {
        let Some((line, text)) = sections.get(map) else {
            findings.push(Finding::new(MAP_REFERENCE, 0, format!("has no section \"## `{map}`\"")));
            continue;
        };
        let fields = types.iter().flat_map(|name| fields(tree, name));
        for field in fields.filter(|field| !text.contains(&format!("`{field}`"))) {
            findings.push(Finding::new(MAP_REFERENCE, *line, format!("{map} has a field `{field}`")));
        }
    }
    let surplus = sections.iter().filter(|(map, _)| !maps.contains_key(*map));
    findings.extend(
        surplus.map(|(map, (line, _))| Finding::new(MAP_REFERENCE, *line, format!("there is no map {map}"))),
    );
    findings
}

/// The maps' names, each with the types of its key and value that the comment above links to.
fn map_types(config: &str) -> BTreeMap<&str, Vec<&str>> {
    let lines =
        config.lines().skip_while(|line| !line.starts_with("pub mod maps")).take_while(|line| *line != "}");
    let (mut maps, mut types) = (BTreeMap::new(), Vec::new());
    for line in lines.map(str::trim) {
        if line.starts_with("///") {
            let targets = line.split("](").skip(1).filter_map(|rest| rest.split_once(')'));
            types.extend(targets.filter_map(|(target, _)| target.rsplit("::").next()));
        } else if let Some((name, _)) =
            line.strip_prefix("pub const ").and_then(|rest| rest.split_once(": &str"))
        {
            maps.insert(name, std::mem::take(&mut types));
        }
    }
    maps
}

/// The sections whose title is a map's name: the line they start at, and their text.
fn sections(reference: &str) -> BTreeMap<&str, (usize, String)> {
    let mut sections = BTreeMap::new();
    let mut current = None;
    for (number, line) in reference.lines().enumerate() {
        if line.starts_with("## ") {
            current = line.strip_prefix("## `").and_then(|rest| rest.split_once('`')).map(|(name, _)| name);
            if let Some(name) = current {
                sections.insert(name, (number + 1, String::new()));
            }
        } else if let Some((_, text)) = current.and_then(|name| sections.get_mut(name)) {
            text.push_str(line);
            text.push('\n');
        }
    }
    sections
}

/// The fields of a map type.
fn fields(tree: &Tree, name: &str) -> Vec<String> {
    let opening = format!("pub struct {name} {{");
    let in_common = tree.with_ending(".rs").filter(|(path, _)| path.starts_with("lb-common/src/"));
    let Some(body) = in_common.filter_map(|(_, text)| text.split_once(&opening)).map(|(_, body)| body).next()
    else {
        return Vec::new();
    };
    let lines = body.lines().take_while(|line| *line != "}").map(str::trim);
    let fields = lines.filter(|line| !line.starts_with("//")).filter_map(|line| line.split_once(": "));
    fields
        .map(|(field, _)| field.trim_start_matches("pub ").to_owned())
        .filter(|field| field != "reserved")
        .collect()
}

/// Each outcome and reason is in the map reference's table, with its number, name and meaning.
pub(super) fn outcomes_are_documented(tree: &Tree) -> Vec<Finding> {
    let Some(code) = tree.files.get(OUTCOMES) else { return Vec::new() };
    let reference = tree.files.get(MAP_REFERENCE).map_or("", String::as_str);
    let rows = code.lines().filter_map(|line| {
        let (_, rest) = line.trim().strip_suffix(';')?.split_once(" = ")?;
        let mut parts = rest.splitn(3, ", ");
        let (number, name, meaning) = (parts.next()?, parts.next()?, parts.next()?);
        number.parse::<u32>().ok()?;
        Some(format!("| {number} | `{}` | {} |", name.trim_matches('"'), meaning.trim_matches('"')))
    });
    let rows: Vec<String> = rows.collect();
    if rows.is_empty() {
        return vec![Finding::new(OUTCOMES, 0, "no outcomes found")];
    }
    let missing = rows.iter().filter(|row| !reference.lines().any(|line| line == *row));
    missing.map(|row| Finding::new(MAP_REFERENCE, 0, format!("lacks the row {row}"))).collect()
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
        let config = "pub const OTHER: &str = \"\";\npub mod maps {\n    /// Of a number → [`Value`](super::Value).\n    \
                      pub const ONE: &str = \"ONE\";\n    /// Nothing.\n    pub const TWO: &str = \"TWO\";\n    \
                      pub const ALL: [&str; 2] = [ONE, TWO];\n}\n\
                      pub struct Value {\n    /// Doc: text.\n    pub first: u32,\n    second: u32,\n    reserved: u32,\n}\n";
        let reference = "# Maps\n## `ONE`\n| `first` |\n## `GONE`\n`second`\n## Other\n";
        let tree = Tree::of([(MAP_NAMES, config), (MAP_REFERENCE, reference)]);
        assert_eq!(
            texts(&maps_are_documented(&tree)),
            [
                "docs/maps.md:2: ONE has a field `second`",
                "docs/maps.md: has no section \"## `TWO`\"",
                "docs/maps.md:4: there is no map GONE"
            ]
        );
    }

    #[test]
    fn names_that_cannot_be_found_are_a_finding() {
        let tree = Tree::of([(MAP_NAMES, "pub mod names {}\n")]);
        assert_eq!(maps_are_documented(&tree).len(), 1);
    }

    #[test]
    fn an_outcome_with_another_meaning_is_found() {
        let code = "    Outcome {\n        One = 0, \"one\", \"first, or so\";\n        Two = 1, \"two\", \"second\";\n    }\n";
        let tree = Tree::of([
            (OUTCOMES, code),
            (MAP_REFERENCE, "| 0 | `one` | first, or so |\n| 1 | `two` | 2nd |\n"),
        ]);
        assert_eq!(
            texts(&outcomes_are_documented(&tree)),
            ["docs/maps.md: lacks the row | 1 | `two` | second |"]
        );
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
