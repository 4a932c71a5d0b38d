//! The daemon `nix-snapshotter`: containerd's Snapshots service, with layers out of a Nix store.
//!
//! * [`cli`], [`config`]: what was asked for.
//! * [`server`], [`socket`]: the life of the process.
//! * [`grpc`], [`error`]: the wire; they translate and decide nothing.
//! * [`nix_snapshotter`]: what a call means where a layer names store paths.
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
mod server;
mod socket;
mod store_view;

use std::{io, process::ExitCode, time::Duration};

use clap::Parser;
use rustix::fs::Mode;
use tracing_subscriber::filter::LevelFilter;

use crate::{
    cli::{Cli, Command},
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
    tracing_subscriber::fmt()
        .with_max_level(LevelFilter::from(cli.log_level))
        .with_writer(io::stderr)
        .with_ansi(io::IsTerminal::is_terminal(&io::stderr()))
        .init();
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
