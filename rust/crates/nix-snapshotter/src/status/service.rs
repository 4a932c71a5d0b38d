//! The service `nix_snapshotter.v1.StatusService`.

use std::{path::PathBuf, time::Instant};

use nix_snapshotter_api::v1::{self as api, status_service_server};
use prost_types::Timestamp;
use tonic::{Request, Response, Status};

use crate::{
    config::Config,
    error::Error,
    inventory::{Inventories, Inventory},
    realisations::UnderWay,
};

/// How many store paths are named of a closure, which may have thousands.
const SHOWN_PATHS: usize = 10;

/// Tells what the daemon is doing.
pub(crate) struct StatusService {
    address: PathBuf,
    root: PathBuf,
    started: Instant,
    inventories: Inventories,
}

impl StatusService {
    /// Of a daemon that starts now.
    pub(crate) fn new(config: &Config, inventories: Inventories) -> Self {
        Self {
            address: config.address.clone(),
            root: config.root.clone(),
            started: Instant::now(),
            inventories,
        }
    }

    fn response(&self, inventory: &Inventory) -> api::GetStatusResponse {
        let started = inventory.process.started;
        api::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            started_at: Some(Timestamp {
                seconds: i64::try_from(started.as_secs()).unwrap_or(i64::MAX),
                // Below 10⁹, which fits.
                nanos: started.subsec_nanos().cast_signed(),
            }),
            uptime: self.started.elapsed().try_into().ok(),
            address: self.address.display().to_string(),
            root: self.root.display().to_string(),
            resident_bytes: inventory.process.resident_bytes,
            snapshots: Some(api::Snapshots {
                views: inventory.snapshots.views,
                active: inventory.snapshots.active,
                committed: inventory.snapshots.committed,
                nix_layers: inventory.nix_layers,
                gc_roots: inventory.gc_roots,
            }),
            store_waits: Some(api::Waits {
                count: inventory.store_waits.waits,
                total: inventory.store_waits.total.try_into().ok(),
            }),
            realisations: Some(realisations(inventory)),
            image_archives: inventory.image_archives,
        }
    }
}

fn realisations(inventory: &Inventory) -> api::Realisations {
    let stats = inventory.realisations;
    api::Realisations {
        running: stats.running,
        waiting: stats.waiting,
        succeeded: stats.succeeded,
        failed: stats.failed,
        cancelled: stats.cancelled,
        total: stats.time.try_into().ok(),
        paths: stats.paths,
        bytes: stats.bytes,
        under_way: inventory.under_way.iter().map(realisation).collect(),
    }
}

fn realisation(under_way: &UnderWay) -> api::Realisation {
    let paths = under_way.layer.paths.paths();
    let closure_info = under_way.layer.closure_info.as_ref();
    api::Realisation {
        closure_info: closure_info.map(ToString::to_string).unwrap_or_default(),
        store_paths: paths
            .iter()
            .take(SHOWN_PATHS)
            .map(ToString::to_string)
            .collect(),
        store_path_count: paths.len() as u64,
        age: under_way.age.try_into().ok(),
    }
}

#[tonic::async_trait]
impl status_service_server::StatusService for StatusService {
    async fn get_status(
        &self,
        _request: Request<api::GetStatusRequest>,
    ) -> Result<Response<api::GetStatusResponse>, Status> {
        let inventories = self.inventories.clone();
        let inventory = tokio::task::spawn_blocking(move || inventories.take())
            .await
            .map_err(Error::from)??;
        Ok(Response::new(self.response(&inventory)))
    }
}
