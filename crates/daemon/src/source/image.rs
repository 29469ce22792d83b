//! `docker-image://`: images of registries, and of our own store.

use super::pull::{self, Origin};
use super::{Pin, PinKey, SourceCx, fixed_key, registry};
use crate::images::{ImageData, PlatformImage};
use crate::value::{Value, blocking, store_error};
use bud_image::{Descriptor, Digest, ImageConfig, ImageRef, Manifest, Platform};
use bud_oci::registry::{MAX_DOCUMENT, ManifestDocument, RegistryError, Repository};
use bud_protocol::control::VertexWarning;
use bud_protocol::errors::BuildError;
use bud_store::{LayerId, RecordType, Snapshot, Store};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// When a registry is asked what a tag stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ResolveMode {
    /// Our own store's name wins; else a remembered tag younger than 15 minutes; else the registry; else, with one warning, the remembered one.
    #[default]
    Default,
    /// Always the registry.
    ForcePull,
    /// What is here, if it is here.
    PreferLocal,
}

impl ResolveMode {
    /// Reads BuildKit's names: `default`, `pull`, `local`, or nothing.
    ///
    /// # Errors
    /// Any other.
    pub fn parse(name: &str) -> Result<Self, BuildError> {
        match name {
            "" | "default" => Ok(Self::Default),
            "pull" => Ok(Self::ForcePull),
            "local" => Ok(Self::PreferLocal),
            other => Err(BuildError::invalid(format!("invalid image resolve mode {other:?}"))),
        }
    }
}

/// An image to build on.
#[derive(Clone, Debug)]
pub struct ImageSource {
    /// Which.
    pub reference: ImageRef,
    /// How it is resolved.
    pub mode: ResolveMode,
    /// Only so many of its layers.
    pub layer_limit: Option<usize>,
    /// Its platform; none: the worker's.
    pub platform: Option<Platform>,
    /// What its layers are listed as: images that only help to build (`internal`, `frontend`) outlive a plain prune.
    pub record_type: RecordType,
}

/// An image as it was resolved.
#[derive(Clone, Debug)]
pub struct ResolvedImage {
    /// The reference asked for, with the digest found (`docker.io/library/alpine:latest@sha256:…`); without one for an image of
    /// our own store whose digest was never needed.
    pub reference: String,
    /// `sha256:…` of what the name stands for (an index, if it is one), empty if unknown.
    pub digest: String,
    /// The platform's config, as JSON, byte for byte.
    pub config: Vec<u8>,
}

