//! `http://` and `https://`: one file.

use super::{Pin, SourceCx};
use crate::value::Value;
use bud_protocol::errors::BuildError;
use std::collections::BTreeMap;

/// A file at a URL. `http://buildkit-session/<id>` is a stream that the client uploads.
#[derive(Clone, Debug)]
pub struct HttpSource {
    /// The URL.
    pub url: String,
    /// `http.*`.
    pub attrs: BTreeMap<String, String>,
}

/// What is known of a URL's file.
#[derive(Clone, Debug, Default)]
pub struct HttpMetadata {
    /// Digest of the content.
    pub checksum: String,
    /// The name it would have.
    pub filename: String,
    /// `Last-Modified`, in seconds since 1970.
    pub modified: Option<i64>,
}

impl HttpSource {
    /// Parses URL and attributes (`http.checksum`, `http.filename`, `http.perm`, `http.uid`, `http.gid`, `http.authheadersecret`,
    /// `http.header.*`).
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(url: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        Ok(Self { url: url.into(), attrs: attrs.clone() })
    }

    /// Finds out what is there; for front ends.
    ///
    /// # Errors
    /// The server can't be asked.
    pub async fn metadata(&self, cx: &SourceCx) -> Result<HttpMetadata, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("{}: HTTP sources are not there yet", self.url)))
    }

    /// Pins to the content's checksum, asking with the remembered etag first.
    ///
    /// # Errors
    /// The server can't be asked, or the checksum is not the one demanded.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("{}: HTTP sources are not there yet", self.url)))
    }

    /// Makes a layer of the file.
    ///
    /// # Errors
    /// The content can't be had.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let _ = (pin, cx);
        Err(BuildError::other(format!("{}: HTTP sources are not there yet", self.url)))
    }
}
