//! The bytes of store paths in what kubelet hears of images and of their file system.
//!
//! containerd counts snapshots and blobs, in which store paths have no bytes. Kubelet's image garbage
//! collection (`pkg/kubelet/images/image_gc_manager.go`, 1.34) begins when the file system of images
//! is full, whatever fills it, and ends when the `size`s of the images that it has removed come to
//! what is wanted: with containerd's own it removes all, and says that it has failed.
//!
//! Nix is asked in the background. Kubelet hears at once what is known, since by `ImageFsInfo` it
//! finds out whether anybody answers here.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    convert::Infallible,
    ops::ControlFlow,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use bytes::Bytes;
use cri_api::v1::{FilesystemUsage, Image};
use nix_store::{Closure, StoreDir, StorePath};
use prost::Message;
use snapshots::Snapshotter;
use tokio::sync::Notify;

use super::{
    IMAGES, KUBERNETES, archive_of, failures::Failures, forward::Containerd, rewrite::append,
};
use crate::{
    error::Error,
    nix_snapshotter::{GC_ROOTS, NixSnapshotter},
};

/// How long what was found out is taken for true. Kubelet asks every ten seconds.
const FRESH: Duration = Duration::from_secs(30);

/// `image_filesystems` of `ImageFsInfoResponse`.
const FILE_SYSTEMS: u32 = 1;

/// `images` of `ListImagesResponse` and `StreamImagesResponse`, and `image` of `ImageStatusResponse`.
const IMAGES_FIELD: u32 = 1;

/// Sums up the store paths that are held for images and containers.
pub(super) struct StoreUsage {
    snapshotter: NixSnapshotter,
    containerd: Containerd,
    /// The name by which containerd knows this daemon.
    plugin: String,
    /// What has the directories of roots, of layers and of archives.
    layers: PathBuf,
    archives: PathBuf,
    known: Mutex<Known>,
    wanted: Notify,
}

/// What was found out last, in bytes of NAR sizes.
#[derive(Default)]
struct Known {
    /// When it was begun to find it out.
    since: Option<Instant>,
    /// All store paths that are held, each once.
    held: u64,
    /// Archives that are held.
    archives: HashMap<StorePath, u64>,
    /// The closures of images, by the identifiers of these.
    closures: HashMap<String, u64>,
}

/// A committed snapshot.
struct Layer {
    name: String,
    parent: String,
    /// What its own roots are in.
    dir: String,
}