impl ImageSource {
    /// Parses identifier and attributes: `image.resolvemode`, `image.recordtype`, `image.layerlimit`, `image.checksum`; unknown ones
    /// are ignored, bad values are errors.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(
        rest: &str,
        attrs: &BTreeMap<String, String>,
        platform: Option<&Platform>,
    ) -> Result<Self, BuildError> {
        let reference = ImageRef::parse(rest)
            .map_err(|e| BuildError::invalid(format!("could not parse image reference {rest:?}: {e}")))?
            .or_latest();
        let attr = |key: &str| attrs.get(key).map(String::as_str).unwrap_or_default();
        let layer_limit = match attr("image.layerlimit") {
            "" => None,
            text => Some(
                text.parse()
                    .ok()
                    .filter(|n| *n > 0)
                    .ok_or_else(|| BuildError::invalid(format!("invalid layer limit {text:?} of {rest}")))?,
            ),
        };
        Ok(Self {
            reference,
            mode: ResolveMode::parse(attr("image.resolvemode"))?,
            layer_limit,
            platform: platform.cloned(),
            record_type: RecordType::from_name(attr("image.recordtype")).unwrap_or_default(),
        })
    }

    /// Resolves name and platform to a digest and a config, without layers: for front ends. Progress
    /// (`resolve docker.io/library/alpine:latest`) goes to `cx.progress`, which is a vertex of its own here. What was found is remembered, so that the
    /// [`Self::pin`] that follows in the same build asks nobody again.
    ///
    /// # Errors
    /// The image isn't there, or not for the platform; the registry refuses.
    pub async fn resolve(&self, cx: &SourceCx) -> Result<ResolvedImage, BuildError> {
        Ok(match self.find(cx).await? {
            Found::Own(own) => {
                cx.progress.note(&format!("{} is the image built here", self.reference.familiar()));
                let mut reference = self.reference.clone();
                reference.digest = own.digest.parse::<Digest>().ok().map(Into::into);
                ResolvedImage { reference: reference.to_string(), digest: own.digest, config: own.config.into_bytes() }
            }
            Found::Remote(known) => {
                let mut reference = self.reference.clone();
                reference.digest = Some(known.top.digest.into());
                ResolvedImage {
                    reference: reference.to_string(),
                    digest: known.top.digest.to_string(),
                    config: known.config.into_bytes(),
                }
            }
        })
    }

    /// Pins to the manifest of the platform: the key is `fixed_key("image", [manifest digest, layer limit])`; for an image of our own
    /// store, its layers.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let limit = self.layer_limit.map(|n| n.to_string()).unwrap_or_default();
        let (key, state) = match self.find(cx).await? {
            Found::Own(own) => {
                let layers = own.layers.iter().map(i64::to_string).collect::<Vec<_>>().join(",");
                (fixed_key("stored", &[&layers, &limit]), [("layers".to_owned(), layers)])
            }
            Found::Remote(known) => {
                let text = serde_json::to_string(&*known).map_err(|e| BuildError::other(e.to_string()))?;
                (fixed_key("image", &[&known.manifest.digest.to_string(), &limit]), [("image".to_owned(), text)])
            }
        };
        Ok(Pin { key: PinKey::Fixed(key), state: BTreeMap::from(state) })
    }

    /// Pulls and unpacks the layers, each once (a layer that the store has under the same chain is not pulled), several at a time,
    /// with a status per layer digest (`downloading`, then `extracting sha256:…`). The blobs stay in the store, so that an
    /// export of the same layers copies nothing.
    ///
    /// # Errors
    /// A blob can't be had, is not what its digest says, or can't be unpacked.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let name = self.reference.familiar();
        if let Some(layers) = pin.state.get("layers") {
            return self.own_layers(layers, cx).await;
        }
        let known: Known = pin
            .state
            .get("image")
            .and_then(|text| serde_json::from_str(text).ok())
            .ok_or_else(|| BuildError::other(format!("{name}: not resolved")))?;
        let mut reference = self.reference.clone();
        reference.digest = Some(known.top.digest.into());
        let resolving = cx.progress.status(format!("resolve {reference}"));
        let repository = self.repository(cx);
        let manifest = known.manifest(&repository, cx).await?;
        let config: ImageConfig = serde_json::from_str(&known.config)
            .map_err(|e| BuildError::other(format!("{name}: the image's config can't be read: {e}")))?;
        drop(resolving);
        let origin = Origin::Registry(repository);
        pull::layers(&origin, (&name, self.record_type), &manifest, &config, self.layer_limit, cx).await
    }

    async fn own_layers(&self, layers: &str, cx: &SourceCx) -> Result<Value, BuildError> {
        let ids: Result<Vec<LayerId>, _> =
            layers.split(',').filter(|t| !t.is_empty()).map(|t| t.parse().map(LayerId)).collect();
        let snapshot = Snapshot::from_layers(ids.map_err(|_| BuildError::other("not a chain of layers"))?);
        let (store, limit) = (Arc::clone(&cx.daemon.store), self.layer_limit);
        blocking(move || {
            let snapshot = match limit {
                Some(limit) => {
                    let logical = store.logical_layers(&snapshot).map_err(store_error)?;
                    logical.get(limit.min(logical.len()).saturating_sub(1)).cloned().unwrap_or(snapshot)
                }
                None => snapshot,
            };
            Value::stored(&store, snapshot).map_err(store_error)
        })
        .await
    }

    fn repository(&self, cx: &SourceCx) -> Repository {
        let client = cx.daemon.shared.registries.client(&cx.daemon.config);
        client.repository(&self.reference, &registry::access(&cx.sessions))
    }

    fn platform(&self, cx: &SourceCx) -> Platform {
        self.platform.as_ref().unwrap_or(&cx.platform).normalize()
    }

    /// Finds the image, by the rules of [`ResolveMode`].
    async fn find(&self, cx: &SourceCx) -> Result<Found, BuildError> {
        let platform = self.platform(cx);
        if self.mode != ResolveMode::ForcePull
            && let Some(own) = self.own(cx, &platform).await?
        {
            return Ok(Found::Own(own));
        }
        let wanted = match &self.reference.digest {
            Some(digest) => Some(digest.sha256().ok_or_else(|| {
                BuildError::invalid(format!("{}: only sha256 digests are supported", self.reference))
            })?),
            None => None,
        };
        let store = Arc::clone(&cx.daemon.store);
        let name = wanted.map_or_else(|| self.reference.to_string(), |d| format!("@{d}"));
        let key = format!("{name}|{platform}");
        let remembered = remembered(&store, &key).await?;
        if let Some((known, age)) = &remembered {
            let is_fresh = wanted.is_some()
                || self.mode == ResolveMode::PreferLocal
                || self.mode == ResolveMode::Default && age.is_some_and(|age| age < TRUST);
            if is_fresh {
                return Ok(Found::Remote(Box::new(known.clone())));
            }
        }
        let status = cx.progress.status(format!("resolve {}", self.reference));
        let asked = self.ask(cx, &platform).await;
        drop(status);
        match (asked, remembered) {
            (Ok(known), _) => {
                let text = serde_json::to_string(&known).map_err(|e| BuildError::other(e.to_string()))?;
                let by_digest = format!("@{}|{platform}", known.top.digest);
                blocking(move || {
                    for key in [&key, &by_digest] {
                        store.remember_tag(key, &text).map_err(store_error)?;
                    }
                    Ok(())
                })
                .await?;
                Ok(Found::Remote(Box::new(known)))
            }
            (Err(Failure::Registry(error)), Some((known, _)))
                if self.mode != ResolveMode::ForcePull && error.problem.is_unavailable() =>
            {
                cx.progress.warning(VertexWarning {
                    level: 1,
                    short: format!(
                        "{}: using what the tag stood for when it was last asked for",
                        self.reference.familiar()
                    )
                    .into_bytes(),
                    detail: vec![error.to_string().into_bytes()],
                    ..VertexWarning::default()
                });
                Ok(Found::Remote(Box::new(known)))
            }
            (Err(Failure::Registry(error)), _) => Err(pull::registry_error(&error)),
            (Err(Failure::Other(error)), _) => Err(error),
        }
    }

    /// Looks for an image of that name that was built here.
    async fn own(&self, cx: &SourceCx, platform: &Platform) -> Result<Option<PlatformImageOf>, BuildError> {
        let store = Arc::clone(&cx.daemon.store);
        let mut named = self.reference.clone();
        let wanted = named.digest.take();
        let (name, platform) = (named.or_latest().to_string(), platform.clone());
        blocking(move || {
            let Some((stored, _pin)) = store.image(&name).map_err(store_error)? else { return Ok(None) };
            let data: ImageData = serde_json::from_str(&stored.data).unwrap_or_default();
            let fits = |p: &&PlatformImage| p.platform.parse::<Platform>().is_ok_and(|p| p.normalize() == platform);
            let Some(found) = data.platforms.iter().find(fits) else { return Ok(None) };
            let is_wanted = |digest: &str| wanted.as_ref().is_none_or(|w| w.to_string() == digest);
            if !is_wanted(&data.digest) && !is_wanted(&found.manifest) {
                return Ok(None);
            }
            Ok(Some(PlatformImageOf {
                digest: data.digest.clone(),
                config: found.config.clone(),
                layers: found.layers.clone(),
            }))
        })
        .await
    }

    /// Asks the registry.
    async fn ask(&self, cx: &SourceCx, platform: &Platform) -> Result<Known, Failure> {
        let repository = self.repository(cx);
        let resolved = repository.resolve().await?;
        let by_digest = format!("@{}|{platform}", resolved.descriptor.digest);
        if let Some((known, _)) = remembered(&cx.daemon.store, &by_digest).await? {
            return Ok(known);
        }
        let image = repository.image_for(&resolved, platform).await?;
        let config = String::from_utf8(image.config_bytes.to_vec())
            .map_err(|_| BuildError::other(format!("{}: the image's config is not UTF-8", self.reference)))?;
        let (store, bytes) = (Arc::clone(&cx.daemon.store), image.manifest_bytes);
        blocking(move || store.blobs().put(&bytes).map_err(store_error)).await?;
        Ok(Known { top: resolved.descriptor, manifest: image.descriptor, config })
    }
}

