//! Copying a whole directory: one thread makes directories, several copy the files.
//!
//! Descriptors are open only for directories that something is still to be done in, however wide or deep the tree is: a
//! directory gets its looks when the last file and directory in it is done.

use crate::fileop::copy::{Job, Way};
use crate::fileop::{FileOpError, Owner, shown};
use crate::scan::{Kind, Node};
use crate::source::{Found, split};
use crate::store::lock;
use crate::union::{UnionDir, copy_xattrs, is_plain, open_deep, timestamps};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::AtFlags;
use rustix::io::Errno;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};

/// Files handed to a thread at once.
const BATCH: usize = 16;

/// What goes wrong first ends the copy.
#[derive(Default)]
struct Failure {
    failed: AtomicBool,
    error: Mutex<Option<FileOpError>>,
}

impl Failure {
    fn note(&self, result: Result<(), FileOpError>) {
        if let Err(error) = result {
            self.failed.store(true, Ordering::Relaxed);
            lock(&self.error).get_or_insert(error);
        }
    }
}

/// A directory that is being filled. When nobody needs it any more, it gets its looks.
struct Target<'j> {
    dir: UnionDir,
    /// Made just now: nothing can be in the way in it.
    fresh: bool,
    /// It gives new files nothing of its own.
    plain: bool,
    finish: Finish,
    job: &'j Job<'j>,
    failure: &'j Failure,
    /// Finished after this one, which changes its time.
    _parent: Option<Arc<Target<'j>>>,
}

/// The looks of a finished directory; without an owner, owner and mode stay.
struct Finish {
    owner: Option<Owner>,
    mode: u32,
    time: (i64, u32),
}

impl Drop for Target<'_> {
    fn drop(&mut self) {
        if self.failure.failed.load(Ordering::Relaxed) {
            return;
        }
        let path = &self.dir.path;
        let Some(fd) = &self.dir.upper else { return };
        self.failure.note(match self.finish.owner {
            Some(owner) => {
                self.job.union.set_looks(fd, path, Some(owner), Some(self.finish.mode), Some(self.finish.time))
            }
            None => rustix::fs::futimens(fd, &timestamps(self.finish.time))
                .map_err(|e| FileOpError::io("set the time of", path, e)),
        });
    }
}

/// A file to be copied.
struct FileTask<'j> {
    from: Arc<OwnedFd>,
    to: Arc<Target<'j>>,
    node: &'j Node,
}

/// A directory to be made and filled.
struct DirTask<'j> {
    from: Arc<OwnedFd>,
    to: Arc<Target<'j>>,
    node: &'j Node,
}

/// One more name for a file that was copied under its first name.
struct HardLink {
    first: Arc<Vec<u8>>,
    path: Vec<u8>,
}

/// Copies what is in a directory to the last one of a chain. The looks of that are set if it is new; else its time alone.
pub(super) fn copy_tree(
    job: &Job<'_>,
    found: &Found<'_>,
    mut chain: Vec<UnionDir>,
    fresh: bool,
    time: (i64, u32),
) -> Result<(), FileOpError> {
    job.union.copy_up(&mut chain)?;
    let Some(dir) = chain.pop() else { return Err(FileOpError::Invalid("an empty chain of directories".into())) };
    let from = Arc::new(job.source.open_dir(&found.path)?);
    if fresh {
        let upper = dir.upper_fd().map_err(|e| FileOpError::io("open", &dir.path, e))?;
        copy_xattrs(from.as_fd(), upper.as_fd())
            .map_err(|e| FileOpError::io("copy the attributes of", &dir.path, e))?;
    }
    let plain = dir.upper.as_ref().is_some_and(|fd| is_plain(fd));
    let failure = Failure::default();
    let node = &*found.node;
    let finish = Finish { owner: fresh.then(|| job.owner_of(&node.meta)), mode: job.mode_of(node), time };
    let top = Arc::new(Target { dir, fresh, plain, finish, job, failure: &failure, _parent: None });
    let links = copy_entries(job, node, from, top, &failure);
    if let Some(error) = lock(&failure.error).take() {
        return Err(error);
    }
    make_hard_links(job, &links?)
}

/// Makes the directories, and has the files copied by threads.
fn copy_entries<'j>(
    job: &'j Job<'j>,
    top: &'j Node,
    from: Arc<OwnedFd>,
    to: Arc<Target<'j>>,
    failure: &'j Failure,
) -> Result<Vec<HardLink>, FileOpError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(8);
    let (send, receive) = mpsc::sync_channel::<Vec<FileTask<'j>>>(threads);
    let receive = Mutex::new(receive);
    let work = || {
        while let Ok(batch) = { lock(&receive).recv() } {
            for task in batch {
                if failure.failed.load(Ordering::Relaxed) {
                    continue;
                }
                // A panic must not leave the queue without readers.
                let way = Way { clear: !task.to.fresh, plain: task.to.plain };
                let place = || job.place(&task.from, &task.to.dir, task.node, &task.node.name, way);
                let placed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(place));
                failure.note(placed.unwrap_or_else(|_| {
                    let path = shown(&task.to.dir.join(&task.node.name));
                    Err(FileOpError::Invalid(format!("copying {path} failed by a mistake in this program")))
                }));
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
        // The sender goes with the walk, and that ends the threads.
        walk(job, top, from, to, failure, send)
    })
}

