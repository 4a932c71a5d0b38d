//! Blobs in containerd's content store.

use std::{
    collections::HashMap,
    io::{Read, Seek},
};

use containerd_client::services::v1::{
    Info, ListContentRequest, ReadContentRequest, UpdateRequest, WriteAction, WriteContentRequest,
    WriteContentResponse, content_client::ContentClient,
};
use nix_image::{
    Descriptor, Digest, Index, Manifest,
    archive::{Archive, MAX_DOCUMENT_BYTES},
};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming, transport::Channel};

use super::{Containerd, size, unless_exists, unpack::reference_label};
use crate::{Error, Progress};

/// Bytes of a blob that are sent in one message.
const CHUNK: usize = 1 << 20;

impl Containerd {
    /// Writes a blob out of an archive, unless it is there already. The labels are
    /// set in any case. Tells whether it was written.
    pub(crate) async fn write_blob<R: Read + Seek>(
        &self,
        archive: &mut Archive<R>,
        blob: &Descriptor,
        labels: HashMap<String, String>,
        progress: &dyn Progress,
    ) -> Result<bool, Error> {
        let task = progress.begin(blob.digest.to_string(), blob.size);
        let failed =
            |status: Status| Error::refused(format_args!("store blob {}", blob.digest), status);
        loop {
            let Some((mut session, offset)) = self.begin_write(blob).await.map_err(failed)? else {
                self.label_blob(blob.digest, labels).await?;
                task.end("exists already");
                return Ok(false);
            };
            task.restart();
            // Another namespace has the blob already: containerd has all its bytes.
            let mut sent = if offset == size(blob) { offset } else { 0 };
            if sent == 0 {
                let mut content = archive.blob(blob)?;
                let mut chunk = vec![0; CHUNK];
                loop {
                    let read = content.read(&mut chunk)?;
                    if read == 0 {
                        break;
                    }
                    let request = WriteContentRequest {
                        action: WriteAction::Write.into(),
                        offset: sent,
                        data: chunk[..read].to_vec(),
                        ..WriteContentRequest::default()
                    };
                    sent = session.send(request).await.map_err(failed)?.offset;
                    task.advance(read as u64);
                }
            }
            let commit = WriteContentRequest {
                action: WriteAction::Commit.into(),
                total: size(blob),
                expected: blob.digest.to_string(),
                offset: sent,
                labels: labels.clone(),
                ..WriteContentRequest::default()
            };
            let committed = unless_exists(session.send(commit).await).map_err(failed)?;
            if committed.is_some() {
                task.end("transferred");
                return Ok(true);
            }
            // Somebody else was faster. The lease does not have that blob yet: ask anew.
        }
    }

    /// Begins to write a blob, and tells how many of its bytes are there. `None` if
    /// it is there whole; containerd then adds it to the lease.
    async fn begin_write(&self, blob: &Descriptor) -> Result<Option<(WriteSession, i64)>, Status> {
        let lease = self.lease.as_ref().and_then(|lease| lease.to_str().ok());
        let stat = WriteContentRequest {
            action: WriteAction::Stat.into(),
            // A name of our own: no other client's half of a blob is in the way, and
            // what is left of ours goes with the lease.
            r#ref: format!("{}-{}", lease.unwrap_or_default(), blob.digest),
            total: size(blob),
            expected: blob.digest.to_string(),
            ..WriteContentRequest::default()
        };
        let Some(mut session) = unless_exists(self.open_write(stat).await)? else {
            return Ok(None);
        };
        let answer = unless_exists(session.receive().await)?;
        Ok(answer.map(|answer| (session, answer.offset)))
    }

    async fn open_write(&self, first: WriteContentRequest) -> Result<WriteSession, Status> {
        let (requests, stream) = mpsc::channel(1);
        // The channel has room for it.
        let _ = requests.send(first).await;
        let responses = self
            .content()
            .write(self.request(ReceiverStream::new(stream)))
            .await?
            .into_inner();
        Ok(WriteSession {
            requests,
            responses,
        })
    }

