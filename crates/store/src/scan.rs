//! A directory's entries in memory: what digests and copies go over.

use crate::fileop::{FileOpError, shown};
use bud_patterns::{Filter, FilterState};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};

/// Trees deeper than this are refused: a walk holds one descriptor a level.
pub(crate) const MAX_DEPTH: usize = 1000;
/// So many entries of one tree are listed at most.
const MAX_ENTRIES: u64 = 4_000_000;

/// What `stat(2)` says, as far as it matters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Meta {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    /// Permission bits, set-id bits and the sticky bit.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub nlink: u64,
    pub rdev: u64,
    pub mtime: (i64, u32),
    pub ctime: (i64, u32),
    /// 512-byte blocks, to see whether there are holes.
    pub blocks: u64,
}

impl Meta {
    pub(crate) fn of(stat: &Stat) -> Self {
        Self {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            nlink: stat.st_nlink,
            rdev: stat.st_rdev,
            mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
            ctime: (stat.st_ctime, u32::try_from(stat.st_ctime_nsec).unwrap_or(0)),
            blocks: u64::try_from(stat.st_blocks).unwrap_or(0),
        }
    }

    /// Returns when the file was changed last, in milliseconds since 1970.
    pub(crate) fn last_change_ms(&self) -> i64 {
        let ms = |(sec, nsec): (i64, u32)| sec.saturating_mul(1000).saturating_add(i64::from(nsec / 1_000_000));
        ms(self.mtime).max(ms(self.ctime))
    }

    /// Tells whether a file is still the one that was seen.
    pub(crate) fn same_content(&self, other: &Self) -> bool {
        (self.ino, self.size, self.mtime, self.ctime) == (other.ino, other.size, other.mtime, other.ctime)
    }
}

/// An entry of a tree.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub name: Box<[u8]>,
    pub meta: Meta,
    pub kind: Kind,
}

/// What an entry is.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    File,
    /// With its entries, sorted by name.
    Dir(Vec<Node>),
    /// With its target.
    Link(Box<[u8]>),
    Fifo,
    Socket,
    Device {
        block: bool,
    },
}

impl Node {
    /// Returns an entry of a directory by name.
    pub(crate) fn child(&self, name: &[u8]) -> Option<&Node> {
        let Kind::Dir(children) = &self.kind else { return None };
        children.binary_search_by(|c| (*c.name).cmp(name)).ok().map(|i| &children[i])
    }

    pub(crate) fn is_dir(&self) -> bool {
        matches!(self.kind, Kind::Dir(_))
    }
}

/// Looks at one entry of a directory, following nothing.
pub(crate) fn look(dir: BorrowedFd<'_>, name: &[u8]) -> Result<Node, rustix::io::Errno> {
    let (path, flags): (&[u8], _) =
        if name.is_empty() { (b"", AtFlags::EMPTY_PATH) } else { (name, AtFlags::SYMLINK_NOFOLLOW) };
    let stat = rustix::fs::statat(dir, path, flags)?;
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => Kind::Dir(Vec::new()),
        FileType::Symlink => Kind::Link(rustix::fs::readlinkat(dir, path, Vec::new())?.into_bytes().into()),
        FileType::Fifo => Kind::Fifo,
        FileType::Socket => Kind::Socket,
        FileType::BlockDevice => Kind::Device { block: true },
        FileType::CharacterDevice => Kind::Device { block: false },
        _ => Kind::File,
    };
    Ok(Node { name: name.into(), meta: Meta::of(&stat), kind })
}

struct Level {
    fd: OwnedFd,
    node: Node,
    state: FilterState,
    path_len: usize,
    selected: bool,
    names: std::vec::IntoIter<Box<[u8]>>,
    kept: Vec<Node>,
}

