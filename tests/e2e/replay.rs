//! Point 6: what `buildctl` and a real `buildkitd` said to each other (`tests/exchanges`, recorded message by message),
//! said again to the daemon here: it must give the same kind of answers.

use crate::harness::{Home, User, read};
use bud_protocol::control::{self, SolveResponse, StatusResponse};
use bud_protocol::gateway;
use bud_session::client::{ExportTarget, LocalDir, SecretSource, TarFile};
use bud_session::{Attachables, SessionHandle};
use bytes::{Buf as _, BufMut as _, Bytes};
use prost::Message as _;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Passes messages as they are.
#[derive(Default, Clone, Copy)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(item);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}

/// Connects to a daemon's socket.
pub async fn connect(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    Endpoint::from_static("http://localhost")
        .http2_max_header_list_size(1 << 20)
        .connect_with_connector(tower::service_fn(move |_| {
            let socket = socket.clone();
            async move { tokio::net::UnixStream::connect(socket).await.map(hyper_util::rt::TokioIo::new) }
        }))
        .await
        .expect("the daemon answers")
}

pub fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

/// A daemon of this process's own user, since it asks its peers' uid.
pub fn daemon() -> Home {
    let home = Home::new(User { name: "root", uid: 0, gid: 0 });
    home.bud(["daemon", "start"]).ok();
    home
}

struct Call {
    method: String,
    build: Option<String>,
    started: u64,
    ended: u64,
    sent: Vec<Bytes>,
    received: Vec<Bytes>,
    status: u64,
    message: String,
}

/// What one call gave, now.
#[derive(Default)]
struct Answer {
    received: Vec<Bytes>,
    status: Option<Status>,
}

pub fn base64(text: &Value) -> Bytes {
    use base64::Engine as _;
    let text = text.as_str().expect("a message is text");
    base64::engine::general_purpose::STANDARD.decode(text).expect("base64").into()
}

struct Exchange {
    calls: Vec<Call>,
    session: Option<String>,
}

impl Exchange {
    fn load(name: &str) -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exchanges").join(name);
        let data = crate::harness::json(&std::fs::read(path).expect("the exchange is there"));
        let header = |call: &Value, name: &str| {
            let headers = call["headers"].as_array()?;
            headers.iter().find(|h| h[0] == name).and_then(|h| h[1].as_str()).map(str::to_owned)
        };
        let messages = |v: &Value| v.as_array().into_iter().flatten().map(base64).collect();
        let all = data["calls"].as_array().expect("calls");
        let calls = all.iter().map(|c| Call {
            method: c["method"].as_str().expect("a method").to_owned(),
            build: header(c, "buildkit-controlapi-buildid"),
            started: c["started"].as_u64().expect("a place"),
            ended: c["ended"].as_u64().expect("a place"),
            sent: messages(&c["sent"]),
            received: messages(&c["received"]),
            status: c["status"].as_u64().unwrap_or(0),
            message: c["message"].as_str().unwrap_or_default().to_owned(),
        });
        Self { calls: calls.collect(), session: all.iter().find_map(|c| header(c, "x-docker-expose-session-uuid")) }
    }

    fn call(&self, end: &str) -> (usize, &Call) {
        self.calls.iter().enumerate().find(|(_, c)| c.method.ends_with(end)).expect("the call is in the exchange")
    }

    /// Makes the recorded calls in their order: one starts when all that had ended before it have ended again.
    async fn replay(&self, socket: &Path, attachables: Attachables) -> Vec<Answer> {
        let channel = connect(socket).await;
        let names = &Names::default();
        let ended: Vec<_> = self.calls.iter().map(|_| watch::channel(false)).collect();
        let session = self.session.clone();
        let mut handle = None;
        if let Some(id) = session {
            handle =
                Some(SessionHandle::open_as(channel.clone(), attachables, "", &id).await.expect("a session opens"));
        }
        let calls = self.calls.iter().enumerate().map(|(n, call)| {
            let channel = channel.clone();
            let mut before: Vec<_> = self
                .calls
                .iter()
                .zip(&ended)
                .filter(|(c, _)| c.ended < call.started && !c.method.ends_with("/Session"))
                .map(|(_, e)| e.1.clone())
                .collect();
            let done = &ended[n].0;
            async move {
                for earlier in &mut before {
                    earlier.wait_for(|ended| *ended).await.expect("the call ends");
                }
                let answer = if call.method.ends_with("/Session") {
                    Answer::default()
                } else {
                    make(channel, call, names).await
                };
                done.send_replace(true);
                answer
            }
        });
        let answers = tokio::time::timeout(Duration::from_secs(60), futures_util::future::join_all(calls)).await;
        drop(handle);
        answers.expect("the exchange ends within a minute")
    }
}

