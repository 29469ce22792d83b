//! Manifests and indexes from outside: parsed strictly, so that they mean the same to everybody.

use bud_image::manifest::media_type;
use bud_image::{Descriptor, Digest, ImageConfig, Index, Manifest, Platform};
use bytes::Bytes;
use serde::Deserialize;
use serde::de::IgnoredAny;

/// Longest manifest, index or config.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// Most layers of an image: overlay takes 500, more are flattened.
const MAX_LAYERS: usize = 4096;
/// Most manifests of an index.
const MAX_MANIFESTS: usize = 10_000;

/// Says why a manifest, index or config is refused.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// Too long.
    #[error("document of {0} bytes; at most {MAX_DOCUMENT} are accepted")]
    TooLong(u64),
    /// Not the JSON that it should be.
    #[error("{what} can't be read: {reason}")]
    Malformed {
        /// What it should be.
        what: &'static str,
        /// Where and why not.
        reason: String,
    },
    /// It could be taken for two things.
    #[error("document has {0}: it is refused because programs would disagree on what it is")]
    Ambiguous(String),
    /// Of a form that is not read.
    #[error("{0}")]
    Unsupported(String),
    /// The index has nothing for the platform.
    #[error("no image for {wanted}; there is {available}")]
    NoPlatform {
        /// What was asked for.
        wanted: String,
        /// What there is.
        available: String,
    },
}

/// A manifest or an index.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestDocument {
    /// One image.
    Manifest(Box<Manifest>),
    /// Images by platform.
    Index(Index),
}

/// An image as its registry describes it, complete but for its layers.
#[derive(Clone, Debug)]
pub struct Image {
    /// The manifest for the platform.
    pub descriptor: Descriptor,
    /// The manifest.
    pub manifest: Manifest,
    /// Its bytes.
    pub manifest_bytes: Bytes,
    /// The config.
    pub config: ImageConfig,
    /// The config's bytes.
    pub config_bytes: Bytes,
}

impl ManifestDocument {
    /// Reads a document that came as a media type.
    ///
    /// # Errors
    /// It is too long, malformed, or could be taken for something else (CVE-2021-41190).
    pub fn parse(announced: &str, bytes: &[u8]) -> Result<Self, DocumentError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            schema_version: Option<u32>,
            #[serde(default)]
            media_type: String,
            manifests: Option<IgnoredAny>,
            layers: Option<IgnoredAny>,
            config: Option<IgnoredAny>,
            fs_layers: Option<IgnoredAny>,
        }
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(DocumentError::TooLong(bytes.len() as u64));
        }
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
        if probe.fs_layers.is_some() || probe.schema_version == Some(1) {
            return Err(DocumentError::Unsupported(
                "image has the old schema 1, which is not supported: push it again with a current tool".into(),
            ));
        }
        if probe.manifests.is_some() && (probe.layers.is_some() || probe.config.is_some()) {
            return Err(DocumentError::Ambiguous("both manifests and layers".into()));
        }
        // Parameters (`; charset=utf-8`) say nothing more.
        let announced = announced.split(';').next().unwrap_or_default().trim();
        let generic = matches!(announced, "" | "application/json" | "application/octet-stream" | "text/plain");
        if !probe.media_type.is_empty() && !generic && probe.media_type != announced {
            let (inside, outside) = (super::printable(&probe.media_type), super::printable(announced));
            return Err(DocumentError::Ambiguous(format!("media type {inside:?} but came as {outside:?}")));
        }
        let is_index = match if probe.media_type.is_empty() { announced } else { &probe.media_type } {
            media_type::OCI_INDEX | media_type::DOCKER_LIST => true,
            media_type::OCI_MANIFEST | media_type::DOCKER_MANIFEST => false,
            other if generic || other.is_empty() => probe.manifests.is_some(),
            other => return Err(DocumentError::Unsupported(format!("{:?} is no image", super::printable(other)))),
        };
        if is_index != probe.manifests.is_some() {
            let (has, is) = if is_index { ("no manifests", "an index") } else { ("manifests", "a manifest") };
            return Err(DocumentError::Ambiguous(format!("{has} but came as {is}")));
        }
        if is_index {
            let index: Index = serde_json::from_slice(bytes).map_err(malformed("index"))?;
            if index.manifests.len() > MAX_MANIFESTS {
                return Err(DocumentError::Unsupported(format!("index has over {MAX_MANIFESTS} manifests")));
            }
            return Ok(Self::Index(index));
        }
        let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed("manifest"))?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(DocumentError::Unsupported(format!("image has over {MAX_LAYERS} layers")));
        }
        Ok(Self::Manifest(Box::new(manifest)))
    }
}

