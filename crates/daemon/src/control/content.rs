//! The content store on the control socket: blobs can be read, nothing can be written.

use crate::daemon::Daemon;
use crate::value::{blocking, store_error};
use bud_image::Digest;
use bud_protocol::content::content_server::Content;
use bud_protocol::content::*;
use bud_protocol::errors::BuildError;
use futures_util::Stream;
use std::io::Read as _;
use std::pin::Pin;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status as RpcStatus, Streaming};

/// Sent at once.
const CHUNK: usize = 1 << 20;

/// The service.
#[derive(Clone, Debug)]
pub struct ContentService {
    /// The daemon.
    pub daemon: Arc<Daemon>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, RpcStatus>> + Send>>;

fn digest(text: &str) -> Result<Digest, BuildError> {
    text.parse()
        .map_err(|_| BuildError::invalid(format!("{:?} is no digest", text.chars().take(100).collect::<String>())))
}

fn missing(digest: &Digest) -> BuildError {
    BuildError::not_found(format!("content {digest}: not found"))
}

fn read_only() -> RpcStatus {
    RpcStatus::permission_denied("the content store can only be read")
}

#[tonic::async_trait]
impl Content for ContentService {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, RpcStatus> {
        let digest = digest(&request.into_inner().digest)?;
        let size = self.daemon.store.blobs().size(&digest).map_err(store_error)?.ok_or_else(|| missing(&digest))?;
        let info =
            Info { digest: digest.to_string(), size: i64::try_from(size).unwrap_or(i64::MAX), ..Info::default() };
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    type ReadStream = Messages<ReadContentResponse>;

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, RpcStatus> {
        let request = request.into_inner();
        let digest = digest(&request.digest)?;
        let start = u64::try_from(request.offset).map_err(|_| BuildError::invalid("negative offset"))?;
        let size = self.daemon.store.blobs().size(&digest).map_err(store_error)?.ok_or_else(|| missing(&digest))?;
        let length = match u64::try_from(request.size) {
            Ok(0) => size.saturating_sub(start),
            Ok(n) => n.min(size.saturating_sub(start)),
            Err(_) => return Err(BuildError::invalid("negative size").into()),
        };
        let store = Arc::clone(&self.daemon.store);
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(async move {
            let errors = sender.clone();
            let sent = blocking(move || {
                let io = |e: std::io::Error| BuildError::other(format!("blob {digest}: {e}"));
                let mut file = store.blobs().open(&digest).map_err(store_error)?;
                // Read through, not sought: a blob is checked while it is read.
                std::io::copy(&mut (&mut file).take(start), &mut std::io::sink()).map_err(io)?;
                let (mut offset, mut left) = (start, length);
                while left > 0 {
                    let mut data = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
                    file.read_exact(&mut data).map_err(io)?;
                    left -= data.len() as u64;
                    let at = i64::try_from(offset).unwrap_or(i64::MAX);
                    offset += data.len() as u64;
                    if sender.blocking_send(Ok(ReadContentResponse { offset: at, data: data.into() })).is_err() {
                        break;
                    }
                }
                Ok(())
            })
            .await;
            if let Err(error) = sent {
                // The client may be gone.
                let _gone = errors.send(Err(error.into())).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    type ListStream = Messages<ListContentResponse>;

    async fn list(&self, _: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, RpcStatus> {
        Err(RpcStatus::unimplemented("the content store can't be listed"))
    }

    async fn status(&self, _: Request<StatusRequest>) -> Result<Response<StatusResponse>, RpcStatus> {
        Err(RpcStatus::not_found("nothing is being written"))
    }

    async fn list_statuses(
        &self,
        _: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, RpcStatus> {
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn update(&self, _: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, RpcStatus> {
        Err(read_only())
    }

    async fn delete(&self, _: Request<DeleteContentRequest>) -> Result<Response<()>, RpcStatus> {
        Err(read_only())
    }

    type WriteStream = Messages<WriteContentResponse>;

    async fn write(
        &self,
        _: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, RpcStatus> {
        Err(read_only())
    }

    async fn abort(&self, _: Request<AbortRequest>) -> Result<Response<()>, RpcStatus> {
        Err(read_only())
    }
}
