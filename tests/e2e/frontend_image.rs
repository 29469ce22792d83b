//! `# syntax=`: a front end in an image, which speaks the gateway's protocol over its stdin and stdout.
//!
//! The image's program is this very test binary, called for the ignored test [`program`].

use crate::harness::{Home, read, run, scratch, wait_until};
use bud_protocol::errors::{BuildError, Detail, SourcePlace};
use bud_protocol::gateway::llb_bridge_client::LlbBridgeClient;
use bud_protocol::gateway::{self, ReadDirRequest, ReadFileRequest, ReturnRequest, SolveRequest, StatFileRequest};
use bud_protocol::llb::{encode_op, op_digest};
use bud_protocol::pb;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::os::unix::process::CommandExt as _;
use std::pin::Pin;
use std::process::Command;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe;

const PROGRAM: &str = "frontend_image::program";

/// Builds the image `name` with this binary in it.
fn make_image(home: &Home, name: &str) {
    let dir = scratch("frontend");
    let stripped = dir.join("frontend");
    let this = std::env::current_exe().expect("this program has a path");
    let status = Command::new("strip").arg("-o").arg(&stripped).arg(&this).status().expect("strip runs (binutils)");
    assert!(status.success());
    let text = format!(
        "FROM busybox\nCOPY --chmod=0755 root /\nENV FROM_IMAGE=yes\n\
         ENTRYPOINT [\"/bin/sh\", \"-c\", \"exec 3>&1 >&2; exec /frontend --ignored --exact {PROGRAM} --nocapture\"]\n"
    );
    let context = home.dockerfile(&text);
    home.write(&context.join("root/frontend"), std::fs::read(&stripped).expect("the copy can be read"));
    let ldd = Command::new("ldd").arg(&this).output().expect("ldd runs");
    for word in String::from_utf8_lossy(&ldd.stdout).split_whitespace().filter(|w| w.starts_with('/')) {
        home.write(&context.join("root").join(&word[1..]), std::fs::read(word).expect("a library can be read"));
    }
    home.build(&["-t", name], &context).ok();
}

/// Processes of the front end, of all tests' users.
fn front_ends_run() -> bool {
    let processes = std::fs::read_dir("/proc").expect("/proc can be listed").flatten();
    processes.into_iter().any(|process| {
        let line = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
        line.starts_with(b"/frontend\0")
    })
}

#[test]
fn a_front_end_in_an_image_builds_fails_and_ends_with_its_build() {
    let home = Home::sub();
    make_image(&home, "frontend-test");
    let context = home.context(&[
        ("Dockerfile", "# syntax=frontend-test more words\ngreeting: hello\n"),
        ("plain/Dockerfile", "FROM busybox\nRUN echo built by the nested one > /nested\n"),
    ]);

    // It reads the Dockerfile, builds, looks at what it built, and gives it a config.
    let out = home.tree(&["--build-arg", "MODE=build"], &context);
    assert_eq!(read(out.join("greeting")), "hello");
    assert_eq!(read(out.join("cmdline")), "frontend-test more words");
    assert_eq!(read(out.join("interfaces")), "lo", "a front end has no network");
    let image = home.image(&["--build-arg", "MODE=build", "--no-cache"], &context);
    assert_eq!(image.config["config"]["Env"][0], "MADE_BY=front end");
    // Its stderr is shown.
    let said = home.build(&["--build-arg", "MODE=build", "-t", "made"], &context).ok();
    said.says(&["the front end was here", "[internal] run frontend-test"]);

    // What it returns as an error arrives with its place; one that just ends is told with its code.
    home.build(&["--build-arg", "MODE=refuse"], &context).fails_with(&[
        "no greeting today",
        "recipe.txt:2",
        "bad line",
    ]);
    home.build(&["--build-arg", "MODE=exit"], &context)
        .fails_with(&["did not complete successfully: exit code: 3", "Dockerfile:1"]);
    home.build(&["--build-arg", "MODE=silent"], &context).fails_with(&["ended without a result"]);

    // BUILDKIT_SYNTAX, and a front end that hands the work to the one built in.
    let syntax = "BUILDKIT_SYNTAX=frontend-test";
    let out = home.tree(&["--build-arg", syntax, "--build-arg", "MODE=forward"], &context.join("plain"));
    assert_eq!(read(out.join("nested")), "built by the nested one\n");

    // One that asks for itself without end is stopped.
    home.build(&["--build-arg", "MODE=nest"], &context).fails_with(&["more than 8 front ends"]);

    // It dies with its build.
    let mut command = home.bud_command(["--progress", "plain", "--build-arg", "MODE=hang"]);
    let mut child = command.arg(&context).process_group(0).spawn().expect("bud starts");
    let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
    assert!(lines.map_while(Result::ok).any(|line| line.contains("waiting for ever")), "it comes to wait");
    assert!(front_ends_run());
    child.kill().expect("bud can be killed");
    child.wait().expect("bud ends");
    wait_until("the front end is gone", || !front_ends_run());
    home.build(&["-t", "x"], &home.dockerfile("FROM scratch\nLABEL a=b\n")).ok();
}

