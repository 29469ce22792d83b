//! Owners that files should have but can't have, because only the user's own ID is mapped: kept beside the files.
//!
//! A step's own changes come from the sandbox, by inode ([`bud_sandbox::Owners`]); at the commit they become paths of the layer. A file
//! of a lower layer that a step only touched keeps the owner that was noted for it there; of one that it renamed, the sandbox says it again.

use crate::StoreError;
use crate::fileop::FileOpError;
use crate::layer::LayerError;
use crate::scan::{Kind, MAX_DEPTH, Node, look, names_of, open_subdir};
use crate::snapshot::{LayerDraft, Owners};
use crate::store::lock;
use crate::tree::{Tree, open_beneath};
use crate::union::{is_opaque, is_whiteout, xattr_value};
use bud_sandbox::{OWNER_BELOW, OWNER_RECORD};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, OFlags, StatxFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io::Read;
use std::path::PathBuf;

/// An ID that was left as it was.
const UNCHANGED: u32 = u32::MAX;
/// A file of a directory with this bit gets the directory's group.
const SET_GROUP: u32 = 0o2000;

/// What is noted of an inode: when it was made, and its owner.
type Noted = HashMap<u64, (Birth, Ids)>;
/// Seconds and nanoseconds.
type Birth = (i64, u32);
/// User and group.
type Ids = (u32, u32);

impl LayerDraft {
    /// Returns what the sandbox needs to change owners and to tell them, where only the own ID is mapped.
    ///
    /// # Errors
    /// The layers below can't be mounted, or the disk is full.
    pub fn owners(&self) -> Result<bud_sandbox::Owners, StoreError> {
        Ok(bud_sandbox::Owners { noted: self.noted_owners(), below: self.owners_below()? })
    }

    fn noted_owners(&self) -> PathBuf {
        self.dir().join("owners")
    }

    /// Writes the owners that show below the draft, by inode.
    fn owners_below(&self) -> Result<Option<PathBuf>, StoreError> {
        if self.store().owners(self.parent())?.is_empty() {
            return Ok(None);
        }
        let inodes = inodes(&self.store().tree(self.parent())?);
        let path = self.dir().join("owners-below");
        let mut bytes = Vec::with_capacity(inodes.len() * OWNER_BELOW);
        for (inode, (uid, gid)) in inodes {
            bytes.extend(inode.to_le_bytes());
            bytes.extend(uid.to_le_bytes());
            bytes.extend(gid.to_le_bytes());
        }
        std::fs::write(&path, bytes).map_err(StoreError::io("write", &path))?;
        Ok(Some(path))
    }

