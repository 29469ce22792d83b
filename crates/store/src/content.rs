//! Content digests of parts of a tree.
//!
//! The digest of an entry covers its type, mode, owner, extended attributes, link target or bytes; a directory's covers its
//! entries' names and digests as well. Times don't count. The form is our own: it never leaves this store.

use crate::fileindex::FileIndex;
use crate::fileop::{FileOpError, shown};
use crate::scan::{Kind, Meta, Node, open_subdir};
use crate::source::{Found, split};
use crate::store::{Store, lock, to_ms};
use crate::tree::Source;
use crate::union::{xattr_names, xattr_value};
use crate::{Observer, StoreError};
use bud_image::Digest;
use bud_patterns::Filter;
use bud_patterns::clean::clean_in_root;
use rusqlite::{OptionalExtension, params};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use sha2::Digest as _;
use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Files are hashed in pieces of this size, the digest being over the pieces' digests, so that threads share a large file.
const PIECE: u64 = 16 << 20;
/// A file that was changed so shortly before it was listed may be changed again without its times showing it.
const RACY_MS: i64 = 2000;

/// Says which paths of a tree count.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selection {
    /// The path, with patterns in its components if `wildcard`. A trailing slash leaves the directory's own looks out.
    pub path: String,
    /// A link at the end of the path is followed.
    pub follow_symlink: bool,
    /// The path's components are patterns.
    pub wildcard: bool,
    /// Only what matches one of these, if there are any.
    pub include_patterns: Vec<String>,
    /// Not what matches these.
    pub exclude_patterns: Vec<String>,
    /// Paths that must be there.
    pub required_paths: Vec<String>,
}

/// Returns the digest over names, types, modes, owners, extended attributes, link targets and bytes of the selected paths; not
/// over times.
///
/// # Errors
/// A path isn't there, can't be read or was changed meanwhile.
pub fn digest(
    store: &Store,
    source: Source<'_>,
    selection: &Selection,
    observer: &dyn Observer,
) -> Result<Digest, FileOpError> {
    let memo = memo_key(&source, selection);
    if let Some((key, _)) = &memo
        && let Some(known) = memo_get(store, key)?
    {
        return Ok(known);
    }
    let filter = Filter::new(&selection.include_patterns, &selection.exclude_patterns)?;
    let paths = if selection.wildcard {
        source.expand(&selection.path, selection.follow_symlink)?
    } else {
        vec![clean_in_root(&selection.path).into_bytes()]
    };
    let has_patterns = selection.wildcard && bud_patterns::has_wildcards(&selection.path);
    let mut hash = sha2::Sha256::new();
    hash.update(b"selection\0");
    let mut found_paths: Vec<Vec<u8>> = Vec::new();
    for path in &paths {
        let missing = || FileOpError::NotFound { path: shown(path) };
        let found = source.resolve(path, selection.follow_symlink)?.ok_or_else(missing)?;
        let found = source.load(found, &filter)?;
        if has_patterns {
            put(&mut hash, split(path).1);
        }
        let own_looks = !(selection.path.ends_with('/') && found.node.is_dir());
        let node_digest = digest_of(store, &source, &found, own_looks, observer)?;
        hash.update(node_digest);
        if !selection.required_paths.is_empty() {
            list_paths(path, &found.node, &mut found_paths);
        }
    }
    for required in &selection.required_paths {
        let required = clean_in_root(required).into_bytes();
        if !found_paths.iter().any(|p| p.starts_with(&required)) {
            return Err(FileOpError::NotFound { path: shown(&required) });
        }
    }
    let digest = Digest::from_bytes(hash.finalize().into());
    if let Some((key, top)) = memo {
        let db = store.database();
        db.prepare_cached("INSERT OR REPLACE INTO content VALUES(?1, ?2, ?3)")
            .and_then(|mut s| s.execute(params![key.as_bytes(), top, digest.as_bytes()]))
            .map_err(StoreError::from)?;
    }
    Ok(digest)
}

/// Snapshots don't change: what was selected of one is remembered.
fn memo_key(source: &Source<'_>, selection: &Selection) -> Option<(Digest, i64)> {
    let Source::Tree(tree) = source else { return None };
    let snapshot = tree.snapshot()?;
    let top = snapshot.top()?;
    let text = format!("{}\0{selection:?}", snapshot.to_text());
    Some((Digest::of(text), top.0))
}

