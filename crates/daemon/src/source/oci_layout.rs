//! `oci-layout://`: an image in an OCI layout that a client holds.

use super::{Pin, SourceCx};
use crate::source::image::ResolvedImage;
use crate::value::Value;
use bud_image::Platform;
use bud_protocol::errors::BuildError;
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
        let _ = cx;
        Err(BuildError::other(format!("{}: OCI layouts are not there yet", self.reference)))
    }

    /// Pins to the platform's manifest; the same key as an image of a registry with that manifest.
    ///
    /// # Errors
    /// The client doesn't have it.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("{}: OCI layouts are not there yet", self.reference)))
    }

    /// Reads and unpacks the layers.
    ///
    /// # Errors
    /// A blob is not what its digest says, or can't be unpacked.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let _ = (pin, cx);
        Err(BuildError::other(format!("{}: OCI layouts are not there yet", self.reference)))
    }
}
