//! File operations as the reference has them, seen through the mounted overlay.

use super::*;
use crate::context::{ContextOptions, ContextTree};
use crate::snapshot::Snapshot;
use crate::testing::{Fixture, fill};
use crate::tree::{Source, Tree};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

fn context(dir: &Path) -> ContextTree {
    ContextTree::open(std::fs::File::open(dir).unwrap().into(), &ContextOptions::default()).unwrap()
}

fn cp(src: &str, dest: &str) -> Copy {
    Copy {
        src: src.into(),
        dest: dest.into(),
        create_dest_path: true,
        allow_wildcard: true,
        follow_symlink: true,
        dir_copy_contents: true,
        ..Copy::default()
    }
}

/// Copies from a tree with the first files to a layer above one with the second; returns the union, or the error.
fn copied(source: &[&str], below: &[&str], copy: &Copy) -> Result<Vec<String>, String> {
    let mut fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    std::fs::create_dir(&from).unwrap();
    fill(&from, source);
    let run = |fixture: &mut Fixture, parent: &Snapshot, in_context: bool| -> Result<Vec<String>, String> {
        let draft = fixture.store.draft(parent).unwrap();
        let result = if in_context {
            super::copy(&draft, Source::Context(&context(&from)), copy, &())
        } else {
            super::copy(&draft, Source::Tree(&Tree::of_directory(&from).unwrap()), copy, &())
        };
        result.map_err(|e| e.to_string())?;
        let before = fixture.list_draft(&draft);
        let snapshot = fixture.commit(draft);
        assert_eq!(before, fixture.list(&snapshot));
        Ok(before)
    };
    let parent = if below.is_empty() { Snapshot::scratch() } else { fixture.layer(&Snapshot::scratch(), below) };
    let one = run(&mut fixture, &parent, true);
    let two = run(&mut fixture, &parent, false);
    assert_eq!(one, two, "from a context, and from a tree");
    one
}

#[track_caller]
fn check(source: &[&str], below: &[&str], copy: &Copy, expected: &[&str]) {
    assert_eq!(copied(source, below, copy).unwrap(), expected);
}

#[test]
fn files_and_directories_land_where_the_reference_puts_them() {
    // A file to a new name, to a directory that is there, to one that is said to be one.
    check(&["f=1"], &[], &cp("/f", "/g"), &["g=1"]);
    check(&["f=1"], &["d/"], &cp("/f", "/d"), &["d/", "d/f=1"]);
    check(&["f=1"], &[], &cp("/f", "/d/"), &["d/", "d/f=1"]);
    check(&["f=1"], &[], &cp("f", "/a/b/c"), &["a/", "a/b/", "a/b/c=1"]);
    // testEmptyDestDir, testCopyWildcards: `.` and `dir/.` mean the contents.
    check(&["d/f=1"], &[], &cp("/d", "/x/"), &["x/", "x/f=1"]);
    check(&["d/f=1"], &[], &cp("/d/.", "/x"), &["x/", "x/f=1"]);
    check(&["d/f=1"], &["y=2"], &cp("/", "/"), &["d/", "d/f=1", "y=2"]);
    // Without dir_copy_contents the directory itself goes into one that is there.
    let whole = Copy { dir_copy_contents: false, ..cp("/d", "/x") };
    check(&["d/f=1"], &["x/"], &whole, &["x/", "x/d/", "x/d/f=1"]);
    check(&["d/f=1"], &[], &whole, &["x/", "x/f=1"]);
}

#[test]
fn wildcards_match_by_component() {
    let src = &["a.go=1", "b.go=2", "c.txt=3", "sub/x/dir2/foo=4", "sub/y/dir2/foo2=5"];
    check(src, &[], &cp("/*.go", "/d/"), &["d/", "d/a.go=1", "d/b.go=2"]);
    check(src, &[], &cp("/sub/*/dir2/foo", "/d/"), &["d/", "d/foo=4"]);
    check(&["sub/dir/f=1"], &[], &cp("/sub/*", "/d"), &["d/", "d/f=1"]);
    assert!(copied(src, &[], &cp("/*.none", "/d/")).unwrap_err().contains("not found"));
    let empty_is_fine = Copy { allow_empty_wildcard: true, ..cp("/*.none", "/d/") };
    check(src, &["z=0"], &empty_is_fine, &["z=0"]);
    assert!(copied(src, &[], &cp("/nothing", "/d/")).unwrap_err().contains("\"/nothing\": not found"));
}

