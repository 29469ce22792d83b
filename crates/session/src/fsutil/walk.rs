//! Walking a tree that is to be sent, on directory descriptors: a link swapped in while it goes on leads nowhere.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use bud_patterns::{Filter, FilterState, Links};
use bud_protocol::fsutil::Stat;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::mode::{FileKind, kind_of, to_go_mode};
use super::xattr;

/// What is to be sent.
pub struct TreeSource {
    /// The trees: one with an empty prefix, or several directories side by side.
    pub parts: Vec<Part>,
    /// Which entries are taken.
    pub filter: Filter,
    /// Owner that all entries are said to have, instead of their own.
    pub owner: Option<(u32, u32)>,
    /// Times that all entries are said to have at most, as Unix time in seconds.
    pub clamp_time: Option<i64>,
}

/// A directory that is sent as the root, or as a directory of it.
pub struct Part {
    /// A single name, or empty for the root.
    pub prefix: String,
    /// The directory.
    pub root: OwnedFd,
}

impl TreeSource {
    /// The whole of one tree as it is.
    pub fn whole(root: OwnedFd) -> TreeSource {
        TreeSource {
            parts: vec![Part { prefix: String::new(), root }],
            filter: Filter::all(),
            owner: None,
            clamp_time: None,
        }
    }
}

/// Why a walk ended early.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// An entry can't be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Its path in the tree.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A name that can't be sent.
    #[error("{}: the name is not UTF-8; exclude it with .dockerignore or rename it", .0.display())]
    Name(PathBuf),
    /// The entry was replaced by something else meanwhile.
    #[error("{} changed while it was being read", .0.display())]
    Changed(PathBuf),
    /// Nobody takes entries any more.
    #[error("the transfer was cancelled")]
    Stopped,
}

/// A directory that is being read.
struct Level {
    fd: OwnedFd,
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
    state: FilterState,
    /// Set until the directory was told of.
    untold: Option<Stat>,
}

/// Calls `emit` with each selected entry, parents first, in the order of the protocol. Sockets and devices of a context have no meaning
/// elsewhere: `skipped` gets their paths.
pub(super) fn walk(
    source: &TreeSource,
    mut emit: impl FnMut(Stat) -> Result<(), WalkError>,
    mut skipped: impl FnMut(&str),
) -> Result<(), WalkError> {
    let mut parts: Vec<&Part> = source.parts.iter().collect();
    parts.sort_by(|a, b| a.prefix.cmp(&b.prefix));
    for part in parts {
        let fd = part.root.try_clone().map_err(|source| io_error(b"", source))?;
        let mut walker = Walker { source, linked: HashMap::new(), levels: Vec::new() };
        let untold = if part.prefix.is_empty() {
            None
        } else {
            let stat = rustix::fs::fstat(&fd).map_err(|source| io_error(b"", source.into()))?;
            Some(walker.stat(part.prefix.clone(), FileKind::Directory, &stat))
        };
        walker.enter(fd, part.prefix.clone().into_bytes(), FilterState::default(), untold)?;
        // An empty part is a directory as well.
        walker.tell_parents(&mut emit)?;
        walker.run(&mut emit, &mut skipped)?;
    }
    Ok(())
}

struct Walker<'a> {
    source: &'a TreeSource,
    /// First path of each file that has several names, by device and inode.
    linked: HashMap<(u64, u64), String>,
    levels: Vec<Level>,
}

fn io_error(path: &[u8], source: io::Error) -> WalkError {
    WalkError::Io { path: to_path(path), source }
}

fn to_path(path: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    PathBuf::from(std::ffi::OsStr::from_bytes(if path.is_empty() { b"." } else { path }))
}

