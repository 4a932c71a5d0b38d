//! The bytes of store paths in what kubelet hears of the file system of images.
//!
//! containerd counts snapshots, in which store paths have no bytes: kubelet, which frees images when
//! their file system fills, would not see what the store takes. The answer is changed in its bytes,
//! so that nothing of it is lost that our `.proto` file does not know.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::{Buf, BufMut, Bytes};
use cri_api::v1::FilesystemUsage;
use http_body_util::{BodyExt, Full, Limited};
use nix_store::StorePath;
use prost::{
    Message,
    encoding::{
        DecodeContext, WireType, decode_key, decode_varint, encode_key, encode_varint, skip_field,
    },
};
use tokio::sync::Mutex;
use tonic::{Status, body::Body};
use tracing::debug;

use super::{archive_roots::IMAGES, forward::MAX_MESSAGE};
use crate::{
    error::{Error, chain},
    nix_snapshotter::{GC_ROOTS, NixSnapshotter},
};

/// How long a sum is taken for true. Kubelet asks every ten seconds.
const FRESH: Duration = Duration::from_secs(30);

/// `image_filesystems` of `ImageFsInfoResponse`. Kubelet looks at the first of them.
const IMAGE_FILE_SYSTEMS: u32 = 1;

/// Sums up the store paths that are held for images and containers.
pub(super) struct StoreUsage {
    snapshotter: NixSnapshotter,
    /// What has the directories of roots.
    parents: Vec<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// A store path never changes its size.
    sizes: HashMap<StorePath, u64>,
    sum: u64,
    at: Option<Instant>,
}

impl StoreUsage {
    pub(super) fn new(root: &Path, snapshotter: NixSnapshotter) -> Self {
        Self {
            snapshotter,
            parents: [GC_ROOTS, IMAGES].map(|dir| root.join(dir)).into(),
            known: Mutex::default(),
        }
    }

    /// The NAR sizes of all paths that are held, each once, in bytes. What cannot be found out
    /// leaves the sum as it was.
    async fn bytes(&self) -> u64 {
        let mut known = self.known.lock().await;
        if known.at.is_none_or(|at| at.elapsed() > FRESH) {
            if let Err(error) = self.measure(&mut known).await {
                debug!(
                    error = chain(&error),
                    "the store paths of images are not counted anew"
                );
            }
            known.at = Some(Instant::now());
        }
        known.sum
    }

    async fn measure(&self, known: &mut Known) -> Result<(), Error> {
        let held = self.snapshotter.held_paths(self.parents.clone()).await?;
        known.sizes.retain(|path, _| held.contains(path));
        let is_new = |path: &&StorePath| !known.sizes.contains_key(*path);
        let new: Vec<_> = held.iter().filter(is_new).cloned().collect();
        let sizes = self.snapshotter.nar_sizes(&new).await?;
        known.sizes.extend(new.into_iter().zip(sizes));
        known.sum = known
            .sizes
            .values()
            .fold(0, |sum, size| sum.saturating_add(*size));
        Ok(())
    }

    /// Adds them to the answer to `ImageFsInfo`.
    pub(super) async fn add_to(&self, answer: http::Response<Body>) -> http::Response<Body> {
        let (head, body) = answer.into_parts();
        let collected = match Limited::new(body, MAX_MESSAGE).collect().await {
            Ok(collected) => collected,
            Err(error) => return Status::unavailable(error.to_string()).into_http(),
        };
        let trailers = collected.trailers().cloned();
        let answered = collected.to_bytes();
        let changed = match answered.is_empty() {
            true => None,
            false => with_more(&answered, self.bytes().await),
        };
        let body = Full::new(changed.unwrap_or(answered));
        let body = body.with_trailers(async move { trailers.map(Ok) });
        http::Response::from_parts(head, Body::new(body))
    }
}

/// A message on the wire, with so many bytes more in use; `None` for what cannot be read.
fn with_more(framed: &Bytes, more: u64) -> Option<Bytes> {
    let mut rest = framed.clone();
    let is_compressed = rest.try_get_u8().ok()? != 0;
    let length = usize::try_from(rest.try_get_u32().ok()?).ok()?;
    if is_compressed || length != rest.len() {
        return None;
    }
    let message = in_use(&rest, more)?;
    let mut framed = Vec::with_capacity(message.len() + 5);
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).ok()?);
    framed.extend(message);
    Some(framed.into())
}

