//! The state as a whole: it survives kills and damage, prunes only what nobody holds, and digests by content.

use crate::blob::LayerBlob;
use crate::content::{Selection, digest};
use crate::context::{ContextOptions, ContextTree};
use crate::testing::{Fixture, fill};
use crate::*;
use bud_image::Digest;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

fn key(text: &str) -> CacheKey {
    Digest::of(text)
}

fn reopen(fixture: &mut Fixture) {
    let root = fixture.store.root().to_owned();
    let dir = std::mem::replace(&mut fixture.dir, tempfile::tempdir().unwrap());
    *fixture = Fixture::of(Store::open(&root, Options::default()).unwrap(), dir);
}

#[test]
fn what_was_stored_is_there_after_a_restart() {
    let mut fixture = Fixture::new();
    let one = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    let two = fixture.layer(&one, &["b=2"]);
    let store = &fixture.store;
    let record = store.put_record(&key("k"), &[Some(two.clone()), None, Some(one.clone())], "notes").unwrap();
    store.alias(&key("alias"), record.id).unwrap();
    store.put_record(&key("empty"), &[Some(Snapshot::scratch())], "").unwrap();
    store.put_image("docker.io/library/foo:latest", "{}", &two, &[Digest::of("x")]).unwrap();
    store.remember_tag("debian:12", "sha256:1").unwrap();
    store.put_build("b1", "record", SystemTime::now()).unwrap();
    let blob = LayerBlob { media_type: "m".into(), digest: Digest::of("b"), size: 1, diff_id: Digest::of("d") };
    store.set_layer_blob(one.top().unwrap(), "gzip", &blob).unwrap();
    drop(record);
    reopen(&mut fixture);
    let store = &fixture.store;
    for k in ["k", "alias"] {
        let found = store.record(&key(k)).unwrap().unwrap();
        assert_eq!((found.key, found.meta.as_str()), (key("k"), "notes"));
        assert_eq!(found.outputs, [Some(two.clone()), None, Some(one.clone())]);
    }
    assert_eq!(store.record(&key("empty")).unwrap().unwrap().outputs, [Some(Snapshot::scratch())]);
    assert!(store.record(&key("other")).unwrap().is_none());
    let (image, _pin) = store.image("docker.io/library/foo:latest").unwrap().unwrap();
    assert_eq!((image.snapshot, image.blobs), (two.clone(), vec![Digest::of("x")]));
    assert_eq!(store.remembered_tag("debian:12").unwrap().unwrap().0, "sha256:1");
    assert_eq!(store.builds().unwrap(), [("b1".to_owned(), "record".to_owned())]);
    assert_eq!(store.layer_blob(one.top().unwrap(), "gzip").unwrap(), Some(blob));
    assert_eq!(store.layer_blob(one.top().unwrap(), "zstd").unwrap(), None);
    assert_eq!(fixture.list(&two), ["a=1", "b=2"]);
    assert_eq!(store.logical_layers(&two).unwrap(), [one, two]);
}

/// F04: a damaged database is set aside, and nothing is lost but the cache.
#[test]
fn a_damaged_database_is_set_aside() {
    for damage in ["garbage", "empty", "cut", "page"] {
        let mut fixture = Fixture::new();
        let layer = fixture.layer(&Snapshot::scratch(), &["a=1"]);
        for i in 0..200 {
            fixture.store.put_record(&key(&i.to_string()), &[Some(layer.clone())], &"m".repeat(100)).unwrap();
        }
        fixture.store.sync().unwrap();
        let database = fixture.store.root().join("state.db");
        let root = fixture.store.root().to_owned();
        let dir = std::mem::replace(&mut fixture.dir, tempfile::tempdir().unwrap());
        drop(fixture);
        let mut bytes = std::fs::read(&database).unwrap();
        match damage {
            "garbage" => bytes.fill(0x5a),
            "empty" => bytes.clear(),
            "cut" => bytes.truncate(5000),
            _ => bytes[4096..].fill(0),
        }
        std::fs::write(&database, bytes).unwrap();
        for suffix in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(root.join(format!("state.db{suffix}")));
        }
        let store = Store::open(&root, Options::default()).unwrap();
        assert_eq!(store.warnings().len(), 1, "{damage}");
        assert!(store.record(&key("1")).unwrap().is_none());
        let (snapshot, _pin) = store.draft(&Snapshot::scratch()).unwrap().commit(&Info::default()).unwrap();
        store.put_record(&key("1"), &[Some(snapshot)], "").unwrap();
        drop(store);
        assert_eq!(Store::open(&root, Options::default()).unwrap().warnings().len(), 0);
        drop(dir);
    }
}

/// F11: the state of a newer version is left as it is.
#[test]
fn a_newer_state_is_refused() {
    let fixture = Fixture::new();
    fixture.store.database().execute("UPDATE meta SET value = 99 WHERE key = 'format'", []).unwrap();
    let error = Store::open(fixture.store.root(), Options::default()).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
    assert!(error.to_string().contains("--root"));
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}");
}

