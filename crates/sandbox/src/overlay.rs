//! Overlay mounts of layer directories.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// An overlay of directories.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Overlay {
    /// Lower layers, the TOP one first.
    pub lowers: Vec<PathBuf>,
    /// Where changes go; `None` makes a read-only view.
    pub upper: Option<PathBuf>,
    /// The kernel's work directory, on the file system of `upper`.
    pub work: Option<PathBuf>,
    /// Skips every sync: for uppers that are thrown away after a crash.
    pub volatile: bool,
}

/// Which system calls make overlay mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountApi {
    /// `fsopen` and `lowerdir+`, else the option string.
    #[default]
    Auto,
    /// The option string of `mount(2)` alone.
    Old,
}

/// Why an overlay could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The kernel refused.
    #[error("mount overlay: {doing}: {source}")]
    Sys {
        /// The step that failed.
        doing: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Too many layers for this kernel.
    #[error("an overlay of {layers} layers is more than this kernel mounts ({limit}); flatten the chain")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
        /// How many can be mounted.
        limit: usize,
    },
}

impl Overlay {
    /// Mounts the overlay detached; the descriptor is its root directory and usable as a dirfd.
    pub fn mount(&self, api: MountApi) -> Result<OwnedFd, OverlayError> {
        let _ = api;
        Err(OverlayError::Sys { doing: "not written yet".into(), source: std::io::ErrorKind::Unsupported.into() })
    }
}
