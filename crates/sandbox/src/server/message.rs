//! Requests to the fork server: one message with descriptors.

use std::io;
use std::io::{IoSlice, IoSliceMut, Read, Seek, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};

use crate::container::Streams;
use crate::spec::ContainerSpec;

/// A specification up to this size travels in the message, a larger one in a file in memory.
const MAX_INLINE: usize = 100 << 10;

/// A larger specification is a mistake.
const MAX_SPEC: u64 = 64 << 20;

/// The first byte of a message: what the descriptors after the channel are.
const HAS_STDIN: u8 = 1;
const HAS_FILE: u8 = 2;

/// Channel, standard output and error; standard input and the file are optional.
const MAX_DESCRIPTORS: usize = 5;

/// A container that is asked for.
pub(super) struct Request {
    pub(super) spec: ContainerSpec,
    pub(super) channel: OwnedFd,
    pub(super) streams: Streams,
}

/// Asks for a container.
pub(super) fn send(
    socket: BorrowedFd<'_>,
    spec: &ContainerSpec,
    channel: BorrowedFd<'_>,
    streams: &Streams,
) -> io::Result<()> {
    let mut message = vec![0u8];
    serde_json::to_writer(&mut message, spec)?;
    let mut descriptors = vec![channel, streams.stdout.as_fd(), streams.stderr.as_fd()];
    if let Some(stdin) = &streams.stdin {
        message[0] |= HAS_STDIN;
        descriptors.push(stdin.as_fd());
    }
    let file;
    if message.len() > MAX_INLINE {
        let mut memory = std::fs::File::from(rustix::fs::memfd_create("spec", rustix::fs::MemfdFlags::CLOEXEC)?);
        memory.write_all(&message[1..])?;
        message.truncate(1);
        message[0] |= HAS_FILE;
        file = memory;
        descriptors.push(file.as_fd());
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::io::retry_on_intr(|| {
        rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)
    })?;
    Ok(())
}

/// Takes the next request; `None` when nobody can send one any more.
///
/// An error is one of this message; the next one may be good.
pub(super) fn receive(socket: BorrowedFd<'_>, buffer: &mut Vec<u8>) -> io::Result<Option<Request>> {
    buffer.resize(MAX_INLINE + 1, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    if received.bytes == 0 {
        return Ok(None);
    }
    let mut descriptors = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            descriptors.extend(rights);
        }
    }
    let mut descriptors = descriptors.into_iter();
    let mut next = || descriptors.next().ok_or_else(|| io::Error::other("a request lacks a descriptor"));
    let kind = buffer[0];
    let (channel, stdout, stderr) = (next()?, next()?, next()?);
    let stdin = if kind & HAS_STDIN != 0 { Some(next()?) } else { None };
    let spec = if kind & HAS_FILE != 0 {
        let mut file = std::fs::File::from(next()?);
        file.rewind()?;
        let mut bytes = Vec::new();
        file.take(MAX_SPEC).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes)?
    } else {
        serde_json::from_slice(&buffer[1..received.bytes])?
    };
    Ok(Some(Request { spec, channel, streams: Streams { stdin, stdout, stderr, owners: None } }))
}
