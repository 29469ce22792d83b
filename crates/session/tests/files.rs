//! File trees between both ends, and hostile peers on either side.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use bud_protocol::fsutil::packet::PacketType;
use bud_protocol::fsutil::{Packet, Stat};
use bud_session::client::{ExportTarget, FileSink, FileTarget, LocalDir, TarFile};
use bud_session::daemon::DirRequest;
use bud_session::fsutil::{Differ, Part, ReceiveOptions, Received, TreeSource, receive};
use bud_session::{Attachables, SessionError};
use bytes::Bytes;
use support::{Pair, open, pair};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

fn write(path: &Path, data: impl AsRef<[u8]>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, data).unwrap();
}

/// All entries below `root`: path, kind and mode, size or target.
fn listing(root: &Path) -> Vec<String> {
    fn go(root: &Path, dir: &Path, out: &mut Vec<String>) {
        let mut entries: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = path.symlink_metadata().unwrap();
            let name = path.strip_prefix(root).unwrap().display().to_string();
            let kind = meta.file_type();
            out.push(if kind.is_symlink() {
                format!("{name} -> {}", std::fs::read_link(&path).unwrap().display())
            } else if kind.is_dir() {
                format!("{name}/ {:o}", meta.mode() & 0o7777)
            } else {
                format!("{name} {:o} {}", meta.mode() & 0o7777, meta.len())
            });
            if kind.is_dir() {
                go(root, &path, out);
            }
        }
    }
    let mut out = Vec::new();
    go(root, root, &mut out);
    out
}

async fn share(context: &Path) -> Pair {
    pair(Attachables {
        locals: BTreeMap::from([("context".to_owned(), LocalDir::open(context).unwrap())]),
        ..Attachables::default()
    })
    .await
}

/// As a client's owner is 0 on the wire, tests that are not root take over what comes as their own.
fn options() -> ReceiveOptions {
    ReceiveOptions { owner: bud_session::fsutil::Owner::Writer, ..ReceiveOptions::default() }
}

async fn copy(pair: &Pair, dest: &Path, request: DirRequest) -> Result<Received, SessionError> {
    pair.session.diff_copy(&request, open(dest), options()).await
}