/// F01: leftovers of a killed daemon go, whatever their modes and depth; what is referenced stays.
#[test]
fn leftovers_are_removed_in_the_background() {
    let mut fixture = Fixture::new();
    let kept = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    let blob = fixture.store.blobs().put(b"kept").unwrap();
    let draft = fixture.store.draft(&kept).unwrap();
    fill(&draft.upper(), &["x/y/z=1", "locked/in/f=1"]);
    std::fs::set_permissions(draft.upper().join("locked/in"), PermissionsExt::from_mode(0o0)).unwrap();
    std::fs::set_permissions(draft.upper().join("locked"), PermissionsExt::from_mode(0o0)).unwrap();
    std::os::unix::fs::chown(draft.upper().join("x/y"), Some(1234), Some(1234)).unwrap();
    let mut deep = draft.upper();
    for _ in 0..200 {
        deep.push("deep");
        std::fs::create_dir(&deep).unwrap();
    }
    std::fs::write(deep.join("f"), "").unwrap();
    let left = draft.upper().parent().unwrap().to_owned();
    std::mem::forget(draft);
    let root = fixture.store.root().to_owned();
    let old = SystemTime::now() - Duration::from_secs(3600);
    let stray = root.join("blobs/sha256").join(Digest::of("stray").hex());
    let half = root.join("blobs/new/1-1");
    for path in [&stray, &half] {
        std::fs::write(path, "x").unwrap();
        std::fs::File::options().write(true).open(path).unwrap().set_modified(old).unwrap();
    }
    reopen(&mut fixture);
    wait_until("leftovers stay", || !left.exists() && !stray.exists() && !half.exists());
    assert_eq!(fixture.list(&kept), ["a=1"]);
    assert_eq!(fixture.store.blobs().read(&blob, 10).unwrap(), b"kept");
    // Its number is not used again.
    let next = fixture.store.draft(&kept).unwrap();
    assert!(!left.ends_with(next.id().0.to_string()));
}

/// F02, and what comes in is checked.
#[test]
fn blobs_are_checked_coming_in_and_going_out() {
    let fixture = Fixture::new();
    let blobs = fixture.store.blobs();
    let mut writer = blobs.writer().unwrap();
    writer.write_all(b"hello").unwrap();
    let error = writer.commit(Some(&Digest::of("other")), None).unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    let mut writer = blobs.writer().unwrap();
    writer.write_all(b"hello").unwrap();
    assert!(matches!(writer.commit(None, Some(4)).unwrap_err(), StoreError::SizeMismatch { .. }));
    assert_eq!(std::fs::read_dir(fixture.store.root().join("blobs/new")).unwrap().count(), 0);
    assert!(!blobs.contains(&Digest::of("hello")).unwrap());
    let put = || {
        let mut writer = blobs.writer().unwrap();
        writer.write_all(b"wrong").unwrap();
        writer.restart().unwrap();
        writer.write_all(b"hel").unwrap();
        writer.write_all(b"lo").unwrap();
        writer.commit(Some(&Digest::of("hello")), Some(5)).unwrap().0
    };
    let digest = put();
    let path = fixture.store.root().join("blobs/sha256").join(digest.hex());
    for damage in [&b""[..], b"hel", b"hellO"] {
        put();
        assert_eq!(blobs.read(&digest, 5).unwrap(), b"hello");
        std::fs::write(&path, damage).unwrap();
        let mut bytes = Vec::new();
        let result = blobs.open(&digest).map_err(|e| e.to_string()).and_then(|mut reader| {
            let mut small = [0; 2];
            loop {
                match reader.read(&mut small) {
                    Ok(0) => return Ok(()),
                    Ok(n) => bytes.extend_from_slice(&small[..n]),
                    Err(e) => return Err(e.to_string()),
                }
            }
        });
        assert!(result.is_err());
        assert!(bytes.len() < 5, "the last bytes of a damaged blob were given out");
        // Gone, so that it is made or fetched again.
        assert!(!blobs.contains(&digest).unwrap());
    }
    put();
    assert!(blobs.read(&digest, 4).is_err());
}

#[test]
fn prune_takes_what_nobody_holds_oldest_first() {
    let mut fixture = Fixture::new();
    let base = fixture.layer(&Snapshot::scratch(), &["base=1"]);
    let held = fixture.layer(&base, &["held=1"]);
    let named = fixture.layer(&base, &["named=1"]);
    let old = fixture.layer(&base, &["old=1"]);
    let older = fixture.layer(&old, &["older=1"]);
    for (name, snapshot) in [("held", &held), ("named", &named), ("old", &old), ("older", &older)] {
        fixture.store.put_record(&key(name), &[Some(snapshot.clone())], "").unwrap();
    }
    let cache = fixture.store.cache_mount("id", Sharing::Shared, &()).unwrap();
    fixture.store.put_image("named", "", &named, &[]).unwrap();
    fixture.unpin();
    let pin = fixture.store.pin(&held).unwrap();
    let ids = |pruned: &Pruned| pruned.removed.iter().map(|u| u.id.clone()).collect::<Vec<_>>();
    let id = |s: &Snapshot| format!("layer:{}", s.top().unwrap().0);
    let young = PrunePolicy { keep_duration: Some(Duration::from_secs(3600)), ..PrunePolicy::default() };
    assert_eq!(ids(&fixture.store.prune(&young).unwrap()), [""; 0]);
    let enough = PrunePolicy { max_used: Some(1 << 40), ..PrunePolicy::default() };
    assert_eq!(ids(&fixture.store.prune(&enough).unwrap()), [""; 0]);
    let pruned = fixture.store.prune(&PrunePolicy::default()).unwrap();
    assert_eq!(ids(&pruned), [id(&older), id(&old)]);
    assert!(pruned.bytes >= 8192);
    assert!(fixture.store.record(&key("old")).unwrap().is_none());
    assert!(fixture.store.record(&key("held")).unwrap().is_some());
    assert!(fixture.store.pin(&old).is_err());
    drop(cache);
    drop(pin);
    let pruned = fixture.store.prune(&PrunePolicy::default()).unwrap();
    assert_eq!(pruned.removed.len(), 2, "{pruned:?}");
    assert!(ids(&pruned).contains(&id(&held)));
    fixture.store.remove_image("named").unwrap();
    assert_eq!(fixture.store.prune(&PrunePolicy::default()).unwrap().removed.len(), 2);
    assert_eq!(fixture.store.usage().unwrap().len(), 0);
    wait_until("directories stay", || std::fs::read_dir(fixture.store.root().join("layers")).unwrap().count() == 0);
}