/// The references in a result.
fn refs(result: &mut gateway::Result) -> Vec<&mut gateway::Ref> {
    match &mut result.result {
        Some(gateway::result::Result::Ref(one)) => vec![one],
        Some(gateway::result::Result::Refs(many)) => many.refs.values_mut().collect(),
        _ => Vec::new(),
    }
}

/// Recorded references and what they are called now.
type Names = std::cell::RefCell<BTreeMap<String, String>>;

/// Puts today's references into a recorded request.
fn renamed(call: &Call, names: &Names) -> Vec<Bytes> {
    if !call.method.ends_with("LLBBridge/Return") {
        return call.sent.clone();
    }
    let mut request = gateway::ReturnRequest::decode(call.sent[0].clone()).expect("it decodes");
    for one in request.result.iter_mut().flat_map(refs) {
        if let Some(now) = names.borrow().get(&one.id) {
            one.id.clone_from(now);
        }
    }
    vec![request.encode_to_vec().into()]
}

/// Remembers what recorded references are called now.
fn learn(call: &Call, received: &[Bytes], names: &Names) {
    if call.method.ends_with("LLBBridge/Solve") && !received.is_empty() && !call.received.is_empty() {
        let result =
            |m: &Bytes| gateway::SolveResponse::decode(m.clone()).expect("it decodes").result.unwrap_or_default();
        let (mut then, mut now) = (result(&call.received[0]), result(&received[0]));
        for (then, now) in refs(&mut then).into_iter().zip(refs(&mut now)) {
            names.borrow_mut().insert(then.id.clone(), now.id.clone());
        }
    }
}

async fn make(channel: Channel, call: &Call, names: &Names) -> Answer {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.expect("the connection stands");
    let mut request = Request::new(futures_util::stream::iter(renamed(call, names)));
    if let Some(build) = &call.build {
        request.metadata_mut().insert("buildkit-controlapi-buildid", build.parse().expect("ASCII"));
    }
    let path = http::uri::PathAndQuery::try_from(call.method.as_str()).expect("a path");
    let mut answer = Answer::default();
    match client.streaming(request, path, Raw).await {
        Err(status) => answer.status = Some(status),
        Ok(response) => {
            let mut stream = response.into_inner();
            loop {
                match stream.message().await {
                    Ok(Some(message)) => answer.received.push(message),
                    Ok(None) => break,
                    Err(status) => {
                        answer.status = Some(status);
                        break;
                    }
                }
            }
        }
    }
    learn(call, &answer.received, names);
    answer
}

/// What a client sees of a build: each vertex's inputs' count and how it ended, and each vertex's log, by name.
fn seen(messages: &[Bytes]) -> BTreeMap<String, (usize, bool, String)> {
    let mut vertices = BTreeMap::new();
    let mut logs: BTreeMap<String, String> = BTreeMap::new();
    for message in messages {
        let status = StatusResponse::decode(message.clone()).expect("a status decodes");
        for v in status.vertexes {
            vertices.insert(v.digest.clone(), v);
        }
        for log in status.logs {
            logs.entry(log.vertex).or_default().push_str(&String::from_utf8_lossy(&log.msg));
        }
    }
    vertices
        .into_iter()
        .map(|(digest, v)| {
            assert!(v.completed.is_some(), "{} never ended", v.name);
            let log = logs.remove(&digest).unwrap_or_default();
            // The reference puts the whole tree of names into these, and leaves out their inputs.
            match v.name.split(' ').next() {
                Some(kind @ ("merge" | "diff")) => (kind.to_owned(), (0, !v.error.is_empty(), log)),
                _ => (without_digests(&v.name), (v.inputs.len(), !v.error.is_empty(), log)),
            }
        })
        // The last vertices tell what is exported; their texts hold the exporter's own words.
        .filter(|(name, _)| !name.starts_with("exporting"))
        .collect()
}

fn digests(messages: &[Bytes]) -> BTreeSet<String> {
    let decoded = messages.iter().map(|m| StatusResponse::decode(m.clone()).expect("a status decodes"));
    let all = decoded.flat_map(|s| s.vertexes).filter(|v| !v.name.starts_with("exporting"));
    all.map(|v| v.digest).collect()
}

