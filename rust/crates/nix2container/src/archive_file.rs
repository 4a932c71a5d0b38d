//! Opens an archive of images, compressed or not, or a directory with an image layout.

use std::{
    env,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use anyhow::{Context, anyhow};
use nix_image::{Compression, archive::Archive};

use crate::directory::{self, ClosedFile};

/// An archive, or a directory, of images.
pub(crate) type ImageArchive = Archive<ImageFile>;

/// What stands for standard input where an archive is named.
pub(crate) const STDIN: &str = "-";

/// Opens the archive at `path`, or the one on standard input if that is `-`.
pub(crate) fn open_or_stdin(path: &Path) -> anyhow::Result<ImageArchive> {
    match path.as_os_str() == STDIN {
        true => from_stream(io::stdin().lock()),
        false => open(path),
    }
}

/// Reads an archive from a stream into an unnamed temporary file, and decompresses it meanwhile.
fn from_stream(mut stream: impl Read) -> anyhow::Result<ImageArchive> {
    const NAME: &str = "standard input";
    let mut beginning = Vec::new();
    stream
        .by_ref()
        .take(Compression::MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)
        .with_context(|| format!("cannot read {NAME}"))?;
    let compression = Compression::detect(&beginning);
    let file = decompressed(beginning.chain(stream), compression)
        .map_err(|error| not_decompressed(NAME, error))?;
    let file = ImageFile::Archive(BufReader::new(file));
    Ok(Archive::open(NAME, file)?)
}

/// Opens the archive or directory at `path`. An archive that is compressed as a whole is
/// decompressed into an unnamed temporary file, of which nothing is left at the end.
pub(crate) fn open(path: &Path) -> anyhow::Result<ImageArchive> {
    let name = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let kind = file
        .metadata()
        .with_context(|| format!("cannot read {name}"))?;
    if kind.is_dir() {
        let files = directory::files_of(path)?.into_iter();
        let files = files.map(|(name, size, file)| (name, size, ImageFile::Directory(file)));
        return Ok(Archive::open_directory(name.to_string(), files)?);
    }
    let compression = compression(&mut file).with_context(|| format!("cannot read {name}"))?;
    if compression != Compression::None {
        file = decompressed(file, compression)
            .map_err(|error| not_decompressed(&name.to_string(), error))?;
    }
    let file = ImageFile::Archive(BufReader::new(file));
    Ok(Archive::open(name.to_string(), file)?)
}

fn compression(file: &mut File) -> io::Result<Compression> {
    let mut beginning = Vec::new();
    file.take(Compression::MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)?;
    file.rewind()?;
    Ok(Compression::detect(&beginning))
}

fn decompressed(packed: impl Read, compression: Compression) -> io::Result<File> {
    let mut plain = tempfile::tempfile()?;
    io::copy(&mut compression.decoder(packed)?, &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

/// Why an archive cannot be decompressed, by what the decoder or the disk says.
fn not_decompressed(name: &str, error: io::Error) -> anyhow::Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Other => anyhow!(error).context(format!(
            "{name} is truncated or damaged: make or copy it again"
        )),
        _ => anyhow!(error).context(format!(
            "cannot write {name} to a file in {}",
            env::temp_dir().display()
        )),
    }
}

/// What images are read from.
#[derive(Debug)]
pub(crate) enum ImageFile {
    /// The whole archive.
    Archive(BufReader<File>),
    /// One file of a directory.
    Directory(ClosedFile),
}

impl Read for ImageFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Archive(file) => file.read(buffer),
            Self::Directory(file) => file.read(buffer),
        }
    }
}

impl Seek for ImageFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match self {
            Self::Archive(file) => file.seek(to),
            Self::Directory(file) => file.seek(to),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Write};

    use super::*;

    #[test]
    fn a_compressed_archive_that_is_cut_is_an_error_wherever_it_is_cut() {
        let plain = vec![0; 3000];
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let zstd = zstd::encode_all(&*plain, 0).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        for packed in [gzip.finish().unwrap(), zstd] {
            for len in 0..packed.len() {
                fs::write(&file, &packed[..len]).unwrap();
                let message = format!("{:#}", open(file.path()).unwrap_err());
                assert!(
                    message.contains("truncated") || message.contains("not a tar"),
                    "{len}: {message}"
                );
                assert!(message.contains(file.path().to_str().unwrap()), "{message}");

                let message = format!("{:#}", from_stream(&packed[..len]).unwrap_err());
                assert!(message.contains("standard input"), "{len}: {message}");
            }
        }
    }
}
