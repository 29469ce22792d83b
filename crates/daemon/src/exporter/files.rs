//! `local` and `tar`: the result's files, into a directory or a tar at the client.

use super::{ExportCx, Exportable, Response};
use bud_protocol::errors::BuildError;
use std::collections::BTreeMap;

/// The `local` and `tar` exporters.
#[derive(Clone, Debug)]
pub struct FilesExporter {
    /// A tar stream instead of files.
    pub tar: bool,
    /// As given: `platform-split`, `mode`, `source-date-epoch`, `attestation-prefix`.
    pub attrs: BTreeMap<String, String>,
}

impl FilesExporter {
    /// Parses the attributes.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        Ok(Self { tar: kind == "tar", attrs: attrs.clone() })
    }

    /// Returns the vertex's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.tar { "exporting to client tarball" } else { "exporting to client directory" }
    }

    /// Sends the files.
    ///
    /// # Errors
    /// The client fails.
    pub async fn export(&self, cx: &ExportCx, result: &Exportable) -> Result<Response, BuildError> {
        let _ = (cx, result);
        Err(BuildError::other("file exports are not there yet"))
    }
}