/// A layer on a merge keeps all that it stands on, not its direct parent alone.
#[test]
fn what_a_layer_stands_on_is_kept() {
    let mut fixture = Fixture::new();
    let a = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    let b = fixture.layer(&Snapshot::scratch(), &["b=1"]);
    let merged = Snapshot::stacked(&[a.clone(), b]);
    let top = fixture.layer(&merged, &["c=1"]);
    fixture.store.put_record(&key("top"), &[Some(top.clone())], "").unwrap();
    fixture.unpin();
    std::thread::sleep(Duration::from_millis(5));
    drop(fixture.store.record(&key("top")).unwrap());
    let pin = fixture.store.pin(&Snapshot::from_layers(vec![top.top().unwrap()])).unwrap();
    assert_eq!(fixture.store.prune(&PrunePolicy::default()).unwrap().removed.len(), 0);
    assert_eq!(fixture.list(&top), ["a=1", "b=1", "c=1"]);
    drop(pin);
    assert_eq!(fixture.store.prune(&PrunePolicy::default()).unwrap().removed.len(), 3);
}

/// L04, testLayerLimitOnMounts: more layers than the kernel stacks.
#[test]
fn long_chains_are_flattened() {
    let mut fixture = Fixture::new();
    let mut snapshot = Snapshot::scratch();
    for i in 0..850 {
        let draft = fixture.store.draft(&snapshot).unwrap();
        match i % 4 {
            0 => fill(&draft.upper(), &[&format!("d/f{i}=1"), "same=0"]),
            1 => fill(&draft.upper(), &[&format!("same={i}"), &format!("d{i}/x=1")]),
            2 => fileop::rm(&draft, &fileop::Rm { path: format!("/d{}", i - 1), ..fileop::Rm::default() }).unwrap(),
            _ => {
                let op = fileop::Rm { path: format!("/d/f{}", i - 3), ..fileop::Rm::default() };
                if i % 8 == 3 {
                    fileop::rm(&draft, &op).unwrap();
                }
            }
        }
        snapshot = fixture.commit(draft);
    }
    let listed = fixture.list(&snapshot);
    // Every second `f` was removed; the last `d` was made by layer 849.
    let files: Vec<String> =
        (0..850).filter(|i| i % 8 == 4 || (i % 4 == 0 && *i + 3 >= 850)).map(|i| format!("d/f{i}=1")).collect();
    let mut expected: Vec<String> = ["d/".to_owned(), "d849/".into(), "d849/x=1".into(), "same=849".into()].into();
    expected.extend(files);
    expected.sort();
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert!(fixture.store.lowers(&snapshot).len() <= 32);
    let mut tar = Vec::new();
    layer::write_tar(&fixture.store, &snapshot, &mut tar, &layer::WriteOptions::default(), &()).unwrap();
    reopen(&mut fixture);
    assert_eq!(fixture.list(&snapshot), listed);
    fixture.store.prune(&PrunePolicy::default()).unwrap();
    wait_until("directories stay", || std::fs::read_dir(fixture.store.root().join("layers")).unwrap().count() == 0);
}

/// A run of layers looks like the layers in it, also where they delete and replace what is below.
#[test]
fn merged_runs_look_like_their_layers() {
    let build = |direct: usize, seen: &mut Vec<Vec<String>>| {
        let mut fixture = Fixture::with(Options { direct, window: 2, ..Options::default() });
        let files = ["d/a=1", "d/b=1", "d/sub/x=1", "e/f=1", "file=1", "keep/k=1"];
        let mut snapshot = fixture.layer(&Snapshot::scratch(), &files);
        let steps: [&[&str]; 8] = [
            &["rm d/a", "write d/own", "mkdir new"],
            &["rm d/own", "write new/n", "write d/sub/y"],
            &["rm d", "mkdir d", "write d/later"],
            &["rm file", "mkdir file", "write file/in", "rm new/n"],
            &["rm e", "write e"],
            &["rm e", "mkdir e", "write e/g", "rm file"],
            &["rm d/later", "write keep/l"],
            &["rm keep/k", "rm keep/l"],
        ];
        for step in steps {
            snapshot = stepped(&mut fixture, &snapshot, |root| {
                for action in step {
                    let (what, path) = action.split_once(' ').unwrap();
                    let path = root.join(path);
                    match what {
                        "rm" if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
                        "rm" => std::fs::remove_file(path).unwrap(),
                        "mkdir" => std::fs::create_dir(path).unwrap(),
                        _ => std::fs::write(path, *action).unwrap(),
                    }
                }
            });
            seen.push(fixture.list(&snapshot));
        }
        fixture.store.lowers(&snapshot).len()
    };
    let (mut merged, mut plain) = (Vec::new(), Vec::new());
    assert!(build(1, &mut merged) <= 2);
    assert_eq!(build(100, &mut plain), 9);
    assert_eq!(merged, plain);
    assert_eq!(merged.last().unwrap(), &["d/", "e/", "e/g=write e/g", "keep/", "new/"]);
}

