//! Status events for tests.

use super::model::Time;
use bud_protocol::control::{StatusResponse, Vertex, VertexLog, VertexStatus};
use prost_types::Timestamp;

/// Converts seconds.
pub fn seconds(s: f64) -> Time {
    (s * 1e9) as Time
}

fn stamp(s: f64) -> Timestamp {
    Timestamp { seconds: s as i64, nanos: ((s.fract()) * 1e9).round() as i32 }
}

/// A step's event.
pub fn vertex(digest: &str, name: &str, started: Option<f64>, completed: Option<f64>) -> StatusResponse {
    StatusResponse {
        vertexes: vec![Vertex {
            digest: digest.into(),
            name: name.into(),
            started: started.map(stamp),
            completed: completed.map(stamp),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A step from the cache.
pub fn cached(digest: &str, name: &str, at: f64) -> StatusResponse {
    let mut event = vertex(digest, name, Some(at), Some(at));
    event.vertexes[0].cached = true;
    event
}

/// A step that failed.
pub fn failed(digest: &str, name: &str, started: f64, completed: f64, error: &str) -> StatusResponse {
    let mut event = vertex(digest, name, Some(started), Some(completed));
    event.vertexes[0].error = error.into();
    event
}

/// A piece of a log.
pub fn log(digest: &str, at: f64, text: &str) -> StatusResponse {
    StatusResponse {
        logs: vec![VertexLog {
            vertex: digest.into(),
            timestamp: Some(stamp(at)),
            stream: 1,
            msg: text.as_bytes().to_vec().into(),
        }],
        ..Default::default()
    }
}

/// A counter.
pub fn counter(
    digest: &str,
    id: &str,
    current: i64,
    total: i64,
    started: f64,
    completed: Option<f64>,
) -> StatusResponse {
    StatusResponse {
        statuses: vec![VertexStatus {
            vertex: digest.into(),
            id: id.into(),
            current,
            total,
            timestamp: Some(stamp(completed.unwrap_or(started))),
            started: Some(stamp(started)),
            completed: completed.map(stamp),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// A build with parallel stages, a pull, cached steps, logs: each event with its time.
pub fn recorded() -> Vec<(f64, StatusResponse)> {
    let from = "[build 1/3] FROM docker.io/library/debian:12";
    let run = "[build 2/3] RUN apt-get update";
    let copy = "[stage-1 2/2] COPY --from=build /app /app";
    vec![
        (0.00, vertex("d", "[internal] load build definition from Dockerfile", Some(0.0), None)),
        (0.01, counter("d", "transferring dockerfile:", 120, 0, 0.0, Some(0.01))),
        (0.02, vertex("d", "[internal] load build definition from Dockerfile", Some(0.0), Some(0.02))),
        (0.10, vertex("m", "[internal] load metadata for docker.io/library/debian:12", Some(0.02), None)),
        (1.40, vertex("m", "[internal] load metadata for docker.io/library/debian:12", Some(0.02), Some(1.4))),
        (1.41, vertex("f", from, None, None)),
        (1.41, vertex("r", run, None, None)),
        (1.41, vertex("w", "[stage-1 1/2] WORKDIR /srv", None, None)),
        (1.41, vertex("c", copy, None, None)),
        (1.50, cached("w", "[stage-1 1/2] WORKDIR /srv", 1.5)),
        (1.50, vertex("f", from, Some(1.5), None)),
        (1.60, counter("f", "sha256:0123456789abcdef0123", 12_345_678, 29_000_000, 1.5, None)),
        (1.60, counter("f", "sha256:aaaaaaaaaaaaaaaaaaaa", 4_000, 4_000, 1.5, Some(1.6))),
        (2.50, counter("f", "sha256:0123456789abcdef0123", 29_000_000, 29_000_000, 1.5, Some(2.5))),
        (2.60, counter("f", "extracting sha256:0123456789abcdef0123", 0, 0, 2.5, Some(2.6))),
        (2.60, vertex("f", from, Some(1.5), Some(2.6))),
        (2.70, vertex("r", run, Some(2.6), None)),
        (2.80, log("r", 2.8, "Get:1 http://deb.debian.org/debian bookworm InRelease [151 kB]\n")),
        (2.90, log("r", 2.9, "\x1b[32mGet:2\x1b[0m http://deb.debian.org\x1b[2J/debian\n50%\r60%")),
        (4.00, log("r", 4.0, "\rdone\n")),
        (4.10, vertex("r", run, Some(2.6), Some(4.1))),
        (4.20, vertex("c", copy, Some(4.1), None)),
        (4.30, vertex("c", copy, Some(4.1), Some(4.3))),
        (4.40, vertex("e", "exporting to image", Some(4.3), None)),
        (4.50, counter("e", "exporting layers", 0, 0, 4.3, Some(4.5))),
        (4.60, counter("e", "naming to docker.io/library/foo:latest", 0, 0, 4.5, Some(4.6))),
        (4.60, vertex("e", "exporting to image", Some(4.3), Some(4.6))),
    ]
}
