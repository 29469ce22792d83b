//! A06, A07, R12, A03: requests that no honest client makes are answered at once, and the daemon builds on.

use crate::harness::{Home, read};
use crate::replay::{connect, daemon, runtime};
use bud_protocol::control::control_client::ControlClient;
use bud_protocol::control::{SolveRequest, StatusRequest};
use bud_protocol::gateway::llb_bridge_client::LlbBridgeClient;
use bud_protocol::{gateway, llb, pb};
use bud_session::client::LocalDir;
use bud_session::{Attachables, SessionHandle};
use prost::Message as _;
use std::time::Duration;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

/// The end of a definition: an op without a kind whose one input is the result.
fn last(digest: &str, index: i64) -> Vec<u8> {
    pb::Op { inputs: vec![pb::Input { digest: digest.to_owned(), index }], ..Default::default() }.encode_to_vec()
}

fn definition(ops: &[&pb::Op], index: i64) -> pb::Definition {
    let mut def: Vec<Vec<u8>> = ops.iter().map(|op| llb::encode_op(op)).collect();
    let digest = llb::op_digest(def.last().expect("an op"));
    def.push(last(&digest, index));
    pb::Definition { def, ..Default::default() }
}

fn source(identifier: &str) -> pb::Op {
    op(pb::op::Op::Source(pb::SourceOp { identifier: identifier.to_owned(), attrs: Default::default() }))
}

fn op(kind: pb::op::Op) -> pb::Op {
    pb::Op { op: Some(kind), ..Default::default() }
}

fn exec(security: i32, network: i32, dest: &str) -> pb::Op {
    let mut exec = op(pb::op::Op::Exec(pb::ExecOp {
        meta: Some(pb::Meta { args: vec!["/bin/true".to_owned()], cwd: "/".to_owned(), ..Default::default() }),
        mounts: vec![pb::Mount { input: 0, dest: dest.to_owned(), output: 0, ..Default::default() }],
        security,
        network,
        ..Default::default()
    }));
    exec.inputs = vec![pb::Input { digest: llb::op_digest(&llb::encode_op(&busybox())), index: 0 }];
    exec
}

fn busybox() -> pb::Op {
    source("docker-image://docker.io/library/busybox:latest")
}

fn file(action: pb::FileAction) -> pb::Op {
    op(pb::op::Op::File(pb::FileOp { actions: vec![action] }))
}

fn mkdir(path: &str, input: i64, output: i64) -> pb::FileAction {
    pb::FileAction {
        input,
        secondary_input: -1,
        output,
        action: Some(pb::file_action::Action::Mkdir(pb::FileActionMkDir {
            path: path.to_owned(),
            mode: 0o755,
            make_parents: true,
            ..Default::default()
        })),
    }
}

async fn solve(channel: &Channel, what: &str, request: SolveRequest) -> Status {
    let mut client = ControlClient::new(channel.clone());
    let solve = client.solve(Request::new(request)).into_inner_result();
    let result = tokio::time::timeout(Duration::from_secs(10), solve).await.expect("an answer within ten seconds");
    result.expect_err(what)
}

/// A response's value without its metadata.
trait IntoInnerResult<T> {
    fn into_inner_result(self) -> impl Future<Output = Result<T, Status>>;
}

impl<T, F: Future<Output = Result<tonic::Response<T>, Status>>> IntoInnerResult<T> for F {
    async fn into_inner_result(self) -> Result<T, Status> {
        self.await.map(tonic::Response::into_inner)
    }
}

#[track_caller]
fn builds_on(home: &Home, pid: Option<u32>) {
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "alive")]);
    assert_eq!(read(home.tree(&[], &context).join("a")), "alive");
    assert_eq!(home.daemon_pid(), pid, "the daemon is another one");
}

