//! Loading an image into Docker or Podman: a docker archive goes in as it comes.

use super::docker::Docker;
use anyhow::{Context as _, Result, bail};
use bud_image::ImageRef;
use bud_session::client::{FileSink, FileTarget};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt as _;
use tokio::sync::{mpsc, oneshot};

/// Who takes the image.
#[derive(Debug, Clone)]
pub enum Loader {
    /// Docker's daemon.
    Docker(Docker),
    /// A program that reads an archive (`podman load`).
    Program {
        /// The program.
        name: &'static str,
        /// As it is called in messages.
        shown: &'static str,
    },
}

/// Finds a Docker, or else a Podman.
///
/// # Errors
/// Docker's address can't be used.
pub async fn find() -> Result<Option<Loader>> {
    if let Some(host) = super::docker_config::docker_host() {
        match Docker::at(&host) {
            Some(docker) if docker.answers().await => return Ok(Some(Loader::Docker(docker))),
            Some(_) => {}
            // Reached over ssh or TLS: Docker's own client knows how.
            None if in_path("docker") => return Ok(Some(Loader::Program { name: "docker", shown: "Docker" })),
            None => {}
        }
    }
    Ok(in_path("podman").then_some(Loader::Program { name: "podman", shown: "Podman" }))
}

fn in_path(program: &str) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| {
        let meta = std::fs::metadata(dir.join(program));
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

impl Loader {
    /// Returns its name for messages.
    #[must_use]
    pub fn shown(&self) -> &'static str {
        match self {
            Self::Docker(_) => "Docker",
            Self::Program { shown, .. } => shown,
        }
    }

    /// Returns the command that runs its images.
    #[must_use]
    pub fn command(&self) -> &'static str {
        match self {
            Self::Docker(_) => "docker",
            Self::Program { name, .. } => name,
        }
    }

    /// Tells whether it has an image under a name; `ids`: what it may call it.
    pub async fn has(&self, name: &ImageRef, ids: &[&str]) -> bool {
        let found = match self {
            // The whole name: a short one might be the beginning of an ID.
            Self::Docker(docker) => docker.image_id(&name.to_string()).await,
            Self::Program { name: program, .. } => {
                ask(program, &["image", "inspect", "--format", "{{.Id}}", &name.familiar()]).await
            }
        };
        found.is_some_and(|found| ids.iter().any(|id| is_same(id, &found)))
    }

    /// Returns by which of its IDs an image is there.
    pub async fn find(&self, ids: &[&str]) -> Option<String> {
        for id in ids.iter().filter(|id| !id.is_empty()) {
            let bare = id.trim_start_matches("sha256:");
            let found = match self {
                Self::Docker(docker) => docker.image_id(id).await,
                Self::Program { name, .. } => ask(name, &["image", "inspect", "--format", "{{.Id}}", bare]).await,
            };
            if found.is_some_and(|found| is_same(id, &found)) {
                return Some((*id).to_owned());
            }
        }
        None
    }

    /// Gives an image that is there under another name this one; tells whether that was done.
    pub async fn tag(&self, ids: &[&str], name: &ImageRef) -> bool {
        let Some(id) = self.find(ids).await else { return false };
        let done = match self {
            Self::Docker(docker) => docker.tag(&id, &name.name(), name.tag.as_deref().unwrap_or("latest")).await,
            Self::Program { name: program, .. } => {
                ask(program, &["tag", id.trim_start_matches("sha256:"), &name.familiar()]).await.is_some()
            }
        };
        done && self.has(name, ids).await
    }

    /// Returns the chain IDs of layers that may be missing from an archive, because they are there.
    pub async fn chains(&self) -> Vec<String> {
        match self {
            Self::Docker(docker) => docker.chains().await,
            Self::Program { .. } => Vec::new(),
        }
    }

    /// Loads an archive.
    ///
    /// # Errors
    /// It refuses the archive, or ends.
    pub async fn load(&self, archive: mpsc::Receiver<Bytes>) -> Result<()> {
        match self {
            Self::Docker(docker) => docker.load(archive).await,
            Self::Program { name, shown } => {
                load_by_program(name, archive).await.with_context(|| format!("loading into {shown}"))
            }
        }
    }
}

fn is_same(id: &str, found: &str) -> bool {
    let bare = |id: &str| id.strip_prefix("sha256:").unwrap_or(id).to_owned();
    !id.is_empty() && bare(id) == bare(found)
}

/// Returns what a program says, if it succeeds.
async fn ask(program: &str, args: &[&str]) -> Option<String> {
    let mut command = tokio::process::Command::new(program);
    let output = command.args(args).stdin(Stdio::null()).kill_on_drop(true).output().await.ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

async fn load_by_program(program: &str, mut archive: mpsc::Receiver<Bytes>) -> Result<()> {
    let mut child = tokio::process::Command::new(program)
        .arg("load")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start {program}"))?;
    let mut stdin = child.stdin.take().context("no stdin")?;
    let feeding = async move {
        while let Some(piece) = archive.recv().await {
            if stdin.write_all(&piece).await.is_err() {
                // It says itself why it doesn't read on.
                break;
            }
        }
    };
    let ((), output) = tokio::join!(feeding, child.wait_with_output());
    let output = output.with_context(|| format!("waiting for {program}"))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{program} load` failed ({}): {}", output.status, said.trim());
    }
    Ok(())
}

/// An image that is being loaded.
pub struct Loading {
    /// Who takes it.
    pub loader: Loader,
    result: oneshot::Receiver<Result<()>>,
}

impl Loading {
    /// Waits until it is there.
    ///
    /// # Errors
    /// It couldn't be loaded, or no archive came.
    pub async fn done(self) -> Result<()> {
        self.result.await.map_err(|_| anyhow::anyhow!("the daemon sent no image"))?
    }
}

/// Makes a target for an export, and what tells its end.
pub fn target(loader: Loader) -> (Arc<dyn FileTarget>, Loading) {
    let (sender, result) = oneshot::channel();
    let target = Target { loader: loader.clone(), result: Mutex::new(Some(sender)) };
    (Arc::new(target), Loading { loader, result })
}

struct Target {
    loader: Loader,
    result: Mutex<Option<oneshot::Sender<Result<()>>>>,
}

impl FileTarget for Target {
    fn open(&self, _: &BTreeMap<String, String>) -> io::Result<Option<Box<dyn FileSink>>> {
        let taken = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        let result = taken.ok_or_else(|| io::Error::other("the image was sent already"))?;
        let (pieces, archive) = mpsc::channel(8);
        let loader = self.loader.clone();
        let (ended, end) = oneshot::channel();
        // The sink is called from a blocking thread of the runtime.
        tokio::runtime::Handle::current().spawn(async move {
            let loaded = loader.load(archive).await;
            // Either of these may have given up waiting.
            _ = ended.send(loaded.as_ref().copied().map_err(|error| format!("{error:#}")));
            _ = result.send(loaded);
        });
        Ok(Some(Box::new(Sink { pieces, end })))
    }
}

struct Sink {
    pieces: mpsc::Sender<Bytes>,
    end: oneshot::Receiver<Result<(), String>>,
}

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        match self.pieces.blocking_send(Bytes::copy_from_slice(data)) {
            Ok(()) => Ok(data.len()),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl FileSink for Sink {
    fn complete(self: Box<Self>) -> io::Result<()> {
        let Self { pieces, end } = *self;
        drop(pieces);
        match end.blocking_recv() {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::other("loading was given up")),
        }
    }
}