fn memo_get(store: &Store, key: &Digest) -> Result<Option<Digest>, FileOpError> {
    let db = store.database();
    let found = db
        .prepare_cached("SELECT digest FROM content WHERE key = ?")
        .and_then(|mut s| s.query_row([key.as_bytes()], |row| row.get(0)).optional())
        .map_err(StoreError::from)?;
    Ok(found.map(Digest::from_bytes))
}

/// Writes a byte string so that where it ends is part of what is hashed.
fn put(hash: &mut sha2::Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

fn list_paths(path: &[u8], node: &Node, out: &mut Vec<Vec<u8>>) {
    let mut waiting = vec![(path.to_vec(), node)];
    while let Some((path, node)) = waiting.pop() {
        if let Kind::Dir(children) = &node.kind {
            for child in children {
                let below =
                    if path.is_empty() { child.name.to_vec() } else { [&path, &b"/"[..], &child.name].concat() };
                waiting.push((below, child));
            }
        }
        out.push(path);
    }
}

/// A file or directory whose content or attributes have to be known.
struct Item<'n> {
    node: &'n Node,
    /// Index of its directory's descriptor.
    dir: usize,
}

/// Computes the digest of a loaded entry.
fn digest_of(
    store: &Store,
    source: &Source<'_>,
    found: &Found<'_>,
    own_looks: bool,
    observer: &dyn Observer,
) -> Result<[u8; 32], FileOpError> {
    let node = &*found.node;
    let index = match index_of(source) {
        Some((name, racy_after)) => Some((store.file_index(&name)?, name, racy_after)),
        None => None,
    };
    let facts = Facts::collect(store, source, found, index, observer)?;
    Ok(facts.fold(node, own_looks))
}

/// Returns the name of the index for a source, and from which time on files are not trusted. Snapshots have none: what was
/// selected of them is remembered as a whole.
fn index_of(source: &Source<'_>) -> Option<(String, i64)> {
    let Source::Context(context) = source else { return None };
    let meta = context.top().meta;
    Some((format!("{:x}:{:x}", meta.dev, meta.ino), to_ms(context.listed()) - RACY_MS))
}

/// Digests of files' bytes and attributes, in the order of a walk.
struct Facts {
    digests: Vec<[u8; 32]>,
}

