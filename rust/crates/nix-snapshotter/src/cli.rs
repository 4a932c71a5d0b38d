//! The command line.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::{Parser, Subcommand, ValueEnum};
use tracing_subscriber::filter::LevelFilter;

use crate::{
    config::{DEFAULT_FILE, Overrides},
    doctor,
    logging::LogFormat,
    preload,
};

/// A containerd snapshotter whose layers are store paths of Nix.
///
/// What is given here wins over the environment, which wins over the configuration file.
#[derive(Debug, Parser)]
#[command(version)]
pub(crate) struct Cli {
    /// Least severity of the messages on standard error.
    #[arg(
        short,
        long,
        value_enum,
        ignore_case = true,
        default_value = "info",
        env = "NIX_SNAPSHOTTER_LOG_LEVEL"
    )]
    pub(crate) log_level: LogLevel,

    /// Format of those messages.
    #[arg(long, value_enum, env = "NIX_SNAPSHOTTER_LOG_FORMAT")]
    log_format: Option<LogFormat>,

    /// Configuration file.
    #[arg(
        short,
        long,
        value_name = "FILE",
        env = "NIX_SNAPSHOTTER_CONFIG",
        long_help = format!("Configuration file. Without it, {DEFAULT_FILE} is read where it exists")
    )]
    pub(crate) config: Option<PathBuf>,

    /// Unix socket to serve on.
    #[arg(short, long, value_name = "SOCKET", env = "NIX_SNAPSHOTTER_ADDRESS")]
    address: Option<PathBuf>,

    /// Directory for snapshots, metadata and GC roots.
    #[arg(long, value_name = "DIRECTORY", env = "NIX_SNAPSHOTTER_ROOT")]
    root: Option<PathBuf>,

    #[command(subcommand)]
    pub(crate) command: Option<Command>,
}

/// What to do instead of serving.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Say whether a configuration file is valid, and what is wrong with it.
    CheckConfig {
        /// The file to check.
        file: PathBuf,
    },
    /// Ask the running daemon how it is.
    ///
    /// The exit code is 0 when it answers, 3 when nothing listens on its socket, and 1 when it
    /// cannot be asked for another reason.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Look for what does not fit together, and say what mends it.
    ///
    /// Looks at the kernel, the root directory, Nix, the daemon and containerd with its
    /// configuration. The exit code is 0 where everything works, and 1 where something does not.
    Doctor(doctor::Options),
    /// Load images into containerd, before anybody asks for them.
    ///
    /// Waits for containerd, loads nothing twice, and says of each image what has come of it. The
    /// exit code is 1 where one could not be loaded.
    Preload(preload::Options),
}

impl Cli {
    pub(crate) fn overrides(&self) -> Overrides {
        Overrides {
            address: self.address.clone(),
            root: self.root.clone(),
            log_format: self.log_format,
        }
    }
}

/// Writes to standard output, whose reader may have had enough.
pub(crate) fn print(text: &str) -> io::Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// Severities, with all names that logrus, and so the Go project, has for them, in capitals or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    #[value(aliases = ["fatal", "panic"])]
    Error,
}

impl From<LogLevel> for LevelFilter {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Trace => Self::TRACE,
            LogLevel::Debug => Self::DEBUG,
            LogLevel::Info => Self::INFO,
            LogLevel::Warn => Self::WARN,
            LogLevel::Error => Self::ERROR,
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_flags_of_the_go_project_are_taken() {
        let cli = Cli::parse_from([
            "nix-snapshotter",
            "-l",
            "warning",
            "-c",
            "/c.toml",
            "-a",
            "/a.sock",
            "--root",
            "/r",
        ]);
        assert_eq!(cli.log_level, LogLevel::Warn);
        for (name, level) in [
            ("TRACE", LogLevel::Trace),
            ("Debug", LogLevel::Debug),
            ("INFO", LogLevel::Info),
            ("Warning", LogLevel::Warn),
            ("WARN", LogLevel::Warn),
            ("ERROR", LogLevel::Error),
            ("Fatal", LogLevel::Error),
            ("PANIC", LogLevel::Error),
        ] {
            let cli = Cli::parse_from(["nix-snapshotter", "--log-level", name]);
            assert_eq!(cli.log_level, level, "{name}");
        }
        assert_eq!(cli.config, Some("/c.toml".into()));
        assert_eq!(cli.overrides().address, Some("/a.sock".into()));
        assert_eq!(cli.overrides().root, Some("/r".into()));
    }
}
