//! What a build shows of itself: events of vertices, kept as one growing log that any number of readers follow.
//!
//! The log is the build record's own form: length-prefixed `StatusResponse` messages. A reader has an offset into it
//! and nothing else, so a slow one costs no memory and holds nobody up, and a late one sees everything.

pub mod clip;
mod log;
mod reporter;

pub use log::EventLog;
pub use reporter::{Fanout, Reporter, StatusHandle};

use bud_protocol::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use bud_protocol::pb;
use prost::Message as _;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::watch;

/// Converts a time for the wire.
#[must_use]
pub fn timestamp(time: SystemTime) -> prost_types::Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    prost_types::Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or(0),
    }
}

/// Returns now, for the wire.
#[must_use]
pub fn now() -> prost_types::Timestamp {
    timestamp(SystemTime::now())
}

/// Something that happened to a vertex; the vertex's digest is filled in for each build that shares it.
#[derive(Clone, Debug)]
pub enum Event {
    /// It has begun.
    Started(prost_types::Timestamp),
    /// It has ended, with an error text or without.
    Completed(prost_types::Timestamp, String),
    /// It was found in the cache.
    Cached(prost_types::Timestamp),
    /// It was found in the cache, after it was resolved as a step of its own.
    CachedAgain(prost_types::Timestamp),
    /// A part of it went on.
    Status(VertexStatus),
    /// It printed something.
    Log(VertexLog),
    /// Something is odd.
    Warning(VertexWarning),
}

/// Numbers of a build's record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Vertices announced.
    pub total: i32,
    /// Vertices that ended, cached ones too.
    pub completed: i32,
    /// Vertices found in the cache.
    pub cached: i32,
    /// Warnings.
    pub warnings: i32,
}

/// The events of one build.
#[derive(Debug)]
pub struct Progress {
    inner: Mutex<Inner>,
    length: watch::Sender<(u64, bool)>,
}

#[derive(Debug)]
struct Inner {
    log: EventLog,
    vertices: HashMap<String, Vertex>,
    order: Vec<String>,
    warnings: i32,
    closed: bool,
}

impl Progress {
    /// Makes an empty log that goes to a file when it becomes long.
    #[must_use]
    pub fn new(file: PathBuf) -> Arc<Self> {
        let inner =
            Inner { log: EventLog::new(file), vertices: HashMap::new(), order: Vec::new(), warnings: 0, closed: false };
        Arc::new(Self { inner: Mutex::new(inner), length: watch::channel((0, false)).0 })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, inner: &mut Inner, response: &StatusResponse) {
        if inner.closed {
            return;
        }
        let length = inner.log.append(&response.encode_to_vec());
        self.length.send_replace((length, false));
    }

    /// Announces vertices, without times. Those known already stay as they are.
    pub fn announce(&self, vertices: Vec<Vertex>) {
        let mut inner = self.lock();
        let mut response = StatusResponse::default();
        for vertex in vertices {
            if inner.vertices.contains_key(&vertex.digest) {
                continue;
            }
            inner.order.push(vertex.digest.clone());
            inner.vertices.insert(vertex.digest.clone(), vertex.clone());
            response.vertexes.push(vertex);
        }
        if !response.vertexes.is_empty() {
            self.append(&mut inner, &response);
        }
    }

    /// Announces a vertex that is no op (`exporting to image`); its digest is made of its name and an id.
    pub fn virtual_vertex(self: &Arc<Self>, id: &str, name: &str) -> Reporter {
        self.virtual_vertex_in(id, name, None)
    }

    /// Announces a vertex that is no op, as part of a group.
    pub fn virtual_vertex_in(self: &Arc<Self>, id: &str, name: &str, group: Option<pb::ProgressGroup>) -> Reporter {
        let digest = bud_image::Digest::of(id).to_string();
        self.announce(vec![Vertex {
            digest: digest.clone(),
            name: name.into(),
            progress_group: group,
            ..Vertex::default()
        }]);
        Reporter::single(self, digest)
    }

