//! Taking disk space back: limits, what is held meanwhile, and cache mounts as objects.

use crate::testing::{Fixture, fill};
use crate::{Info, PrunePolicy, RecordType, Sharing, Snapshot, StoreError, layer};
use bud_image::Digest;
use std::path::Path;
use std::time::{Duration, Instant};

fn key(name: &str) -> Digest {
    Digest::of(name)
}

fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let start = Instant::now();
    while !happened() {
        assert!(start.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The limits of a policy, as BuildKit means them.
#[test]
fn prune_goes_down_to_its_limits() {
    let mut fixture = Fixture::new();
    let names = ["a", "b", "c", "d", "e", "f"];
    for name in names {
        let layer = fixture.layer(&Snapshot::scratch(), &[&format!("{name}={}", "x".repeat(100_000))]);
        fixture.store.put_record(&key(name), &[Some(layer)], "").unwrap();
        std::thread::sleep(Duration::from_millis(3));
    }
    fixture.unpin();
    let one = fixture.store.usage().unwrap()[0].size;
    assert!(one >= 100_000, "real blocks: {one}");
    let left = |policy: PrunePolicy| {
        let pruned = fixture.store.plan_prune(&policy, &|_| true).unwrap();
        assert_eq!(pruned.bytes, pruned.removed.iter().map(|u| u.size).sum::<u64>());
        names.len() - pruned.removed.len()
    };
    let free = rustix::fs::statvfs(fixture.store.root()).map(|s| s.f_bavail * s.f_frsize).unwrap();
    let none = PrunePolicy::default;
    assert_eq!(left(none()), 0);
    assert_eq!(left(PrunePolicy { max_used: Some(one * 4), ..none() }), 4);
    assert_eq!(left(PrunePolicy { max_used: Some(one * 4 - 1), ..none() }), 3);
    // What is reserved alone is what is kept; with a maximum, the larger counts.
    assert_eq!(left(PrunePolicy { reserved: one * 2, ..none() }), 2);
    assert_eq!(left(PrunePolicy { reserved: one * 5, max_used: Some(one), ..none() }), 5);
    // Enough is free: nothing goes. Too little: as much as is missing (never what is reserved).
    assert_eq!(left(PrunePolicy { min_free: Some(1), ..none() }), 6);
    assert_eq!(left(PrunePolicy { min_free: Some(1), max_used: Some(one), ..none() }), 1);
    assert_eq!(left(PrunePolicy { min_free: Some(free * 2), ..none() }), 0);
    assert_eq!(left(PrunePolicy { min_free: Some(free * 2), reserved: one * 3, ..none() }), 3);
    assert_eq!(left(PrunePolicy { keep_duration: Some(Duration::from_secs(60)), ..none() }), 6);
    // A plan removed nothing; and what is used most stays longest.
    assert_eq!(fixture.store.usage().unwrap().len(), names.len());
    for _ in 0..3 {
        drop(fixture.store.record(&key("a")).unwrap());
    }
    fixture.store.prune(&PrunePolicy { max_used: Some(one), ..none() }).unwrap();
    assert!(fixture.store.record(&key("a")).unwrap().is_some());
    // What a named image holds is not the cache's.
    let layer = fixture.layer(&Snapshot::scratch(), &["named=1"]);
    fixture.store.put_image("named", "", &layer, &[]).unwrap();
    fixture.unpin();
    assert_eq!(fixture.store.prune(&PrunePolicy { max_used: Some(one), ..none() }).unwrap().removed.len(), 0);
}

/// Builds go on while everything is pruned all the time: what they hold stays, what they look up is whole or not there.
#[test]
fn a_pin_outlives_prunes_at_the_same_time() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let done = std::sync::atomic::AtomicBool::new(false);
    let prunes = std::sync::atomic::AtomicUsize::new(0);
    let hits = std::sync::atomic::AtomicUsize::new(0);
    let build = |worker: usize| {
        for round in 0..40 {
            let (mut snapshot, mut pins) = (Snapshot::scratch(), Vec::new());
            for step in 0..4 {
                // Two workers share their keys, as builds of one Dockerfile do.
                let name = format!("{}/{}/{step}", worker / 2, round / 4);
                if let Some(record) = store.record(&key(&name)).unwrap() {
                    hits.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    snapshot = record.outputs[0].clone().unwrap();
                    pins.push(record.pin);
                } else {
                    let draft = store.draft(&snapshot).unwrap();
                    fill(&draft.upper(), &[&format!("f{step}={name}")]);
                    let (made, pin) = draft.commit(&Info::default()).unwrap();
                    store.put_record(&key(&name), &[Some(made.clone())], "").unwrap();
                    snapshot = made;
                    pins.push(pin);
                }
                // All steps so far are there to be seen.
                let tree = store.tree(&snapshot).unwrap();
                for below in 0..=step {
                    let text = tree.read_file(format!("f{below}").as_bytes(), 100).unwrap();
                    assert_eq!(text, format!("{}/{}/{below}", worker / 2, round / 4).as_bytes());
                }
                let cache = store.cache_mount("shared", Sharing::Shared, &()).unwrap();
                std::fs::write(cache.path().join(format!("{worker}")), &name).unwrap();
                assert_eq!(std::fs::read_to_string(cache.path().join(format!("{worker}"))).unwrap(), name);
            }
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                store.prune(&PrunePolicy { all: true, ..PrunePolicy::default() }).unwrap();
                prunes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            }
        });
        let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || build(worker))).collect();
        let ended: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        for end in ended {
            end.unwrap();
        }
    });
    let (prunes, hits) = (prunes.into_inner(), hits.into_inner());
    assert!(prunes > 5 && hits > 5, "{prunes} prunes, {hits} hits");
}

