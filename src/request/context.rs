//! The build context: what PATH means, what stdin holds, and the contexts given by name.

use super::dockerfile;
use super::values;
use anyhow::{Context as _, Result, bail, ensure};
use bud_image::ImageRef;
use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The build context.
#[derive(Debug)]
pub enum Context {
    /// A directory of this machine.
    Dir(PathBuf),
    /// A tar on stdin, of which the beginning was read already.
    Tar(Vec<u8>),
    /// Nothing: the Dockerfile came alone.
    Empty,
    /// A Git repository or a tar somewhere, that the daemon fetches.
    Remote(String),
}

/// How much of stdin tells a tar from a Dockerfile.
const PEEK: u64 = 512;
/// The largest Dockerfile that is read.
pub const DOCKERFILE_LIMIT: u64 = 16 << 20;

/// Opens the context that PATH names, and with it the Dockerfile that `--file` names or that is in it.
pub fn open(place: &str, file: Option<&str>) -> Result<(Context, dockerfile::Source)> {
    if place == "-" {
        ensure!(file != Some("-"), "stdin can be the context or the Dockerfile, not both");
        return from_stdin(&mut std::io::stdin().lock(), file);
    }
    if is_remote(place) {
        let source = match file {
            Some("-") => dockerfile::Source::read_stdin(&mut std::io::stdin().lock())?,
            Some(path) => dockerfile::Source::Remote(Some(path.to_owned())),
            None => dockerfile::Source::Remote(None),
        };
        return Ok((Context::Remote(place.to_owned()), source));
    }
    let path = Path::new(place);
    let meta = std::fs::metadata(path).with_context(|| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() && !parent.exists() => {
            format!(
                "the build context {place} can't be used: its parent folder {} is not there either",
                parent.display()
            )
        }
        _ => format!("the build context {place} can't be used"),
    })?;
    ensure!(
        meta.is_dir(),
        "the build context {place} is a file; give its folder, and the file with -f: bud -f {place} {}",
        path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new(".")).display()
    );
    std::fs::read_dir(path).with_context(|| format!("the build context {place} can't be read"))?;
    let source = match file {
        Some("-") => dockerfile::Source::read_stdin(&mut std::io::stdin().lock())?,
        file => dockerfile::Source::find(path, file)?,
    };
    Ok((Context::Dir(path.to_owned()), source))
}

fn from_stdin(input: &mut impl Read, file: Option<&str>) -> Result<(Context, dockerfile::Source)> {
    let mut head = Vec::new();
    input.take(PEEK).read_to_end(&mut head).context("cannot read the context from stdin")?;
    ensure!(!head.is_empty(), "stdin is empty: `bud -` reads a Dockerfile or a tar of the context from it");
    if is_archive(&head) {
        let source = dockerfile::Source::Remote(file.map(str::to_owned));
        return Ok((Context::Tar(head), source));
    }
    ensure!(file.is_none(), "stdin holds a Dockerfile, so there is nothing that -f could be in");
    let text = dockerfile::Source::read_stdin(&mut head.as_slice().chain(input))?;
    Ok((Context::Empty, text))
}

/// Tells whether bytes begin a tar, plain or compressed.
fn is_archive(head: &[u8]) -> bool {
    head.starts_with(&[0x1f, 0x8b])
        || head.starts_with(b"BZh")
        || head.starts_with(&[0xfd, b'7', b'z', b'X', b'Z', 0])
        || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || head.get(257..262).is_some_and(|magic| magic == b"ustar")
}

/// Tells whether a context is for the daemon to fetch.
fn is_remote(place: &str) -> bool {
    ["http://", "https://", "git://", "ssh://", "git@", "github.com/"].iter().any(|prefix| place.starts_with(prefix))
}

/// Contexts given by name.
#[derive(Debug, Default)]
pub struct NamedContexts {
    /// Directories by the name of the local that serves them.
    pub dirs: BTreeMap<String, PathBuf>,
    /// OCI layouts by the id of the store that serves them.
    pub layouts: BTreeMap<String, PathBuf>,
    /// The names, for the check of the Dockerfile.
    pub names: Vec<String>,
}

impl NamedContexts {
    /// Parses the `--build-context` values; what the front end must know of them is added to its options.
    pub fn parse(values: &[String], attrs: &mut BTreeMap<String, String>) -> Result<Self> {
        let mut contexts = Self::default();
        for value in values {
            contexts.add(value, attrs).with_context(|| format!("--build-context {value}"))?;
        }
        Ok(contexts)
    }

    fn add(&mut self, value: &str, attrs: &mut BTreeMap<String, String>) -> Result<()> {
        let (name, source) = values::key_value(value)?;
        let reference = ImageRef::parse(name).map_err(|error| anyhow::anyhow!("`{name}` is not a name ({error})"))?;
        let name = reference.familiar();
        let name = name.strip_suffix(":latest").unwrap_or(&name).to_owned();
        let meaning = if let Some(image) = source.strip_prefix("docker-image://") {
            ImageRef::parse(image).map_err(|error| anyhow::anyhow!("`{image}` is not an image's name: {error}"))?;
            source.to_owned()
        } else if let Some(layout) = source.strip_prefix("oci-layout://") {
            let (path, digest) = layout_digest(layout)?;
            let store = format!("{}-{}", self.layouts.len(), short_name(&path));
            self.layouts.insert(store.clone(), path);
            format!("oci-layout://{store}@{digest}")
        } else if is_remote(source) || source.starts_with("target:") || source.starts_with("input:") {
            source.to_owned()
        } else {
            let path = PathBuf::from(source.strip_prefix("file://").unwrap_or(source));
            let meta = std::fs::metadata(&path).with_context(|| format!("cannot use {}", path.display()))?;
            ensure!(meta.is_dir(), "{} is not a directory", path.display());
            let local = if name == "context" || name == "dockerfile" { format!("{name}-named") } else { name.clone() };
            self.dirs.insert(local.clone(), path);
            format!("local:{local}")
        };
        attrs.insert(format!("context:{name}"), meaning);
        self.names.push(name);
        Ok(())
    }
}

