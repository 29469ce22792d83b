//! The lock that keeps a second daemon out of a state directory, and tells where the first listens.

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a daemon that is leaving is waited for.
const WAIT: Duration = Duration::from_secs(10);

/// What the lock file says of the daemon that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Running {
    /// Where it listens.
    pub address: String,
    /// Its process.
    pub pid: u32,
    /// Its version.
    pub version: String,
}

/// The lock, held while this lives.
#[derive(Debug)]
pub struct Lock {
    file: File,
}

/// Why the lock can't be had.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Somebody has it.
    #[error(
        "{}: another daemon uses this state directory: {} (process {}); stop it, or use another --root",
        root.display(), if running.address.is_empty() { "still starting" } else { &running.address }, running.pid
    )]
    Held {
        /// The state directory.
        root: PathBuf,
        /// By whom.
        running: Running,
    },
    /// The file can't be used.
    #[error("lock {}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// Returns the lock file of a state directory.
#[must_use]
pub fn path(root: &Path) -> PathBuf {
    root.join("daemon.lock")
}

impl Lock {
    /// Takes the lock; waits a little for a daemon that is leaving.
    ///
    /// # Errors
    /// Another daemon runs.
    pub fn take(root: &Path) -> Result<Self, LockError> {
        let path = path(root);
        let io = |source| LockError::Io { path: path.clone(), source };
        let mut file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(rustix::fs::OFlags::NOFOLLOW.bits().cast_signed())
            .open(&path)
            .map_err(io)?;
        let deadline = Instant::now() + WAIT;
        loop {
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => break,
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let mut text = String::new();
                    file.rewind().map_err(io)?;
                    (&file).take(4096).read_to_string(&mut text).map_err(io)?;
                    let running: Running = serde_json::from_str(&text).unwrap_or_default();
                    // One that listens is not leaving.
                    let listens = running
                        .address
                        .strip_prefix("unix://")
                        .is_some_and(|p| std::os::unix::net::UnixStream::connect(p).is_ok());
                    if listens || Instant::now() >= deadline {
                        return Err(LockError::Held { root: root.to_owned(), running });
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
                Err(error) => return Err(io(error.into())),
            }
        }
        file.set_len(0).map_err(io)?;
        Ok(Self { file })
    }

    /// Says where the holder listens.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn announce(&mut self, running: &Running) -> std::io::Result<()> {
        self.file.rewind()?;
        self.file.set_len(0)?;
        self.file.write_all(serde_json::to_string(running)?.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_daemon_is_kept_out_and_told_of_the_first() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("s");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let mut lock = Lock::take(dir.path()).unwrap();
        let running = Running { address: format!("unix://{}", socket.display()), pid: 7, version: "1".into() };
        lock.announce(&running).unwrap();
        let error = Lock::take(dir.path()).unwrap_err();
        assert!(error.to_string().contains("process 7"), "{error}");
        drop(lock);
        Lock::take(dir.path()).unwrap();
    }
}