/// `ImageFsInfoResponse` with so many bytes more in use in the first file system.
fn in_use(message: &Bytes, more: u64) -> Option<Vec<u8>> {
    let mut rest = message.clone();
    while rest.has_remaining() {
        let start = message.len() - rest.len();
        let (field, wire_type) = decode_key(&mut rest).ok()?;
        if (field, wire_type) != (IMAGE_FILE_SYSTEMS, WireType::LengthDelimited) {
            skip_field(wire_type, field, &mut rest, DecodeContext::default()).ok()?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut rest).ok()?).ok()?;
        if length > rest.len() {
            return None;
        }
        let usage = rest.split_to(length);
        let used = FilesystemUsage::decode(usage.clone()).ok()?.used_bytes;
        // Of a field that stands there twice the second counts.
        let addition = FilesystemUsage {
            used_bytes: Some(used.unwrap_or_default().saturating_add(more)),
            ..FilesystemUsage::default()
        };
        let usage = [&usage[..], &addition.encode_to_vec()].concat();
        let mut changed = message[..start].to_vec();
        encode_key(IMAGE_FILE_SYSTEMS, WireType::LengthDelimited, &mut changed);
        encode_varint(usage.len() as u64, &mut changed);
        changed.extend(usage);
        changed.extend(rest);
        return Some(changed);
    }
    None
}

#[cfg(test)]
mod tests {
    use cri_api::v1::{FilesystemIdentifier, ImageFsInfoResponse};

    use super::*;

    fn usage(mountpoint: &str, used: Option<u64>) -> FilesystemUsage {
        FilesystemUsage {
            fs_id: Some(FilesystemIdentifier {
                mountpoint: mountpoint.to_owned(),
            }),
            used_bytes: used,
        }
    }

    fn encoded(usages: &[FilesystemUsage]) -> Vec<u8> {
        let response = ImageFsInfoResponse {
            image_filesystems: usages.to_vec(),
        };
        response.encode_to_vec()
    }

    #[test]
    fn only_the_first_file_system_has_more_in_use() {
        let message = encoded(&[usage("/a", Some(7)), usage("/b", Some(1))]);
        let changed = in_use(&message.into(), 1000).unwrap();
        let expected = [usage("/a", Some(1007)), usage("/b", Some(1))];
        let decoded = ImageFsInfoResponse::decode(&*changed).unwrap();
        assert_eq!(decoded.image_filesystems, expected);

        let message = encoded(&[usage("/a", None)]);
        let changed = in_use(&message.into(), 5).unwrap();
        let decoded = ImageFsInfoResponse::decode(&*changed).unwrap();
        assert_eq!(decoded.image_filesystems, [usage("/a", Some(5))]);
    }

    #[test]
    fn what_is_not_known_stays() {
        // A later field before and behind, and one within the file system.
        let unknown = [0x7a, 3, b'x', b'y', b'z'];
        let first = [&usage("/a", Some(7)).encode_to_vec()[..], &unknown].concat();
        let mut message = unknown.to_vec();
        message.extend([0x0a, u8::try_from(first.len()).unwrap()]);
        message.extend(&first);
        message.extend(unknown);
        let changed = in_use(&message.into(), 1).unwrap();
        let found = changed
            .windows(unknown.len())
            .filter(|part| *part == unknown);
        assert_eq!(found.count(), 3, "{changed:?}");
        let decoded = ImageFsInfoResponse::decode(&*changed).unwrap();
        assert_eq!(decoded.image_filesystems, [usage("/a", Some(8))]);
    }

    #[test]
    fn what_cannot_be_read_is_left_alone() {
        for message in [&[][..], &[0x0a, 9, 1], &[0xff; 20], &[0x12, 1, 0]] {
            assert_eq!(in_use(&message.to_vec().into(), 1), None, "{message:?}");
        }
        let message = encoded(&[usage("/a", Some(7))]);
        let length = u32::try_from(message.len()).unwrap().to_be_bytes();
        let framed = |flag: u8| Bytes::from([&[flag], &length[..], &message].concat());
        assert!(with_more(&framed(0), 1).is_some());
        assert_eq!(with_more(&framed(1), 1), None);
        assert_eq!(with_more(&framed(0).slice(..8), 1), None);
        assert_eq!(with_more(&Bytes::new(), 1), None);
    }
}
