//! Writing into a layer as the union of it and its parents looks, without a mount.
//!
//! A draft's directory is private to the operation and its parents don't change, so that the union can be followed by hand:
//! what is in the upper directory hides what is below, whiteouts hide without showing anything, opaque directories hide
//! the directory below. Only one path component is opened at a time, and no link is followed by the kernel.

use crate::fileop::{FileOpError, Owner};
use crate::scan::{Kind, Node, look, names_of};
use crate::snapshot::{LayerDraft, Notes};
use crate::store::lock;
use crate::tree::{Tree, open_beneath};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use std::sync::{Arc, Mutex, OnceLock};

/// The attribute that hides what is below a directory, in mounts with `userxattr`.
pub(crate) const OPAQUE: &str = "user.overlay.opaque";
/// Links followed for one path at most, as in Linux.
const MAX_LINKS: usize = 40;

/// The union of a draft and its parents.
pub(crate) struct Union<'a> {
    root: UnionDir,
    notes: &'a Mutex<Notes>,
    has_lower: bool,
    /// The parents' tree.
    below: Option<Tree>,
    /// Directories that are made on the way are noted: what they look like is found out when the parents are known.
    notes_implied: bool,
}

/// A directory of the union: the part in the draft, if there is one yet, and what shows through from below.
#[derive(Clone)]
pub(crate) struct UnionDir {
    pub upper: Option<Arc<OwnedFd>>,
    pub lower: Option<Arc<OwnedFd>>,
    /// From the root, without links, without a leading slash.
    pub path: Vec<u8>,
}

/// What a path leads to: a directory's chain from the root down, and a name in it.
pub(crate) struct Spot {
    /// From the root to the directory that the name is in.
    pub dirs: Vec<UnionDir>,
    /// The last component; empty if the path is the root, or ends in a directory that was entered.
    pub name: Vec<u8>,
    /// What is there now.
    pub found: Option<Node>,
}

/// The looks of directories that are made on the way.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewDirs {
    pub mode: u32,
    pub owner: Option<Owner>,
    pub time: Option<i64>,
}

/// Turns nanoseconds since 1970 into the kernel's form.
pub(crate) fn timespec_of_ns(ns: i64) -> (i64, u32) {
    (ns.div_euclid(1_000_000_000), u32::try_from(ns.rem_euclid(1_000_000_000)).unwrap_or(0))
}

pub(crate) fn timestamps((sec, nsec): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: sec, tv_nsec: nsec.into() };
    Timestamps { last_access: time, last_modification: time }
}

impl UnionDir {
    /// Looks at an entry of the union, following nothing. Tells whether it is in the draft.
    pub(crate) fn child(&self, name: &[u8]) -> Result<Option<(Node, bool)>, Errno> {
        if let Some(upper) = &self.upper {
            match look(upper.as_fd(), name) {
                Ok(node) if is_whiteout(&node) => return Ok(None),
                Ok(node) => return Ok(Some((node, true))),
                Err(Errno::NOENT) => {}
                Err(e) => return Err(e),
            }
        }
        match self.lower_child(name)? {
            Some(node) => Ok(Some((node, false))),
            None => Ok(None),
        }
    }

