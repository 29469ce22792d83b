//! `oci-layout://`: an image in an OCI layout that a client holds.

use super::pull::{self, Origin};
use super::{Pin, PinKey, SourceCx, fixed_key};
use crate::sessions::session_error;
use crate::source::image::ResolvedImage;
use crate::value::Value;
use bud_image::{Descriptor, Digest, Platform};
use bud_oci::registry::{DocumentError, Image, ManifestDocument, choose_platform};
use bud_protocol::errors::BuildError;
use bud_session::Session;
use bud_store::RecordType;
use std::collections::BTreeMap;

/// An image in a client's OCI layout, read through the session's content service (store id `oci:<store>`).
#[derive(Clone, Debug)]
pub struct OciLayoutSource {
    /// `name@sha256:…`.
    pub reference: String,
    /// Which session; empty: any of the build.
    pub session: String,
    /// Which store of it.
    pub store: String,
    /// Only so many of its layers.
    pub layer_limit: Option<usize>,
    /// Its platform; none: the worker's.
    pub platform: Option<Platform>,
}

impl OciLayoutSource {
    /// Parses identifier and attributes: `oci.session`, `oci.store`, `oci.layerlimit`. A digest is required.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(
        rest: &str,
        attrs: &BTreeMap<String, String>,
        platform: Option<&Platform>,
    ) -> Result<Self, BuildError> {
        let attr = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        if !rest.contains("@sha256:") {
            return Err(BuildError::invalid(format!("OCI layout reference {rest:?} needs a digest")));
        }
        Ok(Self {
            reference: rest.into(),
            session: attr("oci.session"),
            store: attr("oci.store"),
            layer_limit: attr("oci.layerlimit").parse().ok(),
            platform: platform.cloned(),
        })
    }

    /// Resolves to a config, without layers; for front ends.
    ///
    /// # Errors
    /// The client doesn't have it.
    pub async fn resolve(&self, cx: &SourceCx) -> Result<ResolvedImage, BuildError> {
        let (_, image) = self.image(cx).await?;
        Ok(ResolvedImage {
            reference: self.reference.clone(),
            digest: self.digest()?.to_string(),
            config: image.config_bytes.to_vec(),
        })
    }

    /// Pins to the platform's manifest; the same key as an image of a registry with that manifest.
    ///
    /// # Errors
    /// The client doesn't have it.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let (_, image) = self.image(cx).await?;
        let limit = self.layer_limit.map(|n| n.to_string()).unwrap_or_default();
        let key = fixed_key("image", &[&image.descriptor.digest.to_string(), &limit]);
        Ok(Pin { key: PinKey::Fixed(key), state: BTreeMap::new() })
    }

    /// Reads and unpacks the layers.
    ///
    /// # Errors
    /// A blob is not what its digest says, or can't be unpacked.
    pub async fn fetch(&self, _pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let (session, image) = self.image(cx).await?;
        let origin = Origin::Layout { session, store: self.store_id() };
        let name = (self.reference.as_str(), RecordType::default());
        pull::layers(&origin, name, &image.manifest, &image.config, self.layer_limit, cx).await
    }

    fn store_id(&self) -> String {
        // Without a store the layout is the reference's own name, as in BuildKit.
        let name = self.reference.split('@').next().unwrap_or_default();
        format!("oci:{}", if self.store.is_empty() { name } else { &self.store })
    }

    fn digest(&self) -> Result<Digest, BuildError> {
        let text = self.reference.rsplit('@').next().unwrap_or_default();
        text.parse().map_err(|e| BuildError::invalid(format!("OCI layout reference {:?}: {e}", self.reference)))
    }

    async fn session(&self, cx: &SourceCx) -> Result<Session, BuildError> {
        if !self.session.is_empty() {
            return cx.sessions.get(&self.session).await;
        }
        cx.sessions.any(|session| async move { Ok(session) }).await.map_err(session_error)
    }

    /// Reads everything but the layers, from the digest down to the platform's config.
    async fn image(&self, cx: &SourceCx) -> Result<(Session, Image), BuildError> {
        const MAX_DEPTH: usize = 3;
        let session = self.session(cx).await?;
        let store = self.store_id();
        let platform = self.platform.as_ref().unwrap_or(&cx.platform).normalize();
        let invalid = |e: DocumentError| BuildError::other(format!("{}: {e}", self.reference));
        let mut descriptor = self.describe(&session, &store, self.digest()?).await?;
        for _ in 0..=MAX_DEPTH {
            let bytes = pull::layout_document(&session, &store, &descriptor).await?;
            match ManifestDocument::parse(&descriptor.media_type, &bytes).map_err(invalid)? {
                ManifestDocument::Index(index) => {
                    descriptor = choose_platform(&index, &platform).map_err(invalid)?.clone();
                }
                ManifestDocument::Manifest(manifest) => {
                    let config_bytes = pull::layout_document(&session, &store, &manifest.config).await?;
                    let config = serde_json::from_slice(&config_bytes).map_err(|e| {
                        BuildError::other(format!("{}: the image's config can't be read: {e}", self.reference))
                    })?;
                    let image = Image { descriptor, manifest: *manifest, manifest_bytes: bytes, config, config_bytes };
                    return Ok((session, image));
                }
            }
        }
        Err(BuildError::other(format!("{}: indexes in indexes more than {MAX_DEPTH} deep", self.reference)))
    }

    /// Describes what a digest names; what it is, its own bytes say.
    async fn describe(&self, session: &Session, store: &str, digest: Digest) -> Result<Descriptor, BuildError> {
        let info = session.blob_info(store, &digest.to_string()).await.map_err(session_error)?;
        let info =
            info.ok_or_else(|| BuildError::not_found(format!("{}: not in the client's layout", self.reference)))?;
        Ok(Descriptor {
            media_type: String::new(),
            digest,
            size: info.size,
            urls: Vec::new(),
            annotations: BTreeMap::new(),
            platform: None,
        })
    }
}
