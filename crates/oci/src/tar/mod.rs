//! Layer tars: a reader that trusts nothing, and a writer whose bytes are those of Go's `archive/tar`.
//!
//! Source of the format: `pax` in POSIX.1-2017, and the GNU extensions in `tar(5)`. Sparse files are refused by name.

mod header;
mod pax;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub use header::{Header, Kind, Time};
pub use reader::{Entry, Reader};
pub use writer::Writer;

/// Size of the blocks of a tar.
const BLOCK: usize = 512;

/// Most bytes of extended headers (PAX records, GNU long names) before one entry.
pub const MAX_EXTENDED: u64 = 1 << 20;

/// Most bytes of a path or a link target.
pub const MAX_PATH: usize = 65_535;

/// Most bytes between two slashes of a path, as on all of Linux's file systems.
pub const MAX_COMPONENT: usize = 255;

/// Says why a tar was refused.
#[derive(Debug, thiserror::Error)]
pub enum TarError {
    /// The stream below failed.
    #[error("read tar: {0}")]
    Io(#[from] std::io::Error),
    /// The archive ends within an entry.
    #[error("tar is cut off in {place}")]
    Truncated {
        /// Where: a header, or an entry by name.
        place: String,
    },
    /// A header is damaged.
    #[error("tar header {index} is damaged: {reason}")]
    Header {
        /// Which header block, from 0.
        index: u64,
        /// What is wrong.
        reason: String,
    },
    /// An entry asks for what is not done here.
    #[error("tar entry {name:?}: {reason}")]
    Entry {
        /// Its path, printable.
        name: String,
        /// What is wrong.
        reason: String,
    },
}
