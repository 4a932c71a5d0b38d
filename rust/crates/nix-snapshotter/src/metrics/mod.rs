//! What the daemon counts, as a page for Prometheus.
//!
//! Calls are counted as they happen. Everything else is read when the page is asked for, see
//! [`inventory`](crate::inventory). Label values come from fixed sets, so that nobody can make
//! the page grow. `docs/operations.md` lists all names.

mod address;
mod collector;
mod endpoint;

use std::{fmt, time::Duration};

use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Registry, Unit},
};

use self::collector::InventoryCollector;
pub(crate) use self::{address::MetricsAddress, endpoint::MetricsEndpoint};
use crate::inventory::Inventories;

/// In seconds: a Stat takes less than the first, a download more than the last but two.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 0.25, 1.0, 5.0, 30.0, 120.0, 600.0,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Method {
    method: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    method: &'static str,
    code: &'static str,
}

/// All metrics of the process.
pub(crate) struct Metrics {
    registry: Registry,
    durations: Family<Outcome, Histogram>,
    in_flight: Family<Method, Gauge>,
}

impl Metrics {
    pub(crate) fn new(inventories: Inventories) -> Self {
        let durations = Family::<_, Histogram>::new_with_constructor(|| Histogram::new(BUCKETS));
        let in_flight = Family::default();
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix("nix_snapshotter");
        ours.register(
            "build",
            "The program that serves this page",
            Info::new([("version", env!("CARGO_PKG_VERSION"))]),
        );
        ours.register_with_unit(
            "rpc_duration",
            "How long gRPC calls took until their last byte was sent, by outcome",
            Unit::Seconds,
            durations.clone(),
        );
        ours.register(
            "rpcs_in_flight",
            "gRPC calls that have not ended",
            in_flight.clone(),
        );
        registry.register_collector(Box::new(InventoryCollector::new(inventories)));
        Self {
            registry,
            durations,
            in_flight,
        }
    }

    pub(crate) fn call_begins(&self, method: &'static str) {
        self.in_flight.get_or_create(&Method { method }).inc();
    }

    pub(crate) fn call_ends(&self, method: &'static str, code: &'static str, duration: Duration) {
        self.in_flight.get_or_create(&Method { method }).dec();
        self.durations
            .get_or_create(&Outcome { method, code })
            .observe(duration.as_secs_f64());
    }

    /// The page, in the text format of OpenMetrics 1.0. Blocks: it reads the store.
    fn page(&self) -> Result<String, fmt::Error> {
        let mut page = String::new();
        text::encode(&mut page, &self.registry)?;
        Ok(page)
    }
}
