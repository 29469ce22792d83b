//! Read-only views of snapshots.

use crate::snapshot::{LayerDraft, Owners, Pin, Snapshot};
use crate::store::{Store, lock};
use crate::{ContextTree, StoreError};
use bud_sandbox::overlay::{MountApi, Overlay, OverlayError};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};

/// So many mounted trees are kept for the next use.
const KEPT_TREES: usize = 16;

/// A snapshot's files, read-only: a directory descriptor of the union of its layers.
///
/// The mount is attached nowhere and goes when the last clone is dropped.
#[derive(Clone)]
pub struct Tree(Arc<Inner>);

struct Inner {
    root: OwnedFd,
    /// The mount is dissolved when its own descriptor is closed.
    _mount: Option<OwnedFd>,
    snapshot: Option<Snapshot>,
    /// Owners that this machine can't give to files, by path.
    owners: Owners,
    _flat: Option<Temporary>,
    _pin: Option<Pin>,
}

impl std::fmt::Debug for Tree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Tree").field(&self.0.snapshot).finish()
    }
}

/// Trees that were used a moment ago.
#[derive(Default)]
pub(crate) struct TreeCache(Mutex<VecDeque<(Snapshot, Weak<Inner>)>>);

/// Where a file operation takes files from.
#[derive(Clone, Copy, Debug)]
pub enum Source<'a> {
    /// A snapshot.
    Tree(&'a Tree),
    /// A local directory, read in place.
    Context(&'a ContextTree),
}

impl Store {
    /// Mounts a snapshot read-only, or returns a mount that is there still.
    ///
    /// # Errors
    /// A layer is gone, or the overlay can't be mounted.
    pub fn tree(self: &Arc<Self>, snapshot: &Snapshot) -> Result<Tree, StoreError> {
        self.ensure_mountable(snapshot)?;
        let mut cache = lock(&self.trees.0);
        if let Some(found) = cache.iter().find(|(s, _)| s == snapshot).and_then(|(_, weak)| weak.upgrade()) {
            return Ok(Tree(found));
        }
        let pin = self.pin(snapshot)?;
        let (root, mount) = match self.mounted(snapshot)? {
            Some((root, mount)) => (root, Some(mount)),
            None => (open_dir(&self.flat_tree(snapshot)?)?, None),
        };
        let inner = Arc::new(Inner {
            root,
            _mount: mount,
            snapshot: Some(snapshot.clone()),
            owners: self.owners(snapshot)?,
            _flat: None,
            _pin: Some(pin),
        });
        cache.retain(|(s, weak)| s != snapshot && weak.strong_count() > 0);
        cache.push_front((snapshot.clone(), Arc::downgrade(&inner)));
        cache.truncate(KEPT_TREES);
        Ok(Tree(inner))
    }

    /// Mounts a snapshot and opens its root; nothing if it has no files, or if this machine refuses overlays.
    pub(crate) fn mounted(&self, snapshot: &Snapshot) -> Result<Option<(OwnedFd, OwnedFd)>, StoreError> {
        if snapshot.is_scratch() || self.is_native() {
            return Ok(None);
        }
        self.mount(&self.overlay(snapshot))
    }

    fn mount(&self, overlay: &Overlay) -> Result<Option<(OwnedFd, OwnedFd)>, StoreError> {
        let mount = match overlay.mount(MountApi::from_environment()) {
            Ok(mount) => mount,
            Err(OverlayError::Sys { source, .. }) if is_refusal(&source) => {
                self.refuse_overlay(&source.to_string());
                return Ok(None);
            }
            Err(e) => return Err(StoreError::Overlay(e.to_string())),
        };
        let root = open_beneath(mount.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| StoreError::Overlay(format!("open its root: {e}")))?;
        Ok(Some((root, mount)))
    }
}

/// Tells whether the kernel doesn't let this process mount overlays, or doesn't know them.
fn is_refusal(error: &std::io::Error) -> bool {
    let refusals = [Errno::PERM, Errno::ACCESS, Errno::NODEV, Errno::NOSYS];
    error.raw_os_error().is_some_and(|code| refusals.iter().any(|e| e.raw_os_error() == code))
}

/// A flat directory that goes with the tree.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        crate::disk::remove_later(&self.0);
    }
}

