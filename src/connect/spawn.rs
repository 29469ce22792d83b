//! Starting this user's daemon: one at a time, in a session of its own, with a reduced environment.

use anyhow::{Context as _, Result, bail, ensure};
use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use tokio::io::AsyncReadExt as _;
use tokio::time::Instant;

/// The daemon's log, in the state root.
pub const LOG: &str = "daemon.log";
/// Held by a client that starts a daemon, and by a daemon that leaves.
const LIFECYCLE_LOCK: &str = "lifecycle.lock";
/// Held by the daemon; says where it is.
const DAEMON_LOCK: &str = "daemon.lock";
/// A log longer than this is put aside; one old log is kept.
const LOG_LIMIT: u64 = 8 << 20;
/// Another limit, in bytes.
const LOG_LIMIT_VARIABLE: &str = "BUD_LOG_LIMIT";
/// What a daemon says when it listens.
const READY: &str = "ready";
/// More of an error than this isn't read.
const ERROR_LIMIT: u64 = 64 << 10;

/// Returns the socket of the daemon that said it holds the state root. It may be gone since.
pub fn running_address(root: &Path) -> Option<PathBuf> {
    let mut text = Vec::new();
    File::open(root.join(DAEMON_LOCK)).ok()?.take(4096).read_to_end(&mut text).ok()?;
    let holder: bud_daemon::Running = serde_json::from_slice(&text).ok()?;
    Some(holder.address.strip_prefix("unix://")?.into())
}

/// Tells whether a daemon holds the state root.
pub fn is_held(root: &Path) -> bool {
    let Ok(file) = File::open(root.join(DAEMON_LOCK)) else { return false };
    rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockShared) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// Waits for the right to start a daemon on a state root, which is made if it isn't there.
///
/// # Errors
/// The state root can't be used, or somebody else starts or stops a daemon for longer than the deadline.
pub async fn lifecycle_lock(root: &Path, until: Instant) -> Result<File> {
    make_root(root)?;
    let path = root.join(LIFECYCLE_LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    loop {
        match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(file),
            Err(rustix::io::Errno::WOULDBLOCK | rustix::io::Errno::INTR) if Instant::now() < until => {
                tokio::time::sleep(super::PAUSE).await;
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                bail!("another bud is starting or stopping the daemon and doesn't come to an end ({})", path.display())
            }
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
    }
}

fn make_root(root: &Path) -> Result<()> {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(root)
        .with_context(|| format!("cannot make the daemon's state directory {}", root.display()))?;
    let meta = std::fs::metadata(root).with_context(|| format!("cannot use {}", root.display()))?;
    ensure!(
        meta.uid() == rustix::process::getuid().as_raw(),
        "the daemon's state directory {} belongs to the user with ID {}, not to you",
        root.display(),
        meta.uid()
    );
    Ok(())
}

/// Removes a socket that nobody listens on. Only with the lifecycle lock, and after a connection was refused under it.
///
/// # Errors
/// It can't be removed.
pub fn remove_stale(socket: &Path) -> Result<()> {
    // Somebody without the lock (a real buildkitd) may listen since: asked once more, right before.
    match std::os::unix::net::UnixStream::connect(socket) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(socket).with_context(|| format!("cannot remove the stale socket {}", socket.display()))
        }
        _ => Ok(()),
    }
}

/// Starts the daemon and waits until it listens.
///
/// # Errors
/// What the daemon says why it can't start, or that it didn't in time.
pub async fn spawn(socket: &Path, root: &Path, how: &super::Spawn, until: Instant) -> Result<()> {
    let log_path = root.join(LOG);
    let log = open_log(&log_path)?;
    // The running program itself, also if its file was replaced.
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command
        .arg0("bud")
        .args(["daemon", "--spawned", "--idle-timeout", &how.idle_timeout, "--userns", how.userns.word()])
        .arg("--addr")
        .arg({
            let mut address = OsString::from("unix://");
            address.push(socket);
            address
        })
        .arg("--root")
        .arg(root)
        .current_dir("/")
        .env_clear()
        .envs(std::env::vars_os().filter(|(name, _)| is_for_daemon(&name.to_string_lossy())))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(log);
    if std::env::var_os("PATH").is_none() {
        command.env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    }
    let mut child = command.spawn().map_err(cannot_spawn)?;
    let mut stdout = child.stdout.take().context("the daemon has no stdout")?.take(ERROR_LIMIT);
    let mut said = Vec::new();
    let answer = async {
        loop {
            // Ready is a line, not the end: a helper of the daemon may hold the pipe a little longer.
            if stdout.read_buf(&mut said).await? == 0 || said.starts_with(b"ready\n") {
                return io::Result::Ok(());
            }
        }
    };
    let answered = tokio::time::timeout_at(until, answer).await;
    let text = String::from_utf8_lossy(&said);
    match answered {
        Ok(read) => {
            read.context("waiting for the daemon")?;
            if text.lines().next() == Some(READY) {
                return Ok(());
            }
            let text = text.trim();
            if text.is_empty() {
                let status = child.wait().await.context("waiting for the daemon")?;
                bail!(
                    "the daemon ended at its start ({status}); its log is {}{}",
                    log_path.display(),
                    last_lines(&log_path)
                );
            }
            bail!("the daemon can't start: {text}\nits log is {}", log_path.display())
        }
        Err(_) => {
            child.start_kill().context("stopping the daemon that doesn't start")?;
            bail!(
                "the daemon didn't start within {} seconds; its log is {}{}",
                super::DEADLINE.as_secs(),
                log_path.display(),
                last_lines(&log_path)
            )
        }
    }
}

