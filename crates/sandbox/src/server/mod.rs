//! The fork server: a small process that clones one container for each request.

mod launch;
mod message;
mod serve;

use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};

use crate::container::Streams;
use crate::spec::ContainerSpec;

/// The most bytes an [`Event`] takes on the channel: a read buffer of this size gets one event a read.
pub const EVENT_MAX: usize = 64 * 1024;

/// The handle of the fork server. Dropping it ends the server and every container.
pub struct ForkServer {
    socket: OwnedFd,
}

/// A running container. Dropping it kills every process in it.
pub struct Container {
    channel: UnixStream,
}

/// What happens to a container, in this order: `Started`, `Exited`; or `Failed` alone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// The program runs.
    Started {
        /// Its process ID as the daemon's `/proc` shows it.
        pid: u32,
    },
    /// The program could not be started.
    Failed {
        /// What went wrong, for the user.
        error: String,
        /// The exit code a shell would give for it: 127 for a missing program, 126 for one that can't be executed, else 1.
        code: i32,
    },
    /// The program ended, and with it all processes of the container.
    Exited(ExitStatus),
}

/// How a container's program ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExitStatus {
    /// The exit code; 128 + signal if a signal ended it.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// CPU time of it and its children, in microseconds.
    pub cpu_usec: u64,
    /// The largest resident set of one process, in bytes.
    pub max_rss: u64,
}

/// Why the fork server could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// A system call was refused.
    #[error("fork server: {doing}: {source}")]
    Sys {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The server process has died; the daemon has to be started again.
    #[error("the fork server has died: nothing can be run until the daemon is started again")]
    Gone,
}

impl ForkServer {
    /// Starts the server: this program again, in the namespaces that the caller is in now, with nothing of the caller's
    /// memory, environment or descriptors. Returns at once; requests wait until it is ready.
    pub fn start() -> Result<ForkServer, ServerError> {
        Ok(ForkServer { socket: launch::launch()? })
    }

    /// Starts a container and returns at once; what happens to it comes on its channel. `stdin` is `/dev/null` if `None`.
    pub fn run(
        &self,
        spec: &ContainerSpec,
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    ) -> Result<Container, ServerError> {
        let fail = |doing: &str, source: std::io::Error| ServerError::Sys { doing: doing.into(), source };
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .map_err(|error| fail("make a channel", error.into()))?;
        let streams = Streams { stdin, stdout, stderr, owners: None };
        message::send(self.socket.as_fd(), spec, theirs.as_fd(), &streams).map_err(|error| {
            match error.raw_os_error() {
                Some(libc::EPIPE | libc::ECONNRESET) => ServerError::Gone,
                _ => fail("ask for a container", error),
            }
        })?;
        Ok(Container { channel: ours.into() })
    }
}

impl Container {
    /// Waits for the next event; `None` when the channel is closed (the server died: the container did as well).
    pub fn next_event(&mut self) -> std::io::Result<Option<Event>> {
        use std::io::Read;
        let mut buffer = vec![0; EVENT_MAX];
        match self.channel.read(&mut buffer) {
            Ok(length) => Event::decode(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Gives the channel away, for asynchronous reading: each read yields one event (see [`Event::decode`]). Closing it kills the container.
    pub fn into_channel(self) -> UnixStream {
        self.channel
    }

    /// Kills every process of the container.
    pub fn kill(&self) -> std::io::Result<()> {
        use std::io::Write;
        (&self.channel).write_all(b"kill")
    }
}

impl Event {
    /// The event with its text cut to what fits the channel.
    fn shortened(&self) -> Event {
        match self {
            Event::Failed { error, code } => {
                Event::Failed { error: error.chars().take(EVENT_MAX / 16).collect(), code: *code }
            }
            other => other.clone(),
        }
    }

    /// Reads what one read from the channel gave; `None` for an empty one, the end.
    pub fn decode(message: &[u8]) -> std::io::Result<Option<Event>> {
        if message.is_empty() {
            return Ok(None);
        }
        serde_json::from_slice(message).map(Some).map_err(std::io::Error::other)
    }
}
