//! Blobs of layers: made when an export needs them, once, and kept.

use super::options::ImageOptions;
use crate::daemon::Daemon;
use crate::value::{Stop, blocking, store_error};
use bud_image::manifest::media_type;
use bud_oci::codec::{Compression, Compressor};
use bud_protocol::errors::BuildError;
use bud_store::blob::{BlobPin, LayerBlob};
use bud_store::layer::{self, LayerError, WriteOptions};
use bud_store::{LayerId, Snapshot, Store};
use std::collections::HashMap;
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

/// Returns the blob of the layer that a chain ends with.
///
/// A known one is taken as it is, whatever its compression, unless that is forced. `epoch`: times are cut to it.
///
/// # Errors
/// A file of the layer can't be read, or the disk is full.
pub async fn blob(
    daemon: &Arc<Daemon>,
    chain: &Snapshot,
    options: &ImageOptions,
    epoch: Option<i64>,
    cancel: &CancellationToken,
) -> Result<KeptBlob, BuildError> {
    let Some(top) = chain.top() else { return Err(BuildError::other("an empty chain has no layer")) };
    let form = Form { compression: options.compression.unwrap_or(Compression::Gzip), level: options.level, epoch };
    let lock = daemon.shared.layer_blobs.lock((top, form.name()));
    let _only = lock.lock().await;
    let (store, chain, force, cancel) = (Arc::clone(&daemon.store), chain.clone(), options.force, cancel.clone());
    blocking(move || match known(&store, top, &form, force)? {
        Some(kept) => Ok(kept),
        None => make(&store, &chain, top, &form, &cancel),
    })
    .await
}

fn known(store: &Arc<Store>, top: LayerId, form: &Form, force: bool) -> Result<Option<KeptBlob>, BuildError> {
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
    for (_, blob) in blobs {
        let pin = store.blobs().pin(&blob.digest).map_err(store_error)?;
        if store.blobs().contains(&blob.digest).map_err(store_error)? {
            return Ok(Some(KeptBlob { blob, _pin: Arc::new(pin) }));
        }
    }
    Ok(None)
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