    fn lower_child(&self, name: &[u8]) -> Result<Option<Node>, Errno> {
        let Some(lower) = &self.lower else { return Ok(None) };
        match look(lower.as_fd(), name) {
            Ok(node) => Ok(Some(node)),
            Err(Errno::NOENT) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Enters a directory that [`UnionDir::child`] found.
    pub(crate) fn enter(&self, name: &[u8]) -> Result<UnionDir, Errno> {
        let mut path = self.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let open = |dir: &Option<Arc<OwnedFd>>| -> Result<Option<Arc<OwnedFd>>, Errno> {
            let Some(dir) = dir else { return Ok(None) };
            match open_beneath(dir.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW) {
                Ok(fd) => Ok(Some(Arc::new(fd))),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(e) => Err(e),
            }
        };
        let upper = open(&self.upper)?;
        let hidden = match (&self.upper, &upper) {
            _ if self.lower.is_none() => true,
            (_, Some(upper)) => is_opaque(upper),
            // A whiteout or another file of the draft hides what is below.
            (Some(dir), None) => rustix::fs::statat(dir.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW).is_ok(),
            (None, None) => false,
        };
        let lower = if hidden { None } else { open(&self.lower)? };
        if upper.is_none() && lower.is_none() {
            return Err(Errno::NOENT);
        }
        Ok(UnionDir { upper, lower, path })
    }

    /// Returns the names in the union of the directory.
    pub(crate) fn names(&self) -> Result<Vec<Box<[u8]>>, Errno> {
        let mut names = Vec::new();
        for dir in [&self.upper, &self.lower].into_iter().flatten() {
            names.extend(names_of(dir)?);
        }
        names.sort_unstable();
        names.dedup();
        if let (Some(upper), Some(_)) = (&self.upper, &self.lower) {
            names.retain(|name| !look(upper.as_fd(), name).is_ok_and(|node| is_whiteout(&node)));
        }
        Ok(names)
    }

    /// The draft's part, which the caller made sure is there.
    pub(crate) fn upper_fd(&self) -> Result<&Arc<OwnedFd>, Errno> {
        self.upper.as_ref().ok_or(Errno::NOENT)
    }

    pub(crate) fn join(&self, name: &[u8]) -> Vec<u8> {
        if self.path.is_empty() { name.to_vec() } else { [&self.path, &b"/"[..], name].concat() }
    }
}

/// Where a link leads that stands for a whiteout. A file system that is an overlay itself (a container's own) keeps no others; the layers
/// that have such links are never mounted, but laid together in copies.
const HIDDEN: &[u8] = b"\x01bud: hides what is below\x01";

pub(crate) fn is_whiteout(node: &Node) -> bool {
    match &node.kind {
        Kind::Device { block: false } => node.meta.rdev == 0,
        Kind::Link(target) => **target == *HIDDEN,
        _ => false,
    }
}

pub(crate) fn is_opaque(dir: &OwnedFd) -> bool {
    let mut value = [0_u8; 4];
    rustix::fs::fgetxattr(dir, OPAQUE, &mut value).is_ok_and(|n| n == 1 && value[0] == b'y')
}

pub(crate) fn set_opaque(dir: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(dir, OPAQUE, b"y", XattrFlags::empty())
}

/// Makes the device 0:0 that hides a name of the layers below.
pub(crate) fn make_whiteout(dir: &OwnedFd, name: &[u8]) -> Result<(), Errno> {
    match make_whiteout_device(dir, name) {
        Err(Errno::PERM | Errno::OPNOTSUPP) => rustix::fs::symlinkat(HIDDEN, dir, name),
        made => made,
    }
}

/// Makes a whiteout as the kernel's overlays have it.
pub(crate) fn make_whiteout_device(dir: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    rustix::fs::mknodat(dir, name, rustix::fs::FileType::CharacterDevice, Mode::empty(), 0)
}

fn open_upper(draft: &LayerDraft) -> Result<OwnedFd, FileOpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(draft.upper(), flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))
}

impl<'a> Union<'a> {
    pub(crate) fn of(draft: &'a LayerDraft) -> Result<Self, FileOpError> {
        let upper = open_upper(draft)?;
        let below = if draft.parent().is_scratch() { None } else { Some(draft.store().tree(draft.parent())?) };
        let open = |tree: &Tree| tree.as_fd().try_clone_to_owned().map(Arc::new);
        let lower = below.as_ref().map(open).transpose().map_err(|e| FileOpError::std("open", b"/", e))?;
        let has_lower = lower.is_some();
        Ok(Self {
            root: UnionDir { upper: Some(Arc::new(upper)), lower, path: Vec::new() },
            notes: &draft.notes,
            has_lower,
            below,
            notes_implied: false,
        })
    }

    /// Makes a union of a draft alone, whose parents may not be there yet.
    pub(crate) fn standalone(draft: &'a LayerDraft) -> Result<Self, FileOpError> {
        let upper = open_upper(draft)?;
        let root = UnionDir { upper: Some(Arc::new(upper)), lower: None, path: Vec::new() };
        Ok(Self { root, notes: &draft.notes, has_lower: false, below: None, notes_implied: true })
    }

