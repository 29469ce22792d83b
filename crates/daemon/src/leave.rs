//! Leaving: after a time with nothing to do, or for a newer daemon. No client that connects at that moment is lost.

use crate::daemon::Daemon;
use crate::life::HandOver;
use rustix::fs::FlockOperation;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// Between two looks at whether there is anything to do.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at whether the last ones have gone.
const SOON: Duration = Duration::from_millis(10);
/// Who connected before the sockets were hidden has been accepted after so long.
const ACCEPTED: Duration = Duration::from_millis(20);

/// Our sockets in the file system: their paths and inode numbers, the API's first.
#[derive(Clone, Debug, Default)]
pub struct Paths(Arc<Mutex<Bound>>);

#[derive(Debug, Default)]
struct Bound {
    sockets: Vec<(PathBuf, u64)>,
    /// They are hidden for the moment.
    hidden: bool,
}

impl Paths {
    /// Adds a socket.
    ///
    /// # Errors
    /// It isn't there.
    pub fn add(&self, path: PathBuf) -> std::io::Result<()> {
        let inode = std::fs::metadata(&path)?.ino();
        self.lock().sockets.push((path, inode));
        Ok(())
    }

    /// Returns the path of the API's socket.
    pub fn first(&self) -> Option<PathBuf> {
        self.lock().sockets.first().map(|(path, _)| path.clone())
    }

    /// Binds the API's socket again if somebody removed it; `None` if it is there.
    pub fn bind_again<L>(&self, bind: impl FnOnce(&Path) -> std::io::Result<L>) -> Option<std::io::Result<L>> {
        let mut bound = self.lock();
        if bound.hidden {
            return None;
        }
        let (path, inode) = bound.sockets.first_mut()?;
        if path.exists() {
            return None;
        }
        Some(bind(path).and_then(|listener| {
            *inode = std::fs::metadata(path)?.ino();
            Ok(listener)
        }))
    }

    /// Removes our sockets for good; one that another daemon made meanwhile under the same name stays.
    pub fn unlink(&self) {
        for (path, inode) in self.lock().sockets.drain(..) {
            for path in [hidden(&path), path] {
                if std::fs::symlink_metadata(&path).is_ok_and(|found| found.ino() == inode)
                    && let Err(error) = std::fs::remove_file(&path)
                {
                    tracing::warn!(path = %path.display(), %error, "the socket can't be removed");
                }
            }
        }
    }

    /// Puts our sockets where nobody looks for them, or back.
    fn hide(&self, hide: bool) {
        let mut bound = self.lock();
        bound.hidden = hide;
        for (path, inode) in &bound.sockets {
            let (from, to) = if hide { (path.clone(), hidden(path)) } else { (hidden(path), path.clone()) };
            if std::fs::symlink_metadata(&from).is_ok_and(|found| found.ino() == *inode)
                && let Err(error) = std::fs::rename(&from, &to)
            {
                tracing::warn!(path = %from.display(), %error, "the socket can't be renamed");
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Bound> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns where a socket is while its daemon makes up its mind.
fn hidden(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".leaving");
    name.into()
}

/// Ends when the daemon has had nothing to do for its time, or makes way for a newer one, and nobody is about to connect.
pub async fn leave(daemon: Arc<Daemon>, paths: Paths, leaving: CancellationToken) {
    // There is one of us.
    let Some(mut requests) = daemon.life.hand_overs() else { return std::future::pending().await };
    let timeout = daemon.life.idle_timeout;
    let look = timeout.map_or(LOOK, |timeout| LOOK.min(timeout / 2).max(SOON));
    loop {
        let asked = tokio::select! {
            asked = requests.recv() => asked,
            () = tokio::time::sleep(look), if timeout.is_some() => None,
        };
        // Who asks for a hand-over is connected itself.
        let askers = usize::from(asked.is_some());
        let is_idle = || {
            let long_enough = match timeout {
                _ if askers > 0 => daemon.life.count() <= askers,
                Some(timeout) => daemon.life.idle().is_some_and(|idle| idle >= timeout),
                None => false,
            };
            long_enough && daemon.builds.count() == 0
        };
        let goes = is_idle() && withdraw(&daemon, &paths, is_idle).await;
        answer(asked, goes);
        if !goes {
            continue;
        }
        tracing::info!(asked = askers > 0, "nothing to do: leaving");
        // From here on nobody finds us; whom we have accepted is served to the end. A new daemon waits for the state directory.
        leaving.cancel();
        while daemon.life.count() > askers || daemon.builds.count() > 0 {
            tokio::time::sleep(SOON).await;
        }
        if askers > 0 {
            // Ends the asker's connection when its answer is out.
            daemon.life.stop();
            return std::future::pending().await;
        }
        return;
    }
}

fn answer(asked: Option<HandOver>, goes: bool) {
    // An asker that went away is not told.
    asked.map(|asked| asked.send(goes));
}

/// Takes our sockets away unless somebody has connected at the last moment; tells whether they are gone.
async fn withdraw(daemon: &Daemon, paths: &Paths, is_idle: impl Fn() -> bool) -> bool {
    // Whoever starts a daemon holds this lock: then somebody is about to connect.
    let lock =
        File::options().create(true).truncate(false).write(true).open(daemon.settings.root.join("lifecycle.lock"));
    let Ok(lock) = lock else { return false };
    if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
        return false;
    }
    paths.hide(true);
    tokio::time::sleep(ACCEPTED).await;
    if !is_idle() {
        paths.hide(false);
        return false;
    }
    paths.unlink();
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::{UnixListener, UnixStream};

    #[test]
    fn a_hidden_socket_is_found_again_and_another_s_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let _ours = UnixListener::bind(&path).unwrap();
        let paths = Paths::default();
        paths.add(path.clone()).unwrap();
        paths.hide(true);
        assert!(UnixStream::connect(&path).is_err());
        paths.hide(false);
        UnixStream::connect(&path).unwrap();
        paths.hide(true);
        let _another = UnixListener::bind(&path).unwrap();
        paths.unlink();
        UnixStream::connect(&path).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1, "our own is gone");
    }
}
