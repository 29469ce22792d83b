//! What the tests of this crate share.

use crate::record::Info;
use crate::snapshot::{LayerDraft, Pin, Snapshot};
use crate::store::{Options, Store};
use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;

pub(crate) struct Fixture {
    pub store: Arc<Store>,
    pub dir: tempfile::TempDir,
    pins: Vec<Pin>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::with(Options::default())
    }

    pub(crate) fn with(options: Options) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("state"), options).unwrap();
        Self::of(store, dir)
    }

    pub(crate) fn of(store: Arc<Store>, dir: tempfile::TempDir) -> Self {
        Self { store, dir, pins: Vec::new() }
    }

    pub(crate) fn keep(&mut self, pin: Pin) {
        self.pins.push(pin);
    }

    /// Lets go of the layers that were made.
    pub(crate) fn unpin(&mut self) {
        self.pins.clear();
    }

    /// Makes a layer with the files of a listing (see [`fill`]).
    pub(crate) fn layer(&mut self, parent: &Snapshot, files: &[&str]) -> Snapshot {
        let draft = self.store.draft(parent).unwrap();
        fill(&draft.upper(), files);
        self.commit(draft)
    }

    pub(crate) fn commit(&mut self, draft: LayerDraft) -> Snapshot {
        let (snapshot, pin) = draft.commit(&Info::default()).unwrap();
        self.pins.push(pin);
        snapshot
    }

    /// Lists a snapshot as it is seen through the mounted overlay.
    pub(crate) fn list(&self, snapshot: &Snapshot) -> Vec<String> {
        let tree = self.store.tree(snapshot).unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&rustix::fd::AsFd::as_fd(&tree));
        list(Path::new(&format!("/proc/self/fd/{fd}")))
    }

    /// Lists a draft as it is seen through an overlay.
    pub(crate) fn list_draft(&self, draft: &LayerDraft) -> Vec<String> {
        let tree = draft.tree().unwrap();
        let fd = std::os::fd::AsRawFd::as_raw_fd(&rustix::fd::AsFd::as_fd(&tree));
        list(Path::new(&format!("/proc/self/fd/{fd}")))
    }
}

/// Makes files: `dir/`, `file=content`, `link->target`, `name~file` (hard link); ` mode` at the end in octal.
pub(crate) fn fill(root: &Path, files: &[&str]) {
    for file in files {
        let (spec, mode) = match file.rsplit_once(' ') {
            Some((spec, mode)) => (spec, Some(u32::from_str_radix(mode, 8).unwrap())),
            None => (*file, None),
        };
        let parent = |name: &str| {
            let path = root.join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        };
        let path = if let Some((name, target)) = spec.split_once("->") {
            let path = parent(name);
            symlink(target, &path).unwrap();
            path
        } else if let Some((name, content)) = spec.split_once('=') {
            let path = parent(name);
            std::fs::write(&path, content).unwrap();
            path
        } else if let Some((name, first)) = spec.split_once('~') {
            let path = parent(name);
            std::fs::hard_link(root.join(first), &path).unwrap();
            path
        } else {
            let path = root.join(spec);
            std::fs::create_dir_all(&path).unwrap();
            path
        };
        if let Some(mode) = mode {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    }
}

/// Lists a tree as [`fill`] takes it, with modes and owners where they aren't the usual ones.
pub(crate) fn list(root: &Path) -> Vec<String> {
    let mut out = BTreeMap::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = std::fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let mut line = if meta.is_dir() {
                waiting.push(path.clone());
                format!("{name}/")
            } else if meta.is_symlink() {
                format!("{name}->{}", std::fs::read_link(&path).unwrap().to_string_lossy())
            } else if meta.is_file() {
                format!("{name}={}", String::from_utf8_lossy(&std::fs::read(&path).unwrap()))
            } else {
                format!("{name}?{:o}", meta.mode() & 0o170_000)
            };
            let usual = if meta.is_dir() { 0o755 } else { 0o644 };
            if !meta.is_symlink() && meta.mode() & 0o7777 != usual {
                line += &format!(" {:o}", meta.mode() & 0o7777);
            }
            if (meta.uid(), meta.gid()) != (0, 0) {
                line += &format!(" {}:{}", meta.uid(), meta.gid());
            }
            out.insert(path.as_os_str().as_bytes().to_vec(), line);
        }
    }
    out.into_values().collect()
}
