//! The sockets that the daemon listens on, and who may connect.

use std::io::{Error, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tonic::transport::server::Connected;

/// Connections that wait to be accepted.
const BACKLOG: i32 = 1024;

/// Why the daemon can't listen.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The address is none.
    #[error("{0:?} is no address to listen on: unix:///path or tcp://host:port")]
    Address(String),
    /// TCP is open to everybody on the machine, or beyond.
    #[error(
        "{0}: anybody who can connect could run anything: use a unix socket, through ssh from elsewhere, or say \
         --insecure-tcp (or BUD_INSECURE_TCP=1) if that is meant"
    )]
    InsecureTcp(String),
    /// The socket's directory is not safe.
    #[error("{}: {why}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Somebody listens already.
    #[error("{}: another daemon listens there already", .0.display())]
    InUse(PathBuf),
    /// The system refuses.
    #[error("listen on {address}: {source}")]
    Io {
        /// Where.
        address: String,
        /// Why.
        source: Error,
    },
}

/// A socket that listens.
#[derive(Debug)]
pub enum Listener {
    /// Unix, with its path.
    Unix(UnixListener, PathBuf),
    /// TCP.
    Tcp(TcpListener),
}

/// A socket that a service manager made and owns: it listens already, and stays when we go.
#[derive(Debug)]
pub struct Inherited {
    socket: InheritedSocket,
    /// Where it listens.
    pub address: String,
    /// Its path, if it has one.
    pub path: Option<PathBuf>,
}

#[derive(Debug)]
enum InheritedSocket {
    Unix(std::os::unix::net::UnixListener),
    Tcp(std::net::TcpListener),
}

impl Inherited {
    /// Looks at what was handed over. Its directory must be as safe as one that we make, and TCP needs to be allowed.
    ///
    /// # Errors
    /// It is no socket that listens, or not to be listened on.
    pub fn new(descriptor: OwnedFd, insecure_tcp: bool) -> Result<Self, ListenError> {
        let io = |source| ListenError::Io { address: "the socket of the service manager".into(), source };
        let os = |error: rustix::io::Errno| io(error.into());
        if !rustix::net::sockopt::socket_acceptconn(&descriptor).map_err(os)? {
            return Err(io(Error::new(
                ErrorKind::InvalidInput,
                "it doesn't listen (a stream socket with Accept=no is needed)",
            )));
        }
        rustix::io::ioctl_fionbio(&descriptor, true).map_err(os)?;
        if rustix::net::sockopt::socket_domain(&descriptor).map_err(os)? == rustix::net::AddressFamily::UNIX {
            let listener = std::os::unix::net::UnixListener::from(descriptor);
            let path = listener.local_addr().map_err(io)?.as_pathname().map(Path::to_owned);
            // In the abstract name space a name is anybody's who was first, and every network namespace has its own.
            let path = path.ok_or_else(|| io(Error::new(ErrorKind::InvalidInput, "it has no path")))?;
            if let Some(dir) = path.parent() {
                prepare_directory(dir)?;
            }
            let address = format!("unix://{}", path.display());
            return Ok(Self { socket: InheritedSocket::Unix(listener), address, path: Some(path) });
        }
        let listener = std::net::TcpListener::from(descriptor);
        let address = format!("tcp://{}", listener.local_addr().map_err(io)?);
        if !insecure_tcp {
            return Err(ListenError::InsecureTcp(address));
        }
        tracing::warn!("{address}: anybody who can connect can run anything as this user");
        Ok(Self { socket: InheritedSocket::Tcp(listener), address, path: None })
    }

    /// Begins to accept on it; in the runtime.
    ///
    /// # Errors
    /// The runtime can't.
    pub fn listener(self) -> std::io::Result<Listener> {
        Ok(match self.socket {
            InheritedSocket::Unix(listener) => {
                Listener::Unix(UnixListener::from_std(listener)?, self.path.unwrap_or_default())
            }
            InheritedSocket::Tcp(listener) => Listener::Tcp(TcpListener::from_std(listener)?),
        })
    }
}

/// A connection.
#[derive(Debug)]
pub enum Connection {
    /// Unix.
    Unix(UnixStream),
    /// TCP.
    Tcp(TcpStream),
}