/// Lists a directory with all below it that the filter takes; paths for the filter are relative to it.
pub(crate) fn scan(root: OwnedFd, name: &[u8], filter: &Filter) -> Result<Node, FileOpError> {
    let mut top = look(root.as_fd(), b"").map_err(|e| FileOpError::io("look at", name, e))?;
    top.name = name.into();
    let names = names_of(&root).map_err(|e| FileOpError::io("read", name, e))?;
    let mut path: Vec<u8> = Vec::new();
    let mut count = 0_u64;
    let mut stack = vec![Level {
        fd: root,
        node: top,
        state: FilterState::default(),
        path_len: 0,
        selected: true,
        names: names.into_iter(),
        kept: Vec::new(),
    }];
    let all = filter.takes_all();
    while let Some(depth) = stack.len().checked_sub(1) {
        let level = &mut stack[depth];
        let Some(name) = level.names.next() else {
            let Some(Level { mut node, kept, selected, path_len, .. }) = stack.pop() else { break };
            let keep = selected || !kept.is_empty();
            node.kind = Kind::Dir(kept);
            path.truncate(path_len);
            match stack.last_mut() {
                Some(parent) if keep => parent.kept.push(node),
                Some(_) => {}
                None => return Ok(node),
            }
            continue;
        };
        let path_len = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&name);
        let (selected, descend, state) = if all {
            (true, true, FilterState::default())
        } else {
            let (verdict, state) = filter.step(&level.state, &path);
            (verdict.selected, verdict.descend, state)
        };
        if selected || descend {
            count += 1;
            if count > MAX_ENTRIES {
                return Err(FileOpError::Invalid(format!("more than {MAX_ENTRIES} entries in one tree")));
            }
            match look(level.fd.as_fd(), &name) {
                // Removed meanwhile: as if it had never been there.
                Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(FileOpError::io("look at", &path, e)),
                Ok(node) if node.is_dir() => {
                    if descend {
                        if depth >= MAX_DEPTH {
                            return Err(FileOpError::Invalid(format!(
                                "{}…: nested deeper than {MAX_DEPTH} directories",
                                shown(&path[..200.min(path.len())])
                            )));
                        }
                        let fd = open_subdir(level.fd.as_fd(), &name).map_err(|e| FileOpError::io("open", &path, e))?;
                        let names = names_of(&fd).map_err(|e| FileOpError::io("read", &path, e))?;
                        stack.push(Level {
                            fd,
                            node,
                            state,
                            path_len,
                            selected,
                            names: names.into_iter(),
                            kept: Vec::new(),
                        });
                        continue;
                    }
                    level.kept.push(node);
                }
                Ok(node) if selected => level.kept.push(node),
                Ok(_) => {}
            }
        }
        path.truncate(path_len);
    }
    Err(FileOpError::Invalid("an empty walk".into()))
}

/// Opens a directory for reading, following no link.
pub(crate) fn open_subdir(dir: BorrowedFd<'_>, name: &[u8]) -> Result<OwnedFd, rustix::io::Errno> {
    rustix::fs::openat(
        dir,
        name,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// Returns the sorted names in a directory.
pub(crate) fn names_of(dir: &OwnedFd) -> Result<Vec<Box<[u8]>>, rustix::io::Errno> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.into());
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// Returns what a filter takes of a listed directory; paths for the filter are relative to it.
pub(crate) fn filtered(top: &Node, filter: &Filter) -> Node {
    struct Level<'a> {
        node: &'a Node,
        state: FilterState,
        path_len: usize,
        selected: bool,
        next: usize,
        kept: Vec<Node>,
    }
    let mut path: Vec<u8> = Vec::new();
    let start =
        Level { node: top, state: FilterState::default(), path_len: 0, selected: true, next: 0, kept: Vec::new() };
    let mut stack = vec![start];
    let copy = |node: &Node, kind| Node { name: node.name.clone(), meta: node.meta, kind };
    while let Some(level) = stack.last_mut() {
        let Kind::Dir(children) = &level.node.kind else { return top.clone() };
        let Some(child) = children.get(level.next) else {
            let Some(done) = stack.pop() else { break };
            path.truncate(done.path_len);
            let keep = done.selected || !done.kept.is_empty();
            let node = copy(done.node, Kind::Dir(done.kept));
            match stack.last_mut() {
                Some(parent) if keep => parent.kept.push(node),
                Some(_) => {}
                None => return node,
            }
            continue;
        };
        level.next += 1;
        let path_len = path.len();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(&child.name);
        let (verdict, state) = filter.step(&level.state, &path);
        if child.is_dir() && (verdict.descend || verdict.selected) {
            if verdict.descend {
                let next =
                    Level { node: child, state, path_len, selected: verdict.selected, next: 0, kept: Vec::new() };
                stack.push(next);
                continue;
            }
            level.kept.push(copy(child, Kind::Dir(Vec::new())));
        } else if verdict.selected {
            level.kept.push(child.clone());
        }
        path.truncate(path_len);
    }
    top.clone()
}