/// Goes over what has bytes or attributes, parents first, entries in order; gives each directory the number of its parent.
fn walk<'n>(top: &'n Node, mut visit: impl FnMut(&'n Node, usize, Option<usize>)) {
    let mut dirs = 0_usize;
    let mut waiting: Vec<(&'n Node, usize)> = vec![(top, usize::MAX)];
    while let Some((node, parent)) = waiting.pop() {
        match &node.kind {
            Kind::Dir(children) => {
                let own = dirs;
                dirs += 1;
                visit(node, parent, Some(own));
                waiting.extend(children.iter().rev().map(|child| (child, own)));
            }
            Kind::File => visit(node, parent, None),
            _ => {}
        }
    }
}

impl Facts {
    fn collect(
        store: &Store,
        source: &Source<'_>,
        found: &Found<'_>,
        index: Option<(Arc<FileIndex>, String, i64)>,
        observer: &dyn Observer,
    ) -> Result<Self, FileOpError> {
        let mut items: Vec<Item<'_>> = Vec::new();
        let mut parents: Vec<(usize, &[u8])> = Vec::new();
        walk(&found.node, |node, parent, own| {
            if own.is_some() {
                parents.push((parent, &node.name));
            }
            items.push(Item { node, dir: parent });
        });
        let known = match &index {
            Some((index, ..)) => index.get_all(items.iter().map(|item| &item.node.meta)),
            None => vec![None; items.len()],
        };
        let wanted: Vec<usize> = (0..items.len()).filter(|i| known[*i].is_none()).collect();
        let mut digests: Vec<[u8; 32]> = known.into_iter().map(Option::unwrap_or_default).collect();
        if wanted.is_empty() {
            return Ok(Self { digests });
        }
        let dirs = Dirs {
            source,
            base: &found.path,
            top_is_dir: found.node.is_dir(),
            parents: &parents,
            last: Mutex::default(),
        };
        let results = read_all(&items, &wanted, &dirs, observer)?;
        let mut new = Vec::with_capacity(results.len());
        for (i, digest) in results {
            digests[i] = digest;
            let (Some((.., racy_after)), meta) = (&index, items[i].node.meta) else { continue };
            if let Source::Context(context) = source {
                context.note_digest(&meta, digest);
            }
            if meta.last_change_ms() < *racy_after {
                new.push((meta, digest));
            }
        }
        if let Some((index, name, _)) = &index {
            let seen: Option<HashSet<u64>> =
                found.path.is_empty().then(|| items.iter().map(|item| item.node.meta.ino).collect());
            store.remember_files(name, index, &new, seen.as_ref())?;
        }
        Ok(Self { digests })
    }

    /// Folds the digests of the entries up to the top's.
    fn fold(&self, top: &Node, own_looks: bool) -> [u8; 32] {
        struct Level<'n> {
            node: &'n Node,
            next: usize,
            fact: [u8; 32],
            hash: sha2::Sha256,
        }
        let mut facts = self.digests.iter();
        let mut next_fact = || facts.next().copied().unwrap_or_default();
        let leaf = |node: &Node, fact: [u8; 32]| looks(node, &fact);
        if !top.is_dir() {
            let fact = if matches!(top.kind, Kind::File) { next_fact() } else { [0; 32] };
            return leaf(top, fact);
        }
        let open = |node, fact| Level { node, next: 0, fact, hash: sha2::Sha256::new() };
        let mut stack = vec![open(top, next_fact())];
        while let Some(level) = stack.last_mut() {
            let Kind::Dir(children) = &level.node.kind else { break };
            if let Some(child) = children.get(level.next) {
                level.next += 1;
                put(&mut level.hash, &child.name);
                match child.kind {
                    Kind::Dir(_) => stack.push(open(child, next_fact())),
                    Kind::File => level.hash.update(leaf(child, next_fact())),
                    _ => level.hash.update(leaf(child, [0; 32])),
                }
                continue;
            }
            let Some(level) = stack.pop() else { break };
            let mut hash = sha2::Sha256::new();
            if own_looks || !stack.is_empty() {
                hash.update(looks(level.node, &level.fact));
            }
            hash.update(level.hash.finalize());
            let digest: [u8; 32] = hash.finalize().into();
            match stack.last_mut() {
                Some(parent) => parent.hash.update(digest),
                None => return digest,
            }
        }
        [0; 32]
    }
}

/// Hashes what an entry looks like: all that counts but a directory's entries.
fn looks(node: &Node, fact: &[u8; 32]) -> [u8; 32] {
    let mut hash = sha2::Sha256::new();
    let (kind, mode): (&[u8], _) = match &node.kind {
        Kind::File => (b"file", node.meta.mode),
        Kind::Dir(_) => (b"dir", node.meta.mode),
        Kind::Link(_) => (b"link", 0o777),
        Kind::Fifo => (b"fifo", node.meta.mode),
        Kind::Socket => (b"file", node.meta.mode),
        Kind::Device { block: true } => (b"block", node.meta.mode),
        Kind::Device { block: false } => (b"char", node.meta.mode),
    };
    put(&mut hash, kind);
    hash.update(mode.to_le_bytes());
    hash.update(node.meta.uid.to_le_bytes());
    hash.update(node.meta.gid.to_le_bytes());
    match &node.kind {
        Kind::File => hash.update(node.meta.size.to_le_bytes()),
        Kind::Link(target) => put(&mut hash, target),
        Kind::Device { .. } => hash.update(node.meta.rdev.to_le_bytes()),
        _ => {}
    }
    hash.update(fact);
    hash.finalize().into()
}

/// Opens directories of the walk by their numbers.
struct Dirs<'a> {
    source: &'a Source<'a>,
    base: &'a [u8],
    top_is_dir: bool,
    parents: &'a [(usize, &'a [u8])],
    last: Mutex<Option<(usize, Arc<OwnedFd>)>>,
}

