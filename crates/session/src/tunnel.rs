//! A byte stream over the messages of a gRPC stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bud_protocol::control::BytesMessage;
use bytes::Bytes;
use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::PollSender;
use tonic::{Status, Streaming};

/// Largest piece put into one message.
const CHUNK: usize = 256 << 10;

/// Both directions of a session's stream as one byte stream. Message boundaries mean nothing in it.
pub(crate) struct Tunnel {
    inbound: Streaming<BytesMessage>,
    rest: Bytes,
    outbound: PollSender<BytesMessage>,
    /// Set when either direction is over.
    over: watch::Sender<bool>,
}

impl Tunnel {
    /// Joins the two directions. The receiver turns true when the stream has ended, however that came.
    pub(crate) fn new(
        inbound: Streaming<BytesMessage>,
        outbound: mpsc::Sender<BytesMessage>,
    ) -> (Tunnel, watch::Receiver<bool>) {
        let (over, ended) = watch::channel(false);
        let tunnel = Tunnel { inbound, rest: Bytes::new(), outbound: PollSender::new(outbound), over };
        (tunnel, ended)
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.over.send_replace(true);
    }
}

fn broken(status: Status) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, status)
}

impl AsyncRead for Tunnel {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        while self.rest.is_empty() {
            match ready!(Pin::new(&mut self.inbound).poll_next(cx)) {
                Some(Ok(message)) => self.rest = message.data,
                Some(Err(status)) => {
                    self.over.send_replace(true);
                    return Poll::Ready(Err(broken(status)));
                }
                None => {
                    self.over.send_replace(true);
                    return Poll::Ready(Ok(()));
                }
            }
        }
        let taken = self.rest.len().min(buf.remaining());
        buf.put_slice(&self.rest.split_to(taken));
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Tunnel {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        if ready!(self.outbound.poll_reserve(cx)).is_err() {
            self.over.send_replace(true);
            return Poll::Ready(Err(gone()));
        }
        let data = &data[..data.len().min(CHUNK)];
        let message = BytesMessage { data: Bytes::copy_from_slice(data) };
        self.outbound.send_item(message).map_err(|_| gone())?;
        Poll::Ready(Ok(data.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.outbound.close();
        Poll::Ready(Ok(()))
    }
}
