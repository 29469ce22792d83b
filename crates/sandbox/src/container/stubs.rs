//! Mount points that had to be made, and how they go again.
//!
//! A step's layer shall not hold the empty files and directories that were only made to mount something on. They are noted
//! when they are made. When every process of the container is dead, they are removed from the upper directory, by paths that
//! follow no link and leave no file system; so whatever the step put in a parent's place, nothing outside is reached.
//! Directories that overlayfs copied up for a stub's sake, and that nobody touched since, go as well: the upper directory
//! of a step that changes nothing is empty.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, Timestamps};
use serde::{Deserialize, Serialize};

use super::resolve;

/// A moment as the file system keeps it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Moment(i64, u32);

/// One entry that was made.
#[derive(Debug, Serialize, Deserialize)]
struct Entry {
    path: PathBuf,
    is_directory: bool,
    /// It is the mount point itself, not a parent of one.
    is_target: bool,
}

/// What has to be undone when a container has ended. Paths are relative to the root.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Stubs {
    /// In the order in which they were made: parents first.
    made: Vec<Entry>,
    /// Directories that were copied up, with the time of their last change by us.
    copied: Vec<(PathBuf, Moment)>,
}

impl Stubs {
    pub(crate) fn is_empty(&self) -> bool {
        self.made.is_empty()
    }
}

/// Notes what is made while mounts are set up.
pub(super) struct Changes {
    upper: Option<OwnedFd>,
    made: Vec<Entry>,
    parents: BTreeMap<PathBuf, Timestamps>,
    copied: Vec<PathBuf>,
}

/// Opens a directory below another without following links or leaving the mount.
fn open_below(base: impl AsFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
    let resolve =
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(base, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), resolve)
}

fn changed(directory: impl AsFd) -> rustix::io::Result<Moment> {
    let time = rustix::fs::statx(directory, "", AtFlags::EMPTY_PATH, StatxFlags::CTIME)?.stx_ctime;
    Ok(Moment(time.tv_sec, time.tv_nsec))
}

impl Changes {
    /// `upper` is where overlayfs puts changes of the root, if it is an overlay.
    pub(super) fn new(upper: Option<OwnedFd>) -> Changes {
        Changes { upper, made: Vec::new(), parents: BTreeMap::new(), copied: Vec::new() }
    }

    /// Notes a directory of the root before an entry is made in it, and returns the times it had at first.
    pub(super) fn note_parent(&mut self, directory: &OwnedFd, path: &Path) -> rustix::io::Result<Timestamps> {
        if let Some(times) = self.parents.get(path) {
            return Ok(times.clone());
        }
        let times = resolve::times(directory)?;
        self.parents.insert(path.to_owned(), times.clone());
        if let Some(upper) = &self.upper {
            // The root is always in the upper directory; a directory that is there has all its parents there.
            let missing =
                path.ancestors().take_while(|path| !path.as_os_str().is_empty() && open_below(upper, path).is_err());
            for directory in missing {
                if !self.copied.iter().any(|known| known == directory) {
                    self.copied.push(directory.to_owned());
                }
            }
        }
        Ok(times)
    }

    pub(super) fn note_made(&mut self, path: PathBuf, is_directory: bool, is_target: bool) {
        self.made.push(Entry { path, is_directory, is_target });
    }

    /// Ends the noting: all mount points are made.
    pub(super) fn finish(self) -> Stubs {
        let mut stubs = Stubs { made: self.made, copied: Vec::new() };
        if let Some(upper) = self.upper {
            for path in self.copied {
                if let Ok(moment) = open_below(&upper, &path).and_then(changed) {
                    stubs.copied.push((path, moment));
                }
            }
            // Children before parents.
            stubs.copied.sort_by_key(|(path, _)| std::cmp::Reverse(path.components().count()));
        }
        stubs
    }
}

/// Removes what was made for mounting. `base` is the upper directory, or the root if it is no overlay.
///
/// What can't be removed stays: something is in it, or the step has put something else in its place.
pub(crate) fn remove(stubs: &Stubs, base: &Path, recursive: bool) {
    let Ok(base) = rustix::fs::open(base, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()) else {
        return;
    };
    let untouched: Vec<&Path> = stubs
        .copied
        .iter()
        .filter(|(path, moment)| open_below(&base, path).and_then(changed).is_ok_and(|now| now == *moment))
        .map(|(path, _)| path.as_path())
        .collect();
    for entry in stubs.made.iter().rev().filter(|entry| recursive || entry.is_target) {
        remove_entry(&base, &entry.path, entry.is_directory);
    }
    for path in untouched {
        remove_entry(&base, path, true);
    }
}

/// Removes an empty file or directory and puts the times of its parent back. Errors mean that it stays.
fn remove_entry(base: &OwnedFd, path: &Path, is_directory: bool) {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return;
    };
    let Ok(parent) = open_below(base, parent) else {
        return;
    };
    let Ok(times) = resolve::times(&parent) else {
        return;
    };
    let removed = if is_directory {
        rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)
    } else {
        match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && stat.st_size == 0 => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())
            }
            _ => return,
        }
    };
    if removed.is_ok() {
        // The directory is ours and was just changed; a time that can't be put back is only a later one.
        rustix::fs::utimensat(&parent, ".", &times, AtFlags::empty()).ok();
    }
}
