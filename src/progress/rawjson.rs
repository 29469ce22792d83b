//! Progress as JSON, one event a line, with the fields that BuildKit's clients write.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bud_protocol::control::{StatusResponse, Vertex, VertexLog, VertexStatus, VertexWarning};
use bud_protocol::pb;
use serde_json::{Map, Value, json};
use std::io::{self, Write};

/// Writes events as JSON.
pub struct RawJson<W>(pub W);

impl<W: Write> RawJson<W> {
    /// Writes one event.
    pub fn update(&mut self, event: &StatusResponse) -> io::Result<()> {
        let mut line = event_json(event).to_string();
        line.push('\n');
        self.0.write_all(line.as_bytes())?;
        self.0.flush()
    }
}

fn event_json(event: &StatusResponse) -> Value {
    let mut out = Map::new();
    let mut list = |name: &str, values: Vec<Value>| {
        if !values.is_empty() {
            out.insert(name.to_owned(), Value::Array(values));
        }
    };
    list("vertexes", event.vertexes.iter().map(vertex).collect());
    list("statuses", event.statuses.iter().map(status).collect());
    list("logs", event.logs.iter().map(log).collect());
    list("warnings", event.warnings.iter().map(warning).collect());
    Value::Object(out)
}

/// Writes a time as Go does: RFC 3339 in UTC, without zeros at the end.
fn time(timestamp: Option<&prost_types::Timestamp>) -> Option<Value> {
    let timestamp = timestamp?;
    let time = jiff::Timestamp::new(timestamp.seconds, timestamp.nanos).ok()?;
    Some(Value::String(time.to_string()))
}

/// Builds an object of the fields that aren't empty.
struct Fields(Map<String, Value>);

impl Fields {
    fn new() -> Self {
        Self(Map::new())
    }

    fn always(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.0.insert(name.to_owned(), value.into());
        self
    }

    fn text(self, name: &str, value: &str) -> Self {
        if value.is_empty() { self } else { self.always(name, value) }
    }

    fn number(self, name: &str, value: i64) -> Self {
        if value == 0 { self } else { self.always(name, value) }
    }

    fn some(self, name: &str, value: Option<Value>) -> Self {
        match value {
            Some(value) => self.always(name, value),
            None => self,
        }
    }

    fn done(self) -> Value {
        Value::Object(self.0)
    }
}

fn vertex(v: &Vertex) -> Value {
    let group = v.progress_group.as_ref().map(|group| {
        let weak = group.weak.then_some(Value::Bool(true));
        Fields::new().text("id", &group.id).text("name", &group.name).some("weak", weak).done()
    });
    Fields::new()
        .text("digest", &v.digest)
        .some("inputs", (!v.inputs.is_empty()).then(|| json!(v.inputs)))
        .text("name", &v.name)
        .some("started", time(v.started.as_ref()))
        .some("completed", time(v.completed.as_ref()))
        .some("cached", v.cached.then_some(Value::Bool(true)))
        .text("error", &v.error)
        .some("progressGroup", group)
        .done()
}

/// The time that Go has for none.
const NO_TIME: &str = "0001-01-01T00:00:00Z";

fn status(s: &VertexStatus) -> Value {
    Fields::new()
        .always("id", s.id.as_str())
        .text("vertex", &s.vertex)
        .text("name", &s.name)
        .number("total", s.total)
        .always("current", s.current)
        .always("timestamp", time(s.timestamp.as_ref()).unwrap_or(NO_TIME.into()))
        .some("started", time(s.started.as_ref()))
        .some("completed", time(s.completed.as_ref()))
        .done()
}

fn log(l: &VertexLog) -> Value {
    Fields::new()
        .text("vertex", &l.vertex)
        .number("stream", l.stream)
        .always("data", STANDARD.encode(&l.msg))
        .always("timestamp", time(l.timestamp.as_ref()).unwrap_or(NO_TIME.into()))
        .done()
}

fn warning(w: &VertexWarning) -> Value {
    let details: Vec<Value> = w.detail.iter().map(|detail| STANDARD.encode(detail).into()).collect();
    Fields::new()
        .text("vertex", &w.vertex)
        .number("level", w.level)
        .some("short", (!w.short.is_empty()).then(|| STANDARD.encode(&w.short).into()))
        .some("detail", (!details.is_empty()).then_some(Value::Array(details)))
        .text("url", &w.url)
        .some("sourceInfo", w.info.as_ref().map(source_info))
        .some("range", (!w.ranges.is_empty()).then(|| Value::Array(w.ranges.iter().map(range).collect())))
        .done()
}

fn source_info(info: &pb::SourceInfo) -> Value {
    Fields::new()
        .text("filename", &info.filename)
        .some("data", (!info.data.is_empty()).then(|| STANDARD.encode(&info.data).into()))
        .text("language", &info.language)
        .done()
}

fn range(range: &pb::Range) -> Value {
    let position =
        |p: &pb::Position| Fields::new().number("line", p.line.into()).number("character", p.character.into()).done();
    Fields::new().some("start", range.start.as_ref().map(position)).some("end", range.end.as_ref().map(position)).done()
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn fields_are_those_of_buildkit() {
        let mut out = Vec::new();
        let mut raw = RawJson(&mut out);
        raw.update(&testing::cached("sha256:a", "[1/1] RUN x", 1.5)).unwrap();
        raw.update(&testing::log("sha256:a", 2.0, "hi\n")).unwrap();
        raw.update(&testing::counter("sha256:a", "layer", 0, 9, 3.0, None)).unwrap();
        raw.update(&StatusResponse {
            warnings: vec![VertexWarning {
                vertex: "sha256:a".into(),
                level: 1,
                short: b"s".to_vec(),
                detail: vec![b"d".to_vec()],
                url: "u".into(),
                info: Some(pb::SourceInfo { filename: "Dockerfile".into(), data: b"x".to_vec(), ..Default::default() }),
                ranges: vec![pb::Range {
                    start: Some(pb::Position { line: 3, character: 0 }),
                    end: Some(pb::Position { line: 3, character: 0 }),
                }],
            }],
            ..Default::default()
        })
        .unwrap();
        insta::assert_snapshot!(String::from_utf8(out).unwrap());
    }
}
