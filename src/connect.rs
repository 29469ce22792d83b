//! Finding the daemon: an address that was given, this user's running daemon, or a new one that is started.

pub mod address;
pub mod places;
pub mod spawn;
mod transport;

use crate::cli::ConnectArgs;
use crate::cli::daemon::Userns;
use address::Address;
use anyhow::{Context as _, Result, bail, ensure};
use bud_protocol::bud::bud_client::BudClient;
use bud_protocol::bud::{StatusRequest, StatusResponse, StopRequest};
use bud_protocol::control::control_client::ControlClient;
use places::Surroundings;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::time::Instant;
use tonic::transport::Channel;

/// The time for all of finding, starting and connecting.
pub const DEADLINE: Duration = Duration::from_secs(10);
/// How often a condition is looked at again that nothing tells of.
const PAUSE: Duration = Duration::from_millis(10);
/// Messages of the API are at most this long.
pub const MESSAGE_LIMIT: usize = 16 << 20;

/// Whether a daemon that doesn't run is started, if it is this user's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// It is.
    IfNeeded(Spawn),
    /// It isn't.
    Never,
}

/// How a daemon is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spawn {
    /// It exits after this long with nothing to do, as [`duration`](crate::request::values::duration) reads it.
    pub idle_timeout: String,
    /// Say that it is being started, if that takes long.
    pub announce: bool,
    /// Which user IDs there are inside builds. A daemon of this user that has others gives way if it is idle.
    pub userns: Userns,
}

impl Default for Spawn {
    fn default() -> Self {
        let idle_timeout = std::env::var("BUD_IDLE_TIMEOUT").ok().filter(|text| !text.is_empty());
        Self { idle_timeout: idle_timeout.unwrap_or_else(|| "30m".into()), announce: true, userns: Userns::Auto }
    }
}

impl Start {
    /// Starts it in the usual way.
    #[must_use]
    pub fn usual() -> Self {
        Self::IfNeeded(Spawn::default())
    }

    /// Tells whether a daemon that runs has the users that were asked for.
    fn is_met_by(&self, status: &StatusResponse) -> bool {
        match self {
            Self::IfNeeded(how) => how.userns.is_met_by(&status.mode),
            Self::Never => true,
        }
    }

    fn check(&self, status: &StatusResponse) -> Result<()> {
        match self {
            Self::IfNeeded(how) => ensure!(
                self.is_met_by(status),
                "--userns={} was asked for, but the daemon that runs does so {}; leave --userns out, or stop that daemon first",
                how.userns.word(),
                crate::progress::filter::name(&status.mode)
            ),
            Self::Never => {}
        }
        Ok(())
    }
}

/// A connection to a daemon.
#[derive(Debug, Clone)]
pub struct Connection {
    /// The channel of its API.
    pub channel: Channel,
    /// Where it is.
    pub address: String,
    /// The log of the daemon, if it is this user's own.
    pub log: Option<PathBuf>,
    /// The state root, if it is this user's own.
    pub root: Option<PathBuf>,
}

impl Connection {
    /// Returns a client of the control API.
    #[must_use]
    pub fn control(&self) -> ControlClient<Channel> {
        ControlClient::new(self.channel.clone())
            .max_decoding_message_size(MESSAGE_LIMIT)
            .max_encoding_message_size(MESSAGE_LIMIT)
    }

