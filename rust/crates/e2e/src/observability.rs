//! What the daemon tells about itself: metrics, health, and its commands `status` and `doctor`.

use std::{
    io::{BufRead, BufReader, Cursor, Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use prometheus_parse::{Sample, Scrape, Value};
use tonic::{Status, Streaming};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse, health_check_response::ServingStatus,
    health_client::HealthClient,
};

use crate::{daemon::Config, host::Host, runtime};

/// How long an HTTP server may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Where an HTTP server listens.
#[derive(Clone, Copy, Debug)]
pub enum Http<'a> {
    /// On a unix socket.
    Unix(&'a Path),
    /// On a port of 127.0.0.1.
    Port(u16),
}

/// An answer to an HTTP request.
#[derive(Debug)]
pub struct Answer {
    /// Its status line and headers.
    pub head: String,
    /// Its body.
    pub body: String,
}

impl Http<'_> {
    /// Sends a request without a body.
    ///
    /// # Errors
    /// There is no answer.
    pub fn request(self, method: &str, path: &str) -> Result<Answer> {
        let request =
            format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        match self {
            Self::Unix(path) => {
                let stream = UnixStream::connect(path)?;
                stream.set_read_timeout(Some(PATIENCE))?;
                exchange(stream, &request)
            }
            Self::Port(port) => {
                let stream = TcpStream::connect(("127.0.0.1", port))?;
                stream.set_read_timeout(Some(PATIENCE))?;
                exchange(stream, &request)
            }
        }
    }

    /// Reads and parses the page of metrics.
    ///
    /// # Errors
    /// It is not answered, or not what OpenMetrics allows.
    pub fn metrics(self) -> Result<Metrics> {
        let answer = self.request("GET", "/metrics")?;
        ensure!(answer.head.starts_with("HTTP/1.1 200 "), "{answer:?}");
        ensure!(
            answer
                .head
                .to_lowercase()
                .contains("content-type: application/openmetrics-text"),
            "{answer:?}"
        );
        ensure!(answer.body.ends_with("# EOF\n"), "{}", answer.body);
        let lines = BufReader::new(Cursor::new(&answer.body)).lines();
        Ok(Metrics(Scrape::parse(lines)?))
    }
}

fn exchange(mut stream: impl Read + Write, request: &str) -> Result<Answer> {
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no HTTP answer")?;
    Ok(Answer {
        head: head.to_owned(),
        body: body.to_owned(),
    })
}

/// A page of metrics.
#[derive(Clone, Debug)]
pub struct Metrics(Scrape);

impl Metrics {
    /// The value of the one sample with this name and these labels, 0 where there is none: one
    /// that counts calls appears with the first.
    #[must_use]
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        match self.find(name, labels).map(|sample| &sample.value) {
            Some(Value::Counter(value) | Value::Gauge(value) | Value::Untyped(value)) => *value,
            Some(Value::Histogram(buckets)) => buckets.last().map_or(0.0, |last| last.count),
            _ => 0.0,
        }
    }

    /// Whether there is a sample with this name, whatever its labels.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.0.samples.iter().any(|sample| sample.metric == name)
    }

    /// The values that a label has anywhere.
    #[must_use]
    pub fn label_values(&self, label: &str) -> Vec<String> {
        let values = self
            .0
            .samples
            .iter()
            .filter_map(|sample| sample.labels.get(label));
        let mut values: Vec<_> = values.map(str::to_owned).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    /// The label of a sample.
    #[must_use]
    pub fn label(&self, name: &str, label: &str) -> Option<&str> {
        self.find(name, &[])?.labels.get(label)
    }

    fn find(&self, name: &str, labels: &[(&str, &str)]) -> Option<&Sample> {
        self.0.samples.iter().find(|sample| {
            let has = |(label, value): &(&str, &str)| sample.labels.get(label) == Some(value);
            sample.metric == name && labels.iter().all(has)
        })
    }
}

/// A client of the health service on a daemon's socket.
#[derive(Clone, Debug)]
pub struct Health(HealthClient<tonic::transport::Channel>);

impl Health {
    /// Connects.
    ///
    /// # Errors
    /// It cannot.
    pub fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(HealthClient::new(runtime::connect(socket)?)))
    }

    /// Asks once.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn check(&self, service: &str) -> Result<ServingStatus, Status> {
        let answer = runtime::wait(self.0.clone().check(request(service)))?;
        Ok(answer.into_inner().status())
    }

    /// Begins to watch.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn watch(&self, service: &str) -> Result<Watch, Status> {
        let answer = runtime::wait(self.0.clone().watch(request(service)))?;
        Ok(Watch(answer.into_inner()))
    }
}

fn request(service: &str) -> HealthCheckRequest {
    HealthCheckRequest {
        service: service.to_owned(),
    }
}

/// A health that is being watched.
#[derive(Debug)]
pub struct Watch(Streaming<HealthCheckResponse>);

impl Watch {
    /// Waits for the next change; `None` when there will be none any more.
    ///
    /// # Errors
    /// The connection breaks.
    pub fn change(&mut self) -> Result<Option<ServingStatus>, Status> {
        let message = runtime::wait(self.0.message())?;
        Ok(message.map(|message| message.status()))
    }
}

/// Calls a command of the daemon's program, with the configuration of a daemon.
#[must_use]
pub fn command(host: &Host, daemon: &Config, arguments: &[&str]) -> Command {
    let mut command = Command::new(host.nix_snapshotter());
    command.arg("--config").arg(daemon.file()).args(arguments);
    command
}

/// Calls a method that no service has.
///
/// # Errors
/// It is not refused as unknown.
pub fn call_unknown(socket: &Path, path: &'static str) -> Result<()> {
    let channel = runtime::connect(socket)?;
    let answer = runtime::wait(async {
        let mut client = tonic::client::Grpc::new(channel);
        client.ready().await?;
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckResponse>::default();
        let path = http::uri::PathAndQuery::from_static(path);
        anyhow::Ok(
            client
                .unary(tonic::Request::new(request("")), path, codec)
                .await,
        )
    })?;
    let code = answer.err().map(|status| status.code());
    ensure!(code == Some(tonic::Code::Unimplemented), "{code:?}");
    Ok(())
}
