//! The runtime of the commands that speak to a server: one thread, as they do one thing at a time.

use std::future::Future;

use anyhow::Context;
use tokio::runtime::Builder;

/// Waits for the end of a command.
pub(crate) fn wait<T>(command: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime for I/O")?;
    runtime.block_on(command)
}