    /// Returns a client of bud's own service.
    #[must_use]
    pub fn bud(&self) -> BudClient<Channel> {
        BudClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// Asks who the daemon is, without having it measure memory and disk; none if it is a BuildKit without bud's own service.
    ///
    /// # Errors
    /// The daemon doesn't answer.
    pub async fn status(&self) -> Result<Option<StatusResponse>> {
        self.ask(StatusRequest { brief: true }).await
    }

    /// Asks who the daemon is, and how much memory and disk it takes, which takes its time.
    ///
    /// # Errors
    /// The daemon doesn't answer.
    pub async fn measured_status(&self) -> Result<Option<StatusResponse>> {
        self.ask(StatusRequest { brief: false }).await
    }

    async fn ask(&self, request: StatusRequest) -> Result<Option<StatusResponse>> {
        let answer = tokio::time::timeout(DEADLINE, self.bud().status(request)).await;
        match answer.map_err(|_| anyhow::anyhow!("the daemon at {} doesn't answer", self.address))? {
            Ok(status) => Ok(Some(status.into_inner())),
            Err(status) if status.code() == tonic::Code::Unimplemented => Ok(None),
            Err(status) if std::error::Error::source(&status).is_some() => {
                bail!("the connection to the daemon at {} ended at once: no BuildKit answers there", self.address)
            }
            Err(status) => bail!("the daemon at {} refuses to speak: {}", self.address, status.message()),
        }
    }
}

/// One try to connect to a socket.
enum Attempt {
    Connected(UnixStream),
    /// There is no socket.
    Absent,
    /// There is one that nobody listens on.
    Stale,
}

/// Connects to the daemon as [`connect`] does, and asks who it is. One that just leaves, and an older one that is idle, give
/// way to a new one.
///
/// # Errors
/// As [`connect`]; or the daemon doesn't answer.
pub async fn connect_and_ask(args: &ConnectArgs, start: &Start) -> Result<(Connection, Option<StatusResponse>)> {
    /// A daemon that is gone each time is no daemon that leaves.
    const TRIES: usize = 3;
    let mut tries = 0;
    loop {
        tries += 1;
        let connection = connect(args, start).await?;
        let is_own = connection.root.is_some();
        match connection.status().await {
            Ok(Some(status)) if is_own && tries < TRIES && (is_older(&status) || !start.is_met_by(&status)) => {
                // It goes only if nobody else is connected; else the build goes to it.
                let request = StopRequest { force: false, wait: false, hand_over: true };
                let stopping = connection.bud().stop(request).await.is_ok_and(|answer| answer.into_inner().stopping);
                if !stopping {
                    start.check(&status)?;
                    return Ok((connection, Some(status)));
                }
                wait_until_gone(&connection, Instant::now() + DEADLINE).await;
            }
            Ok(status) => {
                status.as_ref().map_or(Ok(()), |status| start.check(status))?;
                return Ok((connection, status));
            }
            Err(_) if is_own && tries < TRIES => tokio::time::sleep(PAUSE).await,
            Err(error) => return Err(error),
        }
    }
}

/// Waits until a daemon that was told to stop is gone: its connection ends, and it lets go of its state. Tells whether it is.
pub async fn wait_until_gone(connection: &Connection, until: Instant) -> bool {
    let gone = async {
        // Asked directly: another's daemon at the same address is not meant.
        while connection.bud().status(StatusRequest { brief: true }).await.is_ok() {
            tokio::time::sleep(PAUSE).await;
        }
        while connection.root.as_deref().is_some_and(spawn::is_held) {
            tokio::time::sleep(PAUSE).await;
        }
    };
    tokio::time::timeout_at(until, gone).await.is_ok()
}

/// Tells whether a daemon is of an older version or build than this client, and would make way for it.
pub fn is_older(status: &StatusResponse) -> bool {
    // A service manager starts its own program again, which is another one only if its file was replaced.
    if status.activated && !status.replaced {
        return false;
    }
    let build = bud_daemon::BuildId::running().ok();
    let theirs = bud_daemon::BuildId::parse(&status.build);
    bud_daemon::is_newer((env!("CARGO_PKG_VERSION"), build), (&status.version, theirs))
}

/// Connects to the daemon, starting this user's own if that is wanted.
///
/// # Errors
/// The address is wrong, nothing listens there, or the daemon can't be started.
pub async fn connect(args: &ConnectArgs, start: &Start) -> Result<Connection> {
    let around = Surroundings::current();
    let default = around.socket();
    let given = args.buildkit_addr.as_deref().filter(|text| !text.is_empty()).map(Address::parse).transpose()?;
    match given {
        Some(Address::Unix(path)) if path == default => own(&around, start).await,
        Some(address) => given_address(&address, args).await,
        None => own(&around, start).await,
    }
}

async fn given_address(address: &Address, args: &ConnectArgs) -> Result<Connection> {
    let until = Instant::now() + DEADLINE;
    let channel = match address {
        Address::Unix(path) => match attempt(path, until).await.with_context(|| refusal(address))? {
            Attempt::Connected(stream) => {
                transport::channel(stream, "localhost").await.with_context(|| refusal(address))?
            }
            Attempt::Absent => bail!("no daemon is at {address}: there is no such socket\n{}", without_address()),
            Attempt::Stale => {
                bail!("no daemon is at {address}: the socket is there, but nobody listens on it\n{}", without_address())
            }
        },
        other => tokio::time::timeout_at(until, transport::dial(other, args))
            .await
            .map_err(|_| anyhow::anyhow!("no answer from {address} in {} seconds", DEADLINE.as_secs()))?
            .with_context(|| refusal(address))?,
    };
    Ok(Connection { channel, address: address.to_string(), log: None, root: None })
}

fn refusal(address: &Address) -> String {
    format!("cannot connect to the daemon at {address}")
}

fn without_address() -> &'static str {
    "start it, or leave the address (--buildkit-addr, BUILDKIT_HOST) out: bud then starts a daemon of its own"
}

