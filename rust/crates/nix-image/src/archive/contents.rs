//! What the layers of an image bring.

use std::{
    collections::BTreeSet,
    io::{self, Read, Seek},
};

use crate::{
    Error,
    archive::{Archive, StoredImage},
};

/// Most bytes that the layers of an image may decompress to while they are looked through: more
/// than any image has, and a bomb has soon.
const MAX_DECOMPRESSED: u64 = 256 << 30;

impl<R: Read + Seek> Archive<R> {
    /// Which of these paths, relative to `/`, a container of the image has. What layers delete is
    /// not there (image-spec, `layer.md`, "Whiteouts").
    ///
    /// It decompresses all layers. Their digests are not checked: whoever uses the image reads
    /// them whole.
    ///
    /// # Errors
    /// A layer that is missing, damaged, no tar archive, or decompresses to more than 256 GiB with
    /// those below it.
    pub fn brings(
        &mut self,
        image: &StoredImage,
        paths: &[&str],
    ) -> Result<BTreeSet<String>, Error> {
        let mut found = BTreeSet::new();
        let mut left = MAX_DECOMPRESSED;
        for layer in &image.manifest.layers {
            let archive = self.name().to_owned();
            let damaged = |source| Error::DecompressLayer {
                archive: archive.clone(),
                digest: layer.digest,
                source,
            };
            let compression = self.layer_compression(layer)?;
            let packed = self.blob(layer)?.unchecked();
            let plain = compression.decoder(packed).map_err(damaged)?;
            let mut plain = plain.take(left);
            look_through(&mut plain, paths, &mut found).map_err(damaged)?;
            left = plain.limit();
            if left == 0 {
                return Err(damaged(io::Error::other(
                    "it decompresses to more than 256 GiB",
                )));
            }
        }
        Ok(found)
    }
}

/// Notes what a layer adds to, and deletes from, the paths that are looked for.
fn look_through(
    layer: &mut impl Read,
    paths: &[&str],
    found: &mut BTreeSet<String>,
) -> io::Result<()> {
    let mut added = BTreeSet::new();
    // Names that are longer than a header are none that is looked for, and are not read: they could
    // fill the memory.
    for entry in tar::Archive::new(layer).entries()?.raw(true) {
        let entry = entry?;
        let name = entry.path_bytes();
        let Ok(name) = std::str::from_utf8(&name) else {
            // None of those that are looked for.
            continue;
        };
        let components = name.split('/').filter(|part| !matches!(*part, "" | "."));
        let path = components.collect::<Vec<_>>().join("/");
        let (above, last) = path.rsplit_once('/').unwrap_or(("", &path));
        let below = |other: &str, path: &str| {
            path.is_empty()
                || other
                    .strip_prefix(path)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        // A whiteout is of the layers below, whatever its place in its own.
        match last.strip_prefix(".wh.") {
            Some(".wh..opq") => found.retain(|other| !below(other, above)),
            Some(name) => {
                let gone = match above {
                    "" => name.to_owned(),
                    above => format!("{above}/{name}"),
                };
                found.retain(|other| *other != gone && !below(other, &gone));
            }
            None => {
                // A path may be there by something that lies in it.
                let is = |wanted: &&&str| **wanted == path || below(&path, wanted);
                added.extend(paths.iter().filter(is).map(|path| (*path).to_owned()));
            }
        }
    }
    found.append(&mut added);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(names: &[&str]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_entry_type(match name.ends_with('/') {
                true => tar::EntryType::Directory,
                false => tar::EntryType::Regular,
            });
            tar.append_data(&mut header, name, io::empty()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    #[test]
    fn layers_bring_and_delete() {
        let wanted = ["etc", "etc/passwd", "tmp", "var", "var/tmp"];
        for (layers, expected) in [
            (
                &[&["./etc/", "etc/passwd"][..]][..],
                &["etc", "etc/passwd"][..],
            ),
            (&[&["etc/passwd"]], &["etc", "etc/passwd"]),
            (&[&["etc/passwd.old", "tmpfile"]], &["etc"]),
            (
                &[&["etc/passwd", "tmp/"], &["etc/.wh.passwd"]],
                &["etc", "tmp"],
            ),
            (&[&["etc/passwd", "tmp/"], &[".wh.etc"]], &["tmp"]),
            (&[&["var/tmp/x"], &["var/", "var/.wh..wh..opq"]], &["var"]),
            (&[&["etc/passwd"], &[".wh..wh..opq", "tmp/"]], &["tmp"]),
            // Added anew in the layer that deletes.
            (
                &[&["etc/passwd"], &["etc/passwd", ".wh.etc"]],
                &["etc", "etc/passwd"],
            ),
        ] {
            let mut found = BTreeSet::new();
            for names in layers {
                look_through(&mut &*layer(names), &wanted, &mut found).unwrap();
            }
            assert!(found.iter().eq(expected), "{layers:?}: {found:?}");
        }
    }
}
