//! The Snapshots service: translation between the wire and the model, and nothing else.

use std::{ops::ControlFlow, pin::Pin};

use containerd_api::containerd::{
    services::snapshots::v1::{self as api, snapshots_server::Snapshots},
    types,
};
use prost::Message;
use snapshots::{Info, Kind, Mount};
use tokio::{sync::mpsc, task::block_in_place};
use tokio_stream::{Stream, StreamExt, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};
use tracing::Instrument;

use crate::{
    calls::about,
    error::Error,
    nix_snapshotter::{NewSnapshot, NixSnapshotter},
};

/// Messages of containerd have at most 16 MiB (`defaults.DefaultMaxRecvMsgSize`, 1.7 to
/// 2.4); tonic's own limit of 4 MiB would refuse some of them.
pub(crate) const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Bytes and items after which a message of List is sent. The reference sends 100
/// items at a time, which with many labels can pass [`MAX_MESSAGE`].
const LIST_BATCH_BYTES: usize = 1024 * 1024;
const LIST_BATCH_ITEMS: usize = 100;

#[tonic::async_trait]
impl Snapshots for NixSnapshotter {
    type ListStream =
        Pin<Box<dyn Stream<Item = Result<api::ListSnapshotsResponse, Status>> + Send>>;

    async fn prepare(
        &self,
        request: Request<api::PrepareSnapshotRequest>,
    ) -> Result<Response<api::PrepareSnapshotResponse>, Status> {
        let request = request.into_inner();
        about(&[("key", &request.key), ("parent", &request.parent)]);
        let mounts = self
            .create(NewSnapshot {
                kind: Kind::Active,
                key: request.key,
                parent: non_empty(request.parent),
                labels: request.labels,
            })
            .await?;
        Ok(Response::new(api::PrepareSnapshotResponse {
            mounts: to_mounts(mounts),
        }))
    }

    async fn view(
        &self,
        request: Request<api::ViewSnapshotRequest>,
    ) -> Result<Response<api::ViewSnapshotResponse>, Status> {
        let request = request.into_inner();
        about(&[("key", &request.key), ("parent", &request.parent)]);
        let mounts = self
            .create(NewSnapshot {
                kind: Kind::View,
                key: request.key,
                parent: non_empty(request.parent),
                labels: request.labels,
            })
            .await?;
        Ok(Response::new(api::ViewSnapshotResponse {
            mounts: to_mounts(mounts),
        }))
    }

    async fn mounts(
        &self,
        request: Request<api::MountsRequest>,
    ) -> Result<Response<api::MountsResponse>, Status> {
        let key = request.into_inner().key;
        about(&[("key", &key)]);
        let mounts = NixSnapshotter::mounts(self, key).await?;
        Ok(Response::new(api::MountsResponse {
            mounts: to_mounts(mounts),
        }))
    }

    async fn commit(
        &self,
        request: Request<api::CommitSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let request = request.into_inner();
        about(&[
            ("key", &request.key),
            ("parent", &request.parent),
            ("committed_as", &request.name),
        ]);
        let parent = non_empty(request.parent);
        let committed = block_in_place(|| {
            let (name, key) = (&request.name, &request.key);
            self.snapshots()
                .commit(name, key, parent.as_deref(), request.labels)
        });
        committed.map_err(Error::from)?;
        Ok(Response::new(()))
    }

