//! Running git with nothing of the user's or the machine's in it: no configuration, no hooks, no prompts, no other transports.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;

/// Most of a command's output that is kept, in bytes.
const MAX_OUTPUT: usize = 16 << 20;
/// Most of its messages that go into an error, in bytes.
const MAX_MESSAGE: usize = 4096;

/// Why a git command failed.
#[derive(Debug, thiserror::Error)]
pub enum GitError {
    /// There is no git.
    #[error("git sources need the program git, which is not installed (on Debian: apt-get install git)")]
    Missing,
    /// It can't be run.
    #[error("run git: {0}")]
    Run(#[source] std::io::Error),
    /// It ended badly.
    #[error("git {command} failed: {message}")]
    Failed {
        /// What it was to do.
        command: String,
        /// What it said.
        message: String,
    },
    /// What it said can't be used.
    #[error("{0}")]
    Unusable(String),
    /// A path of ours can't be used.
    #[error("{doing}: {source}")]
    Io {
        /// What was done.
        doing: String,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl GitError {
    /// Tells whether git's message has one of these in it.
    #[must_use]
    pub fn says(&self, any: &[&str]) -> bool {
        matches!(self, Self::Failed { message, .. } if any.iter().any(|text| message.contains(text)))
    }
}

/// Told of what git says, for the log.
pub type Log = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// How git is run.
#[derive(Clone)]
pub struct Git {
    /// The directory it runs in.
    pub dir: PathBuf,
    /// Settings beside the fixed ones. Not on the command line: they may hold credentials.
    pub config: Vec<(String, String)>,
    /// The transports that may be used.
    pub protocols: &'static str,
    /// The variables `GIT_DIR`, `GIT_WORK_TREE` and the like.
    pub variables: Vec<(&'static str, OsString)>,
    /// An ssh agent's socket.
    pub ssh_socket: Option<PathBuf>,
    /// Keys of hosts that ssh trusts; without it, any host is trusted, as BuildKit does.
    pub known_hosts: Option<PathBuf>,
    /// Where its messages go.
    pub log: Log,
}

/// The transports to other machines.
pub const REMOTE: &str = "https:http:ssh:git";

/// What holds for every command. Filters, as of LFS, are only known from configuration, of which there is none: they don't run.
const FIXED: &[(&str, &str)] = &[
    ("core.hooksPath", "/dev/null"),
    ("core.fsmonitor", "false"),
    ("core.attributesFile", "/dev/null"),
    ("core.excludesFile", "/dev/null"),
    ("core.protectHFS", "true"),
    ("core.protectNTFS", "true"),
    ("core.symlinks", "true"),
    ("credential.helper", ""),
    ("gc.auto", "0"),
    ("maintenance.auto", "false"),
    ("init.defaultBranch", "master"),
    ("init.templateDir", ""),
    ("submodule.recurse", "false"),
    ("fetch.recurseSubmodules", "false"),
    ("advice.detachedHead", "false"),
    ("safe.bareRepository", "explicit"),
    ("http.lowSpeedLimit", "1000"),
    ("http.lowSpeedTime", "60"),
];

/// Ends what git started, too, when a command is given up.
struct Group(Option<rustix::process::Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended by itself.
            let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        }
    }
}

impl Git {
    /// Runs a command and returns what it prints.
    ///
    /// # Errors
    /// It can't be run or fails.
    pub async fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<Vec<u8>, GitError> {
        let mut command = self.command(args);
        let mut child = command.spawn().map_err(GitError::Run)?;
        let pid = child.id().and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
        let mut group = Group(pid);
        let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
        let mut message = Vec::new();
        let (output, (), status) = tokio::join!(
            read(stdout, MAX_OUTPUT, |_| {}),
            async {
                message = read(stderr, MAX_OUTPUT, |bytes| (self.log)(bytes)).await;
            },
            child.wait()
        );
        // Waited for: the number may belong to another process from now on.
        group.0 = None;
        let status = status.map_err(GitError::Run)?;
        if status.success() {
            return Ok(output);
        }
        let what = args.first().map(|arg| arg.as_ref().to_string_lossy().into_owned()).unwrap_or_default();
        let text = String::from_utf8_lossy(&message);
        if status.code() == Some(127) && text.contains("git: not found") {
            return Err(GitError::Missing);
        }
        let text = text.trim();
        let mut start = text.len().saturating_sub(MAX_MESSAGE);
        while !text.is_char_boundary(start) {
            start += 1;
        }
        let message = if text.is_empty() { status.to_string() } else { text[start..].to_owned() };
        Err(GitError::Failed { command: what, message })
    }

    /// Runs a command and returns its output as text without the newline at the end.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub async fn text<S: AsRef<OsStr>>(&self, args: &[S]) -> Result<String, GitError> {
        let output = self.run(args).await?;
        Ok(String::from_utf8_lossy(&output).trim_end_matches('\n').to_owned())
    }

    /// Returns the same git with its messages kept out of the log, for questions that it may answer with an error.
    #[must_use]
    pub fn quiet(&self) -> Self {
        Self { log: Arc::new(|_| {}), ..self.clone() }
    }

    fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        // Files are to have the usual modes, and the daemon's own umask is strict.
        let mut command = Command::new("/bin/sh");
        command.arg("-c").arg("umask 022 && exec \"$0\" \"$@\"").arg("git").args(args);
        command.current_dir(&self.dir).env_clear();
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into());
        command.env("PATH", path).env("LC_ALL", "C").env("HOME", "/dev/null").env("XDG_CONFIG_HOME", "/dev/null");
        for (name, value) in [
            ("GIT_CONFIG_NOSYSTEM", "1"),
            ("GIT_CONFIG_SYSTEM", "/dev/null"),
            ("GIT_CONFIG_GLOBAL", "/dev/null"),
            ("GIT_ATTR_NOSYSTEM", "1"),
            ("GIT_TERMINAL_PROMPT", "0"),
            ("GIT_ASKPASS", "/bin/false"),
            ("SSH_ASKPASS", "/bin/false"),
            ("GIT_TEMPLATE_DIR", ""),
            ("GIT_PROTOCOL_FROM_USER", "0"),
            ("GIT_OPTIONAL_LOCKS", "0"),
            ("GIT_NO_REPLACE_OBJECTS", "1"),
        ] {
            command.env(name, value);
        }
        command.env("GIT_ALLOW_PROTOCOL", self.protocols).env("GIT_SSH_COMMAND", self.ssh_command());
        for name in
            ["HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "no_proxy", "all_proxy"]
        {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let fixed = FIXED.iter().map(|&(key, value)| (key, value));
        let own = self.config.iter().map(|(key, value)| (key.as_str(), value.as_str()));
        let mut count = 0;
        for (key, value) in fixed.chain(own) {
            command.env(format!("GIT_CONFIG_KEY_{count}"), key).env(format!("GIT_CONFIG_VALUE_{count}"), value);
            count += 1;
        }
        command.env("GIT_CONFIG_COUNT", count.to_string());
        if let Some(socket) = &self.ssh_socket {
            command.env("SSH_AUTH_SOCK", socket);
        }
        for (name, value) in &self.variables {
            command.env(name, value);
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        command
    }

    fn ssh_command(&self) -> OsString {
        let mut command = OsString::from("ssh -F /dev/null -o BatchMode=yes ");
        match &self.known_hosts {
            Some(path) => {
                command.push("-o UserKnownHostsFile=");
                command.push(quoted(path));
            }
            None => command.push("-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null"),
        }
        command
    }
}

/// Quotes a path for the shell that git gives its ssh command to.
fn quoted(path: &Path) -> OsString {
    let text = path.to_string_lossy();
    OsString::from(format!("'{}'", text.replace('\'', "'\\''")))
}

/// Reads a stream to its end, keeping so much of it.
async fn read(stream: Option<impl AsyncRead + Unpin>, limit: usize, mut tell: impl FnMut(&[u8])) -> Vec<u8> {
    let Some(mut stream) = stream else { return Vec::new() };
    let mut kept = Vec::new();
    let mut buffer = vec![0; 16 << 10];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) | Err(_) => return kept,
            Ok(read) => {
                tell(&buffer[..read]);
                let room = limit - kept.len();
                kept.extend_from_slice(&buffer[..read.min(room)]);
            }
        }
    }
}