    /// Makes a union of a plain directory.
    pub(crate) fn of_directory(dir: OwnedFd, notes: &'a Mutex<Notes>) -> Self {
        let root = UnionDir { upper: Some(Arc::new(dir)), lower: None, path: Vec::new() };
        Self { root, notes, has_lower: false, below: None, notes_implied: false }
    }

    pub(crate) fn notes(&self) -> &'a Mutex<Notes> {
        self.notes
    }

    pub(crate) fn root(&self) -> &UnionDir {
        &self.root
    }

    /// Resolves a path with the union's root as its root: links stay inside, `..` at the root is the root.
    ///
    /// With `new_dirs`, directories that are missing on the way (the last component is not on the way) are made.
    pub(crate) fn resolve(
        &self,
        path: &[u8],
        follow_last: bool,
        new_dirs: Option<&NewDirs>,
    ) -> Result<Spot, FileOpError> {
        self.resolve_from(vec![self.root.clone()], path, follow_last, new_dirs)
    }

    /// Resolves below a chain of directories; the first of them is the root that is never left.
    pub(crate) fn resolve_from(
        &self,
        start: Vec<UnionDir>,
        path: &[u8],
        follow_last: bool,
        new_dirs: Option<&NewDirs>,
    ) -> Result<Spot, FileOpError> {
        let bottom = 1;
        let mut dirs = start;
        let mut pending: Vec<Vec<u8>> = components(path);
        let mut links = 0;
        while let Some(name) = pending.pop() {
            if name == b".." {
                if dirs.len() > bottom {
                    dirs.pop();
                }
                continue;
            }
            let last = pending.is_empty();
            let dir = current(&dirs)?;
            let here = dir.join(&name);
            let at = |what, e: Errno| FileOpError::io(what, &here, e);
            let found = dir.child(&name).map_err(|e| at("look at", e))?;
            match found {
                Some((Node { kind: Kind::Link(target), .. }, _)) if !last || follow_last => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(at("resolve", Errno::LOOP));
                    }
                    if target.first() == Some(&b'/') {
                        dirs.truncate(bottom);
                    }
                    pending.extend(components(&target));
                    if pending.len() > 10_000 {
                        return Err(at("resolve", Errno::NAMETOOLONG));
                    }
                }
                found if last => return Ok(Spot { dirs, name, found: found.map(|(node, _)| node) }),
                Some((node, _)) if node.is_dir() => {
                    let next = dir.enter(&name).map_err(|e| at("open", e))?;
                    dirs.push(next);
                }
                Some(_) => return Err(at("open", Errno::NOTDIR)),
                None => {
                    let Some(new) = new_dirs else {
                        return Err(at("open", Errno::NOENT));
                    };
                    self.make_dir(&mut dirs, &name, new)?;
                }
            }
        }
        let found =
            look(self.any_fd(current(&dirs)?)?.as_fd(), b"").map_err(|e| FileOpError::io("look at", path, e))?;
        Ok(Spot { dirs, name: Vec::new(), found: Some(found) })
    }

    fn any_fd<'d>(&self, dir: &'d UnionDir) -> Result<&'d Arc<OwnedFd>, FileOpError> {
        dir.upper.as_ref().or(dir.lower.as_ref()).ok_or_else(|| FileOpError::io("open", &dir.path, Errno::NOENT))
    }

    /// Makes a directory below the last one of the chain, and enters it.
    pub(crate) fn make_dir(&self, dirs: &mut Vec<UnionDir>, name: &[u8], new: &NewDirs) -> Result<(), FileOpError> {
        self.copy_up(dirs)?;
        let parent = current(dirs)?;
        let path = parent.join(name);
        let fd = self.new_dir_in(parent, name).map_err(|e| FileOpError::io("create", &path, e))?;
        self.set_looks(&fd, &path, new.owner, Some(new.mode), new.time.map(timespec_of_ns))?;
        if self.notes_implied {
            lock(self.notes).implied.insert(path.clone());
        }
        dirs.push(UnionDir { upper: Some(Arc::new(fd)), lower: None, path });
        Ok(())
    }

    /// Makes an empty directory in the draft's part of one, over a whiteout or over nothing that is visible.
    pub(crate) fn new_dir_in(&self, parent: &UnionDir, name: &[u8]) -> Result<OwnedFd, Errno> {
        let upper = parent.upper_fd()?;
        let hides = match rustix::fs::mkdirat(upper.as_fd(), name, Mode::from_raw_mode(0o700)) {
            Ok(()) => false,
            Err(Errno::EXIST) => {
                // A whiteout: everything else was removed by the caller.
                rustix::fs::unlinkat(upper.as_fd(), name, AtFlags::empty())?;
                rustix::fs::mkdirat(upper.as_fd(), name, Mode::from_raw_mode(0o700))?;
                true
            }
            Err(e) => return Err(e),
        };
        let fd = open_beneath(upper.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)?;
        if hides || (self.has_lower && parent.lower_child(name)?.is_some_and(|n| n.is_dir())) {
            set_opaque(&fd)?;
        }
        Ok(fd)
    }

    /// Sees to it that each directory of a chain is in the draft, looking as it did.
    pub(crate) fn copy_up(&self, dirs: &mut [UnionDir]) -> Result<(), FileOpError> {
        for i in 1..dirs.len() {
            if dirs[i].upper.is_some() {
                continue;
            }
            let (above, rest) = dirs.split_at_mut(i);
            let parent = &above[i - 1];
            let dir = &mut rest[0];
            let fail = |what, path: &[u8], e: Errno| FileOpError::io(what, path, e);
            let lower = dir.lower.clone().ok_or_else(|| fail("open", &dir.path, Errno::NOENT))?;
            let like = look(lower.as_fd(), b"").map_err(|e| fail("look at", &dir.path, e))?;
            let upper = parent.upper_fd().map_err(|e| fail("open", &parent.path, e))?;
            let before = look(upper.as_fd(), b"").map_err(|e| fail("look at", &parent.path, e))?;
            let name = dir.path.rsplit(|c| *c == b'/').next().unwrap_or_default();
            rustix::fs::mkdirat(upper.as_fd(), name, Mode::from_raw_mode(0o700))
                .map_err(|e| fail("create", &dir.path, e))?;
            let fd = open_beneath(upper.as_fd(), name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW)
                .map_err(|e| fail("open", &dir.path, e))?;
            let owner = self.owner_below(&dir.path, &like);
            copy_xattrs(&lower, &fd).map_err(|e| fail("copy the attributes of", &dir.path, e))?;
            self.set_looks(&fd, &dir.path, Some(owner), Some(like.meta.mode), Some(like.meta.mtime))?;
            rustix::fs::futimens(upper.as_fd(), &timestamps(before.meta.mtime))
                .map_err(|e| fail("set the time of", &parent.path, e))?;
            dir.upper = Some(Arc::new(fd));
        }
        Ok(())
    }

    /// Returns the owner of something that is below the draft.
    pub(crate) fn owner_below(&self, path: &[u8], node: &Node) -> Owner {
        let noted = self.below.as_ref().and_then(|tree| tree.owners().get(path));
        noted.map_or(Owner { uid: node.meta.uid, gid: node.meta.gid }, |(uid, gid)| Owner { uid: *uid, gid: *gid })
    }

    /// Sets owner, mode and time of an open file or directory of the draft.
    pub(crate) fn set_looks(
        &self,
        fd: &OwnedFd,
        path: &[u8],
        owner: Option<Owner>,
        mode: Option<u32>,
        time: Option<(i64, u32)>,
    ) -> Result<(), FileOpError> {
        let owner = owner.unwrap_or(Owner { uid: 0, gid: 0 });
        let (uid, gid) =
            (rustix::fs::Uid::from_raw_unchecked(owner.uid), rustix::fs::Gid::from_raw_unchecked(owner.gid));
        match rustix::fs::fchown(fd, Some(uid), Some(gid)) {
            Ok(()) => self.forget_owner(path),
            Err(Errno::INVAL | Errno::PERM) => self.note_owner(path, owner),
            Err(e) => return Err(FileOpError::io("set the owner of", path, e)),
        }
        set_mode_and_time(fd, path, mode, time)
    }

    /// Sets the looks of a file that was made just now with the permissions of `mode`, in a directory that is plain or not:
    /// what it has already isn't set again.
    pub(crate) fn set_looks_of_new(
        &self,
        fd: &OwnedFd,
        path: &[u8],
        in_plain: bool,
        owner: Owner,
        mode: u32,
        time: (i64, u32),
    ) -> Result<(), FileOpError> {
        if !in_plain || owner != own_ids() {
            return self.set_looks(fd, path, Some(owner), Some(mode), Some(time));
        }
        self.forget_owner(path);
        set_mode_and_time(fd, path, Some(mode).filter(|mode| mode & 0o777 & !umask() != *mode), Some(time))
    }

    /// Remembers an owner that this machine can't give: only the user's own ID is mapped.
    pub(crate) fn note_owner(&self, path: &[u8], owner: Owner) {
        lock(self.notes).owners.insert(path.to_vec(), (owner.uid, owner.gid));
    }

    pub(crate) fn forget_owner(&self, path: &[u8]) {
        let mut notes = lock(self.notes);
        if !notes.owners.is_empty() {
            notes.owners.remove(path);
        }
    }

    /// Removes an entry from the draft's part alone, a directory with all that is in it.
    pub(crate) fn clear_upper(&self, dir: &UnionDir, name: &[u8]) -> Result<(), FileOpError> {
        let Some(upper) = &dir.upper else { return Ok(()) };
        let path = dir.join(name);
        crate::disk::remove_at(upper, name).map_err(|e| FileOpError::std("remove", &path, e))?;
        lock(self.notes).forget(&path);
        Ok(())
    }

    /// Removes an entry from the union.
    pub(crate) fn remove(&self, dirs: &mut [UnionDir], name: &[u8]) -> Result<(), FileOpError> {
        let dir = current(dirs)?;
        self.clear_upper(dir, name)?;
        let below = dir.lower_child(name).map_err(|e| FileOpError::io("look at", &dir.join(name), e))?;
        if below.is_some() {
            self.copy_up(dirs)?;
            let dir = current(dirs)?;
            let path = dir.join(name);
            let upper = dir.upper_fd().map_err(|e| FileOpError::io("open", &dir.path, e))?;
            make_whiteout(upper, name).map_err(|e| FileOpError::io("remove", &path, e))?;
        }
        Ok(())
    }
}

