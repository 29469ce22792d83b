//! The client's content stores: OCI layouts to read, an export to write.

use bud_protocol::content::content_client::ContentClient;
use bud_protocol::content::{InfoRequest, ReadContentRequest, WriteAction, WriteContentRequest, WriteContentResponse};
use bytes::Bytes;
use futures_util::Stream;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Streaming};

use super::Session;
use super::session::ascii;
use crate::{MAX_CHUNK, MAX_MESSAGE, SessionError, methods};

/// What a store says of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobInfo {
    /// Its size in bytes. Not checked: the blob's bytes must be verified by who reads them.
    pub size: u64,
}

impl Session {
    /// Looks `digest` up in the client's store; `None` if it isn't there, or there is no such store.
    pub async fn blob_info(&self, store: &str, digest: &str) -> Result<Option<BlobInfo>, SessionError> {
        self.require(methods::CONTENT_INFO, "content store")?;
        let mut request = Request::new(InfoRequest { digest: digest.to_owned() });
        request.metadata_mut().insert(methods::STORE_ID, ascii(store)?);
        let mut client = ContentClient::new(self.channel());
        match self.ask(format!("{store}: {digest}"), client.info(request)).await {
            Ok(answer) => match answer.into_inner().info {
                Some(info) if info.size >= 0 => Ok(Some(BlobInfo { size: info.size as u64 })),
                _ => Err(SessionError::Protocol(format!("{store}: {digest} has no size"))),
            },
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Reads `digest` of the client's store from `offset` on, in pieces. Nothing is verified here.
    pub async fn read_blob(
        &self,
        store: &str,
        digest: &str,
        offset: u64,
    ) -> Result<impl Stream<Item = Result<Bytes, SessionError>> + Send + Unpin + use<>, SessionError> {
        self.require(methods::CONTENT_READ, "content store")?;
        let offset = i64::try_from(offset).map_err(|_| SessionError::BadRequest("offset too large".to_owned()))?;
        let mut request = Request::new(ReadContentRequest { digest: digest.to_owned(), offset, size: 0 });
        request.metadata_mut().insert(methods::STORE_ID, ascii(store)?);
        let doing = format!("{store}: {digest}");
        let mut client = ContentClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let answer = self.ask(doing.clone(), client.read(request)).await?;
        Ok(answer.into_inner().map(move |message| match message {
            Ok(message) => Ok(message.data),
            Err(status) => Err(SessionError::answer(doing.clone(), status)),
        }))
    }

    /// Begins to write a blob into the client's store; `None` if it has it.
    pub async fn write_blob(
        &self,
        store: &str,
        reference: &str,
        digest: &str,
        size: u64,
    ) -> Result<Option<ContentWriter>, SessionError> {
        self.require(methods::CONTENT_WRITE, "content store")?;
        let (requests, messages) = mpsc::channel(4);
        let mut request = Request::new(ReceiverStream::new(messages));
        request.metadata_mut().insert(methods::STORE_ID, ascii(store)?);
        let size = i64::try_from(size).map_err(|_| SessionError::BadRequest("blob too large".to_owned()))?;
        let first = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            total: size,
            expected: digest.to_owned(),
            ..Default::default()
        };
        let doing = format!("{store}: {digest}");
        // The channel is new and has room.
        let _ = requests.try_send(first);
        let mut client = ContentClient::new(self.channel());
        let opened = async {
            let mut answers = client.write(request).await?.into_inner();
            let status = answers.message().await?;
            Ok((answers, status))
        };
        let (answers, status) = match self.ask(doing.clone(), opened).await {
            Err(error) if error.is_already_exists() => return Ok(None),
            opened => opened?,
        };
        let writer = ContentWriter {
            session: self.clone(),
            doing,
            requests,
            answers,
            offset: 0,
            size,
            digest: digest.to_owned(),
        };
        match status {
            Some(status) if status.offset == 0 => Ok(Some(writer)),
            _ => Err(writer.broken("it goes on with a half-written blob")),
        }
    }
}

/// A blob that is being written into a client's store.
pub struct ContentWriter {
    session: Session,
    doing: String,
    requests: mpsc::Sender<WriteContentRequest>,
    answers: Streaming<WriteContentResponse>,
    offset: i64,
    size: i64,
    digest: String,
}

impl ContentWriter {
    /// Writes the next piece.
    pub async fn write(&mut self, mut data: Bytes) -> Result<(), SessionError> {
        while !data.is_empty() {
            let data = data.split_to(data.len().min(MAX_CHUNK));
            let length = data.len() as i64;
            let answer = self.exchange(WriteContentRequest {
                action: WriteAction::Write as i32,
                offset: self.offset,
                data,
                ..Default::default()
            });
            let answer = answer.await?;
            self.offset += length;
            if answer.offset != self.offset {
                return Err(self.broken("it took another number of bytes than was sent"));
            }
        }
        Ok(())
    }

    /// Ends the blob; the client checks its digest.
    pub async fn commit(mut self) -> Result<(), SessionError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit as i32,
            offset: self.offset,
            total: self.size,
            expected: self.digest.clone(),
            ..Default::default()
        };
        match self.exchange(request).await {
            Err(SessionError::Answer { status, .. }) if status.code() == Code::AlreadyExists => Ok(()),
            answer => answer.map(|_| ()),
        }
    }

    async fn exchange(&mut self, request: WriteContentRequest) -> Result<WriteContentResponse, SessionError> {
        // If the client is gone, the answer says why.
        let _ = self.requests.send(request).await;
        let answer = self.session.ask(self.doing.clone(), self.answers.message()).await?;
        answer.ok_or_else(|| self.broken("it ended the stream"))
    }

    fn broken(&self, what: &str) -> SessionError {
        SessionError::Protocol(format!("{}: the client's content store is broken: {what}", self.doing))
    }
}
