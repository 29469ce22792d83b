//! Image references as Docker's reference grammar has them.
//!
//! Source of the grammar: <https://github.com/distribution/reference>, whose error texts are kept, since tools match them.

use crate::Digest;
use std::fmt;

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const OFFICIAL: &str = "library/";
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

/// A normalized image reference: `docker.io/library/alpine:latest`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageRef {
    /// Registry host, with port if any (`docker.io`, `localhost:5000`). Empty for a name whose first part looks like a
    /// host and is none (`a.b_c/d`): no registry can be asked for it.
    pub domain: String,
    /// Repository path within the registry (`library/alpine`).
    pub path: String,
    /// Tag, if given.
    pub tag: Option<String>,
    /// Digest, if given.
    pub digest: Option<RefDigest>,
}

/// The digest in a reference. The grammar has algorithms that no content here is addressed by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum RefDigest {
    /// A digest that content can be found and checked by.
    Sha256(Digest),
    /// A valid digest of another algorithm (`sha512:…`): nothing may be taken for it.
    Other(String),
}

impl RefDigest {
    /// Returns the digest if it is one that content is addressed by.
    #[must_use]
    pub fn sha256(&self) -> Option<Digest> {
        match self {
            Self::Sha256(digest) => Some(*digest),
            Self::Other(_) => None,
        }
    }
}

impl From<Digest> for RefDigest {
    fn from(digest: Digest) -> Self {
        Self::Sha256(digest)
    }
}

impl fmt::Display for RefDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sha256(digest) => digest.fmt(f),
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// Says why a text is not an image reference, in the reference implementation's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidReference(pub String);

impl ImageRef {
    /// Parses and normalizes: the default registry is `docker.io`, whose one-word names are in `library/`.
    ///
    /// # Errors
    /// The text does not follow the grammar.
    pub fn parse(text: &str) -> Result<Self, InvalidReference> {
        if text.len() == 64 && text.bytes().all(is_lower_hex) {
            return Err(InvalidReference(format!(
                "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
            )));
        }
        let (domain, rest) = split_domain(text);
        let remote = rest.split(':').next().unwrap_or_default();
        if remote.to_lowercase() != remote {
            return Err(InvalidReference(format!(
                "invalid reference format: repository name ({remote}) must be lowercase"
            )));
        }
        Self::parse_exact(&format!("{domain}/{rest}"))
    }

    /// Parses without normalizing: `foo@sha256:…` has path `foo` and no domain (names of OCI layout stores are such).
    ///
    /// # Errors
    /// The text does not follow the grammar.
    pub fn parse_exact(text: &str) -> Result<Self, InvalidReference> {
        let Some((name, tag, digest)) = split_parts(text) else {
            let reason = if text.is_empty() {
                "repository name must have at least one component"
            } else if split_parts(&text.to_lowercase()).is_some() {
                "repository name must be lowercase"
            } else {
                "invalid reference format"
            };
            return Err(InvalidReference(reason.into()));
        };
        let (domain, path) = name;
        if path.len() > MAX_PATH {
            return Err(InvalidReference(format!("repository name must not be more than {MAX_PATH} characters")));
        }
        Ok(Self {
            domain: domain.to_owned(),
            path: path.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(parse_digest).transpose()?,
        })
    }

    /// Returns the reference with tag `latest` if it has neither tag nor digest.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".into());
        }
        self
    }

    /// Returns domain and path: the repository.
    #[must_use]
    pub fn name(&self) -> String {
        if self.domain.is_empty() { self.path.clone() } else { format!("{}/{}", self.domain, self.path) }
    }

    /// Returns the short form that people type: `alpine:latest`, `foo/bar@sha256:…`.
    #[must_use]
    pub fn familiar(&self) -> String {
        let mut short = self.clone();
        if short.domain == DEFAULT_DOMAIN {
            short.domain.clear();
            if let Some(rest) = short.path.strip_prefix(OFFICIAL)
                && !rest.contains('/')
            {
                short.path = rest.to_owned();
            }
        }
        short.to_string()
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.domain.is_empty() {
            write!(f, "{}/", self.domain)?;
        }
        f.write_str(&self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// Splits what people type into registry and the rest: the first part is a registry if it can't be anything else.
fn split_domain(text: &str) -> (&str, String) {
    let (domain, rest) = match text.split_once('/') {
        None => return (DEFAULT_DOMAIN, format!("{OFFICIAL}{text}")),
        Some((LEGACY_DOMAIN, rest)) => (DEFAULT_DOMAIN, rest),
        Some((first, rest)) if first == "localhost" || first.contains(['.', ':']) || first.to_lowercase() != first => {
            (first, rest)
        }
        Some(_) => (DEFAULT_DOMAIN, text),
    };
    if domain == DEFAULT_DOMAIN && !rest.contains('/') {
        return (domain, format!("{OFFICIAL}{rest}"));
    }
    (domain, rest.to_owned())
}

type Parts<'a> = ((&'a str, &'a str), Option<&'a str>, Option<&'a str>);

/// Splits by the grammar `[domain/]path[:tag][@digest]`; none if the text doesn't follow it.
fn split_parts(text: &str) -> Option<Parts<'_>> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest).filter(|d| looks_like_digest(d))?.into()),
        None => (text, None),
    };
    // A colon before the last slash belongs to the registry's port.
    let last = rest.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match rest[last..].find(':') {
        Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..]).filter(|t| is_tag(t))?.into()),
        None => (rest, None),
    };
    let name = match name.split_once('/') {
        Some((domain, path)) if is_domain(domain) && is_path(path) => (domain, path),
        _ if is_path(name) => ("", name),
        _ => return None,
    };
    Some((name, tag, digest))
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