    /// Turns what a step noted into owners by path. The step is over.
    pub(crate) fn take_noted_owners(&self) -> Result<(), StoreError> {
        let path = self.noted_owners();
        let noted = match std::fs::File::open(&path) {
            Ok(file) => read_noted(file).map_err(StoreError::io("read", &path))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(StoreError::Io { what: "open", path, source: e }),
        };
        let below = self.store().owners(self.parent())?;
        if !(noted.is_empty() && below.is_empty()) {
            let tree = self.store().tree(self.parent())?;
            let walk = Walk { draft: self, noted, below: tree, found: Owners::new() };
            let found = walk.run().map_err(|e| StoreError::Layer(Box::new(e)))?;
            lock(&self.notes).owners.extend(found);
        }
        for path in [path, self.dir().join("owners-below")] {
            match std::fs::remove_file(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::Io { what: "remove", path, source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Reads records; of those for one inode the last one counts.
fn read_noted(file: std::fs::File) -> std::io::Result<Noted> {
    let mut file = std::io::BufReader::new(file);
    let mut noted = Noted::new();
    let mut record = [0; OWNER_RECORD];
    loop {
        match file.read_exact(&mut record) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(noted),
            Err(e) => return Err(e),
        }
        let long = |at: usize| u64::from_le_bytes(record[at..at + 8].try_into().unwrap_or_default());
        let short = |at: usize| u32::from_le_bytes(record[at..at + 4].try_into().unwrap_or_default());
        noted.insert(long(0), ((long(8).cast_signed(), short(16)), (short(20), short(24))));
    }
}

/// Returns the wanted owners of a tree by the inodes that its mount shows.
fn inodes(tree: &Tree) -> HashMap<u64, Ids> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW;
    let stat = |path: &[u8]| rustix::fs::fstat(open_beneath(tree.as_fd(), path, flags)?);
    // What is not there shows no owner either.
    tree.owners().iter().filter_map(|(path, owner)| Some((stat(path).ok()?.st_ino, *owner))).collect()
}

/// Goes through a layer that a step has filled.
struct Walk<'a> {
    draft: &'a LayerDraft,
    noted: Noted,
    below: Tree,
    found: Owners,
}

/// A directory of the layer.
struct Level {
    fd: OwnedFd,
    path_len: usize,
    names: std::vec::IntoIter<Box<[u8]>>,
    /// Nothing below shows through.
    hides: bool,
    mode: u32,
    gid: u32,
}

impl Walk<'_> {
    fn run(mut self) -> Result<Owners, LayerError> {
        let fail = |what: &'static str, path: &[u8]| {
            let path = path.to_vec();
            move |e: Errno| FileOpError::io(what, &path, e)
        };
        let upper = self.draft.upper();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::open(&upper, flags, rustix::fs::Mode::empty()).map_err(fail("open", b"/"))?;
        let root = look(fd.as_fd(), b"").map_err(fail("look at", b"/"))?;
        let names = names_of(&fd).map_err(fail("read", b"/"))?.into_iter();
        let mut path = Vec::new();
        let mut stack = vec![Level { fd, path_len: 0, names, hides: false, mode: root.meta.mode, gid: root.meta.gid }];
        while let Some(level) = stack.last_mut() {
            let Some(name) = level.names.next() else {
                path.truncate(level.path_len);
                stack.pop();
                continue;
            };
            let path_len = path.len();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let node = look(level.fd.as_fd(), &name).map_err(fail("look at", &path))?;
            if is_whiteout(&node) {
                path.truncate(path_len);
                continue;
            }
            let opened = if node.is_dir() {
                Some(open_subdir(level.fd.as_fd(), &name).map_err(fail("open", &path))?)
            } else {
                None
            };
            let hides = level.hides || opened.as_ref().is_some_and(is_opaque);
            let kept = self.kept(level, &path, &node, hides)?;
            let inherited = if level.mode & SET_GROUP != 0 { level.gid } else { node.meta.gid };
            let before = kept.unwrap_or((node.meta.uid, inherited));
            let owner = match self.noted(level.fd.as_fd(), &node).map_err(fail("look at", &path))? {
                Some((uid, gid)) => {
                    (if uid == UNCHANGED { before.0 } else { uid }, if gid == UNCHANGED { before.1 } else { gid })
                }
                None => before,
            };
            if owner != (node.meta.uid, node.meta.gid) {
                self.found.insert(path.clone(), owner);
            }
            match opened {
                Some(fd) => {
                    if stack.len() >= MAX_DEPTH {
                        let deep = format!("nested deeper than {MAX_DEPTH} directories");
                        return Err(FileOpError::Invalid(deep).into());
                    }
                    let names = names_of(&fd).map_err(fail("read", &path))?.into_iter();
                    stack.push(Level { fd, path_len, names, hides, mode: node.meta.mode, gid: owner.1 });
                }
                None => path.truncate(path_len),
            }
        }
        Ok(self.found)
    }

    /// Returns what the step noted for a file.
    fn noted(&self, dir: BorrowedFd<'_>, node: &Node) -> Result<Option<Ids>, Errno> {
        let Some((birth, owner)) = self.noted.get(&node.meta.ino) else { return Ok(None) };
        let stat = rustix::fs::statx(dir, &*node.name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::BTIME)?;
        Ok(((stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec) == *birth).then_some(*owner))
    }

    /// Returns the wanted owner of what was below, if the entry is still that.
    fn kept(&self, level: &Level, path: &[u8], node: &Node, hides: bool) -> Result<Option<Ids>, LayerError> {
        let fail = |e: Errno| FileOpError::io("look at", path, e);
        if self.below.owners().is_empty() {
            return Ok(None);
        }
        let here = || self.below.owners().get(path).copied();
        match &node.kind {
            Kind::Dir(_) => Ok(here().filter(|_| !hides)),
            // A link has no mark of where it came from: its time is the one it had.
            Kind::Link(target) => {
                let Some(owner) = here().filter(|_| !level.hides) else { return Ok(None) };
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                let below = look(open_beneath(self.below.as_fd(), path, flags).map_err(fail)?.as_fd(), b"");
                let same = below
                    .is_ok_and(|b| matches!(&b.kind, Kind::Link(t) if t == target) && b.meta.mtime == node.meta.mtime);
                Ok(same.then_some(owner))
            }
            Kind::File => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let file =
                    rustix::fs::openat(&level.fd, &*node.name, flags, rustix::fs::Mode::empty()).map_err(fail)?;
                let has = |name: &str| xattr_value(&file, name).is_ok();
                // Overlay marks what it has copied up.
                if !(has("user.overlay.origin") || has("trusted.overlay.origin")) {
                    return Ok(None);
                }
                Ok(here())
            }
            _ => Ok(None),
        }
    }
}
