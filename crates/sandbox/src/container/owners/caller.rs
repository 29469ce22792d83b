//! A thread that waits for an answer: its memory, and the files that it means.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{chroot, fchdir};

use crate::sys::{self, Notification};

const PAGE: usize = 4096;

/// A notified call, with the view of its thread.
pub(super) struct Caller<'a> {
    /// A `/proc` in which the container's processes are.
    pub(super) proc: BorrowedFd<'a>,
    /// The listener's own root.
    pub(super) home: BorrowedFd<'a>,
    pub(super) listener: BorrowedFd<'a>,
    pub(super) call: &'a Notification,
}

/// A path as the caller wrote it.
pub(super) struct Path(Vec<u8>);

impl Path {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Splits off the last name, if it is one that something new can have; that of a directory may have slashes after it.
    pub(super) fn split(&self, is_directory: bool) -> Option<(Path, Vec<u8>)> {
        let mut path = &*self.0;
        while let (true, Some(shorter)) = (is_directory, path.strip_suffix(b"/")) {
            path = shorter;
        }
        let start = path.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
        let (parent, name) = path.split_at(start);
        let parent = if parent.is_empty() { b"." } else { parent };
        (!matches!(name, b"" | b"." | b"..")).then(|| (Path(parent.to_vec()), name.to_vec()))
    }
}

impl Caller<'_> {
    fn open_proc(&self, name: &str, flags: OFlags) -> Result<OwnedFd, Errno> {
        rustix::fs::openat(self.proc, format!("{}/{name}", self.call.pid), flags | OFlags::CLOEXEC, Mode::empty())
    }

    /// Says that what was opened by the thread's number until now is that thread's: it has been waiting all the time.
    fn still_waits(&self) -> Result<(), Errno> {
        sys::notification_is_valid(self.listener, self.call.id).map_err(|_| Errno::SRCH)
    }

    /// The caller's memory.
    fn memory(&self, flags: OFlags) -> Result<File, Errno> {
        let memory = self.open_proc("mem", flags)?;
        self.still_waits()?;
        Ok(File::from(memory))
    }

    /// Copies bytes from the caller's memory.
    pub(super) fn read(&self, address: u64, length: usize) -> Result<Vec<u8>, Errno> {
        let mut bytes = vec![0; length];
        self.memory(OFlags::RDONLY)?.read_exact_at(&mut bytes, address).map_err(|_| Errno::FAULT)?;
        Ok(bytes)
    }

    /// Writes into the caller's memory.
    pub(super) fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        self.memory(OFlags::WRONLY)?.write_all_at(bytes, address).map_err(|_| Errno::FAULT)
    }

    /// Opens a file of the listener's own once more.
    pub(super) fn open_own(&self, file: &OwnedFd, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = format!("self/fd/{}", file.as_raw_fd());
        rustix::fs::openat(self.proc, path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
    }

    /// Copies a path from the caller's memory, once.
    pub(super) fn path(&self, address: u64) -> Result<Path, Errno> {
        let memory = self.memory(OFlags::RDONLY)?;
        let mut path = Vec::new();
        let mut chunk = [0; PAGE];
        while path.len() < libc::PATH_MAX as usize {
            let at = address.checked_add(path.len() as u64).ok_or(Errno::FAULT)?;
            // Not over the end of a page: the next one needn't be there.
            let chunk = &mut chunk[..PAGE - (at % PAGE as u64) as usize];
            let length = memory.read_at(chunk, at).map_err(|_| Errno::FAULT)?;
            if length == 0 {
                return Err(Errno::FAULT);
            }
            if let Some(end) = chunk[..length].iter().position(|byte| *byte == 0) {
                path.extend_from_slice(&chunk[..end]);
                return if path.len() < libc::PATH_MAX as usize { Ok(Path(path)) } else { Err(Errno::NAMETOOLONG) };
            }
            path.extend_from_slice(&chunk[..length]);
        }
        Err(Errno::NAMETOOLONG)
    }

    /// Opens what a descriptor of the caller stands for; `AT_FDCWD` is its directory.
    pub(super) fn open_descriptor(&self, descriptor: i32) -> Result<OwnedFd, Errno> {
        let name = if descriptor == libc::AT_FDCWD { "cwd".to_owned() } else { format!("fd/{descriptor}") };
        let opened = self.open_proc(&name, OFlags::PATH);
        self.still_waits()?;
        opened.map_err(|error| if error == Errno::NOENT { Errno::BADF } else { error })
    }

    /// Opens a path as the caller would: below its root, from its directory or a descriptor of it.
    pub(super) fn open_path(&self, directory: i32, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        if path.is_empty() {
            return Err(Errno::NOENT);
        }
        let root = self.open_proc("root", OFlags::PATH)?;
        // An absolute path doesn't look at the descriptor.
        let start = if path.0[0] == b'/' { None } else { Some(self.open_descriptor(directory)?) };
        self.still_waits()?;
        let found = (|| {
            fchdir(&root)?;
            chroot(".")?;
            if let Some(start) = &start {
                fchdir(start)?;
            }
            let flags = flags | OFlags::PATH | OFlags::CLOEXEC;
            rustix::fs::openat2(CWD, &*path.0, flags, Mode::empty(), ResolveFlags::NO_MAGICLINKS)
        })();
        // Back home. A listener that can't find home answers nobody any more.
        if fchdir(self.home.as_fd()).and_then(|()| chroot(".")).is_err() {
            sys::exit_now(1);
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_names_are_split_off() {
        let split = |path: &str, is_directory| {
            let (parent, name) = Path(path.into()).split(is_directory)?;
            Some((String::from_utf8(parent.0).unwrap(), String::from_utf8(name).unwrap()))
        };
        let some = |parent: &str, name: &str| Some((parent.to_owned(), name.to_owned()));
        assert_eq!(split("a", false), some(".", "a"));
        assert_eq!(split("/a", false), some("/", "a"));
        assert_eq!(split("a/b", false), some("a/", "b"));
        assert_eq!(split("a/b//", true), some("a/", "b"));
        for path in ["", "/", "a/", "a/.", "..", "//"] {
            assert_eq!(split(path, false), None, "{path}");
        }
        assert_eq!(split("a/../", true), None);
    }
}