fn is_domain(text: &str) -> bool {
    let (host, port) = if text.starts_with('[') {
        match text.split_once(']') {
            Some((address, port)) => {
                let inner = &address[1..];
                if inner.is_empty() || !inner.bytes().all(|b| b.is_ascii_hexdigit() || b == b':') {
                    return false;
                }
                (None, port)
            }
            None => return false,
        }
    } else {
        let end = text.find(':').unwrap_or(text.len());
        (Some(&text[..end]), &text[end..])
    };
    let port_ok = port.is_empty()
        || port.strip_prefix(':').is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
    port_ok && host.is_none_or(|host| host.split('.').all(is_domain_component))
}

fn is_domain_component(text: &str) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn is_path(text: &str) -> bool {
    text.split('/').all(is_path_component)
}

/// Letters and digits in groups, with `.`, `_`, `__` or any number of `-` between them.
fn is_path_component(text: &str) -> bool {
    let separator = |b: u8| matches!(b, b'.' | b'_' | b'-');
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if separator(first) || separator(last) {
        return false;
    }
    bytes.iter().all(|&b| separator(b) || b.is_ascii_lowercase() || b.is_ascii_digit())
        && bytes
            .chunk_by(|a, b| separator(*a) == separator(*b))
            .filter(|run| separator(run[0]))
            .all(|run| matches!(run, b"." | b"_" | b"__") || run.iter().all(|&b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    (1..=MAX_TAG).contains(&bytes.len()) && word(bytes[0]) && bytes.iter().all(|&b| word(b) || matches!(b, b'.' | b'-'))
}

/// Tests `algorithm:hex` with at least 32 digits; which algorithms there are is looked at later.
fn looks_like_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    hex.len() >= 32
        && hex.bytes().all(|b| b.is_ascii_hexdigit())
        && algorithm.split(['-', '_', '+', '.']).all(|part| {
            part.as_bytes().first().is_some_and(u8::is_ascii_alphabetic)
                && part.bytes().all(|b| b.is_ascii_alphanumeric())
        })
}

fn parse_digest(text: &str) -> Result<RefDigest, InvalidReference> {
    check_digest(text).map_err(|reason| InvalidReference(reason.into()))?;
    Ok(match text.parse() {
        Ok(digest) => RefDigest::Sha256(digest),
        Err(_) => RefDigest::Other(text.to_owned()),
    })
}

/// Checks a digest's form: `sha256`, `sha384` or `sha512` and the right number of lower-case hexadecimal digits.
///
/// # Errors
/// The reason in the words of Go's digest library.
pub fn check_digest(text: &str) -> Result<(), &'static str> {
    const FORMAT: &str = "invalid checksum digest format";
    let Some((algorithm, encoded)) = text.split_once(':') else { return Err(FORMAT) };
    if algorithm.is_empty() || encoded.is_empty() {
        return Err(FORMAT);
    }
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => {
            let lower =
                |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            let known_form = algorithm.split(['.', '+', '_', '-']).all(lower)
                && encoded.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-'));
            return Err(if known_form { "unsupported digest algorithm" } else { FORMAT });
        }
    };
    if encoded.len() != length {
        return Err("invalid checksum digest length");
    }
    if !encoded.bytes().all(is_lower_hex) {
        return Err(FORMAT);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_are_of_docker_hub() {
        for (text, full, familiar) in [
            ("alpine", "docker.io/library/alpine", "alpine"),
            ("foo/bar:1", "docker.io/foo/bar:1", "foo/bar:1"),
            ("index.docker.io/x", "docker.io/library/x", "x"),
            ("localhost/x", "localhost/x", "localhost/x"),
            ("localhost:5000/a/b:t", "localhost:5000/a/b:t", "localhost:5000/a/b:t"),
            ("[::1]:5000/a", "[::1]:5000/a", "[::1]:5000/a"),
            ("UPPER/x", "UPPER/x", "UPPER/x"),
            ("a__b/c---d.e", "docker.io/a__b/c---d.e", "a__b/c---d.e"),
        ] {
            let parsed = ImageRef::parse(text).unwrap();
            assert_eq!(parsed.to_string(), full);
            assert_eq!(parsed.familiar(), familiar);
            assert_eq!(ImageRef::parse(full).unwrap(), parsed);
        }
        assert_eq!(ImageRef::parse("alpine").unwrap().or_latest().familiar(), "alpine:latest");
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        for text in ["", "a:", "a@", "a:b:c", "a b", "-a", "a___b", "a..b", "http://x/y", "a@sha256:12", "x/", "a:-t"] {
            assert!(ImageRef::parse(text).is_err(), "{text}");
        }
        let upper = ImageRef::parse("Foo").unwrap_err().0;
        assert_eq!(upper, "invalid reference format: repository name (library/Foo) must be lowercase");
    }

    #[test]
    fn digests_of_other_algorithms_are_kept_but_address_nothing() {
        let text = format!("a@sha512:{}", "b".repeat(128));
        let parsed = ImageRef::parse(&text).unwrap();
        assert_eq!(parsed.familiar(), text);
        assert_eq!(parsed.digest.unwrap().sha256(), None);
    }
}
