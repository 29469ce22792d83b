//! Blobs of layers: made when an export needs them, once, and kept.

use super::options::ImageOptions;
use crate::daemon::Daemon;
use crate::progress::Reporter;
use crate::sessions::SessionGroup;
use crate::source::pull;
use crate::value::{Stop, blocking, store_error};
use bud_image::manifest::media_type;
use bud_image::{Descriptor, ImageRef};
use bud_oci::codec::{Compression, Compressor};
use bud_protocol::errors::BuildError;
use bud_store::blob::{BlobPin, LayerBlob};
use bud_store::layer::{self, LayerError, WriteOptions};
use bud_store::{LayerId, Snapshot, Store};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use tokio_util::sync::CancellationToken;

type Lock = tokio::sync::Mutex<()>;

/// Keeps two exports from making the same blob at the same time.
#[derive(Debug, Default)]
pub struct InFlight {
    making: Mutex<HashMap<(LayerId, String), Weak<Lock>>>,
}

impl InFlight {
    fn lock(&self, key: (LayerId, String)) -> Arc<Lock> {
        let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
        making.retain(|_, lock| lock.strong_count() > 0);
        if let Some(lock) = making.get(&key).and_then(Weak::upgrade) {
            return lock;
        }
        let lock = Arc::default();
        making.insert(key, Arc::downgrade(&lock));
        lock
    }
}

/// A layer's blob, which stays while this lives.
#[derive(Clone)]
pub struct KeptBlob {
    /// What it is.
    pub blob: LayerBlob,
    _pin: Arc<BlobPin>,
}

/// How one blob is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Form {
    compression: Compression,
    level: Option<i32>,
    epoch: Option<i64>,
}

impl Form {
    /// Names it in the store; pulled layers have plain names of compressions too.
    fn name(&self) -> String {
        let mut name = self.compression.name().to_owned();
        if let Some(level) = self.level {
            name += &format!(":{level}");
        }
        if let Some(epoch) = self.epoch {
            name += &format!("@{epoch}");
        }
        name
    }
}

/// Who wants blobs, and how.
#[derive(Clone, Copy)]
pub struct Wanted<'a> {
    /// The daemon.
    pub daemon: &'a Arc<Daemon>,
    /// Whose credentials open registries.
    pub sessions: &'a SessionGroup,
    /// Which compression, and whether it is forced.
    pub options: &'a ImageOptions,
    /// Hears of what is fetched again.
    pub progress: &'a Reporter,
    /// Asked whether to go on.
    pub cancel: &'a CancellationToken,
}

/// Returns the blob of the layer that a chain ends with.
///
/// A known one is taken as it is, whatever its compression, unless that is forced. One that came from a registry and was lost or
/// damaged since is fetched again; if it can't be, it is made of the layer's files. `epoch`: times are cut to it.
///
/// # Errors
/// A file of the layer can't be read, or the disk is full.
pub async fn blob(wanted: Wanted<'_>, chain: &Snapshot, epoch: Option<i64>) -> Result<KeptBlob, BuildError> {
    let Wanted { daemon, options, cancel, .. } = wanted;
    let Some(top) = chain.top() else { return Err(BuildError::other("an empty chain has no layer")) };
    let form = Form { compression: options.compression.unwrap_or(Compression::Gzip), level: options.level, epoch };
    let lock = daemon.shared.layer_blobs.lock((top, form.name()));
    let _only = lock.lock().await;
    let (store, force) = (Arc::clone(&daemon.store), options.force);
    let found = {
        let (store, form) = (Arc::clone(&store), form.clone());
        blocking(move || known(&store, top, &form, force)).await?
    };
    if let Known::Lost(kept, name) = found {
        return match fetch(wanted, &kept.blob, &name).await {
            Ok(()) => Ok(kept),
            Err(error) if error.code == tonic::Code::Cancelled => Err(error),
            Err(error) => {
                let short = format!("layer {} is made anew: its blob was lost and can't be fetched", kept.blob.digest);
                wanted.progress.note(&format!("{short}: {}", error.message));
                remade(store, chain, top, form, cancel).await
            }
        };
    }
    match found {
        Known::Here(kept) => Ok(kept),
        _ => remade(store, chain, top, form, cancel).await,
    }
}

async fn remade(
    store: Arc<Store>,
    chain: &Snapshot,
    top: LayerId,
    form: Form,
    cancel: &CancellationToken,
) -> Result<KeptBlob, BuildError> {
    let (chain, cancel) = (chain.clone(), cancel.clone());
    blocking(move || make(&store, &chain, top, &form, &cancel)).await
}