/// testFileOpCopyIncludeExclude, testExcludedFilesOnCopy.
#[test]
fn patterns_select_within_the_source() {
    let src = &["sub/foo=1", "sub/bar=2", "other=3", "deep/a/b/c=4", "deep/a/d=5"];
    let patterns = |include: &[&str], exclude: &[&str]| Copy {
        include_patterns: include.iter().map(ToString::to_string).collect(),
        exclude_patterns: exclude.iter().map(ToString::to_string).collect(),
        ..cp("/", "/")
    };
    check(src, &[], &patterns(&["sub/*"], &["sub/bar"]), &["sub/", "sub/foo=1"]);
    check(src, &[], &patterns(&["deep/*/b/c"], &[]), &["deep/", "deep/a/", "deep/a/b/", "deep/a/b/c=4"]);
    check(src, &["k=1"], &patterns(&[], &["*"]), &["k=1"]);
    check(src, &[], &patterns(&[], &["*", "!sub/foo"]), &["sub/", "sub/foo=1"]);
}

/// testCopySymlinks, testCopyThroughSymlinkMultiStage.
#[test]
fn links_of_the_source_are_followed_inside_it() {
    let src = &["l1->second", "second->baz", "baz=1", "abs->/out/sub", "out/sub/foo=2", "esc->../../../etc"];
    check(src, &[], &cp("/l*", "/d/"), &["d/", "d/l1=1"]);
    check(src, &[], &cp("/abs/foo", "/d/"), &["d/", "d/foo=2"]);
    // S11, S13: never out.
    assert!(copied(src, &[], &cp("/esc/passwd", "/d/")).unwrap_err().contains("not found"));
    // In a tree that is copied, links stay links.
    check(&["l->f", "f=1"], &[], &cp("/", "/"), &["f=1", "l->f"]);
    let unfollowed = Copy { follow_symlink: false, allow_wildcard: false, ..cp("/l1", "/x") };
    check(src, &[], &unfollowed, &["x->second"]);
    assert!(copied(&["a->b", "b->a"], &[], &cp("/a", "/d")).is_err());
}

/// S13, testSymlinkDestination.
#[test]
fn links_of_the_destination_are_followed_inside_it() {
    let canary = tempfile::tempdir().unwrap();
    let outside = format!("dst->{}", "../".repeat(20) + &canary.path().to_string_lossy()[1..]);
    let listed = copied(&["f=1"], &[&outside], &cp("/f", "/dst/")).unwrap();
    assert!(listed.iter().any(|l| l.ends_with("/f=1")), "{listed:?}");
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 0);
    check(
        &["f=1"],
        &["s/l->../tmp/target", "tmp/"],
        &cp("/f", "/s/l/"),
        &["s/", "s/l->../tmp/target", "tmp/", "tmp/target/", "tmp/target/f=1"],
    );
    check(&["f=1"], &["real/", "lnk->/real"], &cp("/f", "/lnk/x"), &["lnk->/real", "real/", "real/x=1"]);
    // The file that a link at the end points to is replaced.
    check(&["f=1"], &["t=0", "lnk->t"], &cp("/f", "/lnk"), &["lnk->t", "t=1"]);
}

/// testCopyOverrideFiles, testFileOpCopyAlwaysReplaceExistingDestPaths.
#[test]
fn what_is_there_is_merged_or_replaced() {
    check(
        &["d/f=new", "d/e/g=1"],
        &["d/f=old", "d/keep=2", "d/e/h=3"],
        &cp("/", "/"),
        &["d/", "d/e/", "d/e/g=1", "d/e/h=3", "d/f=new", "d/keep=2"],
    );
    assert!(copied(&["x=1"], &["d/x/f=2"], &cp("/x", "/d")).unwrap_err().contains("cannot replace to directory"));
    assert!(copied(&["d/x/f=1"], &["d/x=2"], &cp("/", "/")).unwrap_err().contains("cannot copy to non-directory"));
    let replace = |src: &str, dest: &str| Copy { always_replace_existing_dest_paths: true, ..cp(src, dest) };
    check(&["d/x=1"], &["d/x/f=2", "d/k=3"], &replace("/", "/"), &["d/", "d/k=3", "d/x=1"]);
    check(&["d/x/f=1"], &["d/x=2"], &replace("/", "/"), &["d/", "d/x/", "d/x/f=1"]);
    check(
        &["d/x/f=1"],
        &["d/x->/elsewhere", "elsewhere/k=1"],
        &replace("/", "/"),
        &["d/", "d/x/", "d/x/f=1", "elsewhere/", "elsewhere/k=1"],
    );
}

