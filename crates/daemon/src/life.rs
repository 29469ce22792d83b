//! How long the daemon lives: until it is told to stop, or has had nothing to do for a time.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// What keeps the daemon alive and what ends it.
#[derive(Debug)]
pub struct Life {
    stop: CancellationToken,
    calls: AtomicUsize,
    finished: AtomicU64,
    last: Mutex<Instant>,
    hand_over: mpsc::Sender<HandOver>,
    hand_overs: Mutex<Option<mpsc::Receiver<HandOver>>>,
    /// Leaves after so long with nothing to do.
    pub idle_timeout: Option<Duration>,
}

impl Life {
    /// Starts the clock.
    #[must_use]
    pub fn new(idle_timeout: Option<Duration>) -> Self {
        let (hand_over, hand_overs) = mpsc::channel(1);
        Self {
            hand_over,
            hand_overs: Mutex::new(Some(hand_overs)),
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

    /// Returns how many connections, sessions and builds there are.
    #[must_use]
    pub fn count(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    /// Asks the daemon to make way for a newer one, and tells whether it does: only if nobody but the asker is connected.
    pub async fn hand_over(&self) -> bool {
        let (answer, answered) = oneshot::channel();
        self.hand_over.send(answer).await.is_ok() && answered.await.unwrap_or(false)
    }

    /// Returns what asks for a hand-over, to be answered with whether it is granted; once.
    #[must_use]
    pub fn hand_overs(&self) -> Option<mpsc::Receiver<HandOver>> {
        self.hand_overs.lock().unwrap_or_else(PoisonError::into_inner).take()
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

/// A wish for a hand-over, and where the answer goes.
pub type HandOver = oneshot::Sender<bool>;

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