/// The base image's digest differs from run to run.
fn without_digests(name: &str) -> String {
    let mut out = String::new();
    let mut rest = name;
    while let Some(at) = rest.find("sha256:") {
        out.push_str(&rest[..at + 7]);
        rest = rest[at + 7..].trim_start_matches(|c: char| c.is_ascii_hexdigit());
    }
    out + rest
}

#[track_caller]
fn same_kind(exchange: &Exchange, answers: &[Answer]) {
    let mut pairs: Vec<_> = exchange.calls.iter().zip(answers).collect();
    pairs.sort_by_key(|(call, _)| call.ended);
    for (call, answer) in pairs {
        if call.method.ends_with("/Session") {
            continue;
        }
        let code = answer.status.as_ref().map_or(Code::Ok, Status::code);
        assert_eq!(code, Code::from_i32(i32::try_from(call.status).unwrap()), "{}: {:?}", call.method, answer.status);
        let message = answer.status.as_ref().map_or("", |s| s.message());
        assert_eq!(message, call.message, "{}", call.method);
    }
    if exchange.calls.iter().any(|c| c.method.ends_with("/Status")) {
        let (n, recorded) = exchange.call("/Status");
        assert_eq!(seen(&answers[n].received), seen(&recorded.received));
    }
    if exchange.calls.iter().any(|c| c.method.ends_with("LLBBridge/Ping")) {
        let (n, recorded) = exchange.call("LLBBridge/Ping");
        let caps = |m: &[Bytes]| {
            let pong = gateway::PongResponse::decode(m[0].clone()).expect("a pong decodes");
            assert!(!pong.workers.is_empty());
            let on = |caps: Vec<bud_protocol::apicaps::ApiCap>| -> BTreeSet<String> {
                caps.into_iter().filter(|c| c.enabled).map(|c| c.id).collect()
            };
            (on(pong.frontend_api_caps), on(pong.llb_caps))
        };
        let (ours, theirs) = (caps(&answers[n].received), caps(&recorded.received));
        // Capabilities that a later version of the reference has are of no matter; those that its clients need are.
        for needed in ["solve.base", "solve.inlinereturn", "return", "returnmap", "readfile", "readdir", "statfile"] {
            if theirs.0.contains(needed) {
                assert!(ours.0.contains(needed), "{needed} in {:?}", ours.0);
            }
        }
        for needed in ["source.image", "source.local", "exec.meta.base", "file.base", "mergeop", "diffop"] {
            if theirs.1.contains(needed) {
                assert!(ours.1.contains(needed), "{needed} in {:?}", ours.1);
            }
        }
    }
    if let Some((n, recorded)) =
        exchange.calls.iter().enumerate().find(|(_, c)| c.method.ends_with("Control/Solve") && c.status == 0)
    {
        let keys = |m: &[Bytes]| -> BTreeSet<String> {
            SolveResponse::decode(m[0].clone()).expect("decodes").exporter_response.into_keys().collect()
        };
        let (ours, theirs) = (keys(&answers[n].received), keys(&recorded.received));
        let missing: Vec<_> = theirs.difference(&ours).collect();
        assert!(missing.is_empty(), "the answer lacks {missing:?}");
    }
}

fn local(path: &Path) -> LocalDir {
    LocalDir::open(path).expect("the directory opens")
}

