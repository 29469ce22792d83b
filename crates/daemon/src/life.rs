//! How long the daemon lives: until it is told to stop, or has had nothing to do for a time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// What keeps the daemon alive and what ends it.
#[derive(Debug)]
pub struct Life {
    stop: CancellationToken,
    calls: AtomicUsize,
    finished: AtomicU64,
    last: Mutex<Instant>,
    /// Leaves after so long with nothing to do.
    pub idle_timeout: Option<Duration>,
}

impl Life {
    /// Starts the clock.
    #[must_use]
    pub fn new(idle_timeout: Option<Duration>) -> Self {
        Self {
            stop: CancellationToken::new(),
            calls: AtomicUsize::new(0),
            finished: AtomicU64::new(0),
            last: Mutex::new(Instant::now()),
            idle_timeout,
        }
    }

    /// Asks the daemon to stop.
    pub fn stop(&self) {
        self.stop.cancel();
    }

    /// Ends when the daemon is to stop.
    pub async fn stopped(&self) {
        self.stop.cancelled().await;
    }

    /// Tells whether it is to stop.
    #[must_use]
    pub fn is_stopping(&self) -> bool {
        self.stop.is_cancelled()
    }

    /// Counts something that goes on; the daemon is busy until the guard is dropped.
    #[must_use]
    pub fn busy(self: &Arc<Self>) -> Busy {
        self.calls.fetch_add(1, Ordering::SeqCst);
        Busy(Arc::clone(self))
    }

    /// Returns how long nothing has gone on; `None` while something does.
    #[must_use]
    pub fn idle(&self) -> Option<Duration> {
        (self.calls.load(Ordering::SeqCst) == 0)
            .then(|| self.last.lock().unwrap_or_else(PoisonError::into_inner).elapsed())
    }

    /// Counts a build that ended.
    pub fn count_finished(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many builds ended.
    #[must_use]
    pub fn finished(&self) -> u64 {
        self.finished.load(Ordering::Relaxed)
    }
}

/// Something that goes on.
#[derive(Debug)]
pub struct Busy(Arc<Life>);

impl Drop for Busy {
    fn drop(&mut self) {
        *self.0.last.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        self.0.calls.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_begins_when_the_last_call_ends() {
        let life = Arc::new(Life::new(None));
        let (a, b) = (life.busy(), life.busy());
        drop(a);
        assert!(life.idle().is_none());
        drop(b);
        assert!(life.idle().unwrap() < Duration::from_secs(5));
    }
}
