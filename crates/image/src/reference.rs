//! Image references as Docker's reference grammar has them.

use crate::Digest;
use std::fmt;

/// A normalized image reference: `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    /// Registry host, with port if any (`docker.io`, `localhost:5000`).
    pub domain: String,
    /// Repository path within the registry (`library/alpine`).
    pub path: String,
    /// Tag, if given.
    pub tag: Option<String>,
    /// Digest, if given.
    pub digest: Option<Digest>,
}

/// Says why a text is not an image reference, in the reference implementation's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReference(pub String);

impl ImageRef {
    /// Parses and normalizes: the default registry is `docker.io`, whose one-word names are in `library/`.
    ///
    /// # Errors
    /// The text does not follow the grammar (`distribution/reference`).
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        // Replaced by the full grammar; see refs.jsonl of the conformance data.
        let (name, digest) = match text.split_once('@') {
            Some((n, d)) => {
                (n, Some(d.parse().map_err(|e: crate::digest::InvalidDigest| InvalidReference(e.to_string()))?))
            }
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((n, t)) if !t.contains('/') => (n, Some(t.to_owned())),
            _ => (name, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((d, p)) if d.contains(['.', ':']) || d == "localhost" => (d.to_owned(), p.to_owned()),
            _ => ("docker.io".to_owned(), name.to_owned()),
        };
        let path = if domain == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        if path.is_empty() || path == "library/" {
            return Err(InvalidReference("invalid reference format".into()));
        }
        Ok(Self { domain, path, tag, digest })
    }

    /// Returns the reference with tag `latest` if it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// Returns the short form that people type: `alpine:latest`, `foo/bar@sha256:…`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let full = self.to_string();
        if self.domain != "docker.io" {
            return full;
        }
        let short = full.strip_prefix("docker.io/").unwrap_or(&full);
        match short.strip_prefix("library/") {
            Some(name) if !self.path["library/".len()..].contains('/') => name.to_owned(),
            _ => short.to_owned(),
        }
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}