#[test]
fn cache_mounts_are_objects() {
    let fixture = Fixture::new();
    let store = &fixture.store;
    let take = |id: &str, sharing| store.cache_mount(id, sharing, &()).unwrap();
    let one = take("/cache", Sharing::Private);
    let two = take("/cache", Sharing::Private);
    drop(take("/other", Sharing::Shared));
    drop(take(&format!("local {}", "0".repeat(64)), Sharing::Private));
    std::fs::write(one.path().join("f"), vec![1; 10_000]).unwrap();
    let objects = store.cache_objects().unwrap();
    let ids: Vec<_> = objects.iter().map(|o| (o.id.as_str(), o.directories, o.in_use)).collect();
    assert_eq!(ids, [("/cache", 2, true), ("/other", 1, false)]);
    assert!(objects[0].size >= 10_000);
    let usage = store.usage().unwrap();
    let kinds: Vec<_> = usage.iter().map(|u| (u.record_type, u.description.contains("local source"))).collect();
    assert_eq!(kinds.iter().filter(|k| **k == (RecordType::LocalSource, true)).count(), 1, "{usage:?}");
    // Busy, whichever directory it is.
    drop(one);
    assert!(matches!(store.remove_cache_object("/cache"), Err(StoreError::CacheBusy(_))));
    drop(two);
    let held = store.hold_cache_mount("/cache").unwrap().unwrap();
    assert!(matches!(store.hold_cache_mount("/cache"), Err(StoreError::CacheBusy(_))));
    assert!(matches!(store.import_cache_mount("/cache", &b""[..], &()), Err(layer::LayerError::Store(_))));
    drop(held);
    assert!(store.remove_cache_object("/cache").unwrap().unwrap() >= 10_000);
    assert_eq!(store.remove_cache_object("/cache").unwrap(), None);
    assert!(store.hold_cache_mount("/cache").unwrap().is_none());
    let fresh = take("/cache", Sharing::Shared);
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(fresh.path()).unwrap());
    assert_eq!((fresh.fresh, mode & 0o7777), (true, 0o755));
}

