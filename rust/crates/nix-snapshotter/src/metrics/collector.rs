//! The metrics that are read when the page is asked for.

use std::{fmt, time::Duration};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{counter::ConstCounter, gauge::ConstGauge},
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
    page.family(
        "nix_snapshotter_snapshots",
        "Snapshots by kind",
        "kind",
        [
            ("view", ConstGauge::new(snapshots.views)),
            ("active", ConstGauge::new(snapshots.active)),
            ("committed", ConstGauge::new(snapshots.committed)),
        ],
    )?;
    page.single(
        "nix_snapshotter_nix_layers",
        "Snapshots that hold store paths",
        &ConstGauge::new(inventory.nix_layers),
    )?;
    page.single(
        "nix_snapshotter_gc_roots",
        "GC roots of all snapshots",
        &ConstGauge::new(inventory.gc_roots),
    )?;
    page.single(
        "nix_snapshotter_image_archives",
        "Archives of images that are held by GC roots of their own",
        &ConstGauge::new(inventory.image_archives),
    )?;

    let realisations = inventory.realisations;
    page.family(
        "nix_snapshotter_realisations_under_way",
        "Realisations that Nix works on, and those that wait for their turn",
        "state",
        [
            ("running", ConstGauge::new(realisations.running)),
            ("waiting", ConstGauge::new(realisations.waiting)),
        ],
    )?;
    page.family(
        "nix_snapshotter_realisations",
        "Realisations that ended, by outcome",
        "outcome",
        [
            ("succeeded", ConstCounter::new(realisations.succeeded)),
            ("failed", ConstCounter::new(realisations.failed)),
            ("cancelled", ConstCounter::new(realisations.cancelled)),
        ],
    )?;
    page.seconds(
        "nix_snapshotter_realisation",
        "How long realisations ran, all together and without their waiting",
        realisations.time,
    )?;
    page.single(
        "nix_snapshotter_realised_paths",
        "Store paths that were fetched or built",
        &ConstCounter::new(realisations.paths),
    )?;
    page.single(
        "nix_snapshotter_realised_bytes",
        "NAR size of the store paths that were fetched or built",
        &ConstCounter::new(realisations.bytes),
    )?;

    let waits = inventory.store_waits;
    page.single(
        "nix_snapshotter_store_waits",
        "Calls that had to wait for another one to change the metadata store",
        &ConstCounter::new(waits.waits),
    )?;
    page.seconds(
        "nix_snapshotter_store_wait",
        "How long calls have waited for the metadata store, all together",
        waits.total,
    )?;

    // Named as in all programs that Prometheus reads.
    let process = inventory.process;
    page.seconds("process_cpu", "Processor time of the daemon", process.cpu)?;
    page.single(
        "process_resident_memory_bytes",
        "Resident memory of the daemon",
        &ConstGauge::new(process.resident_bytes),
    )?;
    page.single(
        "process_open_fds",
        "Open file descriptors of the daemon",
        &ConstGauge::new(process.open_fds),
    )?;
    page.single(
        "process_start_time_seconds",
        "When the daemon started, in seconds since 1970",
        &ConstGauge::new(process.started.as_secs()),
    )
}

/// The page as far as it is written.
struct Page<'a>(DescriptorEncoder<'a>);

impl Page<'_> {
    fn single(&mut self, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
        let encoder = self
            .0
            .encode_descriptor(name, help, None, metric.metric_type())?;
        metric.encode(encoder)
    }

    /// One metric for each of the fixed values of a label.
    fn family<M: EncodeMetric, const N: usize>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        metrics: [(&str, M); N],
    ) -> fmt::Result {
        let Some((_, first)) = metrics.first() else {
            return Ok(());
        };
        let mut family = self
            .0
            .encode_descriptor(name, help, None, first.metric_type())?;
        for (value, metric) in metrics {
            metric.encode(family.encode_family(&[(label, value)])?)?;
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
