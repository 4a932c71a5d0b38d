//! The life of the daemon: everything is checked and held before anybody is told that it serves.

use std::{
    future::Future,
    time::{Duration, Instant},
};

use anyhow::Context;
use containerd_api::containerd::services::snapshots::v1::snapshots_server::SnapshotsServer;
use nix_store::{Realiser, RealiserOptions};
use sd_notify::NotifyState;
use snapshots::Snapshotter;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{debug_span, info, warn};

use crate::{
    config::Config,
    grpc::MAX_MESSAGE,
    nix_snapshotter::NixSnapshotter,
    socket::{self, Address},
};

/// How long an address may stay in use by a daemon that is gone.
const HANDOVER: Duration = Duration::from_secs(1);

/// How often it is looked whether the address is free.
const HANDOVER_POLL: Duration = Duration::from_millis(20);

/// Serves until SIGTERM or SIGINT, and then until requests in flight have ended or
/// `shutdown_timeout` has passed.
pub(crate) async fn serve(config: &Config) -> anyhow::Result<()> {
    if config.image_service.enable == Some(true) {
        warn!("`image_service.enable` has no effect: this version has no CRI image service");
    }
    // Asked for first: a signal that comes early is not missed.
    let stop = stop_signal()?;
    // The address before the root, so that a refusal leaves no root behind; but nobody can
    // connect before there is something to serve.
    let address = claim_address(config).await?;
    let service = open(config)?;
    let snapshotter = service.clone();
    let socket = address.listen()?;
    let listener = UnixListener::from_std(socket.listener()?)?;

    let (stopping, stopped) = oneshot::channel();
    let serving = Server::builder()
        .trace_fn(|request| debug_span!("call", method = request.uri().path()))
        .add_service(
            SnapshotsServer::new(service)
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE),
        )
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), async {
            let signal = stop.await;
            info!(signal, "stopping");
            notify(&[NotifyState::Stopping]);
            // The receiver waits below for as long as the server runs.
            let _ = stopping.send(());
        });
    // The socket listens already: whoever connects from now on is served.
    notify(&[NotifyState::Ready]);
    info!(
        address = %config.address.display(),
        root = %config.root.display(),
        "serving"
    );

    let grace = Duration::from_secs(config.shutdown_timeout);
    tokio::select! {
        ended = serving => ended.context("the gRPC server failed")?,
        () = expired(stopped, grace) => {
            warn!(seconds = grace.as_secs(), "requests in flight are abandoned: they did not end in time");
        }
    }
    snapshotter.shut_down().await;
    info!(realisations = ?snapshotter.realisation_stats(), "stopped");
    Ok(())
}

/// Claims the socket's address, and with patience: a process that a killed daemon was just
/// starting has its files open until its exec, and so holds its locks and its socket.
async fn claim_address(config: &Config) -> Result<Address, socket::Error> {
    let start = Instant::now();
    loop {
        match Address::claim(&config.address, config.socket_group.as_deref()) {
            Err(socket::Error::InUse { .. }) if start.elapsed() < HANDOVER => {
                tokio::time::sleep(HANDOVER_POLL).await;
            }
            claimed => return claimed,
        }
    }
}

/// Opens what is kept on disk; from here on, no other daemon can have this root.
fn open(config: &Config) -> anyhow::Result<NixSnapshotter> {
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

/// Ends `grace` after the daemon was asked to stop; never, if it is not.
async fn expired(stopped: oneshot::Receiver<()>, grace: Duration) {
    match stopped.await {
        Ok(()) => tokio::time::sleep(grace).await,
        // The server ended by itself, which the other branch reports.
        Err(_) => std::future::pending().await,
    }
}

/// Tells systemd, where it is the one that started us (sd_notify(3)).
fn notify(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot notify systemd");
    }
}
