//! Compression of layers and of whole archives.

use std::io::{self, BufReader, Read, Write};

use flate2::{GzBuilder, bufread::MultiGzDecoder, write};

use crate::digest::{Digest, Hasher};

/// A compression that layers and archives come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compression {
    /// Not compressed.
    None,
    /// Gzip, in one or more members.
    Gzip,
    /// Zstandard, in one or more frames.
    Zstd,
}

impl Compression {
    /// Bytes that [`Compression::detect`] wants to see.
    pub const MAGIC_BYTES: usize = 4;

    /// Tells the compression of a stream from its beginning.
    #[must_use]
    pub fn detect(beginning: &[u8]) -> Self {
        match beginning {
            [0x1f, 0x8b, ..] => Self::Gzip,
            // A frame, or a skippable frame before it (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::None,
        }
    }

    /// What decompresses `stream`.
    ///
    /// # Errors
    /// If zstd cannot allocate its context.
    pub fn decoder<'a>(self, stream: impl Read + 'a) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match self {
            Self::None => Box::new(stream),
            Self::Gzip => Box::new(MultiGzDecoder::new(BufReader::new(stream))),
            Self::Zstd => Box::new(zstd::Decoder::new(stream)?),
        })
    }
}

/// Compresses what is written to it. Equal input gives equal output, on every machine.
pub(crate) enum Encoder<W: Write> {
    None(W),
    Gzip(write::GzEncoder<W>),
    Zstd(zstd::Encoder<'static, W>),
}

impl<W: Write> Encoder<W> {
    pub(crate) fn new(compression: Compression, out: W) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::None(out),
            Compression::Gzip => {
                // flate2 writes the time 0 and `unknown` for the operating system.
                Self::Gzip(GzBuilder::new().write(out, flate2::Compression::default()))
            }
            Compression::Zstd => {
                Self::Zstd(zstd::Encoder::new(out, zstd::DEFAULT_COMPRESSION_LEVEL)?)
            }
        })
    }

    pub(crate) fn finish(self) -> io::Result<W> {
        match self {
            Self::None(out) => Ok(out),
            Self::Gzip(encoder) => encoder.finish(),
            Self::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl<W: Write> Write for Encoder<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::None(out) => out.write(bytes),
            Self::Gzip(encoder) => encoder.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // A flush in the middle would end a block of the compressed stream.
        Ok(())
    }
}

/// Computes a layer's diff ID, the digest of what it decompresses to, from the
/// layer's bytes as they pass.
pub(crate) enum DiffIdHasher {
    None(Hasher),
    Gzip(write::MultiGzDecoder<Hasher>),
    Zstd(zstd::stream::write::Decoder<'static, Hasher>),
}

impl DiffIdHasher {
    pub(crate) fn new(compression: Compression) -> io::Result<Self> {
        let hasher = Hasher::default();
        Ok(match compression {
            Compression::None => Self::None(hasher),
            Compression::Gzip => Self::Gzip(write::MultiGzDecoder::new(hasher)),
            Compression::Zstd => Self::Zstd(zstd::stream::write::Decoder::new(hasher)?),
        })
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::None(hasher) => hasher.write_all(bytes),
            Self::Gzip(decoder) => decoder.write_all(bytes),
            Self::Zstd(decoder) => decoder.write_all(bytes),
        }
    }

    pub(crate) fn finish(self) -> io::Result<Digest> {
        match self {
            Self::None(hasher) => Ok(hasher.finish()),
            Self::Gzip(decoder) => decoder.finish().map(Hasher::finish),
            Self::Zstd(mut decoder) => {
                decoder.flush()?;
                Ok(decoder.into_inner().finish())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compress(compression: Compression, data: &[u8]) -> Vec<u8> {
        match compression {
            Compression::None => data.to_vec(),
            Compression::Gzip => {
                let mut encoder = write::GzEncoder::new(Vec::new(), flate2::Compression::default());
                encoder.write_all(data).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(data, 0).unwrap(),
        }
    }

    #[test]
    fn every_compression_is_told_and_undone() {
        let data = "layer ".repeat(100_000).into_bytes();
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            // Two members or frames, as pigz and parallel zstd write them.
            let (first, second) = data.split_at(1000);
            let mut packed = compress(compression, first);
            packed.extend(compress(compression, second));
            assert_eq!(Compression::detect(&packed), compression);

            let mut plain = Vec::new();
            compression
                .decoder(&*packed)
                .unwrap()
                .read_to_end(&mut plain)
                .unwrap();
            assert!(plain == data, "{compression:?}");

            let mut hasher = DiffIdHasher::new(compression).unwrap();
            for chunk in packed.chunks(777) {
                hasher.update(chunk).unwrap();
            }
            assert_eq!(
                hasher.finish().unwrap(),
                Digest::of(&data),
                "{compression:?}"
            );
        }
    }

    #[test]
    fn too_short_a_stream_is_not_compressed() {
        for beginning in [&b""[..], b"\x1f", b"\x28\xb5\x2f"] {
            assert_eq!(Compression::detect(beginning), Compression::None);
        }
    }
}