    /// Reads a document whole, and checks it; `None` if it is not in the content store.
    ///
    /// # Errors
    /// [`Error::Refused`], and [`Error::Unfit`] for one that is damaged or too large.
    pub async fn read_document(&self, document: &Descriptor) -> Result<Option<Vec<u8>>, Error> {
        let digest = document.digest;
        let failed = |status: Status| Error::refused(format_args!("read blob {digest}"), status);
        if document.size > MAX_DOCUMENT_BYTES {
            return Err(Error::Unfit(format!(
                "blob {digest} has {} bytes, and a document of an image has {MAX_DOCUMENT_BYTES} at most",
                document.size
            )));
        }
        let request = ReadContentRequest {
            digest: digest.to_string(),
            ..ReadContentRequest::default()
        };
        let read = async {
            let mut chunks = self
                .content()
                .read(self.request(request))
                .await?
                .into_inner();
            let mut content = Vec::new();
            while let Some(chunk) = chunks.message().await? {
                content.extend(chunk.data);
                if content.len() as u64 > document.size {
                    break;
                }
            }
            Ok::<_, Status>(content)
        };
        let content = match read.await {
            Ok(content) => content,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(status)),
        };
        if Digest::of(&content) != digest {
            return Err(Error::Unfit(format!(
                "blob {digest} of containerd is damaged: remove the image and load it again"
            )));
        }
        Ok(Some(content))
    }

    /// The images that a snapshotter has unpacked: the digests of their configs, each with the chain
    /// ID of all its layers, under which the snapshot of the topmost is.
    ///
    /// # Errors
    /// [`Error::Refused`].
    pub async fn unpacked_images(&self, snapshotter: &str) -> Result<Vec<(String, String)>, Error> {
        let label = reference_label(snapshotter);
        let request = ListContentRequest {
            filters: vec![format!("labels.{label:?}")],
        };
        let list = async {
            let mut messages = self
                .content()
                .list(self.request(request))
                .await?
                .into_inner();
            let mut images = Vec::new();
            while let Some(message) = messages.message().await? {
                let unpacked = message.info.into_iter().filter_map(|mut config| {
                    let chain_id = config.labels.remove(&label)?;
                    Some((config.digest, chain_id))
                });
                images.extend(unpacked);
            }
            Ok(images)
        };
        list.await
            .map_err(|status: Status| Error::refused("list the configs of its images", status))
    }

    /// Sets labels of a blob, and keeps the others that it has.
    pub(crate) async fn label_blob(
        &self,
        digest: Digest,
        labels: HashMap<String, String>,
    ) -> Result<(), Error> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels
            .keys()
            .map(|label| format!("labels.{label}"))
            .collect();
        let request = UpdateRequest {
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        };
        self.content()
            .update(self.request(request))
            .await
            .map_err(|status| Error::refused(format_args!("label blob {digest}"), status))?;
        Ok(())
    }

    fn content(&self) -> ContentClient<Channel> {
        self.client()
    }
}

/// The writing of one blob: containerd answers every request.
struct WriteSession {
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
}

impl WriteSession {
    async fn send(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, Status> {
        // Where containerd has hung up, its reason is in the response.
        let _ = self.requests.send(request).await;
        self.receive().await
    }

    async fn receive(&mut self) -> Result<WriteContentResponse, Status> {
        let response = self.responses.message().await?;
        response.ok_or_else(|| Status::aborted("it ended the transfer"))
    }
}

/// What the labels begin with by which a blob keeps others from being collected (containerd's
/// `images.ChildGCLabels`).
const GC_PREFIX: &str = "containerd.io/gc.ref.content";

/// The labels by which an index keeps its manifests.
pub(crate) fn index_gc_labels(index: &Index) -> HashMap<String, String> {
    let manifests = index.manifests.iter().enumerate();
    manifests
        .map(|(at, manifest)| (format!("{GC_PREFIX}.m.{at}"), manifest.digest.to_string()))
        .collect()
}

/// The labels by which a manifest keeps its config and layers.
pub(crate) fn manifest_gc_labels(manifest: &Manifest) -> HashMap<String, String> {
    let config = (
        format!("{GC_PREFIX}.config"),
        manifest.config.digest.to_string(),
    );
    let layers = manifest.layers.iter().enumerate();
    layers
        .map(|(index, layer)| (format!("{GC_PREFIX}.l.{index}"), layer.digest.to_string()))
        .chain([config])
        .collect()
}