fn set_mode_and_time(
    fd: &OwnedFd,
    path: &[u8],
    mode: Option<u32>,
    time: Option<(i64, u32)>,
) -> Result<(), FileOpError> {
    if let Some(mode) = mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(mode & 0o7777))
            .map_err(|e| FileOpError::io("set the mode of", path, e))?;
    }
    if let Some(time) = time {
        rustix::fs::futimens(fd, &timestamps(time)).map_err(|e| FileOpError::io("set the time of", path, e))?;
    }
    Ok(())
}

/// Returns the ids that new files get.
fn own_ids() -> Owner {
    static IDS: OnceLock<Owner> = OnceLock::new();
    *IDS.get_or_init(|| Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() })
}

/// Returns the permissions that new files don't get; all, if that can't be found out.
fn umask() -> u32 {
    static UMASK: OnceLock<u32> = OnceLock::new();
    *UMASK.get_or_init(|| {
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("Umask:"));
        line.and_then(|mask| u32::from_str_radix(mask.trim(), 8).ok()).unwrap_or(0o777)
    })
}

/// Tells whether new files in a directory get this process's ids and the permissions that they are made with: it hands down
/// neither its group nor an access list.
pub(crate) fn is_plain(dir: &OwnedFd) -> bool {
    let hands_down_group = rustix::fs::fstat(dir).map_or(true, |stat| stat.st_mode & 0o2000 != 0);
    let no_list = |e| matches!(e, Errno::NODATA | Errno::OPNOTSUPP);
    let mut value = [0_u8; 4];
    !hands_down_group && rustix::fs::fgetxattr(dir, "system.posix_acl_default", &mut value).is_err_and(no_list)
}

