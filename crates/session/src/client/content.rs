//! Content stores: directories laid out as `blobs/sha256/HEX`.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bud_protocol::content::content_server::Content;
use bud_protocol::content::{
    AbortRequest, DeleteContentRequest, Info, InfoRequest, InfoResponse, ListContentRequest, ListContentResponse,
    ListStatusesRequest, ListStatusesResponse, ReadContentRequest, ReadContentResponse, StatusRequest, StatusResponse,
    UpdateRequest, UpdateResponse, WriteAction, WriteContentRequest, WriteContentResponse,
};
use bytes::BytesMut;
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::Attachables;
use crate::methods;

/// Bytes in one message.
const PIECE: usize = 1 << 20;

pub(super) const METHODS: &[&str] = &[
    methods::CONTENT_INFO,
    methods::CONTENT_READ,
    methods::CONTENT_WRITE,
    "/containerd.services.content.v1.Content/Update",
    "/containerd.services.content.v1.Content/List",
    "/containerd.services.content.v1.Content/Delete",
    "/containerd.services.content.v1.Content/Status",
    "/containerd.services.content.v1.Content/ListStatuses",
    "/containerd.services.content.v1.Content/Abort",
];

/// A directory with blobs.
#[derive(Clone)]
pub struct ContentStore {
    /// The directory that has `blobs/`.
    pub root: PathBuf,
    /// Blobs may be added.
    pub writable: bool,
}

impl ContentStore {
    /// Returns where a digest's blob is; no other text than a SHA-256 digest makes a path.
    fn path(&self, digest: &str) -> Result<PathBuf, Status> {
        let hex = digest
            .strip_prefix("sha256:")
            .filter(|hex| hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f')));
        let hex = hex.ok_or_else(|| Status::invalid_argument(format!("{digest:?} is no sha256 digest")))?;
        Ok(self.root.join("blobs/sha256").join(hex))
    }

    fn open(&self, digest: &str) -> Result<(File, u64), Status> {
        let path = self.path(digest)?;
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(Status::not_found(format!("content {digest}: not found")));
            }
            Err(error) => return Err(failed(&path, &error)),
        };
        let metadata = file.metadata().map_err(|error| failed(&path, &error))?;
        if !metadata.is_file() {
            return Err(Status::not_found(format!("content {digest}: not a file")));
        }
        Ok((file, metadata.len()))
    }
}

fn failed(path: &Path, error: &io::Error) -> Status {
    Status::internal(format!("{}: {error}", path.display()))
}

pub(super) struct Stores(pub(super) Arc<Attachables>);

impl Stores {
    fn find(&self, metadata: &MetadataMap) -> Result<ContentStore, Status> {
        let id = metadata.get(methods::STORE_ID).and_then(|id| id.to_str().ok()).unwrap_or("");
        let store = self.0.stores.get(id).cloned();
        store.ok_or_else(|| Status::not_found(format!("no content store {id:?}")))
    }
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Status> + Send + 'static) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(Status::internal(panic.to_string())))
}

fn info(digest: String, size: u64) -> Info {
    Info { digest, size: i64::try_from(size).unwrap_or(i64::MAX), ..Info::default() }
}

type Answers<T> = ReceiverStream<Result<T, Status>>;

