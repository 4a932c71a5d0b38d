//! Layers as snapshots: what containerd's own unpacker does (`core/unpack`), which
//! its API offers only for the snapshotters of its transfer service.

use std::collections::HashMap;

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

use super::{Containerd, MAX_MESSAGE_BYTES, descriptor, leases::unique_id, unless_exists};
use crate::{Error, Progress};

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
            let label = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
            let labels = HashMap::from([(label, parent)]);
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
                    if is_nix(&extraction.labels) && !is_nix(&found.labels) {
                        return Err(Error::Unfit(format!(
                            "snapshot {chain_id} is there, but without store paths: an image with layer {} whose \
                             annotations were lost has made it; remove that image (`ctr images rm --sync`), and \
                             load this one again",
                            extraction.layer.digest
                        )));
                    }
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
        let applied = DiffClient::new(self.channel.clone())
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
        SnapshotsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES)
    }
}

fn is_nix(labels: &HashMap<String, String>) -> bool {
    labels
        .keys()
        .any(|label| annotations::names_store_paths(label))
}