/// Binds a socket of a path: in a directory of ours with mode 0700, the socket itself 0600 from its first moment on.
///
/// The process's umask must be 077 already. A socket that nobody listens on is removed.
///
/// # Errors
/// The directory is not safe, or somebody listens there.
pub fn bind_unix(path: &Path) -> Result<std::os::unix::net::UnixListener, ListenError> {
    let io = |source| ListenError::Io { address: format!("unix://{}", path.display()), source };
    let dir = path.parent().ok_or_else(|| ListenError::Address(path.display().to_string()))?;
    prepare_directory(dir)?;
    if let Ok(found) = std::fs::symlink_metadata(path) {
        if !found.file_type().is_socket() {
            return Err(io(Error::new(ErrorKind::AlreadyExists, "something that is no socket is in the way")));
        }
        match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(ListenError::InUse(path.to_owned())),
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Err(ListenError::InUse(path.to_owned())),
            Err(_) => std::fs::remove_file(path).map_err(io)?,
        }
    }
    let address = rustix::net::SocketAddrUnix::new(path).map_err(|e| io(e.into()))?;
    let flags = rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK;
    let socket =
        rustix::net::socket_with(rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM, flags, None)
            .map_err(|e| io(e.into()))?;
    rustix::net::bind(&socket, &address).map_err(|e| io(e.into()))?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).map_err(io)?;
    rustix::net::listen(&socket, BACKLOG).map_err(|e| io(e.into()))?;
    Ok(socket.into())
}

/// Makes the directory of a socket, or checks the one that is there: ours, no link, closed to others.
///
/// # Errors
/// It is not safe and can't be made so.
pub fn prepare_directory(dir: &Path) -> Result<(), ListenError> {
    let fail = |why: String| ListenError::Directory { dir: dir.to_owned(), why };
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    let found = std::fs::symlink_metadata(dir).map_err(|e| fail(made.err().unwrap_or(e).to_string()))?;
    if !found.is_dir() {
        return Err(fail("is a link or no directory; the socket's directory must be a real one".into()));
    }
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own {
        return Err(fail(format!("belongs to user {}, not to us; remove it or choose another", found.uid())));
    }
    if found.mode() & 0o077 != 0 {
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .map_err(|e| fail(format!("is open to others and can't be closed: {e}")))?;
    }
    Ok(())
}

impl Listener {
    /// Accepts the next connection of somebody who may connect; others are dropped.
    pub async fn accept(&self) -> std::io::Result<Connection> {
        loop {
            match self {
                Self::Tcp(listener) => {
                    let (stream, _) = listener.accept().await?;
                    // Small messages go at once; if that can't be set, they go a little later.
                    let _slower = stream.set_nodelay(true);
                    return Ok(Connection::Tcp(stream));
                }
                Self::Unix(listener, _) => {
                    let (stream, _) = listener.accept().await?;
                    match check_peer(&stream) {
                        Ok(()) => return Ok(Connection::Unix(stream)),
                        Err(error) => tracing::warn!(%error, "connection refused"),
                    }
                }
            }
        }
    }
}

/// Checks who connects (`SO_PEERCRED`, `unix(7)`). In a user namespace the own user reads as 0, real root as the overflow uid.
fn check_peer(stream: &UnixStream) -> std::io::Result<()> {
    let peer = stream.peer_cred()?;
    may_connect(peer.uid(), rustix::process::geteuid().as_raw())
}

/// Tells whether a user may connect: the daemon's own alone.
///
/// # Errors
/// It is another.
pub fn may_connect(peer: u32, own: u32) -> std::io::Result<()> {
    if peer == own {
        return Ok(());
    }
    Err(Error::new(ErrorKind::PermissionDenied, format!("user {peer} is not the daemon's own")))
}

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Unix(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_socket_is_closed_to_others_from_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d/s.sock");
        let listener = bind_unix(&path).unwrap();
        let mode = |p: &Path| std::fs::metadata(p).unwrap().mode() & 0o777;
        assert_eq!((mode(path.parent().unwrap()), mode(&path)), (0o700, 0o600));
        assert!(matches!(bind_unix(&path), Err(ListenError::InUse(_))));
        drop(listener);
        bind_unix(&path).unwrap();
    }

    #[test]
    fn an_unsafe_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(prepare_directory(&link).unwrap_err().to_string().contains("link"));
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        prepare_directory(&open).unwrap();
        assert_eq!(std::fs::metadata(&open).unwrap().mode() & 0o777, 0o700);
        std::fs::write(dir.path().join("file"), "").unwrap();
        assert!(bind_unix(&dir.path().join("file")).is_err());
    }

    #[test]
    fn only_the_own_user_may_connect() {
        assert!(may_connect(1000, 1000).is_ok());
        assert!(may_connect(0, 1000).is_err());
        assert!(may_connect(65534, 0).is_err());
    }
}
