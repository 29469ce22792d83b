//! Layers as tars: unpacking them, writing them.

mod apply;
mod extract;
mod settle;
#[cfg(test)]
mod tests;
mod write;

pub use apply::apply;
pub(crate) use extract::Extract;
pub(crate) use settle::settle;
pub use write::write_tar;
pub(crate) use write::{CAPABILITY, capability, same_bytes};

use crate::StoreError;
use crate::fileop::FileOpError;
use bud_oci::tar::TarError;

/// Why a layer's tar was refused.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// An entry is malformed or hostile.
    #[error("layer entry {entry}: {reason}")]
    Entry {
        /// Its name.
        entry: String,
        /// What is wrong.
        reason: String,
    },
    /// The tar can't be read.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The tar can't be written.
    #[error("write the layer's tar: {0}")]
    Write(#[source] std::io::Error),
    /// A file can't be made or read.
    #[error("layer: {0}")]
    File(#[from] FileOpError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl LayerError {
    pub(crate) fn entry(name: &[u8], reason: impl Into<String>) -> Self {
        let shown = &name[..name.len().min(200)];
        Self::Entry { entry: shown.escape_ascii().to_string(), reason: reason.into() }
    }
}

/// What unpacking did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Entries.
    pub entries: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// Device nodes that were left out.
    pub skipped_devices: u64,
}

/// How a layer's tar is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// With `rewrite`: no time is later than this (seconds since 1970).
    pub source_date_epoch: Option<i64>,
    /// Clamps times to the epoch.
    pub rewrite_timestamp: bool,
}
