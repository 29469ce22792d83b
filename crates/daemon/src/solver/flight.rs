//! Steps that run, by key: builds that want the same step share one execution.

use crate::ops::Outputs;
use crate::progress::{Fanout, Progress, Reporter};
use crate::sessions::SessionGroup;
use bud_image::Digest;
use bud_protocol::errors::BuildError;
use bud_session::SessionRegistry;
use std::collections::HashMap;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a step came to.
pub type FlightResult = Result<Arc<Outputs>, BuildError>;

/// The steps that run.
#[derive(Debug, Default)]
pub struct Flights {
    running: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
}

#[derive(Debug)]
struct Flight {
    fanout: Arc<Fanout>,
    sessions: SessionGroup,
    cancel: CancellationToken,
    members: Mutex<usize>,
    result: watch::Receiver<Option<FlightResult>>,
}

/// A build that wants a step.
#[derive(Clone, Debug)]
pub struct Member {
    /// The build's number.
    pub id: u64,
    /// What it shows.
    pub progress: Arc<Progress>,
    /// The vertex's digest in it.
    pub vertex: String,
    /// Its session.
    pub session: String,
}

/// What a running step works with.
#[derive(Clone, Debug)]
pub struct FlightCx {
    /// Tells all builds that share it.
    pub progress: Reporter,
    /// Their sessions.
    pub sessions: SessionGroup,
    /// Cancelled when the last of them left.
    pub cancel: CancellationToken,
}

impl Flights {
    fn lock(running: &Mutex<HashMap<Digest, Arc<Flight>>>) -> std::sync::MutexGuard<'_, HashMap<Digest, Arc<Flight>>> {
        running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns how many steps run.
    #[must_use]
    pub fn count(&self) -> usize {
        Self::lock(&self.running).len()
    }

    /// Runs a step, or joins it if it runs. Dropping the future leaves it; the last to leave cancels it.
    ///
    /// # Errors
    /// Those of the step.
    pub async fn run<F>(
        &self,
        registry: &Arc<SessionRegistry>,
        key: Digest,
        member: Member,
        work: impl FnOnce(FlightCx) -> F,
    ) -> FlightResult
    where
        F: Future<Output = FlightResult> + Send + 'static,
    {
        let membership = self.join(registry, key, member, work);
        let mut result = membership.flight.result.clone();
        let outcome = match result.wait_for(Option::is_some).await {
            Ok(outcome) => outcome.clone(),
            Err(_) => None,
        };
        outcome.unwrap_or_else(|| {
            Err(BuildError::new(tonic::Code::Internal, "a step's task died; the daemon's log says why"))
        })
    }

    fn join<F>(
        &self,
        registry: &Arc<SessionRegistry>,
        key: Digest,
        member: Member,
        work: impl FnOnce(FlightCx) -> F,
    ) -> Membership
    where
        F: Future<Output = FlightResult> + Send + 'static,
    {
        let mut running = Self::lock(&self.running);
        if let Some(flight) = running.get(&key).cloned() {
            *flight.members.lock().unwrap_or_else(PoisonError::into_inner) += 1;
            drop(running);
            flight.sessions.join(member.id, &member.session);
            flight.fanout.join(member.id, &member.progress, &member.vertex);
            return Membership { running: Arc::clone(&self.running), key, flight, id: member.id };
        }
        let (sender, result) = watch::channel(None);
        let flight = Arc::new(Flight {
            fanout: Fanout::shared(),
            sessions: SessionGroup::new(registry),
            cancel: CancellationToken::new(),
            members: Mutex::new(1),
            result,
        });
        flight.sessions.join(member.id, &member.session);
        flight.fanout.join(member.id, &member.progress, &member.vertex);
        running.insert(key, Arc::clone(&flight));
        drop(running);
        let cx = FlightCx {
            progress: Reporter::to(&flight.fanout),
            sessions: flight.sessions.clone(),
            cancel: flight.cancel.clone(),
        };
        let work = work(cx);
        let (map, this) = (Arc::clone(&self.running), Arc::clone(&flight));
        tokio::spawn(async move {
            // Removed however the work ends, a panic included, before anybody is told: who comes after finds the record.
            let removed = Removal { map, key, flight: this };
            let outcome = work.await;
            drop(removed);
            sender.send_replace(Some(outcome));
        });
        Membership { running: Arc::clone(&self.running), key, flight, id: member.id }
    }
}