fn open_dir(path: &Path) -> Result<OwnedFd, StoreError> {
    rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(StoreError::io("open", path))
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.root.as_fd()
    }
}

impl Tree {
    pub(crate) fn of_draft(draft: &LayerDraft) -> Result<Self, StoreError> {
        let store = draft.store();
        let mut lowers = vec![draft.upper()];
        lowers.extend(store.lowers(draft.parent()));
        if lowers.len() < 2 {
            lowers.push(store.empty_dir());
        }
        let overlay = Overlay { lowers, upper: None, work: None, volatile: false };
        let mounted = if store.is_native() { None } else { store.mount(&overlay)? };
        let (root, mount, flat) = match mounted {
            Some((root, mount)) => (root, Some(mount), None),
            None => {
                let path = store.flat_draft(draft.parent(), draft.id())?;
                let flat = path.parent().map(|dir| Temporary(dir.to_owned()));
                (open_dir(&path)?, None, flat)
            }
        };
        let mut owners = store.owners(draft.parent())?;
        lock(&draft.notes).lay_owners_over(&mut owners, &draft.upper())?;
        let pin = store.pin(draft.parent())?;
        Ok(Self(Arc::new(Inner { root, _mount: mount, snapshot: None, owners, _flat: flat, _pin: Some(pin) })))
    }

    /// Makes a tree of any directory, such as one in a test.
    ///
    /// # Errors
    /// The directory can't be opened.
    pub fn of_directory(path: &Path) -> Result<Self, StoreError> {
        let root = open_dir(path)?;
        Ok(Self(Arc::new(Inner { root, _mount: None, snapshot: None, owners: Owners::new(), _flat: None, _pin: None })))
    }

    /// Returns the snapshot, if it is one.
    #[must_use]
    pub fn snapshot(&self) -> Option<&Snapshot> {
        self.0.snapshot.as_ref()
    }

    /// Returns the owners that files of the tree should have but can't have on this machine.
    pub(crate) fn owners(&self) -> &Owners {
        &self.0.owners
    }

    /// Opens a path within the tree; symbolic links lead nowhere else.
    ///
    /// # Errors
    /// As `openat2(2)` has them.
    pub fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
        open_in_root(self.as_fd(), path, flags)
    }

    /// Reads a regular file whole.
    ///
    /// # Errors
    /// It isn't there, isn't a regular file, or is larger than the limit.
    pub fn read_file(&self, path: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
        read_regular(self.open(path, OFlags::RDONLY | OFlags::NONBLOCK)?, limit)
    }
}

/// Opens a path with the directory as its root (`openat2(2)`, `RESOLVE_IN_ROOT`).
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
    let path = if path.is_empty() { b"/" } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    retry(|| rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve))
}

/// Opens a path that has no symbolic links in it, below a directory.
pub(crate) fn open_beneath(dir: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    retry(|| rustix::fs::openat2(dir, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve))
}

/// `openat2` gives up with EAGAIN when something was renamed meanwhile.
fn retry(mut open: impl FnMut() -> Result<OwnedFd, rustix::io::Errno>) -> Result<OwnedFd, rustix::io::Errno> {
    for _ in 0..64 {
        match open() {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            other => return other,
        }
    }
    Err(rustix::io::Errno::AGAIN)
}

/// Reads a regular file up to a limit. The file was opened with `O_NONBLOCK`, so that a FIFO doesn't hang it.
pub(crate) fn read_regular(fd: OwnedFd, limit: u64) -> std::io::Result<Vec<u8>> {
    let stat = rustix::fs::fstat(&fd)?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    std::fs::File::from(fd).take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("larger than {limit} bytes")));
    }
    Ok(bytes)
}
