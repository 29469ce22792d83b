//! What is known of a running build, put together from the daemon's status events.

use super::filter::{self, Lines};
use bud_protocol::control::{StatusResponse, Vertex as VertexEvent, VertexStatus, VertexWarning};
use std::collections::{HashMap, VecDeque};

/// Nanoseconds since 1970. Saturates: times come from outside.
pub type Time = i64;

/// So many last lines of a step are kept for its error.
pub const LOG_TAIL: usize = 40;
/// A build with more steps, a step with more counters than this shows the first ones.
const LIMIT: usize = 20_000;

/// A build as it is shown.
#[derive(Debug, Default)]
pub struct Model {
    /// The steps, in order of appearance.
    pub vertices: Vec<Vertex>,
    /// Warnings, in order of appearance.
    pub warnings: Vec<VertexWarning>,
    by_digest: HashMap<String, usize>,
}

/// A step.
#[derive(Debug, Default)]
pub struct Vertex {
    /// Its digest.
    pub digest: String,
    /// Its name, fit for a terminal.
    pub name: String,
    /// When it was started last.
    pub started: Option<Time>,
    /// When it ended, if it did.
    pub completed: Option<Time>,
    /// It came from the cache.
    pub cached: bool,
    /// Why it failed.
    pub error: String,
    /// The times it ran before the last start.
    pub spent: Time,
    /// Its counters.
    pub counters: Vec<Counter>,
    /// The last lines of its log, raw, and when they came, in nanoseconds since its first start.
    pub log: VecDeque<(Time, Vec<u8>)>,
    /// The line without an end of each stream.
    pub open: [Lines; 2],
    /// How many lines its log had.
    pub lines: usize,
    first_started: Option<Time>,
}

/// A counter of a step: bytes of a layer, or something done.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Counter {
    /// Its id within the step.
    pub id: String,
    /// Where it is.
    pub current: i64,
    /// Where it ends; 0 if unknown.
    pub total: i64,
    /// When it was started.
    pub started: Option<Time>,
    /// When it ended, if it did.
    pub completed: Option<Time>,
    /// When this was so.
    pub timestamp: Time,
}

/// What a status event changed.
#[derive(Debug, Default)]
pub struct Changes {
    /// Steps that something happened to, by index, in order.
    pub vertices: Vec<usize>,
    /// Counters that moved: step and counter.
    pub counters: Vec<(usize, usize)>,
    /// Lines that a log got: step, nanoseconds since its first start, the line.
    pub lines: Vec<(usize, Time, Vec<u8>)>,
}

impl Model {
    /// Takes an event in.
    pub fn apply(&mut self, event: &StatusResponse) -> Changes {
        let mut changes = Changes::default();
        let touch = |list: &mut Vec<usize>, index: usize| {
            if list.last() != Some(&index) && !list.contains(&index) {
                list.push(index);
            }
        };
        for vertex in &event.vertexes {
            if let Some(index) = self.index(&vertex.digest) {
                self.vertices[index].apply(vertex);
                touch(&mut changes.vertices, index);
            }
        }
        for status in &event.statuses {
            if let Some(index) = self.index(&status.vertex)
                && let Some(counter) = self.vertices[index].count(status)
            {
                changes.counters.push((index, counter));
            }
        }
        for log in &event.logs {
            if let Some(index) = self.index(&log.vertex) {
                let vertex = &mut self.vertices[index];
                let at = time(log.timestamp.as_ref())
                    .zip(vertex.first_started)
                    .map_or(0, |(at, start)| at.saturating_sub(start).max(0));
                let stream = usize::from(log.stream == 2);
                let mut lines = std::mem::take(&mut vertex.open[stream]);
                lines.push(&log.msg, |line| {
                    vertex.keep_line(at, line);
                    changes.lines.push((index, at, line.to_vec()));
                });
                vertex.open[stream] = lines;
            }
        }
        if self.warnings.len() < LIMIT {
            self.warnings.extend(event.warnings.iter().cloned());
        }
        // A line without an end ends with its step.
        for &index in &changes.vertices {
            let vertex = &mut self.vertices[index];
            if vertex.completed.is_some() {
                for stream in 0..vertex.open.len() {
                    if let Some(line) = vertex.open[stream].take_partial() {
                        let at = vertex.elapsed(0);
                        vertex.keep_line(at, &line);
                        changes.lines.push((index, at, line));
                    }
                }
            }
        }
        changes
    }

    fn index(&mut self, digest: &str) -> Option<usize> {
        if let Some(&index) = self.by_digest.get(digest) {
            return Some(index);
        }
        if self.vertices.len() >= LIMIT {
            return None;
        }
        let index = self.vertices.len();
        self.vertices.push(Vertex { digest: digest.to_owned(), ..Default::default() });
        self.by_digest.insert(digest.to_owned(), index);
        Some(index)
    }

    /// Finds a step.
    #[must_use]
    pub fn vertex(&self, digest: &str) -> Option<&Vertex> {
        self.by_digest.get(digest).map(|&index| &self.vertices[index])
    }

    /// Returns the step that failed by itself, not because others did.
    #[must_use]
    pub fn failed(&self) -> Option<&Vertex> {
        let failed = || self.vertices.iter().filter(|v| !v.error.is_empty());
        failed().find(|v| !v.is_canceled()).or_else(|| failed().next())
    }

    /// Counts the steps of the Dockerfile: all, ended, from the cache.
    #[must_use]
    pub fn counts(&self) -> (usize, usize, usize) {
        let steps = self.vertices.iter().filter(|v| v.is_step());
        steps.fold((0, 0, 0), |(all, ended, cached), v| {
            (all + 1, ended + usize::from(v.completed.is_some()), cached + usize::from(v.cached))
        })
    }
}

