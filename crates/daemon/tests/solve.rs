//! Definitions solved by a daemon without sockets: what is found in the cache, and what is refused.
//!
//! Needs what overlay mounts need: root, or a user namespace.

mod support;

use bud_daemon::control::solve::solve;
use bud_daemon::daemon::Daemon;
use bud_daemon::history::BuildRecord;
use bud_protocol::control::SolveRequest;
use bud_protocol::errors::{BuildError, Detail};
use bud_protocol::{llb, pb};
use prost::Message as _;
use std::sync::Arc;
use std::time::{Duration, Instant};
use support::daemon;

/// A definition being written.
#[derive(Default)]
struct Llb(pb::Definition);

impl Llb {
    fn add(&mut self, op: &pb::Op, ignore_cache: bool) -> pb::Input {
        let bytes = llb::encode_op(op);
        let digest = llb::op_digest(&bytes);
        self.0.def.push(bytes);
        self.0.metadata.insert(digest.clone(), pb::OpMetadata { ignore_cache, ..Default::default() });
        pb::Input { digest, index: 0 }
    }

    fn file(&mut self, inputs: Vec<pb::Input>, action: pb::FileAction, ignore_cache: bool) -> pb::Input {
        let op = pb::op::Op::File(pb::FileOp { actions: vec![action] });
        self.add(&pb::Op { inputs, op: Some(op), ..Default::default() }, ignore_cache)
    }

    fn mkfile(&mut self, base: Option<pb::Input>, path: &str, data: &str) -> pb::Input {
        self.mkfile_with(base, path, data, false)
    }

    fn mkfile_with(&mut self, base: Option<pb::Input>, path: &str, data: &str, ignore_cache: bool) -> pb::Input {
        let input = if base.is_some() { 0 } else { -1 };
        let mkfile = pb::FileActionMkFile {
            path: path.into(),
            mode: 0o644,
            data: data.as_bytes().to_vec(),
            timestamp: 0,
            ..Default::default()
        };
        let action = Some(pb::file_action::Action::Mkfile(mkfile));
        let action = pb::FileAction { input, secondary_input: -1, output: 0, action };
        self.file(base.into_iter().collect(), action, ignore_cache)
    }

    fn copy(&mut self, base: pb::Input, from: pb::Input, src: &str, dest: &str) -> pb::Input {
        let copy = pb::FileActionCopy {
            src: src.into(),
            dest: dest.into(),
            mode: -1,
            timestamp: -1,
            create_dest_path: true,
            ..Default::default()
        };
        let action = Some(pb::file_action::Action::Copy(copy));
        self.file(vec![base, from], pb::FileAction { input: 0, secondary_input: 1, output: 0, action }, false)
    }

    fn end(mut self, target: pb::Input) -> pb::Definition {
        self.0.def.push(pb::Op { inputs: vec![target], ..Default::default() }.encode_to_vec());
        self.0
    }
}