/// Connects to this user's daemon.
async fn own(around: &Surroundings, start: &Start) -> Result<Connection> {
    let socket = around.socket();
    let root = around.state_root()?;
    let until = Instant::now() + DEADLINE;
    if let Some(found) = running(around, &socket, &root, until).await? {
        return Ok(found);
    }
    let Start::IfNeeded(how) = start else { return Err(NotRunning { socket }.into()) };
    let started = async {
        let lock = spawn::lifecycle_lock(&root, until).await?;
        // Another client may have started it while this one waited.
        if let Some(found) = running(around, &socket, &root, until).await? {
            return Ok(found);
        }
        spawn::remove_stale(&socket)?;
        places::check_socket_dir(&around.socket_dir(), around.uid)?;
        let outcome = match spawn::spawn(&socket, &root, how, until).await {
            Ok(()) => Ok(()),
            Err(error) => {
                let text = format!("{error:#}");
                let verdict = crate::doctor::verdict(&root, how.userns, &text).await;
                Err(anyhow::anyhow!("{text}{verdict}"))
            }
        };
        // It listens before it says so; and one that another client's daemon kept out finds that one listening.
        let found = match running(around, &socket, &root, until).await {
            Ok(Some(found)) => Ok(found),
            Ok(None) => outcome.and_then(|()| bail!("the daemon started, but nobody listens at {}", socket.display())),
            Err(error) => outcome.and(Err(error)),
        };
        drop(lock);
        found
    };
    tokio::pin!(started);
    tokio::select! {
        biased;
        done = &mut started => done,
        () = tokio::time::sleep(Duration::from_secs(1)) => {
            if how.announce {
                crate::terminal::note("starting the daemon …");
            }
            started.await
        }
    }
}

/// This user's daemon doesn't run.
#[derive(Debug, thiserror::Error)]
#[error("no daemon runs (nothing listens at {})", socket.display())]
pub struct NotRunning {
    socket: PathBuf,
}

/// Connects to the daemon on the default socket, or else to the one that holds the state root.
async fn running(around: &Surroundings, socket: &Path, root: &Path, until: Instant) -> Result<Option<Connection>> {
    let mut sockets = vec![socket.to_owned()];
    if let Some(other) = spawn::running_address(root)
        && other != socket
    {
        sockets.push(other);
    }
    for socket in sockets {
        let stream = match attempt(&socket, until).await {
            Ok(Attempt::Connected(stream)) => stream,
            Ok(Attempt::Absent | Attempt::Stale) => continue,
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {}", socket.display())),
        };
        let peer = stream.peer_cred().context("asking who listens on the socket")?.uid();
        ensure!(
            peer == around.uid,
            "the daemon at {} runs as the user with ID {peer}, not as you; your build isn't given to it",
            socket.display()
        );
        let channel = match transport::channel(stream, "localhost").await {
            Ok(channel) => channel,
            // It was leaving.
            Err(_) if Instant::now() < until => continue,
            Err(error) => return Err(error),
        };
        return Ok(Some(Connection {
            channel,
            address: format!("unix://{}", socket.display()),
            log: Some(root.join(spawn::LOG)),
            root: Some(root.to_owned()),
        }));
    }
    Ok(None)
}

/// Tries to connect, waiting while the socket's queue is full.
async fn attempt(socket: &Path, until: Instant) -> io::Result<Attempt> {
    loop {
        match transport::unix(socket).await {
            Ok(stream) => return Ok(Attempt::Connected(stream)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => return Ok(Attempt::Absent),
                io::ErrorKind::ConnectionRefused => return Ok(Attempt::Stale),
                // A full queue means a daemon that is busy, not one that is gone.
                io::ErrorKind::WouldBlock if Instant::now() < until => tokio::time::sleep(PAUSE).await,
                io::ErrorKind::WouldBlock => {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("it is too busy to answer for {} seconds", DEADLINE.as_secs()),
                    ));
                }
                _ => return Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_a_service_manager_starts_makes_way_only_if_its_program_was_replaced() {
        let status = |version: &str, activated, replaced| StatusResponse {
            version: version.into(),
            activated,
            replaced,
            ..Default::default()
        };
        assert!(is_older(&status("0.0.9", false, false)));
        assert!(!is_older(&status("0.0.9", true, false)));
        assert!(is_older(&status("0.0.9", true, true)));
        assert!(!is_older(&status(env!("CARGO_PKG_VERSION"), false, false)));
    }
}
