//! A client of containerd's transfer service: an archive is imported and unpacked by containerd itself.
//!
//! It is the way of `ctr image import` and of the Go project's `load`, and the
//! witness beside `nix2container load`: here containerd's own unpacker drives the
//! snapshotter (`core/unpack`), with the labels that it sends.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use containerd_client::{
    services::v1::{
        StreamInit, TransferOptions, TransferRequest, streaming_client::StreamingClient,
        transfer_client::TransferClient,
    },
    to_any,
    types::{
        Platform,
        transfer::{
            Data, ImageImportStream, ImageReference, ImageStore, UnpackConfiguration, WindowUpdate,
        },
    },
};
use prost::Message;
use prost_types::Any;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Streaming, metadata::MetadataValue, transport::Channel};

use crate::{host::unique, image::architecture, runtime};

/// Most bytes in one message of a stream (`core/transfer/streaming`).
const CHUNK: usize = 32 * 1024;

/// Imports an archive and has it unpacked for a snapshotter. The image gets the name
/// that the archive's index gives it.
///
/// # Errors
/// What containerd says.
pub fn import(socket: &Path, namespace: &str, snapshotter: &str, archive: &Path) -> Result<()> {
    let archive =
        fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let channel = runtime::connect(socket)?;
    runtime::wait(async {
        let stream = unique("import");
        let (sender, mut receiver) = open_stream(&channel, namespace, &stream).await?;
        let request = in_namespace(namespace, request(snapshotter, stream))?;
        let mut client = TransferClient::new(channel);
        let (answer, fed) = tokio::join!(
            client.transfer(request),
            feed(&archive, sender, &mut receiver)
        );
        // An early end of the stream says little; the answer to the call says why.
        match (answer, fed) {
            (Ok(_), _) => Ok(()),
            (Err(status), Ok(())) => Err(status.into()),
            (Err(status), Err(error)) => Err(error.context(status)),
        }
    })
}

async fn open_stream(
    channel: &Channel,
    namespace: &str,
    id: &str,
) -> Result<(mpsc::Sender<Any>, Streaming<Any>)> {
    let (sender, receiver) = mpsc::channel(1);
    sender
        .send(to_any(&StreamInit { id: id.to_owned() }))
        .await?;
    let request = in_namespace(namespace, ReceiverStream::new(receiver))?;
    let mut answers = StreamingClient::new(channel.clone())
        .stream(request)
        .await?
        .into_inner();
    answers
        .message()
        .await?
        .context("containerd does not take the stream")?;
    Ok((sender, answers))
}

/// Sends the archive as far as the other side has opened its window, and closes the stream.
async fn feed(
    mut rest: &[u8],
    sender: mpsc::Sender<Any>,
    answers: &mut Streaming<Any>,
) -> Result<()> {
    let mut window = 0;
    while !rest.is_empty() {
        if window == 0 {
            let update = answers
                .message()
                .await?
                .context("containerd closed the stream")?;
            window = usize::try_from(WindowUpdate::decode(&*update.value)?.update)?;
            continue;
        }
        let (chunk, next) = rest.split_at(rest.len().min(window).min(CHUNK));
        let data = chunk.to_vec();
        sender.send(to_any(&Data { data })).await?;
        window -= chunk.len();
        rest = next;
    }
    Ok(())
}

fn request(snapshotter: &str, stream: String) -> TransferRequest {
    let platform = Platform {
        os: "linux".to_owned(),
        architecture: architecture().to_owned(),
        ..Platform::default()
    };
    let source = ImageImportStream {
        stream,
        ..ImageImportStream::default()
    };
    let destination = ImageStore {
        platforms: vec![platform.clone()],
        // containerd takes names from the archive's annotations for prefixes only.
        extra_references: vec![ImageReference {
            name: "import".to_owned(),
            is_prefix: true,
            allow_overwrite: true,
            ..ImageReference::default()
        }],
        unpacks: vec![UnpackConfiguration {
            platform: Some(platform),
            snapshotter: snapshotter.to_owned(),
        }],
        ..ImageStore::default()
    };
    TransferRequest {
        source: Some(to_any(&source)),
        destination: Some(to_any(&destination)),
        options: Some(TransferOptions::default()),
    }
}

pub(crate) fn in_namespace<T>(namespace: &str, message: T) -> Result<Request<T>> {
    let mut request = Request::new(message);
    let namespace = MetadataValue::try_from(namespace)?;
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    Ok(request)
}
