//! Rust source split into code and comments, so that a rule about one does not stumble over the other.

/// The lines of a source file, as two columns of equal length.
pub(super) struct Source {
    /// Code, without comments and without what stands inside string and character literals.
    pub(super) code: Vec<String>,
    /// What stands in comments.
    pub(super) comments: Vec<String>,
}

#[derive(Clone, Copy)]
enum Inside {
    Code,
    LineComment,
    /// Depth: block comments nest.
    BlockComment(usize),
    /// Number of `#`; `None`: not a raw string, so that a backslash escapes.
    Text(Option<usize>),
}

impl Source {
    /// Splits a file.
    pub(super) fn split(text: &str) -> Self {
        let mut split = Self { code: Vec::new(), comments: Vec::new() };
        let mut inside = Inside::Code;
        for line in text.lines() {
            let (mut code, mut comment) = (String::new(), String::new());
            if matches!(inside, Inside::LineComment) {
                inside = Inside::Code;
            }
            let mut rest = line;
            while let Some(first) = rest.chars().next() {
                let taken = match inside {
                    Inside::Code => {
                        let (next, taken) = in_code(rest, code.chars().next_back());
                        inside = next;
                        // A string's opening mark stays, as a sign that something stood there.
                        if matches!(inside, Inside::Code | Inside::Text(_)) {
                            code.push(if taken == first.len_utf8() { first } else { '"' });
                        }
                        taken
                    }
                    Inside::LineComment => {
                        comment.push_str(rest);
                        rest.len()
                    }
                    Inside::BlockComment(depth) => {
                        let (next, taken) = in_block_comment(rest, depth);
                        inside = next;
                        // Its marks are two bytes, and no part of what it says.
                        if taken == first.len_utf8() {
                            comment.push(first);
                        }
                        taken
                    }
                    Inside::Text(hashes) => {
                        let (next, taken) = in_text(rest, hashes);
                        inside = next;
                        taken
                    }
                };
                rest = rest.get(taken..).unwrap_or_default();
            }
            split.code.push(code);
            split.comments.push(comment);
        }
        split
    }
}

/// One step in code: what comes next, and how many bytes were taken.
fn in_code(rest: &str, before: Option<char>) -> (Inside, usize) {
    if rest.starts_with("//") {
        return (Inside::LineComment, 2);
    }
    if rest.starts_with("/*") {
        return (Inside::BlockComment(1), 2);
    }
    if rest.starts_with('"') {
        return (Inside::Text(None), 1);
    }
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    if !in_word && let Some(raw) = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r')) {
        let opening = raw.trim_start_matches('#');
        if opening.starts_with('"') {
            let hashes = raw.len() - opening.len();
            return (Inside::Text(Some(hashes)), rest.len() - opening.len() + 1);
        }
    }
    (Inside::Code, character_literal(rest).unwrap_or_else(|| rest.chars().next().map_or(1, char::len_utf8)))
}

/// The length of a character literal, which could hold a quotation mark; a lifetime is none.
fn character_literal(rest: &str) -> Option<usize> {
    let inner = rest.strip_prefix('\'')?;
    let mut characters = inner.chars();
    let first = characters.next()?;
    if first == '\\' {
        let escaped = characters.next()?.len_utf8();
        let end = inner.get(1 + escaped..)?.find('\'')?;
        return Some(1 + 1 + escaped + end + 1);
    }
    (characters.next()? == '\'').then(|| 1 + first.len_utf8() + 1)
}

fn in_block_comment(rest: &str, depth: usize) -> (Inside, usize) {
    if rest.starts_with("*/") {
        (if depth == 1 { Inside::Code } else { Inside::BlockComment(depth - 1) }, 2)
    } else if rest.starts_with("/*") {
        (Inside::BlockComment(depth + 1), 2)
    } else {
        (Inside::BlockComment(depth), rest.chars().next().map_or(1, char::len_utf8))
    }
}

fn in_text(rest: &str, hashes: Option<usize>) -> (Inside, usize) {
    let first = rest.chars().next().map_or(1, char::len_utf8);
    if hashes.is_none() && rest.starts_with('\\') {
        let escaped = rest.chars().nth(1).map_or(0, char::len_utf8);
        return (Inside::Text(None), first + escaped);
    }
    let closing = hashes.unwrap_or(0);
    match rest.strip_prefix('"') {
        Some(after) if after.bytes().take_while(|byte| *byte == b'#').count() >= closing => {
            (Inside::Code, 1 + closing)
        }
        _ => (Inside::Text(hashes), first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, code: &[&str], comments: &[&str]) {
        let split = Source::split(text);
        assert_eq!(split.code, code);
        assert_eq!(split.comments, comments);
    }

    #[test]
    fn comments_are_apart_from_code() {
        check("a // b\nc", &["a ", "c"], &[" b", ""]);
        check("a /* b\n/* c */ d */ e", &["a ", " e"], &[" b", " c  d "]);
    }

    #[test]
    fn what_stands_in_a_string_is_neither() {
        check(r#"a("// b \" c") // d"#, &[r#"a(") "#], &[" d"]);
        check("r#\"x\" // y\"# z", &["\" z"], &[""]);
        check("br\"x\\\" // y", &["\" "], &[" y"]);
        check("\"one\ntwo // three\" four", &["\"", " four"], &["", ""]);
    }

    #[test]
    fn a_quotation_mark_in_a_character_opens_nothing() {
        check(r"'\'' '\u{1F600}' // b", &["\" \" "], &[" b"]);
        check("x('\"'); // b", &["x(\"); "], &[" b"]);
        check("fn f<'a>(x: &'a str) {} // b", &["fn f<'a>(x: &'a str) {} "], &[" b"]);
        check("let for_r = bar\"x\";", &["let for_r = bar\";"], &[""]);
    }
}