async fn fetch(wanted: Wanted<'_>, blob: &LayerBlob, name: &ImageRef) -> Result<(), BuildError> {
    wanted.progress.note(&format!("layer {} was lost or damaged: fetching it again from {name}", blob.digest));
    let descriptor = Descriptor {
        media_type: blob.media_type.clone(),
        digest: blob.digest,
        size: blob.size,
        urls: Vec::new(),
        annotations: BTreeMap::new(),
        platform: None,
    };
    pull::refetch(wanted.daemon, wanted.sessions, name, &descriptor, wanted.cancel).await
}

/// What the store knows of a layer's blob.
enum Known {
    /// It is there.
    Here(KeptBlob),
    /// It is not there any more; it came with this image.
    Lost(KeptBlob, ImageRef),
    /// It was never made in this form.
    Nothing,
}

fn known(store: &Arc<Store>, top: LayerId, form: &Form, force: bool) -> Result<Known, BuildError> {
    let mut blobs = store.layer_blobs(top).map_err(store_error)?;
    let name = form.name();
    let plain = form.compression.name();
    blobs.retain(|(known, _)| {
        let same_times = known.split_once('@').map(|(_, epoch)| epoch.to_owned()) == form.epoch.map(|e| e.to_string());
        // Pulled layers have no level; they are as they are, unless another is forced.
        let any_level = form.level.is_none() || !force;
        let same_form = *known == name || any_level && form.epoch.is_none() && known == plain;
        same_times && (same_form || !force && form.epoch.is_none())
    });
    blobs.sort_by_key(|(known, _)| (*known != name, known != plain));
    let mut lost = None;
    for (_, blob) in blobs {
        let kept = KeptBlob { _pin: Arc::new(store.blobs().pin(&blob.digest).map_err(store_error)?), blob };
        if store.blobs().is_sound(&kept.blob.digest).map_err(store_error)? {
            return Ok(Known::Here(kept));
        }
        lost.get_or_insert(kept);
    }
    let Some(lost) = lost else { return Ok(Known::Nothing) };
    let (_, note) = store.layer_notes(top).map_err(store_error)?;
    Ok(pull::pulled_from(&note).map_or(Known::Nothing, |name| Known::Lost(lost, name)))
}

fn make(
    store: &Arc<Store>,
    chain: &Snapshot,
    top: LayerId,
    form: &Form,
    cancel: &CancellationToken,
) -> Result<KeptBlob, BuildError> {
    let failed = |e: std::io::Error| BuildError::other(format!("write a layer's blob: {e}"));
    let writer = store.blobs().writer().map_err(store_error)?;
    let mut compressor = Compressor::new(writer, form.compression, form.level).map_err(failed)?;
    let options = WriteOptions { source_date_epoch: form.epoch, rewrite_timestamp: form.epoch.is_some() };
    let written = layer::write_tar(store, chain, &mut compressor, &options, &Stop(cancel));
    written.map_err(|e| match e {
        LayerError::Cancelled => BuildError::canceled(),
        other => BuildError::other(other.to_string()),
    })?;
    let done = compressor.finish().map_err(failed)?;
    let pin = store.blobs().pin(&done.digest).map_err(store_error)?;
    done.output.commit(Some(&done.digest), Some(done.size)).map_err(store_error)?;
    let blob = LayerBlob {
        media_type: oci_type(form.compression).into(),
        digest: done.digest,
        size: done.size,
        diff_id: done.diff_id,
    };
    store.set_layer_blob(top, &form.name(), &blob).map_err(store_error)?;
    Ok(KeptBlob { blob, _pin: Arc::new(pin) })
}

fn oci_type(compression: Compression) -> &'static str {
    match compression {
        Compression::Gzip => media_type::OCI_LAYER_GZIP,
        Compression::Zstd => media_type::OCI_LAYER_ZSTD,
        _ => media_type::OCI_LAYER,
    }
}

/// Returns a layer's media type in OCI's or Docker's words.
#[must_use]
pub fn converted_type(given: &str, oci: bool) -> &'static str {
    match (oci, given.ends_with("zstd"), given.ends_with("gzip")) {
        (true, true, _) => media_type::OCI_LAYER_ZSTD,
        (true, _, true) => media_type::OCI_LAYER_GZIP,
        (true, ..) => media_type::OCI_LAYER,
        (false, true, _) => media_type::DOCKER_LAYER_ZSTD,
        (false, _, true) => media_type::DOCKER_LAYER_GZIP,
        (false, ..) => media_type::DOCKER_LAYER,
    }
}
