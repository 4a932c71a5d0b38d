//! Opens an archive of images, compressed or not, or a directory with an image layout.

use std::{
    env,
    fs::File,
    io::{self, BufReader, Read, Seek, SeekFrom},
    path::Path,
};

use nix_image::{Compression, archive::Archive};

use crate::{
    Error,
    directory::{self, ClosedFile},
};

/// An archive, or a directory, of images.
pub type ImageArchive = Archive<ImageFile>;

/// What stands for standard input where an archive is named.
pub const STDIN: &str = "-";

/// Opens the archive at `path`, or the one on standard input if that is `-`.
///
/// # Errors
/// Those of [`open`].
pub fn open_or_stdin(path: &Path) -> Result<ImageArchive, Error> {
    match path.as_os_str() == STDIN {
        true => from_stream(io::stdin().lock()),
        false => open(path),
    }
}

/// Reads an archive from a stream into an unnamed temporary file, and decompresses it meanwhile.
fn from_stream(mut stream: impl Read) -> Result<ImageArchive, Error> {
    const NAME: &str = "standard input";
    let mut beginning = Vec::new();
    stream
        .by_ref()
        .take(Compression::MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)
        .map_err(Error::read(NAME.to_owned()))?;
    let compression = Compression::detect(&beginning);
    let file = decompressed(beginning.chain(stream), compression)
        .map_err(|error| not_decompressed(NAME, error))?;
    let file = ImageFile::archive(file);
    Ok(Archive::open(NAME, file)?)
}

/// Opens the archive or directory at `path`. An archive that is compressed as a whole is
/// decompressed into an unnamed temporary file, of which nothing is left at the end.
///
/// # Errors
/// It cannot be read or decompressed, or has not the form of an archive of images.
pub fn open(path: &Path) -> Result<ImageArchive, Error> {
    let name = path.display();
    let mut file = File::open(path).map_err(Error::read(name.to_string()))?;
    let kind = file.metadata().map_err(Error::read(name.to_string()))?;
    if kind.is_dir() {
        let files = directory::files_of(path)?.into_iter();
        let files =
            files.map(|(name, size, file)| (name, size, ImageFile(Source::Directory(file))));
        return Ok(Archive::open_directory(name.to_string(), files)?);
    }
    let compression = compression(&mut file).map_err(Error::read(name.to_string()))?;
    if compression != Compression::None {
        file = decompressed(file, compression)
            .map_err(|error| not_decompressed(&name.to_string(), error))?;
    }
    let file = ImageFile::archive(file);
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
fn not_decompressed(name: &str, source: io::Error) -> Error {
    let name = name.to_owned();
    match source.kind() {
        io::ErrorKind::UnexpectedEof
        | io::ErrorKind::InvalidData
        | io::ErrorKind::InvalidInput
        | io::ErrorKind::Other => Error::Packed { name, source },
        _ => Error::TemporaryFile {
            name,
            directory: env::temp_dir(),
            source,
        },
    }
}

/// What images are read from.
#[derive(Debug)]
pub struct ImageFile(Source);

#[derive(Debug)]
enum Source {
    /// The whole archive.
    Archive(BufReader<File>),
    /// One file of a directory.
    Directory(ClosedFile),
}

impl ImageFile {
    fn archive(file: File) -> Self {
        Self(Source::Archive(BufReader::new(file)))
    }
}

impl Read for ImageFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match &mut self.0 {
            Source::Archive(file) => file.read(buffer),
            Source::Directory(file) => file.read(buffer),
        }
    }
}

impl Seek for ImageFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        match &mut self.0 {
            Source::Archive(file) => file.seek(to),
            Source::Directory(file) => file.seek(to),
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
                let message = open(file.path()).unwrap_err().to_string();
                assert!(
                    message.contains("truncated") || message.contains("not a tar"),
                    "{len}: {message}"
                );
                assert!(message.contains(file.path().to_str().unwrap()), "{message}");

                let message = from_stream(&packed[..len]).unwrap_err().to_string();
                assert!(message.contains("standard input"), "{len}: {message}");
            }
        }
    }
}