#[tonic::async_trait]
impl Content for Stores {
    type ListStream = tokio_stream::Empty<Result<ListContentResponse, Status>>;
    type ReadStream = Answers<ReadContentResponse>;
    type WriteStream = Answers<WriteContentResponse>;

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let store = self.find(request.metadata())?;
        let digest = request.into_inner().digest;
        let info = blocking(move || store.open(&digest).map(|(_, size)| info(digest, size))).await?;
        Ok(Response::new(InfoResponse { info: Some(info) }))
    }

    /// Labels are not kept; the blob is as it was.
    async fn update(&self, request: Request<UpdateRequest>) -> Result<Response<UpdateResponse>, Status> {
        let store = self.find(request.metadata())?;
        let digest = request.into_inner().info.map(|info| info.digest).unwrap_or_default();
        let info = blocking(move || store.open(&digest).map(|(_, size)| info(digest, size))).await?;
        Ok(Response::new(UpdateResponse { info: Some(info) }))
    }

    async fn list(&self, request: Request<ListContentRequest>) -> Result<Response<Self::ListStream>, Status> {
        self.find(request.metadata())?;
        Ok(Response::new(tokio_stream::empty()))
    }

    async fn delete(&self, request: Request<DeleteContentRequest>) -> Result<Response<()>, Status> {
        self.find(request.metadata())?;
        Err(Status::unimplemented("blobs are not deleted through a session"))
    }

    async fn read(&self, request: Request<ReadContentRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let store = self.find(request.metadata())?;
        let ReadContentRequest { digest, offset, size } = request.into_inner();
        let (mut file, length) = {
            let digest = digest.clone();
            blocking(move || store.open(&digest)).await?
        };
        let offset = u64::try_from(offset).map_err(|_| Status::out_of_range("negative offset"))?;
        if offset > length {
            return Err(Status::out_of_range(format!("content {digest} has {length} bytes")));
        }
        let mut left = length - offset;
        if size > 0 {
            left = left.min(size as u64);
        }
        let (outbound, messages) = mpsc::channel(4);
        tokio::task::spawn_blocking(move || {
            let mut read = || -> io::Result<()> {
                file.seek(SeekFrom::Start(offset))?;
                let mut at = offset;
                while left > 0 {
                    let mut data = BytesMut::zeroed(left.min(PIECE as u64) as usize);
                    file.read_exact(&mut data)?;
                    let answer = ReadContentResponse { offset: at as i64, data: data.freeze() };
                    at += answer.data.len() as u64;
                    left -= answer.data.len() as u64;
                    if outbound.blocking_send(Ok(answer)).is_err() {
                        return Ok(());
                    }
                }
                Ok(())
            };
            if let Err(error) = read() {
                // The other end may be gone.
                let _ = outbound.blocking_send(Err(Status::internal(format!("content {digest}: {error}"))));
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        self.find(request.metadata())?;
        Err(Status::not_found(format!("no write {:?} is under way", request.into_inner().r#ref)))
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        self.find(request.metadata())?;
        Ok(Response::new(ListStatusesResponse::default()))
    }

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let store = self.find(request.metadata())?;
        if !store.writable {
            return Err(Status::permission_denied("this content store is only for reading"));
        }
        let mut inbound = request.into_inner();
        let (outbound, answers) = mpsc::channel(4);
        let (requests, queue) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Ok(Some(request)) = inbound.message().await {
                if requests.send(request).await.is_err() {
                    return;
                }
            }
        });
        tokio::task::spawn_blocking(move || {
            if let Err(status) = Incoming::new(store).run(queue, &outbound) {
                // The other end may be gone.
                let _ = outbound.blocking_send(Err(status));
            }
        });
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<()>, Status> {
        self.find(request.metadata())?;
        Ok(Response::new(()))
    }
}

/// A blob that is being written.
struct Incoming {
    store: ContentStore,
    expected: String,
    total: i64,
    open: Option<(PathBuf, File)>,
    hash: Sha256,
    offset: i64,
}

impl Incoming {
    fn new(store: ContentStore) -> Incoming {
        Incoming { store, expected: String::new(), total: 0, open: None, hash: Sha256::new(), offset: 0 }
    }

    fn run(
        mut self,
        mut queue: mpsc::Receiver<WriteContentRequest>,
        outbound: &mpsc::Sender<Result<WriteContentResponse, Status>>,
    ) -> Result<(), Status> {
        while let Some(request) = queue.blocking_recv() {
            let action = request.action();
            if !request.expected.is_empty() {
                let path = self.store.path(&request.expected)?;
                if self.offset == 0 && path.is_file() {
                    return Err(Status::already_exists(format!("content {}: already exists", request.expected)));
                }
                self.expected = request.expected;
            }
            if request.total > 0 {
                self.total = request.total;
            }
            let mut answer =
                WriteContentResponse { action: action as i32, total: self.total, ..WriteContentResponse::default() };
            if action != WriteAction::Stat {
                if request.offset != 0 || !request.data.is_empty() {
                    self.seek(request.offset)?;
                }
                self.append(&request.data)?;
            }
            if action == WriteAction::Commit {
                answer.digest = self.commit()?;
            }
            answer.offset = self.offset;
            if outbound.blocking_send(Ok(answer)).is_err() || action == WriteAction::Commit {
                return Ok(());
            }
        }
        Ok(())
    }

    fn seek(&self, offset: i64) -> Result<(), Status> {
        if offset == self.offset {
            return Ok(());
        }
        Err(Status::out_of_range(format!("the write is at {}, not at {offset}", self.offset)))
    }

    fn file(&mut self) -> Result<&mut (PathBuf, File), Status> {
        if self.open.is_none() {
            let dir = self.store.root.join("blobs/sha256");
            std::fs::create_dir_all(&dir).map_err(|error| failed(&dir, &error))?;
            let id = super::new_id()?;
            let path = dir.join(format!(".incoming-{id}"));
            let file =
                File::options().write(true).create_new(true).open(&path).map_err(|error| failed(&path, &error))?;
            self.open = Some((path, file));
        }
        self.open.as_mut().ok_or_else(|| Status::internal("no file"))
    }

    fn append(&mut self, data: &[u8]) -> Result<(), Status> {
        if data.is_empty() {
            return Ok(());
        }
        let length = self.offset.saturating_add(data.len() as i64);
        if self.total > 0 && length > self.total {
            return Err(Status::out_of_range(format!("more than the {} bytes that were announced", self.total)));
        }
        let (path, file) = self.file()?;
        file.write_all(data).map_err(|error| failed(path, &error))?;
        self.hash.update(data);
        self.offset = length;
        Ok(())
    }

    fn commit(&mut self) -> Result<String, Status> {
        self.file()?;
        let digest = format!("sha256:{}", hex::encode(std::mem::take(&mut self.hash).finalize()));
        if !self.expected.is_empty() && digest != self.expected {
            let message = format!("the content has digest {digest}, not {}", self.expected);
            return Err(Status::failed_precondition(message));
        }
        if self.total > 0 && self.total != self.offset {
            return Err(Status::failed_precondition(format!("{} of {} bytes came", self.offset, self.total)));
        }
        let path = self.store.path(&digest)?;
        if let Some((temporary, file)) = self.open.take() {
            drop(file);
            std::fs::rename(&temporary, &path).map_err(|error| failed(&path, &error))?;
        }
        Ok(digest)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if let Some((path, _)) = &self.open {
            // Nothing can be done if this fails.
            let _ = std::fs::remove_file(path);
        }
    }
}
