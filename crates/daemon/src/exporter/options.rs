//! Attributes that all image exporters have.

use bud_image::{ImageRef, Platform};
use bud_oci::codec::Compression;
use bud_protocol::errors::BuildError;
use std::collections::BTreeMap;

/// How an image is made of layers and a config.
#[derive(Clone, Debug, Default)]
pub struct ImageOptions {
    /// OCI's media types, or Docker's.
    pub oci: bool,
    /// How layers are compressed, if it was said.
    pub compression: Option<Compression>,
    /// Layers that are compressed otherwise are compressed again.
    pub force: bool,
    /// The compression's level, if it was said.
    pub level: Option<i32>,
    /// Times in new layers are cut to the epoch.
    pub rewrite: bool,
    /// Nothing of the image is younger (seconds since 1970); inner none: given as empty, so that no other source counts.
    pub epoch: Option<Option<i64>>,
    /// Notes.
    pub annotations: Annotations,
}

/// Annotations by what they are put on.
#[derive(Clone, Debug, Default)]
pub struct Annotations {
    list: Vec<(Place, Option<Platform>, String, String)>,
}

/// What an annotation is put on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The manifest.
    Manifest,
    /// The manifest's entry in the index, or in a layout.
    ManifestDescriptor,
    /// The index.
    Index,
    /// The index's entry in a layout.
    IndexDescriptor,
}

impl Annotations {
    /// Takes an attribute if it is an annotation: `annotation[-place][\[platform\]].key`.
    fn take(&mut self, name: &str, value: &str) -> Result<bool, BuildError> {
        let Some(rest) = name.strip_prefix("annotation") else { return Ok(false) };
        let Some(dot) = rest.find(['.', '[']) else { return Ok(false) };
        let place = match &rest[..dot] {
            "" | "-manifest" => Place::Manifest,
            "-manifest-descriptor" => Place::ManifestDescriptor,
            "-index" => Place::Index,
            "-index-descriptor" => Place::IndexDescriptor,
            _ => return Ok(false),
        };
        let invalid = || BuildError::invalid(format!("invalid annotation {name:?}"));
        let (platform, key) = match rest[dot..].strip_prefix('[') {
            Some(rest) => {
                let (platform, key) = rest.split_once("].").ok_or_else(invalid)?;
                let platform =
                    Platform::parse(platform).map_err(|e| BuildError::invalid(format!("annotation {name:?}: {e}")))?;
                (Some(platform.normalize()), key)
            }
            None => (None, &rest[dot + 1..]),
        };
        if key.is_empty() || platform.is_some() && matches!(place, Place::Index | Place::IndexDescriptor) {
            return Err(invalid());
        }
        self.list.push((place, platform, key.to_owned(), value.to_owned()));
        Ok(true)
    }

    /// Returns those for a place, and for a platform if it is one's.
    #[must_use]
    pub fn of(&self, place: Place, platform: Option<&Platform>) -> BTreeMap<String, String> {
        let fits = |for_platform: &Option<Platform>| match for_platform {
            None => true,
            Some(wanted) => platform.is_some_and(|p| p.normalize() == *wanted),
        };
        let chosen = self.list.iter().filter(|(p, for_platform, ..)| *p == place && fits(for_platform));
        chosen.map(|(_, _, key, value)| (key.clone(), value.clone())).collect()
    }

    /// Adds those that a front end left in the result's metadata.
    ///
    /// # Errors
    /// One is malformed.
    pub fn add_metadata(&mut self, metadata: &BTreeMap<String, Vec<u8>>) -> Result<(), BuildError> {
        for (name, value) in metadata {
            self.take(name, &String::from_utf8_lossy(value))?;
        }
        Ok(())
    }

    /// Checks that each is for a platform that there is.
    ///
    /// # Errors
    /// One isn't.
    pub fn check(&self, platforms: &[Platform], has_index: bool) -> Result<(), BuildError> {
        for (place, platform, key, _) in &self.list {
            if let Some(platform) = platform
                && !platforms.iter().any(|p| p.normalize() == *platform)
            {
                return Err(BuildError::invalid(format!("annotation {key:?}: there is no image for {platform}")));
            }
            if !has_index && matches!(place, Place::Index | Place::IndexDescriptor) {
                return Err(BuildError::invalid(format!(
                    "annotation {key:?}: index annotations need an image for several platforms"
                )));
            }
        }
        Ok(())
    }
}

impl ImageOptions {
    /// Parses the attributes; those of others are left alone.
    ///
    /// # Errors
    /// `InvalidArgument`: a bad value, or one that isn't supported.
    pub fn parse(attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let mut options = Self { oci: flag(attrs, "oci-mediatypes")?.unwrap_or(true), ..Self::default() };
        options.force = flag(attrs, "force-compression")?.unwrap_or(false);
        options.rewrite = flag(attrs, "rewrite-timestamp")?.unwrap_or(false);
        for (name, value) in attrs {
            match name.as_str() {
                "compression" => options.compression = compression(value)?,
                "compression-level" => {
                    let level = value
                        .parse()
                        .map_err(|_| BuildError::invalid(format!("compression-level {value:?} is no number")))?;
                    options.level = Some(level).filter(|level| *level >= 0);
                }
                "source-date-epoch" => options.epoch = Some(epoch(value)?),
                _ => {
                    options.annotations.take(name, value)?;
                }
            }
        }
        if !options.oci && options.compression == Some(Compression::Zstd) {
            return Err(BuildError::invalid(
                "exporter option \"compression=zstd\" conflicts with \"oci-mediatypes=false\"",
            ));
        }
        Ok(options)
    }
}