/// Links to all files of a large layer would cost more than they save.
#[test]
fn large_layers_are_not_merged() {
    let mut fixture = Fixture::with(Options { direct: 2, window: 4, ..Options::default() });
    let many: Vec<String> = (0..300).map(|n| format!("f{n}=1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut snapshot = fixture.layer(&Snapshot::scratch(), &many);
    for n in 0..13 {
        snapshot = fixture.layer(&snapshot, &[&format!("g{n}=1")]);
    }
    let lowers = fixture.store.lowers(&fixture.store.draft(&snapshot).unwrap().parent().clone());
    assert!(lowers.ends_with(&[fixture.store.layer_fs(snapshot.layers()[0])]), "{lowers:?}");
    // The large one, three runs, and two that don't fill a window.
    assert_eq!(lowers.len(), 6, "{lowers:?}");
    assert_eq!(fixture.list(&snapshot).len(), 313);
}

/// Runs commands on a snapshot as a step does: through a mounted overlay.
fn stepped(fixture: &mut Fixture, parent: &Snapshot, step: impl FnOnce(&Path)) -> Snapshot {
    let draft = fixture.store.draft(parent).unwrap();
    let mount = draft.overlay().mount(bud_sandbox::overlay::MountApi::Auto).unwrap();
    step(Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount))));
    drop(mount);
    fixture.commit(draft)
}

/// TestDiffOpaqueDirs, TestDiffMergeOpaqueRegression, TestDiffUnmatchedDelete, TestDiffDirOverridesSymlink.
#[test]
fn merges_delete_by_name() {
    let mut fixture = Fixture::new();
    let base = fixture.layer(&Snapshot::scratch(), &["d/a=1", "d/b=1", "d/sub/x=1", "k=1", "only/here=1"]);
    let again = stepped(&mut fixture, &base, |root| {
        std::fs::remove_dir_all(root.join("d")).unwrap();
        fill(root, &["d/new=2", "d/sub/y=2", "made/m=2"]);
        std::fs::remove_file(root.join("k")).unwrap();
        std::fs::remove_file(root.join("only/here")).unwrap();
    });
    let change = Snapshot::from_layers(vec![again.top().unwrap()]);
    let other = fixture.layer(&Snapshot::scratch(), &["d/a=3", "d/c=3", "d/sub/x=3", "d/sub/z=3", "k=3", "made/n=3"]);
    let (merged, _pin) = fixture.store.merge(&[other.clone(), change.clone()], &()).unwrap();
    assert_eq!(
        fixture.list(&merged),
        ["d/", "d/c=3", "d/new=2", "d/sub/", "d/sub/y=2", "d/sub/z=3", "made/", "made/m=2", "made/n=3", "only/",]
    );
    // On the tree that it was made on, and on nothing, a layer stays what it is.
    assert_eq!(fixture.store.merge(&[base.clone(), again.clone()], &()).unwrap().0, again);
    assert_eq!(fixture.store.merge(std::slice::from_ref(&other), &()).unwrap().0, other);
    let plain = fixture.layer(&Snapshot::scratch(), &["link->d", "x=1"]);
    let dir = fixture.layer(&Snapshot::scratch(), &["link/f=1"]);
    let (merged, _pin) = fixture.store.merge(&[plain.clone(), dir.clone()], &()).unwrap();
    assert_eq!(merged.layers().len(), 2);
    assert_eq!(fixture.list(&merged), ["link/", "link/f=1", "x=1"]);
    // dir with a; a layer that deletes dir; dir with b.
    let a = fixture.layer(&Snapshot::scratch(), &["dir/a=1"]);
    let deletes = stepped(&mut fixture, &a, |root| std::fs::remove_dir_all(root.join("dir")).unwrap());
    let deletes = Snapshot::from_layers(vec![deletes.top().unwrap()]);
    let b = fixture.layer(&Snapshot::scratch(), &["dir/b=1"]);
    let (merged, _pin) = fixture.store.merge(&[a, deletes, b], &()).unwrap();
    assert_eq!(fixture.list(&merged), ["dir/", "dir/b=1"]);
    // A difference that was worked out carries its deletions too.
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    fileop::diff(&draft, &base, &fixture.layer(&Snapshot::scratch(), &["d/a=1", "d/b=1", "d/sub/x=1"]), &()).unwrap();
    let difference = fixture.commit(draft);
    let (merged, _pin) = fixture.store.merge(&[other, difference], &()).unwrap();
    let listed = fixture.list(&merged);
    assert!(!listed.contains(&"k=3".to_owned()) && listed.contains(&"d/c=3".to_owned()), "{listed:?}");
}

#[test]
fn used_layers_outlive_unused_ones() {
    let mut fixture = Fixture::new();
    let one = fixture.layer(&Snapshot::scratch(), &["one=1"]);
    let two = fixture.layer(&Snapshot::scratch(), &["two=1"]);
    for (name, snapshot) in [("one", &one), ("two", &two)] {
        fixture.store.put_record(&key(name), &[Some(snapshot.clone())], "").unwrap();
    }
    fixture.unpin();
    std::thread::sleep(Duration::from_millis(5));
    drop(fixture.store.record(&key("one")).unwrap());
    let used: u64 = fixture.store.usage().unwrap().iter().map(|u| u.size).sum();
    let policy = PrunePolicy { max_used: Some(used - 1), ..PrunePolicy::default() };
    let pruned = fixture.store.prune(&policy).unwrap();
    assert_eq!(
        pruned.removed.iter().map(|u| u.id.clone()).collect::<Vec<_>>(),
        [format!("layer:{}", two.top().unwrap().0)]
    );
    let usage = fixture.store.usage().unwrap();
    assert_eq!((usage.len(), usage[0].usage_count), (1, 2));
}

