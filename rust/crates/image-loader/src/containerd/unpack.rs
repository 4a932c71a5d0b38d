//! Layers as snapshots: what containerd's own unpacker does (`core/unpack`), which
//! its API offers only for the snapshotters of its transfer service.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
};

use containerd_client::{
    services::v1::{
        ApplyRequest,
        diff_client::DiffClient,
        snapshots::{
            CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest,
            StatSnapshotRequest, snapshots_client::SnapshotsClient,
        },
    },
    types::Mount,
};
use nix_image::{Descriptor, Digest, annotations, archive::StoredImage};
use tonic::{Code, transport::Channel};

use super::{Containerd, descriptor, leases::unique_id, unless_exists};
use crate::{Error, Progress};

/// By this label the config of an image holds the snapshot of its topmost layer.
pub(super) fn reference_label(snapshotter: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{snapshotter}")
}

/// How often a snapshot is prepared that exists and is not to be found: somebody
/// may have removed it in between.
const ATTEMPTS: usize = 3;

/// One layer of an image on its way to a snapshot.
struct Extraction<'a> {
    layer: &'a Descriptor,
    diff_id: Digest,
    parent: String,
    chain_id: String,
    labels: HashMap<String, String>,
}

impl Containerd {
    /// Has `snapshotter` unpack the layers of an image whose blobs are in the content
    /// store. Tells how many there were to unpack.
    pub(crate) async fn unpack(
        &self,
        snapshotter: &str,
        image: &StoredImage,
        progress: &dyn Progress,
    ) -> Result<usize, Error> {
        let mut unpacked = 0;
        let mut parent = String::new();
        let rootfs = &image.config.rootfs;
        let layers = image.manifest.layers.iter().zip(&rootfs.diff_ids);
        for ((layer, diff_id), chain_id) in layers.zip(rootfs.chain_ids()) {
            let chain_id = chain_id.to_string();
            let labels = annotations::snapshot_labels(&layer.annotations)
                .map(|(label, value)| (label.to_owned(), value.to_owned()))
                .chain([(annotations::SNAPSHOT_REF.to_owned(), chain_id.clone())]);
            let extraction = Extraction {
                layer,
                diff_id: *diff_id,
                parent,
                labels: labels.collect(),
                chain_id,
            };
            let task = progress.begin(format!("unpacking {}", layer.digest), layer.size);
            if self.extract(snapshotter, &extraction).await? {
                unpacked += 1;
                task.end("done");
            } else {
                task.end("exists already");
            }
            parent = extraction.chain_id;
        }
        if !parent.is_empty() {
            // Without this the snapshots are collected when the lease is gone.
            let labels = HashMap::from([(reference_label(snapshotter), parent)]);
            self.label_blob(image.manifest.config.digest, labels)
                .await?;
        }
        Ok(unpacked)
    }

