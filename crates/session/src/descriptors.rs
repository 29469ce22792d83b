//! Handing over directories to a daemon on the same machine, in place of their files.
//!
//! "Same machine" is proven by the descriptors themselves, which only a process that shares the kernel can pass. They go over a second
//! socket beside the API's, all in one message: a line of JSON with the session's id and the locals' names, and the descriptors in the same order.
//! The id is the nonce that binds them: it is random, and known to the client and its daemon alone. The answer is a line, `ok` or `error: …`.

use std::io::{self, BufRead, BufReader, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::fs::FileType;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use serde::{Deserialize, Serialize};

/// Most directories in one message.
pub const MAX_DIRS: usize = 64;
/// Longest message, in bytes.
const MAX_MESSAGE: usize = 64 << 10;
/// Longest answer, in bytes.
const MAX_ANSWER: usize = 1024;
/// How long the other end may take.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Serialize, Deserialize)]
struct Message {
    session: String,
    names: Vec<String>,
}

/// Directories that were handed over.
#[derive(Debug)]
pub struct Handed {
    /// The session that they belong to.
    pub session: String,
    /// The locals' names in it, with their directories.
    pub dirs: Vec<(String, OwnedFd)>,
}

/// Hands directories, by the names of the locals that they are, to the daemon whose descriptor socket is at `socket`. The session must be
/// open. An error means that the files have to go over the session instead.
pub fn hand_over(socket: &Path, session_id: &str, dirs: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
    hand_over_on(&UnixStream::connect(socket)?, session_id, dirs)
}

/// Hands directories over on a connection.
pub fn hand_over_on(stream: &UnixStream, session_id: &str, dirs: &[(&str, BorrowedFd<'_>)]) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let message =
        Message { session: session_id.to_owned(), names: dirs.iter().map(|(name, _)| (*name).to_owned()).collect() };
    let mut message = serde_json::to_vec(&message)?;
    message.push(b'\n');
    if message.len() > MAX_MESSAGE || dirs.is_empty() || dirs.len() > MAX_DIRS {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no directories, or too many"));
    }
    let fds: Vec<BorrowedFd<'_>> = dirs.iter().map(|(_, fd)| *fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DIRS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    // The descriptors went with the first byte; the rest of a long line may follow.
    (&mut &*stream).write_all(&message[sent..])?;
    let mut answer = String::new();
    BufReader::new(stream.take(MAX_ANSWER as u64)).read_line(&mut answer)?;
    match answer.trim_end() {
        "ok" => Ok(()),
        "" => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
        refused => Err(io::Error::other(refused.strip_prefix("error: ").unwrap_or(refused).to_owned())),
    }
}

/// Receives what a client hands over on a connection, which must be in blocking mode. `accept` says whether the daemon wants it; its error is told to
/// the client.
pub fn take_over(stream: &UnixStream, accept: impl FnOnce(Handed) -> Result<(), String>) -> io::Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let taken = receive(stream).map_err(|error| error.to_string()).and_then(accept);
    let answer = match taken {
        Ok(()) => "ok\n".to_owned(),
        Err(message) => {
            let line: String = message.chars().filter(|c| !c.is_control()).take(MAX_ANSWER / 8).collect();
            format!("error: {line}\n")
        }
    };
    (&mut &*stream).write_all(answer.as_bytes())
}

fn receive(stream: &UnixStream) -> io::Result<Handed> {
    let invalid = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let mut line = Vec::new();
    let mut fds = Vec::new();
    let mut buffer = vec![0; MAX_MESSAGE];
    while line.last() != Some(&b'\n') {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DIRS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let received = rustix::net::recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 || line.len() + received.bytes > MAX_MESSAGE || fds.len() > MAX_DIRS {
            return Err(invalid("no whole message, or one that is too long"));
        }
        line.extend_from_slice(&buffer[..received.bytes]);
    }
    let message: Message = serde_json::from_slice(&line)?;
    if fds.is_empty() || fds.len() != message.names.len() {
        return Err(invalid("the message has not one descriptor a name"));
    }
    for fd in &fds {
        if FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) != FileType::Directory {
            return Err(invalid("a descriptor is no directory"));
        }
    }
    Ok(Handed { session: message.session, dirs: message.names.into_iter().zip(fds).collect() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

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
    fn directories_come_over_with_their_session() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("x"), "1").unwrap();
        let fd = std::fs::File::open(dir.path()).unwrap();
        let root = std::fs::File::open("/").unwrap();
        let mut taken = None;
        exchange(
            move |stream| hand_over_on(&stream, "s1", &[("context", fd.as_fd()), ("dockerfile", root.as_fd())]),
            |handed| {
                taken = Some(handed);
                Ok(())
            },
        )
        .unwrap();
        let taken = taken.unwrap();
        assert_eq!(taken.session, "s1");
        assert_eq!((taken.dirs[0].0.as_str(), taken.dirs[1].0.as_str()), ("context", "dockerfile"));
        assert!(rustix::fs::statat(&taken.dirs[0].1, "x", rustix::fs::AtFlags::empty()).is_ok());
        assert!(rustix::fs::statat(&taken.dirs[1].1, "proc", rustix::fs::AtFlags::empty()).is_ok());
    }

    #[test]
    fn a_refusal_is_told() {
        let fd = std::fs::File::open("/").unwrap();
        let error = exchange(
            move |stream| hand_over_on(&stream, "s1", &[("context", fd.as_fd())]),
            |_| Err("no such\nsession".to_owned()),
        );
        assert_eq!(error.unwrap_err().to_string(), "no suchsession");
    }

    #[test]
    fn what_is_no_directory_or_no_message_is_refused() {
        let file = tempfile::tempfile().unwrap();
        let never = |_| panic!("it was accepted");
        assert!(exchange(move |stream| hand_over_on(&stream, "s", &[("n", file.as_fd())]), never).is_err());
        let raw = |bytes: &'static [u8]| {
            exchange(
                move |mut stream| {
                    stream.write_all(bytes)?;
                    stream.shutdown(std::net::Shutdown::Write)?;
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer)?;
                    Err(io::Error::other(answer))
                },
                never,
            )
        };
        assert!(raw(b"{}\n").is_err());
        assert!(raw(b"").is_err());
        assert!(raw(&[b'x'; MAX_MESSAGE + 1]).unwrap_err().to_string().contains("too long"));
        let message = raw(b"{\"session\":\"s\",\"names\":[\"n\"]}\n").unwrap_err().to_string();
        assert!(message.contains("descriptor"), "{message}");
    }
}
