//! `git://`: a commit of a repository.

use super::{Pin, SourceCx};
use crate::value::Value;
use bud_protocol::errors::BuildError;
use std::collections::BTreeMap;

/// A repository at a reference.
#[derive(Clone, Debug)]
pub struct GitSource {
    /// As in the identifier: `host/repository#reference:subdirectory`.
    pub identifier: String,
    /// `git.*`.
    pub attrs: BTreeMap<String, String>,
}

/// What is known of a repository's reference.
#[derive(Clone, Debug, Default)]
pub struct GitMetadata {
    /// The commit.
    pub checksum: String,
    /// The full reference (`refs/heads/main`).
    pub reference: String,
    /// The committer's time in seconds since 1970, if it is known without fetching.
    pub modified: Option<i64>,
}

impl GitSource {
    /// Parses identifier and attributes (`git.fullurl`, `git.keepgitdir`, `git.authtokensecret`, `git.authheadersecret`,
    /// `git.knownsshhosts`, `git.mountsshsock`, `git.checksum`, `git.skipsubmodules`, `git.subdir`).
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(rest: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        Ok(Self { identifier: rest.into(), attrs: attrs.clone() })
    }

    /// Finds out what the reference stands for; for front ends.
    ///
    /// # Errors
    /// The repository can't be asked.
    pub async fn metadata(&self, cx: &SourceCx) -> Result<GitMetadata, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("git://{}: git sources are not there yet", self.identifier)))
    }

    /// Pins to the commit.
    ///
    /// # Errors
    /// The repository can't be asked.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let _ = cx;
        Err(BuildError::other(format!("git://{}: git sources are not there yet", self.identifier)))
    }

    /// Fetches the commit and checks it out into a layer.
    ///
    /// # Errors
    /// The repository can't be fetched, or a path in it is hostile.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let _ = (pin, cx);
        Err(BuildError::other(format!("git://{}: git sources are not there yet", self.identifier)))
    }
}