/// Opens a directory by a path without links, however long it is.
pub(crate) fn open_deep(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    const AT_ONCE: usize = 4000;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
    let mut dir: Option<OwnedFd> = None;
    let mut rest = path;
    loop {
        let from = dir.as_ref().map_or(root, AsFd::as_fd);
        if rest.len() <= AT_ONCE {
            return open_beneath(from, rest, flags);
        }
        let cut = rest[..AT_ONCE].iter().rposition(|c| *c == b'/').ok_or(Errno::NAMETOOLONG)?;
        dir = Some(open_beneath(from, &rest[..cut], flags)?);
        rest = &rest[cut + 1..];
    }
}

/// Returns the last directory of a chain; a chain has at least the root.
pub(crate) fn current(dirs: &[UnionDir]) -> Result<&UnionDir, FileOpError> {
    dirs.last().ok_or_else(|| FileOpError::Invalid("an empty chain of directories".into()))
}

/// Splits a path into its components, the last first; empty ones and `.` are left out.
pub(crate) fn components(path: &[u8]) -> Vec<Vec<u8>> {
    path.split(|c| *c == b'/').filter(|c| !c.is_empty() && *c != b".").rev().map(<[u8]>::to_vec).collect()
}

/// Returns the names of the extended attributes that are part of a file.
pub(crate) fn xattr_names(fd: impl AsFd) -> Result<Vec<String>, Errno> {
    let mut buffer = [0_u8; 1024];
    let mut large = Vec::new();
    let names: &[u8] = match rustix::fs::flistxattr(&fd, &mut buffer) {
        Ok(0) | Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Ok(n) => &buffer[..n],
        Err(Errno::RANGE) => {
            large.resize(65536, 0);
            let n = rustix::fs::flistxattr(&fd, large.as_mut_slice())?;
            &large[..n]
        }
        Err(e) => return Err(e),
    };
    let mut kept: Vec<String> = names
        .split(|c| *c == 0)
        .filter_map(|n| std::str::from_utf8(n).ok())
        .filter(|n| is_kept_xattr(n))
        .map(str::to_owned)
        .collect();
    kept.sort_unstable();
    Ok(kept)
}

