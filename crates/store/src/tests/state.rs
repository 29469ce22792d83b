//! What is found when a state directory is opened: after a restart, a kill, a crash, by another version.

use super::{key, reopen, wait_until};
use crate::blob::LayerBlob;
use crate::testing::{Fixture, fill};
use crate::*;
use bud_image::Digest;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

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
            .args(["--exact", "tests::state::writes_until_killed", "--nocapture"])
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
