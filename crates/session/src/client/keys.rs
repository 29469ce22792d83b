//! Keys in files, served by an agent of their own for as long as the session needs them.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// How long the agent may take to listen.
const START: Duration = Duration::from_secs(5);

/// An `ssh-agent` that holds keys; it ends when this is dropped.
pub(super) struct KeyAgent {
    agent: Child,
    dir: PathBuf,
}

impl KeyAgent {
    /// Starts one and adds the keys. A key with a passphrase can't be added: nobody is there to type it.
    pub(super) fn start(keys: &[PathBuf]) -> io::Result<KeyAgent> {
        let id = super::new_id().map_err(io::Error::other)?;
        let dir = std::env::temp_dir().join(format!("bud-ssh-{id}"));
        std::os::unix::fs::DirBuilderExt::mode(&mut std::fs::DirBuilder::new(), 0o700).create(&dir)?;
        let missing = |what: &str, error: io::Error| {
            if error.kind() == io::ErrorKind::NotFound {
                return io::Error::new(
                    error.kind(),
                    format!("{what} is not installed; it is needed for keys in files"),
                );
            }
            error
        };
        let mut command = Command::new("ssh-agent");
        command.arg("-D").arg("-a").arg(dir.join("agent"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let agent = match command.spawn() {
            Ok(agent) => agent,
            Err(error) => {
                // The directory was made just now, and is empty.
                let _ = std::fs::remove_dir(&dir);
                return Err(missing("ssh-agent", error));
            }
        };
        // From here on dropped, whatever happens.
        let started = KeyAgent { agent, dir };
        let since = Instant::now();
        while !started.socket().exists() {
            if since.elapsed() > START {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "ssh-agent doesn't listen"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        for key in keys {
            started.add(key).map_err(|error| missing("ssh-add", error))?;
        }
        Ok(started)
    }

    fn add(&self, key: &Path) -> io::Result<()> {
        let mut command = Command::new("ssh-add");
        command.arg("-q").arg("--").arg(key).env("SSH_AUTH_SOCK", self.socket());
        command.env("SSH_ASKPASS", "/bin/false").env("SSH_ASKPASS_REQUIRE", "force").stdin(Stdio::null());
        let output = command.output()?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        let hint = if said.is_empty() {
            "it can't be used, or has a passphrase: add it to an agent with ssh-add"
        } else {
            said
        };
        Err(io::Error::other(format!("key {}: {hint}", key.display())))
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.join("agent")
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to do.
        let _ = self.agent.kill();
        let _ = self.agent.wait();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
