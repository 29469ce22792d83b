//! OCI image layouts, written as a tar, for Docker too.
//!
//! Source: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md>.

use crate::tar::{Header, Kind, Writer};
use bud_image::{Descriptor, Digest, ImageRef, Index};
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{Read, Write};

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;
const NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// An archive to be written: the layout of one image or index, under any number of names.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The manifest or index.
    pub top: Descriptor,
    /// The image's names.
    pub names: Vec<ImageRef>,
    /// For Docker: config and layers of the one image.
    pub docker: Option<DockerImage>,
    /// All blobs with their sizes.
    pub blobs: BTreeMap<Digest, u64>,
}

/// What `manifest.json` says of an image.
#[derive(Clone, Debug)]
pub struct DockerImage {
    /// The config.
    pub config: Digest,
    /// The layers, bottom first; some may be left out of [`Archive::blobs`], if the receiver has them.
    pub layers: Vec<Digest>,
}

/// Where a blob comes from when its turn has come.
pub type Open<'a> = dyn FnMut(&Digest) -> std::io::Result<Box<dyn Read>> + 'a;

impl Archive {
    /// Writes the tar: entries sorted by name, no owner, time 0. The same archive is the same bytes.
    ///
    /// # Errors
    /// A blob can't be read, or the stream fails.
    pub fn write<W: Write>(&self, output: W, open: &mut Open<'_>) -> std::io::Result<W> {
        let mut tar = Writer::new(output);
        for dir in ["blobs/", "blobs/sha256/"] {
            tar.start(&Header::new(dir, Kind::Directory))?;
        }
        for (digest, size) in &self.blobs {
            let header = Header { mode: 0o444, size: *size, ..Header::new(blob_path(digest), Kind::File) };
            tar.append(&header, open(digest)?)?;
        }
        let mut document = |name: &str, mode: u32, bytes: &[u8]| {
            tar.append(&Header { mode, size: bytes.len() as u64, ..Header::new(name, Kind::File) }, bytes)
        };
        document("index.json", 0o644, &self.index_json()?)?;
        if let Some(docker) = &self.docker {
            document("manifest.json", 0o644, &self.manifest_json(docker)?)?;
        }
        document("oci-layout", 0o444, LAYOUT)?;
        tar.finish()
    }

    /// Lists the image once for each name.
    fn index_json(&self) -> std::io::Result<Vec<u8>> {
        let mut manifests = Vec::new();
        for name in &self.names {
            let mut manifest = self.top.clone();
            manifest.annotations.insert(NAME.into(), name.to_string());
            if let Some(tag) = &name.tag {
                manifest.annotations.insert(REF_NAME.into(), tag.clone());
            }
            manifests.push(manifest);
        }
        if manifests.is_empty() {
            manifests.push(self.top.clone());
        }
        let index = Index {
            schema_version: 2,
            media_type: bud_image::manifest::media_type::OCI_INDEX.into(),
            manifests,
            annotations: BTreeMap::new(),
        };
        Ok(serde_json::to_vec(&index)?)
    }

    fn manifest_json(&self, docker: &DockerImage) -> std::io::Result<Vec<u8>> {
        #[derive(Serialize)]
        #[serde(rename_all = "PascalCase")]
        struct Entry {
            config: String,
            repo_tags: Vec<String>,
            layers: Vec<String>,
        }
        let entry = Entry {
            config: blob_path(&docker.config),
            repo_tags: self.names.iter().filter(|n| n.tag.is_some()).map(ImageRef::familiar).collect(),
            layers: docker.layers.iter().map(blob_path).collect(),
        };
        Ok(serde_json::to_vec(&[entry])?)
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bud_image::manifest::media_type;
    use std::process::{Command, Stdio};

    fn descriptor(kind: &str, bytes: &[u8]) -> Descriptor {
        Descriptor {
            media_type: kind.into(),
            digest: Digest::of(bytes),
            size: bytes.len() as u64,
            urls: vec![],
            annotations: BTreeMap::new(),
            platform: None,
        }
    }

    /// An image of one layer with one file, as blobs and an archive of it.
    fn sample() -> (Archive, BTreeMap<Digest, Vec<u8>>) {
        let mut tar = Writer::new(Vec::new());
        tar.append(&Header { size: 2, ..Header::new("hello", Kind::File) }, &b"hi"[..]).unwrap();
        let layer = tar.finish().unwrap();
        let config = format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"config\":{{}},\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
            Digest::of(&layer)
        )
        .into_bytes();
        let manifest = format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{},\"layers\":[{}]}}",
            media_type::OCI_MANIFEST,
            serde_json::to_string(&descriptor(media_type::OCI_CONFIG, &config)).unwrap(),
            serde_json::to_string(&descriptor(media_type::OCI_LAYER, &layer)).unwrap()
        )
        .into_bytes();
        let top = descriptor(media_type::OCI_MANIFEST, &manifest);
        let docker = DockerImage { config: Digest::of(&config), layers: vec![Digest::of(&layer)] };
        let blobs: BTreeMap<_, _> = [layer, config, manifest].into_iter().map(|b| (Digest::of(&b), b)).collect();
        let archive = Archive {
            top,
            names: vec![ImageRef::parse("foo/bar:y").unwrap()],
            docker: Some(docker),
            blobs: blobs.iter().map(|(d, b)| (*d, b.len() as u64)).collect(),
        };
        (archive, blobs)
    }

    fn written() -> Vec<u8> {
        let (archive, blobs) = sample();
        archive.write(Vec::new(), &mut |digest| Ok(Box::new(std::io::Cursor::new(blobs[digest].clone())))).unwrap()
    }

    #[test]
    fn entries_are_sorted_and_bear_no_trace_of_when_and_who() {
        let tar = written();
        assert_eq!(tar, written());
        let mut reader = crate::tar::Reader::new(&tar[..]);
        let mut names = Vec::new();
        let mut index = String::new();
        while let Some(mut entry) = reader.next_entry().unwrap() {
            let header = entry.header.clone();
            assert_eq!((header.uid, header.gid, header.mtime.seconds), (0, 0, 0));
            let expected = match header.display_name() {
                n if n.ends_with('/') => 0o755,
                n if n.ends_with(".json") => 0o644,
                _ => 0o444,
            };
            assert_eq!(header.mode, expected, "{}", header.display_name());
            if header.path == b"index.json" {
                entry.read_to_string(&mut index).unwrap();
            }
            names.push(header.display_name());
        }
        assert!(names.is_sorted(), "{names:?}");
        assert_eq!(names[..2], ["blobs/", "blobs/sha256/"]);
        assert_eq!(names[5..], ["index.json", "manifest.json", "oci-layout"]);
        assert!(index.contains("\"io.containerd.image.name\":\"docker.io/foo/bar:y\""), "{index}");
        assert!(index.contains("\"org.opencontainers.image.ref.name\":\"y\""), "{index}");
    }

    #[test]
    fn skopeo_reads_it_both_ways() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image.tar");
        std::fs::write(&path, written()).unwrap();
        for transport in ["oci-archive", "docker-archive"] {
            let output = Command::new("skopeo")
                .args(["--insecure-policy", "--tmpdir"])
                .arg(dir.path())
                .args(["inspect", &format!("{transport}:{}", path.display())])
                .stderr(Stdio::inherit())
                .output()
                .expect("skopeo (Debian package of that name) is needed for this test");
            assert!(output.status.success(), "{transport}");
            assert!(String::from_utf8_lossy(&output.stdout).contains("\"Architecture\": \"amd64\""));
        }
    }
}
