//! Makes images of results: layers' blobs, configs, manifests, an index if there are several platforms.

use super::ExportCx;
use super::config::{self, LayerNotes, go_escaped};
use super::layers::{self, KeptBlob, Wanted};
use super::options::{self, ImageOptions, Place};
use super::{ExportTree, Exportable};
use crate::daemon::Daemon;
use crate::images::PlatformImage;
use crate::progress::Reporter;
use crate::sessions::SessionGroup;
use crate::value::{blocking, store_error};
use bud_image::manifest::media_type;
use bud_image::{Descriptor, Digest, Index, Manifest, Platform};
use bud_protocol::errors::BuildError;
use bud_store::blob::BlobPin;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _, TryStreamExt as _};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Layers whose blobs are made at the same time.
const LAYERS: usize = 4;

/// What an image is made with.
pub struct Maker<'a> {
    /// The daemon.
    pub daemon: &'a Arc<Daemon>,
    /// Whose credentials open registries, where a base's layer has to be fetched again.
    pub sessions: &'a SessionGroup,
    /// How.
    pub options: ImageOptions,
    /// Where progress goes.
    pub progress: &'a Reporter,
    /// Asked whether to go on.
    pub cancel: &'a CancellationToken,
}

/// An image with all its parts in the store.
#[derive(Clone)]
pub struct Image {
    /// The manifest, or the index.
    pub top: Descriptor,
    /// Its bytes.
    pub top_bytes: Bytes,
    /// One for each platform.
    pub platforms: Vec<Made>,
    /// True if `top` is an index.
    pub is_index: bool,
    _pins: Vec<Arc<BlobPin>>,
}

/// The image of one platform.
#[derive(Clone)]
pub struct Made {
    /// Its platform.
    pub platform: Platform,
    /// Its manifest.
    pub manifest: Descriptor,
    /// The manifest's bytes.
    pub manifest_bytes: Bytes,
    /// Its config.
    pub config: Descriptor,
    /// The config's bytes.
    pub config_bytes: Bytes,
    /// Its layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// Digests of the layers' tars.
    pub diff_ids: Vec<Digest>,
    /// The numbers of the store's layers.
    pub snapshot: Vec<i64>,
    _blobs: Vec<KeptBlob>,
}

impl Image {
    /// Returns all blobs with their sizes, each once.
    #[must_use]
    pub fn blobs(&self) -> BTreeMap<Digest, u64> {
        let parts = |made: &Made| {
            let own = [made.manifest.clone(), made.config.clone()];
            own.into_iter().chain(made.layers.clone()).map(|d| (d.digest, d.size)).collect::<Vec<_>>()
        };
        let mut blobs: BTreeMap<_, _> = self.platforms.iter().flat_map(parts).collect();
        blobs.insert(self.top.digest, self.top.size);
        blobs
    }

    /// Returns what is remembered of the platforms under an image's name.
    #[must_use]
    pub fn remembered(&self) -> Vec<PlatformImage> {
        let of = |made: &Made| PlatformImage {
            platform: made.platform.to_string(),
            config: String::from_utf8_lossy(&made.config_bytes).into_owned(),
            layers: made.snapshot.clone(),
            manifest: made.manifest.digest.to_string(),
            id: made.config.digest.to_string(),
        };
        self.platforms.iter().map(of).collect()
    }

    /// Returns the blobs that are small and can't be made again alike later: manifests and configs.
    #[must_use]
    pub fn documents(&self) -> Vec<Digest> {
        let mut all = vec![self.top.digest];
        all.extend(self.platforms.iter().flat_map(|m| [m.manifest.digest, m.config.digest]));
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Returns the metadata entry of a tree: of its platform, else the result's.
#[must_use]
pub fn metadata_of<'a>(result: &'a Exportable, key: &str, tree: &ExportTree) -> Option<&'a [u8]> {
    let own = result.metadata.get(&format!("{key}/{}", tree.id)).filter(|_| !tree.id.is_empty());
    own.or_else(|| result.metadata.get(key)).map(Vec::as_slice)
}