#[test]
fn a_front_end_image_that_is_missing_or_none_is_told_at_its_line() {
    let home = Home::sub();
    let missing = home.dockerfile("# syntax=no-such-frontend\nFROM scratch\n");
    home.build(&["-t", "x"], &missing).fails_with(&["no-such-frontend", "Dockerfile:1"]);
    // An image without an entry point would have to have /run.
    let none = home.dockerfile("# syntax=busybox\nFROM scratch\n");
    home.build(&["-t", "x"], &none).fails_with(&["/run", "Dockerfile:1"]);
    // One that writes something else into the connection.
    home.build(&["-t", "noise"], &home.dockerfile("FROM busybox\nENTRYPOINT [\"/bin/yes\"]\n")).ok();
    let noise = home.dockerfile("# syntax=noise\nFROM scratch\n");
    let mut command = home.command("timeout");
    command.arg("60").arg(crate::harness::bud()).args(["--progress", "plain"]).arg(&noise);
    let ran = run(command);
    assert_ne!(ran.code, Some(124), "a build of noise must end: {ran}");
    ran.fails_with(&["noise"]);
    home.build(&["-t", "x"], &home.dockerfile("FROM scratch\nLABEL a=b\n")).ok();
}

// From here on: the program.

struct Stdio {
    from_daemon: pipe::Receiver,
    to_daemon: pipe::Sender,
}

impl AsyncRead for Stdio {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().from_daemon).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().to_daemon).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().to_daemon).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().to_daemon).poll_shutdown(cx)
    }
}

type Client = LlbBridgeClient<tonic::transport::Channel>;

#[test]
#[ignore = "is the program of a front-end image, not a test"]
fn program() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        // The test runner writes to the usual descriptor; the shell has kept the daemon's as number 3.
        let connection = Stdio {
            from_daemon: pipe::OpenOptions::new().open_receiver("/proc/self/fd/0").unwrap(),
            to_daemon: pipe::OpenOptions::new().open_sender("/proc/self/fd/3").unwrap(),
        };
        let mut connection = Some(hyper_util::rt::TokioIo::new(connection));
        let connector = tower::service_fn(move |_| {
            let connection = connection.take().ok_or_else(|| std::io::Error::other("there is one connection"));
            async { connection }
        });
        let endpoint = tonic::transport::Endpoint::from_static("http://localhost");
        let channel = endpoint.connect_with_connector(connector).await.expect("the daemon answers");
        serve(LlbBridgeClient::new(channel)).await;
    });
}

fn options() -> BTreeMap<String, String> {
    let entries = std::env::vars().filter(|(name, _)| name.starts_with("BUILDKIT_FRONTEND_OPT_"));
    entries.filter_map(|(_, entry)| entry.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned()))).collect()
}

async fn serve(mut client: Client) {
    eprintln!("the front end was here");
    let options = options();
    assert_eq!(std::env::var("FROM_IMAGE").unwrap(), "yes");
    let workers: serde_json::Value = serde_json::from_str(&std::env::var("BUILDKIT_WORKERS").unwrap()).unwrap();
    assert!(workers[0]["platforms"][0]["architecture"].is_string(), "{workers}");
    assert!(std::fs::metadata("/run/config/buildkit/metadata/frontend.bin").unwrap().len() > 0);
    assert!(std::env::var_os("BUILDKIT_SESSION_ID").is_some());
    let pong = client.ping(gateway::PingRequest {}).await.unwrap().into_inner();
    assert!(pong.frontend_api_caps.iter().any(|cap| cap.id == "solve.base"));
    let answer = match options["build-arg:MODE"].as_str() {
        "build" => ReturnRequest { result: Some(build(&mut client, &options).await), error: None },
        "refuse" => ReturnRequest { result: None, error: Some(refusal().to_rpc()) },
        "forward" => ReturnRequest { result: solve(&mut client, "dockerfile.v0", &options).await.ok(), error: None },
        "nest" => match solve(&mut client, "gateway.v0", &options).await {
            Ok(result) => ReturnRequest { result: Some(result), error: None },
            Err(error) => ReturnRequest { result: None, error: Some(BuildError::from_status(&error).to_rpc()) },
        },
        "exit" => std::process::exit(3),
        "silent" => return,
        _ => {
            eprintln!("waiting for ever");
            return std::future::pending().await;
        }
    };
    client.r#return(answer).await.unwrap();
}

