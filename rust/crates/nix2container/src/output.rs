//! Results on standard output, and texts of strangers on their way there.

use std::{
    fmt::{self, Write as _},
    io::{self, Write as _},
};

/// The text with everything escaped that a terminal could act upon or not show: control
/// characters, marks of direction, characters without width. Images are made by strangers.
pub(crate) fn printable(text: &str) -> String {
    let mut printable = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '"' | '\'' => printable.push(character),
            _ => printable.extend(character.escape_debug()),
        }
    }
    printable
}

/// A message of this program with the same escaped. Its lines stay lines, and what it has quoted
/// and escaped already is not escaped again.
pub(crate) fn printable_message(message: &str) -> String {
    let mut printable = String::with_capacity(message.len());
    for character in message.chars() {
        match character {
            '"' | '\'' | '\\' | '\n' => printable.push(character),
            _ => printable.extend(character.escape_debug()),
        }
    }
    printable
}

/// A JSON text with the same characters escaped as JSON has it. They stand in its strings only,
/// for JSON itself has none of them but the line feed.
pub(crate) fn printable_json(json: &str) -> String {
    let mut printable = String::with_capacity(json.len());
    for character in json.chars() {
        if character == '\n'
            || character.is_ascii_graphic()
            || character == ' '
            || is_shown(character)
        {
            printable.push(character);
        } else {
            for unit in character.encode_utf16(&mut [0; 2]) {
                // Writing to a String cannot fail.
                let _ = write!(printable, "\\u{unit:04x}");
            }
        }
    }
    printable
}

/// Whether Rust prints the character as it is.
fn is_shown(character: char) -> bool {
    character.escape_debug().eq([character])
}

/// So many store paths, in words.
pub(crate) fn count_store_paths(count: usize) -> String {
    match count {
        1 => "1 store path".to_owned(),
        _ => format!("{count} store paths"),
    }
}

/// Rows whose columns are aligned. What goes into one is [`printable`] already.
#[derive(Default)]
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    /// Adds a row.
    pub(crate) fn row<const COLUMNS: usize>(&mut self, cells: [&str; COLUMNS]) {
        self.0.push(cells.map(str::to_owned).to_vec());
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or_default();
        let mut widths = vec![0; columns];
        for row in &self.0 {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = cell.chars().count().max(*width);
            }
        }
        for row in &self.0 {
            let last = row.len().saturating_sub(1);
            for (at, (cell, width)) in row.iter().zip(&widths).enumerate() {
                match at == last {
                    true => writeln!(f, "{cell}")?,
                    false => write!(f, "{cell:width$}  ")?,
                }
            }
        }
        Ok(())
    }
}

/// Writes to standard output, whose reader may have had enough.
pub(crate) fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    match stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
    {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a terminal would act upon: ESC, CSI, BEL, CR, DEL, overrides of direction.
    const HOSTILE: &str =
        "a\u{1b}[2J\u{9b}31m\u{7}\r\n\u{7f}\u{202e}\u{200b}\u{feff}\u{e0001}ü\"'\\";

    fn is_harmless(text: &str) -> bool {
        text.chars().all(|character| {
            character == '"'
                || character == '\''
                || character == '\\'
                || character.escape_debug().eq([character])
        })
    }

    #[test]
    fn nothing_that_a_terminal_acts_upon_is_printed() {
        let text = printable(HOSTILE);
        assert!(is_harmless(&text), "{text:?}");
        assert!(text.starts_with("a\\u{1b}[2J\\u{9b}31m"), "{text}");
        assert!(text.ends_with("ü\"'\\\\"), "{text}");
        assert_eq!(
            printable("sha256:00 /nix/store/x"),
            "sha256:00 /nix/store/x"
        );
    }

    #[test]
    fn a_message_keeps_its_lines_and_quotes() {
        let text = printable_message(HOSTILE);
        assert!(is_harmless(&text.replace('\n', "")), "{text:?}");
        assert_eq!(
            printable_message("a \"\\u{1b}\"\n  b"),
            "a \"\\u{1b}\"\n  b"
        );
    }

    #[test]
    fn json_means_the_same_and_is_harmless() {
        let value = serde_json::json!({ HOSTILE: [HOSTILE, 1, null] });
        let text = printable_json(&format!("{value:#}"));
        assert!(is_harmless(&text.replace('\n', "")), "{text:?}");
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            value
        );
    }

    #[test]
    fn columns_are_aligned_and_nothing_is_behind_the_last() {
        let mut table = Table::default();
        table.row(["A", "LONGER", "C"]);
        table.row(["aaa", "b", "c"]);
        assert_eq!(table.to_string(), "A    LONGER  C\naaa  b       c\n");
        assert_eq!(Table::default().to_string(), "");
    }
}
