//! Errors as BuildKit's clients understand them: a gRPC status whose details are JSON under type URLs without a scheme.
//!
//! See `grpc-status-details-bin` in the gRPC specification. Details that are not known here are passed on untouched.

use crate::{errdefs, pb, rpc};
use base64::Engine as _;
use prost::Message as _;
use serde_json::{Map, Value, json};
use std::fmt;
use tonic::Code;

const PREFIX: &str = "github.com/moby/buildkit/";

/// An error on its way to a client: text, code and details. Cheap to clone, as several builds may share a failed step.
#[derive(Clone, Debug, PartialEq)]
pub struct BuildError {
    /// The gRPC code.
    pub code: Code,
    /// The whole chain of causes, outermost first.
    pub message: String,
    /// What clients show or act on, innermost first.
    pub details: Vec<Detail>,
}

/// A detail of an error.
#[derive(Clone, Debug, PartialEq)]
pub enum Detail {
    /// A place in a source text (`errdefs.Source`).
    Source(Box<SourcePlace>),
    /// The vertex that failed (`errdefs.Vertex`).
    Vertex(String),
    /// A process's exit code (`gatewayapi.ExitMessage`).
    Exit(u32),
    /// A front end capability that isn't there (`errdefs.FrontendCap`).
    FrontendCap(String),
    /// A subrequest that isn't there (`errdefs.Subrequest`).
    Subrequest(String),
    /// The op that failed, and its inputs (`errdefs.Solve`).
    Solve(Box<errdefs::Solve>),
    /// Any other, untouched.
    Other(prost_types::Any),
}

/// A place in a source text.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourcePlace {
    /// The text.
    pub info: Option<pb::SourceInfo>,
    /// The ranges in it.
    pub ranges: Vec<pb::Range>,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for BuildError {}

impl BuildError {
    /// Makes an error with code and text.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), details: Vec::new() }
    }

    /// Makes an error with code `Unknown`, as most are in BuildKit.
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Code::Unknown, message)
    }

    /// Makes an error about a request that can't be right.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    /// Makes an error about something that isn't there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(Code::NotFound, message)
    }

    /// Makes the error of a build that was given up.
    #[must_use]
    pub fn canceled() -> Self {
        Self::new(Code::Cancelled, "context canceled")
    }

    /// Makes an error of any other, with its chain of causes.
    pub fn from_chain(error: &dyn std::error::Error) -> Self {
        let mut message = error.to_string();
        let mut next = error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !message.ends_with(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            next = cause.source();
        }
        Self::other(message)
    }

    /// Puts what was being done in front of the text.
    #[must_use]
    pub fn context(mut self, doing: impl fmt::Display) -> Self {
        self.message = format!("{doing}: {}", self.message);
        self
    }

    /// Adds a detail.
    #[must_use]
    pub fn with(mut self, detail: Detail) -> Self {
        self.details.push(detail);
        self
    }

    /// Tells whether a vertex is named already.
    #[must_use]
    pub fn has_vertex(&self) -> bool {
        self.details.iter().any(|d| matches!(d, Detail::Vertex(_)))
    }

    /// Returns the process's exit code, if it is that of one.
    #[must_use]
    pub fn exit_code(&self) -> Option<u32> {
        self.details.iter().find_map(|d| if let Detail::Exit(code) = d { Some(*code) } else { None })
    }

    /// Returns the places in source texts, in the order of the details.
    pub fn places(&self) -> impl Iterator<Item = &SourcePlace> {
        self.details.iter().filter_map(|d| if let Detail::Source(place) = d { Some(&**place) } else { None })
    }

    /// Converts it to the message that the gateway and the history carry.
    #[must_use]
    pub fn to_rpc(&self) -> rpc::Status {
        rpc::Status {
            code: self.code as i32,
            message: self.message.clone(),
            details: self.details.iter().map(Detail::to_any).collect(),
        }
    }

    /// Reads it from such a message.
    #[must_use]
    pub fn from_rpc(status: &rpc::Status) -> Self {
        Self {
            code: Code::from_i32(status.code),
            message: status.message.clone(),
            details: status.details.iter().map(Detail::from_any).collect(),
        }
    }

    /// Converts it to the status that ends a call. The text is cut where it would not fit into a header.
    #[must_use]
    pub fn to_status(&self) -> tonic::Status {
        let mut rpc = self.to_rpc();
        let mut end = rpc.message.len().min(4096);
        while !rpc.message.is_char_boundary(end) {
            end -= 1;
        }
        let header = rpc.message[..end].to_owned();
        while rpc.encoded_len() > 256 << 10 {
            // What is dropped first is the largest: a Dockerfile's text.
            let largest = rpc.details.iter().enumerate().max_by_key(|(_, d)| d.value.len()).map(|(i, _)| i);
            match largest {
                Some(i) => drop(rpc.details.remove(i)),
                None => {
                    rpc.message.clone_from(&header);
                    break;
                }
            }
        }
        tonic::Status::with_details(self.code, header, rpc.encode_to_vec().into())
    }

    /// Reads it from the status that a call ended with.
    #[must_use]
    pub fn from_status(status: &tonic::Status) -> Self {
        if let Ok(rpc) = rpc::Status::decode(status.details())
            && !status.details().is_empty()
        {
            return Self { code: status.code(), ..Self::from_rpc(&rpc) };
        }
        Self::new(status.code(), status.message())
    }
}

