//! The files that tell other programs what was made.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;

/// Returns the image's ID: the digest of its config, or else of its manifest.
#[must_use]
pub fn image_id(response: &BTreeMap<String, String>) -> Option<&str> {
    ["containerimage.config.digest", "containerimage.digest"]
        .iter()
        .find_map(|key| response.get(*key))
        .map(String::as_str)
        .filter(|id| !id.is_empty())
}

/// Writes the image's ID.
pub fn write_iid(path: &Path, id: &str) -> Result<()> {
    replace(path, id.as_bytes()).with_context(|| format!("--iidfile: cannot write {}", path.display()))
}

/// Writes what was made, as `docker buildx` does: the exporters' answers, with objects for what is JSON in them.
pub fn write_metadata(path: &Path, response: &BTreeMap<String, String>, build_ref: &str) -> Result<()> {
    let mut map: BTreeMap<&str, Value> = BTreeMap::new();
    for (key, value) in response {
        map.insert(key, decoded(value));
    }
    let reference = format!("bud/bud/{build_ref}");
    map.insert("buildx.build.ref", reference.into());
    let object: Map<String, Value> = map.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
    let text = serde_json::to_string_pretty(&object).context("--metadata-file")?;
    replace(path, text.as_bytes()).with_context(|| format!("--metadata-file: cannot write {}", path.display()))
}

/// Returns the object that a value holds as base64 of JSON, or the value.
fn decoded(value: &str) -> Value {
    let decoded = base64::engine::general_purpose::STANDARD.decode(value).ok();
    let object = decoded.and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
    object.filter(|v| v.is_object()).unwrap_or_else(|| value.into())
}

/// Writes a file whole or not at all. What is no plain file (a pipe, /dev/stdout) is written to.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> Result<()> {
    if std::fs::metadata(path).is_ok_and(|meta| !meta.is_file()) {
        return Ok(std::fs::OpenOptions::new().write(true).open(path)?.write_all(bytes)?);
    }
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut file = tempfile::Builder::new()
        .prefix(".bud-")
        .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
        .tempfile_in(folder)?;
    file.write_all(bytes)?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metadata_file_has_objects() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.json");
        let descriptor = base64::engine::general_purpose::STANDARD.encode(r#"{"digest":"sha256:b"}"#);
        let response = BTreeMap::from([
            ("image.name".to_owned(), "docker.io/library/foo:latest".to_owned()),
            ("containerimage.digest".to_owned(), "sha256:b".to_owned()),
            ("containerimage.descriptor".to_owned(), descriptor),
        ]);
        write_metadata(&path, &response, "ref1").unwrap();
        let read: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(read["containerimage.descriptor"]["digest"], "sha256:b");
        assert_eq!(read["image.name"], "docker.io/library/foo:latest");
        assert_eq!(read["buildx.build.ref"], "bud/bud/ref1");
        assert_eq!(image_id(&response), Some("sha256:b"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_can_t_be_written_is_named() {
        let error = write_iid(Path::new("/nonexistent/x"), "sha256:a").unwrap_err().to_string();
        assert_eq!(error, "--iidfile: cannot write /nonexistent/x");
    }
}
