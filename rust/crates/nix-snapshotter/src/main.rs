//! The daemon `nix-snapshotter`: containerd's Snapshots service, with layers out of a Nix store.
//!
//! * [`cli`], [`config`]: what was asked for.
//! * [`server`], [`socket`]: the life of the process.
//! * [`grpc`], [`error`]: the wire; they translate and decide nothing.
//! * [`nix_snapshotter`]: what a call means where a layer names store paths.
//! * [`realisations`]: who shares a realisation, and who has to wait.
//! * [`mounts`], [`store_view`]: which mounts come of it, and what they stand on.
//!
//! Below it are `snapshots`, which knows no Nix, and `nix-store`, which knows no
//! snapshots; `nix-image` says how labels name store paths.

mod cli;
mod config;
mod error;
mod grpc;
mod mounts;
mod nix_snapshotter;
mod realisations;
mod server;
mod socket;
mod store_view;

use std::{
    io::{self, IsTerminal},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use rustix::fs::Mode;
use tracing_subscriber::{
    filter::{LevelFilter, Targets},
    fmt::format::FmtSpan,
    prelude::*,
};

use crate::{
    cli::{Cli, Command, LogLevel},
    config::Config,
};

/// Threads that only hand over work; what blocks has threads of its own.
const WORKER_THREADS: usize = 2;

/// How long blocking work that cannot be cancelled, such as an fsync, is waited for at the end.
const LAST_WORK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.command {
        Some(Command::CheckConfig { file }) => Config::check_file(file)
            .map(|()| println!("{} is valid", file.display()))
            .map_err(anyhow::Error::from),
        None => run(&cli),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("nix-snapshotter: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: &Cli) -> anyhow::Result<()> {
    log_to_stderr(cli.log_level);
    let config = Config::load(cli.config.as_deref(), cli.overrides())?;
    // Directories in layers are for every user of a container, whatever ours may see.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    let served = runtime.block_on(server::serve(&config));
    runtime.shutdown_timeout(LAST_WORK);
    served
}

/// Logs what the project's own crates say at `level`, and of the libraries below them only warnings.
fn log_to_stderr(level: LogLevel) {
    let ours = ["nix_snapshotter", "nix_store", "snapshots"];
    let filter = Targets::new()
        .with_default(LevelFilter::from(level).min(LevelFilter::WARN))
        .with_targets(ours.map(|target| (target, level)));
    tracing_subscriber::registry()
        .with(
            tracing_subscriber::fmt::layer()
                .with_writer(io::stderr)
                .with_ansi(io::stderr().is_terminal())
                // At level debug, the end of each call with the time that it took.
                .with_span_events(FmtSpan::CLOSE),
        )
        .with(filter)
        .init();
}