async fn build(daemon: &Arc<Daemon>, id: &str, definition: pb::Definition) -> Result<BuildRecord, BuildError> {
    let request = SolveRequest { r#ref: id.into(), definition: Some(definition), ..Default::default() };
    solve(daemon, request).await?;
    Ok(daemon.history.get(id)?.expect("a record"))
}

fn outcomes(record: &BuildRecord) -> Vec<String> {
    let lookups = record.lookups.as_array().expect("a list");
    lookups.iter().map(|l| l["outcome"].as_str().unwrap().to_owned()).collect()
}

fn two_files() -> pb::Definition {
    let mut llb = Llb::default();
    let a = llb.mkfile(None, "/a", "one");
    let b = llb.mkfile(Some(a), "/b", "two");
    llb.end(b)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_build_makes_nothing_even_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let first = daemon(dir.path());
    assert_eq!(outcomes(&build(&first, "1", two_files()).await.unwrap()), ["miss", "miss"]);
    assert_eq!(outcomes(&build(&first, "2", two_files()).await.unwrap()), ["hit", "hit"]);
    drop(first);
    let record = build(&daemon(dir.path()), "3", two_files()).await.unwrap();
    assert_eq!(outcomes(&record), ["hit", "hit"]);
    assert_eq!((record.total, record.cached), (2, 2));
}

/// `/x` is made in one of two ways, copied, and built upon.
fn copied(how: &str) -> pb::Definition {
    let mut llb = Llb::default();
    let aside = llb.mkfile(None, "/other", how);
    let made = llb.mkfile(Some(aside), "/x", "the same");
    let base = llb.mkfile(None, "/base", "base");
    let copy = llb.copy(base, made, "/x", "/y");
    let last = llb.mkfile(Some(copy), "/z", "last");
    llb.end(last)
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_content_stops_a_rebuild() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    build(&daemon, "1", copied("one way")).await.unwrap();
    let mut seen = outcomes(&build(&daemon, "2", copied("another")).await.unwrap());
    seen.sort();
    // Made again: what leads to /x. Found: the base, the copy by what it copies, what stands on the copy.
    assert_eq!(seen, ["hit", "hit", "hit by content", "miss", "miss"]);
    // From now on by definition.
    let seen = outcomes(&build(&daemon, "3", copied("another")).await.unwrap());
    assert!(seen.iter().all(|o| o == "hit"), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_must_not_be_cached_is_made_and_replaces_what_was_there() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let definition = |anew: bool| {
        let mut llb = Llb::default();
        let a = llb.mkfile_with(None, "/a", "one", anew);
        let b = llb.mkfile(Some(a), "/b", "two");
        llb.end(b)
    };
    build(&daemon, "1", definition(false)).await.unwrap();
    assert_eq!(outcomes(&build(&daemon, "2", definition(true)).await.unwrap()), ["not asked", "miss"]);
    assert_eq!(outcomes(&build(&daemon, "3", definition(false)).await.unwrap()), ["hit", "hit"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn equal_steps_of_builds_at_once_run_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let builds = (0..20).map(|n| {
        let daemon = Arc::clone(&daemon);
        tokio::spawn(async move { build(&daemon, &n.to_string(), two_files()).await.map(|_| ()) })
    });
    for build in builds.collect::<Vec<_>>() {
        build.await.unwrap().unwrap();
    }
    let layers = std::fs::read_dir(dir.path().join("layers")).unwrap().count();
    assert_eq!(layers, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_names_its_vertex_and_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let mut llb = Llb::default();
    let base = llb.mkfile(None, "/a", "a");
    let copy = llb.copy(base.clone(), base, "/nope", "/y");
    let range = pb::Range { start: Some(pb::Position { line: 3, character: 0 }), end: None };
    llb.0.source = Some(pb::Source {
        locations: [(
            copy.digest.clone(),
            pb::Locations { locations: vec![pb::Location { source_index: 0, ranges: vec![range] }] },
        )]
        .into(),
        infos: vec![pb::SourceInfo { filename: "Dockerfile".into(), ..Default::default() }],
    });
    let error = build(&daemon, "1", llb.end(copy.clone())).await.unwrap_err();
    assert!(error.message.contains("/nope") && error.message.contains("not found"), "{error}");
    assert!(error.details.contains(&Detail::Vertex(copy.digest)), "{error:?}");
    assert_eq!(error.places().count(), 1);
    assert_eq!(daemon.builds.count(), 0);
    // The daemon goes on.
    build(&daemon, "2", two_files()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn unsound_requests_are_refused_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let began = Instant::now();
    let mut llb = Llb::default();
    let nothing =
        pb::Op { platform: Some(pb::Platform { os: "linux".into(), ..Default::default() }), ..Default::default() };
    let nothing = llb.add(&nothing, false);
    let nil = llb.end(nothing);
    let mut llb = Llb::default();
    let unknown = pb::SourceOp { identifier: "gopher://x".into(), ..Default::default() };
    let unknown = llb.add(&pb::Op { op: Some(pb::op::Op::Source(unknown)), ..Default::default() }, false);
    let scheme = llb.end(unknown);
    for (definition, text) in [(nil, "does nothing"), (scheme, "gopher")] {
        let error = build(&daemon, "1", definition).await.unwrap_err();
        assert_eq!(error.code, tonic::Code::InvalidArgument, "{error}");
        assert!(error.message.contains(text), "{error}");
    }
    let request = |change: fn(&mut SolveRequest)| {
        let mut request = SolveRequest { r#ref: "r".into(), definition: Some(two_files()), ..Default::default() };
        change(&mut request);
        request
    };
    for bad in [
        request(|r| r.r#ref.clear()),
        request(|r| r.definition = Some(pb::Definition::default())),
        request(|r| r.exporter_deprecated = "nope".into()),
        request(|r| r.frontend = "nope".into()),
        request(|r| r.entitlements.push("security.insecure".into())),
    ] {
        // A front end and a definition: the front end counts.
        assert!(solve(&daemon, bad).await.is_err());
    }
    assert!(began.elapsed() < Duration::from_secs(5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_stages_take_linear_time() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let mut llb = Llb::default();
    let mut last = llb.mkfile(None, "/a", "a");
    for _ in 0..60 {
        let op =
            pb::op::Op::Merge(pb::MergeOp { inputs: vec![pb::MergeInput { input: 0 }, pb::MergeInput { input: 1 }] });
        last = llb.add(&pb::Op { inputs: vec![last.clone(), last.clone()], op: Some(op), ..Default::default() }, false);
    }
    let record = build(&daemon, "1", llb.end(last)).await.unwrap();
    assert_eq!(record.total, 61);
}
