//! Exporters: what becomes of a build's result. Adding one is adding a file and a line in [`parse`].

pub mod commit;
pub mod config;
pub mod files;
pub mod image;
pub mod layers;
pub mod oci;
pub mod options;
pub mod push;

use crate::daemon::Daemon;
use crate::progress::Reporter;
use crate::sessions::SessionGroup;
use bud_image::{ImageConfig, Platform};
use bud_protocol::errors::BuildError;
use bud_store::{Pin, Snapshot};
use futures_util::future::BoxFuture;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A result, evaluated: trees and metadata.
#[derive(Clone, Debug, Default)]
pub struct Exportable {
    /// One for each platform; one without an id if the result is a single reference. Empty: no result at all.
    pub trees: Vec<ExportTree>,
    /// True if the result was a map of platforms, even of one: image exporters write an index, file exporters a directory for each.
    pub multi_platform: bool,
    /// Metadata of the result, as front ends leave it (`containerimage.config` and so on, with `/<id>` for several platforms).
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// The tree of one platform.
#[derive(Clone, Debug)]
pub struct ExportTree {
    /// The platform's id (`linux/amd64`); empty for a single reference.
    pub id: String,
    /// The platform, as `refs.platforms` says, else from the config, else the worker's.
    pub platform: Platform,
    /// Its layers; scratch if there are none.
    pub snapshot: Snapshot,
    /// Keeps them.
    pub pin: Option<Arc<Pin>>,
    /// `containerimage.config` of the platform, parsed; none if no front end gave one.
    pub config: Option<ImageConfig>,
    /// `containerimage.base.config` of the platform.
    pub base_config: Option<ImageConfig>,
}

/// What an exporter works with.
#[derive(Clone, Debug)]
pub struct ExportCx {
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// The build's own session: the client that gets files and has credentials.
    pub sessions: SessionGroup,
    /// The session's id, empty if there is none.
    pub session: String,
    /// The exporter's number in the request: the client's files are told apart by it.
    pub index: u32,
    /// The exporter's own vertex; statuses (`exporting layers`, `naming to …`) go here.
    pub progress: Reporter,
    /// Cancelled when the build is.
    pub cancel: CancellationToken,
    /// The build's time, for what needs one: `created` of an image.
    pub now: std::time::SystemTime,
}

/// What an exporter answers: `containerimage.digest`, `image.name` and so on.
pub type Response = BTreeMap<String, String>;

/// An exporter with its attributes parsed.
#[derive(Clone, Debug)]
pub enum Exporter {
    /// `image` (and `registry`, which is `image` with `push`).
    Image(image::ImageExporter),
    /// `oci` and `docker`.
    Oci(oci::OciExporter),
    /// `local` and `tar`.
    Files(files::FilesExporter),
}

/// Parses an exporter of a request. Everything that can be wrong without a result is an error here: nothing has run yet.
///
/// # Errors
/// `InvalidArgument`: unknown type, bad attribute.
pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Exporter, BuildError> {
    Ok(match kind {
        "image" | "registry" => Exporter::Image(image::ImageExporter::parse(kind, attrs)?),
        "oci" | "docker" => Exporter::Oci(oci::OciExporter::parse(kind, attrs)?),
        "local" | "tar" => Exporter::Files(files::FilesExporter::parse(kind, attrs)?),
        other => return Err(BuildError::invalid(format!("exporter {other:?} could not be found"))),
    })
}

impl Exporter {
    /// Returns the vertex's name: `exporting to image`, `exporting to docker image format`, `exporting to client directory`, …
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Image(_) => "exporting to image",
            Self::Oci(exporter) => exporter.name(),
            Self::Files(exporter) => exporter.name(),
        }
    }

    /// Exports.
    ///
    /// # Errors
    /// The result doesn't fit, or its receiver fails.
    pub fn export<'a>(
        &'a self,
        cx: &'a ExportCx,
        result: &'a Exportable,
    ) -> BoxFuture<'a, Result<Response, BuildError>> {
        match self {
            Self::Image(exporter) => Box::pin(exporter.export(cx, result)),
            Self::Oci(exporter) => Box::pin(exporter.export(cx, result)),
            Self::Files(exporter) => Box::pin(exporter.export(cx, result)),
        }
    }
}
