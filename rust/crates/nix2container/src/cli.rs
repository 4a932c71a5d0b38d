//! The command line: flags, log and errors.

use std::{io::IsTerminal, path::PathBuf};

use anyhow::anyhow;
use clap::{Args, Parser, Subcommand, ValueEnum, builder::NonEmptyStringValueParser};
use image_loader::Containerd;
use tracing_subscriber::EnvFilter;

use crate::{
    build::BuildArgs, diff::DiffArgs, inspect::InspectArgs, load::LoadArgs,
    output::printable_message, progress::Progress, push::PushArgs, unload::UnloadArgs,
};

/// Builds OCI images out of Nix closures and loads them into containerd.
#[derive(Parser)]
#[command(version, max_term_width = 100)]
pub(crate) struct Cli {
    /// How much to log to standard error.
    #[arg(
        long,
        short = 'l',
        global = true,
        ignore_case = true,
        default_value = "info"
    )]
    pub(crate) log_level: LogLevel,
    /// Tell nothing but errors, and results on standard output.
    #[arg(long, short = 'q', global = true)]
    pub(crate) quiet: bool,
    #[command(flatten)]
    pub(crate) containerd: ContainerdArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which containerd.
#[derive(Args)]
pub(crate) struct ContainerdArgs {
    /// The socket of containerd.
    #[arg(
        long,
        short = 'a',
        global = true,
        env = "CONTAINERD_ADDRESS",
        default_value = "/run/containerd/containerd.sock"
    )]
    pub(crate) address: PathBuf,
    /// The namespace of containerd: Kubernetes uses `k8s.io`.
    #[arg(
        long,
        short = 'n',
        global = true,
        env = "CONTAINERD_NAMESPACE",
        default_value = "default",
        value_parser = NonEmptyStringValueParser::new()
    )]
    pub(crate) namespace: String,
}

impl ContainerdArgs {
    /// Connects to it.
    pub(crate) async fn connect(&self) -> anyhow::Result<Containerd> {
        let connected = Containerd::connect(&self.address, &self.namespace).await;
        connected.map_err(|error| match error {
            image_loader::Error::Unreachable { .. } => anyhow!("{error} (--address)"),
            error => error.into(),
        })
    }
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Builds an image of a closure, as an OCI archive.
    Build(Box<BuildArgs>),
    /// Loads the images of archives into containerd and unpacks them.
    Load(LoadArgs),
    /// Pushes the image of an archive to a registry.
    Push(PushArgs),
    /// Removes images from containerd, with all that nothing else needs.
    Unload(UnloadArgs),
    /// Shows what an image is made of, and what of it is in the store of this machine.
    Inspect(InspectArgs),
    /// Shows what differs between two images.
    Diff(DiffArgs),
}

/// How much to log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum LogLevel {
    Trace,
    Debug,
    Info,
    #[value(alias = "warning")]
    Warn,
    // With all names that logrus has, in capitals or not: scripts for the Go project may use them.
    #[value(aliases = ["fatal", "panic"])]
    Error,
}

/// Sends the log to where the progress is told.
pub(crate) fn log_to(progress: Progress, level: LogLevel) {
    let level = match level {
        LogLevel::Trace => "trace",
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warn => "warn",
        LogLevel::Error => "error",
    };
    // What the gRPC stack tells is of use to nobody below a warning. What the check of certificates
    // tells, the error of the connection tells again.
    let others = match level {
        "error" => level,
        _ => "warn",
    };
    let filter = EnvFilter::new(format!(
        "{others},rustls_platform_verifier=off,nix2container={level}"
    ));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || progress.writer())
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .without_time()
        .init();
}

/// Prints an error and its causes in one line.
pub(crate) fn print_error(error: &anyhow::Error) {
    let lines = format!("{error:#}");
    let lines = lines.lines().map(str::trim).collect::<Vec<_>>();
    eprintln!("nix2container: {}", printable_message(&lines.join(" ")));
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_those_that_scripts_use() {
        let cli = Cli::parse_from([
            "nix2container",
            "-l",
            "debug",
            "-a",
            "/s",
            "-n",
            "k8s.io",
            "build",
            "--from-image",
            "b",
            "--config",
            "c",
            "--closure",
            "p",
            "--copy-to-root",
            "r",
            "--ref",
            "hello",
            "OUT",
        ]);
        assert_eq!(cli.containerd.namespace, "k8s.io");
        let Command::Build(args) = cli.command else {
            panic!("not build");
        };
        assert_eq!(
            args.r#ref.unwrap().to_string(),
            "docker.io/library/hello:latest"
        );
        // The flags for containerd are taken behind the command, too.
        let cli = Cli::parse_from(["nix2container", "load", "x.tar", "--address", "/s"]);
        assert_eq!(cli.containerd.address, PathBuf::from("/s"));
    }

    #[test]
    fn levels_have_the_names_of_logrus() {
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
            let cli = Cli::parse_from(["nix2container", "--log-level", name, "load", "x"]);
            assert_eq!(cli.log_level, level, "{name}");
        }
    }

    #[test]
    fn mistakes_are_refused() {
        for args in [
            &["nix2container"][..],
            &["nix2container", "build"],
            &["nix2container", "build", "--ref", "Hello", "OUT"],
            &["nix2container", "build", "--store-dir", "nix", "OUT"],
            &["nix2container", "build", "--annotations", "both", "OUT"],
            &["nix2container", "build", "--platform", "linux", "OUT"],
            &["nix2container", "build", "--created", "now", "OUT"],
            &["nix2container", "build", "--label", "x", "OUT"],
            &["nix2container", "build", "--compression", "xz", "OUT"],
            &["nix2container", "load"],
            &["nix2container", "load", "--namespace", "", "a"],
            &["nix2container", "load", "--snapshotter", "", "a"],
            &["nix2container", "unload"],
            &["nix2container", "inspect"],
            &["nix2container", "diff", "a"],
            &["nix2container", "inspect", "a", "b"],
            &["nix2container", "load", "--platform", "arm64", "a"],
            &[
                "nix2container",
                "load",
                "--all-platforms",
                "--platform",
                "linux/arm64",
                "a",
            ],
        ] {
            assert!(Cli::try_parse_from(args).is_err(), "{args:?}");
        }
    }
}