/// Tells whether an attribute is part of a file: overlay's own never are, nor what a security module of this machine set.
pub(crate) fn is_kept_xattr(name: &str) -> bool {
    (name.starts_with("user.") && !name.starts_with("user.overlay.")) || name == "security.capability"
}

pub(crate) fn xattr_value(fd: impl AsFd, name: &str) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0_u8; 4096];
    let n = match rustix::fs::fgetxattr(&fd, name, value.as_mut_slice()) {
        Err(Errno::RANGE) => {
            value.resize(65536, 0);
            rustix::fs::fgetxattr(&fd, name, value.as_mut_slice())?
        }
        other => other?,
    };
    value.truncate(n);
    Ok(value)
}

/// Copies the attributes that are part of a file. What the target can't have is left out, as the reference does.
pub(crate) fn copy_xattrs(from: impl AsFd, to: impl AsFd) -> Result<(), Errno> {
    for name in xattr_names(&from)? {
        let value = match xattr_value(&from, &name) {
            Err(Errno::NODATA) => continue,
            other => other?,
        };
        match rustix::fs::fsetxattr(&to, name.as_str(), &value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

impl Spot {
    /// Returns the directory that the name is in.
    pub(crate) fn dir(&self) -> Result<&UnionDir, FileOpError> {
        current(&self.dirs)
    }

    /// Returns the path without links.
    pub(crate) fn path(&self) -> Vec<u8> {
        match self.dirs.last() {
            Some(dir) if self.name.is_empty() => dir.path.clone(),
            Some(dir) => dir.join(&self.name),
            None => self.name.clone(),
        }
    }

    /// Enters the directory that was found, so that the chain ends with it.
    pub(crate) fn enter(mut self) -> Result<Vec<UnionDir>, FileOpError> {
        if !self.name.is_empty() {
            let dir = self.dir()?;
            let next = dir.enter(&self.name).map_err(|e| FileOpError::io("open", &dir.join(&self.name), e))?;
            self.dirs.push(next);
        }
        Ok(self.dirs)
    }
}
