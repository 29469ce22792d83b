//! Handing results to the client: a file, or a tree.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bud_protocol::filesync::BytesMessage;
use bud_protocol::filesync::file_send_client::FileSendClient;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt, stream};
use http_body_util::{BodyStream, StreamBody};
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::metadata::AsciiMetadataKey;
use tonic::{Request, Status};
use tower::ServiceExt as _;

use super::Session;
use super::files::packet_stream;
use super::session::ascii;
use crate::fsutil::{Progress, QUEUE, TreeSource, send};
use crate::{MAX_CHUNK, SessionError, methods};

/// What a blocking writer gathers before it sends.
const PIECE: usize = 1 << 20;

/// Lets a body end well only if the file is whole then; else the client sees its stream reset and drops what it has.
fn ended_or_cut(body: Body, is_whole: Arc<AtomicBool>) -> Body {
    let end = stream::once(async move { is_whole.load(Ordering::Acquire) }).filter_map(async |is_whole| {
        let cut = || Err(Status::cancelled("the file was cut off"));
        (!is_whole).then(cut)
    });
    Body::new(StreamBody::new(BodyStream::new(body).chain(end)))
}

impl Session {
    /// Opens the client's file for exporter number `exporter` (its index in the build request). `metadata` are the
    /// entries of the export's response so far.
    pub fn send_file(&self, exporter: u32, metadata: &BTreeMap<String, String>) -> Result<FileUpload, SessionError> {
        self.require(methods::FILE_SEND, "export target")?;
        let (pieces, messages) = mpsc::channel(4);
        let mut request = Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert(methods::EXPORTER_ID, exporter.into());
        for (key, value) in metadata {
            let key = format!("{}{}", methods::EXPORTER_METADATA, key.to_ascii_lowercase());
            if let (Ok(key), Ok(value)) = (AsciiMetadataKey::from_bytes(key.as_bytes()), ascii(value)) {
                request.metadata_mut().insert(key, value);
            }
        }
        let (mut ended, result) = oneshot::channel();
        let whole = Arc::new(AtomicBool::new(false));
        let session = self.clone();
        let is_whole = Arc::clone(&whole);
        tokio::spawn(async move {
            let channel = session.channel().map_request(move |request: http::Request<Body>| {
                let is_whole = Arc::clone(&is_whole);
                request.map(|body| ended_or_cut(body, is_whole))
            });
            let mut client = FileSendClient::new(channel);
            let doing = format!("export {exporter}");
            let call = async {
                let mut answer = client.diff_copy(request).await?.into_inner();
                // The client ends its side when the file is complete.
                while answer.message().await?.is_some() {}
                Ok(())
            };
            let result = tokio::select! {
                result = session.ask(doing, call) => result,
                () = ended.closed() => return,
            };
            // The caller may be gone.
            let _ = ended.send(result);
        });
        Ok(FileUpload { pieces: Some(pieces), whole, result })
    }

    /// Sends a tree to the client's directory for exporter number `exporter`.
    pub async fn send_tree(
        &self,
        exporter: u32,
        source: TreeSource,
        progress: Option<Progress>,
    ) -> Result<(), SessionError> {
        self.require(methods::FILE_SEND, "export target")?;
        let (outbound, packets) = mpsc::channel(QUEUE);
        let mut call = Request::new(tokio_stream::StreamExt::filter_map(ReceiverStream::new(packets), Result::ok));
        call.metadata_mut().insert(methods::EXPORTER_ID, exporter.into());
        call.metadata_mut().insert(methods::EXPORTER_MULTI_PLATFORM, 1u32.into());
        let doing = format!("export {exporter}");
        // Nothing comes back, not even headers, before the client asks for its first file: the list must flow meanwhile.
        let session = self.clone();
        let opening =
            async move { packet_stream(&session, methods::FILE_SEND, call).await.map(|answer| answer.into_inner()) };
        let mut inbound = std::pin::pin!(stream::once(opening).try_flatten());
        let transfer = async {
            send(source, &mut inbound, outbound, progress).await?;
            while inbound.next().await.transpose().map_err(|status| SessionError::answer("", status))?.is_some() {}
            Ok(())
        };
        let sent = tokio::select! {
            () = self.ended() => Err(SessionError::Ended(self.id().to_owned())),
            sent = transfer => sent,
        };
        sent.map_err(|error| match error {
            SessionError::Answer { status, .. } => SessionError::Answer { doing, status },
            other => other,
        })
    }
}

