//! Copying from a tree or a context into a layer: one copy of the bytes, on several threads.

use crate::fileop::mode::Change;
use crate::fileop::simple::{create_file, make_link, set_looks_of_name};
use crate::fileop::{Copy, FileOpError, Owner, Stats, shown};
use crate::scan::{Kind, Meta, Node};
use crate::snapshot::LayerDraft;
use crate::source::{Found, split};
use crate::store::Store;
use crate::tree::Source;
use crate::union::{NewDirs, Spot, Union, UnionDir, copy_xattrs, current, timespec_of_ns, timestamps};
use crate::{Observer, filecopy};
use bud_patterns::Filter;
use bud_patterns::clean::clean_in_root;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Files handed to a thread at once.
const BATCH: usize = 32;

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

/// A file to be copied.
struct FileTask<'a> {
    from: Arc<OwnedFd>,
    to: UnionDir,
    node: &'a Node,
    /// There is something in the way in the draft.
    clear: bool,
}

/// A directory whose looks are set when all that is in it is there.
struct Finish {
    dir: Arc<OwnedFd>,
    path: Vec<u8>,
    owner: Option<Owner>,
    mode: Option<u32>,
    time: Option<(i64, u32)>,
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
        let root = self.union.root().clone();
        self.copy_tree(found, root.clone(), vec![root], false, Some(self.time_of(&found.node.meta)))
    }

    /// Returns what directories that are made on the way look like.
    pub(crate) fn new_dirs(&self) -> NewDirs {
        let mode = match &self.change {
            Some(Change::Set(bits)) => bits & 0o777,
            _ => 0o755,
        };
        NewDirs { mode, owner: self.copy.owner, time: self.copy.timestamp }
    }

    fn time_of(&self, meta: &Meta) -> (i64, u32) {
        self.copy.timestamp.map_or(meta.mtime, timespec_of_ns)
    }

    fn owner_of(&self, meta: &Meta) -> Owner {
        self.copy.owner.unwrap_or(Owner { uid: meta.uid, gid: meta.gid })
    }

    fn mode_of(&self, node: &Node) -> u32 {
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
            let dir = current(&spot.dirs)?.clone();
            let time = self.time_of(&found.node.meta);
            return self.copy_tree(&found, dir, spot.dirs, false, Some(time));
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
        self.place(&dir, &to, &node, &spot.name, clear)
    }

    /// Decides about what is at the destination: tells whether it has to go first.
    fn in_the_way(&self, there: Option<&Node>, node: &Node, path: &[u8]) -> Result<bool, FileOpError> {
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
            let dirs = spot.enter()?;
            let dir = current(&dirs)?.clone();
            return self.copy_tree(found, dir, dirs, false, Some(self.time_of(&found.node.meta)));
        }
        self.in_the_way(spot.found.as_ref(), &found.node, &spot.path())?;
        let name = std::mem::take(&mut spot.name);
        self.union.copy_up(&mut spot.dirs)?;
        self.union.clear_upper(current(&spot.dirs)?, &name)?;
        let parent = current(&spot.dirs)?;
        let path = parent.join(&name);
        let fd = self.union.new_dir_in(parent, &name).map_err(|e| FileOpError::io("create", &path, e))?;
        let dir = UnionDir { upper: Some(Arc::new(fd)), lower: None, path };
        spot.dirs.push(dir.clone());
        self.stats.add(self.observer, 1, 0);
        self.copy_tree(found, dir, spot.dirs, true, Some(self.time_of(&found.node.meta)))
    }

    /// Copies what is in a directory. The looks of the top are set if it is new; else its time alone, if one is given.
    fn copy_tree(
        &self,
        found: &Found<'_>,
        top: UnionDir,
        mut chain: Vec<UnionDir>,
        new: bool,
        time: Option<(i64, u32)>,
    ) -> Result<(), FileOpError> {
        self.union.copy_up(&mut chain)?;
        let top = chain.last().cloned().unwrap_or(top);
        let from = Arc::new(self.source.open_dir(&found.path)?);
        let mut finish: Vec<Finish> = Vec::new();
        let upper = top.upper_fd().map_err(|e| FileOpError::io("open", &top.path, e))?;
        if new {
            copy_xattrs(from.as_fd(), upper.as_fd())
                .map_err(|e| FileOpError::io("copy the attributes of", &top.path, e))?;
        }
        finish.push(Finish {
            dir: Arc::clone(upper),
            path: top.path.clone(),
            owner: new.then(|| self.owner_of(&found.node.meta)),
            mode: new.then(|| self.mode_of(&found.node)),
            time,
        });
        let links = self.copy_entries(&found.node, from, (top, new), &mut finish)?;
        for (first, dir, name) in links {
            self.make_hard_link(&first, &dir, &name)?;
        }
        for dir in finish.iter().rev() {
            if let Some(owner) = dir.owner {
                self.union.set_looks(&dir.dir, &dir.path, Some(owner), dir.mode, dir.time)?;
            } else if let Some(time) = dir.time {
                rustix::fs::futimens(&dir.dir, &timestamps(time))
                    .map_err(|e| FileOpError::io("set the time of", &dir.path, e))?;
            }
        }
        Ok(())
    }

    /// Makes the directories, and has the files copied by threads.
    fn copy_entries(
        &self,
        top: &Node,
        from: Arc<OwnedFd>,
        to: (UnionDir, bool),
        finish: &mut Vec<Finish>,
    ) -> Result<Vec<(HardLink, UnionDir, Vec<u8>)>, FileOpError> {
        let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
        let failed = AtomicBool::new(false);
        let failure: Mutex<Option<FileOpError>> = Mutex::new(None);
        let (send, receive) = mpsc::sync_channel::<Vec<FileTask<'_>>>(threads * 8);
        let receive = Mutex::new(receive);
        let work = || {
            while let Ok(batch) = { crate::store::lock(&receive).recv() } {
                for task in batch {
                    if failed.load(Ordering::Relaxed) {
                        continue;
                    }
                    // A panic must not leave the queue without readers.
                    let placed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        self.place(&task.from, &task.to, task.node, &task.node.name, task.clear)
                    }));
                    let placed = placed.unwrap_or_else(|_| {
                        let path = shown(&task.to.join(&task.node.name));
                        Err(FileOpError::Invalid(format!("copying {path} failed by a mistake in this program")))
                    });
                    if let Err(error) = placed {
                        failed.store(true, Ordering::Relaxed);
                        crate::store::lock(&failure).get_or_insert(error);
                    }
                }
            }
        };
        let links = std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(work);
            }
            let links = self.walk(top, from, to, finish, &failed, &send);
            drop(send);
            links
        })?;
        match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            Some(error) => Err(error),
            None => Ok(links),
        }
    }

    fn walk<'n>(
        &self,
        top: &'n Node,
        from: Arc<OwnedFd>,
        to: (UnionDir, bool),
        finish: &mut Vec<Finish>,
        failed: &AtomicBool,
        send: &mpsc::SyncSender<Vec<FileTask<'n>>>,
    ) -> Result<Vec<(HardLink, UnionDir, Vec<u8>)>, FileOpError> {
        let mut links = Vec::new();
        let mut seen: HashMap<(u64, u64), HardLink> = HashMap::new();
        let mut batch: Vec<FileTask<'n>> = Vec::with_capacity(BATCH);
        let mut waiting = vec![(top, from, to)];
        while let Some((node, from, (to, fresh))) = waiting.pop() {
            let Kind::Dir(children) = &node.kind else { continue };
            if self.observer.is_cancelled() {
                return Err(FileOpError::Cancelled);
            }
            if failed.load(Ordering::Relaxed) {
                break;
            }
            for child in children {
                // Nothing can be in the way in a directory that was made just now.
                let there = if fresh {
                    None
                } else {
                    to.child(&child.name).map_err(|e| FileOpError::io("look at", &to.join(&child.name), e))?
                };
                if child.is_dir() {
                    let next_from = crate::scan::open_subdir(from.as_fd(), &child.name)
                        .map_err(|e| self.source_error("open", &to.join(&child.name), e))?;
                    let next_to =
                        self.enter_dir(&to, child, there.as_ref().map(|(node, _)| node), &next_from, finish)?;
                    let is_new = !there.as_ref().is_some_and(|(node, _)| node.is_dir());
                    waiting.push((child, Arc::new(next_from), (next_to, is_new)));
                    continue;
                }
                let clear = !fresh;
                if let Some((there, _)) = &there {
                    self.in_the_way(Some(there), child, &to.join(&child.name))?;
                }
                if matches!(child.kind, Kind::File) && child.meta.nlink > 1 {
                    if let Some(first) = seen.get(&(child.meta.dev, child.meta.ino)) {
                        if clear {
                            self.union.clear_upper(&to, &child.name)?;
                        }
                        links.push((first.clone(), to.clone(), child.name.to_vec()));
                        continue;
                    }
                    let first = HardLink { dir: to.clone(), name: child.name.to_vec() };
                    seen.insert((child.meta.dev, child.meta.ino), first);
                }
                batch.push(FileTask { from: Arc::clone(&from), to: to.clone(), node: child, clear });
                if batch.len() == BATCH && send.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).is_err()
                {
                    break;
                }
            }
        }
        // The receivers live until the sender is dropped.
        let _sent = send.send(batch);
        Ok(links)
    }

    fn source_error(&self, what: &'static str, path: &[u8], error: Errno) -> FileOpError {
        match (self.source, error) {
            (Source::Context(_), Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {
                FileOpError::Changed { path: shown(path) }
            }
            _ => FileOpError::io(what, path, error),
        }
    }

    /// Makes a directory of the tree that is copied, or takes the one that is there.
    fn enter_dir(
        &self,
        parent: &UnionDir,
        node: &Node,
        there: Option<&Node>,
        from: &OwnedFd,
        finish: &mut Vec<Finish>,
    ) -> Result<UnionDir, FileOpError> {
        let path = parent.join(&node.name);
        let fail = |what, e: Errno| FileOpError::io(what, &path, e);
        let dir = if there.is_some_and(Node::is_dir) {
            let mut chain = [parent.clone(), parent.enter(&node.name).map_err(|e| fail("open", e))?];
            self.union.copy_up(&mut chain)?;
            let [_, dir] = chain;
            dir
        } else {
            if there.is_some() {
                self.in_the_way(there, node, &path)?;
                self.union.clear_upper(parent, &node.name)?;
            }
            let fd = self.union.new_dir_in(parent, &node.name).map_err(|e| fail("create", e))?;
            UnionDir { upper: Some(Arc::new(fd)), lower: None, path: path.clone() }
        };
        let upper = dir.upper_fd().map_err(|e| fail("open", e))?;
        copy_xattrs(from.as_fd(), upper.as_fd()).map_err(|e| fail("copy the attributes of", e))?;
        finish.push(Finish {
            dir: Arc::clone(upper),
            path,
            owner: Some(self.owner_of(&node.meta)),
            mode: Some(self.mode_of(node)),
            time: Some(self.time_of(&node.meta)),
        });
        self.stats.add(self.observer, 1, 0);
        Ok(dir)
    }

    /// Puts one file, link or special file into the draft's part of a directory.
    fn place(&self, from: &OwnedFd, to: &UnionDir, node: &Node, name: &[u8], clear: bool) -> Result<(), FileOpError> {
        if self.observer.is_cancelled() {
            return Err(FileOpError::Cancelled);
        }
        if clear {
            self.union.clear_upper(to, name)?;
        }
        let path = to.join(name);
        let owner = self.owner_of(&node.meta);
        let time = self.time_of(&node.meta);
        match &node.kind {
            Kind::File => self.place_file(from, to, node, name)?,
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

    fn place_file(&self, from: &OwnedFd, to: &UnionDir, node: &Node, name: &[u8]) -> Result<(), FileOpError> {
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
        let output = create_file(to, name).map_err(|e| FileOpError::io("create", &path, e))?;
        let copied = filecopy::copy_content(&input, &output, &node.meta, self.observer, &path)?;
        if in_context && (copied != node.meta.size || !is_same().map_err(|e| FileOpError::io("look at", &path, e))?) {
            return Err(changed());
        }
        copy_xattrs(&input, &output).map_err(|e| FileOpError::io("copy the attributes of", &path, e))?;
        self.stats.add(self.observer, 0, copied);
        self.union.set_looks(
            &output,
            &path,
            Some(self.owner_of(&node.meta)),
            Some(self.mode_of(node)),
            Some(self.time_of(&node.meta)),
        )
    }

    fn make_hard_link(&self, first: &HardLink, dir: &UnionDir, name: &[u8]) -> Result<(), FileOpError> {
        let fail = |e: Errno| FileOpError::io("create the hard link", &dir.join(name), e);
        let from = first.dir.upper_fd().map_err(fail)?;
        let to = dir.upper_fd().map_err(fail)?;
        rustix::fs::linkat(from.as_fd(), first.name.as_slice(), to.as_fd(), name, rustix::fs::AtFlags::empty())
            .map_err(fail)?;
        self.stats.add(self.observer, 1, 0);
        Ok(())
    }
}

/// Where the first name of a file with several is.
#[derive(Clone)]
struct HardLink {
    dir: UnionDir,
    name: Vec<u8>,
}