/// testCopyChownExistingDir, testCopyChmod, testFileOpCopyUIDCache.
#[test]
fn owners_and_modes_are_those_asked_for() {
    let owner = Some(Owner { uid: 300, gid: 400 });
    let chown = Copy { owner, ..cp("/d", "/new") };
    check(&["d/f=1 600"], &[], &chown, &["new/ 300:400", "new/f=1 600 300:400"]);
    let chown = Copy { owner, ..cp("/d", "/old") };
    check(&["d/f=1"], &["old/ 700", "old/k=2"], &chown, &["old/ 700", "old/f=1 300:400", "old/k=2"]);
    let chmod = |mode| Copy { mode: Some(mode), ..cp("/f", "/a/b") };
    check(&["f=1"], &[], &chmod(ModeChange::Bits(0o777)), &["a/ 777", "a/b=1 777"]);
    check(&["f=1"], &[], &chmod(ModeChange::Bits(0)), &["a/ 0", "a/b=1 0"]);
    check(&["f=1 600"], &[], &chmod(ModeChange::Symbolic("go=u".into())), &["a/", "a/b=1 666"]);
    assert!(copied(&["f=1"], &[], &chmod(ModeChange::Bits(0o177_777))).unwrap_err().contains("07777"));
    check(&["f=1 4755"], &[], &cp("/f", "/g"), &["g=1 4755"]);
}

#[test]
fn hard_links_times_and_attributes_are_kept() {
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["d/a=1", "d/b~d/a", "d/e/c~d/a"]);
    rustix::fs::setxattr(from.join("d/a"), "user.note", b"x", rustix::fs::XattrFlags::empty()).unwrap();
    let time = std::time::UNIX_EPOCH + std::time::Duration::from_nanos(1_234_567_890_123_456_789);
    for path in ["d/a", "d"] {
        std::fs::File::open(from.join(path)).unwrap().set_modified(time).unwrap();
    }
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    let stats = super::copy(&draft, Source::Context(&context(&from)), &cp("/d", "/x"), &()).unwrap();
    assert_eq!(stats, Stats { files: 4, bytes: 1 });
    let meta = |p: &str| std::fs::metadata(draft.upper().join(p)).unwrap();
    assert_eq!(meta("x/a").ino(), meta("x/b").ino());
    assert_eq!(meta("x/a").ino(), meta("x/e/c").ino());
    assert_eq!(meta("x/a").modified().unwrap(), time);
    assert_eq!(meta("x").modified().unwrap(), time);
    let mut value = [0; 8];
    assert_eq!(rustix::fs::getxattr(draft.upper().join("x/a"), "user.note", &mut value), Ok(1));
    let stamped = Copy { timestamp: Some(-1_500_000_000), ..cp("/d", "/y") };
    super::copy(&draft, Source::Context(&context(&from)), &stamped, &()).unwrap();
    assert_eq!((meta("y/a").mtime(), meta("y/a").mtime_nsec()), (-2, 500_000_000));
    assert_eq!(meta("y/e").mtime(), -2);
}

/// testCopySocket, S12: nothing hangs.
#[test]
fn special_files_of_a_context_do_no_harm() {
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["f=1"]);
    let _socket = std::os::unix::net::UnixListener::bind(from.join("sock")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    let tree = context(&from);
    super::copy(&draft, Source::Context(&tree), &cp("/", "/"), &()).unwrap();
    let listed = fixture.list_draft(&draft);
    assert_eq!(listed[0], "f=1");
    assert!(listed[1].starts_with("sock="), "{listed:?}");
    assert_eq!(listed.len(), 2);
    assert!(tree.read_file(b"fifo", 100).is_err());
}