impl From<BuildError> for tonic::Status {
    fn from(error: BuildError) -> Self {
        error.to_status()
    }
}

impl From<tonic::Status> for BuildError {
    fn from(status: tonic::Status) -> Self {
        Self::from_status(&status)
    }
}

impl Detail {
    fn to_any(&self) -> prost_types::Any {
        let (name, value) = match self {
            Self::Source(place) => ("errdefs.Source+json", source_json(place)),
            Self::Vertex(digest) => ("errdefs.Vertex+json", json!({ "digest": digest })),
            Self::Exit(0) => ("gatewayapi.ExitMessage+json", json!({})),
            Self::Exit(code) => ("gatewayapi.ExitMessage+json", json!({ "Code": code })),
            Self::FrontendCap(name) => ("errdefs.FrontendCap+json", json!({ "name": name })),
            Self::Subrequest(name) => ("errdefs.Subrequest+json", json!({ "name": name })),
            Self::Solve(solve) => ("errdefs.Solve+json", solve_json(solve)),
            Self::Other(any) => return any.clone(),
        };
        prost_types::Any { type_url: format!("{PREFIX}{name}"), value: value.to_string().into_bytes() }
    }

    fn from_any(any: &prost_types::Any) -> Self {
        let other = || Self::Other(any.clone());
        let Some(name) = any.type_url.strip_prefix(PREFIX) else { return other() };
        let Ok(value) = serde_json::from_slice::<Value>(&any.value) else { return other() };
        let text = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        match name {
            "errdefs.Source+json" => Self::Source(Box::new(source_from_json(&value))),
            "errdefs.Vertex+json" => Self::Vertex(text("digest")),
            "gatewayapi.ExitMessage+json" => {
                let code = value.get("Code").and_then(Value::as_u64).unwrap_or(0);
                Self::Exit(u32::try_from(code).unwrap_or(u32::MAX))
            }
            "errdefs.FrontendCap+json" => Self::FrontendCap(text("name")),
            "errdefs.Subrequest+json" => Self::Subrequest(text("name")),
            _ => other(),
        }
    }
}

fn put(map: &mut Map<String, Value>, key: &str, text: &str) {
    if !text.is_empty() {
        map.insert(key.into(), text.into());
    }
}

fn source_json(place: &SourcePlace) -> Value {
    let mut source = Map::new();
    if let Some(info) = &place.info {
        let mut map = Map::new();
        put(&mut map, "filename", &info.filename);
        put(&mut map, "data", &base64::engine::general_purpose::STANDARD.encode(&info.data));
        if let Some(definition) = &info.definition {
            map.insert("definition".into(), definition_json(definition));
        }
        put(&mut map, "language", &info.language);
        source.insert("info".into(), map.into());
    }
    let position = |p: &Option<pb::Position>| {
        let mut map = Map::new();
        if let Some(p) = p {
            if p.line != 0 {
                map.insert("line".into(), p.line.into());
            }
            if p.character != 0 {
                map.insert("character".into(), p.character.into());
            }
        }
        Value::Object(map)
    };
    if !place.ranges.is_empty() {
        let ranges: Vec<Value> =
            place.ranges.iter().map(|r| json!({ "start": position(&r.start), "end": position(&r.end) })).collect();
        source.insert("ranges".into(), ranges.into());
    }
    source.into()
}

