//! Layers: which stay and which go, merges, and users without other IDs.

use super::{key, stepped, wait_until};
use crate::content::digest;
use crate::testing::{Fixture, fill};
use crate::*;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

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

#[test]
fn a_deleted_layer_directory_makes_a_miss() {
    let mut fixture = Fixture::new();
    let layer = fixture.layer(&Snapshot::scratch(), &["a=1"]);
    fixture.store.put_record(&key("k"), &[Some(layer.clone())], "").unwrap();
    fixture.unpin();
    std::fs::remove_dir_all(fixture.store.layer_fs(layer.top().unwrap())).unwrap();
    assert!(fixture.store.record(&key("k")).unwrap().is_none());
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
        digest(&fixture.store, Source::Tree(&tree), &super::content::path(path), &()).unwrap()
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
        .args(["--exact", "tests::layers::unprivileged_part", "--nocapture"])
        .env("BUD_STORE_UNPRIVILEGED", dir.path())
        .env("TMPDIR", dir.path())
        .current_dir(dir.path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("unprivileged part done"), "{text}");
}