    async fn remove(
        &self,
        request: Request<api::RemoveSnapshotRequest>,
    ) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        about(&[("key", &key)]);
        block_in_place(|| self.snapshots().remove(&key)).map_err(Error::from)?;
        Ok(Response::new(()))
    }

    async fn stat(
        &self,
        request: Request<api::StatSnapshotRequest>,
    ) -> Result<Response<api::StatSnapshotResponse>, Status> {
        let key = request.into_inner().key;
        about(&[("key", &key)]);
        let info = self.snapshots().stat(&key).map_err(Error::from)?;
        Ok(Response::new(api::StatSnapshotResponse {
            info: Some(to_info(info)),
        }))
    }

    async fn update(
        &self,
        request: Request<api::UpdateSnapshotRequest>,
    ) -> Result<Response<api::UpdateSnapshotResponse>, Status> {
        let request = request.into_inner();
        let new = request.info.ok_or(Error::MissingField("info"))?;
        about(&[("key", &new.name)]);
        let paths = request.update_mask.unwrap_or_default().paths;
        let update = || self.snapshots().update(&new.name, &new.labels, &paths);
        let info = block_in_place(update).map_err(Error::from)?;
        Ok(Response::new(api::UpdateSnapshotResponse {
            info: Some(to_info(info)),
        }))
    }

    async fn list(
        &self,
        request: Request<api::ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let filters = request.into_inner().filters;
        // Room for one message: what the client does not read yet is not made yet.
        let (sender, mut receiver) = mpsc::channel(1);
        let this = self.clone();
        let sending = async move { this.send_list(filters, sender).await };
        tokio::spawn(sending.in_current_span());
        // A bad filter is the answer to the call, not an item of its stream.
        let first = receiver.recv().await.transpose()?;
        let messages = tokio_stream::iter(first.map(Ok)).chain(ReceiverStream::new(receiver));
        Ok(Response::new(Box::pin(messages)))
    }

    async fn usage(
        &self,
        request: Request<api::UsageRequest>,
    ) -> Result<Response<api::UsageResponse>, Status> {
        let key = request.into_inner().key;
        about(&[("key", &key)]);
        let usage = self
            .blocking(move |snapshots| Ok(snapshots.usage(&key)?))
            .await?;
        Ok(Response::new(api::UsageResponse {
            size: i64::try_from(usage.size).unwrap_or(i64::MAX),
            inodes: i64::try_from(usage.inodes).unwrap_or(i64::MAX),
        }))
    }

    async fn cleanup(
        &self,
        _request: Request<api::CleanupRequest>,
    ) -> Result<Response<()>, Status> {
        self.blocking(move |snapshots| Ok(snapshots.cleanup()?))
            .await?;
        Ok(Response::new(()))
    }
}

type ListMessage = Result<api::ListSnapshotsResponse, Status>;

impl NixSnapshotter {
    /// Sends what matches in messages of bounded size, until the client hangs up.
    async fn send_list(&self, filters: Vec<String>, sender: mpsc::Sender<ListMessage>) {
        let to_client = sender.clone();
        let listed = self
            .blocking(move |snapshots| {
                let mut batch = Batch::default();
                // It fails when the client has hung up, and then nobody waits for the rest.
                let send = |batch: &mut Batch| to_client.blocking_send(Ok(batch.take()));
                snapshots.list(&filters, |_, info| {
                    if batch.push(to_info(info)) && send(&mut batch).is_err() {
                        return ControlFlow::Break(());
                    }
                    ControlFlow::Continue(())
                })?;
                if !batch.infos.is_empty() {
                    let _ = send(&mut batch);
                }
                Ok(())
            })
            .await;
        if let Err(error) = listed {
            let _ = sender.send(Err(error.into())).await;
        }
    }
}

/// A message of List in the making.
#[derive(Default)]
struct Batch {
    infos: Vec<api::Info>,
    bytes: usize,
}

impl Batch {
    /// Adds an item and tells whether the message is to be sent.
    fn push(&mut self, info: api::Info) -> bool {
        self.bytes += info.encoded_len();
        self.infos.push(info);
        self.bytes >= LIST_BATCH_BYTES || self.infos.len() >= LIST_BATCH_ITEMS
    }

    fn take(&mut self) -> api::ListSnapshotsResponse {
        self.bytes = 0;
        api::ListSnapshotsResponse {
            info: std::mem::take(&mut self.infos),
        }
    }
}

fn non_empty(text: String) -> Option<String> {
    (!text.is_empty()).then_some(text)
}

fn to_mounts(mounts: Vec<Mount>) -> Vec<types::Mount> {
    mounts
        .into_iter()
        .map(|mount| types::Mount {
            r#type: mount.fstype,
            source: mount.source,
            target: mount.target,
            options: mount.options,
        })
        .collect()
}

fn to_info(info: Info) -> api::Info {
    let kind = match info.kind {
        Kind::View => api::Kind::View,
        Kind::Active => api::Kind::Active,
        Kind::Committed => api::Kind::Committed,
    };
    api::Info {
        name: info.name,
        parent: info.parent,
        kind: kind.into(),
        created_at: Some(info.created.into()),
        updated_at: Some(info.updated.into()),
        labels: info.labels,
    }
}
