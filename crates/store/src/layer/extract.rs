//! Making what the entries of a hostile tar say, inside one directory.

use crate::Observer;
use crate::fileop::{FileOpError, Owner};
use crate::layer::LayerError;
use crate::scan::{MAX_DEPTH, Node};
use crate::store::{Store, lock};
use crate::union::{
    NewDirs, Spot, Union, UnionDir, current, is_kept_xattr, make_whiteout, open_deep, set_opaque, timestamps,
};
use bud_oci::tar::{Entry, Header, Kind, Reader};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io::Read;

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";
/// The free space is looked at after so many bytes.
const SPACE_STEP: u64 = 64 << 20;
/// Zeros in pieces of this size become holes.
const HOLE: usize = 64 << 10;

/// What was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extracted {
    pub entries: u64,
    pub bytes: u64,
    pub skipped_devices: u64,
    /// The archive said what its root looks like.
    pub has_root: bool,
}

/// An extraction.
pub(crate) struct Extract<'a> {
    union: &'a Union<'a>,
    store: &'a Store,
    observer: &'a dyn Observer,
    /// The directory that is the archive's root, which is never left.
    root: UnionDir,
    /// Whiteouts delete, as in a layer; else they are files like any other.
    whiteouts: bool,
    /// The root gets the looks that the archive says.
    root_looks: bool,
    /// All that is made gets this owner.
    owner: Option<Owner>,
    done: Extracted,
    next_space_check: u64,
    /// The directory that the last entry went to, by the path in the archive.
    last: Option<(Vec<u8>, Vec<UnionDir>)>,
    /// Times of directories, set at the end.
    times: HashMap<Vec<u8>, (i64, u32)>,
    buffer: Vec<u8>,
}

/// Cleans a path of an archive; the components, first to last. `None` if it leads above the root.
fn clean(path: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in path.split(|c| *c == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                parts.pop()?;
            }
            part => parts.push(part),
        }
    }
    Some(parts)
}

impl<'a> Extract<'a> {
    pub(crate) fn new(
        union: &'a Union<'a>,
        store: &'a Store,
        observer: &'a dyn Observer,
        root: UnionDir,
        whiteouts: bool,
        owner: Option<Owner>,
    ) -> Self {
        Self {
            union,
            store,
            observer,
            root,
            whiteouts,
            root_looks: whiteouts,
            owner,
            done: Extracted::default(),
            next_space_check: 0,
            last: None,
            times: HashMap::new(),
            buffer: vec![0; 256 << 10],
        }
    }

    /// Gives the root the looks that the archive says, as a layer does.
    pub(crate) fn with_root(mut self) -> Self {
        self.root_looks = true;
        self
    }

    /// Makes all entries; the last of a path wins.
    pub(crate) fn run<R: Read>(mut self, tar: &mut Reader<R>) -> Result<Extracted, LayerError> {
        while let Some(entry) = tar.next_entry()? {
            if self.observer.is_cancelled() {
                return Err(LayerError::Cancelled);
            }
            let before = self.done.bytes;
            self.entry(entry)?;
            self.done.entries += 1;
            self.observer.advance(1, self.done.bytes - before);
        }
        self.set_times()?;
        Ok(self.done)
    }

    fn entry<R: Read>(&mut self, mut entry: Entry<'_, R>) -> Result<(), LayerError> {
        let header = entry.header.clone();
        let refuse = |reason: &str| LayerError::entry(&header.path, reason);
        let parts = clean(&header.path).ok_or_else(|| refuse("the path leads out of the layer"))?;
        if parts.len() > MAX_DEPTH {
            return Err(refuse("nested too deeply"));
        }
        let Some((name, parents)) = parts.split_last() else {
            if header.kind != Kind::Directory {
                return Err(refuse("the root can only be a directory"));
            }
            return self.root_looks(&header);
        };
        if name.len() > 255 || parents.iter().any(|p| p.len() > 255) {
            return Err(refuse("a name is longer than 255 bytes"));
        }
        let parent_path = parents.join(&b'/');
        let mut dirs = self.parent(&parent_path)?;
        if self.whiteouts && name.starts_with(WHITEOUT) {
            return self.whiteout(&mut dirs, name, &header);
        }
        let dir = current(&dirs)?;
        let found = dir.child(name).map_err(|e| FileOpError::io("look at", &dir.join(name), e))?.map(|(node, _)| node);
        if found.as_ref().is_some_and(|n| n.is_dir() != (header.kind == Kind::Directory) || !n.is_dir()) {
            // What is replaced may have been on the way to the last directory.
            self.last = None;
        }
        let spot = Spot { dirs, name: name.to_vec(), found };
        match header.kind {
            Kind::Directory => self.directory(spot, &header),
            Kind::File => self.file(spot, &header, &mut entry),
            Kind::Symlink => self.symlink(spot, &header),
            Kind::HardLink => self.hard_link(spot, &header),
            Kind::Fifo => self.fifo(spot, &header),
            Kind::CharDevice | Kind::BlockDevice => {
                if header.kind == Kind::CharDevice && header.device == (0, 0) {
                    return Err(refuse("device 0:0 would delete a file"));
                }
                // No usable device is ever made; what the entry replaces goes.
                let mut spot = spot;
                self.clear(&mut spot)?;
                self.done.skipped_devices += 1;
                Ok(())
            }
        }
    }

