//! A local directory as a build context, read in place.

use crate::fileop::FileOpError;
use rustix::fd::OwnedFd;

/// Says what of a directory belongs to the context.
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// Patterns of what is included; none includes all.
    pub include: Vec<String>,
    /// Patterns of what is left out (`.dockerignore` rules).
    pub exclude: Vec<String>,
    /// Paths to include with the targets of the links on the way.
    pub follow: Vec<String>,
}

/// A directory's files, listed once.
#[derive(Debug)]
pub struct ContextTree {
    root: OwnedFd,
}

impl ContextTree {
    /// Lists a directory, given by a descriptor of it.
    ///
    /// # Errors
    /// A pattern is bad, or a directory can't be read.
    pub fn open(root: OwnedFd, options: &ContextOptions) -> Result<Self, FileOpError> {
        let _ = options;
        Ok(Self { root })
    }

    /// Reads a regular file whole.
    ///
    /// # Errors
    /// It isn't there, isn't a regular file, or is larger than the limit.
    pub fn read_file(&self, path: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
        let fd = crate::tree::open_in_root(
            rustix::fd::AsFd::as_fd(&self.root),
            path,
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK,
        )?;
        crate::tree::read_regular(fd, limit)
    }
}
