//! Results on standard output, and texts of strangers on their way there.

use std::io::{self, Write as _};

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
}
