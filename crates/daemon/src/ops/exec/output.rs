//! What a step prints: read from pipes, so that a process that prints faster than we take it waits.

use crate::progress::Reporter;
use crate::progress::clip::{Clip, Limits};
use std::os::fd::OwnedFd;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;

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
pub async fn pump(progress: Reporter, stdout: Receiver, stderr: Receiver) {
    let limits = Limits::from_env();
    tokio::join!(stream(progress.clone(), stdout, 1, limits), stream(progress, stderr, 2, limits));
}

async fn stream(progress: Reporter, mut pipe: Receiver, number: i64, limits: Limits) {
    let mut clip = Clip::new(limits);
    let mut buffer = vec![0; CHUNK];
    loop {
        match pipe.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => {
                let told = clip.push(&buffer[..length]);
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
    let rest = clip.finish();
    if !rest.is_empty() {
        progress.log(number, rest);
    }
}
