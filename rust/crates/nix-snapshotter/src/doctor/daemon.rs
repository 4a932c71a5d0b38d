//! Whether the daemon runs and serves.

use std::path::Path;

use containerd_api::containerd::services::snapshots::v1::snapshots_server::SERVICE_NAME;
use nix_snapshotter_api::v1::{GetStatusRequest, status_service_client::StatusServiceClient};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};

use super::finding::{Check, Finding};
use crate::{
    client::{Error, Server},
    error::chain,
};

const DAEMON: Check = Check("daemon");

/// Asks for its health; the first part is its process number.
pub(super) async fn ask(address: &Path) -> (Option<u32>, Vec<Finding>) {
    match health(address).await {
        Ok((pid, version, ServingStatus::Serving)) => {
            let finding = match version == env!("CARGO_PKG_VERSION") {
                true => DAEMON.ok(format!("version {version} serves on {}", address.display())),
                false => DAEMON.warning(
                    format!(
                        "version {version} serves on {}, and this program has version {}",
                        address.display(),
                        env!("CARGO_PKG_VERSION")
                    ),
                    "systemctl restart nix-snapshotter",
                ),
            };
            (Some(pid), vec![finding])
        }
        Ok((pid, _, status)) => {
            let message = format!("the daemon answers {}", status.as_str_name());
            (
                Some(pid),
                vec![DAEMON.warning(message, "wait until it has stopped, and start it again")],
            )
        }
        Err(error) => (None, vec![absence(&error)]),
    }
}

async fn health(address: &Path) -> Result<(u32, String, ServingStatus), Error> {
    let server = Server::connect(address).await?;
    let mut client = StatusServiceClient::new(server.channel());
    let status = server
        .answer(client.get_status(GetStatusRequest {}))
        .await?;
    let request = HealthCheckRequest {
        service: SERVICE_NAME.to_owned(),
    };
    let mut client = HealthClient::new(server.channel());
    let health = server.answer(client.check(request)).await?;
    Ok((status.pid, status.version, health.status()))
}

fn absence(error: &Error) -> Finding {
    let message = chain(error);
    match error {
        Error::NoSocket { .. } | Error::NobodyListens { .. } => DAEMON.error(
            format!("{message}: the daemon does not run"),
            "systemctl start nix-snapshotter, before containerd",
        ),
        Error::Permission { .. } => DAEMON.warning(message, "run this command as root"),
        _ => DAEMON.error(
            message,
            "see what the daemon says: journalctl -u nix-snapshotter",
        ),
    }
}
