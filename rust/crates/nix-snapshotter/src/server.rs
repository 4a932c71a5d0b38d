//! The life of the daemon: everything is checked and held before anybody is told that it serves.

use std::{future::Future, sync::Arc, time::Duration};

use anyhow::Context;
use containerd_api::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use nix_snapshotter_api::v1::status_service_server::StatusServiceServer;
use nix_store::{Realiser, RealiserOptions};
use sd_notify::NotifyState;
use snapshots::Snapshotter;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tonic::transport::Server;
use tower::layer::util::{Identity, Stack};
use tracing::{info, warn};

use crate::{
    calls::Calls,
    config::Config,
    grpc::MAX_MESSAGE,
    health::Health,
    image_service::ImageService,
    inventory::Inventories,
    metrics::{Metrics, MetricsEndpoint},
    nix_snapshotter::NixSnapshotter,
    socket::Address,
    status::StatusService,
};

/// Serves until SIGTERM or SIGINT, and then until requests in flight have ended or
/// `shutdown_timeout` has passed.
pub(crate) async fn serve(config: &Config) -> anyhow::Result<()> {
    // Asked for first: a signal that comes early is not missed.
    let stop = stop_signal()?;
    // The address before the root, so that a refusal leaves no root behind; but nobody can
    // connect before there is something to serve.
    let elsewhere = || "cannot serve containerd (--address names another socket)";
    let address = Address::claim_when_free(&config.address, config.socket_group.as_deref())
        .await
        .with_context(elsewhere)?;
    let service = open(config)?;
    let snapshotter = service.clone();
    let inventories = Inventories::new(service.clone(), &config.root);
    let images = (config.image_service.enable).then(|| ImageService::new(config, service.clone()));
    let metrics = Arc::new(Metrics::new(inventories.clone()));
    let endpoint = match &config.metrics.address {
        Some(address) => {
            Some(MetricsEndpoint::listen(address, config.socket_group.as_deref()).await?)
        }
        None => None,
    };
    let health = Health::serving().await;
    let health_service = health.service();
    let socket = address.listen().with_context(elsewhere)?;

    let (stopping, stopped) = oneshot::channel();
    let connections = socket.connections(async {
        let signal = stop.await;
        info!(signal, "stopping");
        health.stopping().await;
        notify(&[NotifyState::Stopping]);
        // The receiver waits below for as long as the server runs.
        let _ = stopping.send(());
    })?;
    let calls = Calls::new(Arc::clone(&metrics));
    let serving = server(calls.clone())
        .add_service(
            SnapshotsServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .add_service(StatusServiceServer::new(StatusService::new(
            config,
            inventories,
        )))
        .add_optional_service(images.clone())
        .add_service(health_service)
        // It ends with the connections, and lets the calls on them end.
        .serve_with_incoming_shutdown(connections, std::future::pending());
    // The socket listens already: whoever connects from now on is served.
    notify(&[NotifyState::Ready]);
    info!(
        address = %config.address.display(),
        root = %config.root.display(),
        metrics = config.metrics.address.as_ref().map(tracing::field::display),
        "serving"
    );
    let answering_metrics = async {
        match endpoint {
            Some(endpoint) => endpoint.serve(metrics).await,
            None => std::future::pending().await,
        }
    };

    let following_images = async {
        match images {
            Some(images) => images.keep_in_step().await,
            None => std::future::pending().await,
        }
    };

    let grace = Duration::from_secs(config.shutdown_timeout);
    tokio::select! {
        ended = serving => ended.context("the gRPC server failed")?,
        never = answering_metrics => match never {},
        never = following_images => match never {},
        () = waited(stopped, &calls, grace) => {}
    }
    snapshotter.shut_down().await;
    info!(realisations = ?snapshotter.realisation_stats(), "stopped");
    Ok(())
}

/// Largest list of headers that is taken, as by Go's servers of gRPC (`defaultServerMaxHeaderListSize`):
/// what containerd would take is not to fail before it.
const MAX_HEADERS: u32 = 16 << 20;

/// What takes calls, for services to be added to.
pub(crate) fn server(calls: Calls) -> Server<Stack<Calls, Identity>> {
    Server::builder()
        .http2_max_header_list_size(MAX_HEADERS)
        .layer(calls)
}

/// Opens what is kept on disk; from here on, no other daemon can have this root.
pub(crate) fn open(config: &Config) -> anyhow::Result<NixSnapshotter> {
    let store_dir = config.store_dir()?;
    let snapshots =
        Snapshotter::open(&config.root, &config.snapshot_options()).with_context(|| {
            format!(
                "cannot use {} as the root directory (--root names another)",
                config.root.display()
            )
        })?;
    let realiser = Realiser::new(RealiserOptions {
        store_dir: store_dir.clone(),
        external_builder: config.external_builder.clone(),
        timeout: config.realise_timeout(),
    });
    Ok(NixSnapshotter::new(
        snapshots,
        realiser,
        config.max_realisations,
        store_dir,
    ))
}

/// The name of the first signal that asks the daemon to end.
fn stop_signal() -> anyhow::Result<impl Future<Output = &'static str>> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    })
}

/// Ends when the daemon was asked to stop and has waited long enough for those who are connected;
/// never, if it is not asked.
async fn waited(stopped: oneshot::Receiver<()>, calls: &Calls, grace: Duration) {
    if stopped.await.is_err() {
        // The server ended by itself, which the other branch reports.
        return std::future::pending().await;
    }
    match tokio::time::timeout(grace, calls.rest()).await {
        // Who has never spoken HTTP/2 does not close its connection when it is told to.
        Ok(()) => info!("connections without a request in flight are abandoned"),
        Err(_) => warn!(
            seconds = grace.as_secs(),
            "requests in flight are abandoned: they did not end in time"
        ),
    }
}

/// Tells systemd, where it is the one that started us (sd_notify(3)).
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify systemd");
    }
}
