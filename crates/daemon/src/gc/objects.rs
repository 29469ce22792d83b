//! Cache mounts as objects: listed, removed, exported and imported by their ID.

use crate::daemon::Daemon;
use crate::value::{blocking, store_error};
use bud_protocol::bud::{CacheMount, ExportCacheMountResponse, ImportCacheMountRequest, ImportCacheMountResponse};
use bud_protocol::errors::BuildError;
use bud_store::layer::LayerError;
use bud_store::{Observer, Store, StoreError};
use bytes::Bytes;
use futures_util::Stream;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming};

/// Pieces of a tar on their way.
const PIECE: usize = 256 << 10;
/// A client that takes or gives nothing for so long is gone: steps wait for what it holds.
const STALL: Duration = Duration::from_secs(60);

struct Stop(CancellationToken);

impl Observer for Stop {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

fn refused(error: StoreError) -> BuildError {
    match error {
        StoreError::CacheBusy(_) => BuildError::new(Code::FailedPrecondition, error.to_string()),
        error => store_error(error),
    }
}

/// Returns the ID as the store has it: names in a Dockerfile stand below `/`, which people leave out.
fn known(store: &Arc<Store>, id: &str) -> Result<String, BuildError> {
    let objects = store.cache_objects().map_err(store_error)?;
    let slashed = format!("/{id}");
    let found = [id, &slashed].into_iter().find(|id| objects.iter().any(|object| object.id == **id));
    found.map(str::to_owned).ok_or_else(|| {
        let ids: Vec<&str> = objects.iter().take(20).map(|object| object.id.as_str()).collect();
        let hint = if ids.is_empty() { "there are none".to_owned() } else { format!("there are: {}", ids.join(", ")) };
        BuildError::not_found(format!("no cache mount {id:?}; {hint}"))
    })
}

/// Lists the cache mounts.
///
/// # Errors
/// The store fails.
pub async fn list(daemon: &Arc<Daemon>) -> Result<Vec<CacheMount>, BuildError> {
    let store = Arc::clone(&daemon.store);
    let objects = blocking(move || store.cache_objects().map_err(store_error)).await?;
    let seconds = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs());
    Ok(objects
        .into_iter()
        .map(|object| CacheMount {
            id: object.id,
            size: super::number(object.size),
            created_unix: super::number(seconds(object.created)),
            last_used_unix: super::number(seconds(object.last_used)),
            usage_count: super::number(object.usage_count),
            directories: object.directories,
            in_use: object.in_use,
        })
        .collect())
}

/// Removes a cache mount; returns its bytes.
///
/// # Errors
/// There is no such mount, or something uses it.
pub async fn remove(daemon: &Arc<Daemon>, id: String) -> Result<i64, BuildError> {
    let store = Arc::clone(&daemon.store);
    blocking(move || {
        let id = known(&store, &id)?;
        Ok(super::number(store.remove_cache_object(&id).map_err(refused)?.unwrap_or(0)))
    })
    .await
}

/// Writes pieces into a channel, as long as somebody takes them.
struct Pieces {
    sender: mpsc::Sender<Result<ExportCacheMountResponse, Status>>,
    runtime: tokio::runtime::Handle,
    buffer: Vec<u8>,
}

impl Pieces {
    fn send(&mut self) -> std::io::Result<()> {
        let data = Bytes::from(std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE)));
        let message = Ok(ExportCacheMountResponse { data });
        match self.runtime.block_on(self.sender.send_timeout(message, STALL)) {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(std::io::ErrorKind::BrokenPipe.into()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => {
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, "the client took nothing for a minute"))
            }
        }
    }
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() == PIECE {
            self.send()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() { Ok(()) } else { self.send() }
    }
}

