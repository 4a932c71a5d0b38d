//! The layer that an image adds for its store paths.
//!
//! The layer carries no file of the Nix store unless it is asked to copy some. For each store path
//! that its annotations name it has an empty place of the same kind, and for `copyToRoot` it has
//! symbolic links from `/` into the store. All that decides about a layer's bytes is in a
//! [`LayerTree`] and in the files that it says to copy: times, owners, order and the umask of the
//! machine do not.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use nix_store::LayerClosure;

use crate::{
    Compression, Descriptor, Digest, Error, LayerTree, annotations, compression::Encoder,
    digest::Hasher, manifest::layer_media_type,
};

/// A layer that has been packed.
#[derive(Clone, Debug)]
pub struct Layer {
    /// Its descriptor, annotated with the closure.
    pub descriptor: Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: Digest,
}

impl Layer {
    /// Packs `tree` as the layer that asks for `closure`, and writes it to `blob`. The files that
    /// it copies are opened by `open`.
    ///
    /// With gzip the headers of a thousand places shrink to a thirtieth, and every containerd and
    /// docker unpacks it.
    ///
    /// # Errors
    /// [`Error::PackLayer`] if a path of the tree does not fit into a tar archive, if a file cannot
    /// be read or has changed, or if the layer cannot be written; [`Error::LabelTooLong`] if an
    /// annotation does not fit into a label.
    pub fn pack<R: Read>(
        tree: &LayerTree,
        closure: &LayerClosure,
        compression: Compression,
        open: impl FnMut(&Path) -> io::Result<R>,
        blob: impl Write,
    ) -> Result<Self, Error> {
        let annotations = annotations::for_layer(closure);
        annotations::check_lengths(&annotations)?;
        let pack = |source| Error::PackLayer { source };
        let encoder = Encoder::new(compression, Hashed::new(blob)).map_err(pack)?;
        let mut plain = Hashed::new(encoder);
        tree.write(&mut plain, open).map_err(pack)?;
        let diff_id = plain.hasher.finish();
        let mut packed = plain.out.finish().map_err(pack)?;
        packed.flush().map_err(pack)?;
        Ok(Self {
            descriptor: Descriptor {
                annotations,
                digest: packed.hasher.finish(),
                media_type: layer_media_type(compression),
                platform: None,
                size: packed.size,
            },
            diff_id,
        })
    }
}

/// Passes on what is written to it, and computes its digest and size.
struct Hashed<W> {
    out: W,
    hasher: Hasher,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            hasher: Hasher::default(),
            size: 0,
        }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.out.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

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
            let (gzip, mut blob) = (Compression::Gzip, Vec::new());
            let layer =
                Layer::pack(&tree, &closure, gzip, |path| File::open(path), &mut blob).unwrap();
            (layer, blob)
        };
        let (layer, blob) = pack(paths.clone());
        let (again, same) = pack(paths.into_iter().rev().collect());
        assert_eq!(blob, same);
        assert_eq!(layer.descriptor, again.descriptor);
        assert_eq!(layer.descriptor.digest, Digest::of(&blob));
        assert_eq!(layer.descriptor.size, blob.len() as u64);
        // Time 0, and no operating system named: nothing of this machine.
        assert_eq!(blob[4..10], [0, 0, 0, 0, 0, 255]);
        // A layer has the same diff ID on every machine and in every version.
        assert_eq!(
            layer.diff_id.to_string(),
            "sha256:2696fadcbbbef9f9574139108d7283b450484af57b7db2c723ec117632c1b8db"
        );
        let mut plain = Vec::new();
        Compression::Gzip
            .decoder(&*blob)
            .unwrap()
            .read_to_end(&mut plain)
            .unwrap();
        assert_eq!(Digest::of(&plain), layer.diff_id);
    }
}
