//! What a step prints: read from pipes, so that a process that prints faster than we take it waits.

use crate::progress::Reporter;
use crate::progress::clip::{Clip, Limits};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

/// Output is kept in memory until it is longer than this; most is not, and is told as it is.
const SMALL: usize = 64 << 10;

/// The whole output of a stream, in a compressed file if it is long.
struct Whole {
    path: PathBuf,
    start: Vec<u8>,
    file: Option<zstd::Encoder<'static, File>>,
    failed: bool,
}

impl Whole {
    fn new(path: PathBuf) -> Self {
        Self { path, start: Vec::new(), file: None, failed: false }
    }

    fn path(&self) -> Option<&Path> {
        self.file.is_some().then_some(self.path.as_path())
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.failed {
            return;
        }
        if self.file.is_none() && self.start.len() + bytes.len() <= SMALL {
            self.start.extend_from_slice(bytes);
            return;
        }
        let written = tokio::task::block_in_place(|| self.write(bytes));
        self.check(written);
    }

    fn write(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        if self.file.is_none() {
            if let Some(dir) = self.path.parent() {
                std::fs::create_dir_all(dir)?;
            }
            let mut file = zstd::Encoder::new(File::create(&self.path)?, 1)?;
            file.write_all(&std::mem::take(&mut self.start))?;
            self.file = Some(file);
        }
        match &mut self.file {
            Some(file) => file.write_all(bytes),
            None => Ok(()),
        }
    }

    fn finish(&mut self) {
        if let Some(file) = self.file.take() {
            let finished = file.finish().map(|_| ());
            self.check(finished);
        }
    }

    /// A full disk costs the log, not the step.
    fn check(&mut self, result: std::io::Result<()>) {
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), %error, "a step's output can't be kept");
            self.failed = true;
            self.file = None;
        }
    }
}

/// Read at once.
const CHUNK: usize = 32 << 10;

/// Makes a pipe: its end to read from, and the end for the process.
///
/// # Errors
/// Too many files are open.
pub fn pipe() -> std::io::Result<(Receiver, OwnedFd)> {
    let (reader, writer) = std::io::pipe()?;
    Ok((Receiver::from_owned_fd(OwnedFd::from(reader))?, OwnedFd::from(writer)))
}

/// Passes both streams on until they end.
pub async fn pump(progress: Reporter, log_file: PathBuf, stdout: Receiver, stderr: Receiver) {
    let limits = Limits::from_env();
    let whole = |number: i64| Whole::new(log_file.with_extension(format!("{number}.zst")));
    tokio::join!(
        stream(progress.clone(), whole(1), stdout, 1, limits),
        stream(progress.clone(), whole(2), stderr, 2, limits)
    );
}

/// Passes on what a process says of itself, until it ends.
pub async fn pump_stderr(progress: Reporter, log_file: PathBuf, stderr: Receiver) {
    stream(progress, Whole::new(log_file.with_extension("2.zst")), stderr, 2, Limits::from_env()).await;
}

async fn stream(progress: Reporter, mut whole: Whole, mut pipe: Receiver, number: i64, limits: Limits) {
    let mut clip = Clip::new(limits);
    let mut said = false;
    let mut buffer = vec![0; CHUNK];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => {
                whole.push(&buffer[..length]);
                let mut told = clip.push(&buffer[..length]);
                if clip.has_clipped() && !said {
                    said = true;
                    if let Some(path) = whole.path() {
                        told.extend(format!("[the whole output is in {} (zstd)]\n", path.display()).into_bytes());
                    }
                }
                if !told.is_empty() {
                    progress.log(number, told);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "a step's output can't be read");
                break;
            }
        }
    }
    whole.finish();
    let rest = clip.finish();
    if !rest.is_empty() {
        progress.log(number, rest);
    }
}
