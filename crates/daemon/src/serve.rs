//! Serving: from bound sockets to the daemon's end.

use crate::daemon::Daemon;
use crate::leave::{Paths, leave};
use crate::life::{Busy, Life};
use crate::options::Options;
use crate::routes::Routes;
use crate::socket::{Connection, Inherited, ListenError, Listener};
use crate::start::{StartError, bind_path, unix_path};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// Connections at a time; more wait in the backlog.
const MAX_CONNECTIONS: usize = 2048;
/// Calls at a time on a connection.
const MAX_CALLS: u32 = 512;
/// Everything must be over so long after a stop.
const STOP: Duration = Duration::from_secs(8);
/// The daemon rests when it has had nothing to do for so long.
const REST: Duration = Duration::from_millis(800);
/// Between two looks at whether the socket is there still.
const KEEP: Duration = Duration::from_secs(5);

/// Sockets that are bound, not yet served.
#[derive(Default)]
pub struct Sockets {
    unix: Vec<(std::os::unix::net::UnixListener, PathBuf)>,
    tcp: Vec<std::net::TcpListener>,
    inherited: Vec<Inherited>,
    addresses: Vec<String>,
}

impl Sockets {
    /// Returns where we listen first.
    pub fn address(&self) -> String {
        self.addresses.first().cloned().unwrap_or_default()
    }

    /// Tells whether a service manager owns the sockets.
    pub fn is_inherited(&self) -> bool {
        !self.inherited.is_empty()
    }
}

/// Takes over the inherited sockets and binds all addresses.
///
/// # Errors
/// One is not to be listened on.
pub fn bind(options: &mut Options) -> Result<Sockets, StartError> {
    let mut sockets = Sockets::default();
    for descriptor in options.inherited.drain(..) {
        let inherited = Inherited::new(descriptor, options.insecure_tcp)?;
        sockets.addresses.push(inherited.address.clone());
        sockets.inherited.push(inherited);
    }
    for address in &options.addresses {
        sockets.addresses.push(address.clone());
        if let Some(path) = unix_path(address) {
            sockets.unix.push((bind_path(&path)?, path));
        } else if let Some(host) = address.strip_prefix("tcp://") {
            if options.tls.is_some() {
                return Err(StartError::Options(format!(
                    "{address}: TLS is not supported by this version; use a unix socket, or ssh"
                )));
            }
            if !options.insecure_tcp {
                return Err(ListenError::InsecureTcp(address.clone()).into());
            }
            tracing::warn!("{address}: anybody who can connect can run anything as this user");
            let io = |source| ListenError::Io { address: address.clone(), source };
            let listener = std::net::TcpListener::bind(host).map_err(io)?;
            listener.set_nonblocking(true).map_err(io)?;
            sockets.tcp.push(listener);
        } else {
            return Err(ListenError::Address(address.clone()).into());
        }
    }
    Ok(sockets)
}

/// A connection; the daemon is busy while it is open.
struct Open {
    inner: Connection,
    _busy: Busy,
    _permit: tokio::sync::OwnedSemaphorePermit,
}

