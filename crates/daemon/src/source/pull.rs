//! Layers on their way into the store: downloaded, verified, decompressed and unpacked at the same time, several at once.

use super::{SourceCx, fixed_key};
use crate::daemon::Daemon;
use crate::sessions::SessionGroup;
use crate::value::{Stop, Value, blocking, store_error};
use bud_image::{Descriptor, Digest, ImageConfig, ImageRef, Manifest};
use bud_oci::codec::{Compression, Digested};
use bud_oci::registry::{Problem, RegistryError, Repository};
use bud_protocol::errors::BuildError;
use bud_session::Session;
use bud_store::blob::LayerBlob;
use bud_store::{BlobWriter, Info, LayerDraft, RecordType, Snapshot, Store, layer};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::io::{Error, ErrorKind, Read, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Layers that are brought at the same time.
const LAYERS: usize = 6;
/// Chunks of a layer that wait for being unpacked.
const QUEUE: usize = 16;
/// Longest uncompressed layer.
const MAX_LAYER: u64 = 1 << 40;

/// Where an image's blobs come from.
#[derive(Clone)]
pub enum Origin {
    /// A registry.
    Registry(Repository),
    /// A client's content store.
    Layout {
        /// The client.
        session: Session,
        /// The store's name there: `oci:<id>`.
        store: String,
    },
}

/// How the note of a layer begins that came from a registry; the image's name follows.
const PULLED: &str = "pulled from ";

/// Returns the name of the image that a layer was pulled with, from the layer's note.
pub(crate) fn pulled_from(note: &str) -> Option<ImageRef> {
    ImageRef::parse(note.strip_prefix(PULLED)?).ok()
}

/// Fetches a layer's blob again that was lost or damaged, from where it came.
///
/// # Errors
/// It can't be had there, or is not what its digest says.
pub(crate) async fn refetch(
    daemon: &Arc<Daemon>,
    sessions: &SessionGroup,
    name: &ImageRef,
    wanted: &Descriptor,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let client = daemon.shared.registries.client(&daemon.config);
    let origin = Origin::Registry(client.repository(name, &super::registry::access(sessions)));
    let store = Arc::clone(&daemon.store);
    let mut writer = blocking(move || store.blobs().writer().map_err(store_error)).await?;
    let mut chunks = origin.blob(wanted).await?;
    while let Some(chunk) = tokio::select! {
        chunk = chunks.next() => chunk,
        () = cancel.cancelled() => return Err(BuildError::canceled()),
    } {
        let chunk = chunk?;
        writer = blocking(move || match writer.write_all(&chunk) {
            Ok(()) => Ok(writer),
            Err(e) => Err(BuildError::other(format!("write a layer's blob: {e}"))),
        })
        .await?;
    }
    let (digest, size) = (wanted.digest, wanted.size);
    blocking(move || writer.commit(Some(&digest), Some(size)).map(|_| ()).map_err(store_error)).await
}

impl Origin {
    /// Returns the note of a layer that came from here.
    fn note(&self, name: &str) -> String {
        match self {
            Self::Registry(_) => format!("{PULLED}{name}"),
            Self::Layout { .. } => format!("read from the layout {name}"),
        }
    }

    /// Streams a blob. Its digest is left to the reader to check; nothing longer than announced comes.
    async fn blob(&self, wanted: &Descriptor) -> Result<BoxStream<'static, Result<Bytes, BuildError>>, BuildError> {
        match self {
            Self::Registry(repository) => {
                let blob = repository.blob(wanted).unhashed();
                Ok(futures_util::stream::unfold(Some(blob), |blob| async move {
                    let mut blob = blob?;
                    match blob.chunk().await {
                        Ok(Some(chunk)) => Some((Ok(chunk), Some(blob))),
                        Ok(None) => None,
                        Err(error) => Some((Err(registry_error(&error)), None)),
                    }
                })
                .boxed())
            }
            Self::Layout { session, store } => {
                let stream = session.read_blob(store, &wanted.digest.to_string(), 0).await;
                let stream = stream.map_err(crate::sessions::session_error)?;
                let (size, digest, mut seen) = (wanted.size, wanted.digest, 0u64);
                Ok(stream
                    .map(move |chunk| {
                        let chunk = chunk.map_err(crate::sessions::session_error)?;
                        seen += chunk.len() as u64;
                        if seen > size {
                            return Err(BuildError::other(format!("{digest}: has more than {size} bytes")));
                        }
                        Ok(chunk)
                    })
                    .boxed())
            }
        }
    }
}