/// Parses a boolean attribute, by Go's spellings; none if it isn't given.
///
/// # Errors
/// It is no boolean.
pub fn flag(attrs: &BTreeMap<String, String>, name: &str) -> Result<Option<bool>, BuildError> {
    let Some(value) = attrs.get(name) else { return Ok(None) };
    match value.as_str() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
        // A name alone switches it on.
        "" => Ok(Some(true)),
        _ => Err(BuildError::invalid(format!("non-bool value specified for {name}: {value:?}"))),
    }
}

fn compression(value: &str) -> Result<Option<Compression>, BuildError> {
    Ok(Some(match value {
        "" => return Ok(None),
        "uncompressed" => Compression::Uncompressed,
        "gzip" => Compression::Gzip,
        "zstd" => Compression::Zstd,
        "estargz" => {
            return Err(BuildError::invalid("compression=estargz is not supported by this daemon: use gzip or zstd"));
        }
        other => return Err(BuildError::invalid(format!("unsupported layer compression type: {other:?}"))),
    }))
}

/// Parses seconds since 1970; empty is none.
///
/// # Errors
/// It is no number.
pub fn epoch(value: &str) -> Result<Option<i64>, BuildError> {
    if value.is_empty() {
        return Ok(None);
    }
    let seconds = value.parse::<i64>().ok().filter(|s| (0..=253_402_300_799).contains(s));
    seconds
        .map(Some)
        .ok_or_else(|| BuildError::invalid(format!("invalid SOURCE_DATE_EPOCH {value:?}: expected seconds since 1970")))
}

/// Parses the `name` attribute: a comma list, or `*` for what the front end says.
///
/// # Errors
/// A name is no image reference.
pub fn names(text: &str, metadata: &BTreeMap<String, Vec<u8>>) -> Result<Vec<ImageRef>, BuildError> {
    let given = match metadata.get("image.name") {
        Some(name) if text == "*" => String::from_utf8_lossy(name).into_owned(),
        _ if text == "*" => String::new(),
        _ => text.to_owned(),
    };
    let parse = |name: &str| {
        ImageRef::parse(name)
            .map(ImageRef::or_latest)
            .map_err(|e| BuildError::invalid(format!("failed to parse image name {name:?}: {e}")))
    };
    given.split(',').map(str::trim).filter(|n| !n.is_empty()).map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn attributes_are_understood_or_refused() {
        let options = ImageOptions::parse(&attrs(&[
            ("compression", "zstd"),
            ("compression-level", "7"),
            ("force-compression", "true"),
            ("source-date-epoch", "12"),
            ("annotation.a", "1"),
            ("annotation-manifest-descriptor[linux/arm64].b.c", "2"),
            ("annotation-index.d", "3"),
            ("something-else", "x"),
        ]))
        .unwrap();
        assert_eq!((options.compression, options.level, options.force), (Some(Compression::Zstd), Some(7), true));
        assert_eq!((options.oci, options.epoch), (true, Some(Some(12))));
        let annotations = &options.annotations;
        let arm = "linux/arm64/v8".parse().unwrap();
        assert_eq!(annotations.of(Place::Manifest, None)["a"], "1");
        assert_eq!(annotations.of(Place::ManifestDescriptor, Some(&arm))["b.c"], "2");
        assert!(annotations.of(Place::ManifestDescriptor, None).is_empty());
        assert!(annotations.check(&[arm], true).is_ok());
        assert!(annotations.check(&["linux/amd64".parse().unwrap()], true).is_err());
        for bad in [
            ("compression", "lzma"),
            ("compression", "estargz"),
            ("compression-level", "x"),
            ("oci-mediatypes", "maybe"),
            ("source-date-epoch", "now"),
            ("annotation-index[linux/amd64].x", "1"),
        ] {
            assert!(ImageOptions::parse(&attrs(&[bad])).is_err(), "{bad:?}");
        }
        assert!(ImageOptions::parse(&attrs(&[("compression", "zstd"), ("oci-mediatypes", "false")])).is_err());
    }

    #[test]
    fn names_are_normalized() {
        let given = names("foo, x.test/y:z", &BTreeMap::new()).unwrap();
        assert_eq!(
            given.iter().map(ToString::to_string).collect::<Vec<_>>(),
            ["docker.io/library/foo:latest", "x.test/y:z"]
        );
        let metadata = BTreeMap::from([("image.name".to_owned(), b"a".to_vec())]);
        assert_eq!(names("*", &metadata).unwrap().len(), 1);
        assert!(names("*", &BTreeMap::new()).unwrap().is_empty());
        assert!(names("UPPER", &metadata).is_err());
    }
}