    /// Returns the chain of directories to a path of the archive, making what is missing; links stay inside.
    fn parent(&mut self, path: &[u8]) -> Result<Vec<UnionDir>, LayerError> {
        if let Some((last, dirs)) = &self.last
            && last == path
        {
            return Ok(dirs.clone());
        }
        let new = NewDirs { mode: 0o755, owner: None, time: None };
        let mut spot = self.union.resolve_from(vec![self.root.clone()], path, true, Some(&new))?;
        let dirs = match &spot.found {
            Some(node) if node.is_dir() => spot.enter()?,
            Some(_) => return Err(LayerError::entry(path, "something is in a path that is no directory")),
            None => {
                let name = std::mem::take(&mut spot.name);
                self.union.make_dir(&mut spot.dirs, &name, &new)?;
                spot.dirs
            }
        };
        if dirs.len() > MAX_DEPTH {
            return Err(LayerError::entry(path, "nested too deeply"));
        }
        self.last = Some((path.to_vec(), dirs.clone()));
        Ok(dirs)
    }

    fn root_looks(&mut self, header: &Header) -> Result<(), LayerError> {
        // An archive that is extracted into a directory doesn't change that directory's looks.
        if self.root_looks {
            let fd = self.root.upper_fd().map_err(|e| FileOpError::io("open", b"/", e))?.clone();
            self.looks(&fd, b"", header)?;
            self.done.has_root = true;
        }
        Ok(())
    }

    fn whiteout(&mut self, dirs: &mut [UnionDir], name: &[u8], header: &Header) -> Result<(), LayerError> {
        self.union.copy_up(dirs)?;
        let dir = current(dirs)?;
        let upper = dir.upper_fd().map_err(|e| FileOpError::io("open", &dir.path, e))?;
        if name == OPAQUE_MARK {
            if dir.path == self.root.path {
                lock(self.union.notes()).opaque_root = true;
            }
            set_opaque(upper).map_err(|e| FileOpError::io("hide what is below", &dir.path, e))?;
            return Ok(());
        }
        let hidden = &name[WHITEOUT.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(LayerError::entry(&header.path, "a whiteout of nothing"));
        }
        if hidden.starts_with(WHITEOUT) {
            // Notes of aufs; nobody makes them any more.
            return Ok(());
        }
        let path = dir.join(hidden);
        match dir.child(hidden).map_err(|e| FileOpError::io("look at", &path, e))? {
            // What is in the layer itself stays; of a directory, what is below goes.
            Some((node, true)) if node.is_dir() => {
                let dir = dir.enter(hidden).map_err(|e| FileOpError::io("open", &path, e))?;
                let fd = dir.upper_fd().map_err(|e| FileOpError::io("open", &path, e))?;
                set_opaque(fd).map_err(|e| FileOpError::io("hide what is below", &path, e))?;
                Ok(())
            }
            Some((_, true)) => Ok(()),
            _ => match make_whiteout(upper, hidden) {
                Ok(()) | Err(Errno::EXIST) => {
                    lock(self.union.notes()).whiteouts.insert(path);
                    Ok(())
                }
                Err(e) => Err(FileOpError::io("hide", &path, e).into()),
            },
        }
    }

    /// Removes what is at a place. Tells whether the draft had something there that hides what is below.
    fn clear(&mut self, spot: &mut Spot) -> Result<bool, LayerError> {
        self.union.copy_up(&mut spot.dirs)?;
        let dir = spot.dir()?;
        let hides = spot.found.is_some();
        self.union.clear_upper(dir, &spot.name)?;
        lock(self.union.notes()).links.remove(&dir.join(&spot.name));
        Ok(hides)
    }

