//! Compression of layers: told apart by their first bytes, read with bounded memory, written on all cores.

mod compress;
mod decompress;
mod gzip;

#[cfg(test)]
mod tests;

pub use compress::{Compressed, Compressor};
pub use decompress::{Digested, decompress, detect_start};

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// Not at all.
    Uncompressed,
    /// RFC 1952.
    Gzip,
    /// RFC 8878.
    Zstd,
    /// Only read.
    Bzip2,
    /// Only read.
    Xz,
}

impl Compression {
    /// Tells the compression by the first bytes; 512 are enough for all.
    ///
    /// A tar whose first name happens to begin like an archive is told by its own mark.
    #[must_use]
    pub fn detect(head: &[u8]) -> Self {
        if head.get(257..262) == Some(b"ustar") {
            return Self::Uncompressed;
        }
        match head {
            [0x1f, 0x8b, 8, ..] => Self::Gzip,
            [b'B', b'Z', b'h', b'1'..=b'9', ..] => Self::Bzip2,
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Self::Xz,
            // A frame, or a skippable frame before one.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Self::Zstd,
            _ => Self::Uncompressed,
        }
    }

    /// Returns the name that the exporters' `compression` attribute has for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Uncompressed => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
        }
    }
}

/// How many threads compress: one a core.
fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, std::num::NonZero::get)
}
