//! Digests of content, and the contexts it comes from.

use crate::content::{Selection, digest};
use crate::context::{ContextOptions, ContextTree};
use crate::testing::{Fixture, fill};
use crate::*;
use bud_image::Digest;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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

pub(super) fn path(path: &str) -> Selection {
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
