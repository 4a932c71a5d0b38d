//! The layer that an image adds for its store paths.
//!
//! The layer carries no file of the Nix store. For each store path that its annotations
//! name it has an empty place of the same kind, and for `copyToRoot` it has symbolic links
//! from `/` into the store. All that
//! decides about a layer's bytes is in a [`LayerTree`]: times, owners, order and
//! the umask of the machine do not.

use std::io::{self, Write};

use flate2::{GzBuilder, write::GzEncoder};
use nix_store::LayerClosure;

use crate::{
    Compression, Descriptor, Digest, Error, LayerTree, annotations, digest::Hasher,
    manifest::layer_media_type,
};

/// A layer that is ready to be put into an image.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its descriptor, annotated with the closure.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
    /// The compressed layer.
    pub blob: Vec<u8>,
}

impl Layer {
    /// Packs `tree` as the layer that asks for `closure`.
    ///
    /// Gzip at its default level: the headers of a thousand places shrink to a
    /// thirtieth, and every containerd and docker unpacks it.
    ///
    /// # Errors
    /// [`Error::PackLayer`] if a path of the tree does not fit into a tar archive,
    /// [`Error::LabelTooLong`] if an annotation does not fit into a label.
    pub fn pack(tree: &LayerTree, closure: &LayerClosure) -> Result<Self, Error> {
        let annotations = annotations::for_layer(closure);
        annotations::check_lengths(&annotations)?;
        // flate2 writes the time 0 and `unknown` for the operating system.
        let gzip = GzBuilder::new().write(Vec::new(), flate2::Compression::default());
        let mut tee = Tee {
            gzip,
            hasher: Hasher::default(),
        };
        let pack = |source| Error::PackLayer { source };
        tree.write(&mut tee).map_err(pack)?;
        let blob = tee.gzip.finish().map_err(pack)?;
        let descriptor = Descriptor {
            annotations,
            ..Descriptor::of(layer_media_type(Compression::Gzip), &blob)
        };
        Ok(Self {
            descriptor,
            diff_id: tee.hasher.finish(),
            blob,
        })
    }
}

/// Compresses what is written to it, and computes its digest.
struct Tee {
    gzip: GzEncoder<Vec<u8>>,
    hasher: Hasher,
}

impl Write for Tee {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.gzip.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        // A flush in the middle would end a block of the compressed stream.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix_store::StoreDir;

    use super::*;
    use crate::NodeKind;

    #[test]
    fn equal_closures_give_equal_layers() {
        let store_dir = StoreDir::default();
        let paths: Vec<_> = (0..50)
            .map(|n| format!("{store_dir}/8kvxqpfz1mvwb4f4y0sq5ig3qx3pnqxr-pkg-{n}"))
            .map(|path| store_dir.parse(&path).unwrap())
            .collect();
        let pack = |paths: Vec<nix_store::StorePath>| {
            let mut tree = LayerTree::new(&store_dir).unwrap();
            for path in &paths {
                tree.add_place(path, NodeKind::Directory).unwrap();
            }
            let closure = LayerClosure {
                closure_info: None,
                paths: paths.into_iter().collect(),
            };
            Layer::pack(&tree, &closure).unwrap()
        };
        let layer = pack(paths.clone());
        let again = pack(paths.into_iter().rev().collect());
        assert_eq!(layer.blob, again.blob);
        assert_eq!(layer.descriptor, again.descriptor);
        // Time 0, and no operating system named: nothing of this machine.
        assert_eq!(layer.blob[4..10], [0, 0, 0, 0, 0, 255]);
        // A layer has the same diff ID on every machine and in every version.
        assert_eq!(
            layer.diff_id.to_string(),
            "sha256:2696fadcbbbef9f9574139108d7283b450484af57b7db2c723ec117632c1b8db"
        );
        let mut plain = Vec::new();
        Compression::Gzip
            .decoder(&*layer.blob)
            .unwrap()
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(Digest::of(&plain), layer.diff_id);
    }
}