fn request() -> DirRequest {
    DirRequest { name: "context".to_owned(), ..DirRequest::default() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[tokio::test]
async fn a_tree_comes_over_whole_and_then_only_what_changed() {
    let (context, dest) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = context.path();
    write(&root.join("a/x"), "1");
    write(&root.join("a-b"), vec![7; 300_000]);
    write(&root.join("a.txt"), "");
    write(&root.join("bin/run"), "#!");
    std::fs::set_permissions(root.join("bin/run"), PermissionsExt::from_mode(0o4755)).unwrap();
    std::fs::hard_link(root.join("bin/run"), root.join("bin/walk")).unwrap();
    symlink("../../outside", root.join("bin/link")).unwrap();
    std::fs::create_dir_all(root.join("empty/deep")).unwrap();
    std::fs::set_permissions(root.join("empty/deep"), PermissionsExt::from_mode(0o1777)).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, root.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
    for i in 0..500 {
        write(&root.join(format!("many/{i}")), format!("{i}"));
    }
    let pair = share(root).await;
    let first = copy(&pair, dest.path(), request()).await.unwrap();
    let mut want = listing(root);
    want.retain(|line| !line.starts_with("socket"));
    assert_eq!(listing(dest.path()), want);
    let meta = |path: &str| dest.path().join(path).symlink_metadata().unwrap();
    assert_eq!(meta("bin/run").ino(), meta("bin/walk").ino());
    for path in ["a", "a/x", "bin/link", "many", "empty/deep"] {
        let source = root.join(path).symlink_metadata().unwrap();
        assert_eq!((meta(path).mtime(), meta(path).mtime_nsec()), (source.mtime(), source.mtime_nsec()), "{path}");
    }
    assert!(first.bytes > 300_000 && first.entries > 500);

    let second = copy(&pair, dest.path(), request()).await.unwrap();
    assert_eq!((second.changed, second.removed, second.bytes), (0, 0, 0));

    std::fs::remove_dir_all(root.join("many")).unwrap();
    std::fs::remove_file(root.join("a/x")).unwrap();
    std::fs::create_dir(root.join("a/x")).unwrap();
    write(&root.join("a/x/y"), "now below");
    std::fs::remove_dir_all(root.join("empty")).unwrap();
    write(&root.join("empty"), "a file");
    std::fs::remove_file(root.join("bin/link")).unwrap();
    symlink("other", root.join("bin/link")).unwrap();
    write(&root.join("a-b"), vec![8; 300_000]);
    let third = copy(&pair, dest.path(), request()).await.unwrap();
    let mut want = listing(root);
    want.retain(|line| !line.starts_with("socket"));
    assert_eq!(listing(dest.path()), want);
    assert_eq!(std::fs::read(dest.path().join("a-b")).unwrap(), vec![8; 300_000]);
    assert_eq!(third.removed, 1, "many, as a whole");

    let all = ReceiveOptions { differ: Differ::None, ..options() };
    let fourth = pair.session.diff_copy(&request(), open(dest.path()), all).await.unwrap();
    assert!(fourth.bytes > 300_000);
}

#[tokio::test]
async fn patterns_and_followed_links_select() {
    let (context, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = context.path();
    write(&outside.path().join("secret"), "no");
    write(&root.join("src/main"), "m");
    write(&root.join("src/x.log"), "l");
    write(&root.join("docs/README"), "r");
    write(&root.join("docs/other"), "o");
    write(&root.join("conf/real"), "c");
    write(&root.join("grüß dich"), "non-ASCII");
    symlink("conf/real", root.join("link")).unwrap();
    symlink(outside.path(), root.join("out")).unwrap();
    symlink("../../..", root.join("conf/up")).unwrap();
    let pair = share(root).await;
    let names = async |request: DirRequest| {
        let dest = tempfile::tempdir().unwrap();
        copy(&pair, dest.path(), request).await.unwrap();
        let names: Vec<String> =
            listing(dest.path()).iter().map(|line| line.split(' ').next().unwrap().to_owned()).collect();
        names.join(" ")
    };
    let excluded = DirRequest { exclude: words(&["docs", "!docs/README", "**/*.log", "out", "gr*"]), ..request() };
    assert_eq!(names(excluded).await, "conf/ conf/real conf/up docs/ docs/README link src/ src/main");
    let included = DirRequest { include: words(&["src", "grüß*"]), ..request() };
    assert_eq!(names(included).await, "grüß src/ src/main src/x.log");
    let followed = DirRequest { follow: words(&["link", "missing"]), ..request() };
    assert_eq!(names(followed).await, "conf/ conf/real link");
    // The link out of the context is sent as the link that it is; what it leads to is never looked at.
    let out = DirRequest { follow: words(&["out/secret"]), ..request() };
    assert_eq!(names(out).await, "out");
    let everything = DirRequest { follow: words(&["conf/up"]), ..request() };
    assert_eq!(names(everything).await.split(' ').filter(|name| *name == "link").count(), 1);
}

#[tokio::test]
async fn a_hostile_daemon_gets_nothing_that_was_not_shared() {
    let context = tempfile::tempdir().unwrap();
    write(&context.path().join("in/x"), "1");
    let pair = share(&context.path().join("in")).await;
    let dest = tempfile::tempdir().unwrap();
    let refused = async |request: DirRequest| copy(&pair, dest.path(), request).await.unwrap_err();
    let undeclared = refused(DirRequest { name: "/etc".to_owned(), ..request() }).await;
    assert!(undeclared.is_not_found() && undeclared.to_string().contains("no access allowed"), "{undeclared}");
    for follow in ["../..", "../in", "x/../../y", ".."] {
        let error = refused(DirRequest { follow: words(&[follow]), ..request() }).await;
        assert!(error.to_string().contains("leads out"), "{follow}: {error}");
    }
    let error = refused(DirRequest { include: words(&["../*"]), ..request() }).await;
    assert!(error.to_string().contains("leads out"), "{error}");
    let error = refused(DirRequest { exclude: words(&["a["]), ..request() }).await;
    assert!(error.to_string().contains("bad pattern \"a[\""), "{error}");
    assert!(listing(dest.path()).is_empty());
}

#[tokio::test]
async fn an_unreadable_file_is_an_error_that_names_it() {
    let context = tempfile::tempdir().unwrap();
    write(&context.path().join("d/ok"), "1");
    let name = <std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"d/bad-\xff");
    write(&context.path().join(name), "1");
    let pair = share(context.path()).await;
    let dest = tempfile::tempdir().unwrap();
    let error = copy(&pair, dest.path(), request()).await.unwrap_err().to_string();
    assert!(error.contains("d/bad-") && error.contains("UTF-8"), "{error}");
    let excluded = DirRequest { exclude: words(&["d/bad*"]), ..request() };
    copy(&pair, dest.path(), excluded).await.unwrap();
}

#[tokio::test]
async fn limits_and_progress() {
    let context = tempfile::tempdir().unwrap();
    write(&context.path().join("x"), vec![1; 1_000_000]);
    let pair = share(context.path()).await;
    let dest = tempfile::tempdir().unwrap();
    let small = ReceiveOptions { max_bytes: 999_999, ..options() };
    let error = pair.session.diff_copy(&request(), open(dest.path()), small).await.unwrap_err();
    assert!(error.to_string().contains("more than 999999 bytes"), "{error}");
    let seen = Arc::new(AtomicU64::new(0));
    let told = seen.clone();
    let progress =
        ReceiveOptions { progress: Some(Arc::new(move |bytes| told.store(bytes, Ordering::SeqCst))), ..options() };
    pair.session.diff_copy(&request(), open(dest.path()), progress).await.unwrap();
    assert_eq!(seen.load(Ordering::SeqCst), 1_000_000);
}

/// What a hostile or broken sender does.
enum Move {
    Stat(Stat),
    End,
    Data(u32, usize),
    Fin,
}

fn file(path: &str, size: i64) -> Move {
    Move::Stat(Stat { path: path.to_owned(), mode: 0o644, size, ..Stat::default() })
}

fn dir(path: &str) -> Move {
    Move::Stat(Stat { path: path.to_owned(), mode: 1 << 31 | 0o755, ..Stat::default() })
}

fn link(path: &str, target: &str, mode: u32) -> Move {
    Move::Stat(Stat { path: path.to_owned(), mode, linkname: target.to_owned(), ..Stat::default() })
}

/// Receives from a sender that makes these moves whatever it is asked, and then waits.
async fn receive_from(dest: &Path, moves: Vec<Move>) -> Result<Received, SessionError> {
    let (packets, inbound) = mpsc::channel(1);
    let (outbound, mut requests) = mpsc::channel(32);
    tokio::spawn(async move { while requests.recv().await.is_some() {} });
    let sender = tokio::spawn(async move {
        for action in moves {
            let packet = |kind: PacketType| Packet { r#type: kind as i32, ..Packet::default() };
            let packet = match action {
                Move::Stat(stat) => Packet { stat: Some(stat), ..packet(PacketType::PacketStat) },
                Move::End => packet(PacketType::PacketStat),
                Move::Data(id, size) => {
                    let data = Bytes::from(vec![1; size]);
                    Packet { id, data, ..packet(PacketType::PacketData) }
                }
                Move::Fin => packet(PacketType::PacketFin),
            };
            let last = packet.r#type == PacketType::PacketFin as i32;
            if packets.send(Ok(packet)).await.is_err() || last {
                return;
            }
        }
        packets.closed().await;
    });
    let received = receive(open(dest), ReceiverStream::new(inbound), outbound, options());
    let received = tokio::time::timeout(std::time::Duration::from_secs(10), received).await;
    sender.abort();
    received.expect("the transfer hangs")
}

#[tokio::test]
async fn a_hostile_sender_is_refused_and_writes_nothing_elsewhere() {
    const LINK: u32 = 1 << 27 | 0o777;
    let cases: Vec<(&str, Vec<Move>)> = vec![
        ("not a clean path", vec![file("../x", 0)]),
        ("not a relative path", vec![file("/x", 0)]),
        ("not a clean path", vec![dir("a"), file("a/../../x", 0)]),
        ("out of order", vec![file("b", 0), file("a", 0)]),
        ("out of order", vec![file("a", 0), file("a", 0)]),
        ("not listed before", vec![file("a/b", 0)]),
        ("not listed before", vec![link("a", "/tmp", LINK), file("a/b", 0)]),
        ("not listed before it", vec![link("a", "../outside", 0o644)]),
        ("not listed before it", vec![link("b", "/etc/passwd", 0o644)]),
        ("not listed before it", vec![link("a", "/tmp", LINK), link("b", "a", 0o644)]),
        ("symlink to nothing", vec![link("a", "", LINK)]),
        ("negative size", vec![file("a", -1)]),
        ("no kind of file", vec![Move::Stat(Stat { path: "s".into(), mode: 1 << 24, ..Stat::default() })]),
        ("more than the 3 bytes", vec![file("a", 3), Move::Data(0, 2), Move::Data(0, 2)]),
        ("2 of 3 bytes came", vec![file("a", 3), Move::End, Move::Data(0, 2), Move::Data(0, 0)]),
        ("not asked for", vec![file("a", 3), Move::Data(1, 2)]),
        ("not asked for", vec![dir("a"), Move::Data(0, 2)]),
        ("after the end", vec![Move::End, file("a", 3)]),
        ("broke the protocol", vec![file("a", 3), Move::Fin]),
    ];
    for (i, (want, moves)) in cases.into_iter().enumerate() {
        let base = tempfile::tempdir().unwrap();
        let dest = base.path().join("dest");
        std::fs::create_dir(&dest).unwrap();
        write(&base.path().join("outside"), "untouched");
        let error = receive_from(&dest, moves).await.unwrap_err().to_string();
        assert!(error.contains(want), "case {i}: {error}");
        assert_eq!(std::fs::read_dir(base.path()).unwrap().count(), 2, "case {i}");
        assert!(!listing(&dest).iter().any(|line| line.contains(".bud-")), "case {i}: {:?}", listing(&dest));
    }
}

#[tokio::test]
async fn links_in_the_destination_are_replaced_not_followed() {
    let base = tempfile::tempdir().unwrap();
    let (dest, outside) = (base.path().join("dest"), base.path().join("outside"));
    std::fs::create_dir_all(&dest).unwrap();
    write(&outside.join("keep"), "untouched");
    symlink(&outside, dest.join("d")).unwrap();
    symlink(outside.join("keep"), dest.join("f")).unwrap();
    symlink(&outside, dest.join("gone")).unwrap();
    let moves = vec![
        dir("d"),
        file("d/keep", 2),
        file("f", 2),
        Move::End,
        Move::Data(1, 2),
        Move::Data(1, 0),
        Move::Data(2, 2),
        Move::Data(2, 0),
        Move::Fin,
    ];
    receive_from(&dest, moves).await.unwrap();
    assert_eq!(std::fs::read(outside.join("keep")).unwrap(), b"untouched");
    assert_eq!(listing(&dest), ["d/ 755", "d/keep 644 2", "f 644 2"]);
}

async fn export(target: ExportTarget) -> Pair {
    pair(Attachables { exports: BTreeMap::from([(3, target)]), ..Attachables::default() }).await
}

#[tokio::test]
async fn a_file_is_there_when_it_is_complete_and_never_before() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.tar");
    let pair = export(ExportTarget::File(Arc::new(TarFile(path.clone())))).await;
    std::fs::write(&path, "old").unwrap();

    let mut cut = pair.session.send_file(3, &BTreeMap::new()).unwrap();
    cut.write(Bytes::from(vec![1; 100_000])).await.unwrap();
    drop(cut);
    for _ in 0..100 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        if listing(dir.path()).len() == 1 {
            break;
        }
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"old");
    assert_eq!(listing(dir.path()).len(), 1, "nothing is left of what was cut off");

    let upload = pair.session.send_file(3, &BTreeMap::new()).unwrap();
    let done = tokio::task::spawn_blocking(move || {
        let mut writer = upload.into_blocking();
        for _ in 0..50 {
            writer.write_all(&[5; 100_001]).unwrap();
        }
        writer.finish()
    });
    done.await.unwrap().unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), vec![5; 5_000_050]);
    let error = pair.session.send_file(1, &BTreeMap::new()).unwrap().finish().await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
}