/// F03: after a restart of the machine only what was synced is believed.
#[test]
fn unsynced_layers_are_not_trusted_after_a_crash_of_the_machine() {
    let mut fixture = Fixture::new();
    let synced = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    fixture.store.put_record(&key("synced"), &[Some(synced.clone())], "").unwrap();
    let blob = fixture.store.blobs().put(b"synced").unwrap();
    fixture.store.sync().unwrap();
    let lost = fixture.layer(&synced, &["b=1"]);
    fixture.store.put_record(&key("lost"), &[Some(lost.clone())], "").unwrap();
    fixture.store.put_image("lost", "", &lost, &[]).unwrap();
    let lost_blob = fixture.store.blobs().put(b"lost").unwrap();
    fixture.store.database().execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'", []).unwrap();
    reopen(&mut fixture);
    assert!(fixture.store.record(&key("synced")).unwrap().is_some());
    assert!(fixture.store.record(&key("lost")).unwrap().is_none());
    assert!(fixture.store.image("lost").unwrap().is_none());
    assert!(fixture.store.blobs().contains(&blob).unwrap());
    assert!(!fixture.store.blobs().contains(&lost_blob).unwrap());
}

#[test]
fn a_deleted_layer_directory_makes_a_miss() {
    let mut fixture = Fixture::new();
    let layer = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    fixture.store.put_record(&key("k"), &[Some(layer.clone())], "").unwrap();
    fixture.unpin();
    std::fs::remove_dir_all(fixture.store.layer_fs(layer.top().unwrap())).unwrap();
    assert!(fixture.store.record(&key("k")).unwrap().is_none());
}

/// R06, testCachedMounts.
#[test]
fn cache_mounts_are_shared_by_their_rules() {
    let fixture = Fixture::new();
    let take = |id: &str, sharing| fixture.store.cache_mount(id, sharing, &()).unwrap();
    for id in ["../../..", "/", "", &"x".repeat(5000)] {
        let mount = take(id, Sharing::Shared);
        assert!(mount.path().starts_with(fixture.store.root().join("cache")), "{id}");
        assert!(mount.path().is_dir());
    }
    let one = take("a", Sharing::Shared);
    assert!(one.fresh);
    let two = take("a", Sharing::Shared);
    assert_eq!(one.path(), two.path());
    assert!(!two.fresh);
    let private = take("a", Sharing::Private);
    assert_ne!(private.path(), one.path());
    struct Never;
    impl Observer for Never {
        fn is_cancelled(&self) -> bool {
            true
        }
    }
    assert!(matches!(fixture.store.cache_mount("a", Sharing::Locked, &Never), Err(StoreError::Cancelled)));
    let path = one.path();
    std::fs::write(path.join("f"), "1").unwrap();
    drop((one, two, private));
    let locked = take("a", Sharing::Locked);
    assert_eq!(locked.path(), path);
    assert!(matches!(fixture.store.cache_mount("a", Sharing::Shared, &Never), Err(StoreError::Cancelled)));
    fixture.store.clear_cache_mount("a").unwrap();
    assert!(path.join("f").exists(), "in use");
    let waiting = std::thread::scope(|scope| {
        let handle = scope.spawn(|| take("a", Sharing::Locked).path());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!handle.is_finished());
        drop(locked);
        handle.join().unwrap()
    });
    assert_eq!(waiting, path);
    fixture.store.clear_cache_mount("a").unwrap();
    assert!(take("a", Sharing::Shared).fresh);
}

fn context(dir: &Path, exclude: &[&str], follow: &[&str]) -> ContextTree {
    let texts = |t: &[&str]| t.iter().map(ToString::to_string).collect();
    let options = ContextOptions { include: Vec::new(), exclude: texts(exclude), follow: texts(follow) };
    ContextTree::open(std::fs::File::open(dir).unwrap().into(), &options).unwrap()
}

fn digest_of(store: &Arc<Store>, dir: &Path, selection: &Selection) -> Result<Digest, String> {
    let tree = context(dir, &[], &[]);
    let one = digest(store, Source::Context(&tree), selection, &()).map_err(|e| e.to_string());
    let of_tree = Tree::of_directory(dir).unwrap();
    let two = digest(store, Source::Tree(&of_tree), selection, &()).map_err(|e| e.to_string());
    assert_eq!(one.is_ok(), two.is_ok());
    one
}

fn path(path: &str) -> Selection {
    Selection { path: path.into(), ..Selection::default() }
}

