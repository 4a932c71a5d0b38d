//! Medians, and what they are compared with.

use std::{fmt, time::Duration};

/// What was measured, in the order in which it is printed.
#[derive(Debug, Default)]
pub struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    subject: String,
    figure: Figure,
}

/// One measured quantity.
#[derive(Clone, Copy, Debug)]
enum Figure {
    /// Median and least of several times.
    Time { median: Duration, least: Duration },
    /// Median of several rates, in operations a second.
    Rate(f64),
}

impl Table {
    /// Adds the times that `what` took for `subject`. The first subject of each `what` is the one
    /// that the others are compared with.
    pub fn times(&mut self, what: &str, subject: &str, mut times: Vec<Duration>) {
        times.sort_unstable();
        let median = times.get(times.len() / 2).copied().unwrap_or_default();
        let least = times.first().copied().unwrap_or_default();
        self.add(what, subject, Figure::Time { median, least });
    }

    /// Adds the rates, in operations a second, at which `subject` did `what`.
    pub fn rates(&mut self, what: &str, subject: &str, mut rates: Vec<f64>) {
        rates.sort_unstable_by(f64::total_cmp);
        let median = rates.get(rates.len() / 2).copied().unwrap_or_default();
        self.add(what, subject, Figure::Rate(median));
    }

    fn add(&mut self, what: &str, subject: &str, figure: Figure) {
        self.0.push(Row {
            what: what.to_owned(),
            subject: subject.to_owned(),
            figure,
        });
    }

    /// How a row relates to the first of its kind.
    fn ratio(&self, row: &Row) -> Option<f64> {
        let base = self.0.iter().find(|other| other.what == row.what)?;
        match (base.figure, row.figure) {
            (Figure::Time { median: base, .. }, Figure::Time { median, .. }) => {
                Some(median.as_secs_f64() / base.as_secs_f64())
            }
            (Figure::Rate(base), Figure::Rate(rate)) => Some(rate / base),
            _ => None,
        }
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<38}{:<22}{:>12}{:>12}{:>8}",
            "", "", "median", "least", "ratio"
        )?;
        for row in &self.0 {
            let (median, least) = match row.figure {
                Figure::Time { median, least } => (milliseconds(median), milliseconds(least)),
                Figure::Rate(rate) => (format!("{rate:.0} /s"), String::new()),
            };
            let ratio = self
                .ratio(row)
                .map_or_else(String::new, |ratio| format!("{ratio:.2}×"));
            let (what, subject) = (&row.what, &row.subject);
            writeln!(
                f,
                "{what:<38}{subject:<22}{median:>12}{least:>12}{ratio:>8}"
            )?;
        }
        Ok(())
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{:.2} ms", time.as_secs_f64() * 1000.0)
}
