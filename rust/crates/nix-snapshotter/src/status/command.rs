//! `nix-snapshotter status`.

use std::{
    fmt::{self, Write},
    path::Path,
    process::ExitCode,
    time::Duration,
};

use nix_snapshotter_api::v1::{
    GetStatusRequest, GetStatusResponse, Realisation, Realisations,
    status_service_client::StatusServiceClient,
};
use serde_json::{Value, json};

use crate::{
    cli::print,
    client::{Error, Server},
    error::chain,
};

/// The exit code when there is no daemon to ask, as init scripts have it.
const NOT_RUNNING: u8 = 3;

/// Asks the daemon on a socket, and prints what it says.
///
/// # Errors
/// Standard output cannot be written.
pub(crate) fn show(address: &Path, as_json: bool) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    match runtime.block_on(ask(address)) {
        Ok(status) if as_json => print(&format!("{:#}\n", to_json(&status)))?,
        Ok(status) => print(&to_table(&status)?)?,
        Err(error) => {
            eprintln!("nix-snapshotter: {}: {}", chain(&error), way_out(&error));
            return Ok(match error.is_absence() {
                true => ExitCode::from(NOT_RUNNING),
                false => ExitCode::FAILURE,
            });
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: &Path) -> Result<GetStatusResponse, Error> {
    let server = Server::connect(address).await?;
    let mut client = StatusServiceClient::new(server.channel());
    server.answer(client.get_status(GetStatusRequest {})).await
}

fn way_out(error: &Error) -> &'static str {
    match error {
        Error::NoSocket { .. } | Error::NobodyListens { .. } => {
            "the daemon does not run there; start it (systemctl start nix-snapshotter), \
             or name its socket with --address or its configuration file with --config"
        }
        Error::Permission { .. } => "run as root, or as a member of the group in `socket_group`",
        Error::Refused { status, .. } if status.code() == tonic::Code::Unimplemented => {
            "another program serves there, or an older version of the daemon; \
             name the right socket with --address"
        }
        _ => "see what `nix-snapshotter doctor` finds",
    }
}

fn to_json(status: &GetStatusResponse) -> Value {
    let snapshots = status.snapshots.unwrap_or_default();
    let waits = status.store_waits.unwrap_or_default();
    json!({
        "version": status.version,
        "pid": status.pid,
        "started_at": status.started_at.map(|time| time.to_string()),
        "uptime_seconds": seconds(status.uptime),
        "address": status.address,
        "root": status.root,
        "resident_bytes": status.resident_bytes,
        "snapshots": {
            "view": snapshots.views,
            "active": snapshots.active,
            "committed": snapshots.committed,
        },
        "nix_layers": snapshots.nix_layers,
        "gc_roots": snapshots.gc_roots,
        "image_archives": status.image_archives,
        "realisations": realisations_to_json(&status.realisations.clone().unwrap_or_default()),
        "store_waits": { "count": waits.count, "seconds": seconds(waits.total) },
    })
}

fn realisations_to_json(realisations: &Realisations) -> Value {
    let under_way = realisations.under_way.iter().map(|realisation| {
        json!({
            "closure_info": (!realisation.closure_info.is_empty())
                .then_some(&realisation.closure_info),
            "store_paths": realisation.store_paths,
            "store_path_count": realisation.store_path_count,
            "age_seconds": seconds(realisation.age),
        })
    });
    json!({
        "running": realisations.running,
        "waiting": realisations.waiting,
        "succeeded": realisations.succeeded,
        "failed": realisations.failed,
        "cancelled": realisations.cancelled,
        "seconds": seconds(realisations.total),
        "paths": realisations.paths,
        "bytes": realisations.bytes,
        "under_way": under_way.collect::<Vec<_>>(),
    })
}

