//! The Dockerfile: where it is, and what is wrong with it, before anything is started.

use super::context::DOCKERFILE_LIMIT;
use anyhow::{Context as _, Result, bail, ensure};
use bud_dockerfile::{CheckOptions, Report};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Where the Dockerfile is.
#[derive(Debug)]
pub enum Source {
    /// A file of this machine.
    File {
        /// The folder that is served to the daemon.
        dir: PathBuf,
        /// Its name in there.
        name: String,
        /// As it is named in messages.
        shown: String,
        /// Its text.
        text: Vec<u8>,
    },
    /// It came on stdin.
    Stdin(Vec<u8>),
    /// It is in the remote context or the tar, under this name if one is given.
    Remote(Option<String>),
}

impl Source {
    /// Reads a Dockerfile from stdin.
    pub fn read_stdin(input: &mut impl Read) -> Result<Self> {
        let mut text = Vec::new();
        input.take(DOCKERFILE_LIMIT + 1).read_to_end(&mut text).context("cannot read the Dockerfile from stdin")?;
        ensure!(
            text.len() as u64 <= DOCKERFILE_LIMIT,
            "the Dockerfile on stdin is larger than {DOCKERFILE_LIMIT} bytes"
        );
        ensure!(!text.is_empty(), "stdin is empty: there should be a Dockerfile on it");
        Ok(Self::Stdin(text))
    }

    /// Finds the Dockerfile of a context directory: the file that was named, or `Dockerfile`, or `dockerfile`.
    pub fn find(context: &Path, file: Option<&str>) -> Result<Self> {
        let path = match file {
            Some(file) => PathBuf::from(file),
            None => {
                let path = context.join("Dockerfile");
                let lower = context.join("dockerfile");
                if !path.exists() && lower.exists() { lower } else { path }
            }
        };
        // As in `docker build`, a path is from the working directory. One that is only in the context is likely meant there.
        let path = if file.is_some() && !path.exists() && path.is_relative() && context.join(&path).is_file() {
            context.join(path)
        } else {
            path
        };
        let shown = path.display().to_string();
        let shown = shown.strip_prefix("./").unwrap_or(&shown).to_owned();
        let meta = match std::fs::metadata(&path) {
            Ok(meta) => meta,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => bail!(missing(context, &shown)),
            Err(error) => return Err(error).with_context(|| format!("cannot read the Dockerfile {shown}")),
        };
        ensure!(!meta.is_dir(), "{shown} is a folder; -f names the Dockerfile itself");
        ensure!(meta.is_file(), "{shown} is not a plain file");
        let opened = std::fs::File::open(&path).with_context(|| format!("cannot read the Dockerfile {shown}"))?;
        let mut text = Vec::new();
        opened.take(DOCKERFILE_LIMIT + 1).read_to_end(&mut text).with_context(|| format!("cannot read {shown}"))?;
        ensure!(text.len() as u64 <= DOCKERFILE_LIMIT, "{shown} is larger than {DOCKERFILE_LIMIT} bytes");
        let name = path.file_name().context("the Dockerfile's path has no name")?.to_string_lossy().into_owned();
        let dir = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
            _ => PathBuf::from("."),
        };
        Ok(Self::File { dir, name, shown, text })
    }

    /// Returns the text, if it is on this side.
    pub fn text(&self) -> Option<&[u8]> {
        match self {
            Self::File { text, .. } | Self::Stdin(text) => Some(text),
            Self::Remote(_) => None,
        }
    }

    /// Returns the name for messages.
    pub fn shown(&self) -> &str {
        match self {
            Self::File { shown, .. } => shown,
            Self::Stdin(_) => "stdin",
            Self::Remote(name) => name.as_deref().unwrap_or("Dockerfile"),
        }
    }

    /// Checks the text against the flags; nothing if it isn't on this side.
    pub fn check(&self, request: &super::BuildRequest) -> Option<Report> {
        let text = self.text()?;
        let build_args = request.attrs.keys().filter_map(|key| key.strip_prefix("build-arg:").map(str::to_owned));
        Some(bud_dockerfile::check(
            text,
            &CheckOptions {
                filename: self.shown().to_owned(),
                target: request.attrs.get("target").cloned(),
                build_args: build_args.collect(),
                contexts: request.contexts.names.clone(),
            },
        ))
    }
}

/// The message for a Dockerfile that isn't there, with those that are.
fn missing(context: &Path, shown: &str) -> String {
    let mut message = format!("there is no Dockerfile at {shown}");
    let candidates = candidates(context);
    match candidates.as_slice() {
        [] => message.push_str(
            "\nand none in the folder either. One that makes an empty image has the line `FROM scratch`; -f names another file",
        ),
        list => {
            message.push_str("\nmeant one of these? Give it with -f:");
            for path in list {
                message.push_str(&format!("\n  bud -f {} {}", path.display(), context.display()));
            }
        }
    }
    message
}

/// Tells whether a file's name looks like a Dockerfile's.
#[must_use]
pub fn is_dockerfile_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    (name.contains("dockerfile") || name.contains("containerfile")) && !name.ends_with("dockerignore")
}

/// Lists files of a folder (and its folders) that look like Dockerfiles.
fn candidates(context: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![(context.to_owned(), 0)];
    let mut seen = 0;
    while let Some((folder, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            if seen > 5000 || found.len() >= 50 {
                break;
            }
            let name = entry.file_name().to_string_lossy().into_owned();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() && depth < 2 && !name.starts_with('.') && name != "node_modules" => {
                    folders.push((entry.path(), depth + 1));
                }
                Ok(kind) if kind.is_file() && is_dockerfile_name(&name) => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found.sort_by_key(|path| (path.components().count(), path.clone()));
    found.truncate(5);
    found.into_iter().map(|path| path.strip_prefix("./").map(Path::to_owned).unwrap_or(path)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_dockerfile_lists_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let error = Source::find(dir.path(), None).unwrap_err().to_string();
        assert!(error.contains("none in the folder either"), "{error}");
        std::fs::create_dir(dir.path().join("docker")).unwrap();
        std::fs::write(dir.path().join("docker/web.Dockerfile"), "FROM scratch").unwrap();
        std::fs::write(dir.path().join("Containerfile"), "FROM scratch").unwrap();
        let error = Source::find(dir.path(), None).unwrap_err().to_string();
        let at = |text: &str| error.find(text).unwrap_or_else(|| panic!("{text} not in {error}"));
        assert!(at("Containerfile") < at("web.Dockerfile"));
    }

    #[test]
    fn lower_case_and_paths_in_the_context_are_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("dockerfile"), "FROM scratch").unwrap();
        std::fs::write(dir.path().join("unique-name-9183.Dockerfile"), "FROM scratch").unwrap();
        let Source::File { name, .. } = Source::find(dir.path(), None).unwrap() else { panic!("not a file") };
        assert_eq!(name, "dockerfile");
        let Source::File { name, dir: folder, .. } =
            Source::find(dir.path(), Some("unique-name-9183.Dockerfile")).unwrap()
        else {
            panic!("not a file")
        };
        assert_eq!((name.as_str(), folder.as_path()), ("unique-name-9183.Dockerfile", dir.path()));
        assert!(Source::find(dir.path(), Some(dir.path().to_str().unwrap())).is_err());
    }
}