/// Converts a registry's error.
#[must_use]
pub fn registry_error(error: &RegistryError) -> BuildError {
    let code = match &error.problem {
        problem if problem.is_not_found() => tonic::Code::NotFound,
        Problem::Refused { .. } => tonic::Code::PermissionDenied,
        problem if problem.is_unavailable() => tonic::Code::Unavailable,
        _ => tonic::Code::Unknown,
    };
    BuildError::new(code, error.to_string())
}

/// Returns the ids of a chain's layers: each stands for a layer and all below it (OCI image spec, `config.md`).
#[must_use]
pub fn chain_ids(diff_ids: &[Digest]) -> Vec<Digest> {
    let mut chain: Vec<Digest> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        let next = chain.last().map_or(*diff_id, |below| Digest::of(format!("{below} {diff_id}")));
        chain.push(next);
    }
    chain
}

fn chain_key(chain: &Digest) -> Digest {
    fixed_key("layers", &[&chain.to_string()])
}

/// A layer, unpacked but not in its place yet.
struct Unpacked {
    draft: LayerDraft,
    diff_id: Digest,
    skipped_devices: u64,
}

/// Brings the layers of an image into the store, those alone that are not there.
///
/// # Errors
/// A blob can't be had, is not what its digest or the config says, or can't be unpacked.
pub async fn layers(
    origin: &Origin,
    (name, record_type): (&str, RecordType),
    manifest: &Manifest,
    config: &ImageConfig,
    limit: Option<usize>,
    cx: &SourceCx,
) -> Result<Value, BuildError> {
    let diff_ids = config.rootfs.diff_ids.as_deref().unwrap_or_default();
    if diff_ids.len() != manifest.layers.len() {
        return Err(BuildError::other(format!("{name}: manifest and config have different numbers of layers")));
    }
    let count = limit.unwrap_or(usize::MAX).min(diff_ids.len());
    let chains = chain_ids(&diff_ids[..count]);
    let store = Arc::clone(&cx.daemon.store);
    let known = {
        let (store, chains) = (Arc::clone(&store), chains.clone());
        blocking(move || longest_known(&store, &chains)).await?
    };
    let (done, mut snapshot, mut pin) = known;
    let permits = Arc::new(Semaphore::new(LAYERS));
    let tasks: Vec<_> = manifest.layers[done..count]
        .iter()
        .map(|wanted| {
            let (origin, wanted, cx, permits) = (origin.clone(), wanted.clone(), cx.clone(), Arc::clone(&permits));
            AbortOnDropHandle::new(tokio::spawn(async move {
                let _permit = permits.acquire_owned().await;
                // A prune must not take the blob before it is known whose it is.
                let kept = cx.daemon.store.blobs().pin(&wanted.digest).map_err(store_error)?;
                bring(&origin, &wanted, &cx).await.map(|unpacked| (unpacked, kept))
            }))
        })
        .collect();
    for (i, task) in tasks.into_iter().enumerate() {
        let i = done + i;
        let unpacked = task.await.map_err(|e| BuildError::other(format!("pulling {name}: {e}")))?;
        let (unpacked, kept) = unpacked.map_err(|e| e.context(name))?;
        if unpacked.diff_id != diff_ids[i] {
            let wanted = &manifest.layers[i].digest;
            return Err(BuildError::other(format!(
                "{name}: layer {wanted} unpacks to {}, its config says {}: the image is damaged",
                unpacked.diff_id, diff_ids[i]
            )));
        }
        if unpacked.skipped_devices > 0 {
            cx.progress.note(&format!("{} device nodes of {name} are left out", unpacked.skipped_devices));
        }
        let (store, below, chain) = (Arc::clone(&store), snapshot.clone(), chains[i]);
        let (wanted, description) = (manifest.layers[i].clone(), origin.note(name));
        let diff_id = unpacked.diff_id;
        (snapshot, pin) = blocking(move || {
            let mut draft = unpacked.draft;
            draft.set_parent(&below).map_err(store_error)?;
            let info = Info { description: description.clone(), record_type };
            let (snapshot, pin) = draft.commit(&info).map_err(store_error)?;
            if let Some(top) = snapshot.top() {
                remember_blob(&store, top, &wanted, diff_id)?;
            }
            drop(kept);
            store.put_record(&chain_key(&chain), &[Some(snapshot.clone())], &description).map_err(store_error)?;
            Ok((snapshot, Some(Arc::new(pin))))
        })
        .await?;
    }
    Ok(Value::Stored(snapshot, pin))
}