/// Streams a cache mount as a tar. It is held meanwhile: steps that want it wait.
///
/// # Errors
/// There is no such mount, or something uses it.
pub async fn export(
    daemon: &Arc<Daemon>,
    id: String,
) -> Result<impl Stream<Item = Result<ExportCacheMountResponse, Status>> + use<>, BuildError> {
    let store = Arc::clone(&daemon.store);
    let mount = blocking(move || {
        let id = known(&store, &id)?;
        let mount = store.hold_cache_mount(&id).map_err(refused)?;
        mount.ok_or_else(|| BuildError::not_found(format!("cache mount {id:?} has no files")))
    })
    .await?;
    let (sender, receiver) = mpsc::channel(4);
    let (runtime, busy) = (tokio::runtime::Handle::current(), daemon.life.busy());
    tokio::task::spawn_blocking(move || {
        let pieces = Pieces { sender: sender.clone(), runtime, buffer: Vec::with_capacity(PIECE) };
        // A client that is gone is noticed by the next piece.
        if let Err(error) = mount.export(pieces, &()) {
            let status = Status::from(BuildError::other(format!("export the cache mount: {error}")));
            // Nobody may listen any more.
            sender.try_send(Err(status)).ok();
        }
        drop((mount, busy));
    });
    Ok(ReceiverStream::new(receiver))
}

/// Reads what a client sends, to the message that says that it was all.
struct Received {
    messages: mpsc::Receiver<Bytes>,
    complete: Arc<std::sync::atomic::AtomicBool>,
    piece: Bytes,
}

impl Read for Received {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.messages.blocking_recv() {
                Some(piece) => self.piece = piece,
                None if self.complete.load(std::sync::atomic::Ordering::Acquire) => return Ok(0),
                // A part is never taken for the whole.
                None => {
                    return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the client broke off"));
                }
            }
        }
        let n = buffer.len().min(self.piece.len());
        buffer[..n].copy_from_slice(&self.piece.split_to(n));
        Ok(n)
    }
}

/// Makes a cache mount of the tar that a client sends.
///
/// # Errors
/// The mount is in use, the tar is malformed or hostile, the client breaks off. The mount stays as it was then.
pub async fn import(
    daemon: &Arc<Daemon>,
    mut stream: Streaming<ImportCacheMountRequest>,
) -> Result<ImportCacheMountResponse, BuildError> {
    let broken = |e: Status| BuildError::other(format!("receive the tar: {}", e.message()));
    let first = stream.message().await.map_err(broken)?;
    let first = first.ok_or_else(|| BuildError::invalid("no cache mount is named"))?;
    let id = first.id.clone();
    if id.is_empty() || id.len() > 500 || id.contains('\0') {
        return Err(BuildError::invalid("the ID of a cache mount has 1 to 500 characters"));
    }
    let (sender, messages) = mpsc::channel(4);
    let complete = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let received = Received { messages, complete: Arc::clone(&complete), piece: Bytes::new() };
    let store = Arc::clone(&daemon.store);
    let stop = CancellationToken::new();
    let observer = Stop(stop.clone());
    let _busy = daemon.life.busy();
    // Dropped when the client goes, which ends the work.
    let _guard = stop.drop_guard();
    let work = blocking(move || {
        // As in a Dockerfile, where names stand below `/`.
        let id = known(&store, &id).unwrap_or(if id.starts_with('/') { id } else { format!("/{id}") });
        let done = store.import_cache_mount(&id, received, &observer);
        let done = done.map_err(|error| match error {
            LayerError::Store(error) => refused(error),
            error => BuildError::invalid(format!("import the cache mount {id:?}: {error}")),
        })?;
        Ok((id, done))
    });
    let feed = async move {
        let mut next = Some(first);
        while let Some(message) = next {
            let done = message.done;
            if !message.data.is_empty() && sender.send(message.data).await.is_err() {
                // The work ended; it says why.
                return;
            }
            if done {
                complete.store(true, std::sync::atomic::Ordering::Release);
                return;
            }
            next = match tokio::time::timeout(STALL, stream.message()).await {
                Ok(Ok(next)) => next,
                Ok(Err(_)) | Err(_) => None,
            };
        }
    };
    let (worked, ()) = tokio::join!(work, feed);
    let (id, imported) = worked?;
    let done = imported.done;
    Ok(ImportCacheMountResponse {
        id,
        entries: super::number(done.entries),
        bytes: super::number(done.bytes),
        skipped: super::number(done.skipped_devices),
        lost_owners: super::number(imported.lost_owners),
    })
}
