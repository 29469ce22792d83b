//! Paths inside a root file system, and the mount points made there.
//!
//! The file system is hostile, and with shared mounts it changes while it is looked at. So nothing here joins strings:
//! the kernel resolves (`openat2(2)` with `RESOLVE_IN_ROOT`), and what is missing is made step by step on descriptors that
//! never follow a link.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags, StatxFlags, Timespec, Timestamps};
use rustix::io::Errno;

use super::failure::{Doing, Failure};
use super::stubs::Changes;

/// Symbolic links followed while missing parts of a path are made, as many as the kernel follows.
const MAX_LINKS: u32 = 40;

/// Opens for resolving alone.
const PATH: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// What a path shall be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Directory,
    File,
}

/// What happens to the parts of a path that had to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Made {
    /// They are mount points, removed when the container has ended.
    Stub,
    /// They stay, with this owner.
    Kept { uid: u32, gid: u32 },
}

/// The root file system of a container, before it is the root.
pub(super) struct Root {
    directory: OwnedFd,
    mount: u64,
    changes: Changes,
}

/// The identity of what a descriptor shows: mount and inode.
fn identity(file: impl AsFd) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::MNT_ID)?;
    Ok((stat.stx_mnt_id, stat.stx_ino))
}

/// Returns the type of the file behind a descriptor.
pub(super) fn file_type(file: impl AsFd) -> rustix::io::Result<FileType> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode))
}

/// Opens a path inside a directory that stands as the root: links, absolute ones and `..` never lead out of it.
pub(super) fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let mut tries = 0;
    loop {
        match rustix::fs::openat2(root.as_fd(), path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // Something was renamed while the kernel looked at `..`.
            Err(Errno::AGAIN | Errno::INTR) if tries < 64 => tries += 1,
            result => return result,
        }
    }
}

impl Root {
    pub(super) fn new(directory: OwnedFd, upper: Option<OwnedFd>) -> Result<Root, Failure> {
        let (mount, _) = identity(&directory).doing(|| "look at the root file system".into())?;
        Ok(Root { directory, mount, changes: Changes::new(upper) })
    }

    /// The root directory.
    pub(super) fn directory(&self) -> &OwnedFd {
        &self.directory
    }

    /// Ends the time in which mount points are made.
    pub(super) fn into_changes(self) -> (OwnedFd, Changes) {
        (self.directory, self.changes)
    }

