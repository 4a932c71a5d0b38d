//! A client of the Snapshots service: of the daemon's own socket, or through containerd's.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail, ensure};
use containerd_client::services::v1::snapshots::{
    CleanupRequest, ListSnapshotsRequest, MountsRequest, PrepareSnapshotRequest,
    RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest, snapshots_client::SnapshotsClient,
};
pub use containerd_client::{
    services::v1::snapshots::{Info, Kind, UsageResponse},
    types::Mount,
};
use prost_types::FieldMask;
use tonic::{
    Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, metadata::MetadataValue,
    transport::Channel,
};
use tonic_prost::ProstCodec;

use crate::runtime;

/// What containerd allows in a message (`defaults.DefaultMaxRecvMsgSize`).
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Labels as tests write them.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// The request of Commit as it is since containerd 2.2; that of `containerd-client` 0.9 lacks the
/// parent.
#[derive(Clone, PartialEq, prost::Message)]
struct CommitSnapshotRequest {
    #[prost(string, tag = "1")]
    snapshotter: String,
    #[prost(string, tag = "2")]
    name: String,
    #[prost(string, tag = "3")]
    key: String,
    #[prost(map = "string, string", tag = "4")]
    labels: HashMap<String, String>,
    #[prost(string, tag = "5")]
    parent: String,
}

/// A client of one Snapshots service.
#[derive(Clone, Debug)]
pub struct Snapshots {
    channel: Channel,
    client: SnapshotsClient<Channel>,
    snapshotter: String,
    namespace: Option<String>,
}

/// A Prepare that is under way.
#[derive(Debug)]
pub struct Preparing(tokio::task::JoinHandle<Result<Vec<Mount>, Status>>);

impl Preparing {
    /// Waits for the answer.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn answer(self) -> Result<Vec<Mount>, Status> {
        runtime::wait(self.0).unwrap_or_else(|error| Err(Status::unknown(error.to_string())))
    }

    /// Hangs up on the service.
    pub fn abandon(self) {
        self.0.abort();
        // Ended for certain, and its connection with it.
        let _ = runtime::wait(self.0);
    }
}