#[test]
fn a06_definitions_that_are_none_are_refused_by_name() {
    let home = daemon();
    let pid = home.daemon_pid();
    let absent = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    let mut orphan = exec(0, 0, "/");
    orphan.inputs[0].digest = absent.to_owned();
    let mut bad_index = exec(0, 0, "/");
    bad_index.inputs[0].index = 1 << 31;
    let mut negative = exec(0, 0, "/");
    negative.inputs[0].index = -1;
    let doubled = {
        let mut op = file(mkdir("/a", -1, 0));
        if let Some(pb::op::Op::File(file)) = &mut op.op {
            file.actions.push(mkdir("/b", -1, 0));
        }
        op
    };
    let mut mount_input = exec(0, 0, "/");
    if let Some(pb::op::Op::Exec(exec)) = &mut mount_input.op {
        exec.mounts[0].input = 7;
    }
    let cases: Vec<(&str, Option<pb::Definition>)> = vec![
        ("an empty definition", Some(pb::Definition::default())),
        ("an op without a kind", Some(definition(&[&pb::Op::default()], 0))),
        (
            "bytes that are no op",
            Some(pb::Definition { def: vec![vec![0xff; 40], last(absent, 0)], ..Default::default() }),
        ),
        ("a result that isn't there", Some(pb::Definition { def: vec![last(absent, 0)], ..Default::default() })),
        ("an input that isn't there", Some(definition(&[&busybox(), &orphan], 0))),
        ("an input's index of 2^31", Some(definition(&[&busybox(), &bad_index], 0))),
        ("an input's index of -1", Some(definition(&[&busybox(), &negative], 0))),
        ("a result's index of -1", Some(definition(&[&busybox()], -1))),
        ("a result's index past the outputs", Some(definition(&[&busybox(), &exec(0, 0, "/")], 9))),
        ("a mount of an input that isn't there", Some(definition(&[&busybox(), &mount_input], 0))),
        ("two actions of one output", Some(definition(&[&doubled], 0))),
        ("an action of a later one", Some(definition(&[&file(mkdir("/a", 5, 0))], 0))),
        ("an unknown source", Some(definition(&[&source("gopher://x")], 0))),
        ("a source without a scheme", Some(definition(&[&source("")], 0))),
        (
            "an exec without a command",
            Some(definition(
                &[&busybox(), &{
                    let mut op = exec(0, 0, "/");
                    if let Some(pb::op::Op::Exec(exec)) = &mut op.op {
                        exec.meta = None;
                    }
                    op
                }],
                0,
            )),
        ),
        ("an exec without a root", Some(definition(&[&busybox(), &exec(0, 0, "/elsewhere")], 0))),
        ("a sandbox of no known kind", Some(definition(&[&busybox(), &exec(2, 0, "/")], 0))),
        ("a sandbox of kind -1", Some(definition(&[&busybox(), &exec(-1, 0, "/")], 0))),
        ("a sandbox of kind 99", Some(definition(&[&busybox(), &exec(99, 0, "/")], 0))),
        ("a network of no known kind", Some(definition(&[&busybox(), &exec(0, 9, "/")], 0))),
    ];
    runtime().block_on(async {
        let channel = connect(&home.socket()).await;
        for (n, (what, definition)) in cases.into_iter().enumerate() {
            let status =
                solve(&channel, what, SolveRequest { r#ref: format!("a06x{n}"), definition, ..Default::default() })
                    .await;
            assert!(
                matches!(
                    status.code(),
                    Code::InvalidArgument | Code::Unimplemented | Code::NotFound | Code::OutOfRange
                ),
                "{what}: {status:?}"
            );
            assert!(!status.message().is_empty() && !status.message().contains("panicked"), "{what}: {status:?}");
        }
        let exporters = vec![bud_protocol::control::Exporter { r#type: "punchcards".to_owned(), ..Default::default() }];
        let request = SolveRequest {
            r#ref: "a06punch".to_owned(),
            definition: Some(definition(&[&file(mkdir("/a", -1, 0))], 0)),
            exporters,
            ..Default::default()
        };
        let status = solve(&channel, "an unknown exporter", request).await;
        assert!(status.message().contains("punchcards"), "{status:?}");
        let status = solve(
            &channel,
            "an unknown frontend",
            SolveRequest { r#ref: "a06f".to_owned(), frontend: "cobol.v0".to_owned(), ..Default::default() },
        )
        .await;
        assert!(status.message().contains("cobol.v0"), "{status:?}");
        let mut events = ControlClient::new(channel.clone())
            .status(Request::new(StatusRequest { r#ref: "never-was".to_owned() }))
            .into_inner_result()
            .await;
        if let Ok(stream) = &mut events {
            tokio::time::timeout(Duration::from_secs(15), stream.message()).await.expect("an end").ok();
        }
    });
    builds_on(&home, pid);
}

#[test]
fn r12_an_api_client_needs_the_same_grants() {
    let home = daemon();
    let pid = home.daemon_pid();
    runtime().block_on(async {
        let channel = connect(&home.socket()).await;
        let insecure = definition(&[&busybox(), &exec(1, 0, "/")], 0);
        let request =
            SolveRequest { r#ref: "r12a".to_owned(), definition: Some(insecure.clone()), ..Default::default() };
        assert!(solve(&channel, "no grant", request).await.message().contains("security.insecure"));
        let request = SolveRequest {
            r#ref: "r12b".to_owned(),
            definition: Some(insecure),
            entitlements: vec!["security.insecure".to_owned()],
            ..Default::default()
        };
        assert!(solve(&channel, "no grant", request).await.message().contains("security.insecure"));
        let host = definition(&[&busybox(), &exec(0, 1, "/")], 0);
        let request = SolveRequest { r#ref: "r12c".to_owned(), definition: Some(host), ..Default::default() };
        assert!(solve(&channel, "no grant", request).await.message().contains("network.host"));
    });
    builds_on(&home, pid);
}

#[test]
fn a07_gateway_calls_outside_a_build_or_of_others_things_are_refused() {
    let home = daemon();
    let pid = home.daemon_pid();
    runtime().block_on(async {
        let channel = connect(&home.socket()).await;
        let mut bridge = LlbBridgeClient::new(channel.clone());
        let outside = bridge.ping(Request::new(gateway::PingRequest {})).await;
        assert!(outside.is_err(), "a gateway call names its build");
        // A build that a client drives, as `buildctl` does.
        let build = "a07build";
        let driven = {
            let channel = channel.clone();
            tokio::spawn(async move {
                let request = SolveRequest { r#ref: build.to_owned(), ..Default::default() };
                ControlClient::new(channel).solve(Request::new(request)).into_inner_result().await
            })
        };
        let named = |id: &str| id.parse::<tonic::metadata::AsciiMetadataValue>().expect("ASCII");
        let mut ping = None;
        for _ in 0..100 {
            let mut request = Request::new(gateway::PingRequest {});
            request.metadata_mut().insert("buildkit-controlapi-buildid", named(build));
            match bridge.ping(request).await {
                Ok(pong) => {
                    ping = Some(pong.into_inner());
                    break;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
        assert!(ping.is_some(), "the build's gateway answers");
        macro_rules! refused {
            ($call:ident, $message:expr, $what:expr) => {{
                let mut request = Request::new($message);
                request.metadata_mut().insert("buildkit-controlapi-buildid", named(build));
                let answer = tokio::time::timeout(Duration::from_secs(10), bridge.$call(request)).await;
                let status = answer.expect("an answer within ten seconds").expect_err($what);
                assert!(!status.message().contains("panicked"), "{}: {status:?}", $what);
            }};
        }
        // An empty reference is an empty file system.
        for id in ["/", "../../../etc", "sha256:x", "0"] {
            let file = gateway::ReadFileRequest {
                r#ref: id.to_owned(),
                file_path: "/etc/passwd".to_owned(),
                ..Default::default()
            };
            refused!(read_file, file, "a file of a reference that isn't the build's");
            let dir = gateway::ReadDirRequest { r#ref: id.to_owned(), dir_path: "/".to_owned(), ..Default::default() };
            refused!(read_dir, dir, "a directory of a reference that isn't the build's");
            let stat = gateway::StatFileRequest { r#ref: id.to_owned(), path: "/".to_owned(), ..Default::default() };
            refused!(stat_file, stat, "a stat of a reference that isn't the build's");
            let release = gateway::ReleaseContainerRequest { container_id: id.to_owned() };
            refused!(release_container, release, "a container that isn't the build's");
        }
        for dest in ["../../x", "", "relative"] {
            let mount = pb::Mount { dest: dest.to_owned(), input: -1, ..Default::default() };
            let container = gateway::NewContainerRequest {
                container_id: "../../c".to_owned(),
                mounts: vec![mount],
                ..Default::default()
            };
            refused!(new_container, container, "a container with such an id and mount");
        }
        let solve = gateway::SolveRequest {
            definition: Some(definition(&[&busybox(), &exec(99, 0, "/")], 0)),
            evaluate: true,
            ..Default::default()
        };
        refused!(solve, solve, "a sandbox of no known kind");
        // A message for a process that never was, on the stream of container messages.
        let message = gateway::ExecMessage {
            process_id: "../1".to_owned(),
            input: Some(gateway::exec_message::Input::Signal(gateway::SignalMessage { name: "SIGKILL".to_owned() })),
        };
        let mut request = Request::new(tokio_stream::iter([message]));
        request.metadata_mut().insert("buildkit-controlapi-buildid", named(build));
        let mut stream = match bridge.exec_process(request).await {
            Ok(response) => Some(response.into_inner()),
            Err(_) => None,
        };
        if let Some(stream) = &mut stream {
            let answer = tokio::time::timeout(Duration::from_secs(10), stream.message()).await;
            answer.expect("no deadlock").ok();
        }
        let mut request = Request::new(gateway::ReturnRequest {
            error: Some(bud_protocol::rpc::Status { code: 2, message: "enough".to_owned(), ..Default::default() }),
            ..Default::default()
        });
        request.metadata_mut().insert("buildkit-controlapi-buildid", named(build));
        bridge.r#return(request).await.expect("the build takes its error");
        let end = tokio::time::timeout(Duration::from_secs(10), driven).await.expect("an end").expect("no panic");
        assert!(end.expect_err("the build failed").message().contains("enough"));
    });
    builds_on(&home, pid);
}

#[test]
fn a07_an_external_frontend_runs_in_the_sandbox_or_is_refused_by_name() {
    let home = Home::sub();
    home.write(&home.path("s"), "CANARY-CONTENT");
    let context = home.dockerfile("# syntax=busybox\nFROM scratch\nLABEL a=b\n");
    let ran = home.build(&["--secret", "id=s,src=s", "-t", "x"], &context).fails_with(&["busybox"]);
    assert!(!format!("{ran}").contains("CANARY-CONTENT"));
    home.build(&["-t", "x"], &home.dockerfile("# syntax=no-such/frontend:1\nFROM scratch\nLABEL a=b\n"))
        .fails_with(&["no-such/frontend"]);
    // The Dockerfile frontend by its usual names needs no registry: it is built in.
    home.build(&["-t", "x"], &home.dockerfile("# syntax=docker/dockerfile:1\nFROM scratch\nLABEL a=b\n")).ok();
}

#[test]
fn a03_a_session_belongs_to_who_opened_it() {
    let home = daemon();
    let pid = home.daemon_pid();
    let context = home.context(&[("a", "A")]);
    runtime().block_on(async {
        let attachables = || Attachables {
            locals: [("context".to_owned(), LocalDir::open(&context).expect("it opens"))].into(),
            ..Attachables::default()
        };
        let first = connect(&home.socket()).await;
        let id = "a03a03a03a03a03a03a03a03x";
        let held = SessionHandle::open_as(first, attachables(), "", id).await.expect("a session opens");
        let second = connect(&home.socket()).await;
        let other = SessionHandle::open_as(second, attachables(), "", id).await;
        let refused = match other {
            Err(_) => true,
            Ok(handle) => tokio::time::timeout(Duration::from_secs(5), handle.ended()).await.is_ok(),
        };
        assert!(refused, "an id in use was given to a second client");
        assert!(!held.has_ended());
    });
    builds_on(&home, pid);
}
