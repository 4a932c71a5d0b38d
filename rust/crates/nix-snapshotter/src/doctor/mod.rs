//! `nix-snapshotter doctor`: looks at everything that has to fit together, and says what mends
//! what does not.
//!
//! Each subject is a module. What there is, they ask the machine; what follows from it, pure
//! functions decide.

mod containerd;
mod containerd_config;
mod daemon;
mod finding;
mod gc_roots;
mod host;
mod image_archives;
mod nix;
mod program;

use std::{path::PathBuf, process::ExitCode};

use self::{
    containerd_config::{Facts, Merging},
    finding::{Check, Report},
};
use crate::{cli::print, config::Config, error::chain};

/// What to look at.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// containerd's configuration file.
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/containerd/config.toml"
    )]
    containerd_config: PathBuf,

    /// containerd's socket; without it, the one in `image_service.containerd_address`.
    #[arg(long, value_name = "SOCKET")]
    containerd_address: Option<PathBuf>,
}

/// Examines the machine and prints what was found. The exit code is 1 where something does not
/// work.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn examine(
    config: Result<Config, crate::config::Error>,
    options: &Options,
) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let check = Check("configuration");
    let mut report = Report::default();
    match config {
        Ok(config) => {
            report.add([check.ok("the daemon's configuration is valid")]);
            runtime.block_on(look_at_everything(&config, options, &mut report));
        }
        // Without it, nobody knows what to look at.
        Err(error) => report.add([check.error(chain(&error), "mend the configuration first")]),
    }
    let text = match options.json {
        true => format!("{}\n", serde_json::to_string_pretty(&report)?),
        false => report.to_table()?,
    };
    print(&text)?;
    Ok(match report.has_errors() {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

async fn look_at_everything(config: &Config, options: &Options, report: &mut Report) {
    let (remap_ids, findings) = host::kernel(&config.root, &config.snapshot_options());
    report.add(findings);
    report.add(host::space(&config.root, &config.store_dir));

    let (running, findings) = daemon::ask(&config.address).await;
    report.add(findings);
    // Its environment counts, not that of whoever calls this command.
    let (runs, path) = (running.is_some(), running.and_then(program::path_of));
    report.add(nix::look(config, path.as_deref()).await);
    report.add(gc_roots::look(&config.root, &config.store_dir));

    let address = options
        .containerd_address
        .as_ref()
        .unwrap_or(&config.image_service.containerd_address);
    report.add(image_archives::look(config, address, runs).await);
    let (version, findings) = containerd::ask(address, &config.address).await;
    report.add(findings);
    let merging = match version {
        Some((..2, _)) => Merging::Sections,
        _ => Merging::Settings,
    };
    let (containerd, findings) = containerd_config::read(&options.containerd_config, merging);
    report.add(findings);
    if let Some(containerd) = containerd {
        let facts = Facts {
            address: config.address.clone(),
            root: config.root.clone(),
            remap_ids,
            containerd: version,
        };
        report.add(containerd_config::check(&containerd, &facts));
    }
}