impl Vertex {
    fn apply(&mut self, event: &VertexEvent) {
        if !event.name.is_empty() {
            self.name = filter::name(&event.name);
        }
        let started = time(event.started.as_ref());
        if let Some(started) = started {
            if let (Some(before), Some(completed)) = (self.started, self.completed)
                && started > before
            {
                self.spent = self.spent.saturating_add(completed.saturating_sub(before).max(0));
            }
            self.first_started.get_or_insert(started);
            self.started = Some(started);
            self.completed = None;
        }
        if let Some(completed) = time(event.completed.as_ref()) {
            self.completed = Some(completed);
        }
        self.cached |= event.cached;
        if !event.error.is_empty() {
            self.error = filter::plain_text(&event.error);
        }
    }

    fn count(&mut self, status: &VertexStatus) -> Option<usize> {
        let id = filter::name(if status.id.is_empty() { &status.name } else { &status.id });
        let index = match self.counters.iter().position(|counter| counter.id == id) {
            Some(index) => index,
            None if self.counters.len() >= LIMIT => return None,
            None => {
                self.counters.push(Counter { id, ..Default::default() });
                self.counters.len() - 1
            }
        };
        let counter = &mut self.counters[index];
        counter.current = status.current.max(0);
        counter.total = status.total.max(0);
        counter.started = time(status.started.as_ref()).or(counter.started);
        counter.completed = time(status.completed.as_ref());
        counter.timestamp = time(status.timestamp.as_ref()).unwrap_or(counter.timestamp);
        Some(index)
    }

    fn keep_line(&mut self, at: Time, line: &[u8]) {
        if self.log.len() == LOG_TAIL {
            self.log.pop_front();
        }
        self.log.push_back((at, line.to_vec()));
        self.lines += 1;
    }

    /// Tells whether it is running.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.started.is_some() && self.completed.is_none()
    }

    /// Tells whether it is a step of the Dockerfile, not something around it.
    #[must_use]
    pub fn is_step(&self) -> bool {
        self.name.starts_with('[')
            && !["[internal]", "[auth]", "[context "].iter().any(|prefix| self.name.starts_with(prefix))
    }

    /// Tells whether it ended because something else did.
    #[must_use]
    pub fn is_canceled(&self) -> bool {
        self.error.contains("context canceled")
    }

    /// Returns how long it ran, in nanoseconds, if it is `now`.
    #[must_use]
    pub fn elapsed(&self, now: Time) -> Time {
        let Some(started) = self.started else { return self.spent };
        let end = self.completed.unwrap_or(now);
        self.spent.saturating_add(end.saturating_sub(started).max(0))
    }
}

/// Converts a time of the wire.
#[must_use]
pub fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<Time> {
    let timestamp = timestamp?;
    Some(timestamp.seconds.saturating_mul(1_000_000_000).saturating_add(timestamp.nanos.into()))
}

/// Returns the time of this machine.
#[must_use]
pub fn now() -> Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    #[test]
    fn a_restarted_step_adds_up_its_times() {
        let mut model = Model::default();
        model.apply(&vertex("a", "[1/1] RUN x", Some(1.0), Some(2.0)));
        model.apply(&vertex("a", "[1/1] RUN x", Some(5.0), None));
        assert!(model.vertices[0].is_running());
        assert_eq!(model.vertices[0].elapsed(seconds(7.0)), seconds(3.0));
        model.apply(&vertex("a", "[1/1] RUN x", Some(5.0), Some(8.0)));
        assert_eq!(model.vertices[0].elapsed(seconds(100.0)), seconds(4.0));
    }

    #[test]
    fn odd_times_are_no_panic() {
        let mut model = Model::default();
        let odd = prost_types::Timestamp { seconds: i64::MIN, nanos: i32::MIN };
        let late = prost_types::Timestamp { seconds: i64::MAX, nanos: i32::MAX };
        let event = |started, completed| StatusResponse {
            vertexes: vec![VertexEvent { digest: "a".into(), started, completed, ..Default::default() }],
            ..Default::default()
        };
        model.apply(&event(Some(odd), Some(late)));
        model.apply(&event(Some(late), Some(odd)));
        assert!(model.vertices[0].elapsed(now()) >= 0);
        let mut log = log("a", 1.0, "x\n");
        log.logs[0].timestamp = Some(odd);
        model.apply(&log);
    }

    #[test]
    fn logs_become_lines_and_an_open_line_ends_with_its_step() {
        let mut model = Model::default();
        model.apply(&vertex("a", "[1/1] RUN x", Some(1.0), None));
        let changes = model.apply(&log("a", 1.5, "one\ntw"));
        assert_eq!(changes.lines, [(0, seconds(0.5), b"one".to_vec())]);
        let changes = model.apply(&vertex("a", "[1/1] RUN x", Some(1.0), Some(2.0)));
        assert_eq!(changes.lines, [(0, seconds(1.0), b"tw".to_vec())]);
        assert_eq!(model.vertices[0].lines, 2);
    }

    #[test]
    fn the_step_that_failed_is_not_one_that_was_cancelled() {
        let mut model = Model::default();
        for (digest, error) in [("a", "context canceled: context canceled"), ("b", "exit code: 3")] {
            let mut event = vertex(digest, "[1/2] RUN x", Some(1.0), Some(2.0));
            event.vertexes[0].error = error.into();
            model.apply(&event);
        }
        assert_eq!(model.failed().unwrap().digest, "b");
    }
}
