//! What goes wrong with the state on disk.

use std::path::PathBuf;

/// Says what failed in the store and where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A file operation of our own state failed.
    #[error("{what} {}: {source}", path.display())]
    Io {
        /// What was being done, as in "create".
        what: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// Somebody else could change the state.
    #[error("the state directory {} {problem}: use another --root, or mend it (it should be yours alone: chmod 700)", path.display())]
    Unsafe {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The database refused.
    #[error("state database: {0}")]
    Database(#[from] rusqlite::Error),
    /// The state was written by a newer version of this program.
    #[error(
        "{} was written by a newer version of this program (its format is {found}, this one knows {known}): \
         use that version, or another --root",
        path.display()
    )]
    Newer {
        /// The database.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// Ours.
        known: i64,
    },
    /// A layer that a snapshot names is not there.
    #[error("layer {0} is gone from the state directory; the step that made it has to run again")]
    LayerGone(i64),
    /// A cache mount is used by something else.
    #[error("cache mount {0:?} is in use by a running step or another command: try again when that has ended")]
    CacheBusy(String),
    /// A blob is not there.
    #[error("blob {0} is not in the store")]
    BlobMissing(bud_image::Digest),
    /// A blob's bytes are not those of its digest.
    #[error("{name}: digest is {actual} but {expected} was expected")]
    DigestMismatch {
        /// What was read, as in "blob" or a layer's name.
        name: String,
        /// Of the bytes.
        actual: bud_image::Digest,
        /// What was promised.
        expected: bud_image::Digest,
    },
    /// A blob has another size than promised.
    #[error("{name}: size is {actual} but {expected} bytes were expected")]
    SizeMismatch {
        /// What was read.
        name: String,
        /// Of the bytes.
        actual: u64,
        /// What was promised.
        expected: u64,
    },
    /// An overlay can't be mounted.
    #[error("overlay: {0}")]
    Overlay(String),
    /// A row of the database can't be understood.
    #[error("state database: damaged {0}")]
    Damaged(&'static str),
    /// A layer can't be put on its parents.
    #[error(transparent)]
    Layer(Box<crate::layer::LayerError>),
    /// The disk would become too full.
    #[error("not enough free space for the state in {}: {free} bytes are free, {wanted} have to stay free", path.display())]
    NoSpace {
        /// The state directory.
        path: PathBuf,
        /// Free bytes.
        free: u64,
        /// The reserve.
        wanted: u64,
    },
    /// The operation was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl StoreError {
    /// Makes a function that puts a name on an I/O error.
    pub(crate) fn io<E: Into<std::io::Error>>(
        what: &'static str,
        path: impl Into<PathBuf>,
    ) -> impl FnOnce(E) -> StoreError {
        let path = path.into();
        move |source| StoreError::Io { what, path, source: source.into() }
    }
}