    /// Makes the snapshot of a layer, unless it is there.
    async fn extract(&self, snapshotter: &str, extraction: &Extraction<'_>) -> Result<bool, Error> {
        let Some((key, mounts)) = self.prepare(snapshotter, extraction).await? else {
            return Ok(false);
        };
        let result = self.fill(snapshotter, extraction, &key, mounts).await;
        if !matches!(result, Ok(true)) {
            let remove = RemoveSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.clone(),
            };
            if let Err(status) = self.snapshots().remove(self.request(remove)).await {
                // It goes with the lease.
                tracing::warn!(
                    "{}",
                    Error::refused(format_args!("remove snapshot {key}"), status)
                );
            }
        }
        result
    }

    /// Prepares an active snapshot to extract the layer to; `None` if there is a
    /// committed one already. containerd adds it to the lease.
    async fn prepare(
        &self,
        snapshotter: &str,
        extraction: &Extraction<'_>,
    ) -> Result<Option<(String, Vec<Mount>)>, Error> {
        let chain_id = &extraction.chain_id;
        for _ in 0..ATTEMPTS {
            let key = format!("{} {chain_id}", unique_id("extract"));
            let prepare = PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.clone(),
                parent: extraction.parent.clone(),
                labels: extraction.labels.clone(),
            };
            let prepared = unless_exists(self.snapshots().prepare(self.request(prepare)).await)
                .map_err(|status| {
                    Error::refused(
                        format_args!(
                            "prepare a snapshot of layer {} with {snapshotter}",
                            extraction.layer.digest
                        ),
                        status,
                    )
                })?;
            if let Some(prepared) = prepared {
                return Ok(Some((key, prepared.into_inner().mounts)));
            }
            let stat = StatSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: chain_id.clone(),
            };
            match self.snapshots().stat(self.request(stat)).await {
                Ok(stat) => {
                    let found = stat.into_inner().info.unwrap_or_default();
                    extraction.check_store_paths(&found.labels)?;
                    return Ok(None);
                }
                Err(status) if status.code() == Code::NotFound => {}
                Err(status) => {
                    return Err(Error::refused(
                        format_args!("find snapshot {chain_id}"),
                        status,
                    ));
                }
            }
        }
        Err(Error::Unfit(format!(
            "containerd knows snapshot {chain_id}, but the snapshotter {snapshotter} has lost it: remove the images \
             that use it (`ctr images rm --sync`), and load them again"
        )))
    }

    /// Makes an empty snapshot and removes it. Only after a removal containerd compares what it has
    /// of a snapshotter with what that has (`core/metadata`, `dirtySS`); and this fails while the
    /// snapshotter cannot be reached.
    pub(super) async fn touch(&self, snapshotter: &str) -> Result<(), Error> {
        let key = unique_id("touch");
        let prepare = PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            ..PrepareSnapshotRequest::default()
        };
        let failed =
            |status| Error::refused(format_args!("reach the snapshotter {snapshotter}"), status);
        self.snapshots()
            .prepare(self.request(prepare))
            .await
            .map_err(failed)?;
        let remove = RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key,
        };
        match self.snapshots().remove(self.request(remove)).await {
            // Nothing holds it: containerd may have collected it.
            Err(status) if status.code() != Code::NotFound => Err(failed(status)),
            _ => Ok(()),
        }
    }

    /// Extracts the layer to the active snapshot and commits it. False if somebody
    /// else was faster.
    async fn fill(
        &self,
        snapshotter: &str,
        extraction: &Extraction<'_>,
        key: &str,
        mounts: Vec<Mount>,
    ) -> Result<bool, Error> {
        let layer = extraction.layer.digest;
        let apply = ApplyRequest {
            diff: Some(descriptor(extraction.layer)),
            mounts,
            ..ApplyRequest::default()
        };
        let applied = self
            .client::<DiffClient<_>>()
            .apply(self.request(apply))
            .await
            .map_err(|status| Error::refused(format_args!("extract layer {layer}"), status))?
            .into_inner()
            .applied
            .unwrap_or_default();
        if applied.digest != extraction.diff_id.to_string() {
            return Err(Error::Unfit(format!(
                "layer {layer} has the diff ID {}, but the image's config says {}: make the archive again",
                applied.digest, extraction.diff_id
            )));
        }
        let commit = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: extraction.chain_id.clone(),
            key: key.to_owned(),
            // They are not inherited from the active snapshot.
            labels: extraction.labels.clone(),
        };
        let committed = unless_exists(self.snapshots().commit(self.request(commit)).await)
            .map_err(|status| {
                Error::refused(
                    format_args!("commit snapshot {}", extraction.chain_id),
                    status,
                )
            })?;
        if committed.is_none() {
            return Ok(false);
        }
        // By this containerd finds the diff ID again without decompressing the layer.
        let label = ("containerd.io/uncompressed".to_owned(), applied.digest);
        self.label_blob(layer, HashMap::from([label])).await?;
        Ok(true)
    }

    fn snapshots(&self) -> SnapshotsClient<Channel> {
        self.client()
    }
}

impl Extraction<'_> {
    /// Refuses a snapshot of the same content that has other store paths: a chain ID is of the
    /// content alone, and containerd takes the first snapshot that has it for all.
    fn check_store_paths(&self, found: &HashMap<String, String>) -> Result<(), Error> {
        let (wanted, found) = (StorePaths::of(&self.labels), StorePaths::of(found));
        if wanted.is_none() || wanted == found {
            return Ok(());
        }
        let (has, made) = match &found {
            None => (
                "without store paths".to_owned(),
                "whose annotations were lost",
            ),
            Some(found) => (
                format!("with the store paths of another image, {found}"),
                "and other annotations",
            ),
        };
        Err(Error::Unfit(format!(
            "snapshot {} is there, but {has}: an image with layer {} {made} has made it; remove that image \
             (`ctr images rm --sync`), and load this one again",
            self.chain_id, self.layer.digest
        )))
    }
}

