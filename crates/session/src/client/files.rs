//! Sharing directories.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use bud_patterns::{Filter, follow};
use bud_protocol::filesync::file_sync_server::FileSync;
use bud_protocol::fsutil::Packet;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status, Streaming};

use super::Attachables;
use crate::fsutil::{self, Part, TreeSource};
use crate::methods;

/// A directory that is shared. Cheap to clone.
#[derive(Clone)]
pub struct LocalDir {
    root: Arc<OwnedFd>,
}

impl LocalDir {
    /// Opens the directory `path`.
    pub fn open(path: &Path) -> io::Result<LocalDir> {
        let fd = rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(LocalDir::from_fd(fd))
    }

    /// Shares a directory that is open for reading.
    pub fn from_fd(fd: OwnedFd) -> LocalDir {
        LocalDir { root: Arc::new(fd) }
    }
}

impl AsFd for LocalDir {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

pub(super) struct Files(pub(super) Arc<Attachables>);

type Packets = ReceiverStream<Result<Packet, Status>>;

#[tonic::async_trait]
impl FileSync for Files {
    type DiffCopyStream = Packets;
    type TarStreamStream = Packets;

    async fn diff_copy(&self, request: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        let (metadata, _, mut inbound) = request.into_parts();
        let name = metadata.get(methods::DIR_NAME).and_then(|name| name.to_str().ok()).unwrap_or("");
        let Some(dir) = self.0.locals.get(name) else {
            return Err(Status::not_found(format!("no access allowed to dir {name:?}")));
        };
        let include = values(&metadata, methods::INCLUDE)?;
        let exclude = values(&metadata, methods::EXCLUDE)?;
        let follow = values(&metadata, methods::FOLLOW)?;
        for path in include.iter().chain(&follow) {
            if path.split('/').any(|name| name == "..") {
                return Err(Status::invalid_argument(format!("{path:?} leads out of dir {name:?}")));
            }
        }
        let dir = dir.clone();
        let source = tokio::task::spawn_blocking(move || source(&dir, include, &exclude, &follow))
            .await
            .map_err(|panic| Status::internal(panic.to_string()))??;
        let (outbound, packets) = mpsc::channel(fsutil::QUEUE);
        let name = name.to_owned();
        tokio::spawn(async move {
            let failed = outbound.clone();
            if let Err(error) = fsutil::send(source, &mut inbound, outbound, None).await {
                tracing::debug!(%error, dir = name, "a directory could not be sent");
                // The other end may be gone.
                let _ = failed.send(Err(Status::from(error))).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(packets)))
    }

    async fn tar_stream(&self, _: Request<Streaming<Packet>>) -> Result<Response<Packets>, Status> {
        Err(Status::unimplemented("TarStream is not offered"))
    }
}

/// Makes what is to be sent of a request's patterns. All entries get owner 0, so that a build never sees the user's ids.
fn source(
    dir: &LocalDir,
    mut include: Vec<String>,
    exclude: &[String],
    paths: &[String],
) -> Result<TreeSource, Status> {
    let invalid = |error: &dyn std::fmt::Display| Status::invalid_argument(error.to_string());
    if !paths.is_empty() {
        // That the root itself is reached adds no pattern: without others, everything is taken then.
        let followed = follow(&fsutil::root_links(dir.as_fd()), paths).map_err(|error| invalid(&error))?;
        include.extend(followed.unwrap_or_default());
    }
    let filter = Filter::new(&include[..], exclude).map_err(|error| invalid(&error))?;
    let root = dir.root.try_clone().map_err(|error| Status::internal(error.to_string()))?;
    Ok(TreeSource { parts: vec![Part { prefix: String::new(), root }], filter, owner: Some((0, 0)), clamp_time: None })
}

/// Returns the values of a repeated key, which may be escaped.
fn values(metadata: &MetadataMap, key: &str) -> Result<Vec<String>, Status> {
    let escaped = metadata.get(format!("{key}-encoded")).is_some_and(|flag| flag == "1");
    let bad = || Status::invalid_argument(format!("{key} has a value that can't be read"));
    let mut values = Vec::new();
    for value in metadata.get_all(key) {
        let value = value.to_str().map_err(|_| bad())?;
        values.push(if escaped { methods::unescape(value).ok_or_else(bad)? } else { value.to_owned() });
    }
    Ok(values)
}