type Known = (usize, Snapshot, Option<Arc<bud_store::Pin>>);

/// Finds how many layers of a chain are there already.
fn longest_known(store: &Arc<Store>, chains: &[Digest]) -> Result<Known, BuildError> {
    for (i, chain) in chains.iter().enumerate().rev() {
        if let Some(record) = store.record(&chain_key(chain)).map_err(store_error)?
            && let Some(Some(snapshot)) = record.outputs.first()
        {
            return Ok((i + 1, snapshot.clone(), Some(Arc::new(record.pin.clone()))));
        }
    }
    Ok((0, Snapshot::scratch(), None))
}

/// Remembers a pulled blob as the layer's, so that an export copies it.
fn remember_blob(
    store: &Arc<Store>,
    layer: bud_store::LayerId,
    blob: &Descriptor,
    diff_id: Digest,
) -> Result<(), BuildError> {
    let mut reader = store.blobs().open(&blob.digest).map_err(store_error)?;
    let mut head = [0; 512];
    let n = reader.read(&mut head).map_err(|e| BuildError::other(format!("read {}: {e}", blob.digest)))?;
    let compression = Compression::detect(&head[..n]);
    let known = LayerBlob { media_type: blob.media_type.clone(), digest: blob.digest, size: blob.size, diff_id };
    store.set_layer_blob(layer, compression.name(), &known).map_err(store_error)
}

/// Downloads and unpacks a layer.
async fn bring(origin: &Origin, wanted: &Descriptor, cx: &SourceCx) -> Result<Unpacked, BuildError> {
    let store = Arc::clone(&cx.daemon.store);
    let cancel = cx.cancel.clone();
    let id = wanted.digest.to_string();
    let here = {
        let (store, digest) = (Arc::clone(&store), wanted.digest);
        blocking(move || Ok(store.blobs().open(&digest).ok())).await?
    };
    if let Some(reader) = here {
        let _extracting = cx.progress.status(format!("extracting {id}"));
        let (store, cancel) = (Arc::clone(&store), cancel.clone());
        match blocking(move || unpack(&store, reader, &cancel)).await {
            Ok(unpacked) => return Ok(unpacked),
            Err(error) if error.code == tonic::Code::Cancelled => return Err(error),
            // Reading a damaged blob takes it out of the store: now it is missing like any other.
            Err(error) => tracing::warn!("{id} is fetched again: {}", error.message),
        }
    }
    let downloading = cx.progress.status_of(&id, "downloading", wanted.size);
    let (send, receive) = mpsc::channel(QUEUE);
    let writer = {
        let store = Arc::clone(&store);
        blocking(move || store.blobs().writer().map_err(store_error)).await?
    };
    let feed = Feed {
        state: Arc::new(Mutex::new(FeedState { chunks: receive, writer: Some(writer) })),
        current: Bytes::new(),
    };
    let state = Arc::clone(&feed.state);
    let unpacking = {
        let cancel = cancel.clone();
        let state = Arc::clone(&feed.state);
        AbortOnDropHandle::new(tokio::task::spawn_blocking(move || {
            let unpacked = unpack(&store, feed, &cancel);
            // A layer that can't be unpacked is perhaps not the one that was asked for: its digest tells, so all of it is read.
            let kept = keep_rest(&state, &cancel);
            (unpacked, kept)
        }))
    };
    let download = async {
        let mut chunks = origin.blob(wanted).await?;
        let mut received = 0;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            received += chunk.len() as u64;
            downloading.set(received);
            if send.send(chunk).await.is_err() {
                // The bytes can't be kept; what is said of that counts.
                return Ok(());
            }
        }
        drop(send);
        Ok(())
    };
    let downloaded: Result<(), BuildError> = download.await;
    drop(downloading);
    let _extracting = cx.progress.status(format!("extracting {id}"));
    let (unpacked, kept) = unpacking.await.map_err(|e| BuildError::other(format!("unpacking {id}: {e}")))?;
    downloaded?;
    let (digest, size) = (wanted.digest, wanted.size);
    // The layer is kept only if the compressed bytes were those asked for; if they weren't, that is what went wrong.
    if unpacked.as_ref().is_err_and(|error| error.code == tonic::Code::Cancelled) {
        return unpacked;
    }
    let checked = blocking(move || {
        kept.map_err(|e| BuildError::other(format!("write blob {digest}: {e}")))?;
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        // Without a writer, the disk refused, and unpacking said so.
        let Some(writer) = state.writer.take() else { return Ok(None) };
        writer.commit(Some(&digest), Some(size)).map(Some).map_err(store_error)
    })
    .await;
    match (unpacked, checked) {
        (unpacked, Ok(_)) => unpacked.map_err(|e| e.context(format!("unpack layer {id}"))),
        (_, Err(error)) => Err(error.context(format!("layer {id}"))),
    }
}