impl Dirs<'_> {
    /// Returns a directory's path in the source.
    fn path(&self, dir: usize) -> Vec<u8> {
        if dir == usize::MAX {
            return split(self.base).0.to_vec();
        }
        let mut names: Vec<&[u8]> = Vec::new();
        let mut at = dir;
        while let Some((parent, name)) = self.parents.get(at) {
            if *parent == usize::MAX {
                break;
            }
            names.push(name);
            at = *parent;
        }
        if !self.base.is_empty() {
            names.push(self.base);
        }
        names.reverse();
        names.join(&b'/')
    }

    fn open(&self, dir: usize) -> Result<Arc<OwnedFd>, FileOpError> {
        if let Some((last, fd)) = &*lock(&self.last)
            && *last == dir
        {
            return Ok(Arc::clone(fd));
        }
        let path = self.path(dir);
        let fd = Arc::new(self.source.open_dir(&path).map_err(|e| self.changed(&path, e))?);
        *lock(&self.last) = Some((dir, Arc::clone(&fd)));
        Ok(fd)
    }

    fn changed(&self, path: &[u8], error: FileOpError) -> FileOpError {
        match &error {
            FileOpError::Io { source, .. }
                if matches!(self.source, Source::Context(_)) && source.kind() == std::io::ErrorKind::NotFound =>
            {
                FileOpError::Changed { path: shown(path) }
            }
            _ => error,
        }
    }
}

/// Reads what isn't known yet, on several threads.
fn read_all(
    items: &[Item<'_>],
    wanted: &[usize],
    dirs: &Dirs<'_>,
    observer: &dyn Observer,
) -> Result<Vec<(usize, [u8; 32])>, FileOpError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    let next = AtomicUsize::new(0);
    let failure: Mutex<Option<FileOpError>> = Mutex::new(None);
    let work = || {
        let mut done: Vec<(usize, [u8; 32])> = Vec::new();
        let mut buffer = vec![0_u8; 256 << 10];
        loop {
            // Neighbours are taken together: they share an open directory.
            let start = next.fetch_add(16, Ordering::Relaxed);
            if start >= wanted.len() || lock(&failure).is_some() {
                return done;
            }
            for i in &wanted[start..wanted.len().min(start + 16)] {
                let item = &items[*i];
                match fact(item, dirs, &mut buffer, threads, observer) {
                    Ok(digest) => done.push((*i, digest)),
                    Err(error) => {
                        lock(&failure).get_or_insert(error);
                        return done;
                    }
                }
            }
        }
    };
    let done = if wanted.len() <= 32 {
        work()
    } else {
        std::thread::scope(|scope| {
            let handles: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
            let mut done = work();
            for handle in handles {
                match handle.join() {
                    Ok(part) => done.extend(part),
                    Err(panic) => std::panic::resume_unwind(panic),
                }
            }
            done
        })
    };
    match failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(done),
    }
}

/// Returns the digest of a file's bytes and attributes, or of a directory's attributes.
fn fact(
    item: &Item<'_>,
    dirs: &Dirs<'_>,
    buffer: &mut [u8],
    threads: usize,
    observer: &dyn Observer,
) -> Result<[u8; 32], FileOpError> {
    if observer.is_cancelled() {
        return Err(FileOpError::Cancelled);
    }
    let top = item.dir == usize::MAX;
    let path = || if top { dirs.base.to_vec() } else { [&dirs.path(item.dir), &b"/"[..], &item.node.name].concat() };
    let fail = |what, e: Errno| dirs.changed(&path(), FileOpError::io(what, &path(), e));
    let in_context = matches!(dirs.source, Source::Context(_));
    let mut hash = sha2::Sha256::new();
    if item.node.is_dir() {
        let fd = if top && dirs.top_is_dir {
            Arc::new(dirs.source.open_dir(dirs.base)?)
        } else {
            let parent = dirs.open(item.dir)?;
            Arc::new(open_subdir(parent.as_fd(), &item.node.name).map_err(|e| fail("open", e))?)
        };
        hash_xattrs(&mut hash, &fd).map_err(|e| fail("read the attributes of", e))?;
        return Ok(hash.finalize().into());
    }
    let parent = dirs.open(item.dir)?;
    let name = if top { split(dirs.base).1 } else { &item.node.name };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&*parent, name, flags, Mode::empty()).map_err(|e| match e {
        Errno::LOOP if in_context => FileOpError::Changed { path: shown(&path()) },
        e => fail("open", e),
    })?;
    let is_same = |file: &OwnedFd| -> Result<bool, Errno> {
        let stat = rustix::fs::fstat(file)?;
        let same_type = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        Ok(same_type && Meta::of(&stat).same_content(&item.node.meta))
    };
    let changed = || FileOpError::Changed { path: shown(&path()) };
    if in_context && !is_same(&file).map_err(|e| fail("look at", e))? {
        return Err(changed());
    }
    let size = item.node.meta.size;
    let read = if size > 2 * PIECE && threads > 1 {
        hash_large(&mut hash, &file, size, threads).map_err(|e| fail("read", e))?
    } else {
        hash_pieces(&mut hash, &file, size, buffer).map_err(|e| fail("read", e))?
    };
    hash_xattrs(&mut hash, &file).map_err(|e| fail("read the attributes of", e))?;
    if in_context && (read != size || !is_same(&file).map_err(|e| fail("look at", e))?) {
        return Err(changed());
    }
    Ok(hash.finalize().into())
}

