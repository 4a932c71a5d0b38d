//! Opens an archive of images, compressed or not.

use std::{
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use anyhow::Context;
use nix_image::{Compression, archive::Archive};

/// Opens the archive at `path`. One that is compressed as a whole is decompressed
/// into an unnamed temporary file, of which nothing is left at the end.
pub(crate) fn open(path: &Path) -> anyhow::Result<Archive<BufReader<File>>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let file =
        decompressed(file).with_context(|| format!("cannot decompress {}", path.display()))?;
    Ok(Archive::open(
        path.display().to_string(),
        BufReader::new(file),
    )?)
}

fn decompressed(mut file: File) -> io::Result<File> {
    let mut beginning = Vec::new();
    file.by_ref()
        .take(Compression::MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)?;
    file.rewind()?;
    let compression = Compression::detect(&beginning);
    if compression == Compression::None {
        return Ok(file);
    }
    let mut plain = tempfile::tempfile()?;
    io::copy(&mut compression.decoder(file)?, &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}
