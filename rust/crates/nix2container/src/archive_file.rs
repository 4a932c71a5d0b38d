//! Opens an archive of images, compressed or not.

use std::{
    env,
    fs::File,
    io::{self, BufReader, Read, Seek},
    path::Path,
};

use anyhow::{Context, anyhow};
use nix_image::{Compression, archive::Archive};

/// Opens the archive at `path`. One that is compressed as a whole is decompressed
/// into an unnamed temporary file, of which nothing is left at the end.
pub(crate) fn open(path: &Path) -> anyhow::Result<Archive<BufReader<File>>> {
    let name = path.display();
    let mut file = File::open(path).with_context(|| format!("cannot open {name}"))?;
    let compression = compression(&mut file).with_context(|| format!("cannot read {name}"))?;
    if compression != Compression::None {
        file = decompressed(file, compression).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof
            | io::ErrorKind::InvalidData
            | io::ErrorKind::InvalidInput
            | io::ErrorKind::Other => anyhow!(error).context(format!(
                "{name} is truncated or damaged: make or copy it again"
            )),
            _ => anyhow!(error).context(format!(
                "cannot decompress {name} into a file in {}",
                env::temp_dir().display()
            )),
        })?;
    }
    Ok(Archive::open(name.to_string(), BufReader::new(file))?)
}

fn compression(file: &mut File) -> io::Result<Compression> {
    let mut beginning = Vec::new();
    file.take(Compression::MAGIC_BYTES as u64)
        .read_to_end(&mut beginning)?;
    file.rewind()?;
    Ok(Compression::detect(&beginning))
}

fn decompressed(file: File, compression: Compression) -> io::Result<File> {
    let mut plain = tempfile::tempfile()?;
    io::copy(&mut compression.decoder(file)?, &mut plain)?;
    plain.rewind()?;
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

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
                std::fs::write(&file, &packed[..len]).unwrap();
                let message = format!("{:#}", open(file.path()).unwrap_err());
                assert!(
                    message.contains("truncated") || message.contains("not a tar"),
                    "{len}: {message}"
                );
                assert!(message.contains(file.path().to_str().unwrap()), "{message}");
            }
        }
    }
}