    fn directory(&mut self, mut spot: Spot, header: &Header) -> Result<(), LayerError> {
        let path = spot.path();
        let fail = |what, e: Errno| FileOpError::io(what, &path, e);
        let fd = if spot.found.as_ref().is_some_and(Node::is_dir) {
            let mut chain = spot.enter()?;
            self.union.copy_up(&mut chain)?;
            lock(self.union.notes()).implied.remove(&path);
            current(&chain)?.upper_fd().map_err(|e| fail("open", e))?.clone()
        } else {
            let hides = self.clear(&mut spot)?;
            let fd = self.union.new_dir_in(spot.dir()?, &spot.name).map_err(|e| fail("create", e))?;
            if hides {
                set_opaque(&fd).map_err(|e| fail("hide what is below", e))?;
            }
            std::sync::Arc::new(fd)
        };
        self.looks(&fd, &path, header)
    }

    /// Sets owner, attributes and mode; of a directory the time at the end.
    fn looks(&mut self, fd: &OwnedFd, path: &[u8], header: &Header) -> Result<(), LayerError> {
        let time = (header.mtime.seconds, header.mtime.nanos);
        let is_dir = header.kind == Kind::Directory;
        if is_dir {
            self.times.insert(path.to_vec(), time);
        }
        let owner = self.owner.unwrap_or(Owner { uid: header.uid, gid: header.gid });
        self.union.set_looks(fd, path, Some(owner), Some(header.mode), None)?;
        for (name, value) in &header.xattrs {
            let Ok(name) = std::str::from_utf8(name) else { continue };
            if !is_kept_xattr(name) {
                continue;
            }
            match rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()) {
                Ok(()) | Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL) => {}
                Err(e) => return Err(FileOpError::io("set the attributes of", path, e).into()),
            }
        }
        if !is_dir {
            rustix::fs::futimens(fd, &timestamps(time)).map_err(|e| FileOpError::io("set the time of", path, e))?;
        }
        Ok(())
    }

    fn file<R: Read>(&mut self, mut spot: Spot, header: &Header, entry: &mut Entry<'_, R>) -> Result<(), LayerError> {
        self.clear(&mut spot)?;
        let path = spot.path();
        let fd =
            crate::fileop::create_file(spot.dir()?, &spot.name).map_err(|e| FileOpError::io("create", &path, e))?;
        let (mut at, mut written) = (0_u64, 0_u64);
        loop {
            let n = entry.read(&mut self.buffer).map_err(bud_oci::tar::TarError::from)?;
            if n == 0 {
                break;
            }
            if self.done.bytes >= self.next_space_check {
                self.store.check_space()?;
                self.next_space_check = self.done.bytes + SPACE_STEP;
                if self.observer.is_cancelled() {
                    return Err(LayerError::Cancelled);
                }
            }
            for part in self.buffer[..n].chunks(HOLE) {
                let is_hole = part.len() == HOLE && part.iter().all(|b| *b == 0);
                if !is_hole {
                    write_at(&fd, part, at).map_err(|e| FileOpError::io("write", &path, e))?;
                    written = at + part.len() as u64;
                }
                at += part.len() as u64;
            }
            self.done.bytes += n as u64;
        }
        if written < at {
            rustix::fs::ftruncate(&fd, at).map_err(|e| FileOpError::io("write", &path, e))?;
        }
        self.looks(&fd, &path, header)
    }

    fn symlink(&mut self, mut spot: Spot, header: &Header) -> Result<(), LayerError> {
        if header.link.is_empty() {
            return Err(LayerError::entry(&header.path, "a symbolic link to nothing"));
        }
        self.clear(&mut spot)?;
        let owner = self.owner.unwrap_or(Owner { uid: header.uid, gid: header.gid });
        let time = (header.mtime.seconds, header.mtime.nanos);
        crate::fileop::make_link(self.union, spot.dir()?, &spot.name, &header.link, Some(owner), Some(time))?;
        Ok(())
    }

    fn fifo(&mut self, mut spot: Spot, header: &Header) -> Result<(), LayerError> {
        self.clear(&mut spot)?;
        let dir = spot.dir()?;
        let path = spot.path();
        let upper = dir.upper_fd().map_err(|e| FileOpError::io("open", &path, e))?;
        let mode = Mode::from_raw_mode(header.mode & 0o7777);
        rustix::fs::mknodat(upper.as_fd(), spot.name.as_slice(), FileType::Fifo, mode, 0)
            .map_err(|e| FileOpError::io("create", &path, e))?;
        let owner = self.owner.unwrap_or(Owner { uid: header.uid, gid: header.gid });
        let time = (header.mtime.seconds, header.mtime.nanos);
        crate::fileop::set_looks_of_name(self.union, dir, &spot.name, Some(owner), Some(time))?;
        rustix::fs::chmodat(upper.as_fd(), spot.name.as_slice(), mode, AtFlags::empty())
            .map_err(|e| FileOpError::io("set the mode of", &path, e))?;
        Ok(())
    }

    /// Gives a file one more name. A target that isn't in the layer may be below it.
    fn hard_link(&mut self, mut spot: Spot, header: &Header) -> Result<(), LayerError> {
        let refuse = |reason: &str| LayerError::entry(&header.path, reason);
        // Within the root, whatever the name says.
        let target: Vec<u8> = header.link.clone();
        let from = match self.union.resolve_from(vec![self.root.clone()], &target, false, None) {
            Ok(from) => Some(from),
            Err(FileOpError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e.into()),
        };
        let path = spot.path();
        match from {
            Some(from) if from.found.is_some() && from.path() == path => Ok(()),
            Some(mut from) if from.found.is_some() => {
                if from.name.is_empty() || from.found.as_ref().is_some_and(Node::is_dir) {
                    return Err(refuse("a hard link to a directory"));
                }
                self.clear(&mut spot)?;
                link(self.union, &mut from, &spot)?;
                Ok(())
            }
            _ if self.whiteouts => {
                self.clear(&mut spot)?;
                lock(self.union.notes()).links.insert(path, target);
                Ok(())
            }
            _ => Err(refuse("a hard link to a file that is not there")),
        }
    }

    fn set_times(&self) -> Result<(), LayerError> {
        for (path, time) in &self.times {
            let root = self.union.root().upper_fd().map_err(|e| FileOpError::io("open", b"/", e))?;
            match open_deep(root.as_fd(), path) {
                Ok(fd) => rustix::fs::futimens(&fd, &timestamps(*time))
                    .map_err(|e| FileOpError::io("set the time of", path, e))?,
                // Replaced by something else later in the archive.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(e) => return Err(FileOpError::io("open", path, e).into()),
            }
        }
        Ok(())
    }
}