impl<'a> Maker<'a> {
    /// Makes what an exporter needs.
    pub fn of(cx: &'a ExportCx, options: ImageOptions) -> Self {
        Self { daemon: &cx.daemon, sessions: &cx.sessions, options, progress: &cx.progress, cancel: &cx.cancel }
    }

    /// Makes the image of a result.
    ///
    /// # Errors
    /// A layer can't be read, a config is invalid, the disk is full.
    pub async fn image(&mut self, result: &Exportable) -> Result<Image, BuildError> {
        self.options.annotations.add_metadata(&result.metadata)?;
        let platforms: Vec<_> = result.trees.iter().map(|t| t.platform.clone()).collect();
        let is_index = result.multi_platform;
        self.options.annotations.check(&platforms, is_index)?;
        let scratch = [ExportTree {
            id: String::new(),
            platform: self.daemon.settings.platform(),
            snapshot: bud_store::Snapshot::scratch(),
            pin: None,
            config: None,
            base_config: None,
        }];
        let trees = if result.trees.is_empty() { &scratch[..] } else { &result.trees[..] };
        let exporting = self.progress.status("exporting layers");
        let mut layers = Vec::new();
        for tree in trees {
            layers.push(self.layers(result, tree).await?);
        }
        drop(exporting);
        let mut made = Vec::new();
        let mut pins = Vec::new();
        for (tree, (blobs, notes)) in trees.iter().zip(layers) {
            made.push(self.platform(result, tree, blobs, &notes, &mut pins).await?);
        }
        let (top, top_bytes) = if is_index {
            self.index(&made, &mut pins).await?
        } else {
            let only = made.first().ok_or_else(|| BuildError::other("no image to export"))?;
            if made.len() > 1 {
                return Err(BuildError::invalid("cannot export multiple platforms without multi-platform enabled"));
            }
            (only.manifest.clone(), only.manifest_bytes.clone())
        };
        Ok(Image { top, top_bytes, platforms: made, is_index, _pins: pins })
    }

    fn epoch(&self, result: &Exportable, tree: &ExportTree) -> Result<Option<i64>, BuildError> {
        match self.options.epoch {
            Some(epoch) => Ok(epoch),
            None => match metadata_of(result, "source.date.epoch", tree) {
                Some(text) => options::epoch(&String::from_utf8_lossy(text)),
                None => Ok(None),
            },
        }
    }

    /// Makes the layers' blobs of a tree.
    async fn layers(
        &self,
        result: &Exportable,
        tree: &ExportTree,
    ) -> Result<(Vec<KeptBlob>, Vec<LayerNotes>), BuildError> {
        let (store, snapshot) = (Arc::clone(&self.daemon.store), tree.snapshot.clone());
        let (chains, notes) = blocking(move || {
            let chains = store.logical_layers(&snapshot).map_err(store_error)?;
            let notes = chains.iter().map(|chain| match chain.top() {
                Some(top) => store.layer_notes(top).map_err(store_error),
                None => Err(BuildError::other("an empty chain has no layer")),
            });
            let notes = notes.collect::<Result<Vec<_>, _>>()?;
            Ok((chains, notes))
        })
        .await?;
        let epoch = self.epoch(result, tree)?.filter(|_| self.options.rewrite);
        let of_base = tree.base_config.as_ref().and_then(|c| c.rootfs.diff_ids.as_ref()).map_or(0, Vec::len);
        let wanted = Wanted {
            daemon: self.daemon,
            sessions: self.sessions,
            options: &self.options,
            progress: self.progress,
            cancel: self.cancel,
        };
        let blobs: Vec<KeptBlob> = stream::iter(chains.into_iter().enumerate())
            .map(|(i, chain)| {
                // The base's layers stay as they are.
                let epoch = epoch.filter(|_| i >= of_base);
                async move { layers::blob(wanted, &chain, epoch).await }
            })
            .buffered(LAYERS)
            .try_collect()
            .await?;
        let notes = blobs.iter().zip(notes).map(|(kept, (created, description))| LayerNotes {
            diff_id: kept.blob.diff_id,
            created,
            description,
        });
        let notes = notes.collect();
        Ok((blobs, notes))
    }

