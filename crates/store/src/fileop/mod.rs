//! File operations on a layer that is being made: copy, mkdir, mkfile, rm, symlink, unpack.
//!
//! Paths are resolved in the union of the layer and its parents, which is never left: the source's links stay in the source,
//! the destination's in the destination.

use crate::snapshot::LayerDraft;
use crate::tree::Source;
use crate::{Observer, StoreError};

/// A file operation that failed; the paths are those within the trees.
#[derive(Debug, thiserror::Error)]
pub enum FileOpError {
    /// A path isn't there.
    #[error("{path}: not found")]
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

/// Copies from a tree into a layer.
///
/// # Errors
/// See [`FileOpError`].
pub fn copy(
    draft: &LayerDraft,
    source: Source<'_>,
    copy: &Copy,
    observer: &dyn Observer,
) -> Result<Stats, FileOpError> {
    let _ = (draft, source, copy, observer);
    Err(FileOpError::Invalid("copying is not there yet".into()))
}

/// Makes a directory. One that is there is fine, and left as it is.
///
/// # Errors
/// See [`FileOpError`].
pub fn mkdir(draft: &LayerDraft, mkdir: &Mkdir) -> Result<(), FileOpError> {
    let _ = (draft, mkdir);
    Err(FileOpError::Invalid("mkdir is not there yet".into()))
}

/// Makes or overwrites a file.
///
/// # Errors
/// See [`FileOpError`].
pub fn mkfile(draft: &LayerDraft, mkfile: &Mkfile) -> Result<(), FileOpError> {
    let _ = (draft, mkfile);
    Err(FileOpError::Invalid("mkfile is not there yet".into()))
}

/// Makes a symbolic link.
///
/// # Errors
/// See [`FileOpError`].
pub fn symlink(draft: &LayerDraft, symlink: &Symlink) -> Result<(), FileOpError> {
    let _ = (draft, symlink);
    Err(FileOpError::Invalid("symlink is not there yet".into()))
}

/// Removes a file or a whole directory.
///
/// # Errors
/// See [`FileOpError`].
pub fn rm(draft: &LayerDraft, rm: &Rm) -> Result<(), FileOpError> {
    let _ = (draft, rm);
    Err(FileOpError::Invalid("rm is not there yet".into()))
}

/// A user or group, by number or by name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Id {
    /// By number.
    Number(u32),
    /// By name, looked up in `/etc/passwd` or `/etc/group` of a tree.
    Name(String),
}

/// Looks up a user in a tree's `/etc/passwd`: its number and its group.
///
/// # Errors
/// It isn't there, or the file can't be read within limits.
pub fn lookup_user(tree: &crate::Tree, name: &str) -> Result<Owner, FileOpError> {
    let _ = (tree, name);
    Err(FileOpError::Invalid("look-up is not there yet".into()))
}

/// Looks up a group in a tree's `/etc/group`.
///
/// # Errors
/// It isn't there, or the file can't be read within limits.
pub fn lookup_group(tree: &crate::Tree, name: &str) -> Result<u32, FileOpError> {
    let _ = (tree, name);
    Err(FileOpError::Invalid("look-up is not there yet".into()))
}