fn to_table(status: &GetStatusResponse) -> Result<String, fmt::Error> {
    let snapshots = status.snapshots.unwrap_or_default();
    let waits = status.store_waits.unwrap_or_default();
    let mut table = String::new();
    let mut row = |name: &str, value: fmt::Arguments<'_>| writeln!(table, "{name:<14} {value}");
    row("version", format_args!("{}", status.version))?;
    let uptime = for_people(duration(status.uptime));
    row("process", format_args!("{}, up {uptime}", status.pid))?;
    row("address", format_args!("{}", status.address))?;
    row("root", format_args!("{}", status.root))?;
    row(
        "memory",
        format_args!("{}", mebibytes(status.resident_bytes)),
    )?;
    row(
        "snapshots",
        format_args!(
            "{} committed, {} active, {} views",
            snapshots.committed, snapshots.active, snapshots.views
        ),
    )?;
    row(
        "Nix layers",
        format_args!(
            "{}, held by {} GC roots",
            snapshots.nix_layers, snapshots.gc_roots
        ),
    )?;
    row(
        "archives",
        format_args!("{}, held for images", status.image_archives),
    )?;
    let waited = for_people(duration(waits.total));
    row(
        "store waits",
        format_args!("{}, {waited} in all", waits.count),
    )?;
    let realisations = status.realisations.clone().unwrap_or_default();
    row(
        "realisations",
        format_args!(
            "{} running, {} waiting, {} succeeded, {} failed, {} cancelled",
            realisations.running,
            realisations.waiting,
            realisations.succeeded,
            realisations.failed,
            realisations.cancelled
        ),
    )?;
    let (paths, bytes) = (realisations.paths, mebibytes(realisations.bytes));
    let took = for_people(duration(realisations.total));
    row(
        "realised",
        format_args!("{paths} store paths, {bytes}, in {took}"),
    )?;
    for realisation in &realisations.under_way {
        let age = for_people(duration(realisation.age));
        row("", format_args!("{} for {age}", subject(realisation)))?;
    }
    Ok(table)
}

/// What a realisation is about, by its first name.
fn subject(realisation: &Realisation) -> String {
    let named = &realisation.store_paths;
    match (
        &*realisation.closure_info,
        named.first(),
        realisation.store_path_count,
    ) {
        ("", Some(first), 0..=1) => first.clone(),
        ("", Some(first), count) => format!("{first} and {} more", count - 1),
        ("", None, _) => "an unnamed closure".to_owned(),
        (closure_info, _, _) => closure_info.to_owned(),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}

fn duration(wire: Option<prost_types::Duration>) -> Duration {
    wire.and_then(|wire| wire.try_into().ok())
        .unwrap_or_default()
}

fn seconds(wire: Option<prost_types::Duration>) -> Option<f64> {
    wire.map(|wire| duration(Some(wire)).as_secs_f64())
}

/// A duration in its two largest units.
fn for_people(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    if days > 0 {
        format!("{days} d {} h", hours % 24)
    } else if hours > 0 {
        format!("{hours} h {} min", minutes % 60)
    } else if minutes > 0 {
        format!("{minutes} min {} s", seconds % 60)
    } else if seconds > 0 {
        format!("{seconds} s")
    } else {
        format!("{:.1} ms", duration.as_secs_f64() * 1e3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_readable() {
        for (duration, expected) in [
            (Duration::ZERO, "0.0 ms"),
            (Duration::from_micros(1_250), "1.2 ms"),
            (Duration::from_secs(59), "59 s"),
            (Duration::from_secs(61), "1 min 1 s"),
            (Duration::from_secs(3_700), "1 h 1 min"),
            (Duration::from_secs(90_000), "1 d 1 h"),
        ] {
            assert_eq!(for_people(duration), expected);
        }
    }

    #[test]
    fn what_a_daemon_does_not_tell_is_not_known() {
        let json = to_json(&GetStatusResponse::default());
        assert_eq!(json["uptime_seconds"], Value::Null);
        assert_eq!(json["snapshots"]["active"], 0);
        assert!(to_table(&GetStatusResponse::default()).is_ok());
    }
}
