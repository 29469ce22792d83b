//! Copying from a tree or a context into a layer: one copy of the bytes, on several threads.

use crate::fileop::copytree::copy_tree;
use crate::fileop::mode::Change;
use crate::fileop::simple::{create_file, create_file_as, make_link, set_looks_of_name};
use crate::fileop::{Copy, FileOpError, Owner, Stats, shown};
use crate::scan::{Kind, Meta, Node, scan};
use crate::snapshot::LayerDraft;
use crate::source::{Found, split};
use crate::store::Store;
use crate::tree::{Source, Tree};
use crate::union::{NewDirs, Spot, Union, UnionDir, copy_xattrs, current, timespec_of_ns};
use crate::{Observer, filecopy};
use bud_patterns::Filter;
use bud_patterns::clean::clean_in_root;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// Copies from a tree into a layer.
///
/// # Errors
/// See [`FileOpError`].
pub fn copy(
    draft: &LayerDraft,
    source: Source<'_>,
    copy: &Copy,
    observer: &dyn Observer,
) -> Result<Stats, FileOpError> {
    let union = Union::of(draft)?;
    Job::new(&union, draft.store(), source, copy, observer)?.run()
}

/// Copies from a tree into a plain directory of the state, such as a cache mount's.
///
/// # Errors
/// See [`FileOpError`].
pub fn copy_to_directory(
    store: &Store,
    dir: &Path,
    source: Source<'_>,
    copy: &Copy,
    observer: &dyn Observer,
) -> Result<Stats, FileOpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))?;
    let notes = Mutex::default();
    let union = Union::of_directory(fd, &notes);
    Job::new(&union, store, source, copy, observer)?.run()
}

/// Copies a whole tree over a directory; of hard links, each becomes a file.
pub(crate) fn copy_apart(store: &Store, dir: &Path, tree: &Tree, observer: &dyn Observer) -> Result<(), FileOpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |dir: &Path| rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e));
    let notes = Mutex::default();
    let union = Union::of_directory(open(dir)?, &notes);
    let copy = Copy { always_replace_existing_dest_paths: true, ..Copy::default() };
    let source = Source::Tree(tree);
    let mut node = scan(source.open_dir(b"")?, b"", &Filter::all())?;
    let mut waiting = vec![&mut node];
    while let Some(node) = waiting.pop() {
        node.meta.nlink = 1;
        if let Kind::Dir(children) = &mut node.kind {
            waiting.extend(children);
        }
    }
    Job::new(&union, store, source, &copy, observer)?
        .copy_loaded(&Found { path: Vec::new(), node: std::borrow::Cow::Owned(node) })
}

/// Cleans a path as the reference does: absolute, but a `/` or `/.` at the end is kept.
fn clean_path(path: &str) -> String {
    let clean = clean_in_root(path);
    let ends_in_dot = path.ends_with("/.") || path == ".";
    let suffix = match () {
        () if clean.is_empty() => "",
        () if ends_in_dot => "/.",
        () if path.ends_with('/') => "/",
        () => "",
    };
    format!("/{clean}{suffix}")
}

#[derive(Default)]
pub(crate) struct Counters {
    files: AtomicU64,
    bytes: AtomicU64,
}

impl Counters {
    pub(crate) fn add(&self, observer: &dyn Observer, files: u64, bytes: u64) {
        self.files.fetch_add(files, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        observer.advance(files, bytes);
    }

    pub(crate) fn get(&self) -> Stats {
        Stats { files: self.files.load(Ordering::Relaxed), bytes: self.bytes.load(Ordering::Relaxed) }
    }
}

/// One copy with all that its parts need.
pub(crate) struct Job<'a> {
    pub union: &'a Union<'a>,
    pub store: &'a Store,
    pub source: Source<'a>,
    pub copy: &'a Copy,
    change: Option<Change>,
    pub observer: &'a dyn Observer,
    pub stats: Counters,
}

/// What a file that is put somewhere finds there.
#[derive(Clone, Copy)]
pub(super) struct Way {
    /// There may be something that has to go first.
    pub clear: bool,
    /// The directory gives new files nothing of its own.
    pub plain: bool,
}

