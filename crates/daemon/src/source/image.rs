//! `docker-image://`: images of registries, and of our own store.

use super::{Pin, SourceCx};
use crate::value::Value;
use bud_image::{ImageRef, Platform};
use bud_protocol::errors::BuildError;
use std::collections::BTreeMap;

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
        })
    }

    /// Resolves name and platform to a digest and a config, without layers: for front ends. Progress
    /// (`resolve docker.io/library/alpine:latest`) goes to `cx.progress`, which is a vertex of its own here. What was found is remembered, so that the
    /// [`Self::pin`] that follows in the same build asks nobody again.
    ///
    /// # Errors
    /// The image isn't there, or not for the platform; the registry refuses.
    pub async fn resolve(&self, cx: &SourceCx) -> Result<ResolvedImage, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("{}: images are not there yet", self.reference)))
    }

    /// Pins to the manifest of the platform: the key is `fixed_key("image", [manifest digest, layer limit])`; for an image of our own
    /// store, whatever names its snapshot for good.
    ///
    /// # Errors
    /// As [`Self::resolve`].
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("{}: images are not there yet", self.reference)))
    }

    /// Pulls and unpacks the layers, each once (a layer that the store has under the same chain is not pulled), several at a time,
    /// with a status per layer digest (`downloading`, then `extracting sha256:…`). The blobs stay in the store, so that an
    /// export of the same layers copies nothing.
    ///
    /// # Errors
    /// A blob can't be had, is not what its digest says, or can't be unpacked.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let _ = (pin, cx);
        Err(BuildError::other(format!("{}: images are not there yet", self.reference)))
    }
}
