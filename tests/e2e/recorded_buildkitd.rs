//! Point 6, the other way: our CLI with what a real `buildkitd` answered it (`tests/exchanges/bud*.json`), also where it
//! lowers the Dockerfile itself.

use crate::harness::{Home, json, read, scratch, wait_until};
use bud_protocol::control::BytesMessage;
use bud_session::SessionRegistry;
use bud_session::daemon::{DirRequest, SessionStream, WAIT};
use bud_session::fsutil::ReceiveOptions;
use bytes::Bytes;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::Value;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tonic::body::Body;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Answers as it was recorded.
struct Recorded {
    calls: Mutex<Vec<Value>>,
    session: Vec<Value>,
    registry: SessionRegistry,
    /// Where what the client shares ends up.
    received: PathBuf,
    /// What went wrong here; the test shows it.
    wrong: Mutex<Vec<String>>,
}

fn headers(call: &Value, name: &str) -> Vec<String> {
    let all = call["headers"].as_array().into_iter().flatten();
    all.filter(|h| h[0] == name).filter_map(|h| h[1].as_str()).map(str::to_owned).collect()
}

fn messages(list: &Value) -> Vec<Bytes> {
    list.as_array().into_iter().flatten().map(crate::replay::base64).collect()
}

impl Recorded {
    fn load(name: &str) -> Arc<Self> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/exchanges").join(name);
        let data = json(&std::fs::read(path).expect("the exchange is there"));
        Arc::new(Self {
            calls: Mutex::new(data["calls"].as_array().expect("calls").clone()),
            session: data["session"].as_array().expect("a session").clone(),
            registry: SessionRegistry::new(),
            received: scratch("received"),
            wrong: Mutex::default(),
        })
    }

    /// Takes the recorded call of this method; if there are several, the one with the same request first.
    fn take(&self, method: &str, sent: &[Bytes]) -> Option<Value> {
        let mut calls = self.calls.lock().expect("no panic");
        let same = calls.iter().position(|c| c["method"] == method && messages(&c["sent"]) == sent);
        let any = same.or_else(|| calls.iter().position(|c| c["method"] == method));
        any.map(|n| calls.remove(n))
    }

    /// Asks of the client what the real daemon asked.
    async fn ask_the_client(&self) -> Result<(), String> {
        let id = self.registry_id()?;
        let session = self.registry.get(&id, WAIT).await.map_err(|e| e.to_string())?;
        for (n, call) in self.session.iter().enumerate() {
            match call["method"].as_str().unwrap_or_default() {
                "/moby.filesync.v1.FileSync/DiffCopy" => {
                    let request = DirRequest {
                        name: headers(call, "dir-name").concat(),
                        include: headers(call, "include-patterns"),
                        exclude: headers(call, "exclude-patterns"),
                        follow: headers(call, "followpaths"),
                    };
                    let dir = self.received.join(format!("{n}-{}", request.name));
                    std::fs::create_dir(&dir).map_err(|e| e.to_string())?;
                    let dest = std::fs::File::open(&dir).map_err(|e| e.to_string())?;
                    let copied = session.diff_copy(&request, dest.into(), ReceiveOptions::default()).await;
                    copied.map_err(|e| format!("{request:?}: {e}"))?;
                }
                "/moby.filesync.v1.FileSend/DiffCopy" => {
                    let mut file = session.send_file(0, &BTreeMap::new()).map_err(|e| e.to_string())?;
                    file.write(Bytes::from_static(b"not quite a tar")).await.map_err(|e| e.to_string())?;
                    file.finish().await.map_err(|e| e.to_string())?;
                }
                "/moby.buildkit.secrets.v1.Secrets/GetSecret" => {
                    let secret = session.secret("s").await.map_err(|e| e.to_string())?;
                    if secret.as_deref() != Some(b"shh") {
                        return Err(format!("the secret is {secret:?}"));
                    }
                }
                other => return Err(format!("{other} is in the exchange and not here")),
            }
        }
        Ok(())
    }

    /// The id of the client's session.
    fn registry_id(&self) -> Result<String, String> {
        std::fs::read_to_string(self.received.join("session-id")).map_err(|e| e.to_string())
    }

    async fn answer(&self, method: &str, sent: Vec<Bytes>) -> Result<Vec<Bytes>, Status> {
        let Some(call) = self.take(method, &sent) else {
            return Err(Status::unimplemented(format!("{method} is not in the exchange")));
        };
        if method.ends_with("Control/Solve")
            && let Err(wrong) = self.ask_the_client().await
        {
            self.wrong.lock().expect("no panic").push(wrong.clone());
            return Err(Status::unknown(wrong));
        }
        match call["status"].as_i64().unwrap_or(0) {
            0 => Ok(messages(&call["received"])),
            code => {
                let code = Code::from_i32(i32::try_from(code).expect("a small number"));
                Err(Status::new(code, call["message"].as_str().unwrap_or_default()))
            }
        }
    }
}

