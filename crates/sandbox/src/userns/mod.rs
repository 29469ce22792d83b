//! The rootless start: a user namespace in which the daemon is root.

use std::path::PathBuf;

/// Which identity the daemon shall take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// What the machine allows: real root, else sub-IDs, else the own ID alone.
    #[default]
    Auto,
    /// Sub-IDs, or an error.
    Subids,
    /// The own ID alone.
    Single,
    /// No user namespace: real root (or root of a namespace somebody else made).
    Root,
}

/// Which identity the daemon has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The own ID is 0 inside, sub-IDs from 1.
    Subids,
    /// The own ID is 0 inside and nothing else is mapped: owners can't be changed.
    Single,
    /// No new user namespace.
    Root,
}

/// Where facts about the machine are read: `/`, or a directory that a test made.
#[derive(Clone, Debug)]
pub struct HostRoot(pub PathBuf);

impl Default for HostRoot {
    fn default() -> Self {
        HostRoot(PathBuf::from("/"))
    }
}

/// What [`enter`] made of the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The identity chosen.
    pub mode: Mode,
    /// One line each: what is missing on this machine and the command that mends it.
    pub notices: Vec<String>,
    /// The user's ID outside.
    pub uid: u32,
    /// The group's ID outside.
    pub gid: u32,
}

/// Why no namespace could be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// A system call was refused.
    #[error("{doing}: {source}")]
    Sys {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The machine doesn't allow it; the text says what to type.
    #[error("{0}")]
    NotAllowed(String),
}

/// Enters the user and mount namespaces the daemon lives in. Call it while the process has one thread.
pub fn enter(policy: Policy, host: &HostRoot) -> Result<Identity, EnterError> {
    let _ = (policy, host);
    Err(EnterError::NotAllowed("not written yet".into()))
}
