//! The receiving end: packets go to a thread that writes, its requests go back.

use std::io;
use std::os::fd::OwnedFd;

use bud_protocol::fsutil::Packet;
use bud_protocol::fsutil::packet::PacketType;
use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::sync::mpsc;
use tonic::Status;

use super::writer::{ReceiveOptions, Received, Writer};
use super::{Outbound, QUEUE};
use crate::SessionError;

/// How long a sender may take to end its stream.
const END_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Receives a tree into the directory `dest` over a pair of packet streams.
///
/// What the sender says is checked: paths are clean, relative, in order and below directories that it listed before; a file has the
/// size that was announced. Nothing outside `dest` is touched.
pub async fn receive(
    dest: OwnedFd,
    mut inbound: impl Stream<Item = Result<Packet, Status>> + Unpin + Send,
    outbound: Outbound,
    options: ReceiveOptions,
) -> Result<Received, SessionError> {
    let (packets, queue) = mpsc::channel(QUEUE);
    let requests = outbound.clone();
    let mut writing = tokio::task::spawn_blocking(move || Writer::new(dest, options, requests).run(queue));
    let mut packets = Some(packets);
    let result = loop {
        tokio::select! {
            written = &mut writing => {
                let written = written.map_err(|panic| SessionError::io("writing", io::Error::other(panic)));
                break written.and_then(|written| written);
            }
            packet = inbound.next(), if packets.is_some() => {
                let fault = match packet {
                    Some(Ok(packet)) if packet.r#type == PacketType::PacketErr as i32 => {
                        let message = String::from_utf8_lossy(&packet.data[..packet.data.len().min(4096)]).into_owned();
                        Some(SessionError::Protocol(format!("error from the sender: {message}")))
                    }
                    Some(Ok(packet)) => {
                        // The writer is gone if this fails; its result is taken above.
                        if let Some(packets) = &packets {
                            let _ = packets.send(packet).await;
                        }
                        None
                    }
                    Some(Err(status)) => Some(SessionError::answer("", status)),
                    None => Some(SessionError::Protocol("the sender left before it had sent everything".to_owned())),
                };
                if let Some(fault) = fault {
                    drop(packets.take());
                    // The writer ends, and cleans up, once nothing more can come; it may have failed for its own reason before.
                    break match (&mut writing).await {
                        Ok(Err(SessionError::Cancelled)) => Err(fault),
                        Ok(written) => written,
                        Err(panic) => Err(SessionError::io("writing", io::Error::other(panic))),
                    };
                }
            }
        }
    };
    match &result {
        Ok(_) => {
            // Half-closed; the sender ends its side.
            drop(outbound);
            let drained = async { while let Some(Ok(_)) = inbound.next().await {} };
            // All is here: one who doesn't end the stream only has it ended for him.
            let _ = tokio::time::timeout(END_TIMEOUT, drained).await;
        }
        Err(error) => {
            let packet = Packet {
                r#type: PacketType::PacketErr as i32,
                data: Bytes::from(error.to_string()),
                ..Packet::default()
            };
            // Told as a courtesy: the other end may be gone.
            let _ = outbound.try_send(Ok(packet));
        }
    }
    result
}
