//! What a command tells while it works: bars on a terminal, lines elsewhere, nothing when it is to
//! be quiet. All of it goes to standard error, as the log does; standard output has results only.

use std::{
    cell::Cell,
    io::{self, IsTerminal, Write},
    time::{Duration, Instant},
};

use indicatif::{HumanBytes, MultiProgress, ProgressBar, ProgressStyle};

/// How often a piece of work says how far it is, where there is no terminal to show it.
const INTERVAL: Duration = Duration::from_secs(10);

/// Where a command tells how far it is. Its copies tell the same person.
#[derive(Clone, Debug)]
pub(crate) struct Progress(Shown);

#[derive(Clone, Debug)]
enum Shown {
    Bars(MultiProgress),
    Lines,
    Nothing,
}

impl Progress {
    /// For the standard error of this process.
    pub(crate) fn new(quiet: bool) -> Self {
        Self(match (quiet, io::stderr().is_terminal()) {
            (true, _) => Shown::Nothing,
            (false, true) => Shown::Bars(MultiProgress::new()),
            (false, false) => Shown::Lines,
        })
    }

    fn task(&self, what: String, bytes: u64) -> Task {
        let shown = match &self.0 {
            Shown::Bars(bars) => {
                let bar = bars.add(ProgressBar::new(bytes));
                bar.set_style(style());
                bar.set_message(what.clone());
                TaskShown::Bar(bar)
            }
            Shown::Lines => TaskShown::Lines {
                done: Cell::new(0),
                told: Cell::new(Instant::now()),
            },
            Shown::Nothing => TaskShown::Nothing,
        };
        Task { what, bytes, shown }
    }

    /// For the log, whose lines stand above the bars.
    pub(crate) fn writer(&self) -> impl Write + use<> {
        Above(match &self.0 {
            Shown::Bars(bars) => Some(bars.clone()),
            Shown::Lines | Shown::Nothing => None,
        })
    }
}

impl image_loader::Progress for Progress {
    fn begin(&self, what: String, bytes: u64) -> Box<dyn image_loader::Task> {
        Box::new(self.task(what, bytes))
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{msg:40!} {bar:30} {bytes:>11} of {total_bytes:>11} {eta:>5}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// A piece of work. It is said nothing more of one that is dropped before its end.
#[derive(Debug)]
struct Task {
    what: String,
    bytes: u64,
    shown: TaskShown,
}

#[derive(Debug)]
enum TaskShown {
    Bar(ProgressBar),
    Lines {
        done: Cell<u64>,
        told: Cell<Instant>,
    },
    Nothing,
}

impl image_loader::Task for Task {
    fn advance(&self, bytes: u64) {
        match &self.shown {
            TaskShown::Bar(bar) => bar.inc(bytes),
            TaskShown::Lines { done, told } => {
                done.set(done.get().saturating_add(bytes));
                if told.get().elapsed() >= INTERVAL {
                    told.set(Instant::now());
                    let (done, all) = (HumanBytes(done.get()), HumanBytes(self.bytes));
                    eprintln!("{}: {done} of {all}", self.what);
                }
            }
            TaskShown::Nothing => {}
        }
    }

    fn restart(&self) {
        match &self.shown {
            TaskShown::Bar(bar) => bar.reset(),
            TaskShown::Lines { done, .. } => done.set(0),
            TaskShown::Nothing => {}
        }
    }

    fn end(self: Box<Self>, outcome: &str) {
        match &self.shown {
            TaskShown::Bar(bar) => {
                bar.set_style(
                    ProgressStyle::with_template("{msg}")
                        .unwrap_or_else(|_| ProgressStyle::default_bar()),
                );
                bar.finish_with_message(format!("{}: {outcome}", self.what));
            }
            TaskShown::Lines { .. } => eprintln!("{}: {outcome}", self.what),
            TaskShown::Nothing => {}
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let TaskShown::Bar(bar) = &self.shown
            && !bar.is_finished()
        {
            bar.finish_and_clear();
        }
    }
}

/// Writes above the bars, if there are any.
struct Above(Option<MultiProgress>);

impl Write for Above {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        match &self.0 {
            Some(bars) => bars.suspend(|| io::stderr().write(text)),
            None => io::stderr().write(text),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}