type Answers = std::pin::Pin<Box<dyn futures_util::Stream<Item = Result<Bytes, Status>> + Send>>;

async fn serve(recorded: Arc<Recorded>, request: http::Request<hyper::body::Incoming>) -> http::Response<Body> {
    let method = request.uri().path().to_owned();
    if method.ends_with("Control/Session") {
        let id =
            request.headers().get("x-docker-expose-session-uuid").and_then(|v| v.to_str().ok()).unwrap_or_default();
        std::fs::write(recorded.received.join("session-id"), id).expect("write");
        let call = tower::service_fn(move |request: Request<Streaming<BytesMessage>>| {
            let recorded = recorded.clone();
            async move {
                let (metadata, _, inbound) = request.into_parts();
                let stream: SessionStream = recorded.registry.serve(&metadata, inbound).await?;
                Ok::<_, Status>(Response::new(stream))
            }
        });
        let mut grpc = tonic::server::Grpc::new(ProstCodec::<BytesMessage, BytesMessage>::default());
        return grpc.streaming(call, request.map(Body::new)).await;
    }
    let call = tower::service_fn(move |request: Request<Streaming<Bytes>>| {
        let (recorded, method) = (recorded.clone(), method.clone());
        async move {
            let mut inbound = request.into_inner();
            let mut sent = Vec::new();
            while let Some(message) = inbound.message().await? {
                sent.push(message);
            }
            let answers = recorded.answer(&method, sent).await?;
            let stream: Answers = Box::pin(futures_util::stream::iter(answers.into_iter().map(Ok)));
            Ok::<_, Status>(Response::new(stream))
        }
    });
    tonic::server::Grpc::new(crate::replay::Raw).streaming(call, request.map(Body::new)).await
}

/// Serves the exchange on a socket that everybody may connect to.
fn start(name: &str) -> (Arc<Recorded>, PathBuf) {
    let recorded = Recorded::load(name);
    let socket = scratch("recorded").join("buildkitd.sock");
    let (serving, path) = (recorded.clone(), socket.clone());
    std::thread::spawn(move || {
        crate::replay::runtime().block_on(async move {
            let listener = tokio::net::UnixListener::bind(&path).expect("the socket can be bound");
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).expect("chmod");
            while let Ok((stream, _)) = listener.accept().await {
                let recorded = serving.clone();
                let service = hyper::service::service_fn(move |request| {
                    let recorded = recorded.clone();
                    async move { Ok::<_, Infallible>(serve(recorded, request).await) }
                });
                tokio::spawn(
                    hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                        .serve_connection(TokioIo::new(stream), service),
                );
            }
        });
    });
    wait_until("the socket is there", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    (recorded, socket)
}

fn builds(name: &str, flags: &[&str]) {
    let (recorded, socket) = start(name);
    let home = Home::sub();
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
    home.write(&home.path("s"), "shh");
    let address = format!("unix://{}", socket.display());
    let output = format!("type=oci,dest={}", home.path("o.tar").display());
    let mut args =
        vec!["--buildkit-addr", &address, "--build-arg", "V=7", "--secret", "id=s,src=s", "-t", "foo", "-o", &output];
    args.extend(flags);
    let ran = home.build(&args, &context);
    assert_eq!(*recorded.wrong.lock().unwrap(), Vec::<String>::new(), "{ran}");
    let ran = ran.ok().says(&[
        "#1 [internal] load build definition from Dockerfile",
        "[a 2/2] RUN --mount=type=secret,id=s",
        "exporting to oci image format",
    ]);
    assert_eq!(read(home.path("o.tar")), "not quite a tar");
    assert!(home.daemon_pid().is_none() && !home.socket().exists(), "a daemon of its own was started: {ran}");
    let mut shared = Vec::new();
    for entry in std::fs::read_dir(&recorded.received).unwrap().flatten() {
        if entry.file_name().to_string_lossy().contains('-') && entry.path().is_dir() {
            for file in ["Dockerfile", "a", "d/b", "ignored"] {
                if entry.path().join(file).exists() {
                    shared.push(file.to_owned());
                }
            }
        }
    }
    assert!(shared.contains(&"a".to_owned()) && shared.contains(&"d/b".to_owned()), "{shared:?}");
    assert!(!shared.contains(&"ignored".to_owned()), "{shared:?}");
    let left = recorded.calls.lock().unwrap();
    let left: Vec<_> = left.iter().map(|c| c["method"].as_str().unwrap_or_default()).collect();
    assert!(left.iter().all(|m| m.ends_with("/Session")), "the client made no call of {left:?}");
}

#[test]
fn our_client_builds_with_a_real_buildkitd() {
    builds("bud.json", &[]);
}

#[test]
fn our_client_lowers_the_dockerfile_itself_for_a_real_buildkitd() {
    builds("bud-client.json", &["--clientside-frontend"]);
}
