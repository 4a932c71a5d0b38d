//! What this machine's store has of the store paths of an image.

use std::collections::{BTreeSet, HashMap};

use nix_store::{Closure, LayerClosure, Realiser, RealiserOptions, StoreDir, StorePath};
use tokio_util::sync::CancellationToken;

use super::{ClosureFacts, ImageFacts, StorePathFacts};
use crate::output::printable;

/// The store paths of a layer.
pub(super) struct Resolved {
    /// What is mounted, as far as it is known.
    pub(super) paths: Closure,
    closure_info: Option<StorePath>,
    is_complete: bool,
}

/// Finds out what a layer asks for: a closure-info that is in the store is read.
pub(super) fn resolve(store_dir: &StoreDir, named: &LayerClosure) -> Resolved {
    let mut paths: Vec<_> = named.paths.paths().to_vec();
    let mut is_complete = true;
    if let Some(closure_info) = &named.closure_info {
        match Closure::read_closure_info(store_dir, closure_info) {
            Ok(listed) => paths.extend(listed),
            Err(error) => {
                is_complete = false;
                if exists(closure_info) {
                    tracing::warn!("{}", printable(&error.to_string()));
                }
            }
        }
    }
    Resolved {
        paths: paths.into_iter().collect(),
        closure_info: named.closure_info.clone(),
        is_complete,
    }
}

/// The store paths of all layers of an image together. However many layers name a path, it is
/// kept once.
#[derive(Default)]
pub(super) struct Gathered {
    paths: BTreeSet<StorePath>,
    is_incomplete: bool,
}

impl Gathered {
    /// Adds those of a layer.
    pub(super) fn add(&mut self, layer: Resolved) {
        self.is_incomplete |= !layer.is_complete;
        self.paths.extend(layer.paths);
        self.paths.extend(layer.closure_info);
    }
}

/// What is known of store paths, but for their sizes.
pub(super) fn closure(gathered: &Gathered) -> ClosureFacts {
    let store_paths: Vec<_> = gathered
        .paths
        .iter()
        .map(|path| StorePathFacts {
            path: path.to_string(),
            name: path.name().to_owned(),
            nar_size: None,
            present: exists(path),
        })
        .collect();
    let missing = store_paths.iter().filter(|path| !path.present);
    ClosureFacts {
        is_complete: !gathered.is_incomplete,
        nar_size: None,
        missing: missing.map(|path| path.path.clone()).collect(),
        store_paths,
    }
}

/// Asks Nix for the sizes of all store paths that are on this machine, at once. Where it does not
/// tell, a warning says so, and there are none; of a path that it does not know there is none.
pub(crate) async fn measure(store_dir: &StoreDir, images: &mut [ImageFacts]) {
    let all = || images.iter().flat_map(|image| &image.closure.store_paths);
    let present: Closure = all()
        .filter(|path| path.present)
        .filter_map(|path| store_dir.parse(&path.path).ok())
        .collect();
    if present.paths().is_empty() {
        return;
    }
    let realiser = Realiser::new(RealiserOptions {
        store_dir: store_dir.clone(),
        external_builder: None,
        timeout: None,
    });
    let sizes = match sizes(&realiser, &present).await {
        Ok(sizes) => sizes,
        Err(error) => {
            let reason = printable(&error.to_string().replace('\n', " "));
            tracing::warn!("the sizes of the store paths are not known: {reason}");
            return;
        }
    };
    for image in images {
        let closure = &mut image.closure;
        for path in &mut closure.store_paths {
            path.nar_size = sizes.get(&path.path).copied();
        }
        closure.nar_size = total(&closure.store_paths);
    }
}

async fn sizes(
    realiser: &Realiser,
    present: &Closure,
) -> Result<HashMap<String, u64>, nix_store::Error> {
    let sizes = realiser
        .nar_sizes(present.paths(), &CancellationToken::new())
        .await?;
    let mut unknown = present
        .paths()
        .iter()
        .filter(|path| !sizes.contains_key(path));
    if let Some(first) = unknown.next() {
        let more = match unknown.count() {
            0 => String::new(),
            more => format!(" (and {more} more)"),
        };
        tracing::warn!(
            "Nix does not know {first}{more}, though it is in the store: it has no size, and is fetched again when it is needed"
        );
    }
    let sizes = sizes.into_iter();
    Ok(sizes.map(|(path, size)| (path.to_string(), size)).collect())
}

/// The sum of the sizes that are known; nothing if none is.
pub(crate) fn total<'a>(paths: impl IntoIterator<Item = &'a StorePathFacts>) -> Option<u64> {
    paths
        .into_iter()
        .filter_map(|path| path.nar_size)
        .reduce(u64::saturating_add)
}

/// A store object that is a symbolic link exists whether or not its target does.
fn exists(path: &StorePath) -> bool {
    path.as_path().symlink_metadata().is_ok()
}
