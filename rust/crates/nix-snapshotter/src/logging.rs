//! Messages on standard error: one line each, whatever is in them.
//!
//! What names itself in a message may come from an image or from another program's socket. It
//! is cut by [`excerpt`] before it becomes a field, and a [`Line`] escapes what would end it.

use std::{
    borrow::Cow,
    env,
    fmt::{self, Write},
    io::{self, IsTerminal},
};

use clap::ValueEnum;
use serde::Deserialize;
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::{
    Layer, Registry,
    filter::{LevelFilter, Targets},
    fmt::{
        FmtContext,
        format::{FormatEvent, FormatFields, Writer},
    },
    prelude::*,
    registry::LookupSpan,
};

use crate::cli::LogLevel;

/// Most bytes of a key, a name or a label in a message.
const EXCERPT_BYTES: usize = 256;

/// Most bytes of a line of text. The end of what Nix says, which is the longest part, has 4 KiB.
const LINE_BYTES: usize = 16 * 1024;

/// The crates whose messages are this project's own.
const OURS: [&str; 4] = ["image_loader", "nix_snapshotter", "nix_store", "snapshots"];

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object a line.
    Json,
}

/// Logs what the project's own crates say at `level`, and of the libraries below them only warnings.
pub(crate) fn init(format: LogFormat, level: LogLevel) {
    let filter = Targets::new()
        .with_default(LevelFilter::from(level).min(LevelFilter::WARN))
        .with_targets(OURS.map(|target| (target, level)));
    tracing_subscriber::registry()
        .with(layer(format, is_journal()))
        .with(filter)
        .init();
}

fn layer(format: LogFormat, journal: bool) -> Box<dyn Layer<Registry> + Send + Sync> {
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    match format {
        LogFormat::Text if journal => {
            // The journal has the time already.
            let layer = layer.without_time();
            layer
                .map_event_format(|text| Line::text(text, journal))
                .boxed()
        }
        LogFormat::Text => layer
            .map_event_format(|text| Line::text(text, journal))
            .boxed(),
        // Its lines may leave the journal alone, and keep their time.
        LogFormat::Json => {
            let layer = layer.json().flatten_event(true).with_span_list(false);
            layer
                .map_event_format(|json| Line::json(json, journal))
                .boxed()
        }
    }
}

/// Whether systemd's journal reads standard error: `$JOURNAL_STREAM` names its device and inode
/// (systemd.exec(5)), and is inherited by programs whose output goes elsewhere.
fn is_journal() -> bool {
    let Ok(stderr) = rustix::fs::fstat(io::stderr()) else {
        return false;
    };
    env::var("JOURNAL_STREAM")
        .is_ok_and(|stream| stream == format!("{}:{}", stderr.st_dev, stderr.st_ino))
}

/// Writes an event as one line, with its severity for the journal in front (sd-daemon(3)).
struct Line<F> {
    format: F,
    journal: bool,
    /// Most bytes that are written of it.
    limit: usize,
}

impl<F> Line<F> {
    fn text(format: F, journal: bool) -> Self {
        let limit = LINE_BYTES;
        Self {
            format,
            journal,
            limit,
        }
    }

    /// Whole lines only: half an object is none.
    fn json(format: F, journal: bool) -> Self {
        let limit = usize::MAX;
        Self {
            format,
            journal,
            limit,
        }
    }
}

impl<S, N, F> FormatEvent<S, N> for Line<F>
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if writer.has_ansi_escapes() {
            // A person at a terminal; the library keeps escape sequences out of the values.
            return self.format.format_event(context, writer, event);
        }
        let mut line = String::new();
        self.format
            .format_event(context, Writer::new(&mut line), event)?;
        if self.journal {
            write!(writer, "<{}>", syslog_severity(*event.metadata().level()))?;
        }
        write_line(&mut writer, &cut(line.trim_end_matches('\n'), self.limit))
    }
}

fn syslog_severity(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}

/// Writes a line break at the end and none before. JSON leaves some control characters as they
/// are, and takes this notation of them.
fn write_line(writer: &mut impl Write, line: &str) -> fmt::Result {
    for character in line.chars() {
        match character {
            '\n' => writer.write_str("\\n")?,
            '\r' => writer.write_str("\\r")?,
            '\t' => writer.write_str("\\t")?,
            // The last one is U+009F.
            control if control.is_control() => write!(writer, "\\u{:04x}", u32::from(control))?,
            other => writer.write_char(other)?,
        }
    }
    writer.write_char('\n')
}

/// The beginning of a text of unknown length, as it stands in a message.
pub(crate) fn excerpt(text: &str) -> Cow<'_, str> {
    cut(text, EXCERPT_BYTES)
}

/// At most `bytes` of a text, and how long it was.
pub(crate) fn cut(text: &str, bytes: usize) -> Cow<'_, str> {
    if text.len() <= bytes {
        return text.into();
    }
    let kept = &text[..text.floor_char_boundary(bytes)];
    format!("{kept}… ({} bytes)", text.len()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line() {
        let mut line = String::new();
        write_line(&mut line, "a\nb\r\u{1b}[31mc\u{85}é").unwrap();
        assert_eq!(line, "a\\nb\\r\\u001b[31mc\\u0085é\n");
    }

    #[test]
    fn what_is_long_is_cut_between_characters() {
        assert_eq!(excerpt("short"), "short");
        let long = "é".repeat(EXCERPT_BYTES);
        let kept = "é".repeat(EXCERPT_BYTES / 2);
        assert_eq!(excerpt(&long), format!("{kept}… ({} bytes)", long.len()));
        assert_eq!(cut("aé", 2), "a… (3 bytes)");
    }
}