    /// Opens a path inside the root for resolving alone; `None` if it isn't there.
    pub(super) fn find(&self, path: &Path) -> Result<Option<OwnedFd>, Failure> {
        match open_in_root(&self.directory, path, PATH) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::LOOP) => Err(Failure::new(format!(
                "{}: too many symbolic links, or one into a process's own files",
                path.display()
            ))),
            Err(error) => Err(error).doing(|| path.display().to_string()),
        }
    }

    /// Opens a directory of the root itself that no link may stand for; made, to stay, if it is missing.
    pub(super) fn plain_directory(&self, name: &str) -> Result<OwnedFd, Failure> {
        let flags = PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        let open = || rustix::fs::openat(&self.directory, name, flags, Mode::empty());
        match open() {
            Err(Errno::NOENT) => {
                rustix::fs::mkdirat(&self.directory, name, Mode::from_raw_mode(0o755))
                    .doing(|| format!("make /{name} in the root file system"))?;
                open().doing(|| format!("open /{name} of the root file system"))
            }
            Err(Errno::NOTDIR | Errno::LOOP) => Err(Failure::new(format!(
                "/{name} of the root file system is not a directory: nothing can be mounted on it safely; the image has to be mended"
            ))),
            result => result.doing(|| format!("open /{name} of the root file system")),
        }
    }

    /// Opens a path inside the root for mounting on it, made if it is missing.
    pub(super) fn ensure(&mut self, path: &Path, kind: Kind, made: Made) -> Result<OwnedFd, Failure> {
        if let Some(found) = self.find(path)? {
            let is_directory = file_type(&found).doing(|| path.display().to_string())? == FileType::Directory;
            return match (kind, is_directory) {
                (Kind::Directory, true) | (Kind::File, false) => Ok(found),
                (Kind::Directory, false) => Err(Failure::new(format!("{}: not a directory", path.display()))),
                (Kind::File, true) => Err(Failure::new(format!("{}: is a directory, not a file", path.display()))),
            };
        }
        self.make(path, kind, made)
    }

    /// Says whether a descriptor shows the root directory itself.
    pub(super) fn is_root(&self, file: &OwnedFd) -> bool {
        match (identity(file), identity(&self.directory)) {
            (Ok(file), Ok(root)) => file == root,
            _ => false,
        }
    }

    /// Walks a path, following links inside the root, and makes what is missing.
    fn make(&mut self, path: &Path, kind: Kind, made: Made) -> Result<OwnedFd, Failure> {
        let shown = path.display();
        let mut pending: Vec<OsString> = Vec::new();
        push(&mut pending, path);
        let reopen =
            |trail: &Path| open_in_root(&self.directory, trail, PATH | OFlags::DIRECTORY).doing(|| format!("{shown}"));
        let mut at = reopen(Path::new("."))?;
        let mut trail = PathBuf::new();
        let (mut links, mut races) = (0, 0);
        while let Some(name) = pending.pop() {
            if name == ".." {
                trail.pop();
                at = reopen(&trail)?;
                continue;
            }
            let next = rustix::fs::openat(&at, &name, PATH | OFlags::NOFOLLOW, Mode::empty());
            // Links there lead to what a process has open, not to what their text says; and nothing can be made there.
            if rustix::fs::fstatfs(&at).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC) {
                return Err(Failure::new(format!("{shown}: is inside /proc")));
            }
            match next {
                Ok(next) => match file_type(&next).doing(|| format!("{shown}"))? {
                    FileType::Directory => {
                        trail.push(&name);
                        at = next;
                    }
                    FileType::Symlink => {
                        links += 1;
                        if links > MAX_LINKS {
                            return Err(Failure::new(format!("{shown}: too many symbolic links")));
                        }
                        let target = rustix::fs::readlinkat(&next, "", Vec::new()).doing(|| format!("{shown}"))?;
                        let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                        if target.is_absolute() {
                            trail.clear();
                            at = reopen(Path::new("."))?;
                        }
                        push(&mut pending, &target);
                    }
                    _ if pending.is_empty() && kind == Kind::File => return Ok(next),
                    _ => {
                        return Err(Failure::new(format!(
                            "{shown}: {} is not a directory",
                            trail.join(&name).display()
                        )));
                    }
                },
                Err(Errno::NOENT) => {
                    let last = pending.is_empty();
                    let kind = if last { kind } else { Kind::Directory };
                    match create(&mut self.changes, self.mount, &at, &trail, &name, kind, made, last) {
                        // Looked at again in any case: the name may be somebody else's by now.
                        Ok(()) | Err(Errno::EXIST) if races < 64 => {
                            races += 1;
                            pending.push(name);
                        }
                        Ok(()) => return Err(Failure::new(format!("{shown}: changes all the time"))),
                        Err(error) => return Err(error).doing(|| format!("make the mount point {shown}")),
                    }
                }
                Err(error) => return Err(error).doing(|| format!("{shown}")),
            }
        }
        match kind {
            Kind::Directory => Ok(at),
            Kind::File => Err(Failure::new(format!("{shown}: is a directory, not a file"))),
        }
    }
}

/// Makes one entry and puts the times of its directory back if the entry won't stay.
#[expect(clippy::too_many_arguments, reason = "one call, in the loop that knows all of these")]
fn create(
    changes: &mut Changes,
    root_mount: u64,
    at: &OwnedFd,
    trail: &Path,
    name: &OsStr,
    kind: Kind,
    made: Made,
    last: bool,
) -> rustix::io::Result<()> {
    // What is made in another mount (a cache, a bind) is that mount's business and stays there.
    let stub = made == Made::Stub && identity(at)?.0 == root_mount;
    let times = if stub { Some(changes.note_parent(at, trail)?) } else { None };
    match kind {
        Kind::Directory => rustix::fs::mkdirat(at, name, Mode::from_raw_mode(0o755))?,
        Kind::File => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            drop(rustix::fs::openat(at, name, flags, Mode::from_raw_mode(0o644))?);
        }
    }
    if let Made::Kept { uid, gid } = made
        && (uid, gid) != (0, 0)
    {
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        rustix::fs::chownat(at, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    if stub {
        changes.note_made(trail.join(name), kind == Kind::Directory, last);
    }
    if let Some(times) = times {
        rustix::fs::utimensat(at, ".", &times, AtFlags::empty())?;
    }
    Ok(())
}

/// The times of a directory, for putting them back.
pub(super) fn times(directory: impl AsFd) -> rustix::io::Result<Timestamps> {
    let stat = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::ATIME | StatxFlags::MTIME)?;
    let time = |t: rustix::fs::StatxTimestamp| Timespec { tv_sec: t.tv_sec, tv_nsec: t.tv_nsec.into() };
    Ok(Timestamps { last_access: time(stat.stx_atime), last_modification: time(stat.stx_mtime) })
}

/// Puts the components of a path in front of those that wait. The next one is the last of the vector.
fn push(pending: &mut Vec<OsString>, path: &Path) {
    let names = path.components().rev().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some(OsStr::from_bytes(b"..").to_owned()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    });
    pending.extend(names);
}