/// What the labels of a snapshot say of store paths, in whatever order.
#[derive(Debug, PartialEq, Eq)]
struct StorePaths<'a> {
    closure_info: Option<&'a str>,
    paths: BTreeSet<&'a str>,
}

impl<'a> StorePaths<'a> {
    /// `None` for an ordinary layer.
    fn of(labels: &'a HashMap<String, String>) -> Option<Self> {
        let named = labels
            .iter()
            .filter(|(label, _)| annotations::names_store_paths(label));
        let (infos, paths): (Vec<_>, Vec<_>) =
            named.partition(|(label, _)| *label == annotations::NIX_CLOSURE);
        let found = Self {
            closure_info: infos.first().map(|(_, path)| &***path),
            paths: paths.into_iter().map(|(_, path)| &**path).collect(),
        };
        (found.closure_info.is_some() || !found.paths.is_empty()).then_some(found)
    }
}

impl fmt::Display for StorePaths<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut names = self.closure_info.iter().chain(&self.paths);
        let first = names.next().copied().unwrap_or_default();
        write!(formatter, "{}", first.escape_debug())?;
        match names.count() {
            0 => Ok(()),
            more => write!(formatter, " and {more} more"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLOSURE: &str = annotations::NIX_CLOSURE;
    const A: &str = "/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-a";
    const B: &str = "/nix/store/9kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-b";

    fn labels(labels: &[(&str, &str)]) -> HashMap<String, String> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        labels.iter().map(own).collect()
    }

    /// What is said of a snapshot with labels that is there, to an image whose layer wants others.
    fn check(wanted: &[(&str, &str)], found: &[(&str, &str)]) -> Result<(), String> {
        let layer = Descriptor {
            media_type: String::new(),
            digest: Digest::of(b"layer"),
            size: 0,
            annotations: [].into(),
            platform: None,
        };
        let extraction = Extraction {
            layer: &layer,
            diff_id: layer.digest,
            parent: String::new(),
            chain_id: "sha256:chain".to_owned(),
            labels: labels(wanted),
        };
        let checked = extraction.check_store_paths(&labels(found));
        checked.map_err(|error| error.to_string())
    }

    #[test]
    fn a_snapshot_that_is_there_has_the_store_paths_that_are_wanted() {
        let path = |number: u32| format!("{}{number}", annotations::NIX_STORE_PATH_PREFIX);
        let paths = [path(0), path(1)];
        let [zero, one] = paths.each_ref().map(|path| &**path);
        let other = ("containerd.io/snapshot.ref", "x");
        for (wanted, found) in [
            (&[][..], &[][..]),
            (&[], &[(zero, A)]),
            (&[(zero, A)], &[other, (zero, A)]),
            (&[(zero, A), (one, B)], &[(one, A), (zero, B)]),
            (&[(CLOSURE, A), other], &[(CLOSURE, A)]),
            (&[(CLOSURE, A), (zero, B)], &[(CLOSURE, A), (one, B)]),
        ] {
            assert_eq!(check(wanted, found), Ok(()), "{wanted:?} {found:?}");
        }
        for (wanted, found, words) in [
            (&[(zero, A)][..], &[][..], "without store paths"),
            (&[(CLOSURE, A)], &[other], "annotations were lost"),
            (&[(zero, A)], &[(zero, B)], B),
            (&[(zero, A)], &[(zero, A), (one, B)], "and 1 more"),
            (&[(CLOSURE, A)], &[(CLOSURE, B)], B),
            (&[(CLOSURE, A)], &[(zero, A)], "other annotations"),
            (&[(CLOSURE, A), (zero, B)], &[(CLOSURE, A)], A),
        ] {
            let message = check(wanted, found).unwrap_err();
            assert!(message.contains(words), "{message}");
            for words in ["sha256:chain", "ctr images rm --sync"] {
                assert!(message.contains(words), "{message}");
            }
        }
    }
}
