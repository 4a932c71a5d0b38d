//! `nix2container` builds OCI images out of Nix closures, loads them into containerd and pushes
//! them to registries.
//!
//! One file or directory a command: `build`, `load`, `unload`, `inspect`, `diff` and `push`.
//! `registry` speaks to registries; `image_source` is where an image is looked at, and `image_facts`
//! what there is to know of it; `progress` tells how far a command is.
//! What an image is made of is the matter of the crate `nix-image`, which does no
//! I/O of its own.

mod build;
mod cli;
mod diff;
mod image_facts;
mod image_source;
mod inspect;
mod load;
mod output;
mod progress;
mod push;
mod registry;
mod runtime;
mod unload;

use std::process::ExitCode;

use cli::{Cli, Command, LogLevel};
use cli_files::Call;
use progress::Progress;

fn main() -> ExitCode {
    let result = match cli_files::parse() {
        Call::Program(cli) => run(cli),
        Call::Generate(files) => files.write().map_err(anyhow::Error::from),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            cli::print_error(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    let progress = Progress::new(cli.quiet);
    let level = match cli.quiet {
        true => LogLevel::Error,
        false => cli.log_level,
    };
    cli::log_to(progress.clone(), level);
    match cli.command {
        Command::Build(args) => build::run(&args),
        Command::Load(args) => load::run(&cli.containerd, &args, &progress),
        Command::Push(args) => push::run(&args, &progress),
        Command::Diff(args) => diff::run(&cli.containerd, &args),
        Command::Inspect(args) => inspect::run(&cli.containerd, &args),
        Command::Unload(args) => unload::run(&cli.containerd, &args),
    }
}
