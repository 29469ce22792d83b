//! A local directory as a build context, read in place.
//!
//! It is listed once; digests and copies go over that list. Nothing is followed out of it: directories are opened one by
//! one from the descriptor that was handed over, and a file that isn't the one that was listed any more ends the build.

use crate::fileop::FileOpError;
use crate::scan::{Kind, Meta, Node, scan};
use crate::source::split;
use crate::store::{lock, to_ms};
use crate::tree::{Source, open_beneath, read_regular};
use bud_patterns::{Filter, Links};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::Mutex;
use std::time::SystemTime;

/// File times go forward in steps no longer than this.
const TICK_MS: i64 = 50;

/// Says what of a directory belongs to the context.
#[derive(Clone, Debug, Default)]
pub struct ContextOptions {
    /// Patterns of what is included; none includes all.
    pub include: Vec<String>,
    /// Patterns of what is left out (`.dockerignore` rules).
    pub exclude: Vec<String>,
    /// Paths to include with the targets of the links on the way.
    pub follow: Vec<String>,
}

/// A directory's files, listed once. All belong to user and group 0.
#[derive(Debug)]
pub struct ContextTree {
    root: OwnedFd,
    top: Node,
    listed: SystemTime,
    /// Digests of files that were changed in the moment before they were listed, by inode: such a file may change once more
    /// without its times showing it, so what is stored of it is digested again.
    racy: Mutex<HashMap<u64, [u8; 32]>>,
    /// Dropped with the tree.
    _held: Option<Box<dyn std::any::Any + Send + Sync>>,
}

/// An entry of a context, for listings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContextEntry {
    /// From the context's root, without a leading slash.
    pub path: Vec<u8>,
    /// Bytes of a file, else 0.
    pub size: u64,
    /// It is a directory.
    pub is_dir: bool,
    /// Where a symbolic link points.
    pub target: Option<Vec<u8>>,
}

impl ContextTree {
    /// Lists a directory, given by a descriptor of it (`O_PATH` will do).
    ///
    /// # Errors
    /// A pattern is bad, or a directory can't be read.
    pub fn open(root: OwnedFd, options: &ContextOptions) -> Result<Self, FileOpError> {
        let root = open_beneath(root.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| FileOpError::io("open", b"", e))?;
        let listed = SystemTime::now();
        let mut include = options.include.clone();
        if !options.follow.is_empty() {
            match bud_patterns::follow(&InPlace(&root), &options.follow) {
                Ok(Some(paths)) => include.extend(paths),
                // The root itself: nothing is added to what is included anyway.
                Ok(None) => {}
                Err(e) => return Err(FileOpError::Invalid(e.to_string())),
            }
        }
        let filter = Filter::new(&include, &options.exclude)?;
        let walked = root.try_clone().map_err(|e| FileOpError::std("open", b"", e))?;
        let mut top = scan(walked, b"", &filter)?;
        disown(&mut top);
        top.meta.mode = 0o755;
        Ok(Self { root, top, listed, racy: Mutex::default(), _held: None })
    }

    /// Opens a path within the directory; symbolic links lead nowhere else.
    ///
    /// # Errors
    /// As `openat2(2)` has them.
    pub fn open_path(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, rustix::io::Errno> {
        crate::tree::open_in_root(self.root.as_fd(), path, flags)
    }

    /// Keeps something as long as the tree, such as a lock that keeps others from changing it.
    #[must_use]
    pub fn holding(mut self, held: impl std::any::Any + Send + Sync) -> Self {
        self._held = Some(Box::new(held));
        self
    }

    pub(crate) fn root_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    pub(crate) fn top(&self) -> &Node {
        &self.top
    }

    /// When the listing began: files that were changed just before it are not trusted.
    pub(crate) fn listed(&self) -> SystemTime {
        self.listed
    }

    /// Remembers the digest of a file if its times may not tell of another change.
    pub(crate) fn note_digest(&self, meta: &Meta, digest: [u8; 32]) {
        if meta.last_change_ms() >= to_ms(self.listed) - TICK_MS {
            lock(&self.racy).insert(meta.ino, digest);
        }
    }

    /// Returns the digest that was found of a file whose times may not tell of another change.
    pub(crate) fn noted_digest(&self, meta: &Meta) -> Option<[u8; 32]> {
        lock(&self.racy).get(&meta.ino).copied()
    }

    /// Reads a regular file of the context whole; links stay in the context.
    ///
    /// # Errors
    /// It isn't there, isn't a regular file, or is larger than the limit.
    pub fn read_file(&self, path: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
        let missing = || std::io::Error::from(std::io::ErrorKind::NotFound);
        let found = Source::Context(self).resolve(path, true).map_err(std::io::Error::other)?.ok_or_else(missing)?;
        let fd = open_beneath(self.root.as_fd(), &found.path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        read_regular(fd, limit)
    }

    /// Returns all entries, directories before what is in them.
    #[must_use]
    pub fn entries(&self) -> Vec<ContextEntry> {
        let mut entries = Vec::new();
        let mut waiting: Vec<(Vec<u8>, &Node)> = vec![(Vec::new(), &self.top)];
        while let Some((path, node)) = waiting.pop() {
            if !path.is_empty() {
                entries.push(ContextEntry {
                    path: path.clone(),
                    size: if matches!(node.kind, Kind::File) { node.meta.size } else { 0 },
                    is_dir: node.is_dir(),
                    target: if let Kind::Link(target) = &node.kind { Some(target.to_vec()) } else { None },
                });
            }
            if let Kind::Dir(children) = &node.kind {
                for child in children.iter().rev() {
                    let mut below = path.clone();
                    if !below.is_empty() {
                        below.push(b'/');
                    }
                    below.extend_from_slice(&child.name);
                    waiting.push((below, child));
                }
            }
        }
        entries
    }

    /// Returns how many files there are and their bytes.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        let (mut files, mut bytes) = (0, 0);
        let mut waiting = vec![&self.top];
        while let Some(node) = waiting.pop() {
            match &node.kind {
                Kind::Dir(children) => waiting.extend(children),
                Kind::File => {
                    files += 1;
                    bytes += node.meta.size;
                }
                _ => files += 1,
            }
        }
        (files, bytes)
    }
}

/// A build never sees the user's ids.
fn disown(top: &mut Node) {
    let mut waiting = vec![top];
    while let Some(node) = waiting.pop() {
        node.meta.uid = 0;
        node.meta.gid = 0;
        if let Kind::Dir(children) = &mut node.kind {
            waiting.extend(children);
        }
    }
}

/// Looks at links on disk, before anything is listed.
struct InPlace<'a>(&'a OwnedFd);

impl Links for InPlace<'_> {
    fn read_link(&self, path: &str) -> std::io::Result<Option<String>> {
        let (dir, name) = split(path.as_bytes());
        let dir = match open_beneath(self.0.as_fd(), dir, OFlags::PATH | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(None),
            other => other?,
        };
        match rustix::fs::readlinkat(dir, name, Vec::new()) {
            Ok(target) => Ok(Some(target.to_string_lossy().into_owned())),
            Err(Errno::INVAL | Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    fn names(&self, path: &str) -> std::io::Result<Vec<String>> {
        let dir = match open_beneath(self.0.as_fd(), path.as_bytes(), OFlags::RDONLY | OFlags::DIRECTORY) {
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(Vec::new()),
            other => other?,
        };
        let names = crate::scan::names_of(&dir)?;
        Ok(names.iter().map(|n| String::from_utf8_lossy(n).into_owned()).collect())
    }
}
