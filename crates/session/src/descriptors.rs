//! Handing over a directory to a daemon on the same machine, in place of its files.
//!
//! "Same machine" is proven by the descriptor itself, which only a process that shares the kernel can pass. It goes over a second
//! socket beside the API's, in one message: the session's id, the local's name, and the descriptor. The id is the nonce that binds it:
//! it is random, and known to the client and its daemon alone.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Longest message, in bytes.
const MAX_MESSAGE: usize = 4096;
/// How long the other end may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// What the daemon answers when it has taken a descriptor.
const TAKEN: &[u8] = b"ok";

#[derive(Serialize, Deserialize)]
struct Message {
    session: String,
    name: String,
}

/// A directory that was handed over.
#[derive(Debug)]
pub struct Handed {
    /// The session that it belongs to.
    pub session: String,
    /// The local's name in it.
    pub name: String,
    /// The directory, open for reading.
    pub dir: OwnedFd,
}

/// Hands the directory `dir`, open for reading, to the daemon whose descriptor socket is at `socket`. An error means that the files have to go
/// over the session instead.
pub fn hand_over(socket: &Path, session_id: &str, name: &str, dir: impl AsFd) -> io::Result<()> {
    let stream = UnixStream::connect(socket)?;
    hand_over_on(&stream, session_id, name, dir.as_fd())
}

/// Hands a directory over on a connection.
pub fn hand_over_on(stream: &UnixStream, session_id: &str, name: &str, dir: BorrowedFd<'_>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let message = Message { session: session_id.to_owned(), name: name.to_owned() };
    let message = serde_json::to_vec(&message)?;
    if message.len() > MAX_MESSAGE {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [dir];
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    if sent != message.len() {
        return Err(io::Error::from(io::ErrorKind::WriteZero));
    }
    let mut answer = [0; 256];
    let read = io::Read::read(&mut &*stream, &mut answer)?;
    if &answer[..read] == TAKEN {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&answer[..read]).into_owned()))
}

/// Receives what a client hands over on a connection, which must be in blocking mode. `accept` says whether the daemon wants it; its error is told to
/// the client.
pub fn take_over(stream: &UnixStream, accept: impl FnOnce(Handed) -> Result<(), String>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let answer = match receive(stream) {
        Ok(handed) => accept(handed),
        Err(error) => Err(error.to_string()),
    };
    let answer = match &answer {
        Ok(()) => TAKEN,
        Err(message) => &message.as_bytes()[..message.len().min(200)],
    };
    io::Write::write_all(&mut &*stream, answer)
}

fn receive(stream: &UnixStream) -> io::Result<Handed> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut buffer = vec![0; MAX_MESSAGE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received =
        rustix::net::recvmsg(stream, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    // All descriptors are taken out, so that surplus ones are closed.
    let mut fds = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if received.bytes == 0 || received.bytes > MAX_MESSAGE {
        return Err(invalid("no message, or one that is too long"));
    }
    let message: Message = serde_json::from_slice(&buffer[..received.bytes])?;
    let mut fds = fds.into_iter();
    let (Some(dir), None) = (fds.next(), fds.next()) else {
        return Err(invalid("not one descriptor came with it"));
    };
    let stat = rustix::fs::fstat(&dir)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(invalid("the descriptor is no directory"));
    }
    Ok(Handed { session: message.session, name: message.name, dir })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exchange(
        send: impl FnOnce(UnixStream) -> io::Result<()> + Send + 'static,
        accept: impl FnOnce(Handed) -> Result<(), String>,
    ) -> io::Result<()> {
        let (client, daemon) = UnixStream::pair().unwrap();
        let sending = std::thread::spawn(move || send(client));
        take_over(&daemon, accept).unwrap();
        drop(daemon);
        sending.join().unwrap()
    }

    #[test]
    fn a_directory_comes_over_with_its_session() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "1").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let mut taken = None;
        exchange(
            move |stream| hand_over_on(&stream, "s1", "context", fd.as_fd()),
            |handed| {
                taken = Some(handed);
                Ok(())
            },
        )
        .unwrap();
        let taken = taken.unwrap();
        assert_eq!((taken.session.as_str(), taken.name.as_str()), ("s1", "context"));
        assert!(rustix::fs::statat(&taken.dir, "x", rustix::fs::AtFlags::empty()).is_ok());
    }

    #[test]
    fn a_refusal_is_told() {
        let fd = std::fs::File::open("/").unwrap();
        let error = exchange(
            move |stream| hand_over_on(&stream, "s1", "context", fd.as_fd()),
            |_| Err("no such session".to_owned()),
        );
        assert_eq!(error.unwrap_err().to_string(), "no such session");
    }

    #[test]
    fn what_is_no_directory_or_no_message_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let never = |_| panic!("it was accepted");
        assert!(exchange(move |stream| hand_over_on(&stream, "s", "n", file.as_fd()), never).is_err());
        let raw = |bytes: &'static [u8]| {
            exchange(
                move |mut stream| {
                    io::Write::write_all(&mut stream, bytes)?;
                    let mut answer = String::new();
                    io::Read::read_to_string(&mut stream, &mut answer)?;
                    Err(io::Error::other(answer))
                },
                never,
            )
        };
        assert!(raw(b"{}").is_err());
        assert!(raw(br#"{"session":"s","name":"n"}"#).unwrap_err().to_string().contains("descriptor"));
    }
}