/// Makes a hard link in the draft; a file that is below it is copied up first.
pub(crate) fn link(union: &Union<'_>, from: &mut Spot, to: &Spot) -> Result<(), FileOpError> {
    let path = to.path();
    let fail = |what, e: Errno| FileOpError::io(what, &path, e);
    union.copy_up(&mut from.dirs)?;
    let source = from.dir()?;
    let source_fd = source.upper_fd().map_err(|e| fail("open", e))?;
    let there = rustix::fs::statat(source_fd.as_fd(), from.name.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
    if matches!(there, Err(Errno::NOENT)) {
        copy_up_file(union, source, &from.name)?;
    }
    let target = to.dir()?.upper_fd().map_err(|e| fail("open", e))?;
    rustix::fs::linkat(source_fd.as_fd(), from.name.as_slice(), target.as_fd(), to.name.as_slice(), AtFlags::empty())
        .map_err(|e| fail("create the hard link", e))?;
    // One file, one owner, whichever of its names is asked.
    lock(union.notes()).share_owner(&from.path(), &path);
    Ok(())
}

/// Copies a file that is below the draft into it, looking as it did.
fn copy_up_file(union: &Union<'_>, dir: &UnionDir, name: &[u8]) -> Result<(), FileOpError> {
    let path = dir.join(name);
    let fail = |what, e: Errno| FileOpError::io(what, &path, e);
    let lower = dir.lower.as_ref().ok_or_else(|| fail("open", Errno::NOENT))?;
    let node = crate::scan::look(lower.as_fd(), name).map_err(|e| fail("look at", e))?;
    let owner = union.owner_below(&path, &node);
    match &node.kind {
        crate::scan::Kind::File => {
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let input = rustix::fs::openat(lower.as_fd(), name, flags, Mode::empty()).map_err(|e| fail("open", e))?;
            let output = crate::fileop::create_file(dir, name).map_err(|e| fail("create", e))?;
            crate::filecopy::copy_content(&input, &output, &node.meta, &(), &path)?;
            union.set_looks(&output, &path, Some(owner), Some(node.meta.mode), Some(node.meta.mtime))?;
            crate::union::copy_xattrs(&input, &output).map_err(|e| fail("copy the attributes of", e))
        }
        crate::scan::Kind::Link(target) => {
            crate::fileop::make_link(union, dir, name, target, Some(owner), Some(node.meta.mtime))
        }
        _ => Err(FileOpError::Invalid(format!("{}: only files and links can have a second name", path.escape_ascii()))),
    }
}

fn write_at(fd: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let n = rustix::io::pwrite(fd, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