fn walk<'j>(
    job: &'j Job<'j>,
    top: &'j Node,
    from: Arc<OwnedFd>,
    to: Arc<Target<'j>>,
    failure: &'j Failure,
    send: mpsc::SyncSender<Vec<FileTask<'j>>>,
) -> Result<Vec<HardLink>, FileOpError> {
    let mut links = Vec::new();
    let mut seen: HashMap<(u64, u64), Arc<Vec<u8>>> = HashMap::new();
    let mut batch: Vec<FileTask<'j>> = Vec::with_capacity(BATCH);
    let mut waiting: Vec<DirTask<'j>> = Vec::new();
    let mut next = Some((top, from, to));
    while let Some((node, from, to)) = next.take() {
        if job.observer.is_cancelled() {
            return Err(FileOpError::Cancelled);
        }
        if failure.failed.load(Ordering::Relaxed) {
            return Ok(links);
        }
        let Kind::Dir(children) = &node.kind else { return Ok(links) };
        for child in children {
            if child.is_dir() {
                continue;
            }
            if !to.fresh {
                let path = to.dir.join(&child.name);
                let there = to.dir.child(&child.name).map_err(|e| FileOpError::io("look at", &path, e))?;
                job.in_the_way(there.as_ref().map(|(node, _)| node), child, &path)?;
            }
            if matches!(child.kind, Kind::File) && child.meta.nlink > 1 {
                let path = to.dir.join(&child.name);
                if let Some(first) = seen.get(&(child.meta.dev, child.meta.ino)) {
                    if !to.fresh {
                        job.union.clear_upper(&to.dir, &child.name)?;
                    }
                    links.push(HardLink { first: Arc::clone(first), path });
                    continue;
                }
                seen.insert((child.meta.dev, child.meta.ino), Arc::new(path));
            }
            batch.push(FileTask { from: Arc::clone(&from), to: Arc::clone(&to), node: child });
            if batch.len() == BATCH {
                // The receivers live until the sender is dropped.
                let _sent = send.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH)));
            }
        }
        for child in children.iter().rev().filter(|c| c.is_dir()) {
            waiting.push(DirTask { from: Arc::clone(&from), to: Arc::clone(&to), node: child });
        }
        drop((from, to));
        if let Some(task) = waiting.pop() {
            let path = task.to.dir.join(&task.node.name);
            let from = crate::scan::open_subdir(task.from.as_fd(), &task.node.name)
                .map_err(|e| job.source_error("open", &path, e))?;
            let target = enter_dir(job, &task, &from, path, failure)?;
            next = Some((task.node, Arc::new(from), Arc::new(target)));
        }
    }
    let _sent = send.send(batch);
    Ok(links)
}

/// Makes a directory of the tree that is copied, or takes the one that is there.
fn enter_dir<'j>(
    job: &'j Job<'j>,
    task: &DirTask<'j>,
    from: &OwnedFd,
    path: Vec<u8>,
    failure: &'j Failure,
) -> Result<Target<'j>, FileOpError> {
    let (parent, node) = (&task.to.dir, task.node);
    let fail = |what, e: Errno| FileOpError::io(what, &path, e);
    let there = if task.to.fresh { None } else { parent.child(&node.name).map_err(|e| fail("look at", e))? };
    let there = there.map(|(node, _)| node);
    let (dir, fresh) = if there.as_ref().is_some_and(Node::is_dir) {
        let mut chain = [parent.clone(), parent.enter(&node.name).map_err(|e| fail("open", e))?];
        job.union.copy_up(&mut chain)?;
        let [_, dir] = chain;
        (dir, false)
    } else {
        if there.is_some() {
            job.in_the_way(there.as_ref(), node, &path)?;
            job.union.clear_upper(parent, &node.name)?;
        }
        let fd = job.union.new_dir_in(parent, &node.name).map_err(|e| fail("create", e))?;
        (UnionDir { upper: Some(Arc::new(fd)), lower: None, path: path.clone() }, true)
    };
    let upper = dir.upper_fd().map_err(|e| fail("open", e))?;
    copy_xattrs(from.as_fd(), upper.as_fd()).map_err(|e| fail("copy the attributes of", e))?;
    job.stats.add(job.observer, 1, 0);
    let plain = is_plain(upper);
    let finish =
        Finish { owner: Some(job.owner_of(&node.meta)), mode: job.mode_of(node), time: job.time_of(&node.meta) };
    Ok(Target { dir, fresh, plain, finish, job, failure, _parent: Some(Arc::clone(&task.to)) })
}

/// Makes the further names of files; the times of the directories they are in stay.
fn make_hard_links(job: &Job<'_>, links: &[HardLink]) -> Result<(), FileOpError> {
    let root = job.union.root().upper_fd().map_err(|e| FileOpError::io("open", b"", e))?;
    let open = |dir: &[u8]| open_deep(root.as_fd(), dir).map_err(|e| FileOpError::io("open", dir, e));
    let mut current: Option<(&[u8], OwnedFd, (i64, u32))> = None;
    let restore = |done: Option<(&[u8], OwnedFd, (i64, u32))>| match done {
        Some((dir, fd, time)) => {
            rustix::fs::futimens(&fd, &timestamps(time)).map_err(|e| FileOpError::io("set the time of", dir, e))
        }
        None => Ok(()),
    };
    for link in links {
        if job.observer.is_cancelled() {
            return Err(FileOpError::Cancelled);
        }
        let (dir, name) = split(&link.path);
        if current.as_ref().is_none_or(|(last, ..)| *last != dir) {
            restore(current.take())?;
            let fd = open(dir)?;
            let meta = crate::scan::look(fd.as_fd(), b"").map_err(|e| FileOpError::io("look at", dir, e))?.meta;
            current = Some((dir, fd, meta.mtime));
        }
        let Some((_, to, _)) = &current else { continue };
        let (first_dir, first) = split(&link.first);
        let from = open(first_dir)?;
        rustix::fs::linkat(&from, first, to, name, AtFlags::empty())
            .map_err(|e| FileOpError::io("create the hard link", &link.path, e))?;
        job.stats.add(job.observer, 1, 0);
    }
    restore(current)
}