#[derive(Default)]
struct Unwanted(Mutex<BTreeMap<String, String>>);

impl FileTarget for Unwanted {
    fn open(&self, metadata: &BTreeMap<String, String>) -> std::io::Result<Option<Box<dyn FileSink>>> {
        self.0.lock().unwrap().clone_from(metadata);
        Ok(None)
    }
}

#[tokio::test]
async fn a_client_sees_what_comes_and_may_decline() {
    let target = Arc::new(Unwanted::default());
    let pair = export(ExportTarget::File(target.clone())).await;
    let metadata = BTreeMap::from([("containerimage.digest".to_owned(), "sha256:abc".to_owned())]);
    let upload = pair.session.send_file(3, &metadata).unwrap();
    assert!(upload.finish().await.unwrap_err().is_already_exists());
    assert_eq!(*target.0.lock().unwrap(), metadata);
}

#[tokio::test]
async fn a_tree_is_exported_into_a_directory() {
    let base = tempfile::tempdir().unwrap();
    let (tree, outside) = (base.path().join("tree"), base.path().join("outside"));
    write(&tree.join("etc/conf"), "new");
    write(&tree.join("bin/tool"), "t");
    symlink("/etc/passwd", tree.join("etc/passwd")).unwrap();
    write(&outside.join("conf"), "untouched");
    for delete in [false, true] {
        let dest = base.path().join(format!("dest-{delete}"));
        write(&dest.join("own"), "the user's");
        write(&dest.join("bin/old"), "the user's");
        symlink(&outside, dest.join("etc")).unwrap();
        let pair = export(ExportTarget::Directory { path: dest.clone(), delete }).await;
        pair.session.send_tree(3, TreeSource::whole(open(&tree)), None).await.unwrap();
        let mut want = vec!["bin/ 755", "bin/tool 644 1", "etc/ 755", "etc/conf 644 3", "etc/passwd -> /etc/passwd"];
        if !delete {
            want.insert(1, "bin/old 644 10");
            want.push("own 644 10");
        }
        assert_eq!(listing(&dest), want, "delete: {delete}");
        assert_eq!(std::fs::read(outside.join("conf")).unwrap(), b"untouched");
    }
}