    /// Makes config and manifest of a platform.
    async fn platform(
        &self,
        result: &Exportable,
        tree: &ExportTree,
        blobs: Vec<KeptBlob>,
        notes: &[LayerNotes],
        pins: &mut Vec<Arc<BlobPin>>,
    ) -> Result<Made, BuildError> {
        let epoch = self.epoch(result, tree)?;
        let default;
        let given = match metadata_of(result, "containerimage.config", tree) {
            Some(given) => given,
            None => {
                default = config::default_config(&tree.platform);
                &default
            }
        };
        let config_bytes = Bytes::from(config::complete(given, notes, epoch, tree.base_config.as_ref())?);
        let (manifest_type, config_type) = if self.options.oci {
            (media_type::OCI_MANIFEST, media_type::OCI_CONFIG)
        } else {
            (media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG)
        };
        let config = descriptor(config_type, &config_bytes);
        let layers: Vec<_> = blobs
            .iter()
            .map(|KeptBlob { blob, .. }| Descriptor {
                media_type: layers::converted_type(&blob.media_type, self.options.oci).into(),
                digest: blob.digest,
                size: blob.size,
                urls: Vec::new(),
                annotations: BTreeMap::new(),
                platform: None,
            })
            .collect();
        let annotations = &self.options.annotations;
        let manifest = Manifest {
            schema_version: 2,
            media_type: manifest_type.into(),
            artifact_type: String::new(),
            config: config.clone(),
            layers: layers.clone(),
            subject: None,
            annotations: annotations.of(Place::Manifest, Some(&tree.platform)),
        };
        let manifest_bytes = pretty(&manifest)?;
        let manifest = Descriptor {
            annotations: annotations.of(Place::ManifestDescriptor, Some(&tree.platform)),
            platform: Some(tree.platform.clone()),
            ..descriptor(manifest_type, &manifest_bytes)
        };
        let writing = self.progress.status(format!("exporting manifest {}", manifest.digest));
        pins.push(self.keep(&manifest_bytes).await?);
        drop(writing);
        let writing = self.progress.status(format!("exporting config {}", config.digest));
        pins.push(self.keep(&config_bytes).await?);
        drop(writing);
        Ok(Made {
            platform: tree.platform.clone(),
            manifest,
            manifest_bytes,
            config,
            config_bytes,
            layers,
            diff_ids: notes.iter().map(|n| n.diff_id).collect(),
            snapshot: tree.snapshot.layers().iter().map(|id| id.0).collect(),
            _blobs: blobs,
        })
    }

    async fn index(&self, made: &[Made], pins: &mut Vec<Arc<BlobPin>>) -> Result<(Descriptor, Bytes), BuildError> {
        let kind = if self.options.oci { media_type::OCI_INDEX } else { media_type::DOCKER_LIST };
        let annotations = &self.options.annotations;
        let index = Index {
            schema_version: 2,
            media_type: kind.into(),
            manifests: made.iter().map(|m| m.manifest.clone()).collect(),
            annotations: annotations.of(Place::Index, None),
        };
        let bytes = pretty(&index)?;
        let top = Descriptor { annotations: annotations.of(Place::IndexDescriptor, None), ..descriptor(kind, &bytes) };
        let _writing = self.progress.status(format!("exporting manifest list {}", top.digest));
        pins.push(self.keep(&bytes).await?);
        Ok((top, bytes))
    }

    /// Puts a document into the store, where it stays while the pin lives.
    async fn keep(&self, bytes: &Bytes) -> Result<Arc<BlobPin>, BuildError> {
        let (store, bytes) = (Arc::clone(&self.daemon.store), bytes.clone());
        blocking(move || {
            let pin = store.blobs().pin(&Digest::of(&bytes)).map_err(store_error)?;
            store.blobs().put(&bytes).map_err(store_error)?;
            Ok(Arc::new(pin))
        })
        .await
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: kind.into(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        urls: Vec::new(),
        annotations: BTreeMap::new(),
        platform: None,
    }
}

fn pretty(document: &impl serde::Serialize) -> Result<Bytes, BuildError> {
    let text =
        serde_json::to_string_pretty(document).map_err(|e| BuildError::other(format!("write a manifest: {e}")))?;
    Ok(go_escaped(&text).into())
}
