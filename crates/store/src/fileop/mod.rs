//! File operations on a layer that is being made: copy, mkdir, mkfile, rm, symlink, unpack.
//!
//! Paths are resolved in the union of the layer and its parents, which is never left: the source's links stay in the source,
//! the destination's in the destination.

mod account;
mod copy;
mod copytree;
mod diff;
mod mode;
mod simple;
#[cfg(test)]
mod tests;
mod unpack;

pub use account::{lookup_group, lookup_user};
pub(crate) use copy::copy_apart;
pub use copy::{copy, copy_to_directory};
pub use diff::diff;
pub(crate) use simple::{create_file, make_link, set_looks_of_name};
pub use simple::{mkdir, mkfile, rm, symlink};

use crate::StoreError;
use rustix::io::Errno;

/// A file operation that failed; the paths are those within the trees.
#[derive(Debug, thiserror::Error)]
pub enum FileOpError {
    /// A path isn't there.
    #[error("{path:?}: not found")]
    NotFound {
        /// As it was given.
        path: String,
    },
    /// The kernel refused.
    #[error("{what} {path}: {source}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which path.
        path: String,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The operation makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// A pattern can't be understood.
    #[error(transparent)]
    Pattern(#[from] bud_patterns::BadPattern),
    /// A file of the context was changed while it was copied.
    #[error("{path} was changed while it was being copied; build again when it is at rest")]
    Changed {
        /// The file.
        path: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl FileOpError {
    pub(crate) fn io(what: &'static str, path: &[u8], source: Errno) -> Self {
        Self::std(what, path, source.into())
    }

    pub(crate) fn std(what: &'static str, path: &[u8], source: std::io::Error) -> Self {
        Self::Io { what, path: shown(path), source }
    }
}

/// Shows a path of a tree: from its root, cut when it is very long.
pub(crate) fn shown(path: &[u8]) -> String {
    let path = path.strip_prefix(b"/").unwrap_or(path);
    let text = String::from_utf8_lossy(&path[..path.len().min(1000)]);
    format!("/{text}{}", if path.len() > 1000 { "…" } else { "" })
}

/// Owner and group, by number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The mode that copied files get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModeChange {
    /// These bits (0 to 07777).
    Bits(u32),
    /// A change as `chmod` has it, such as `u=rwX,go=rX`.
    Symbolic(String),
}

/// A copy, with the options of BuildKit's `FileActionCopy`.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Copy {
    pub src: String,
    pub dest: String,
    pub follow_symlink: bool,
    pub dir_copy_contents: bool,
    pub create_dest_path: bool,
    pub allow_wildcard: bool,
    pub allow_empty_wildcard: bool,
    /// Extracts a local tar, of any compression.
    pub unpack: bool,
    pub include_patterns: Vec<String>,
    pub exclude_patterns: Vec<String>,
    pub required_paths: Vec<String>,
    pub always_replace_existing_dest_paths: bool,
    pub mode: Option<ModeChange>,
    /// None keeps the source's.
    pub owner: Option<Owner>,
    /// Nanoseconds since 1970; none keeps the source's.
    pub timestamp: Option<i64>,
}

/// Makes a directory.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Mkdir {
    pub path: String,
    pub mode: u32,
    pub make_parents: bool,
    pub owner: Option<Owner>,
    pub timestamp: Option<i64>,
}

/// Makes a file.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Mkfile {
    pub path: String,
    pub mode: u32,
    pub data: Vec<u8>,
    pub owner: Option<Owner>,
    pub timestamp: Option<i64>,
}

/// Makes a symbolic link.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Symlink {
    pub old_path: String,
    pub new_path: String,
    pub owner: Option<Owner>,
    pub timestamp: Option<i64>,
}

/// Removes.
#[derive(Clone, Debug, Default)]
#[allow(missing_docs)]
pub struct Rm {
    pub path: String,
    pub allow_not_found: bool,
    pub allow_wildcard: bool,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Entries made.
    pub files: u64,
    /// Bytes of their contents.
    pub bytes: u64,
}