    /// Notes an event of a vertex.
    pub fn event(&self, digest: &str, event: Event) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        let mut response = StatusResponse::default();
        match event {
            Event::Status(status) => response.statuses.push(VertexStatus { vertex: digest.into(), ..status }),
            Event::Log(log) => response.logs.push(VertexLog { vertex: digest.into(), ..log }),
            Event::Warning(warning) => {
                inner.warnings = inner.warnings.saturating_add(1);
                response.warnings.push(VertexWarning { vertex: digest.into(), ..warning });
            }
            Event::Started(_) | Event::Completed(..) | Event::Cached(_) | Event::CachedAgain(_) => {
                let Some(vertex) = inner.vertices.get_mut(digest) else { return };
                match event {
                    Event::Started(at) => {
                        if vertex.started.is_some() && vertex.completed.is_none() {
                            return;
                        }
                        vertex.started = Some(at);
                        vertex.completed = None;
                        vertex.cached = false;
                    }
                    Event::Completed(at, error) => {
                        vertex.started.get_or_insert(at);
                        vertex.completed = Some(at);
                        vertex.error = error;
                    }
                    Event::Cached(at) => {
                        if vertex.completed.is_some() {
                            return;
                        }
                        vertex.started.get_or_insert(at);
                        vertex.completed = Some(at);
                        vertex.cached = true;
                    }
                    Event::CachedAgain(at) => {
                        vertex.started = Some(at);
                        vertex.completed = Some(at);
                        vertex.cached = true;
                    }
                    _ => {}
                }
                response.vertexes.push(vertex.clone());
            }
        }
        self.append(inner, &response);
    }

    /// Tells whether a vertex has an end.
    #[must_use]
    pub fn is_completed(&self, digest: &str) -> bool {
        self.lock().vertices.get(digest).is_some_and(|v| v.completed.is_some())
    }

    /// Ends the log: vertices that still run are reported as given up.
    pub fn close(&self) {
        let mut guard = self.lock();
        let inner = &mut *guard;
        if inner.closed {
            return;
        }
        let at = now();
        let mut response = StatusResponse::default();
        for vertex in inner.vertices.values_mut() {
            if vertex.started.is_some() && vertex.completed.is_none() {
                vertex.completed = Some(at);
                vertex.error = "context canceled".into();
                response.vertexes.push(vertex.clone());
            }
        }
        if !response.vertexes.is_empty() {
            self.append(inner, &response);
        }
        inner.closed = true;
        let length = inner.log.len();
        self.length.send_replace((length, true));
    }

    /// Returns the numbers of the record.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let inner = self.lock();
        let count = |f: &dyn Fn(&&Vertex) -> bool| {
            i32::try_from(inner.vertices.values().filter(|v| f(v)).count()).unwrap_or(i32::MAX)
        };
        Counts {
            total: count(&|_| true),
            completed: count(&|v| v.completed.is_some()),
            cached: count(&|v| v.cached),
            warnings: inner.warnings,
        }
    }

    /// Writes the log to its file, if it isn't there already, and returns its length in bytes.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self) -> std::io::Result<u64> {
        self.lock().log.save()
    }

    /// Removes the log's file.
    pub fn discard(&self) {
        self.lock().log.discard();
    }

    /// Follows the log from its beginning.
    #[must_use]
    pub fn follow(self: &Arc<Self>) -> Follower {
        Follower { progress: Arc::clone(self), length: self.length.subscribe(), offset: 0, last: None }
    }
}

/// Reads a build's log from the beginning to its end.
#[derive(Debug)]
pub struct Follower {
    progress: Arc<Progress>,
    length: watch::Receiver<(u64, bool)>,
    offset: u64,
    last: Option<tokio::time::Instant>,
}

/// At most so many bytes of events go into one message.
const MESSAGE: usize = 256 << 10;
/// Events that come faster than this are put together.
const PACE: std::time::Duration = std::time::Duration::from_millis(40);

impl Follower {
    /// Waits for events and returns them, several messages in one; `None` at the end.
    pub async fn next(&mut self) -> Option<Result<StatusResponse, std::io::Error>> {
        loop {
            let (length, closed) = *self.length.borrow_and_update();
            if self.offset < length {
                if let Some(last) = self.last
                    && !closed
                    && last.elapsed() < PACE
                {
                    // More may come in a moment; the end is not made to wait.
                    let until = last + PACE;
                    let mut end = self.length.clone();
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        _ = end.wait_for(|(_, closed)| *closed) => {}
                    }
                }
                self.last = Some(tokio::time::Instant::now());
                return Some(self.read());
            }
            if closed {
                return None;
            }
            if self.length.changed().await.is_err() {
                return None;
            }
        }
    }

    fn read(&mut self) -> Result<StatusResponse, std::io::Error> {
        let (bytes, next) = self.progress.lock().log.read(self.offset, MESSAGE)?;
        self.offset = next;
        // Messages put one after the other are one message with all their repeated fields.
        StatusResponse::decode(bytes.as_slice()).map_err(std::io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vertex(name: &str) -> Vertex {
        Vertex { digest: name.into(), name: name.into(), ..Vertex::default() }
    }

    #[tokio::test]
    async fn a_late_reader_sees_everything_and_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let progress = Progress::new(dir.path().join("log"));
        progress.announce(vec![vertex("a"), vertex("b")]);
        progress.event("a", Event::Started(now()));
        let big = vec![b'x'; 300 << 10];
        for _ in 0..8 {
            let log = VertexLog { msg: big.clone().into(), stream: 1, ..VertexLog::default() };
            progress.event("a", Event::Log(log));
        }
        progress.close();
        let mut reader = progress.follow();
        let (mut vertices, mut bytes) = (Vec::new(), 0);
        while let Some(response) = reader.next().await {
            let response = response.unwrap();
            assert!(response.encoded_len() < 1 << 20);
            bytes += response.logs.iter().map(|l| l.msg.len()).sum::<usize>();
            vertices.extend(response.vertexes);
        }
        assert_eq!(bytes, 8 * big.len());
        let last = vertices.iter().rfind(|v| v.digest == "a").unwrap();
        assert_eq!(last.error, "context canceled");
        assert!(last.completed.is_some());
    }

    #[tokio::test]
    async fn an_empty_log_ends_without_a_message() {
        let dir = tempfile::tempdir().unwrap();
        let progress = Progress::new(dir.path().join("log"));
        progress.close();
        assert!(progress.follow().next().await.is_none());
        assert!(!dir.path().join("log").exists());
    }

    #[test]
    fn a_cached_vertex_has_both_times_and_is_counted() {
        let progress = Progress::new("/nonexistent/log".into());
        progress.announce(vec![vertex("a"), vertex("b")]);
        progress.event("a", Event::Cached(now()));
        progress.event("a", Event::Cached(now()));
        let counts = progress.counts();
        assert_eq!((counts.total, counts.completed, counts.cached), (2, 1, 1));
    }
}