#[tokio::test]
async fn several_trees_are_exported_side_by_side() {
    let base = tempfile::tempdir().unwrap();
    write(&base.path().join("one/x"), "1");
    write(&base.path().join("two/y"), "22");
    let dest = base.path().join("new/dest");
    let pair = export(ExportTarget::Directory { path: dest.clone(), delete: false }).await;
    let part = |prefix: &str, dir: &str| Part { prefix: prefix.to_owned(), root: open(&base.path().join(dir)) };
    let source = TreeSource {
        parts: vec![part("linux_arm64", "two"), part("linux_amd64", "one")],
        clamp_time: Some(1000),
        ..TreeSource::whole(open(base.path()))
    };
    pair.session.send_tree(3, source, None).await.unwrap();
    assert_eq!(listing(&dest), ["linux_amd64/ 755", "linux_amd64/x 644 1", "linux_arm64/ 755", "linux_arm64/y 644 2"]);
    assert_eq!(dest.join("linux_arm64/y").metadata().unwrap().mtime(), 1000);
    assert_eq!(base.path().join("new").metadata().unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn an_output_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("file"), "x");
    let target = ExportTarget::File(Arc::new(TarFile(dir.path().join("file/out.tar"))));
    let pair = export(target).await;
    let error = pair.session.send_file(3, &BTreeMap::new()).unwrap().finish().await.unwrap_err();
    assert!(error.to_string().contains("opening the output"), "{error}");
}

#[tokio::test]
async fn a_transfer_that_is_given_up_lets_go_of_its_destination_when_it_writes_no_more() {
    let dest = tempfile::tempdir().unwrap();
    let (packets, inbound) = mpsc::channel(1);
    let (outbound, mut requests) = mpsc::channel(32);
    let guard = Arc::new(());
    let held: Arc<dyn std::any::Any + Send + Sync> = guard.clone();
    let options = ReceiveOptions { guard: Some(held), ..options() };
    let transfer = tokio::spawn(receive(open(dest.path()), ReceiverStream::new(inbound), outbound, options));
    let Move::Stat(stat) = file("half", 10) else { unreachable!() };
    packets.send(Ok(Packet { stat: Some(stat), ..Packet::default() })).await.unwrap();
    requests.recv().await.unwrap().unwrap();
    assert_eq!(Arc::strong_count(&guard), 2);
    transfer.abort();
    for _ in 0..200 {
        if Arc::strong_count(&guard) == 1 {
            assert!(listing(dest.path()).is_empty(), "nothing half-written is left");
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the destination is held for good");
}