#[test]
fn content_is_what_counts() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path().join("c");
    let fresh = || {
        let _ = std::fs::remove_dir_all(&dir);
        fill(&dir, &["d/a=1", "d/b=2", "d/l->a", "e/f=3"]);
    };
    fresh();
    let of = |selection: &Selection| digest_of(&fixture.store, &dir, selection).unwrap();
    let whole = of(&path("/"));
    let part = of(&path("/d"));
    // Made again: other inodes and times, the same content.
    std::thread::sleep(Duration::from_millis(5));
    fresh();
    assert_eq!((of(&path("/")), of(&path("/d"))), (whole, part));
    assert_ne!(whole, part);
    // testFileOpCopyIncludeExclude, testCopyWildcardCache: what isn't selected doesn't count.
    std::fs::write(dir.join("e/f"), "changed").unwrap();
    assert_ne!(of(&path("/")), whole);
    assert_eq!(of(&path("/d")), part);
    let change: [(&str, &dyn Fn()); 8] = [
        ("bytes", &|| std::fs::write(dir.join("d/a"), "x").unwrap()),
        ("mode", &|| std::fs::set_permissions(dir.join("d/a"), PermissionsExt::from_mode(0o755)).unwrap()),
        ("mode of a directory", &|| std::fs::set_permissions(dir.join("d"), PermissionsExt::from_mode(0o700)).unwrap()),
        ("name", &|| std::fs::rename(dir.join("d/a"), dir.join("d/c")).unwrap()),
        ("target", &|| {
            std::fs::remove_file(dir.join("d/l")).unwrap();
            std::os::unix::fs::symlink("b", dir.join("d/l")).unwrap();
        }),
        ("type", &|| {
            std::fs::remove_file(dir.join("d/b")).unwrap();
            std::fs::create_dir(dir.join("d/b")).unwrap();
        }),
        ("attribute", &|| {
            rustix::fs::setxattr(dir.join("d/a"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }),
        ("attribute of a directory", &|| {
            rustix::fs::setxattr(dir.join("d"), "user.x", b"1", rustix::fs::XattrFlags::empty()).unwrap();
        }),
    ];
    let mut seen = std::collections::HashSet::from([part]);
    for (what, change) in change {
        fresh();
        change();
        assert!(seen.insert(of(&path("/d"))), "{what}");
    }
    // testFileOpCopyUIDCache: owners count in trees; a context has none.
    fresh();
    let tree = || digest(&fixture.store, Source::Tree(&Tree::of_directory(&dir).unwrap()), &path("/d"), &()).unwrap();
    let before = tree();
    std::os::unix::fs::chown(dir.join("d/a"), Some(1000), Some(1000)).unwrap();
    assert_ne!(tree(), before);
    assert_eq!(of(&path("/d")), part);
}

#[test]
fn selections_have_patterns() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path().join("c");
    fill(&dir, &["foo1=1", "foo2=2", "bar=3", "sub/foo=4", "sub/bar=5", "l->sub"]);
    let of = |selection: &Selection| digest_of(&fixture.store, &dir, selection);
    let wild = Selection { wildcard: true, ..path("/foo*") };
    let before = of(&wild).unwrap();
    std::fs::write(dir.join("bar"), "changed").unwrap();
    assert_eq!(of(&wild).unwrap(), before);
    std::fs::rename(dir.join("foo2"), dir.join("foo3")).unwrap();
    assert_ne!(of(&wild).unwrap(), before);
    let include =
        Selection { include_patterns: vec!["sub/*".into()], exclude_patterns: vec!["sub/bar".into()], ..path("/") };
    let before = of(&include).unwrap();
    std::fs::write(dir.join("sub/bar"), "changed").unwrap();
    std::fs::write(dir.join("new"), "new").unwrap();
    assert_eq!(of(&include).unwrap(), before);
    std::fs::write(dir.join("sub/foo"), "changed").unwrap();
    assert_ne!(of(&include).unwrap(), before);
    let followed = Selection { follow_symlink: true, ..path("/l") };
    assert_ne!(of(&followed).unwrap(), of(&path("/l")).unwrap());
    assert!(of(&path("/none")).unwrap_err().contains("\"/none\": not found"));
    let required = Selection { required_paths: vec!["/sub/none".into()], ..include };
    assert!(of(&required).unwrap_err().contains("not found"));
    assert!(of(&Selection { include_patterns: vec!["[".into()], ..path("/") }).is_err());
}

#[test]
fn an_unchanged_file_is_known_and_a_racy_one_is_not() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path().join("c");
    fill(&dir, &["old=1", "new=2"]);
    std::thread::sleep(Duration::from_millis(2100));
    std::fs::write(dir.join("new"), "3").unwrap();
    let tree = context(&dir, &[], &[]);
    digest(&fixture.store, Source::Context(&tree), &path("/"), &()).unwrap();
    let top = tree.top();
    let index = fixture.store.file_index(&format!("{:x}:{:x}", top.meta.dev, top.meta.ino)).unwrap();
    let known = |name: &str| index.get_all(std::iter::once(&top.child(name.as_bytes()).unwrap().meta))[0].is_some();
    assert!(known("old"));
    assert!(!known("new"));
}

/// S12: stored bytes are the digested ones, even if a file changed in a way that its times don't show.
#[test]
fn a_file_whose_times_cannot_be_trusted_is_digested_again() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path().join("c");
    fill(&dir, &["f=1"]);
    let copied = |change: bool| {
        std::fs::write(dir.join("f"), "2").unwrap();
        let tree = context(&dir, &[], &[]);
        digest(&fixture.store, Source::Context(&tree), &path("/"), &()).unwrap();
        if change {
            // As if the bytes had been others when it was digested.
            tree.note_digest(&tree.top().child(b"f").unwrap().meta, [0; 32]);
        }
        let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
        let copy = fileop::Copy { src: "/f".into(), dest: "/f".into(), ..fileop::Copy::default() };
        fileop::copy(&draft, Source::Context(&tree), &copy, &()).map_err(|e| e.to_string())
    };
    copied(false).unwrap();
    assert!(copied(true).unwrap_err().contains("was changed"));
}

/// F02: a layer that was deleted makes a miss, wherever it is in the chain.
#[test]
fn a_deleted_lower_layer_makes_a_miss() {
    let mut fixture = Fixture::new();
    let lower = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    let upper = fixture.layer(&lower, &["b=1"]);
    fixture.store.put_record(&key("k"), &[Some(upper.clone())], "").unwrap();
    fixture.store.put_image("i", "", &upper, &[]).unwrap();
    fixture.unpin();
    std::fs::remove_dir_all(fixture.store.layer_fs(lower.top().unwrap())).unwrap();
    assert!(fixture.store.record(&key("k")).unwrap().is_none());
    assert!(fixture.store.image("i").unwrap().is_none());
}

/// testLocalSymlinkEscape, testLocalSourceWithHardlinksFilter.
#[test]
fn contexts_take_what_is_asked_for() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path().join("c");
    fill(&dir, &["bar=1", "foo1~bar", "foo2~bar", "sub/l->../target", "target=2", "out->/etc/passwd", "other=3"]);
    let names =
        |tree: &ContextTree| tree.entries().into_iter().map(|e| String::from_utf8(e.path).unwrap()).collect::<Vec<_>>();
    assert_eq!(names(&context(&dir, &[], &["foo*"])), ["foo1", "foo2"]);
    assert_eq!(names(&context(&dir, &[], &["sub/l", "out"])), ["out", "sub", "sub/l", "target"]);
    assert_eq!(names(&context(&dir, &["*", "!sub/l"], &[])), ["sub", "sub/l"]);
    let tree = context(&dir, &["other"], &[]);
    assert_eq!(tree.read_file(b"sub/l", 10).unwrap(), b"2");
    assert!(tree.read_file(b"other", 10).is_err(), "ignored files can't be read");
    assert!(tree.read_file(b"out", 1 << 20).is_err());
    assert!(tree.read_file(b"target", 0).is_err());
}