fn short_name(path: &Path) -> String {
    let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    name.chars().filter(|c| c.is_ascii_alphanumeric()).take(24).collect()
}

/// Finds the digest that `PATH`, `PATH:TAG` or `PATH@DIGEST` means in an OCI layout.
fn layout_digest(text: &str) -> Result<(PathBuf, String)> {
    if let Some((path, digest)) = text.split_once('@') {
        let digest: bud_image::Digest =
            digest.parse().map_err(|error| anyhow::anyhow!("`{digest}` is not a digest: {error}"))?;
        return Ok((path.into(), digest.to_string()));
    }
    let (path, tag) = match text.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (text, None),
    };
    let index_path = Path::new(path).join("index.json");
    let file = std::fs::File::open(&index_path).with_context(|| format!("cannot open {}", index_path.display()))?;
    let mut text = Vec::new();
    file.take(4 << 20).read_to_end(&mut text).with_context(|| format!("cannot read {}", index_path.display()))?;
    let index: serde_json::Value =
        serde_json::from_slice(&text).with_context(|| format!("{} is not JSON", index_path.display()))?;
    let manifests = index["manifests"].as_array().map(Vec::as_slice).unwrap_or_default();
    let found = match tag {
        Some(tag) => manifests.iter().find(|m| {
            let name = &m["annotations"]["org.opencontainers.image.ref.name"];
            name.as_str().is_some_and(|n| n == tag || n.rsplit(':').next() == Some(tag))
        }),
        None => manifests.iter().find(|m| m["annotations"]["org.opencontainers.image.ref.name"] == "latest").or(
            match manifests {
                [only] => Some(only),
                _ => None,
            },
        ),
    };
    let Some(digest) = found.and_then(|m| m["digest"].as_str()) else {
        match tag {
            Some(tag) => bail!("{path} has no image with the tag {tag}"),
            None => bail!("{path} has {} images; say which with :TAG or @DIGEST", manifests.len()),
        }
    };
    let digest: bud_image::Digest = digest
        .parse()
        .map_err(|error| anyhow::anyhow!("{}: `{digest}` is not a digest: {error}", index_path.display()))?;
    Ok((path.into(), digest.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stdin_is_a_dockerfile_or_a_tar() {
        let (context, source) = from_stdin(&mut "FROM scratch\n".as_bytes(), None).unwrap();
        assert!(matches!(context, Context::Empty));
        assert_eq!(source.text().unwrap(), b"FROM scratch\n");
        let mut tar = vec![0; 1024];
        tar[257..262].copy_from_slice(b"ustar");
        let (context, source) = from_stdin(&mut tar.as_slice(), Some("sub/Dockerfile")).unwrap();
        let Context::Tar(head) = context else { panic!("not a tar") };
        assert_eq!(head.len(), 512);
        assert!(source.text().is_none());
        assert!(from_stdin(&mut [].as_slice(), None).is_err());
        assert!(from_stdin(&mut "FROM scratch".as_bytes(), Some("x")).is_err());
    }

    #[test]
    fn a_named_context_is_a_directory_an_image_or_a_layout() {
        let dir = tempfile::tempdir().unwrap();
        let digest = format!("sha256:{}", "a".repeat(64));
        std::fs::write(
            dir.path().join("index.json"),
            format!(r#"{{"manifests":[{{"digest":"{digest}","annotations":{{"org.opencontainers.image.ref.name":"v1"}}}}]}}"#),
        )
        .unwrap();
        let path = dir.path().display();
        let mut attrs = BTreeMap::new();
        let contexts = NamedContexts::parse(
            &[
                format!("src={path}"),
                "alpine:latest=docker-image://debian:12".into(),
                format!("base=oci-layout://{path}:v1"),
                "repo=https://example.com/r.git#main".into(),
            ],
            &mut attrs,
        )
        .unwrap();
        assert_eq!(attrs["context:src"], "local:src");
        assert_eq!(attrs["context:alpine"], "docker-image://debian:12");
        assert_eq!(attrs["context:repo"], "https://example.com/r.git#main");
        let (store, _) = contexts.layouts.iter().next().unwrap();
        assert_eq!(attrs["context:base"], format!("oci-layout://{store}@{digest}"));
        assert_eq!(contexts.dirs["src"], dir.path());
        for bad in ["x", "=y", "x=/nonexistent", "x=docker-image://UPPER", "x=oci-layout:///nonexistent"] {
            assert!(NamedContexts::parse(&[bad.into()], &mut BTreeMap::new()).is_err(), "{bad}");
        }
        let wrong = NamedContexts::parse(&[format!("x=oci-layout://{path}:v2")], &mut BTreeMap::new()).unwrap_err();
        assert!(format!("{wrong:#}").contains("no image with the tag v2"));
    }

    #[test]
    fn a_file_as_context_is_explained() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Dockerfile");
        std::fs::write(&file, "FROM scratch").unwrap();
        let error = open(file.to_str().unwrap(), None).unwrap_err().to_string();
        assert!(error.contains("is a file; give its folder"), "{error}");
    }
}
