//! The metrics that are read when the page is asked for.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
    registry::Unit,
};

use crate::inventory::{Inventories, Inventory};

/// Takes an inventory each time.
pub(super) struct InventoryCollector(Inventories);

impl InventoryCollector {
    pub(super) fn new(inventories: Inventories) -> Self {
        Self(inventories)
    }
}

impl fmt::Debug for InventoryCollector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("InventoryCollector")
    }
}

impl Collector for InventoryCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        match self.0.take() {
            Ok(inventory) => encode(&inventory, encoder),
            // The rest of the page is true all the same, and what is missing is seen to be.
            Err(error) => {
                tracing::warn!(%error, "metrics are incomplete");
                Ok(())
            }
        }
    }
}

fn encode(inventory: &Inventory, encoder: DescriptorEncoder<'_>) -> fmt::Result {
    let mut page = Page(encoder);
    let snapshots = inventory.snapshots;
    page.gauges(
        "nix_snapshotter_snapshots",
        "Snapshots by kind",
        "kind",
        [
            ("view", snapshots.views),
            ("active", snapshots.active),
            ("committed", snapshots.committed),
        ],
    )?;
    page.gauge(
        "nix_snapshotter_nix_layers",
        "Snapshots that hold store paths",
        inventory.nix_layers,
    )?;
    page.gauge(
        "nix_snapshotter_gc_roots",
        "GC roots of all snapshots",
        inventory.gc_roots,
    )?;

    let realisations = inventory.realisations;
    page.gauges(
        "nix_snapshotter_realisations_under_way",
        "Realisations that Nix works on, and those that wait for their turn",
        "state",
        [
            ("running", realisations.running),
            ("waiting", realisations.waiting),
        ],
    )?;
    page.counters(
        "nix_snapshotter_realisations",
        "Realisations that ended, by outcome",
        "outcome",
        [
            ("succeeded", realisations.succeeded),
            ("failed", realisations.failed),
            ("cancelled", realisations.cancelled),
        ],
    )?;
    page.seconds(
        "nix_snapshotter_realisation",
        "How long realisations ran, all together and without their waiting",
        realisations.time,
    )?;
    page.counter(
        "nix_snapshotter_realised_paths",
        "Store paths that were fetched or built",
        realisations.paths,
    )?;
    page.counter(
        "nix_snapshotter_realised_bytes",
        "NAR size of the store paths that were fetched or built",
        realisations.bytes,
    )?;

    let waits = inventory.store_waits;
    page.counter(
        "nix_snapshotter_store_waits",
        "Calls that had to wait for another one to change the metadata store",
        waits.waits,
    )?;
    page.seconds(
        "nix_snapshotter_store_wait",
        "How long calls have waited for the metadata store, all together",
        waits.total,
    )?;

    // Named as in all programs that Prometheus reads.
    let process = inventory.process;
    page.seconds("process_cpu", "Processor time of the daemon", process.cpu)?;
    page.gauge(
        "process_resident_memory_bytes",
        "Resident memory of the daemon",
        process.resident_bytes,
    )?;
    page.gauge(
        "process_open_fds",
        "Open file descriptors of the daemon",
        process.open_fds,
    )?;
    page.gauge(
        "process_start_time_seconds",
        "When the daemon started, in seconds since 1970",
        process.started.as_secs(),
    )
}

/// The page as far as it is written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstGauge::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// One value for each of the fixed values of a label.
    fn gauges<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: [(&str, u64); N],
    ) -> fmt::Result {
        let mut family = self
            .0
            .encode_descriptor(name, help, None, MetricType::Gauge)?;
        for (value, count) in values {
            let labels = [(label, value)];
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// The format adds `_total` to the name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        let metric = ConstCounter::new(value);
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// A counter for each of the fixed values of a label.
    fn counters<const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: [(&str, u64); N],
    ) -> fmt::Result {
        let kind = MetricType::Counter;
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (value, count) in values {
            let labels = [(label, value)];
            ConstCounter::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }

    /// A counter of time. The format adds `_seconds_total` to the name.
    fn seconds(&mut self, name: &str, help: &str, value: Duration) -> fmt::Result {
        let metric = ConstCounter::new(value.as_secs_f64());
        let unit = Some(&Unit::Seconds);
        let encoder = self
            .0
            .encode_descriptor(name, help, unit, metric.metric_type())?;
        metric.encode(encoder)
    }
}