impl Walker<'_> {
    fn run(
        &mut self,
        emit: &mut impl FnMut(Stat) -> Result<(), WalkError>,
        skipped: &mut impl FnMut(&str),
    ) -> Result<(), WalkError> {
        while let Some(level) = self.levels.last_mut() {
            let Some(name) = level.names.next() else {
                self.levels.pop();
                continue;
            };
            let mut path = level.path.clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&name);
            let stat = match rustix::fs::statat(&level.fd, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // It was there when the directory was read, and is gone: as if it had never been.
                Err(Errno::NOENT) => continue,
                Err(error) => return Err(io_error(&path, error.into())),
            };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            let (verdict, state) = self.source.filter.step(&level.state, &path);
            if !(verdict.selected || is_dir && verdict.descend) {
                continue;
            }
            let Ok(text) = String::from_utf8(path.clone()) else {
                return Err(WalkError::Name(to_path(&path)));
            };
            if is_dir {
                self.directory(name, text, stat, verdict, state, emit)?;
            } else {
                match kind_of(stat.st_mode) {
                    None | Some(FileKind::BlockDevice | FileKind::CharDevice) if self.source.owner.is_some() => {
                        skipped(&text);
                    }
                    None => skipped(&text),
                    Some(kind) => self.file(name, text, kind, stat, emit)?,
                }
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        name: Vec<u8>,
        path: String,
        stat: rustix::fs::Stat,
        verdict: bud_patterns::Verdict,
        state: FilterState,
        emit: &mut impl FnMut(Stat) -> Result<(), WalkError>,
    ) -> Result<(), WalkError> {
        let Some(level) = self.levels.last() else { return Ok(()) };
        let mut told = self.stat(path.clone(), FileKind::Directory, &stat);
        told.xattrs = xattr::read(level.fd.as_fd(), &name);
        if !verdict.descend {
            self.tell_parents(emit)?;
            return emit(told);
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = match rustix::fs::openat(&level.fd, name.as_slice(), flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ACCESS) if !verdict.selected => return Ok(()),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Err(WalkError::Changed(path.into())),
            Err(error) => return Err(io_error(path.as_bytes(), error.into())),
        };
        let opened = rustix::fs::fstat(&fd).map_err(|error| io_error(path.as_bytes(), error.into()))?;
        if (opened.st_dev, opened.st_ino) != (stat.st_dev, stat.st_ino) {
            return Err(WalkError::Changed(path.into()));
        }
        if verdict.selected {
            self.tell_parents(emit)?;
            emit(told)?;
            self.enter(fd, path.into_bytes(), state, None)
        } else {
            self.enter(fd, path.into_bytes(), state, Some(told))
        }
    }

    fn file(
        &mut self,
        name: Vec<u8>,
        path: String,
        kind: FileKind,
        stat: rustix::fs::Stat,
        emit: &mut impl FnMut(Stat) -> Result<(), WalkError>,
    ) -> Result<(), WalkError> {
        self.tell_parents(emit)?;
        let Some(level) = self.levels.last() else { return Ok(()) };
        let mut told = self.stat(path.clone(), kind, &stat);
        if kind == FileKind::Symlink {
            let target = match rustix::fs::readlinkat(&level.fd, name.as_slice(), Vec::new()) {
                Ok(target) => target,
                Err(Errno::NOENT | Errno::INVAL) => return Err(WalkError::Changed(path.into())),
                Err(error) => return Err(io_error(path.as_bytes(), error.into())),
            };
            let Ok(target) = target.into_string() else {
                return Err(WalkError::Name(path.into()));
            };
            told.size = target.len() as i64;
            told.linkname = target;
        } else {
            told.xattrs = xattr::read(level.fd.as_fd(), &name);
        }
        if kind == FileKind::Regular && stat.st_nlink > 1 {
            let first = self.linked.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.clone());
            if *first != path {
                told.linkname.clone_from(first);
                told.size = 0;
            }
        }
        emit(told)
    }

    fn tell_parents(&mut self, emit: &mut impl FnMut(Stat) -> Result<(), WalkError>) -> Result<(), WalkError> {
        for level in &mut self.levels {
            if let Some(stat) = level.untold.take() {
                emit(stat)?;
            }
        }
        Ok(())
    }

    fn enter(&mut self, fd: OwnedFd, path: Vec<u8>, state: FilterState, untold: Option<Stat>) -> Result<(), WalkError> {
        let mut names = names(fd.as_fd()).map_err(|source| io_error(&path, source))?;
        names.sort_unstable();
        self.levels.push(Level { fd, path, names: names.into_iter(), state, untold });
        Ok(())
    }

    fn stat(&self, path: String, kind: FileKind, stat: &rustix::fs::Stat) -> Stat {
        let (uid, gid) = self.source.owner.unwrap_or((stat.st_uid, stat.st_gid));
        let mut seconds = stat.st_mtime;
        let mut nanoseconds = stat.st_mtime_nsec as i64;
        if let Some(latest) = self.source.clamp_time
            && seconds >= latest
        {
            (seconds, nanoseconds) = (latest, 0);
        }
        let is_device = matches!(kind, FileKind::BlockDevice | FileKind::CharDevice);
        let device = if is_device { stat.st_rdev } else { 0 };
        Stat {
            path,
            mode: to_go_mode(kind, stat.st_mode & 0o7777),
            uid,
            gid,
            size: if kind == FileKind::Regular { stat.st_size } else { 0 },
            mod_time: seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds),
            devmajor: i64::from(rustix::fs::major(device)),
            devminor: i64::from(rustix::fs::minor(device)),
            ..Stat::default()
        }
    }
}

/// Returns the names in a directory, in no order.
pub(super) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

/// Opens `path` below `root` without following any link.
pub(super) fn open_beneath(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// The links of a directory tree, for [`bud_patterns::follow`].
pub(crate) struct RootLinks<'a>(pub(crate) BorrowedFd<'a>);

impl RootLinks<'_> {
    fn dir(&self, path: &str, flags: OFlags) -> io::Result<Option<OwnedFd>> {
        match open_beneath(self.0, path.as_bytes(), flags | OFlags::DIRECTORY) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl Links for RootLinks<'_> {
    fn read_link(&self, path: &str) -> io::Result<Option<String>> {
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let Some(dir) = self.dir(parent, OFlags::PATH)? else { return Ok(None) };
        match rustix::fs::readlinkat(&dir, name, Vec::new()) {
            Ok(target) => Ok(target.into_string().ok()),
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR | Errno::NAMETOOLONG) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn names(&self, path: &str) -> io::Result<Vec<String>> {
        let Some(dir) = self.dir(path, OFlags::RDONLY)? else { return Ok(Vec::new()) };
        let names = names(dir.as_fd())?.into_iter();
        Ok(names.filter_map(|name| String::from_utf8(name).ok()).collect())
    }
}
