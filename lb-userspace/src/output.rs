//! What commands print: aligned columns for people, JSON or YAML for programs.

use std::io::{self, Write};

use anyhow::Context as _;
use serde::Serialize;

/// How a command prints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Aligned columns.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One YAML document.
    Yaml,
}

/// The flag that chooses it.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct FormatFlag {
    /// How to print
    #[arg(short = 'o', long = "output", value_name = "FORMAT", value_enum, default_value_t)]
    pub output: Format,
}

/// What has a form for people.
pub trait Table {
    /// The lines, each with its newline.
    fn table(&self) -> String;
}

/// Prints a value on standard output.
pub fn print<T: Serialize + Table>(value: &T, format: Format) -> anyhow::Result<()> {
    let text = render(value, format)?;
    print_text(&text)
}

/// Prints text on standard output.
pub fn print_text(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("writing to standard output")
}

/// Prints a remark for people on standard error, beside what is printed for programs.
pub fn remark(text: &str) {
    // A remark that nobody can read is no reason to fail.
    drop(writeln!(io::stderr().lock(), "{text}"));
}

/// A value in a format, with a newline at the end.
pub fn render<T: Serialize + Table>(value: &T, format: Format) -> anyhow::Result<String> {
    match format {
        Format::Table => Ok(value.table()),
        Format::Json => {
            let mut text = serde_json::to_string_pretty(value).context("writing JSON")?;
            text.push('\n');
            Ok(text)
        }
        Format::Yaml => {
            let mut text = serde_saphyr::to_string(value).context("writing YAML")?;
            if !text.ends_with('\n') {
                text.push('\n');
            }
            Ok(text)
        }
    }
}

/// Rows of cells that line up.
#[derive(Clone, Debug, Default)]
pub struct Columns {
    rows: Vec<Vec<String>>,
}

impl Columns {
    /// A table with a heading.
    pub fn with_heading<const N: usize>(heading: [&str; N]) -> Self {
        let mut columns = Self::default();
        columns.row(heading);
        columns
    }

    /// Adds a row.
    pub fn row<S: Into<String>, const N: usize>(&mut self, cells: [S; N]) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether there is nothing below the heading.
    pub fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The lines, each `indent` spaces in; two spaces between columns, none at the end of a line.
    pub fn render(&self, indent: usize) -> String {
        let count = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<_> = (0..count).map(|column| width(column).unwrap_or(0)).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (cell, width) in row.iter().zip(&widths) {
                line.push_str(cell);
                line.extend(std::iter::repeat_n(' ', width + 2 - cell.chars().count()));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// A duration as people say it: the two largest units, in seconds at least.
pub fn age(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3_600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{minutes}m{:02}s", seconds % 60),
        3_600..86_400 => format!("{hours}h{:02}m", minutes % 60),
        _ => format!("{days}d{:02}h", hours % 24),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn columns_line_up_and_lines_end_at_their_text() {
        let mut columns = Columns::with_heading(["NAME", "PORT", "NOTE"]);
        columns.row(["default/web", "80/TCP", ""]);
        columns.row(["dns", "53/UDP", "größer"]);
        expect![[r#"
              NAME         PORT    NOTE
              default/web  80/TCP
              dns          53/UDP  größer
        "#]]
        .assert_eq(&columns.render(0));
        assert!(columns.render(2).lines().all(|line| line.starts_with("  ") && !line.ends_with(' ')));
    }

    #[test]
    fn ages_have_two_units() {
        for (seconds, expected) in
            [(0, "0s"), (59, "59s"), (60, "1m00s"), (3_599, "59m59s"), (3_600, "1h00m"), (90_061, "1d01h")]
        {
            assert_eq!(age(seconds), expected);
        }
    }

    #[test]
    fn a_value_is_the_same_in_each_format() {
        #[derive(Serialize)]
        struct Thing {
            name: &'static str,
            ports: Vec<u16>,
        }
        impl Table for Thing {
            fn table(&self) -> String {
                format!("{}\n", self.name)
            }
        }
        let thing = Thing { name: "no", ports: vec![80, 443] };
        assert_eq!(render(&thing, Format::Table).unwrap(), "no\n");
        expect![[r#"
            {
              "name": "no",
              "ports": [
                80,
                443
              ]
            }
        "#]]
        .assert_eq(&render(&thing, Format::Json).unwrap());
        // A bare `no` would be read back as a boolean.
        expect![[r#"
            name: "no"
            ports:
            - 80
            - 443
        "#]]
        .assert_eq(&render(&thing, Format::Yaml).unwrap());
    }
}