#[test]
fn a_cache_mount_goes_through_a_tar() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let fixture = Fixture::new();
    let store = &fixture.store;
    let cache = store.cache_mount("/from", Sharing::Shared, &()).unwrap();
    let from = cache.path();
    fill(&from, &["d/f=1 640", "d/deep/", "hard~d/f", "link->../../outside", ".wh.name=kept", "x=2 4755"]);
    let long = "n".repeat(200);
    fill(&from, &[&format!("{long}/{long}=long")]);
    rustix::fs::mknodat(rustix::fs::CWD, from.join("fifo"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(from.join("socket")).unwrap();
    std::fs::set_permissions(&from, std::fs::Permissions::from_mode(0o1777)).unwrap();
    let is_root = rustix::process::geteuid().is_root();
    if is_root {
        std::os::unix::fs::lchown(from.join("link"), Some(7), Some(8)).unwrap();
        std::os::unix::fs::chown(&from, Some(3), Some(4)).unwrap();
    }
    drop(cache);
    let mut tar = Vec::new();
    let held = store.hold_cache_mount("/from").unwrap().unwrap();
    let done = held.export(&mut tar, &()).unwrap();
    drop(held);
    assert_eq!(done.entries, 11);
    // Into one that holds something else, which goes.
    let other = store.cache_mount("/to", Sharing::Shared, &()).unwrap();
    fill(&other.path(), &["old=1"]);
    let to = other.path();
    drop(other);
    let gzip = gzipped(&tar);
    assert_eq!(store.import_cache_mount("/to", &gzip[..], &()).unwrap().done.entries, 11);
    std::fs::remove_file(from.join("socket")).unwrap();
    assert_eq!(crate::testing::list(&to), crate::testing::list(&from));
    assert_eq!(std::fs::metadata(to.join("hard")).unwrap().ino(), std::fs::metadata(to.join("d/f")).unwrap().ino());
    let looks = |dir: &Path| std::fs::metadata(dir).map(|m| (m.mode(), m.uid(), m.gid(), m.mtime())).unwrap();
    assert_eq!(looks(&to), looks(&from));
    if is_root {
        assert_eq!(std::fs::symlink_metadata(to.join("link")).unwrap().uid(), 7);
    }
    // Into one that isn't there.
    store.import_cache_mount("/fresh", &tar[..], &()).unwrap();
    assert_eq!(store.cache_objects().unwrap().iter().filter(|o| o.size > 0).count(), 3);
    // A tar that is cut off or hostile changes nothing, and leaves nothing behind.
    let before = crate::testing::list(&to);
    assert!(store.import_cache_mount("/to", &tar[..tar.len() / 2 + 100], &()).is_err());
    for hostile in ["../../outside", "/../outside", "a/../../outside"] {
        let mut writer = bud_oci::tar::Writer::new(Vec::new());
        let header = |path: &str| bud_oci::tar::Header::new(path.as_bytes().to_vec(), bud_oci::tar::Kind::File);
        writer.start(&header("fine")).unwrap();
        writer.start(&header(hostile)).unwrap();
        let tar = writer.finish().unwrap();
        assert!(store.import_cache_mount("/to", &tar[..], &()).is_err(), "{hostile}");
    }
    // A link that leads out is only a link, and what goes through it stays inside.
    let mut writer = bud_oci::tar::Writer::new(Vec::new());
    let link = bud_oci::tar::Header {
        link: b"../../../outside".to_vec(),
        ..bud_oci::tar::Header::new(b"out".to_vec(), bud_oci::tar::Kind::Symlink)
    };
    writer.start(&link).unwrap();
    writer.start(&bud_oci::tar::Header::new(b"out/file".to_vec(), bud_oci::tar::Kind::File)).unwrap();
    let through = writer.finish().unwrap();
    let _either = store.import_cache_mount("/hostile", &through[..], &());
    assert!(!fixture.dir.path().join("outside").exists());
    assert_eq!(crate::testing::list(&to), before);
    wait_until("what was replaced stays", || std::fs::read_dir(store.root().join("layers")).unwrap().count() == 0);
}

fn gzipped(bytes: &[u8]) -> Vec<u8> {
    let mut child = std::process::Command::new("gzip")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let bytes = bytes.to_vec();
    let writer = std::thread::spawn(move || std::io::Write::write_all(&mut stdin, &bytes).unwrap());
    let out = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    out
}
