//! One asynchronous runtime for all clients, so that tests read from top to bottom.

use std::{future::Future, path::Path, sync::LazyLock};

use anyhow::{Context, Result};
use tokio::runtime::{Builder, Runtime};
use tonic::transport::Channel;

#[expect(
    clippy::expect_used,
    reason = "without its runtime no test can run, and a static has nobody to tell"
)]
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .expect("a runtime")
});

/// Waits for a future on the runtime that all connections live on.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    RUNTIME.block_on(future)
}

/// Starts a future without waiting for it.
pub(crate) fn spawn<F>(future: F) -> tokio::task::JoinHandle<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    RUNTIME.spawn(future)
}

/// Connects to a gRPC server on a unix socket.
pub(crate) fn connect(socket: &Path) -> Result<Channel> {
    wait(containerd_client::connect(socket))
        .with_context(|| format!("cannot connect to {}", socket.display()))
}