impl<'a> Job<'a> {
    pub(crate) fn new(
        union: &'a Union<'a>,
        store: &'a Store,
        source: Source<'a>,
        copy: &'a Copy,
        observer: &'a dyn Observer,
    ) -> Result<Self, FileOpError> {
        let change = copy.mode.as_ref().map(Change::parse).transpose()?;
        Ok(Self { union, store, source, copy, change, observer, stats: Counters::default() })
    }

    fn run(&self) -> Result<Stats, FileOpError> {
        let copy = self.copy;
        let filter = Filter::new(&copy.include_patterns, &copy.exclude_patterns)?;
        let dest = clean_path(&copy.dest);
        if !copy.create_dest_path {
            // Fails if the directory that the destination is in isn't there.
            self.union.resolve(clean_in_root(&copy.dest).as_bytes(), true, None)?;
        }
        let sources = if copy.allow_wildcard {
            let found = self.source.expand(&copy.src, copy.follow_symlink)?;
            if found.is_empty() && !copy.allow_empty_wildcard {
                return Err(FileOpError::NotFound { path: clean_path(&copy.src) });
            }
            found.into_iter().map(|path| (path.clone(), split(&path).1.to_vec())).collect()
        } else {
            let clean = clean_in_root(&copy.src).into_bytes();
            // A path that ends in `/.` means what is in the directory.
            let base = if copy.src.ends_with("/.") || copy.src == "." { Vec::new() } else { split(&clean).1.to_vec() };
            vec![(clean, base)]
        };
        for (path, base) in sources {
            if copy.unpack && super::unpack::unpack(self, &path, &dest)? {
                continue;
            }
            self.copy_one(&path, &base, &dest, &filter)?;
        }
        Ok(self.stats.get())
    }

    /// Copies the entries of a loaded directory into the root.
    pub(crate) fn copy_loaded(&self, found: &Found<'_>) -> Result<(), FileOpError> {
        copy_tree(self, found, vec![self.union.root().clone()], false, self.time_of(&found.node.meta))
    }

    /// Returns what directories that are made on the way look like.
    pub(crate) fn new_dirs(&self) -> NewDirs {
        let mode = match &self.change {
            Some(Change::Set(bits)) => bits & 0o777,
            _ => 0o755,
        };
        NewDirs { mode, owner: self.copy.owner, time: self.copy.timestamp }
    }

    pub(super) fn time_of(&self, meta: &Meta) -> (i64, u32) {
        self.copy.timestamp.map_or(meta.mtime, timespec_of_ns)
    }

    pub(super) fn owner_of(&self, meta: &Meta) -> Owner {
        self.copy.owner.unwrap_or(Owner { uid: meta.uid, gid: meta.gid })
    }

    pub(super) fn mode_of(&self, node: &Node) -> u32 {
        self.change.as_ref().map_or(node.meta.mode, |change| change.apply(node.meta.mode, node.is_dir()))
    }

    fn copy_one(&self, path: &[u8], base: &[u8], dest: &str, filter: &Filter) -> Result<(), FileOpError> {
        let new = self.new_dirs();
        // The directory that is named by the destination is there before the source is looked at.
        let ensured = match dest.rsplit_once('/') {
            Some((_, "" | ".")) => dest,
            Some((dir, _)) => dir,
            None => dest,
        };
        self.make_dirs(clean_in_root(ensured).as_bytes(), &new)?;
        let found = self
            .source
            .resolve(path, self.copy.follow_symlink)?
            .ok_or_else(|| FileOpError::NotFound { path: shown(path) })?;
        let spot = self.union.resolve(clean_in_root(dest).as_bytes(), true, Some(&new))?;
        let is_dir = found.node.is_dir();
        let dest_is_dir = spot.found.as_ref().map(Node::is_dir);
        let into =
            (!self.copy.dir_copy_contents && is_dir && dest_is_dir.is_some()) || (!is_dir && dest_is_dir == Some(true));
        let mut spot = if into && !base.is_empty() {
            if dest_is_dir != Some(true) {
                return Err(FileOpError::io("create the directory", &spot.path(), Errno::NOTDIR));
            }
            let dirs = spot.enter()?;
            let found = current(&dirs)?.child(base).map_err(|e| FileOpError::io("look at", base, e))?;
            Spot { dirs, name: base.to_vec(), found: found.map(|(node, _)| node) }
        } else {
            spot
        };
        let found = self.source.load(found, filter)?;
        if !is_dir {
            return self.copy_file(&found, &mut spot);
        }
        if spot.found.is_none() && self.copy.dir_copy_contents {
            // The directory that takes the contents looks like any that is made on the way.
            let name = std::mem::take(&mut spot.name);
            self.union.make_dir(&mut spot.dirs, &name, &new)?;
            return copy_tree(self, &found, spot.dirs, false, self.time_of(&found.node.meta));
        }
        self.copy_dir(&found, spot)
    }

