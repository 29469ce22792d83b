//! Removing trees, and measuring them.

use crate::store::lock;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, mpsc};

/// What the background thread is asked.
enum Ask {
    Remove(PathBuf),
    /// Says that everything asked before is done.
    Tell(mpsc::Sender<()>),
}

/// Sends to the background thread; gives back what couldn't be sent.
fn ask(what: Ask) -> Option<Ask> {
    static QUEUE: OnceLock<Option<Mutex<mpsc::Sender<Ask>>>> = OnceLock::new();
    let queue = QUEUE.get_or_init(|| {
        let (send, receive) = mpsc::channel::<Ask>();
        let thread = std::thread::Builder::new().name("remove".into()).spawn(move || {
            for asked in receive {
                match asked {
                    Ask::Remove(path) => remove_or_warn(&path),
                    // Who asked may have stopped waiting.
                    Ask::Tell(done) => drop(done.send(())),
                }
            }
        });
        thread.is_ok().then(|| Mutex::new(send))
    });
    match queue {
        Some(queue) => lock(queue).send(what).err().map(|unsent| unsent.0),
        None => Some(what),
    }
}

fn remove_or_warn(path: &Path) {
    if let Err(error) = remove_tree(path) {
        tracing::warn!("removing {}: {error}", path.display());
    }
}

/// Removes a tree on the background thread. What is left when the process dies goes at the next start.
pub(crate) fn remove_later(path: &Path) {
    if let Some(Ask::Remove(path)) = ask(Ask::Remove(path.to_owned())) {
        remove_or_warn(&path);
    }
}

/// Waits until what is to be removed is gone, within a time.
pub(crate) fn wait_for_removals(limit: std::time::Duration) {
    let (done, wait) = mpsc::channel();
    if ask(Ask::Tell(done)).is_none() {
        // Too slow is no error: it goes on in the background.
        wait.recv_timeout(limit).ok();
    }
}

/// Removes a file or a whole tree, whatever the modes of its directories and however deep. A missing one is fine.
///
/// # Errors
/// What the kernel says of the first thing that can't be removed.
pub(crate) fn remove_tree(path: &Path) -> std::io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e),
        Ok(meta) if !meta.is_dir() => return std::fs::remove_file(path),
        Ok(_) => {}
    }
    let parent = path.parent().unwrap_or_else(|| Path::new("/"));
    let dir = rustix::fs::open(parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let Some(name) = path.file_name() else { return Err(std::io::ErrorKind::InvalidInput.into()) };
    remove_at(&dir, std::os::unix::ffi::OsStrExt::as_bytes(name))
}

/// Directories nested deeper than this are moved up before they are emptied, so that few descriptors are open.
const OPEN_DEPTH: usize = 32;

/// Removes an entry of a directory with all below it, without recursion.
pub(crate) fn remove_at(dir: &OwnedFd, name: &[u8]) -> std::io::Result<()> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(rustix::io::Errno::NOENT) => return Ok(()),
        Err(rustix::io::Errno::ISDIR | rustix::io::Errno::PERM | rustix::io::Errno::ACCESS) => {}
        Err(e) => return Err(e.into()),
    }
    // Only the topmost directory's name is in `dir`; deep ones are moved into it under fresh names.
    let top = dir.as_fd().try_clone_to_owned()?;
    let mut waiting: Vec<Vec<u8>> = vec![name.to_vec()];
    let mut moved = 0_u64;
    while let Some(name) = waiting.pop() {
        match rustix::fs::unlinkat(&top, name.as_slice(), AtFlags::REMOVEDIR) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => continue,
            _ => {}
        }
        let mut open: Vec<(OwnedFd, Vec<Vec<u8>>, Vec<u8>)> = Vec::new();
        open.push(empty_of_files(&top, &name)?);
        while let Some((fd, subdirs, _)) = open.last_mut() {
            if let Some(sub) = subdirs.pop() {
                match rustix::fs::unlinkat(&*fd, sub.as_slice(), AtFlags::REMOVEDIR) {
                    Ok(()) | Err(rustix::io::Errno::NOENT) => continue,
                    _ => {}
                }
                if open.len() < OPEN_DEPTH {
                    let (fd, ..) = &open[open.len() - 1];
                    let next = empty_of_files(fd, &sub)?;
                    open.push(next);
                } else {
                    moved += 1;
                    let fresh = format!(".removed-{}-{moved}", std::process::id()).into_bytes();
                    rustix::fs::renameat(&open[open.len() - 1].0, sub.as_slice(), &top, fresh.as_slice())?;
                    waiting.push(fresh);
                }
                continue;
            }
            let Some((_, _, name)) = open.pop() else { break };
            let parent = open.last().map_or(&top, |(fd, ..)| fd);
            rustix::fs::unlinkat(parent, name.as_slice(), AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}

/// Opens a directory, whatever its mode, removes what isn't a directory in it, and returns the names of what is.
fn empty_of_files(parent: &OwnedFd, name: &[u8]) -> std::io::Result<(OwnedFd, Vec<Vec<u8>>, Vec<u8>)> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = || rustix::fs::openat(parent, name, flags, Mode::empty());
    let fd = match open() {
        Err(rustix::io::Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    let mut subdirs = Vec::new();
    let mut made_writable = false;
    for entry in rustix::fs::Dir::read_from(&fd)? {
        let entry = entry?;
        let child = entry.file_name().to_bytes();
        if child == b"." || child == b".." {
            continue;
        }
        let mut kind = entry.file_type();
        if kind == FileType::Unknown {
            let stat = rustix::fs::statat(&fd, child, AtFlags::SYMLINK_NOFOLLOW)?;
            kind = FileType::from_raw_mode(stat.st_mode);
        }
        if !made_writable {
            made_writable = true;
            let mode = rustix::fs::fstat(&fd)?.st_mode;
            if mode & 0o700 != 0o700 {
                rustix::fs::fchmod(&fd, Mode::RWXU)?;
            }
        }
        if kind == FileType::Directory {
            subdirs.push(child.to_vec());
        } else {
            match rustix::fs::unlinkat(&fd, child, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }
    Ok((fd, subdirs, name.to_vec()))
}

/// Adds up the real blocks of a tree; a file with several links counts once. What can't be read counts nothing.
pub(crate) fn disk_usage(path: &Path) -> u64 {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(root) = rustix::fs::open(path, flags, Mode::empty()) else { return 0 };
    let mut total = rustix::fs::fstat(&root).map_or(0, |s| blocks(&s));
    let mut seen: HashSet<u64> = HashSet::new();
    let mut waiting = vec![Arc::new(root)];
    while let Some(dir) = waiting.pop() {
        let Ok(entries) = rustix::fs::Dir::read_from(&*dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if name.to_bytes() == b"." || name.to_bytes() == b".." {
                continue;
            }
            let Ok(stat) = rustix::fs::statat(&*dir, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            if !is_dir && stat.st_nlink > 1 && !seen.insert(stat.st_ino) {
                continue;
            }
            total += blocks(&stat);
            if is_dir && let Ok(sub) = rustix::fs::openat(&*dir, name, flags, Mode::empty()) {
                waiting.push(Arc::new(sub));
            }
        }
    }
    total
}

fn blocks(stat: &rustix::fs::Stat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}
