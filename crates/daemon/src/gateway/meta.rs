//! What a source stands for, without its files: for front ends.

use crate::build::Build;
use crate::progress::Reporter;
use crate::source::image::{ResolveMode, ResolvedImage};
use crate::source::{self, Source, SourceCx};
use bud_image::Platform;
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What was found out of a source.
#[derive(Clone, Debug)]
pub enum Metadata {
    /// An image.
    Image(ResolvedImage),
    /// A git repository.
    Git(source::git::GitMetadata),
    /// A file at a URL.
    Http(source::http::HttpMetadata),
    /// Nothing is to be known beforehand.
    None,
}

impl Build {
    fn meta_cx(self: &Arc<Self>, progress: Reporter, platform: Option<&Platform>) -> SourceCx {
        SourceCx {
            daemon: Arc::clone(&self.daemon),
            sessions: self.sessions(),
            progress,
            cancel: self.cancel.clone(),
            platform: platform.cloned().unwrap_or_else(|| self.daemon.settings.platform()),
        }
    }

    /// Resolves a source for a front end, as a vertex of its own with the given name. Equal questions are one vertex.
    ///
    /// # Errors
    /// The source can't be asked, or doesn't have it.
    pub async fn metadata(
        self: &Arc<Self>,
        op: &pb::SourceOp,
        platform: Option<&Platform>,
        log_name: &str,
    ) -> Result<Metadata, BuildError> {
        let source = source::parse(op, platform)?;
        let platform = platform.cloned().unwrap_or_else(|| self.daemon.settings.platform());
        let name = if log_name.is_empty() { format!("resolve {}", op.identifier) } else { log_name.to_owned() };
        let progress = self.progress.virtual_vertex(&format!("{}{platform}", op.identifier), &name);
        let cx = self.meta_cx(progress.clone(), Some(&platform));
        progress.started();
        let found = async {
            Ok(match &source {
                Source::Image(source) => Metadata::Image(source.resolve(&cx).await?),
                Source::OciLayout(source) => Metadata::Image(source.resolve(&cx).await?),
                Source::Git(source) => Metadata::Git(source.metadata(&cx).await?),
                Source::Http(source) => Metadata::Http(source.metadata(&cx).await?),
                Source::Local(_) => Metadata::None,
            })
        };
        let found = tokio::select! {
            found = found => found,
            () = self.cancel.cancelled() => Err(BuildError::canceled()),
        };
        progress.ended(&found);
        found.map_err(|e: BuildError| {
            e.context(format!("failed to resolve source metadata for {}", short(&op.identifier)))
        })
    }

    /// Resolves an image.
    ///
    /// # Errors
    /// It isn't there.
    pub async fn image(
        self: &Arc<Self>,
        reference: &str,
        platform: Option<&Platform>,
        mode: &str,
        log_name: &str,
    ) -> Result<ResolvedImage, BuildError> {
        ResolveMode::parse(mode)?;
        let op = pb::SourceOp {
            identifier: format!("docker-image://{reference}"),
            attrs: BTreeMap::from([("image.resolvemode".to_owned(), mode.to_owned())]),
        };
        match self.metadata(&op, platform, log_name).await? {
            Metadata::Image(image) => Ok(image),
            _ => Err(BuildError::invalid(format!("{reference} is no image"))),
        }
    }

    /// Resolves an image of an OCI layout that the client holds.
    ///
    /// # Errors
    /// It isn't there.
    pub async fn layout_image(
        self: &Arc<Self>,
        reference: &str,
        platform: Option<&Platform>,
        session: &str,
        store: &str,
        log_name: &str,
    ) -> Result<ResolvedImage, BuildError> {
        let op = pb::SourceOp {
            identifier: format!("oci-layout://{reference}"),
            attrs: BTreeMap::from([
                ("oci.session".to_owned(), session.to_owned()),
                ("oci.store".to_owned(), store.to_owned()),
            ]),
        };
        match self.metadata(&op, platform, log_name).await? {
            Metadata::Image(image) => Ok(image),
            _ => Err(BuildError::invalid(format!("{reference} is no image"))),
        }
    }
}

/// Image names are shown as people know them.
fn short(identifier: &str) -> &str {
    identifier.strip_prefix("docker-image://").unwrap_or(identifier)
}