    /// Makes a chain of directories.
    pub(crate) fn make_dirs(&self, path: &[u8], new: &NewDirs) -> Result<Vec<UnionDir>, FileOpError> {
        let mut spot = self.union.resolve(path, true, Some(new))?;
        match &spot.found {
            Some(node) if node.is_dir() => spot.enter(),
            Some(_) => Err(FileOpError::io("create the directory", &spot.path(), Errno::NOTDIR)),
            None => {
                let name = std::mem::take(&mut spot.name);
                self.union.make_dir(&mut spot.dirs, &name, new)?;
                Ok(spot.dirs)
            }
        }
    }

    /// Copies something that is no directory.
    fn copy_file(&self, found: &Found<'_>, spot: &mut Spot) -> Result<(), FileOpError> {
        let clear = self.in_the_way(spot.found.as_ref(), &found.node, &spot.path())?;
        self.union.copy_up(&mut spot.dirs)?;
        let dir = Arc::new(self.source.open_dir(split(&found.path).0)?);
        let to = spot.dir()?.clone();
        let mut node = found.node.clone().into_owned();
        let name_in_source = split(&found.path).1;
        node.name = name_in_source.into();
        self.place(&dir, &to, &node, &spot.name, Way { clear, plain: false })
    }

    /// Decides about what is at the destination: tells whether it has to go first.
    pub(super) fn in_the_way(&self, there: Option<&Node>, node: &Node, path: &[u8]) -> Result<bool, FileOpError> {
        match there {
            None => Ok(true),
            Some(there) if there.is_dir() && !node.is_dir() && !self.copy.always_replace_existing_dest_paths => {
                Err(FileOpError::Invalid(format!("cannot replace to directory {} with file", shown(path))))
            }
            Some(there) if !there.is_dir() && node.is_dir() && !self.copy.always_replace_existing_dest_paths => {
                Err(FileOpError::Invalid(format!("cannot copy to non-directory: {}", shown(path))))
            }
            Some(_) => Ok(true),
        }
    }

    /// Copies a directory to a place where there may be one.
    fn copy_dir(&self, found: &Found<'_>, mut spot: Spot) -> Result<(), FileOpError> {
        let exists = spot.found.as_ref().is_some_and(Node::is_dir);
        if exists {
            return copy_tree(self, found, spot.enter()?, false, self.time_of(&found.node.meta));
        }
        self.in_the_way(spot.found.as_ref(), &found.node, &spot.path())?;
        let name = std::mem::take(&mut spot.name);
        self.union.copy_up(&mut spot.dirs)?;
        self.union.clear_upper(current(&spot.dirs)?, &name)?;
        let parent = current(&spot.dirs)?;
        let path = parent.join(&name);
        let fd = self.union.new_dir_in(parent, &name).map_err(|e| FileOpError::io("create", &path, e))?;
        spot.dirs.push(UnionDir { upper: Some(Arc::new(fd)), lower: None, path });
        self.stats.add(self.observer, 1, 0);
        copy_tree(self, found, spot.dirs, true, self.time_of(&found.node.meta))
    }

    pub(super) fn source_error(&self, what: &'static str, path: &[u8], error: Errno) -> FileOpError {
        match (self.source, error) {
            (Source::Context(_), Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                FileOpError::Changed { path: shown(path) }
            }
            _ => FileOpError::io(what, path, error),
        }
    }