/// S12: what is stored is what was listed.
#[test]
fn a_file_that_changes_ends_the_copy() {
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["f=1", "g=2", "d/h=3"]);
    let tree = context(&from);
    std::fs::write(from.join("f"), "longer").unwrap();
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    let error = super::copy(&draft, Source::Context(&tree), &cp("/f", "/"), &()).unwrap_err();
    assert!(matches!(&error, FileOpError::Changed { path } if path == "/f"), "{error}");
    std::fs::remove_file(from.join("g")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", from.join("g")).unwrap();
    let error = super::copy(&draft, Source::Context(&tree), &cp("/g", "/"), &()).unwrap_err();
    assert!(matches!(&error, FileOpError::Changed { .. }), "{error}");
    // S11: a directory that becomes a link out.
    std::fs::rename(from.join("d"), from.join("d2")).unwrap();
    std::os::unix::fs::symlink("/etc", from.join("d")).unwrap();
    let error = super::copy(&draft, Source::Context(&tree), &cp("/", "/"), &()).unwrap_err();
    assert!(matches!(&error, FileOpError::Changed { .. }), "{error}");
}

#[test]
fn mkdir_mkfile_symlink_act_like_the_reference() {
    let mut fixture = Fixture::new();
    let base = fixture.layer(&Snapshot::scratch(), &["old/ 700", "f=1 600"]);
    let draft = fixture.store.draft(&base).unwrap();
    let owner = Some(Owner { uid: 7777, gid: 8888 });
    let dir = |path: &str, make_parents| Mkdir { path: path.into(), mode: 0o750, make_parents, owner, timestamp: None };
    mkdir(&draft, &dir("/a/b", true)).unwrap();
    assert!(mkdir(&draft, &dir("/x/y", false)).is_err());
    mkdir(&draft, &dir("/old", false)).unwrap();
    mkdir(&draft, &dir("/", true)).unwrap();
    assert!(mkdir(&draft, &dir("/f", false)).is_err());
    let file = |path: &str| Mkfile {
        path: path.into(),
        mode: 0o640,
        data: b"hi".to_vec(),
        owner,
        timestamp: Some(5_000_000_000),
    };
    mkfile(&draft, &file("bar")).unwrap();
    mkfile(&draft, &file("/f")).unwrap();
    assert!(mkfile(&draft, &file("/missing/bar")).is_err());
    assert!(mkfile(&draft, &file("/old")).is_err());
    let link = Symlink { old_path: "/bar".into(), new_path: "/old/l".into(), owner, timestamp: Some(5_000_000_000) };
    symlink(&draft, &link).unwrap();
    assert!(symlink(&draft, &link).is_err());
    assert_eq!(
        fixture.list_draft(&draft),
        [
            "a/ 750 7777:8888",
            "a/b/ 750 7777:8888",
            "bar=hi 640 7777:8888",
            "f=hi 600 7777:8888",
            "old/ 700",
            "old/l->/bar 7777:8888",
        ]
    );
    assert_eq!(std::fs::symlink_metadata(draft.upper().join("old/l")).unwrap().mtime(), 5);
}

/// testFileOpRmWildcard, testRmSymlink, P06.
#[test]
fn rm_removes_inside_the_root_alone() {
    let mut fixture = Fixture::new();
    let base = fixture.layer(
        &Snapshot::scratch(),
        &["a/target=1", "b/target=2", "b/k=3", "file=4", "l->file", "d/e/f=5", "out->../../../../../tmp"],
    );
    let draft = fixture.store.draft(&base).unwrap();
    let remove = |path: &str, allow_not_found, allow_wildcard| {
        rm(&draft, &Rm { path: path.into(), allow_not_found, allow_wildcard })
    };
    remove("*/target", false, true).unwrap();
    remove("/l", false, false).unwrap();
    remove("/d", false, false).unwrap();
    assert!(remove("/gone", false, false).unwrap_err().to_string().contains("not found"));
    remove("/gone", true, false).unwrap();
    remove("/gone/further", true, false).unwrap();
    for root in ["/", "..", "../..", "a/..", "a/../..", ".", ""] {
        assert!(remove(root, true, false).is_err(), "{root}");
    }
    assert!(remove("../victim", false, false).is_err());
    assert_eq!(fixture.list_draft(&draft), ["a/", "b/", "b/k=3", "file=4", "out->../../../../../tmp"]);
    // What was removed and made again doesn't show what was below.
    mkdir(&draft, &Mkdir { path: "/d".into(), mode: 0o755, ..Mkdir::default() }).unwrap();
    let listed = fixture.list_draft(&draft);
    assert!(listed.contains(&"d/".to_owned()) && !listed.iter().any(|l| l.starts_with("d/e")), "{listed:?}");
    let snapshot = fixture.commit(draft);
    assert_eq!(fixture.list(&snapshot), listed);
}