struct Removal {
    map: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    key: Digest,
    flight: Arc<Flight>,
}

impl Drop for Removal {
    fn drop(&mut self) {
        let mut running = Flights::lock(&self.map);
        if running.get(&self.key).is_some_and(|f| Arc::ptr_eq(f, &self.flight)) {
            running.remove(&self.key);
        }
    }
}

struct Membership {
    running: Arc<Mutex<HashMap<Digest, Arc<Flight>>>>,
    key: Digest,
    flight: Arc<Flight>,
    id: u64,
}

impl Drop for Membership {
    fn drop(&mut self) {
        self.flight.fanout.leave(self.id);
        self.flight.sessions.leave(self.id);
        let mut running = Flights::lock(&self.running);
        let mut members = self.flight.members.lock().unwrap_or_else(PoisonError::into_inner);
        *members -= 1;
        if *members > 0 {
            return;
        }
        // Nobody may join what is being cancelled.
        if running.get(&self.key).is_some_and(|f| Arc::ptr_eq(f, &self.flight)) {
            running.remove(&self.key);
        }
        self.flight.cancel.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    fn member(id: u64) -> Member {
        Member { id, progress: Progress::new("/nonexistent".into()), vertex: "v".into(), session: String::new() }
    }

    #[tokio::test]
    async fn two_builds_share_one_execution() {
        let (flights, registry) = (Flights::default(), Arc::new(SessionRegistry::new()));
        let count = Arc::new(AtomicU32::new(0));
        let work = |_: FlightCx| {
            let count = count.clone();
            async move {
                count.fetch_add(1, Ordering::SeqCst);
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok(Arc::new(Vec::new()))
            }
        };
        let key = Digest::of("k");
        let (a, b) =
            tokio::join!(flights.run(&registry, key, member(1), work), flights.run(&registry, key, member(2), work));
        assert!(a.is_ok() && b.is_ok());
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(flights.count(), 0);
    }

    #[tokio::test]
    async fn the_last_to_leave_cancels() {
        let (flights, registry) = (Arc::new(Flights::default()), Arc::new(SessionRegistry::new()));
        let (sender, mut cancelled) = watch::channel(false);
        let work = move |cx: FlightCx| async move {
            cx.cancel.cancelled().await;
            sender.send_replace(true);
            Err(BuildError::canceled())
        };
        let key = Digest::of("k");
        let first = {
            let (flights, registry) = (flights.clone(), registry.clone());
            tokio::spawn(async move { flights.run(&registry, key, member(1), work).await })
        };
        tokio::task::yield_now().await;
        let second = {
            let (flights, registry) = (flights.clone(), registry.clone());
            tokio::spawn(
                async move { flights.run(&registry, key, member(2), |_| async { Ok(Arc::new(Vec::new())) }).await },
            )
        };
        tokio::task::yield_now().await;
        first.abort();
        assert!(tokio::time::timeout(Duration::from_millis(50), cancelled.changed()).await.is_err());
        second.abort();
        tokio::time::timeout(Duration::from_secs(5), cancelled.changed()).await.unwrap().unwrap();
        assert_eq!(flights.count(), 0);
    }

    #[tokio::test]
    async fn a_step_that_dies_is_an_error() {
        let (flights, registry) = (Flights::default(), Arc::new(SessionRegistry::new()));
        let result = flights.run(&registry, Digest::of("k"), member(1), |_| async { panic!("on purpose") }).await;
        assert_eq!(result.unwrap_err().code, tonic::Code::Internal);
        assert_eq!(flights.count(), 0);
    }
}