/// How long a tag is trusted to stand for what it stood for.
const TRUST: Duration = Duration::from_secs(15 * 60);

enum Found {
    Own(PlatformImageOf),
    Remote(Box<Known>),
}

/// An image of our own store, for one platform.
struct PlatformImageOf {
    digest: String,
    config: String,
    layers: Vec<i64>,
}

/// What is known of an image of a registry, for one platform. Remembered as JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Known {
    /// What the name stands for.
    top: Descriptor,
    /// The platform's manifest.
    manifest: Descriptor,
    /// The config's JSON, byte for byte.
    config: String,
}

impl Known {
    /// Returns the manifest, of the store if it is there.
    async fn manifest(&self, repository: &Repository, cx: &SourceCx) -> Result<Manifest, BuildError> {
        let (store, digest) = (Arc::clone(&cx.daemon.store), self.manifest.digest);
        let here = blocking(move || Ok(store.blobs().read(&digest, MAX_DOCUMENT).ok())).await?;
        let document = match here {
            Some(bytes) => ManifestDocument::parse(&self.manifest.media_type, &bytes)
                .map_err(|e| BuildError::other(format!("{}: {e}", self.manifest.digest)))?,
            None => {
                let (document, bytes) =
                    repository.manifest(&self.manifest).await.map_err(|e| pull::registry_error(&e))?;
                let store = Arc::clone(&cx.daemon.store);
                blocking(move || store.blobs().put(&bytes).map_err(store_error)).await?;
                document
            }
        };
        match document {
            ManifestDocument::Manifest(manifest) => Ok(*manifest),
            ManifestDocument::Index(_) => Err(BuildError::other(format!("{}: is no image", self.manifest.digest))),
        }
    }
}

enum Failure {
    Registry(RegistryError),
    Other(BuildError),
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        Self::Registry(error)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        Self::Other(error)
    }
}

/// Returns what is remembered under a key, and how long ago; none for a time in the future.
async fn remembered(store: &Arc<Store>, key: &str) -> Result<Option<(Known, Option<Duration>)>, BuildError> {
    let (store, key) = (Arc::clone(store), key.to_owned());
    blocking(move || {
        let Some((text, when)) = store.remembered_tag(&key).map_err(store_error)? else { return Ok(None) };
        let age = SystemTime::now().duration_since(when).ok();
        Ok(serde_json::from_str(&text).ok().map(|known| (known, age)))
    })
    .await
}