/// Reads an image's config and checks it against the manifest.
pub(crate) fn parse_config(manifest: &Manifest, bytes: &[u8]) -> Result<ImageConfig, DocumentError> {
    let kind = &manifest.config.media_type;
    if !matches!(&kind[..], media_type::OCI_CONFIG | media_type::DOCKER_CONFIG | "" | "application/octet-stream") {
        return Err(DocumentError::Unsupported(format!(
            "{:?} is no image that can be built on",
            super::printable(kind)
        )));
    }
    let config: ImageConfig = serde_json::from_slice(bytes).map_err(malformed("image config"))?;
    let diff_ids = config.rootfs.diff_ids.as_deref().unwrap_or_default().len();
    if diff_ids != manifest.layers.len() {
        let reason = format!("it names {diff_ids} layers, the manifest {}", manifest.layers.len());
        return Err(DocumentError::Malformed { what: "image config", reason });
    }
    Ok(config)
}

fn malformed(what: &'static str) -> impl Fn(serde_json::Error) -> DocumentError {
    move |e| DocumentError::Malformed { what, reason: super::printable(&e.to_string()) }
}

/// Picks the manifest of an index that runs best on a platform: its own variant, then older ones, as containerd does.
///
/// # Errors
/// There is none, or the index claims a thing that can't be.
pub fn choose_platform<'a>(index: &'a Index, wanted: &Platform) -> Result<&'a Descriptor, DocumentError> {
    let vector = compatible(&wanted.normalize());
    let rank = |descriptor: &Descriptor| {
        let platform = descriptor.platform.as_ref()?.normalize();
        vector.iter().position(|p| {
            p.os == platform.os
                && p.architecture == platform.architecture
                && p.variant == platform.variant
                && (wanted.os_version.is_empty() || wanted.os_version == platform.os_version)
        })
    };
    let ranked = index.manifests.iter().filter_map(|d| Some((rank(d)?, d)));
    if let Some((_, best)) = ranked.min_by_key(|(rank, _)| *rank) {
        return Ok(best);
    }
    // Some tools leave the platform out where there is one image only.
    if let [only] = &index.manifests[..]
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let mut available: Vec<_> = index
        .manifests
        .iter()
        .filter_map(|d| d.platform.as_ref())
        .filter(|p| p.os != "unknown")
        .map(|p| super::printable(&p.to_string()))
        .collect();
    available.sort();
    available.dedup();
    available.truncate(20);
    let available = if available.is_empty() { "none".into() } else { available.join(", ") };
    Err(DocumentError::NoPlatform { wanted: wanted.to_string(), available })
}

/// Lists what runs on a platform, best first.
fn compatible(platform: &Platform) -> Vec<Platform> {
    let of = |architecture: &str, variant: &str| Platform {
        architecture: architecture.into(),
        variant: variant.into(),
        ..platform.clone()
    };
    let numbered = |text: &str| text.strip_prefix('v').and_then(|n| n.parse::<u8>().ok());
    let mut vector = vec![platform.clone()];
    match (&platform.architecture[..], numbered(&platform.variant)) {
        ("amd64", version) => {
            for n in (2..version.unwrap_or(1)).rev() {
                vector.push(of("amd64", &format!("v{n}")));
            }
            if version.is_some() {
                vector.push(of("amd64", ""));
            }
            vector.push(of("386", ""));
        }
        ("arm", Some(version)) => vector.extend((5..version).rev().map(|n| of("arm", &format!("v{n}")))),
        ("arm64", version) => {
            if version.is_some() {
                vector.push(of("arm64", ""));
            }
            vector.extend((5..=8).rev().map(|n| of("arm", &format!("v{n}"))));
        }
        _ => {}
    }
    vector
}