fn refusal() -> BuildError {
    let at = |line| Some(pb::Position { line, character: 0 });
    let info = pb::SourceInfo {
        filename: "recipe.txt".into(),
        data: b"good line\nbad line\n".to_vec(),
        ..pb::SourceInfo::default()
    };
    let place = SourcePlace { info: Some(info), ranges: vec![pb::Range { start: at(2), end: at(2) }] };
    BuildError::other("no greeting today").with(Detail::Source(Box::new(place)))
}

async fn solve(
    client: &mut Client,
    frontend: &str,
    options: &BTreeMap<String, String>,
) -> Result<gateway::Result, tonic::Status> {
    let request = SolveRequest {
        frontend: frontend.into(),
        frontend_opt: options.clone().into_iter().collect(),
        allow_result_return: true,
        allow_result_array_ref: true,
        ..SolveRequest::default()
    };
    Ok(client.solve(request).await?.into_inner().result.expect("a result"))
}

fn definition(op: pb::op::Op) -> pb::Definition {
    let op = encode_op(&pb::Op { op: Some(op), ..pb::Op::default() });
    let end = pb::Op { inputs: vec![pb::Input { digest: op_digest(&op), index: 0 }], ..pb::Op::default() };
    pb::Definition { def: vec![op, encode_op(&end)], ..pb::Definition::default() }
}

async fn make(client: &mut Client, op: pb::op::Op) -> gateway::Ref {
    let request = SolveRequest {
        definition: Some(definition(op)),
        allow_result_return: true,
        allow_result_array_ref: true,
        evaluate: true,
        ..SolveRequest::default()
    };
    let result = client.solve(request).await.unwrap().into_inner().result.unwrap();
    match result.result {
        Some(gateway::result::Result::Ref(reference)) => reference,
        other => panic!("not one reference: {other:?}"),
    }
}

async fn build(client: &mut Client, options: &BTreeMap<String, String>) -> gateway::Result {
    let dockerfile = pb::SourceOp {
        identifier: "local://dockerfile".into(),
        attrs: [("local.followpaths".to_owned(), "[\"Dockerfile\"]".to_owned())].into_iter().collect(),
    };
    let source = make(client, pb::op::Op::Source(dockerfile)).await;
    let read = ReadFileRequest { r#ref: source.id, file_path: "Dockerfile".into(), ..ReadFileRequest::default() };
    let text = String::from_utf8(client.read_file(read).await.unwrap().into_inner().data).unwrap();
    let greeting = text.lines().find_map(|l| l.strip_prefix("greeting: ")).expect("the Dockerfile has a greeting");
    let devices = std::fs::read_to_string("/proc/net/dev").unwrap();
    let names: Vec<_> = devices.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    let files = [("/greeting", greeting), ("/cmdline", options["cmdline"].as_str()), ("/interfaces", &names.join(" "))];
    let actions = files.iter().enumerate().map(|(number, (path, data))| pb::FileAction {
        input: i64::try_from(number).unwrap() - 1,
        secondary_input: -1,
        output: if number + 1 == files.len() { 0 } else { -1 },
        action: Some(pb::file_action::Action::Mkfile(pb::FileActionMkFile {
            path: (*path).into(),
            mode: 0o644,
            data: data.as_bytes().to_vec(),
            timestamp: -1,
            ..pb::FileActionMkFile::default()
        })),
    });
    let made = make(client, pb::op::Op::File(pb::FileOp { actions: actions.collect() })).await;
    let stat = StatFileRequest { r#ref: made.id.clone(), path: "/greeting".into(), ..StatFileRequest::default() };
    let stat = client.stat_file(stat).await.unwrap().into_inner().stat.unwrap();
    assert_eq!(usize::try_from(stat.size).unwrap(), greeting.len());
    let list = ReadDirRequest { r#ref: made.id.clone(), dir_path: "/".into(), ..ReadDirRequest::default() };
    assert_eq!(client.read_dir(list).await.unwrap().into_inner().entries.len(), files.len());
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Env": ["MADE_BY=front end"]}, "rootfs": {"type": "layers"}
    });
    gateway::Result {
        result: Some(gateway::result::Result::Ref(made)),
        metadata: [("containerimage.config".to_owned(), config.to_string().into_bytes())].into_iter().collect(),
        ..gateway::Result::default()
    }
}