impl Snapshots {
    /// A client of the service on a daemon's own socket.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn of_daemon(socket: &Path) -> Result<Self> {
        Self::new(socket, "nix", None)
    }

    /// A client of a snapshotter through containerd, in a namespace.
    ///
    /// # Errors
    /// It cannot connect.
    pub fn of_containerd(socket: &Path, snapshotter: &str, namespace: &str) -> Result<Self> {
        Self::new(socket, snapshotter, Some(namespace))
    }

    fn new(socket: &Path, snapshotter: &str, namespace: Option<&str>) -> Result<Self> {
        let channel = runtime::connect(socket)?;
        let client = SnapshotsClient::new(channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .max_encoding_message_size(MAX_MESSAGE);
        Ok(Self {
            channel,
            client,
            snapshotter: snapshotter.to_owned(),
            namespace: namespace.map(str::to_owned),
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let namespace = self.namespace.as_deref().map(MetadataValue::try_from);
        if let Some(Ok(namespace)) = namespace {
            request
                .metadata_mut()
                .insert("containerd-namespace", namespace);
        }
        request
    }

    fn prepare_request(&self, key: &str, parent: &str, labels: Labels) -> PrepareSnapshotRequest {
        PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: owned(labels),
        }
    }

    /// Makes an active snapshot.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn prepare(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let request = self.request(self.prepare_request(key, parent, labels));
        let answer = runtime::wait(self.client.clone().prepare(request))?;
        Ok(answer.into_inner().mounts)
    }

    /// Begins to make an active snapshot, for tests that do something meanwhile.
    #[must_use]
    pub fn begin_prepare(&self, key: &str, parent: &str, labels: Labels) -> Preparing {
        let request = self.request(self.prepare_request(key, parent, labels));
        let mut client = self.client.clone();
        Preparing(runtime::spawn(async move {
            Ok(client.prepare(request).await?.into_inner().mounts)
        }))
    }

    /// Makes a view.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn view(&self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let request = self.request(ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: owned(labels),
        });
        let answer = runtime::wait(self.client.clone().view(request))?;
        Ok(answer.into_inner().mounts)
    }

    /// Says how to mount a snapshot.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn mounts(&self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(MountsRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        let answer = runtime::wait(self.client.clone().mounts(request))?;
        Ok(answer.into_inner().mounts)
    }

    /// Commits an active snapshot under a name.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn commit(&self, name: &str, key: &str, labels: Labels) -> Result<(), Status> {
        self.commit_onto("", name, key, labels)
    }

    /// Commits an active snapshot under a name, and onto a parent where it was made without one
    /// (containerd 2.2).
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn commit_onto(
        &self,
        parent: &str,
        name: &str,
        key: &str,
        labels: Labels,
    ) -> Result<(), Status> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: owned(labels),
            parent: parent.to_owned(),
        });
        let path = PathAndQuery::from_static("/containerd.services.snapshots.v1.Snapshots/Commit");
        let mut grpc = Grpc::new(self.channel.clone()).max_encoding_message_size(MAX_MESSAGE);
        runtime::wait(async {
            grpc.ready()
                .await
                .map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(request, path, ProstCodec::<_, ()>::default())
                .await
        })?;
        Ok(())
    }

    /// Makes a committed snapshot: Prepare and Commit with the same labels, as the unpacker does.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn layer(&self, name: &str, parent: &str, labels: Labels) -> Result<(), Status> {
        let key = format!("extract-{name}");
        self.prepare(&key, parent, labels)?;
        self.commit(name, &key, labels)
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn remove(&self, key: &str) -> Result<(), Status> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        runtime::wait(self.client.clone().remove(request))?;
        Ok(())
    }

    /// Tells what is known of a snapshot.
    ///
    /// # Errors
    /// The status that the service answers with, and one for an answer without `info`,
    /// at which containerd would panic.
    pub fn stat(&self, key: &str) -> Result<Info, Status> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        let answer = runtime::wait(self.client.clone().stat(request))?;
        answer.into_inner().info.ok_or_else(no_info)
    }

    /// Updates a snapshot. `Some(&[])` is what containerd sends for "everything".
    ///
    /// # Errors
    /// As for [`Snapshots::stat`].
    pub fn update(&self, info: Info, mask: Option<&[&str]>) -> Result<Info, Status> {
        self.send_update(UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: Some(info),
            update_mask: mask.map(|paths| FieldMask {
                paths: paths.iter().map(|&path| path.to_owned()).collect(),
            }),
        })
    }

    /// Sends an update that does not say of what.
    ///
    /// # Errors
    /// As for [`Snapshots::stat`].
    pub fn update_nothing(&self) -> Result<Info, Status> {
        self.send_update(UpdateSnapshotRequest::default())
    }

    fn send_update(&self, request: UpdateSnapshotRequest) -> Result<Info, Status> {
        let request = self.request(request);
        let answer = runtime::wait(self.client.clone().update(request))?;
        answer.into_inner().info.ok_or_else(no_info)
    }

    /// Calls `each` with everything that any of the filters matches, while the answer comes in.
    ///
    /// # Errors
    /// The status that the service answers with, and those of `each`.
    pub fn walk(
        &self,
        filters: &[&str],
        mut each: impl FnMut(Info) -> Result<(), Status>,
    ) -> Result<(), Status> {
        let request = self.request(ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            filters: filters.iter().map(|&filter| filter.to_owned()).collect(),
        });
        let mut messages = runtime::wait(self.client.clone().list(request))?.into_inner();
        while let Some(message) = runtime::wait(messages.message())? {
            message.info.into_iter().try_for_each(&mut each)?;
        }
        Ok(())
    }

    /// Lists what any of the filters matches, in all messages of the answer.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn list(&self, filters: &[&str]) -> Result<Vec<Info>, Status> {
        let mut found = Vec::new();
        self.walk(filters, |info| {
            found.push(info);
            Ok(())
        })?;
        Ok(found)
    }

    /// The names of what any of the filters matches, sorted.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn names(&self, filters: &[&str]) -> Result<Vec<String>, Status> {
        let mut names: Vec<_> = self
            .list(filters)?
            .into_iter()
            .map(|info| info.name)
            .collect();
        names.sort_unstable();
        Ok(names)
    }

    /// What the own layer of a snapshot takes on the disk.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn usage(&self, key: &str) -> Result<UsageResponse, Status> {
        let request = self.request(UsageRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.to_owned(),
        });
        Ok(runtime::wait(self.client.clone().usage(request))?.into_inner())
    }

    /// Deletes what removed snapshots have left.
    ///
    /// # Errors
    /// The status that the service answers with.
    pub fn cleanup(&self) -> Result<(), Status> {
        let request = self.request(CleanupRequest {
            snapshotter: self.snapshotter.clone(),
        });
        runtime::wait(self.client.clone().cleanup(request))?;
        Ok(())
    }
}

/// The directory that the root of a snapshot shows or writes to.
///
/// # Errors
/// There are no mounts.
pub fn upper(mounts: &[Mount]) -> Result<PathBuf> {
    let root = mounts.first().context("no mounts")?;
    let upper = root
        .options
        .iter()
        .find_map(|option| option.strip_prefix("upperdir="));
    Ok(PathBuf::from(upper.unwrap_or(&root.source)))
}

fn owned(labels: Labels) -> HashMap<String, String> {
    labels
        .iter()
        .map(|&(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

fn no_info() -> Status {
    Status::internal("the answer has no `info`")
}

/// Checks that a call is refused with a code and with a message that has all these words in it.
///
/// # Errors
/// It was not, or otherwise.
pub fn refused<T>(answer: Result<T, Status>, code: Code, words: &[&str]) -> Result<()> {
    let Err(status) = answer else {
        bail!("expected {code:?}, and the call succeeded");
    };
    ensure!(status.code() == code, "expected {code:?}, not {status:?}");
    says(status.message(), words)
}

/// Checks that a message has all these words in it.
///
/// # Errors
/// Names the first that is missing.
pub fn says(message: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(message.contains(word), "{word:?} is not in {message:?}");
    }
    Ok(())
}
