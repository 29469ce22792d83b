//! Streams piped into the client, as a context in a tar on standard input.

use std::io::Read;
use std::sync::{Arc, Mutex};

use bud_protocol::upload::BytesMessage;
use bud_protocol::upload::upload_server::Upload;
use bytes::BytesMut;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Attachables;

/// Bytes in one message.
const PIECE: usize = 256 << 10;

/// A stream that can be read once.
pub struct UploadSource(Mutex<Option<Box<dyn Read + Send>>>);

impl UploadSource {
    /// Offers what `reader` gives. It is read on a thread of its own.
    pub fn new(reader: impl Read + Send + 'static) -> UploadSource {
        UploadSource(Mutex::new(Some(Box::new(reader))))
    }
}

pub(super) struct Uploads(pub(super) Arc<Attachables>);

#[tonic::async_trait]
impl Upload for Uploads {
    type PullStream = ReceiverStream<Result<BytesMessage, Status>>;

    async fn pull(&self, request: Request<Streaming<BytesMessage>>) -> Result<Response<Self::PullStream>, Status> {
        let path = request.metadata().get("urlpath").and_then(|path| path.to_str().ok()).unwrap_or("");
        let id = path.trim_start_matches('/');
        let Some(source) = self.0.uploads.get(id) else {
            return Err(Status::not_found(format!("no upload {id:?}")));
        };
        let reader = source.0.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        let mut reader =
            reader.ok_or_else(|| Status::failed_precondition(format!("upload {id:?} was read already")))?;
        let (outbound, messages) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            loop {
                let mut buffer = BytesMut::zeroed(PIECE);
                let message = match reader.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(read) => {
                        buffer.truncate(read);
                        Ok(BytesMessage { data: buffer.freeze() })
                    }
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                    Err(error) => Err(Status::aborted(format!("reading the upload: {error}"))),
                };
                let failed = message.is_err();
                if outbound.blocking_send(message).is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}
