//! HTTP/1.1 on a port of the loopback device.

use std::net::{Ipv4Addr, SocketAddr};

use anyhow::Result;
use axum::{Router, serve::ListenerExt};
use tokio::{
    net::TcpListener,
    runtime::{Builder, Runtime},
};

/// A server on a runtime of its own, with which its connections end.
#[derive(Debug)]
pub(crate) struct HttpServer {
    address: SocketAddr,
    _runtime: Runtime,
}

impl HttpServer {
    pub(crate) fn start(router: Router) -> Result<Self> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()?;
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let address = listener.local_addr()?;
        // As caches do: an answer of several writes does not wait for the client to confirm each.
        let listener = listener.tap_io(|connection| {
            let _ = connection.set_nodelay(true);
        });
        runtime.spawn(async { axum::serve(listener, router).await });
        Ok(Self {
            address,
            _runtime: runtime,
        })
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }
}