/// S17.
#[test]
fn users_are_looked_up_with_limits() {
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["etc/passwd=root:x:0:0::/:/bin/sh\ndaemon:x:1:2:d:/:\nbad:x:y:z\n", "etc/group=staff:x:50:a,b\n"]);
    let tree = Tree::of_directory(&from).unwrap();
    assert_eq!(lookup_user(&tree, "daemon").unwrap(), Owner { uid: 1, gid: 2 });
    assert_eq!(lookup_group(&tree, "staff").unwrap(), 50);
    assert!(lookup_user(&tree, "nobody").unwrap_err().to_string().contains("no user \"nobody\""));
    assert!(lookup_user(&tree, "bad").is_err());
    std::fs::remove_file(from.join("etc/passwd")).unwrap();
    std::os::unix::fs::symlink("/proc/self/environ", from.join("etc/passwd")).unwrap();
    assert!(lookup_user(&tree, "root").is_err());
    std::fs::remove_file(from.join("etc/group")).unwrap();
    std::fs::File::create(from.join("etc/group")).unwrap().set_len(4 << 30).unwrap();
    assert!(lookup_group(&tree, "staff").is_err());
}

/// TestDiffModifiedFiles, TestDiffDeleteFiles, TestDiffDeleteDirs: a difference laid on the lower tree makes the upper one.
#[test]
fn differences_carry_changes_and_deletions() {
    let mut fixture = Fixture::new();
    let lower = fixture
        .layer(&Snapshot::scratch(), &["same/f=1", "mod/f=1", "mod/k=1", "gone/f=1", "file=1", "dir/f=1", "l->a"]);
    let upper = fixture
        .layer(&Snapshot::scratch(), &["same/f=1", "mod/f=2", "mod/n=1 755", "new/f=1", "file/f=1", "dir=1", "l->b"]);
    for snapshot in [&lower, &upper] {
        // Whether a file is the same is told by its time first.
        let path = fixture.store.layer_fs(snapshot.top().unwrap()).join("same/f");
        std::fs::File::open(path).unwrap().set_modified(std::time::UNIX_EPOCH).unwrap();
    }
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    diff(&draft, &lower, &upper, &()).unwrap();
    assert!(!draft.upper().join("same").exists());
    let change = fixture.commit(draft);
    let merged = Snapshot::stacked(&[lower.clone(), change.clone()]);
    assert_eq!(fixture.list(&merged), fixture.list(&upper));
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    assert_eq!(diff(&draft, &upper, &upper, &()).unwrap(), Stats::default());
    diff(&draft, &Snapshot::scratch(), &upper, &()).unwrap();
    assert_eq!(fixture.list_draft(&draft), fixture.list(&upper));
}

#[test]
fn a_cache_mount_starts_with_what_a_tree_has() {
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["d/a=1", "d/sub/b=2 600", "other=3"]);
    let mount = fixture.store.cache_mount("c", crate::Sharing::Shared, &()).unwrap();
    mount.seed(Source::Tree(&Tree::of_directory(&from).unwrap()), "/d", &()).unwrap();
    assert_eq!(crate::testing::list(&mount.path()), ["a=1", "sub/", "sub/b=2 600"]);
}

