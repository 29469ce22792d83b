//! An image layout in a directory: the daemon writes the blobs, the index is this side's.

use super::files::replace;
use anyhow::{Context as _, Result};
use base64::Engine as _;
use bud_image::ImageRef;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// The whole reference of an image.
const NAME: &str = "io.containerd.image.name";
/// Its tag.
const TAG: &str = "org.opencontainers.image.ref.name";

/// Writes `oci-layout`, and puts what was exported into `index.json`. Images of other names in it stay.
///
/// # Errors
/// The daemon didn't say what it exported, or the files can't be written.
pub fn finish(folder: &Path, response: &BTreeMap<String, String>) -> Result<()> {
    let doing = || format!("writing the image layout {}", folder.display());
    let encoded = response.get("containerimage.descriptor").with_context(doing).context("the daemon names no image")?;
    let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).with_context(doing)?;
    let descriptor: Value = serde_json::from_slice(&bytes).with_context(doing)?;
    let names = response.get("image.name").map(|names| names.split(',').collect::<Vec<_>>()).unwrap_or_default();
    let path = folder.join("index.json");
    let mut manifests = match std::fs::read(&path) {
        Ok(text) => {
            let index: Value =
                serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", path.display()))?;
            index["manifests"].as_array().cloned().unwrap_or_default()
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(error) => return Err(error).with_context(doing),
    };
    for annotations in annotations(&names) {
        let is_same =
            |m: &Value| m["annotations"][NAME] == annotations[NAME] && m["annotations"][TAG] == annotations[TAG];
        manifests.retain(|manifest| !is_same(manifest));
        let mut entry = descriptor.clone();
        let all = entry["annotations"].as_object().cloned().unwrap_or_default();
        let own = annotations.as_object().cloned().unwrap_or_default();
        entry["annotations"] = all.into_iter().chain(own).collect();
        manifests.push(entry);
    }
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": manifests,
    });
    replace(&path, index.to_string().as_bytes()).with_context(doing)?;
    replace(&folder.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).with_context(doing)
}

/// Returns the annotations of an index's entries: one for each name, or the tag `latest` without any.
fn annotations(names: &[&str]) -> Vec<Value> {
    if names.is_empty() {
        return vec![json!({ TAG: "latest" })];
    }
    let of_name = |name: &&str| {
        let tag = ImageRef::parse(name).ok().and_then(|reference| reference.or_latest().tag);
        json!({ NAME: name, TAG: tag.unwrap_or_else(|| "latest".into()) })
    };
    names.iter().map(of_name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(digest: &str, names: Option<&str>) -> BTreeMap<String, String> {
        let descriptor = json!({"digest": digest, "annotations": {"made": "now"}}).to_string();
        let encoded = base64::engine::general_purpose::STANDARD.encode(descriptor);
        let mut response = BTreeMap::from([("containerimage.descriptor".to_owned(), encoded)]);
        response.extend(names.map(|names| ("image.name".to_owned(), names.to_owned())));
        response
    }

    #[test]
    fn an_index_gains_names_and_replaces_them() {
        let dir = tempfile::tempdir().unwrap();
        finish(dir.path(), &response("sha256:one", Some("docker.io/library/a:1,docker.io/library/b:latest"))).unwrap();
        finish(dir.path(), &response("sha256:two", Some("docker.io/library/a:1"))).unwrap();
        finish(dir.path(), &response("sha256:three", None)).unwrap();
        let index: Value = serde_json::from_slice(&std::fs::read(dir.path().join("index.json")).unwrap()).unwrap();
        let seen: Vec<String> = index["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| format!("{} {} {}", m["digest"], m["annotations"][NAME], m["annotations"][TAG]))
            .collect();
        assert_eq!(
            seen,
            [
                r#""sha256:one" "docker.io/library/b:latest" "latest""#,
                r#""sha256:two" "docker.io/library/a:1" "1""#,
                r#""sha256:three" null "latest""#,
            ]
        );
        assert_eq!(index["manifests"][0]["annotations"]["made"], "now");
        assert!(dir.path().join("oci-layout").exists());
    }

    #[test]
    fn without_an_image_there_is_no_layout() {
        let dir = tempfile::tempdir().unwrap();
        assert!(finish(dir.path(), &BTreeMap::new()).is_err());
    }
}
