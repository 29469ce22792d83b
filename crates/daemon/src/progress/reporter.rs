//! How a step tells of itself, without knowing which builds listen.

use super::{Event, Progress, now};
use bud_protocol::control::{VertexLog, VertexStatus, VertexWarning};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Byte counters are not told more often than this, but for their end.
const COUNTER: Duration = Duration::from_millis(100);
/// So many bytes of events are kept for builds that join later.
const KEPT: usize = 4 << 20;

/// Hands events of one step to every build that shares it; who joins later gets what was told before.
#[derive(Debug, Default)]
pub struct Fanout {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    targets: Vec<(u64, Arc<Progress>, String)>,
    told: Vec<Event>,
    kept: usize,
    shared: bool,
}

impl Fanout {
    /// Makes one that keeps its events for builds that join later.
    #[must_use]
    pub fn shared() -> Arc<Self> {
        Arc::new(Self { inner: Mutex::new(Inner { shared: true, ..Inner::default() }) })
    }

    /// Adds a build, under the digest that the vertex has in it.
    pub fn join(&self, member: u64, progress: &Arc<Progress>, digest: &str) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for event in &inner.told {
            progress.event(digest, event.clone());
        }
        inner.targets.push((member, Arc::clone(progress), digest.to_owned()));
    }

    /// Removes a build.
    pub fn leave(&self, member: u64) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.targets.retain(|(id, ..)| *id != member);
    }

    /// Tells all builds.
    pub fn tell(&self, event: Event) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, progress, digest) in &inner.targets {
            progress.event(digest, event.clone());
        }
        if inner.shared {
            let size = if let Event::Log(log) = &event { log.msg.len() } else { 128 };
            if inner.kept + size <= KEPT {
                inner.kept += size;
                inner.told.push(event);
            }
        }
    }
}

/// Tells of one vertex. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Reporter {
    fanout: Arc<Fanout>,
}

impl Reporter {
    /// Tells one build.
    #[must_use]
    pub fn single(progress: &Arc<Progress>, digest: impl Into<String>) -> Self {
        let inner = Inner { targets: vec![(0, Arc::clone(progress), digest.into())], ..Inner::default() };
        Self { fanout: Arc::new(Fanout { inner: Mutex::new(inner) }) }
    }

    /// Tells all builds of a fan-out.
    #[must_use]
    pub fn to(fanout: &Arc<Fanout>) -> Self {
        Self { fanout: Arc::clone(fanout) }
    }

    /// Tells nobody.
    #[must_use]
    pub fn silent() -> Self {
        Self { fanout: Arc::default() }
    }

    /// The vertex begins.
    pub fn started(&self) {
        self.fanout.tell(Event::Started(now()));
    }

    /// The vertex ends well.
    pub fn completed(&self) {
        self.fanout.tell(Event::Completed(now(), String::new()));
    }

    /// The vertex ends with an error; the short text goes to the vertex.
    pub fn failed(&self, error: &str) {
        self.fanout.tell(Event::Completed(now(), error.to_owned()));
    }

    /// The vertex ends, as the result says.
    pub fn ended<T, E: std::fmt::Display>(&self, result: &Result<T, E>) {
        match result {
            Ok(_) => self.completed(),
            Err(error) => self.failed(&error.to_string()),
        }
    }

    /// Was found in the cache.
    pub fn cached(&self) {
        self.fanout.tell(Event::Cached(now()));
    }

    /// Was found in the cache, after a start and an end of its own for finding out where it is.
    pub fn cached_again(&self) {
        self.fanout.tell(Event::CachedAgain(now()));
    }

    /// Passes on what a process printed; stream 1 or 2.
    pub fn log(&self, stream: i64, message: Vec<u8>) {
        let log = VertexLog { vertex: String::new(), timestamp: Some(now()), stream, msg: message.into() };
        self.fanout.tell(Event::Log(log));
    }

    /// Tells a line as the daemon's own remark.
    pub fn note(&self, line: &str) {
        self.log(2, format!("{line}\n").into_bytes());
    }

    /// Tells a warning.
    pub fn warning(&self, warning: VertexWarning) {
        self.fanout.tell(Event::Warning(warning));
    }

    /// Begins a part with an ID (`exporting layers`, a layer's digest); dropping the handle ends it.
    #[must_use]
    pub fn status(&self, id: impl Into<String>) -> StatusHandle {
        self.status_of(id, "", 0)
    }

    /// Begins a part that counts (`downloading`), with a total if that is known, else 0.
    #[must_use]
    pub fn status_of(&self, id: impl Into<String>, name: impl Into<String>, total: u64) -> StatusHandle {
        let started = now();
        let status = VertexStatus {
            id: id.into(),
            name: name.into(),
            total: i64::try_from(total).unwrap_or(i64::MAX),
            timestamp: Some(started),
            started: Some(started),
            ..VertexStatus::default()
        };
        self.fanout.tell(Event::Status(status.clone()));
        StatusHandle { reporter: self.clone(), state: Mutex::new((status, Instant::now())) }
    }
}

/// A part of a vertex that goes on; ends when dropped.
#[derive(Debug)]
pub struct StatusHandle {
    reporter: Reporter,
    state: Mutex<(VertexStatus, Instant)>,
}

impl StatusHandle {
    fn change(&self, change: impl FnOnce(&mut VertexStatus)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        change(&mut state.0);
        if state.1.elapsed() >= COUNTER {
            state.1 = Instant::now();
            state.0.timestamp = Some(now());
            self.reporter.fanout.tell(Event::Status(state.0.clone()));
        }
    }

    /// So many bytes are done; told at a bounded rate.
    pub fn set(&self, current: u64) {
        self.change(|status| status.current = i64::try_from(current).unwrap_or(i64::MAX));
    }

    /// So many bytes more are done; told at a bounded rate.
    pub fn add(&self, bytes: u64) {
        self.change(|status| status.current = status.current.saturating_add(i64::try_from(bytes).unwrap_or(i64::MAX)));
    }

    /// The total became known.
    pub fn total(&self, total: u64) {
        self.change(|status| status.total = i64::try_from(total).unwrap_or(i64::MAX));
    }

    /// Ends the part. The same as dropping it.
    pub fn done(self) {}
}

impl Drop for StatusHandle {
    fn drop(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let at = now();
        state.0.timestamp = Some(at);
        state.0.completed = Some(at);
        self.reporter.fanout.tell(Event::Status(state.0.clone()));
    }
}