impl StoreUsage {
    pub(super) fn new(
        root: &Path,
        snapshotter: NixSnapshotter,
        containerd: Containerd,
        plugin: &str,
    ) -> Self {
        Self {
            snapshotter,
            containerd,
            plugin: plugin.to_owned(),
            layers: root.join(GC_ROOTS),
            archives: root.join(IMAGES),
            known: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// Finds it out at first, and whenever somebody asks for it and it is old; for ever.
    pub(super) async fn run(&self) -> Infallible {
        // A store path never changes its size.
        let mut sizes = HashMap::new();
        let mut failures = Failures::default();
        loop {
            self.know(|known| known.since = Some(Instant::now()));
            match self.measure(&mut sizes).await {
                Ok(()) => failures.end(),
                Err(error) => failures.tell("kubelet hears old sizes of store paths", &error),
            }
            self.wanted.notified().await;
        }
    }

    async fn measure(&self, sizes: &mut HashMap<StorePath, u64>) -> Result<(), Error> {
        let layers = self.snapshotter.held_paths(self.layers.clone()).await?;
        let archives = self.snapshotter.held_paths(self.archives.clone()).await?;
        let held: BTreeSet<_> = [&layers, &archives]
            .into_iter()
            .flat_map(BTreeMap::values)
            .flat_map(Closure::paths)
            .collect();
        sizes.retain(|path, _| held.contains(path));
        let is_new = |path: &&&StorePath| !sizes.contains_key(**path);
        let new: Vec<_> = held.iter().filter(is_new).copied().cloned().collect();
        sizes.extend(self.snapshotter.nar_sizes(&new).await?);
        let of_archives = archives.values().flat_map(Closure::paths);
        let archives = of_archives
            .filter_map(|path| Some((path.clone(), *sizes.get(path)?)))
            .collect();
        let held = total(held, sizes);
        self.know(|known| (known.held, known.archives) = (held, archives));

        // containerd may not be there yet, and the disk is as full.
        let containerd = image_loader::Containerd::over(self.containerd.channel(), KUBERNETES)?;
        let images = containerd.unpacked_images(&self.plugin).await?;
        let snapshots = self.committed().await?;
        let closures = closures(&images, &snapshots, &layers, sizes);
        self.know(|known| known.closures = closures);
        Ok(())
    }

    /// The committed snapshots of Kubernetes, by the chain IDs under which containerd knows them.
    async fn committed(&self) -> Result<HashMap<String, Layer>, Error> {
        let list = |snapshots: &Arc<Snapshotter>| {
            let mut found = HashMap::new();
            snapshots.list(&["kind==committed"], |id, info| {
                if let Some(chain_id) = chain_id(&info.name) {
                    let layer = Layer {
                        parent: info.parent,
                        dir: id.to_string(),
                        name: info.name.clone(),
                    };
                    found.insert(chain_id.to_owned(), layer);
                }
                ControlFlow::Continue(())
            })?;
            Ok(found)
        };
        self.snapshotter.blocking(list).await
    }

    /// What is known, for an answer: if that is old, it is found out anew for the next one.
    fn asked(&self) -> MutexGuard<'_, Known> {
        let known = self.known();
        if known.since.is_none_or(|since| since.elapsed() > FRESH) {
            self.wanted.notify_one();
        }
        known
    }

    fn know(&self, change: impl FnOnce(&mut Known)) {
        change(&mut self.known());
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `ImageFsInfoResponse` with the held store paths in use, too. Kubelet looks at the first file
    /// system alone.
    pub(super) fn in_use(&self, message: &Bytes) -> Option<Vec<u8>> {
        in_use(message, self.asked().held)
    }

    /// The answer to ListImages, StreamImages or ImageStatus, with closures and archives in the
    /// sizes of images.
    pub(super) fn in_sizes(&self, message: &Bytes) -> Option<Vec<u8>> {
        let (known, store_dir) = (self.asked(), self.snapshotter.store_dir());
        in_sizes(message, |image| known.of(image, store_dir))
    }
}

impl Known {
    /// What is held in the store for an image. What several images have is counted for each of them,
    /// as containerd counts layers.
    fn of(&self, image: &Image, store_dir: &StoreDir) -> u64 {
        let names = image.repo_tags.iter().chain(&image.repo_digests);
        let archives: BTreeSet<_> = names
            .filter_map(|name| archive_of(name, store_dir))
            .collect();
        let archives = archives.iter().filter_map(|path| self.archives.get(path));
        let closure = self.closures.get(&image.id);
        archives
            .chain(closure)
            .fold(0, |sum, size| sum.saturating_add(*size))
    }
}

/// The chain ID that is in the name of a committed snapshot: `<namespace>/<n>/<chain ID>`.
fn chain_id(name: &str) -> Option<&str> {
    let mut parts = name.splitn(3, '/');
    let is_kubernetes = parts.next() == Some(KUBERNETES);
    parts.nth(1).filter(|_| is_kubernetes)
}

/// The bytes of the closures of images, each given with the chain ID of its topmost layer.
fn closures(
    images: &[(String, String)],
    snapshots: &HashMap<String, Layer>,
    held: &BTreeMap<String, Closure>,
    sizes: &HashMap<StorePath, u64>,
) -> HashMap<String, u64> {
    let by_name: HashMap<_, _> = snapshots
        .values()
        .map(|layer| (&*layer.name, layer))
        .collect();
    let of_image = |chain_id: &String| {
        let topmost = snapshots.get(chain_id);
        let layers = std::iter::successors(topmost, |layer| by_name.get(&*layer.parent).copied());
        let paths = layers.filter_map(|layer| held.get(&layer.dir));
        total(paths.flat_map(Closure::paths).collect(), sizes)
    };
    let of_image = |(id, chain_id): &(String, String)| (id.clone(), of_image(chain_id));
    images.iter().map(of_image).collect()
}

fn total(paths: BTreeSet<&StorePath>, sizes: &HashMap<StorePath, u64>) -> u64 {
    let sizes = paths.into_iter().filter_map(|path| sizes.get(path));
    sizes.fold(0, |sum, size| sum.saturating_add(*size))
}

fn in_use(message: &Bytes, held: u64) -> Option<Vec<u8>> {
    let mut is_first = true;
    append(message, FILE_SYSTEMS, |usage| {
        if !std::mem::take(&mut is_first) {
            return None;
        }
        let used = FilesystemUsage::decode(usage.clone()).ok()?.used_bytes;
        let usage = FilesystemUsage {
            used_bytes: Some(used.unwrap_or_default().saturating_add(held)),
            ..FilesystemUsage::default()
        };
        Some(usage.encode_to_vec())
    })
}

fn in_sizes(message: &Bytes, held: impl Fn(&Image) -> u64) -> Option<Vec<u8>> {
    append(message, IMAGES_FIELD, |image| {
        let image = Image::decode(image.clone()).ok()?;
        let size = Image {
            size: image.size.saturating_add(held(&image)),
            ..Image::default()
        };
        Some(size.encode_to_vec())
    })
}

#[cfg(test)]
mod tests {
    use cri_api::v1::{
        FilesystemIdentifier, ImageFsInfoResponse, ImageStatusResponse, ListImagesResponse,
    };

    use super::*;

    fn path(name: &str) -> StorePath {
        let path = format!("/nix/store/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-{name}");
        StoreDir::default().parse(&path).unwrap()
    }

    fn usage(mountpoint: &str, used: Option<u64>) -> FilesystemUsage {
        FilesystemUsage {
            fs_id: Some(FilesystemIdentifier {
                mountpoint: mountpoint.to_owned(),
            }),
            used_bytes: used,
        }
    }

    #[test]
    fn only_the_first_file_system_has_more_in_use() {
        for (first, expected) in [(Some(7), 1007), (None, 1000)] {
            let response = ImageFsInfoResponse {
                image_filesystems: vec![usage("/a", first), usage("/b", Some(1))],
            };
            let changed = in_use(&response.encode_to_vec().into(), 1000).unwrap();
            let decoded = ImageFsInfoResponse::decode(&*changed).unwrap();
            let expected = [usage("/a", Some(expected)), usage("/b", Some(1))];
            assert_eq!(decoded.image_filesystems, expected);
        }
    }

    #[test]
    fn each_image_has_its_own_closure_and_archive_in_its_size() {
        let image = |id: &str, tags: &[&str], size| Image {
            id: id.to_owned(),
            repo_tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            size,
            pinned: true,
            ..Image::default()
        };
        let (archive, other) = (path("a.tar"), path("b.tar"));
        let known = Known {
            archives: [(archive.clone(), 10), (other, 20)].into(),
            closures: [("sha256:a".to_owned(), 100), ("sha256:b".to_owned(), 200)].into(),
            ..Known::default()
        };
        // One archive by two names.
        let names = [
            format!("nix:0{archive}:latest"),
            format!("nix:0{archive}:v1"),
        ];
        let names = names.each_ref().map(|name| &**name);
        let sizes = |sizes: [u64; 3]| {
            [
                image("sha256:a", &names, sizes[0]),
                image("sha256:b", &["docker.io/library/b:latest"], sizes[1]),
                image("sha256:c", &["docker.io/library/c:latest"], sizes[2]),
            ]
        };
        let of = |image: &Image| known.of(image, &StoreDir::default());
        let listed = ListImagesResponse {
            images: sizes([1, 2, 3]).into(),
        };
        let changed = in_sizes(&listed.encode_to_vec().into(), of).unwrap();
        let changed = ListImagesResponse::decode(&*changed).unwrap();
        assert_eq!(changed.images, sizes([111, 202, 3]));

        let [first, ..] = sizes([1, 2, 3]);
        let status = ImageStatusResponse { image: Some(first) };
        let changed = in_sizes(&status.encode_to_vec().into(), of).unwrap();
        let changed = ImageStatusResponse::decode(&*changed).unwrap();
        assert_eq!(changed.image.unwrap().size, 111);
    }

    #[test]
    fn a_closure_is_that_of_all_layers_with_each_path_once() {
        let layer = |name: &str, parent: &str, dir: &str| Layer {
            name: name.to_owned(),
            parent: parent.to_owned(),
            dir: dir.to_owned(),
        };
        let snapshots = [
            layer("k8s.io/1/sha256:base", "", "1"),
            layer("k8s.io/2/sha256:top", "k8s.io/1/sha256:base", "2"),
            layer("k8s.io/3/sha256:plain", "", "3"),
        ];
        let snapshots = snapshots
            .map(|layer| (chain_id(&layer.name).unwrap().to_owned(), layer))
            .into();
        let (a, b, unknown) = (path("a"), path("b"), path("unknown"));
        let held = [
            ("1".to_owned(), [a.clone()].into_iter().collect()),
            (
                "2".to_owned(),
                [a.clone(), b.clone(), unknown].into_iter().collect(),
            ),
        ]
        .into();
        let sizes = [(a, 10), (b, 100)].into();
        let images = [
            ("i", "top"),
            ("j", "base"),
            ("k", "plain"),
            ("l", "elsewhere"),
        ]
        .map(|(id, chain_id)| (id.to_owned(), format!("sha256:{chain_id}")));
        let found = closures(&images, &snapshots, &held, &sizes);
        let expected = [("i", 110), ("j", 10), ("k", 0), ("l", 0)];
        assert_eq!(
            found,
            expected.map(|(id, size)| (id.to_owned(), size)).into()
        );
    }

    #[test]
    fn only_snapshots_of_kubernetes_are_looked_at() {
        for (name, expected) in [
            ("k8s.io/12/sha256:a", Some("sha256:a")),
            ("k8s.io/12/a/b", Some("a/b")),
            ("default/12/sha256:a", None),
            ("sha256:a", None),
            ("k8s.io", None),
        ] {
            assert_eq!(chain_id(name), expected, "{name}");
        }
    }
}