impl Connected for Open {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Open {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Open {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().inner).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}

/// Serves until the daemon is told to stop, or leaves because it has nothing to do.
///
/// # Errors
/// A socket fails.
pub async fn serve(daemon: Arc<Daemon>, sockets: Sockets, ready: Option<OwnedFd>) -> std::io::Result<()> {
    let (connections, incoming) = mpsc::channel::<std::io::Result<Open>>(16);
    let leaving = CancellationToken::new();
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let paths = Paths::default();
    let mut accepting = Vec::new();
    for (listener, path) in sockets.unix {
        let listener = Listener::Unix(tokio::net::UnixListener::from_std(listener)?, path.clone());
        paths.add(path)?;
        accepting.push(listener);
    }
    for listener in sockets.tcp {
        accepting.push(Listener::Tcp(tokio::net::TcpListener::from_std(listener)?));
    }
    let mut beside = paths.first();
    let keeps = beside.is_some();
    for inherited in sockets.inherited {
        beside = beside.or_else(|| inherited.path.clone());
        accepting.push(inherited.listener()?);
    }
    if let Some(path) = beside {
        crate::descriptors::listen(&daemon, &path);
        if let Some(beside) = daemon.descriptors.socket() {
            paths.add(beside)?;
        }
    }
    let acceptor = Acceptor { connections, life: Arc::clone(&daemon.life), slots, leaving: leaving.clone() };
    let mut tasks = tokio::task::JoinSet::new();
    for listener in accepting {
        tasks.spawn(acceptor.clone().accept(listener));
    }
    if keeps {
        tasks.spawn(acceptor.keep(Arc::clone(&daemon), paths.clone()));
    }
    tokio::spawn(signals(Arc::clone(&daemon.life)));
    tokio::spawn(crate::gc::collect(Arc::clone(&daemon)));
    tokio::spawn(rest(Arc::clone(&daemon.life)));
    if let Some(ready) = ready {
        File::from(ready).write_all(b"ready\n")?;
    }
    let life = Arc::clone(&daemon.life);
    let stopped = async move { life.stopped().await };
    let server = Server::builder()
        .http2_max_pending_accept_reset_streams(Some(100))
        .max_concurrent_streams(Some(MAX_CALLS))
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .initial_stream_window_size(Some(1 << 20))
        .initial_connection_window_size(Some(4 << 20))
        .serve_with_incoming_shutdown(Routes { daemon: Arc::clone(&daemon) }, ReceiverStream::new(incoming), stopped);
    let mut server = std::pin::pin!(server);
    let mut left = std::pin::pin!(leave(Arc::clone(&daemon), paths.clone(), leaving.clone()));
    let served = tokio::select! {
        served = &mut server => served,
        () = &mut left => Ok(()),
        () = async { daemon.life.stopped().await; tokio::time::sleep(STOP).await } => {
            tracing::warn!("some calls did not end in time");
            Ok(())
        }
    };
    leaving.cancel();
    while tasks.join_next().await.is_some() {}
    paths.unlink();
    served.map_err(std::io::Error::other)
}

/// Accepts connections and hands them to the server.
#[derive(Clone)]
struct Acceptor {
    connections: mpsc::Sender<std::io::Result<Open>>,
    life: Arc<Life>,
    slots: Arc<Semaphore>,
    leaving: CancellationToken,
}

impl Acceptor {
    async fn accept(self, listener: Listener) {
        loop {
            // The semaphore is never closed.
            let Ok(permit) = Arc::clone(&self.slots).acquire_owned().await else { return };
            let accepted = tokio::select! {
                biased;
                () = self.leaving.cancelled() => return,
                accepted = listener.accept() => accepted,
            };
            match accepted {
                Ok(inner) => {
                    let open = Open { inner, _busy: self.life.busy(), _permit: permit };
                    if self.connections.send(Ok(open)).await.is_err() {
                        return;
                    }
                }
                Err(error) => {
                    // Out of files, most likely: it passes when a connection ends, and must not be spun on.
                    tracing::warn!(%error, "a connection can't be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    /// Binds the API's socket again when somebody removed it (a logout empties the runtime directory); where that can't be done and
    /// nothing runs, the daemon leaves: nobody could find it.
    async fn keep(self, daemon: Arc<Daemon>, paths: Paths) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(KEEP) => {}
                () = self.leaving.cancelled() => return,
                () = daemon.life.stopped() => return,
            }
            let Some(path) = paths.first() else { return };
            let Some(bound) = paths.bind_again(|path| bind_path(path).map_err(std::io::Error::other)) else { continue };
            match bound.and_then(tokio::net::UnixListener::from_std) {
                Ok(listener) => {
                    tracing::warn!(path = %path.display(), "the socket was removed: bound it again");
                    tokio::spawn(self.clone().accept(Listener::Unix(listener, path)));
                }
                Err(error) if daemon.builds.count() == 0 => {
                    tracing::warn!(path = %path.display(), %error, "the socket was removed and can't be bound again: leaving");
                    daemon.life.stop();
                }
                Err(_) => {}
            }
        }
    }
}

/// Gives memory back each time the daemon has come to rest.
async fn rest(life: Arc<Life>) {
    let mut rests = false;
    loop {
        tokio::time::sleep(REST).await;
        let was_at_rest = std::mem::replace(&mut rests, life.idle().is_some_and(|idle| idle >= REST));
        if rests
            && !was_at_rest
            && let Err(error) = bud_sandbox::rest::give_back()
        {
            tracing::debug!(%error, "memory can't be given back");
        }
    }
}

/// SIGTERM and SIGINT stop the daemon, SIGHUP (the terminal is gone) does not.
async fn signals(life: Arc<Life>) {
    let signals = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()), signal(SignalKind::hangup()));
    let (Ok(mut terminate), Ok(mut interrupt), Ok(mut hangup)) = signals else {
        tracing::warn!("signals can't be handled");
        return;
    };
    loop {
        tokio::select! {
            _ = terminate.recv() => life.stop(),
            _ = interrupt.recv() => life.stop(),
            _ = hangup.recv() => {}
            () = life.stopped() => return,
        }
    }
}