/// Compares bytes with what a descriptor promises.
pub(crate) fn verify(descriptor: &Descriptor, bytes: &[u8]) -> Result<(), super::Problem> {
    let actual = Digest::of(bytes);
    if actual != descriptor.digest {
        return Err(super::Problem::Digest { actual, expected: descriptor.digest });
    }
    if bytes.len() as u64 != descriptor.size {
        return Err(super::Problem::Size { actual: bytes.len() as u64, expected: descriptor.size });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(platforms: &[&str]) -> Index {
        let manifests = platforms.iter().map(|text| Descriptor {
            media_type: media_type::OCI_MANIFEST.into(),
            digest: Digest::of(text),
            size: 1,
            urls: vec![],
            annotations: Default::default(),
            platform: (!text.is_empty()).then(|| text.parse().unwrap()),
        });
        Index {
            schema_version: 2,
            media_type: String::new(),
            manifests: manifests.collect(),
            annotations: Default::default(),
        }
    }

    #[test]
    fn the_best_variant_is_taken() {
        for (available, wanted, chosen) in [
            (&["linux/arm64", "linux/amd64"][..], "linux/amd64", Some("linux/amd64")),
            (&["linux/amd64/v3", "linux/amd64", "linux/amd64/v2"], "linux/amd64", Some("linux/amd64")),
            (&["linux/amd64", "linux/amd64/v2"], "linux/amd64/v3", Some("linux/amd64/v2")),
            (&["linux/386", "linux/arm64"], "linux/amd64", Some("linux/386")),
            (&["linux/arm/v6", "linux/arm/v7", "linux/arm/v5"], "linux/arm/v7", Some("linux/arm/v7")),
            (&["linux/arm/v5", "linux/arm/v6"], "linux/arm", Some("linux/arm/v6")),
            (&["linux/arm64/v8"], "linux/arm64", Some("linux/arm64/v8")),
            (&["linux/amd64/v3"], "linux/amd64", None),
            (&["linux/arm64"], "linux/amd64", None),
            (&[""], "linux/amd64", Some("")),
            (&["", ""], "linux/amd64", None),
        ] {
            let index = index(available);
            let found = choose_platform(&index, &wanted.parse().unwrap()).ok().map(|d| d.digest);
            assert_eq!(found, chosen.map(Digest::of), "{wanted} of {available:?}");
        }
        let error =
            choose_platform(&index(&["linux/arm64", "linux/s390x"]), &"linux/amd64".parse().unwrap()).unwrap_err();
        assert_eq!(error.to_string(), "no image for linux/amd64; there is linux/arm64, linux/s390x");
    }

    #[test]
    fn documents_that_could_be_two_things_are_refused() {
        let digest = Digest::of("").to_string();
        let d = format!("{{\"mediaType\":\"x\",\"digest\":\"{digest}\",\"size\":0}}");
        let manifest = format!("\"config\":{d},\"layers\":[]");
        for (announced, text) in [
            (media_type::OCI_MANIFEST, format!("{{\"schemaVersion\":2,{manifest},\"manifests\":[]}}")),
            (media_type::OCI_INDEX, "{\"schemaVersion\":2,\"layers\":[],\"manifests\":[]}".into()),
            (media_type::OCI_INDEX, format!("{{\"schemaVersion\":2,{manifest}}}")),
            (media_type::OCI_MANIFEST, "{\"schemaVersion\":2,\"manifests\":[]}".into()),
            (
                media_type::OCI_MANIFEST,
                format!("{{\"schemaVersion\":2,\"mediaType\":\"{}\",{manifest}}}", media_type::DOCKER_MANIFEST),
            ),
            (media_type::OCI_MANIFEST, format!("{{\"schemaVersion\":2,{manifest},\"layers\":[]}}")),
            ("text/html", format!("{{\"schemaVersion\":2,{manifest}}}")),
            (media_type::OCI_MANIFEST, "{\"schemaVersion\":1,\"fsLayers\":[]}".into()),
            (
                media_type::OCI_MANIFEST,
                format!("{{\"schemaVersion\":2,{},\"layers\":[]}}", manifest.replace(&digest, "sha256:../../x")),
            ),
            (media_type::OCI_MANIFEST, "[".repeat(100_000)),
            (
                media_type::OCI_MANIFEST,
                format!("{{\"schemaVersion\":2,{}}}", manifest.replace("\"size\":0", "\"size\":-1")),
            ),
        ] {
            assert!(ManifestDocument::parse(announced, text.as_bytes()).is_err(), "{announced}: {text:.200}");
        }
        for announced in [media_type::OCI_MANIFEST, "application/json; charset=utf-8", ""] {
            let text = format!("{{\"schemaVersion\":2,{manifest}}}");
            assert!(ManifestDocument::parse(announced, text.as_bytes()).is_ok(), "{announced}");
        }
        assert!(matches!(
            ManifestDocument::parse("", &vec![b' '; MAX_DOCUMENT as usize + 1]),
            Err(DocumentError::TooLong(_))
        ));
    }
}