/// Returns the digest of a file's bytes and attributes as [`digest`] has it.
pub(crate) fn file_digest(file: &OwnedFd, size: u64) -> Result<[u8; 32], Errno> {
    let mut hash = sha2::Sha256::new();
    hash_pieces(&mut hash, file, size, &mut vec![0; 256 << 10])?;
    hash_xattrs(&mut hash, file)?;
    Ok(hash.finalize().into())
}

fn hash_xattrs(hash: &mut sha2::Sha256, fd: &OwnedFd) -> Result<(), Errno> {
    for name in xattr_names(fd)? {
        put(hash, name.as_bytes());
        put(hash, &xattr_value(fd, &name)?);
    }
    Ok(())
}

/// Hashes one piece of a file; returns its digest and how many bytes there were.
fn piece(file: &OwnedFd, start: u64, size: u64, buffer: &mut [u8]) -> Result<([u8; 32], u64), Errno> {
    let end = size.min(start.saturating_add(PIECE));
    let mut hash = sha2::Sha256::new();
    let mut at = start;
    while at < end {
        let want = usize::try_from(end - at).map_or(buffer.len(), |n| n.min(buffer.len()));
        let n = rustix::io::pread(file, &mut buffer[..want], at)?;
        if n == 0 {
            break;
        }
        hash.update(&buffer[..n]);
        at += n as u64;
    }
    Ok((hash.finalize().into(), at - start))
}

fn hash_pieces(hash: &mut sha2::Sha256, file: &OwnedFd, size: u64, buffer: &mut [u8]) -> Result<u64, Errno> {
    let mut at = 0;
    while at < size {
        let (digest, n) = piece(file, at, size, buffer)?;
        hash.update(digest);
        at += n;
        if n == 0 {
            break;
        }
    }
    Ok(at)
}

/// Hashes the pieces of a large file on several threads.
fn hash_large(hash: &mut sha2::Sha256, file: &OwnedFd, size: u64, threads: usize) -> Result<u64, Errno> {
    let count = usize::try_from(size.div_ceil(PIECE)).unwrap_or(usize::MAX);
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, [u8; 32], u64)>, Errno> {
        let mut buffer = vec![0_u8; 1 << 20];
        let mut done = Vec::new();
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= count {
                return Ok(done);
            }
            let (digest, n) = piece(file, i as u64 * PIECE, size, &mut buffer)?;
            done.push((i, digest, n));
        }
    };
    let mut pieces = std::thread::scope(|scope| {
        let handles: Vec<_> = (1..threads).map(|_| scope.spawn(work)).collect();
        let mut pieces = work()?;
        for handle in handles {
            match handle.join() {
                Ok(part) => pieces.extend(part?),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
        Ok::<_, Errno>(pieces)
    })?;
    pieces.sort_unstable_by_key(|(i, ..)| *i);
    let mut read = 0;
    for (_, digest, n) in &pieces {
        hash.update(digest);
        read += n;
    }
    Ok(read)
}
