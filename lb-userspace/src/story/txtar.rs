//! The archive format of Go's txtar: a comment, then files, each after a line `-- name --`.

/// A comment and named texts, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Archive {
    pub(super) comment: String,
    pub(super) files: Vec<(String, String)>,
}

impl Archive {
    pub(super) fn parse(text: &str) -> Self {
        let mut archive = Self::default();
        for line in text.split_inclusive('\n') {
            match (file_name(line), archive.files.last_mut()) {
                (Some(name), _) => archive.files.push((name.to_owned(), String::new())),
                (None, Some((_, content))) => content.push_str(line),
                (None, None) => archive.comment.push_str(line),
            }
        }
        archive
    }

    pub(super) fn to_text(&self) -> String {
        let mut text = self.comment.clone();
        for (name, content) in &self.files {
            text.push_str("-- ");
            text.push_str(name);
            text.push_str(" --\n");
            text.push_str(content);
        }
        text
    }
}

fn file_name(line: &str) -> Option<&str> {
    line.trim_end().strip_prefix("-- ")?.strip_suffix(" --")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_read_and_written_alike() {
        let text = "what it shows\n\n-- apply: a service --\nkind: Service\n---\nx: 1\n-- dump --\n";
        let archive = Archive::parse(text);
        assert_eq!(archive.comment, "what it shows\n\n");
        let names: Vec<_> = archive.files.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["apply: a service", "dump"]);
        assert_eq!(archive.files[0].1, "kind: Service\n---\nx: 1\n");
        assert_eq!(archive.to_text(), text);
    }
}