/// Writes what unpacking left of a layer to its blob's file.
fn keep_rest(state: &Mutex<FeedState>, cancel: &CancellationToken) -> std::io::Result<()> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let FeedState { chunks, writer } = &mut *state;
    let written = (|| {
        while let Some(chunk) = chunks.blocking_recv() {
            match writer {
                Some(writer) if !cancel.is_cancelled() => writer.write_all(&chunk)?,
                _ => break,
            }
        }
        Ok(())
    })();
    // A sender that waits ends with this.
    chunks.close();
    written
}

/// Unpacks a compressed layer into a draft of its own.
fn unpack(
    store: &Arc<Store>,
    input: impl Read + Send + 'static,
    cancel: &CancellationToken,
) -> Result<Unpacked, BuildError> {
    let failed = |e: Error| BuildError::other(format!("decompress layer: {e}"));
    let mut draft = store.draft(&Snapshot::scratch()).map_err(store_error)?;
    let mut stream = Digested::new(input).map_err(failed)?;
    let applied = layer::apply(&mut stream, &mut draft, &Stop(cancel)).map_err(|e| match e {
        layer::LayerError::Cancelled => BuildError::canceled(),
        other => BuildError::other(other.to_string()),
    })?;
    let (diff_id, _) = stream.finish(MAX_LAYER).map_err(failed)?;
    Ok(Unpacked { draft, diff_id, skipped_devices: applied.skipped_devices })
}

/// Bytes from the network: written to the blob's file, and passed on to be unpacked.
struct Feed {
    state: Arc<Mutex<FeedState>>,
    current: Bytes,
}

struct FeedState {
    chunks: mpsc::Receiver<Bytes>,
    writer: Option<BlobWriter>,
}

impl Read for Feed {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.current.is_empty() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(chunk) = state.chunks.blocking_recv() else { return Ok(0) };
            match &mut state.writer {
                Some(writer) => {
                    if let Err(error) = writer.write_all(&chunk) {
                        // What is not whole has no digest worth a word.
                        state.writer = None;
                        return Err(error);
                    }
                }
                None => return Err(Error::new(ErrorKind::BrokenPipe, "nobody keeps the layer")),
            }
            self.current = chunk;
        }
        let n = buffer.len().min(self.current.len());
        buffer[..n].copy_from_slice(&self.current.split_to(n));
        Ok(n)
    }
}

/// Reads a small document of a client's content store, checked against its descriptor.
///
/// # Errors
/// It isn't there, is too long, or is not what the digest says.
pub async fn layout_document(session: &Session, store: &str, wanted: &Descriptor) -> Result<Bytes, BuildError> {
    const MOST: u64 = bud_oci::registry::MAX_DOCUMENT;
    let mut stream =
        session.read_blob(store, &wanted.digest.to_string(), 0).await.map_err(crate::sessions::session_error)?;
    let mut bytes = Vec::new();
    while let Some(chunk) = stream.next().await {
        bytes.extend_from_slice(&chunk.map_err(crate::sessions::session_error)?);
        if bytes.len() as u64 > MOST {
            return Err(BuildError::other(format!("{}: over {MOST} bytes", wanted.digest)));
        }
    }
    let actual = Digest::of(&bytes);
    if actual != wanted.digest {
        return Err(BuildError::other(format!("{}: the client's content has digest {actual}", wanted.digest)));
    }
    Ok(bytes.into())
}
