//! Directories that a client on the same machine hands over: a second socket beside the API's, on which descriptors come with
//! `SCM_RIGHTS`, bound to a session by its id, which nobody else can know.

use crate::daemon::Daemon;
use crate::socket;
use bud_session::daemon::WAIT;
use bud_session::descriptors::{Handed, take_over};
use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Handle;
use tokio::sync::Semaphore;

/// Clients that are heard at a time.
const MAX_CLIENTS: usize = 16;

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
        self.lock().get(session)?.get(name)?.as_fd().try_clone_to_owned().ok()
    }

    /// Forgets a session's directories. Called when the session ends.
    pub fn forget(&self, session: &str) {
        self.lock().remove(session);
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, HashMap<String, OwnedFd>>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a session's directories, once: a name that it has keeps its directory.
    fn take(&self, handed: Handed) -> Result<(), String> {
        let mut directories = self.lock();
        let own = directories.entry(handed.session).or_default();
        if let Some((name, _)) = handed.dirs.iter().find(|(name, _)| own.contains_key(name)) {
            return Err(format!("directory {name:?} of this session was handed over before"));
        }
        own.extend(handed.dirs);
        Ok(())
    }
}

/// Listens for directories on a socket beside the API's (same directory, same checks: mode 0600, peer's uid). Called once, in the runtime; returns at once. A
/// failure is logged: contexts go over the wire then.
pub fn listen(daemon: &Arc<Daemon>, api_socket: &Path) {
    let mut path = api_socket.as_os_str().to_owned();
    path.push(".fd");
    let path = PathBuf::from(path);
    let bound = socket::bind_unix(&path).map_err(|error| error.to_string());
    let listener = bound.and_then(|listener| UnixListener::from_std(listener).map_err(|error| error.to_string()));
    match listener {
        Ok(listener) => {
            *daemon.descriptors.socket.lock().unwrap_or_else(PoisonError::into_inner) = Some(path);
            tokio::spawn(serve(Arc::clone(daemon), listener));
        }
        Err(error) => tracing::warn!(error, "contexts go over the wire: no socket for descriptors"),
    }
}

async fn serve(daemon: Arc<Daemon>, listener: UnixListener) {
    let slots = Arc::new(Semaphore::new(MAX_CLIENTS));
    loop {
        // The semaphore is never closed.
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors, mostly: it passes.
                    tracing::warn!(%error, "accept a client's descriptors");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                    continue;
                }
            },
            () = daemon.life.stopped() => return,
        };
        let daemon = Arc::clone(&daemon);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = hear(&daemon, stream) {
                tracing::warn!(%error, "a client's descriptors were not taken");
            }
            drop(slot);
        });
    }
}

fn hear(daemon: &Daemon, stream: UnixStream) -> std::io::Result<()> {
    let peer = stream.peer_cred()?.uid();
    socket::may_connect(peer, rustix::process::geteuid().as_raw())?;
    let stream = stream.into_std()?;
    stream.set_nonblocking(false)?;
    take_over(&stream, |handed| {
        let id = handed.session.clone();
        // The client may be faster than the session's own connection.
        let session = Handle::current().block_on(daemon.sessions.get(&id, WAIT)).map_err(|error| error.to_string())?;
        daemon.descriptors.take(handed)?;
        // If it ended meanwhile, nobody else forgets them.
        if session.has_ended() {
            daemon.descriptors.forget(&id);
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed(session: &str, names: &[&str]) -> Handed {
        let open = |_| std::fs::File::open("/").unwrap().into();
        Handed { session: session.into(), dirs: names.iter().map(|name| ((*name).into(), open(name))).collect() }
    }

    #[test]
    fn a_directory_is_its_sessions_alone_and_can_t_be_replaced() {
        let descriptors = Descriptors::default();
        descriptors.take(handed("one", &["context", "dockerfile"])).unwrap();
        assert!(descriptors.directory("one", "context").is_some());
        assert!(descriptors.directory("two", "context").is_none());
        assert!(descriptors.directory("one", "other").is_none());
        assert!(descriptors.take(handed("one", &["new", "context"])).unwrap_err().contains("before"));
        assert!(descriptors.directory("one", "new").is_none());
        descriptors.forget("one");
        assert!(descriptors.directory("one", "context").is_none());
    }
}
