//! The sending end: lists a tree and answers requests for its files.

use std::collections::HashMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard};

use bud_protocol::fsutil::Packet;
use bud_protocol::fsutil::packet::PacketType;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use rustix::fs::{FileType, OFlags};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tonic::Status;

use super::mode::{FileKind, from_go_mode};
use super::walk::{TreeSource, WalkError, open_beneath, walk};
use super::{Outbound, Progress};
use crate::SessionError;

/// Files that are under way at a time.
const INTERLEAVED: usize = 4;
/// Bytes of a file in one packet.
const PIECE: usize = 128 << 10;

/// Files of the list that may still be asked for, by their number in it.
type Listed = Arc<Mutex<HashMap<u32, File>>>;

struct File {
    path: String,
    size: u64,
}

fn lock(listed: &Listed) -> MutexGuard<'_, HashMap<u32, File>> {
    // Nothing panics while it holds the lock.
    listed.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Sends a tree over a pair of packet streams until the other end has all it wants.
pub async fn send(
    source: TreeSource,
    inbound: &mut (impl Stream<Item = Result<Packet, Status>> + Unpin + Send),
    outbound: Outbound,
    progress: Option<Progress>,
) -> Result<(), SessionError> {
    let source = Arc::new(source);
    let listed = Listed::default();
    let mut work = JoinSet::new();
    {
        let (source, listed, outbound) = (source.clone(), listed.clone(), outbound.clone());
        work.spawn_blocking(move || list(&source, &listed, &outbound));
    }
    let slots = Arc::new(Semaphore::new(INTERLEAVED));
    let (wanted, mut queue) = mpsc::unbounded_channel::<(u32, File)>();
    let sent = Arc::new(std::sync::atomic::AtomicU64::new(0));
    let result = loop {
        tokio::select! {
            Some(done) = work.join_next() => match done {
                Ok(Ok(())) => {}
                Ok(Err(error)) => break Err(error),
                Err(panic) => break Err(SessionError::io("sending", io::Error::other(panic))),
            },
            Some(((id, file), slot)) = next(&mut queue, &slots) => {
                let (source, outbound, progress, sent) = (source.clone(), outbound.clone(), progress.clone(), sent.clone());
                work.spawn_blocking(move || {
                    let result = send_file(&source, id, &file, &outbound, |bytes| {
                        let before = sent.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed);
                        if let Some(progress) = &progress {
                            progress(before + bytes);
                        }
                    });
                    drop(slot);
                    result
                });
            }
            packet = inbound.next() => match packet {
                Some(Ok(packet)) => match PacketType::try_from(packet.r#type) {
                    Ok(PacketType::PacketReq) => {
                        let Some(file) = lock(&listed).remove(&packet.id) else {
                            break Err(SessionError::Protocol(format!(
                                "the receiver asks for file {}, which was not listed or was asked for before", packet.id
                            )));
                        };
                        // The queue's other end lives as long as this loop.
                        let _ = wanted.send((packet.id, file));
                    }
                    Ok(PacketType::PacketFin) => {
                        // The receiver may be gone already, having all it wants.
                        let _ = outbound.send(Ok(packet_of(PacketType::PacketFin, 0, Bytes::new()))).await;
                        return Ok(());
                    }
                    Ok(PacketType::PacketErr) => {
                        break Err(SessionError::Protocol(format!(
                            "error from the receiver: {}", String::from_utf8_lossy(&packet.data)
                        )));
                    }
                    _ => break Err(SessionError::Protocol("the receiver sends what only a sender sends".to_owned())),
                },
                Some(Err(status)) => break Err(SessionError::answer("", status)),
                None => break Err(SessionError::Protocol("the receiver left before it had everything".to_owned())),
            },
        }
    };
    if let Err(error) = &result {
        let message = Bytes::from(error.to_string());
        // Told as a courtesy: the other end may be gone.
        let _ = outbound.try_send(Ok(packet_of(PacketType::PacketErr, 0, message)));
    }
    result
}

async fn next(
    queue: &mut mpsc::UnboundedReceiver<(u32, File)>,
    slots: &Arc<Semaphore>,
) -> Option<((u32, File), tokio::sync::OwnedSemaphorePermit)> {
    // A slot first: a file that was taken from the queue must not be lost when this is dropped at an await.
    let slot = slots.clone().acquire_owned().await.ok()?;
    Some((queue.recv().await?, slot))
}

fn packet_of(kind: PacketType, id: u32, data: Bytes) -> Packet {
    Packet { r#type: kind as i32, id, data, stat: None }
}

/// Sends the stats, then the one without a stat.
fn list(source: &TreeSource, listed: &Listed, outbound: &Outbound) -> Result<(), SessionError> {
    let mut next = 0u32;
    let put = |packet| outbound.blocking_send(Ok(packet)).map_err(|_| WalkError::Stopped);
    let walked = walk(
        source,
        |stat| {
            if let Some((FileKind::Regular, _)) = from_go_mode(stat.mode) {
                let file = File { path: stat.path.clone(), size: stat.size.max(0) as u64 };
                lock(listed).insert(next, file);
            }
            next = next.checked_add(1).ok_or(WalkError::Stopped)?;
            let mut packet = packet_of(PacketType::PacketStat, 0, Bytes::new());
            packet.stat = Some(stat);
            put(packet)
        },
        |path| tracing::debug!(path, "a socket or device is not sent"),
    );
    match walked.and_then(|()| put(packet_of(PacketType::PacketStat, 0, Bytes::new()))) {
        Ok(()) => Ok(()),
        Err(WalkError::Stopped) => Err(SessionError::Cancelled),
        Err(WalkError::Io { path, source }) => Err(SessionError::io(format!("reading {}", path.display()), source)),
        Err(error) => Err(SessionError::Protocol(error.to_string())),
    }
}

/// Sends as many bytes of a file as were announced.
fn send_file(
    source: &TreeSource,
    id: u32,
    file: &File,
    outbound: &Outbound,
    sent: impl Fn(u64),
) -> Result<(), SessionError> {
    let path = &file.path;
    let failed = |error: io::Error| SessionError::io(format!("reading {path}"), error);
    let changed = || SessionError::Protocol(format!("{path} changed while it was being sent"));
    let part = source.parts.iter().find_map(|part| {
        let rest = match part.prefix.as_str() {
            "" => Some(path.as_str()),
            prefix => path.strip_prefix(prefix).and_then(|rest| rest.strip_prefix('/')),
        };
        rest.map(|rest| (part, rest))
    });
    let Some((part, path)) = part else { return Err(changed()) };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let opened = open_beneath(part.root.as_fd(), path.as_bytes(), flags).map_err(|error| match error {
        rustix::io::Errno::LOOP | rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR => changed(),
        error => failed(error.into()),
    })?;
    let stat = rustix::fs::fstat(&opened).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(changed());
    }
    let mut reader = std::fs::File::from(opened);
    let mut left = file.size;
    let put = |data| {
        let packet = packet_of(PacketType::PacketData, id, data);
        outbound.blocking_send(Ok(packet)).map_err(|_| SessionError::Cancelled)
    };
    while left > 0 {
        let mut buffer = BytesMut::zeroed(left.min(PIECE as u64) as usize);
        let read = reader.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            return Err(changed());
        }
        buffer.truncate(read);
        left -= read as u64;
        put(buffer.freeze())?;
        sent(read as u64);
    }
    put(Bytes::new())
}
