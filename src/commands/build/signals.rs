//! The signals that end a build.

use anyhow::{Context as _, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals that end a build.
pub struct Signals {
    list: [(Signal, u8); 3],
}

impl Signals {
    /// Begins to listen.
    pub fn new() -> Result<Self> {
        let listen =
            |kind: SignalKind, code: u8| signal(kind).map(|signal| (signal, code)).context("cannot listen for signals");
        Ok(Self {
            list: [
                listen(SignalKind::interrupt(), 130)?,
                listen(SignalKind::terminate(), 143)?,
                listen(SignalKind::hangup(), 129)?,
            ],
        })
    }

    /// Waits for one and returns the exit code that tells of it.
    pub async fn any(&mut self) -> u8 {
        let [(interrupt, a), (terminate, b), (hangup, c)] = &mut self.list;
        tokio::select! {
            _ = interrupt.recv() => *a,
            _ = terminate.recv() => *b,
            _ = hangup.recv() => *c,
        }
    }
}