#[test]
fn large_files_are_hashed_the_same_by_any_number_of_threads() {
    let fixture = Fixture::new();
    let dir = fixture.dir.path().join("c");
    std::fs::create_dir(&dir).unwrap();
    let file = std::fs::File::create(dir.join("f")).unwrap();
    file.set_len((40 << 20) + 5).unwrap();
    rustix::io::pwrite(&file, b"x", 33 << 20).unwrap();
    let one = digest_of(&fixture.store, &dir, &path("/f")).unwrap();
    assert_eq!(digest_of(&fixture.store, &dir, &path("/f")).unwrap(), one);
    rustix::io::pwrite(&file, b"y", 33 << 20).unwrap();
    assert_ne!(digest_of(&fixture.store, &dir, &path("/f")).unwrap(), one);
    // L07: holes stay holes.
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    let copy = fileop::Copy { src: "/f".into(), dest: "/f".into(), ..fileop::Copy::default() };
    fileop::copy(&draft, Source::Context(&context(&dir, &[], &[])), &copy, &()).unwrap();
    let copied = draft.upper().join("f");
    assert_eq!(std::fs::read(&copied).unwrap(), std::fs::read(dir.join("f")).unwrap());
    assert!(std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(copied).unwrap()) < 1000);
}

/// The other end of [`kills_leave_a_consistent_state`]: does nothing unless it is started by that.
#[test]
fn writes_until_killed() {
    let Ok(root) = std::env::var("BUD_STORE_KILLED") else { return };
    let store = Store::open(Path::new(&root), Options::default()).unwrap();
    for i in 0_u64.. {
        let round = std::env::var("BUD_STORE_ROUND").unwrap();
        let text = format!("{round}/{i}");
        let draft = store.draft(&Snapshot::scratch()).unwrap();
        std::fs::write(draft.upper().join("f"), &text).unwrap();
        let (snapshot, _pin) = draft.commit(&Info::default()).unwrap();
        let blob = store.blobs().put(text.as_bytes()).unwrap();
        store.put_record(&key(&text), &[Some(snapshot)], &blob.to_string()).unwrap();
        if i == 0 {
            // The one who kills waits for the first.
            std::fs::write(Path::new(&root).with_extension(&round), "").unwrap();
        }
        if i % 7 == 0 {
            store.prune(&PrunePolicy { max_used: Some(200_000), ..PrunePolicy::default() }).unwrap();
        }
    }
}

/// F01: every record that is found has its layer and its blob, whenever the process was killed.
#[test]
fn kills_leave_a_consistent_state() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    for round in 0..8 {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "tests::writes_until_killed", "--nocapture"])
            .env("BUD_STORE_KILLED", &root)
            .env("BUD_STORE_ROUND", round.to_string())
            .stdout(std::process::Stdio::null())
            .spawn()
            .unwrap();
        wait_until("something is stored", || root.with_extension(round.to_string()).exists());
        std::thread::sleep(Duration::from_millis(37 * round));
        child.kill().unwrap();
        child.wait().unwrap();
        let store = Store::open(&root, Options::default()).unwrap();
        assert_eq!(store.warnings(), [""; 0]);
        let mut found = 0;
        for i in 0..100_000 {
            let text = format!("{round}/{i}");
            match store.record(&key(&text)).unwrap() {
                Some(record) => {
                    found += 1;
                    let snapshot = record.outputs[0].clone().unwrap();
                    let tree = store.tree(&snapshot).unwrap();
                    assert_eq!(tree.read_file(b"f", 100).unwrap(), text.as_bytes());
                    // A blob may be pruned by itself; if it is there, it is right.
                    if let Ok(bytes) = store.blobs().read(&record.meta.parse().unwrap(), 100) {
                        assert_eq!(bytes, text.as_bytes());
                    }
                }
                None if i > 5000 => break,
                None => {}
            }
        }
        assert!(found > 0, "nothing was stored in round {round}");
    }
}

