//! A value that is computed once, by a task of its own, and that anybody may wait for.

use bud_protocol::errors::BuildError;
use std::future::Future;
use std::sync::{Mutex, PoisonError};
use tokio::sync::watch;

type State<T> = Option<Result<T, BuildError>>;

/// A value to be computed.
#[derive(Debug)]
pub struct Slot<T>(Mutex<Option<watch::Receiver<State<T>>>>);

impl<T> Default for Slot<T> {
    fn default() -> Self {
        Self(Mutex::new(None))
    }
}

impl<T: Clone + Send + Sync + 'static> Slot<T> {
    /// Starts the work if nobody did, and returns what waits for its result.
    pub fn get<F>(&self, work: impl FnOnce() -> F) -> Waiting<T>
    where
        F: Future<Output = Result<T, BuildError>> + Send + 'static,
    {
        let mut slot = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(receiver) = &*slot {
            return Waiting(receiver.clone());
        }
        let (sender, receiver) = watch::channel(None);
        *slot = Some(receiver.clone());
        drop(slot);
        let work = work();
        tokio::spawn(async move {
            let result = work.await;
            sender.send_replace(Some(result));
        });
        Waiting(receiver)
    }

    /// Returns the value if it is there.
    #[must_use]
    pub fn peek(&self) -> Option<Result<T, BuildError>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|r| r.borrow().clone())
    }
}

/// Waits for a value.
#[derive(Debug)]
pub struct Waiting<T>(watch::Receiver<State<T>>);

impl<T: Clone> Waiting<T> {
    /// Waits.
    ///
    /// # Errors
    /// That of the work; if its task died, an internal one: nobody waits for ever.
    pub async fn wait(mut self) -> Result<T, BuildError> {
        match self.0.wait_for(Option::is_some).await {
            Ok(state) => state.clone().unwrap_or_else(|| Err(lost())),
            Err(_) => Err(lost()),
        }
    }
}

fn lost() -> BuildError {
    BuildError::new(tonic::Code::Internal, "a task of the build died; the daemon's log says why")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[tokio::test]
    async fn work_is_done_once() {
        let (slot, count) = (Slot::default(), Arc::new(AtomicU32::new(0)));
        let work = || {
            let count = count.clone();
            async move { Ok(count.fetch_add(1, Ordering::SeqCst)) }
        };
        let (a, b) = (slot.get(work), slot.get(work));
        assert_eq!((a.wait().await.unwrap(), b.wait().await.unwrap()), (0, 0));
    }

    #[tokio::test]
    async fn a_task_that_dies_is_an_error_and_no_wait_for_ever() {
        let slot: Slot<u32> = Slot::default();
        let waiting = slot.get(|| async { panic!("on purpose") });
        assert_eq!(waiting.wait().await.unwrap_err().code, tonic::Code::Internal);
    }
}
