//! The daemon `nix-snapshotter`: containerd's Snapshots service, with layers out of a Nix store.
//!
//! * [`cli`], [`config`]: what was asked for.
//! * [`server`], [`socket`]: the life of the process.
//! * [`grpc`], [`error`]: the wire; they translate and decide nothing.
//! * [`calls`], [`logging`], [`metrics`]: what every call leaves behind, in the log and in numbers;
//!   [`deadline`]: when it is too late for its answer.
//! * [`health`], [`status`], [`client`]: how a daemon is, as it says itself; and how it is asked.
//! * [`doctor`]: what around it does not fit.
//! * [`inventory`]: how much there is of everything.
//! * [`nix_snapshotter`]: what a call means where a layer names store paths.
//! * [`realisations`]: who shares a realisation, and who has to wait.
//! * [`mounts`], [`store_view`]: which mounts come of it, and what they stand on.
//! * [`image_service`]: the CRI's image service, which kubelet asks; [`preload`]: images that are
//!   there before.
//!
//! Below it are `snapshots`, which knows no Nix, and `nix-store`, which knows no
//! snapshots; `nix-image` says how labels name store paths.

mod calls;
mod cli;
mod client;
mod config;
mod deadline;
mod doctor;
mod error;
mod grpc;
mod health;
mod image_service;
mod inventory;
mod logging;
mod metrics;
mod mounts;
mod nix_snapshotter;
mod preload;
mod realisations;
mod server;
mod socket;
mod status;
mod store_view;

use std::{path::Path, process::ExitCode, time::Duration};

use cli_files::Call;
use rustix::fs::Mode;

use crate::{
    cli::{Cli, Command, print},
    config::Config,
};

/// Threads that only hand over work; what blocks has threads of its own.
const WORKER_THREADS: usize = 2;

/// How long blocking work that cannot be cancelled, such as an fsync, is waited for at the end.
const LAST_WORK: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    let done = match cli_files::parse() {
        Call::Program(cli) => run(&cli),
        Call::Generate(files) => files
            .write()
            .map(|()| ExitCode::SUCCESS)
            .map_err(anyhow::Error::from),
    };
    done.unwrap_or_else(|error| {
        eprintln!("nix-snapshotter: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(cli: &Cli) -> anyhow::Result<ExitCode> {
    match &cli.command {
        None => serve(cli),
        Some(Command::CheckConfig { file }) => check_config(file),
        Some(Command::Status { json }) => {
            load(cli).and_then(|config| status::show(&config.address, *json))
        }
        Some(Command::Doctor(options)) => {
            let config = Config::load(cli.config.as_deref(), cli.overrides());
            doctor::examine(config, options)
        }
        Some(Command::Preload(options)) => {
            let config = Config::load(cli.config.as_deref(), cli.overrides());
            preload::run(config, options)
        }
    }
}

fn load(cli: &Cli) -> anyhow::Result<Config> {
    Ok(Config::load(cli.config.as_deref(), cli.overrides())?)
}

fn check_config(file: &Path) -> anyhow::Result<ExitCode> {
    Config::check_file(file)?;
    print(&format!("{} is valid\n", file.display()))?;
    Ok(ExitCode::SUCCESS)
}

fn serve(cli: &Cli) -> anyhow::Result<ExitCode> {
    let config = load(cli)?;
    logging::init(config.log_format, cli.log_level);
    // Directories in layers are for every user of a container, whatever ours may see.
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKER_THREADS)
        .enable_all()
        .build()?;
    let served = runtime.block_on(server::serve(&config));
    runtime.shutdown_timeout(LAST_WORK);
    Ok(match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    })
}