/// Returns the length at which a log is put aside.
pub fn log_limit() -> u64 {
    let asked = std::env::var(LOG_LIMIT_VARIABLE).ok().and_then(|text| text.parse().ok());
    asked.unwrap_or(LOG_LIMIT).max(4096)
}

fn cannot_spawn(error: io::Error) -> anyhow::Error {
    let hint = match error.kind() {
        io::ErrorKind::WouldBlock => {
            ": this user's limit on processes is reached; raise it (`ulimit -u`) or end other processes"
        }
        _ => "",
    };
    anyhow::Error::new(error).context(format!("cannot start the daemon{hint}"))
}

fn open_log(path: &Path) -> Result<File> {
    if std::fs::metadata(path).is_ok_and(|meta| meta.len() > log_limit()) {
        std::fs::rename(path, path.with_extension(bud_daemon::OLD_LOG)).context("cannot put the old log aside")?;
    }
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot open the daemon's log {}", path.display()))
}

/// Returns the last lines of a log, to be shown below an error.
pub fn last_lines(path: &Path) -> String {
    let text = crate::terminal::tail(path, 4096).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(5).collect();
    lines.iter().rev().map(|line| format!("\n  {}", crate::progress::filter::plain_text(line))).collect()
}

/// Tells which variables a daemon sees: what finds programs, places, certificates and proxies; no secrets of the shell.
fn is_for_daemon(name: &str) -> bool {
    const KEPT: &[&str] = &[
        "PATH",
        "HOME",
        "USER",
        "LOGNAME",
        "LANG",
        "TZ",
        "TMPDIR",
        "SSL_CERT_FILE",
        "SSL_CERT_DIR",
        "RUST_LOG",
        "RUST_BACKTRACE",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "NO_PROXY",
        "ALL_PROXY",
        "http_proxy",
        "https_proxy",
        "no_proxy",
        "all_proxy",
    ];
    const PREFIXES: &[&str] = &["XDG_", "LC_", "BUD_", "BUILDKIT_STEP_LOG_"];
    KEPT.contains(&name) || PREFIXES.iter().any(|prefix| name.starts_with(prefix))
}

/// The daemon's end of its start: readiness, or why not.
#[derive(Debug)]
pub struct Readiness(Option<File>);

impl Readiness {
    /// Leaves the client's session and takes stdout as the pipe to it. Called first of all in a daemon that was spawned.
    ///
    /// # Errors
    /// The process can't be set up.
    pub fn take() -> io::Result<Self> {
        // EPERM means that it leads a session already.
        match rustix::process::setsid() {
            Ok(_) | Err(rustix::io::Errno::PERM) => {}
            Err(error) => return Err(error.into()),
        }
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
        std::env::set_current_dir("/")?;
        let pipe = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdout(), 3)?;
        rustix::stdio::dup2_stdout(rustix::stdio::stderr())?;
        Ok(Self(Some(pipe.into())))
    }

    /// Returns a descriptor that the daemon writes `ready` to.
    ///
    /// # Errors
    /// It can't be duplicated.
    pub fn fd(&self) -> io::Result<Option<OwnedFd>> {
        self.0.as_ref().map(|pipe| pipe.try_clone().map(OwnedFd::from)).transpose()
    }

    /// Tells the client why the daemon can't start.
    pub fn fail(mut self, error: &anyhow::Error) {
        if let Some(mut pipe) = self.0.take() {
            // The client may be gone; the log has the error as well.
            _ = write!(pipe, "{error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_of_a_daemon_has_no_secrets() {
        for name in ["PATH", "HOME", "XDG_RUNTIME_DIR", "LC_ALL", "https_proxy", "BUD_LOAD"] {
            assert!(is_for_daemon(name), "{name}");
        }
        for name in ["AWS_SECRET_ACCESS_KEY", "SSH_AUTH_SOCK", "GITHUB_TOKEN", "LD_PRELOAD", "BUILDKIT_HOST"] {
            assert!(!is_for_daemon(name), "{name}");
        }
    }

    #[tokio::test]
    async fn the_lifecycle_lock_is_held_by_one() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("state");
        let held = lifecycle_lock(&root, Instant::now()).await.unwrap();
        let error = lifecycle_lock(&root, Instant::now()).await.unwrap_err().to_string();
        assert!(error.contains("starting or stopping"), "{error}");
        drop(held);
        lifecycle_lock(&root, Instant::now()).await.unwrap();
    }

    #[test]
    fn the_lock_file_tells_the_address() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(running_address(dir.path()), None);
        std::fs::write(dir.path().join(DAEMON_LOCK), r#"{"address":"unix:///x/y.sock","pid":1}"#).unwrap();
        assert_eq!(running_address(dir.path()), Some("/x/y.sock".into()));
        std::fs::write(dir.path().join(DAEMON_LOCK), "rubbish").unwrap();
        assert_eq!(running_address(dir.path()), None);
    }

    #[test]
    fn only_a_socket_nobody_listens_on_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        remove_stale(&path).unwrap();
        assert!(path.exists());
        drop(listener);
        remove_stale(&path).unwrap();
        assert!(!path.exists());
        remove_stale(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        // Connecting to a file is refused as well; it isn't a socket, but it is in the way of one, in our own directory.
        remove_stale(&path).unwrap();
    }
}
