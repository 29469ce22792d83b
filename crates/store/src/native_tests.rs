//! A step leaves the same layer, on an overlay or in a copy of its own.

use crate::layer::{WriteOptions, write_tar};
use crate::store::Options;
use crate::testing::Fixture;
use crate::{Snapshot, View};
use bud_sandbox::overlay::MountApi;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const BASE: [&str; 14] = [
    "d/f=1",
    "d/sub/g=2",
    "gone/a=1",
    "gone/b=2",
    "keep/x=1",
    "l->d",
    "mode=m",
    "moved/in/file=3",
    "name=n",
    "one=both",
    "two~one",
    "opq/old=1",
    "same=s",
    "write=long",
];

/// What steps do with files.
fn step(root: &Path) {
    let at = |name: &str| root.join(name);
    std::fs::write(at("write"), "new").unwrap();
    std::fs::set_permissions(at("mode"), PermissionsExt::from_mode(0o4711)).unwrap();
    std::fs::remove_dir_all(at("gone")).unwrap();
    std::fs::remove_dir_all(at("opq")).unwrap();
    std::fs::create_dir(at("opq")).unwrap();
    std::fs::write(at("opq/new"), "n").unwrap();
    // A directory can't be renamed in an overlay: `mv` copies then. A new one can.
    std::fs::create_dir_all(at("fresh/deep")).unwrap();
    std::fs::write(at("fresh/deep/f"), "f").unwrap();
    std::fs::rename(at("fresh"), at("renamed")).unwrap();
    std::fs::rename(at("name"), at("d/name")).unwrap();
    std::fs::write(at("one"), "only one").unwrap();
    std::fs::hard_link(at("same"), at("linked")).unwrap();
    std::fs::remove_file(at("l")).unwrap();
    std::fs::create_dir(at("l")).unwrap();
    symlink("nowhere", at("l/s")).unwrap();
    std::fs::remove_file(at("d/sub/g")).unwrap();
    std::fs::remove_dir_all(at("moved")).unwrap();
    std::fs::write(at("moved"), "a file now").unwrap();
    rustix::fs::setxattr(at("keep"), "user.note", b"1", rustix::fs::XattrFlags::empty()).unwrap();
}

/// Names and contents of a layer's tar, and which entries are one file.
fn tar_of(fixture: &Fixture, snapshot: &Snapshot) -> Vec<String> {
    let mut tar = Vec::new();
    let top = fixture.store.logical_layers(snapshot).unwrap().pop().unwrap();
    write_tar(&fixture.store, &top, &mut tar, &WriteOptions::default(), &()).unwrap();
    let mut reader = bud_oci::tar::Reader::new(tar.as_slice());
    let mut names = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let kind = entry.header.kind;
        names.push(format!(
            "{} {kind:?} {:o} {}",
            String::from_utf8_lossy(&entry.header.path),
            entry.header.mode,
            String::from_utf8_lossy(&entry.header.link)
        ));
    }
    names
}

fn run(native: bool, work: impl Fn(&Path)) -> (Vec<String>, Vec<String>, Vec<String>) {
    let mut fixture = Fixture::with(Options { native, ..Options::default() });
    let base = fixture.layer(&Snapshot::scratch(), &BASE);
    let before = fixture.list(&base);
    let draft = fixture.store.draft(&base).unwrap();
    match draft.writable(None, &()).unwrap() {
        View::Overlay(overlay) => {
            let mount = overlay.mount(MountApi::from_environment()).unwrap();
            work(Path::new(&format!("/proc/self/fd/{}", mount.as_raw_fd())));
        }
        View::Directory(path) => {
            assert!(native);
            work(&path);
        }
    }
    let after = fixture.commit(draft);
    assert_eq!(fixture.list(&base), before, "what a step stands on is never written to");
    (fixture.list(&after), tar_of(&fixture, &after), before)
}

#[test]
fn a_step_leaves_the_same_layer_on_an_overlay_and_in_a_copy() {
    let (overlay, copy) = (run(false, step), run(true, step));
    assert_eq!(overlay.0, copy.0);
    assert_eq!(overlay.1, copy.1);
    assert_eq!(overlay.2, copy.2);
    assert!(copy.0.contains(&"two=both".to_owned()), "one name of two was changed: {:?}", copy.0);
}

#[test]
fn a_step_that_changes_nothing_leaves_an_empty_layer() {
    let (tree, tar, before) = run(true, |root| {
        // Mount points come and go, and the times are put back.
        let times = std::fs::metadata(root.join("d")).unwrap();
        std::fs::write(root.join("d/stub"), "").unwrap();
        std::fs::remove_file(root.join("d/stub")).unwrap();
        let time = rustix::fs::Timespec { tv_sec: times.mtime(), tv_nsec: times.mtime_nsec() };
        let times = rustix::fs::Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(rustix::fs::CWD, root.join("d"), &times, rustix::fs::AtFlags::empty()).unwrap();
    });
    assert_eq!(tree, before);
    assert!(tar.is_empty(), "{tar:?}");
}