/// What an unprivileged user can do who has no other IDs than the own one.
#[test]
fn unprivileged_part() {
    use bud_oci::tar::{Header, Kind, Reader, Writer};
    let Ok(root) = std::env::var("BUD_STORE_UNPRIVILEGED") else { return };
    let dir = tempfile::tempdir_in(&root).unwrap();
    let mut fixture = Fixture::of(Store::open(&dir.path().join("state"), Options::default()).unwrap(), dir);
    let mut writer = Writer::new(Vec::new());
    let file = |path: &str, uid, gid| Header { uid, gid, ..Header::new(path, Kind::File) };
    for header in [
        Header { uid: 5, gid: 6, ..Header::new("d/", Kind::Directory) },
        file("d/f", 5, 7),
        file("own", 0, 0),
        file("gone", 1, 1),
        Header { link: "d/f".into(), uid: 8, gid: 8, ..Header::new("l", Kind::Symlink) },
        Header { device: (8, 0), ..Header::new("sda", Kind::BlockDevice) },
    ] {
        writer.start(&header).unwrap();
    }
    let tar = writer.finish().unwrap();
    let mut draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    assert_eq!(layer::apply(tar.as_slice(), &mut draft, &()).unwrap().skipped_devices, 1);
    let base = fixture.commit(draft);
    let owners = |fixture: &Fixture, snapshot: &Snapshot| -> Vec<String> {
        let mut bytes = Vec::new();
        layer::write_tar(&fixture.store, snapshot, &mut bytes, &layer::WriteOptions::default(), &()).unwrap();
        let mut reader = Reader::new(bytes.as_slice());
        let mut lines = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let h = &entry.header;
            lines.push(format!("{} {}:{}", String::from_utf8_lossy(&h.path), h.uid, h.gid));
        }
        lines
    };
    assert_eq!(owners(&fixture, &base), ["d/ 5:6", "d/f 5:7", "gone 1:1", "l 8:8", "own 0:0"]);
    // Copied from there, owners that no file on this machine can have are kept; with a new owner, that is noted.
    let from = fixture.store.tree(&base).unwrap();
    let draft = fixture.store.draft(&base).unwrap();
    let copy = |src: &str, dest: &str, owner| fileop::Copy {
        src: src.into(),
        dest: dest.into(),
        create_dest_path: true,
        owner,
        ..fileop::Copy::default()
    };
    fileop::copy(&draft, Source::Tree(&from), &copy("/d/f", "/d/g", None), &()).unwrap();
    let owner = Some(fileop::Owner { uid: 1000, gid: 1000 });
    fileop::copy(&draft, Source::Tree(&from), &copy("/own", "/new/own", owner), &()).unwrap();
    fileop::rm(&draft, &fileop::Rm { path: "/gone".into(), ..fileop::Rm::default() }).unwrap();
    let next = fixture.commit(draft);
    assert_eq!(owners(&fixture, &next), ["d/ 5:6", "d/g 5:7", ".wh.gone 0:0", "new/ 1000:1000", "new/own 1000:1000"]);
    assert_eq!(fixture.list(&next), ["d/", "d/f=", "d/g=", "l->d/f", "new/", "new/own=", "own="]);
    // Owners count for digests.
    let digest_of = |path: &str| {
        let tree = fixture.store.tree(&next).unwrap();
        digest(&fixture.store, Source::Tree(&tree), &self::path(path), &()).unwrap()
    };
    assert_ne!(digest_of("/own"), digest_of("/new/own"));
    assert_eq!(digest_of("/d/f"), digest_of("/d/g"));
    // What a step leaves behind goes, whatever its modes.
    let draft = fixture.store.draft(&next).unwrap();
    let mount = draft.overlay().mount(bud_sandbox::overlay::MountApi::Auto).unwrap();
    let inside = std::path::PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount)));
    std::fs::create_dir_all(inside.join("locked/in")).unwrap();
    std::fs::remove_file(inside.join("own")).unwrap();
    for path in ["locked/in", "locked"] {
        std::fs::set_permissions(inside.join(path), PermissionsExt::from_mode(0o0)).unwrap();
    }
    drop(mount);
    let left = draft.upper();
    drop(draft);
    wait_until("the draft stays", || !left.exists());
    println!("unprivileged part done");
}

/// Rootless, with the own ID alone: overlays, whiteouts, owners in the table.
#[test]
fn an_unprivileged_user_builds_layers_too() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o777)).unwrap();
    let exe = dir.path().join("test");
    std::fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let inside = ["unshare", "--user", "--map-root-user", "--mount"];
    let as_nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let mut args: Vec<&str> = if rustix::process::geteuid().is_root() { as_nobody.to_vec() } else { Vec::new() };
    args.extend(inside);
    let output = std::process::Command::new(args[0])
        .args(&args[1..])
        .arg(&exe)
        .args(["--exact", "tests::unprivileged_part", "--nocapture"])
        .env("BUD_STORE_UNPRIVILEGED", dir.path())
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("unprivileged part done"), "{text}");
}

/// A01, R15, F11.
#[test]
fn a_state_that_others_could_change_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("state");
    std::fs::create_dir(&root).unwrap();
    let mode = |mode| std::fs::set_permissions(&root, PermissionsExt::from_mode(mode)).unwrap();
    for bad in [0o777, 0o720, 0o702] {
        mode(bad);
        let error = Store::open(&root, Options::default()).unwrap_err().to_string();
        assert!(error.contains("can be written by other users") && error.contains("--root"), "{error}");
    }
    mode(0o755);
    drop(Store::open(&root, Options::default()).unwrap());
    assert_eq!(std::fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(&root, Some(1234), None).unwrap();
        let error = Store::open(&root, Options::default()).unwrap_err().to_string();
        assert!(error.contains("another user"), "{error}");
    } else {
        eprintln!("a_state_that_others_could_change_is_refused: not root, a foreign directory can't be made");
    }
}

/// F11: where no overlay can be mounted, trees are still there, and what was made for them goes with their layers.
#[test]
fn without_overlays_trees_are_flat_directories() {
    let mut fixture = Fixture::with(Options { native: true, ..Options::default() });
    let base = fixture.layer(&Snapshot::scratch(), &["a/f=1", "k=1"]);
    let draft = fixture.store.draft(&base).unwrap();
    fileop::rm(&draft, &fileop::Rm { path: "/a/f".into(), ..fileop::Rm::default() }).unwrap();
    fill(&draft.upper(), &["n=2"]);
    assert_eq!(fixture.list_draft(&draft), ["a/", "k=1", "n=2"]);
    let next = fixture.commit(draft);
    assert_eq!(fixture.list(&next), ["a/", "k=1", "n=2"]);
    assert_eq!(fixture.list(&base), ["a/", "a/f=1", "k=1"]);
    fixture.unpin();
    fixture.store.prune(&PrunePolicy::default()).unwrap();
    wait_until("directories stay", || std::fs::read_dir(fixture.store.root().join("layers")).unwrap().count() == 0);
}