/// The definition a text was read from; clients use no more of it than its ops.
fn definition_json(definition: &pb::Definition) -> Value {
    let def: Vec<Value> =
        definition.def.iter().map(|d| base64::engine::general_purpose::STANDARD.encode(d).into()).collect();
    json!({ "def": def })
}

fn source_from_json(value: &Value) -> SourcePlace {
    let base64 = |v: &Value| {
        v.as_str().and_then(|s| base64::engine::general_purpose::STANDARD.decode(s).ok()).unwrap_or_default()
    };
    let info = value.get("info").map(|info| {
        let text = |key: &str| info.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        pb::SourceInfo {
            filename: text("filename"),
            data: info.get("data").map(base64).unwrap_or_default(),
            definition: info
                .get("definition")
                .and_then(|d| d.get("def"))
                .and_then(Value::as_array)
                .map(|def| pb::Definition { def: def.iter().map(base64).collect(), ..Default::default() }),
            language: text("language"),
        }
    });
    let position = |v: Option<&Value>| {
        let number = |key: &str| {
            let n = v.and_then(|v| v.get(key)).and_then(Value::as_i64).unwrap_or(0);
            i32::try_from(n).unwrap_or(0)
        };
        Some(pb::Position { line: number("line"), character: number("character") })
    };
    let ranges = value.get("ranges").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let ranges =
        ranges.iter().map(|r| pb::Range { start: position(r.get("start")), end: position(r.get("end")) }).collect();
    SourcePlace { info, ranges }
}

/// The part of `errdefs.Solve` that clients read: ids, subject and description (proto-JSON).
fn solve_json(solve: &errdefs::Solve) -> Value {
    let mut map = Map::new();
    if !solve.input_i_ds.is_empty() {
        map.insert("inputIDs".into(), solve.input_i_ds.clone().into());
    }
    if !solve.mount_i_ds.is_empty() {
        map.insert("mountIDs".into(), solve.mount_i_ds.clone().into());
    }
    match &solve.subject {
        Some(errdefs::solve::Subject::File(file)) => {
            map.insert("file".into(), json!({ "index": file.index.to_string() }));
        }
        Some(errdefs::solve::Subject::Cache(cache)) => {
            map.insert("cache".into(), json!({ "index": cache.index.to_string() }));
        }
        None => {}
    }
    if !solve.description.is_empty() {
        let description: Map<String, Value> =
            solve.description.iter().map(|(k, v)| (k.clone(), v.clone().into())).collect();
        map.insert("description".into(), description.into());
    }
    map.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn details_survive_the_way_over_the_wire() {
        let place = SourcePlace {
            info: Some(pb::SourceInfo {
                filename: "Dockerfile".into(),
                data: b"FROM scratch\nRUN false\n".to_vec(),
                definition: None,
                language: "Dockerfile".into(),
            }),
            ranges: vec![pb::Range {
                start: Some(pb::Position { line: 2, character: 0 }),
                end: Some(pb::Position { line: 2, character: 0 }),
            }],
        };
        let error = BuildError::other("process \"false\" did not complete successfully: exit code: 1")
            .with(Detail::Source(Box::new(place)))
            .with(Detail::Vertex("sha256:ab".into()))
            .with(Detail::Exit(1))
            .with(Detail::Other(prost_types::Any { type_url: "x/y".into(), value: vec![1, 2] }));
        let status = error.to_status();
        assert_eq!(BuildError::from_status(&status), error);
        let rpc = rpc::Status::decode(status.details()).unwrap();
        assert_eq!(rpc.details[1].type_url, "github.com/moby/buildkit/errdefs.Vertex+json");
        assert_eq!(rpc.details[1].value, br#"{"digest":"sha256:ab"}"#);
        assert_eq!(rpc.details[2].value, br#"{"Code":1}"#);
        let source: Value = serde_json::from_slice(&rpc.details[0].value).unwrap();
        assert_eq!(source["ranges"][0]["start"], json!({ "line": 2 }));
    }

    #[test]
    fn a_status_that_would_not_fit_loses_its_largest_detail() {
        let place = SourcePlace {
            info: Some(pb::SourceInfo { data: vec![b'x'; 1 << 20], ..Default::default() }),
            ranges: vec![],
        };
        let error = BuildError::other("no").with(Detail::Source(Box::new(place))).with(Detail::Exit(3));
        let back = BuildError::from_status(&error.to_status());
        assert_eq!(back.details, vec![Detail::Exit(3)]);
    }
}
