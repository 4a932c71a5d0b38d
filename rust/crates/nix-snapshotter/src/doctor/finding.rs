//! What was found, and how it is shown.

use std::fmt::{self, Write};

use serde::Serialize;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Level {
    /// As it should be.
    Ok,
    /// Worth knowing, and nothing to do about.
    Note,
    /// Works, with a loss or a risk.
    Warning,
    /// Does not work.
    Error,
}

impl fmt::Display for Level {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        })
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    /// The subject, one of a fixed set.
    pub(super) check: &'static str,
    pub(super) level: Level,
    /// What is so.
    pub(super) message: String,
    /// What mends it: a command, or lines of a configuration file.
    pub(super) remedy: Option<String>,
}

/// Findings about one subject.
#[derive(Debug, Clone, Copy)]
pub(super) struct Check(pub(super) &'static str);

impl Check {
    pub(super) fn ok(self, message: impl Into<String>) -> Finding {
        self.finding(Level::Ok, message.into(), None)
    }

    pub(super) fn note(self, message: impl Into<String>) -> Finding {
        self.finding(Level::Note, message.into(), None)
    }

    pub(super) fn warning(self, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(Level::Warning, message.into(), Some(remedy.into()))
    }

    pub(super) fn error(self, message: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.finding(Level::Error, message.into(), Some(remedy.into()))
    }

    fn finding(self, level: Level, message: String, remedy: Option<String>) -> Finding {
        Finding {
            check: self.0,
            level,
            message,
            remedy,
        }
    }
}

/// All findings, in the order in which they were looked for.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    findings: Vec<Finding>,
}

impl Report {
    pub(super) fn add(&mut self, findings: impl IntoIterator<Item = Finding>) {
        self.findings.extend(findings);
    }

    /// Whether anything does not work.
    pub(super) fn has_errors(&self) -> bool {
        self.count(Level::Error) > 0
    }

    fn count(&self, level: Level) -> usize {
        let of_level = |finding: &&Finding| finding.level == level;
        self.findings.iter().filter(of_level).count()
    }

    /// For people. What other programs and files said is in the messages: it breaks no line.
    pub(super) fn to_table(&self) -> Result<String, fmt::Error> {
        let mut table = String::new();
        for finding in &self.findings {
            let (level, check) = (finding.level, finding.check);
            writeln!(
                table,
                "{level:<8} {check:<18} {}",
                printable(&finding.message)
            )?;
            for line in finding.remedy.iter().flat_map(|remedy| remedy.lines()) {
                writeln!(table, "{:<27} → {}", "", printable(line))?;
            }
        }
        let (errors, warnings) = (self.count(Level::Error), self.count(Level::Warning));
        writeln!(table, "errors: {errors}, warnings: {warnings}")?;
        Ok(table)
    }
}

fn printable(text: &str) -> String {
    let escaped = |character: char| match character {
        c if c.is_control() => c.escape_default().to_string(),
        c => c.to_string(),
    };
    text.trim_end().chars().map(escaped).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_says_what_is_wrong_and_what_mends_it() {
        let mut report = Report::default();
        report.add([
            Check("a").ok("fine"),
            Check("b").warning("slow\n\u{1b}[0m", "one\ntwo"),
        ]);
        assert!(!report.has_errors());
        report.add([Check("c").error("broken", "mend it")]);
        assert!(report.has_errors());
        let table = report.to_table().unwrap();
        let lines: Vec<_> = table.lines().map(str::trim_start).collect();
        assert_eq!(
            lines,
            [
                "ok       a                  fine",
                "warning  b                  slow\\n\\u{1b}[0m",
                "→ one",
                "→ two",
                "error    c                  broken",
                "→ mend it",
                "errors: 1, warnings: 1",
            ]
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["findings"][1]["level"], "warning");
        assert_eq!(json["findings"][0]["remedy"], serde_json::Value::Null);
    }
}
