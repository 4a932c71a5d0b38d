//! The standard health service (`grpc.health.v1`): for the whole daemon and for the Snapshots
//! service.

use containerd_api::containerd::services::snapshots::v1::snapshots_server::SERVICE_NAME;
use tonic_health::{
    ServingStatus,
    pb::health_server,
    server::{HealthReporter, HealthService},
};

/// The empty name stands for all of the daemon.
const SERVICES: [&str; 2] = ["", SERVICE_NAME];

/// What the health service says.
pub(crate) struct Health(HealthReporter);

impl Health {
    /// Everything serves.
    pub(crate) async fn serving() -> Self {
        let reporter = HealthReporter::new();
        for service in SERVICES {
            reporter
                .set_service_status(service, ServingStatus::Serving)
                .await;
        }
        Self(reporter)
    }

    /// The service that says so.
    pub(crate) fn service(&self) -> health_server::HealthServer<HealthService> {
        health_server::HealthServer::new(HealthService::from_health_reporter(self.0.clone()))
    }

    /// From now on nothing serves. Whoever watches is told, and sees its stream end: it would
    /// keep the daemon from ending.
    pub(crate) async fn stopping(mut self) {
        for service in SERVICES {
            let status = ServingStatus::NotServing;
            self.0.set_service_status(service, status).await;
            self.0.clear_service_status(service).await;
            self.0.set_service_status(service, status).await;
        }
    }
}