#[test]
fn buildctl_builds_a_dockerfile() {
    let home = daemon();
    let context = home.context(&[
        (
            "Dockerfile",
            "FROM busybox AS a\nARG V=none\nRUN --mount=type=secret,id=s cat /run/secrets/s > /secret; echo \"V is $V\"; echo $V > /v\nFROM scratch\nCOPY --from=a /v /secret /\nCOPY . /c/\nLABEL l=x\n",
        ),
        ("a", "A\n"),
        ("d/b", "B\n"),
        ("ignored", "no\n"),
        (".dockerignore", "ignored\n"),
    ]);
    let tar = home.path("o.tar");
    let attachables = Attachables {
        locals: [("context".to_owned(), local(&context)), ("dockerfile".to_owned(), local(&context))].into(),
        secrets: [("s".to_owned(), SecretSource::Value(b"shh".to_vec()))].into(),
        exports: [(0, ExportTarget::File(Arc::new(TarFile(tar.clone()))))].into(),
        ..Attachables::default()
    };
    let exchange = Exchange::load("dockerfile.json");
    let answers = runtime().block_on(exchange.replay(&home.socket(), attachables));
    same_kind(&exchange, &answers);
    let image = crate::harness::Image::read(&tar);
    assert_eq!(image.config["config"]["Labels"], serde_json::json!({"l": "x"}));
    let last = image.layer_listing(image.layers() - 1);
    assert!(last.contains("c/d/b") && !last.contains("ignored"), "{last}");
    let (n, recorded) = exchange.call("LLBBridge/Solve");
    let metadata = |m: &Bytes| -> BTreeSet<String> {
        match gateway::SolveResponse::decode(m.clone()).expect("decodes").result.and_then(|r| r.result) {
            Some(gateway::result::Result::Ref(_) | gateway::result::Result::Refs(_)) => {}
            other => panic!("a result with a reference: {other:?}"),
        }
        let result = gateway::SolveResponse::decode(m.clone()).expect("decodes").result.expect("a result");
        result.metadata.into_keys().collect()
    };
    let (ours, theirs) = (metadata(&answers[n].received[0]), metadata(&recorded.received[0]));
    let missing: Vec<_> = theirs.difference(&ours).collect();
    assert!(missing.is_empty(), "the frontend's result lacks {missing:?}");
}

#[test]
fn buildctl_builds_a_definition_of_its_own() {
    let home = daemon();
    let source = home.context(&[("d/b", "B\n"), ("a", "A\n")]);
    let out = home.path("out");
    let attachables = Attachables {
        locals: [("src".to_owned(), local(&source))].into(),
        exports: [(0, ExportTarget::Directory { path: out.clone(), delete: false })].into(),
        ..Attachables::default()
    };
    let exchange = Exchange::load("llb.json");
    // The recorded base is another busybox than the one here, so the image is taken by its tag in both.
    let answers = runtime().block_on(exchange.replay(&home.socket(), attachables));
    same_kind(&exchange, &answers);
    let (n, recorded) = exchange.call("/Status");
    assert_eq!(digests(&answers[n].received), digests(&recorded.received), "a vertex is known by its op's digest");
    for (path, text) in
        [("d/f", "file\n"), ("d/copied", "made\n"), ("made", "made\n"), ("w/b", "B\n"), ("lines", "1\n")]
    {
        assert_eq!(read(out.join(path)), text, "{path}");
    }
    assert!(!out.join("d/e").exists() && !out.join("bin").exists());
    assert_eq!(std::fs::read_link(out.join("d/l")).unwrap(), Path::new("f"));
}

#[test]
fn buildctl_sees_a_failing_step() {
    let home = daemon();
    let context = home.dockerfile("FROM busybox\nRUN echo why >&2; exit 41\n");
    let attachables = Attachables {
        locals: [("context".to_owned(), local(&context)), ("dockerfile".to_owned(), local(&context))].into(),
        ..Attachables::default()
    };
    let exchange = Exchange::load("failing.json");
    let answers = runtime().block_on(exchange.replay(&home.socket(), attachables));
    same_kind(&exchange, &answers);
    let (n, _) = exchange.call("Control/Solve");
    let error = bud_protocol::errors::BuildError::from_status(answers[n].status.as_ref().unwrap());
    let text = format!("{error:?}");
    assert!(text.contains("Dockerfile") && text.contains("41"), "the error carries its place and exit code: {text}");
}

#[test]
fn buildctl_asks_about_the_daemon() {
    let home = daemon();
    home.build(&["-t", "x"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let exchange = Exchange::load("management.json");
    let answers = runtime().block_on(exchange.replay(&home.socket(), Attachables::default()));
    same_kind(&exchange, &answers);
    let one = |end: &str| answers[exchange.call(end).0].received[0].clone();
    let workers = control::ListWorkersResponse::decode(one("ListWorkers")).unwrap().record;
    assert!(!workers[0].id.is_empty() && !workers[0].platforms.is_empty() && !workers[0].gc_policy.is_empty());
    let info = control::InfoResponse::decode(one("Info")).unwrap().buildkit_version.expect("a version");
    assert!(!info.version.is_empty());
    let usage = control::DiskUsageResponse::decode(one("DiskUsage")).unwrap().record;
    assert!(usage.iter().any(|u| u.size > 0) && usage.iter().all(|u| !u.id.is_empty()), "{usage:?}");
}