/// The other end of [`wide_trees_need_few_descriptors`]: does nothing unless it is started by that.
#[test]
fn with_few_descriptors() {
    let Ok(dir) = std::env::var("BUD_STORE_FEW") else { return };
    let limit = rustix::process::Rlimit { current: Some(256), maximum: Some(256) };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let from = Path::new(&dir);
    let mut fixture = Fixture::new();
    let mut snapshots = Vec::new();
    let mut base = Snapshot::scratch();
    for _ in 0..2 {
        let draft = fixture.store.draft(&base).unwrap();
        super::copy(&draft, Source::Context(&context(from)), &cp("/", "/"), &()).unwrap();
        base = fixture.commit(draft);
        snapshots.push(base.clone());
    }
    let draft = fixture.store.draft(&base).unwrap();
    rm(&draft, &Rm { path: "/*/f".into(), allow_wildcard: true, ..Rm::default() }).unwrap();
    let mut tar = Vec::new();
    crate::layer::write_tar(&fixture.store, &snapshots[0], &mut tar, &Default::default(), &()).unwrap();
    let mut again = fixture.store.draft(&Snapshot::scratch()).unwrap();
    crate::layer::apply(tar.as_slice(), &mut again, &()).unwrap();
    let listed = fixture.list_draft(&again);
    assert_eq!(listed.len(), 2 + 2000 * 2 + 60);
    assert_eq!(listed, fixture.list(&snapshots[1]));
    let meta = |snapshot: &Snapshot, path: &str| {
        std::fs::metadata(fixture.store.layer_fs(snapshot.top().unwrap()).join(path)).unwrap()
    };
    // The directory that got one more name for a file has its own time still.
    let time = |meta: std::fs::Metadata| (meta.mtime(), meta.mtime_nsec());
    assert_eq!(time(meta(&snapshots[0], "d7")), time(std::fs::metadata(from.join("d7")).unwrap()));
    assert_eq!(meta(&snapshots[0], "d7/f").nlink(), 1000);
    println!("done with few descriptors");
}

/// L03: thousands of directories side by side, hard links among them, and deep ones.
#[test]
fn wide_trees_need_few_descriptors() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..2000 {
        let sub = dir.path().join(format!("d{i}"));
        std::fs::create_dir(&sub).unwrap();
        if i % 2 == 0 || i == 1 {
            std::fs::write(sub.join("f"), "x").unwrap();
        } else {
            std::fs::hard_link(dir.path().join("d1/f"), sub.join("f")).unwrap();
        }
    }
    let mut deep = dir.path().join("deep");
    std::fs::create_dir(&deep).unwrap();
    for _ in 0..60 {
        deep.push("n".repeat(50));
        std::fs::create_dir(&deep).unwrap();
    }
    std::fs::write(dir.path().join("top"), "").unwrap();
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "fileop::tests::with_few_descriptors", "--nocapture"])
        .env("BUD_STORE_FEW", dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("done with few descriptors"), "{text}");
}

/// What a directory hands down to new files, and what a change of owner takes away, leaves no trace in a copy.
#[test]
fn copies_look_like_their_source_wherever_they_land() {
    let mut fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["d/f=1", "d/w=2 666", "d/r=3 444", "d/sub/g=4 640"]);
    // Version 2, effective, CAP_NET_RAW permitted.
    let capability = [1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let name = "security.capability";
    let can_set = rustix::fs::setxattr(from.join("d/f"), name, &capability, rustix::fs::XattrFlags::empty()).is_ok();
    let base = fixture.layer(&Snapshot::scratch(), &["shared/ 2775"]);
    std::os::unix::fs::chown(fixture.store.layer_fs(base.top().unwrap()).join("shared"), None, Some(50)).unwrap();
    for owner in [None, Some(Owner { uid: 7, gid: 8 })] {
        let draft = fixture.store.draft(&base).unwrap();
        super::copy(&draft, Source::Context(&context(&from)), &Copy { owner, ..cp("/d", "/shared") }, &()).unwrap();
        let ids = if owner.is_some() { " 7:8" } else { "" };
        assert_eq!(
            fixture.list_draft(&draft),
            [
                "shared/ 2775 0:50".to_owned(),
                format!("shared/f=1{ids}"),
                format!("shared/r=3 444{ids}"),
                format!("shared/sub/{ids}"),
                format!("shared/sub/g=4 640{ids}"),
                format!("shared/w=2 666{ids}"),
            ]
        );
        if can_set {
            let mut value = [0; 64];
            let n = rustix::fs::getxattr(draft.upper().join("shared/f"), name, &mut value).unwrap();
            assert_eq!(&value[..n], capability);
        } else {
            eprintln!("copies_look_like_their_source_wherever_they_land: file capabilities can't be set here");
        }
    }
}