/// A file of the client that is being written. Dropped before [`FileUpload::finish`], the transfer is cut off.
pub struct FileUpload {
    pieces: Option<mpsc::Sender<BytesMessage>>,
    /// Whether the stream ends because the file is whole.
    whole: Arc<AtomicBool>,
    result: oneshot::Receiver<Result<(), SessionError>>,
}

impl FileUpload {
    /// Sends a piece of the file. An error is what the client answered: [`SessionError::is_already_exists`] tells that it
    /// doesn't want the file.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), SessionError> {
        while !data.is_empty() {
            let data = data.split_to(data.len().min(MAX_CHUNK));
            let sent = match &self.pieces {
                Some(pieces) => pieces.send(BytesMessage { data }).await.is_ok(),
                None => false,
            };
            if !sent {
                self.pieces = None;
                return Err(self.outcome().await.err().unwrap_or(cut_off()));
            }
        }
        Ok(())
    }

    /// Ends the file and waits until the client has it.
    pub async fn finish(mut self) -> Result<(), SessionError> {
        self.end();
        self.outcome().await
    }

    /// Ends the stream as a whole file.
    fn end(&mut self) {
        self.whole.store(true, Ordering::Release);
        self.pieces = None;
    }

    async fn outcome(&mut self) -> Result<(), SessionError> {
        (&mut self.result).await.unwrap_or(Err(cut_off()))
    }

    /// Makes a writer for blocking threads of it.
    pub fn into_blocking(self) -> BlockingWriter {
        BlockingWriter { upload: self, buffer: BytesMut::new(), declined: false }
    }
}

fn cut_off() -> SessionError {
    SessionError::Protocol("the client ended the export before it was complete".to_owned())
}

/// A [`FileUpload`] as [`io::Write`]. Not for use on async threads.
pub struct BlockingWriter {
    upload: FileUpload,
    buffer: BytesMut,
    declined: bool,
}

impl BlockingWriter {
    /// Tells whether a write failed because the client doesn't want the file.
    pub fn declined(&mut self) -> bool {
        self.declined || matches!(self.upload.result.try_recv(), Ok(Err(error)) if error.is_already_exists())
    }

    /// Sends what is left, ends the file and waits until the client has it.
    pub fn finish(mut self) -> Result<(), SessionError> {
        self.send()?;
        self.upload.end();
        self.upload.result.blocking_recv().unwrap_or(Err(cut_off()))
    }

    fn send(&mut self) -> Result<(), SessionError> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let data = self.buffer.split().freeze();
        let sent = match &self.upload.pieces {
            Some(pieces) => pieces.blocking_send(BytesMessage { data }).is_ok(),
            None => false,
        };
        if sent {
            return Ok(());
        }
        self.upload.pieces = None;
        let (_, none) = oneshot::channel();
        let result = std::mem::replace(&mut self.upload.result, none);
        let error = result.blocking_recv().unwrap_or(Err(cut_off())).err().unwrap_or(cut_off());
        self.declined = error.is_already_exists();
        Err(error)
    }
}

impl io::Write for BlockingWriter {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let data = &data[..data.len().min(PIECE)];
        self.buffer.extend_from_slice(data);
        if self.buffer.len() >= PIECE {
            self.send().map_err(io::Error::other)?;
        }
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.send().map_err(io::Error::other)
    }
}
