//! `image`: names the result in our own store; `push` (type `registry`) sends it to a registry.

use super::{ExportCx, Exportable, Response};
use bud_protocol::errors::BuildError;
use std::collections::BTreeMap;

/// The `image` exporter.
///
/// Attributes: `name` (comma list; `*`: from metadata `image.name`), `push`, `push-by-digest`, `registry.insecure`, `store`, `unpack`,
/// `dangling-name-prefix`, `name-canonical`, and those common to images (`oci-mediatypes`, `compression`, `force-compression`,
/// `compression-level`, `rewrite-timestamp`, `source-date-epoch`, `annotation*`, …). `bud.digests=lazy`: digests are not computed
/// unless something else needs them, and are then absent from the response.
#[derive(Clone, Debug)]
pub struct ImageExporter {
    /// As given.
    pub attrs: BTreeMap<String, String>,
}

impl ImageExporter {
    /// Parses the attributes.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let mut attrs = attrs.clone();
        if kind == "registry" {
            attrs.entry("push".into()).or_insert_with(|| "true".into());
        }
        Ok(Self { attrs })
    }

    /// Names, and pushes if asked to. Answers `image.name`, `containerimage.digest`, `containerimage.config.digest`,
    /// `containerimage.descriptor`.
    ///
    /// # Errors
    /// A name is bad, the registry refuses, the disk is full.
    pub async fn export(&self, cx: &ExportCx, result: &Exportable) -> Result<Response, BuildError> {
        let _ = (cx, result);
        Err(BuildError::other("the image exporter is not there yet"))
    }
}