    /// Puts one file, link or special file into the draft's part of a directory.
    pub(super) fn place(
        &self,
        from: &OwnedFd,
        to: &UnionDir,
        node: &Node,
        name: &[u8],
        way: Way,
    ) -> Result<(), FileOpError> {
        if self.observer.is_cancelled() {
            return Err(FileOpError::Cancelled);
        }
        if way.clear {
            self.union.clear_upper(to, name)?;
        }
        let path = to.join(name);
        let owner = self.owner_of(&node.meta);
        let time = self.time_of(&node.meta);
        match &node.kind {
            Kind::File => self.place_file(from, to, node, name, way.plain)?,
            Kind::Link(target) => make_link(self.union, to, name, target, Some(owner), Some(time))?,
            // As in the reference: a socket becomes an empty file.
            Kind::Socket => {
                let fd = create_file(to, name).map_err(|e| FileOpError::io("create", &path, e))?;
                self.union.set_looks(&fd, &path, Some(owner), Some(self.mode_of(node)), Some(time))?;
            }
            Kind::Fifo | Kind::Device { .. } if matches!(self.source, Source::Context(_)) => {
                tracing::warn!("{}: left out: neither a file nor a directory nor a link", shown(&path));
                return Ok(());
            }
            Kind::Fifo | Kind::Device { .. } => {
                let kind = match node.kind {
                    Kind::Device { block: true } => FileType::BlockDevice,
                    Kind::Device { .. } => FileType::CharacterDevice,
                    _ => FileType::Fifo,
                };
                let upper = to.upper_fd().map_err(|e| FileOpError::io("open", &path, e))?;
                let mode = Mode::from_raw_mode(self.mode_of(node));
                match rustix::fs::mknodat(upper.as_fd(), name, kind, mode, node.meta.rdev) {
                    Ok(()) => set_looks_of_name(self.union, to, name, Some(owner), Some(time))?,
                    // Devices can't be made without real privileges; the reference skips them too.
                    Err(Errno::PERM) if kind != FileType::Fifo => return Ok(()),
                    Err(e) => return Err(FileOpError::io("create", &path, e)),
                }
            }
            Kind::Dir(_) => return Err(FileOpError::Invalid(format!("{}: a directory among files", shown(&path)))),
        }
        self.stats.add(self.observer, 1, 0);
        Ok(())
    }

    fn place_file(
        &self,
        from: &OwnedFd,
        to: &UnionDir,
        node: &Node,
        name: &[u8],
        in_plain: bool,
    ) -> Result<(), FileOpError> {
        let path = to.join(name);
        let changed = || FileOpError::Changed { path: shown(&path) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let input = rustix::fs::openat(from, &*node.name, flags, Mode::empty())
            .map_err(|e| self.source_error("open", &path, e))?;
        let in_context = matches!(self.source, Source::Context(_));
        let is_same = || -> Result<bool, Errno> {
            let stat = rustix::fs::fstat(&input)?;
            Ok(FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && Meta::of(&stat).same_content(&node.meta))
        };
        if in_context && !is_same().map_err(|e| FileOpError::io("look at", &path, e))? {
            return Err(changed());
        }
        let mode = self.mode_of(node);
        let output = create_file_as(to, name, mode).map_err(|e| FileOpError::io("create", &path, e))?;
        let copied = filecopy::copy_content(&input, &output, &node.meta, self.observer, &path)?;
        if in_context && (copied != node.meta.size || !is_same().map_err(|e| FileOpError::io("look at", &path, e))?) {
            return Err(changed());
        }
        let (owner, time) = (self.owner_of(&node.meta), self.time_of(&node.meta));
        self.union.set_looks_of_new(&output, &path, in_plain, owner, mode, time)?;
        // Last: a change of owner takes capabilities away.
        copy_xattrs(&input, &output).map_err(|e| FileOpError::io("copy the attributes of", &path, e))?;
        if let Source::Context(context) = self.source
            && let Some(expected) = context.noted_digest(&node.meta)
            && crate::content::file_digest(&output, copied).map_err(|e| FileOpError::io("read", &path, e))? != expected
        {
            return Err(changed());
        }
        self.stats.add(self.observer, 0, copied);
        Ok(())
    }
}
