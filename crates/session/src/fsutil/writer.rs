//! Writing a tree that comes in, as it differs from the one that is there.

use std::any::Any;
use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::hash::BuildHasher;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use bud_protocol::fsutil::packet::PacketType;
use bud_protocol::fsutil::{Packet, Stat};
use bytes::Bytes;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, Timespec, Timestamps};
use rustix::io::Errno;
use tokio::sync::mpsc;

use super::mode::{FileKind, from_go_mode, kind_of};
use super::order::Order;
use super::walk::{names, open_beneath};
use super::xattr::{self, Xattrs};
use super::{Outbound, Progress};
use crate::SessionError;

/// Files that are asked for at a time. Fewer than a sender of Go takes before it stops reading (128).
const IN_FLIGHT: usize = 64;
/// Longest symlink target, in bytes.
const MAX_TARGET: usize = 4095;

/// Which entries are taken over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Differ {
    /// Those whose metadata differs.
    #[default]
    Metadata,
    /// All.
    None,
}

/// Who owns what is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Owner {
    /// Who the sender says.
    #[default]
    Sent,
    /// Who writes.
    Writer,
}

/// How a tree is received.
#[derive(Clone)]
pub struct ReceiveOptions {
    /// Which entries are taken over.
    pub differ: Differ,
    /// Keep what is in the destination and not in the tree.
    pub merge: bool,
    /// Who owns what is written.
    pub owner: Owner,
    /// Most entries.
    pub max_entries: u32,
    /// Most bytes in all files of the tree together.
    pub max_bytes: u64,
    /// Told of the bytes that came in.
    pub progress: Option<Progress>,
    /// Dropped when nothing is written any more, such as a lock on the destination: a transfer that is given up may still write
    /// what has come until then.
    pub guard: Option<Arc<dyn Any + Send + Sync>>,
}

impl Default for ReceiveOptions {
    fn default() -> ReceiveOptions {
        ReceiveOptions {
            differ: Differ::Metadata,
            merge: false,
            owner: Owner::Sent,
            max_entries: 10_000_000,
            max_bytes: u64::MAX,
            progress: None,
            guard: None,
        }
    }
}

/// What a transfer did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Received {
    /// Entries of the tree.
    pub entries: u64,
    /// Entries written anew.
    pub changed: u64,
    /// Entries of the destination that were removed, each tree counted once.
    pub removed: u64,
    /// Devices, which no one takes from outside.
    pub skipped: u64,
    /// Bytes of file contents that came over.
    pub bytes: u64,
}

/// A directory of the destination that entries are coming for.
struct Level {
    fd: OwnedFd,
    path: String,
    /// Names that were there and have not been passed by the list, the next one last.
    existing: Vec<Vec<u8>>,
}

struct InFlight {
    stat: Stat,
    dir: OwnedFd,
    temporary: String,
    file: File,
    got: u64,
}

pub(super) struct Writer {
    options: ReceiveOptions,
    outbound: Outbound,
    order: Order,
    root: OwnedFd,
    levels: Vec<Level>,
    next_id: u32,
    announced: u64,
    waiting: VecDeque<(u32, Stat)>,
    in_flight: HashMap<u32, InFlight>,
    /// Hashes of the paths that hard links may point to, with a random key.
    regular: HashSet<u64>,
    hasher: RandomState,
    links: Vec<Stat>,
    dirs: Vec<Stat>,
    listed: bool,
    finished: bool,
    temporaries: u64,
    prefix: String,
    received: Received,
}

/// How an entry of the destination is.
struct Present {
    stat: rustix::fs::Stat,
    kind: Option<FileKind>,
}

fn failed(what: &str, path: &str) -> impl FnOnce(Errno) -> SessionError {
    let doing = format!("{what} {path}");
    move |error| SessionError::io(doing, error)
}

fn protocol<T>(what: String) -> Result<T, SessionError> {
    Err(SessionError::Protocol(what))
}

impl Writer {
    pub(super) fn new(root: OwnedFd, options: ReceiveOptions, outbound: Outbound) -> Writer {
        let hasher = RandomState::new();
        Writer {
            options,
            outbound,
            order: Order::default(),
            root,
            levels: Vec::new(),
            next_id: 0,
            announced: 0,
            waiting: VecDeque::new(),
            in_flight: HashMap::new(),
            regular: HashSet::new(),
            links: Vec::new(),
            dirs: Vec::new(),
            listed: false,
            finished: false,
            temporaries: 0,
            prefix: format!(".bud-{:016x}", hasher.hash_one("temporary")),
            hasher,
            received: Received::default(),
        }
    }

    /// Handles packets until the sender says that it has ended as well. Cancelled, if nothing more comes before that.
    pub(super) fn run(mut self, mut packets: mpsc::Receiver<Packet>) -> Result<Received, SessionError> {
        let root = self.root.try_clone().map_err(|error| SessionError::io("opening the destination", error))?;
        self.enter(root, String::new())?;
        while let Some(packet) = packets.blocking_recv() {
            match PacketType::try_from(packet.r#type) {
                Ok(PacketType::PacketStat) => match packet.stat {
                    _ if self.listed => return protocol("an entry came after the end of the list".to_owned()),
                    Some(stat) => self.entry(stat)?,
                    None => self.end_of_list()?,
                },
                Ok(PacketType::PacketData) => self.data(packet.id, &packet.data)?,
                Ok(PacketType::PacketFin) if self.finished => return Ok(self.received),
                _ => return protocol("the sender broke the protocol".to_owned()),
            }
            self.request()?;
            if self.listed && !self.finished && self.in_flight.is_empty() && self.waiting.is_empty() {
                self.finish()?;
                self.finished = true;
                self.put(PacketType::PacketFin, 0)?;
            }
        }
        Err(SessionError::Cancelled)
    }

    fn put(&self, kind: PacketType, id: u32) -> Result<(), SessionError> {
        let packet = Packet { r#type: kind as i32, id, data: Bytes::new(), stat: None };
        self.outbound.blocking_send(Ok(packet)).map_err(|_| SessionError::Cancelled)
    }

    /// Takes the next entry of the list.
    fn entry(&mut self, stat: Stat) -> Result<(), SessionError> {
        let id = self.next_id;
        if id >= self.options.max_entries {
            return protocol(format!("there are more than {} entries", self.options.max_entries));
        }
        self.next_id += 1;
        self.received.entries += 1;
        let Some((kind, _)) = from_go_mode(stat.mode) else {
            return protocol(format!("{:?} has mode {:o}, which is no kind of file", stat.path, stat.mode));
        };
        let place = self.order.check(&stat.path, kind == FileKind::Directory).map_err(SessionError::Protocol)?;
        let (depth, name) = (place.depth, place.name.to_owned());
        self.check(&stat, kind)?;
        while self.levels.len() > depth + 1 {
            self.leave()?;
        }
        let present = self.pass(&name, &stat.path)?;
        match kind {
            FileKind::Directory => self.directory(stat, &name, present),
            FileKind::Regular if !stat.linkname.is_empty() => {
                self.links.push(stat);
                Ok(())
            }
            FileKind::Regular => {
                self.regular.insert(self.hasher.hash_one(&stat.path));
                if self.is_unchanged(&stat, kind, &name, present.as_ref())? {
                    return Ok(());
                }
                if present.is_some_and(|present| present.kind == Some(FileKind::Directory)) {
                    self.remove(&name, &stat.path)?;
                }
                self.waiting.push_back((id, stat));
                Ok(())
            }
            FileKind::Symlink | FileKind::Fifo => self.special(stat, kind, &name, present),
            FileKind::BlockDevice | FileKind::CharDevice => {
                self.received.skipped += 1;
                if present.is_some() && !self.options.merge {
                    self.remove(&name, &stat.path)?;
                }
                Ok(())
            }
        }
    }

    /// Checks what the sender says of an entry beside its path.
    fn check(&mut self, stat: &Stat, kind: FileKind) -> Result<(), SessionError> {
        let path = &stat.path;
        if stat.size < 0 {
            return protocol(format!("{path:?} has a negative size"));
        }
        match kind {
            FileKind::Symlink
                if stat.linkname.is_empty() || stat.linkname.len() > MAX_TARGET || stat.linkname.contains('\0') =>
            {
                protocol(format!("{path:?} is a symlink to nothing that can be"))
            }
            FileKind::Regular if !stat.linkname.is_empty() => {
                if self.regular.contains(&self.hasher.hash_one(&stat.linkname)) {
                    Ok(())
                } else {
                    protocol(format!("{path:?} is a hard link to {:?}, which was not listed before it", stat.linkname))
                }
            }
            FileKind::Regular => {
                self.announced = self.announced.saturating_add(stat.size as u64);
                if self.announced > self.options.max_bytes {
                    return protocol(format!("the files have more than {} bytes", self.options.max_bytes));
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn level(&self) -> Result<&Level, SessionError> {
        // The root's level is never left before the end.
        self.levels.last().ok_or(SessionError::Cancelled)
    }

    /// Enters a directory of the destination.
    fn enter(&mut self, fd: OwnedFd, path: String) -> Result<(), SessionError> {
        let mut existing = Vec::new();
        if !self.options.merge {
            existing = names(fd.as_fd())
                .map_err(|error| SessionError::io(format!("reading {path:?} of the destination"), error))?;
            existing.sort_unstable_by(|a, b| b.cmp(a));
        }
        self.levels.push(Level { fd, path, existing });
        Ok(())
    }

    /// Leaves the innermost directory; what was not passed in it is not in the tree.
    fn leave(&mut self) -> Result<(), SessionError> {
        let Some(mut level) = self.levels.pop() else { return Ok(()) };
        while let Some(name) = level.existing.pop() {
            remove_tree(level.fd.as_fd(), &name).map_err(failed("removing from", &level.path))?;
            self.received.removed += 1;
        }
        Ok(())
    }

    /// Goes on to `name` in the innermost directory, removing what comes before it, and tells what is there.
    fn pass(&mut self, name: &str, path: &str) -> Result<Option<Present>, SessionError> {
        let merge = self.options.merge;
        let Some(level) = self.levels.last_mut() else { return Err(SessionError::Cancelled) };
        if !merge {
            while let Some(next) = level.existing.last() {
                match next.as_slice().cmp(name.as_bytes()) {
                    std::cmp::Ordering::Less => {
                        remove_tree(level.fd.as_fd(), next).map_err(failed("removing what is gone beside", path))?;
                        self.received.removed += 1;
                        level.existing.pop();
                    }
                    std::cmp::Ordering::Equal => {
                        level.existing.pop();
                        break;
                    }
                    std::cmp::Ordering::Greater => return Ok(None),
                }
            }
        }
        match rustix::fs::statat(&level.fd, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(Present { kind: kind_of(stat.st_mode), stat })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(failed("looking at", path)(error)),
        }
    }

    fn remove(&self, name: &str, path: &str) -> Result<(), SessionError> {
        remove_tree(self.level()?.fd.as_fd(), name.as_bytes()).map_err(failed("replacing", path))
    }

    fn owner(&self, stat: &Stat) -> Option<(u32, u32)> {
        match self.options.owner {
            Owner::Sent => Some((stat.uid, stat.gid)),
            Owner::Writer => None,
        }
    }

    /// Tells whether what is there needs nothing done (but a directory's time).
    fn is_unchanged(
        &self,
        stat: &Stat,
        kind: FileKind,
        name: &str,
        present: Option<&Present>,
    ) -> Result<bool, SessionError> {
        let Some(Present { stat: there, kind: there_kind }) = present else { return Ok(false) };
        let Some((_, permissions)) = from_go_mode(stat.mode) else { return Ok(false) };
        let same_owner = self.owner(stat).is_none_or(|owner| owner == (there.st_uid, there.st_gid));
        if self.options.differ == Differ::None && kind != FileKind::Directory
            || *there_kind != Some(kind)
            || !same_owner
        {
            return Ok(false);
        }
        if kind != FileKind::Symlink && there.st_mode & 0o7777 != permissions {
            return Ok(false);
        }
        let time = there.st_mtime.saturating_mul(1_000_000_000).saturating_add(there.st_mtime_nsec as i64);
        if kind != FileKind::Directory && time != stat.mod_time {
            return Ok(false);
        }
        if kind == FileKind::Regular && there.st_size != stat.size {
            return Ok(false);
        }
        let dir = self.level()?.fd.as_fd();
        if kind == FileKind::Symlink {
            let target = rustix::fs::readlinkat(dir, name, Vec::new());
            return Ok(target.is_ok_and(|target| target.as_bytes() == stat.linkname.as_bytes()));
        }
        Ok(xattr::taken(&xattr::read(dir, name.as_bytes())) == taken(stat))
    }

    fn directory(&mut self, stat: Stat, name: &str, present: Option<Present>) -> Result<(), SessionError> {
        let unchanged = self.is_unchanged(&stat, FileKind::Directory, name, present.as_ref())?;
        let is_dir = present.as_ref().is_some_and(|present| present.kind == Some(FileKind::Directory));
        if !is_dir {
            if present.is_some() {
                self.remove(name, &stat.path)?;
            }
            let made = rustix::fs::mkdirat(&self.level()?.fd, name, Mode::RWXU);
            made.map_err(failed("making directory", &stat.path))?;
        }
        if !unchanged {
            self.received.changed += 1;
        }
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let dir = self.level()?.fd.as_fd();
        let opened = match rustix::fs::openat(dir, name, flags, Mode::empty()) {
            // Ours, but closed to us: it gets its mode at the end.
            Err(Errno::ACCESS) => rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())
                .and_then(|()| rustix::fs::openat(dir, name, flags, Mode::empty())),
            opened => opened,
        };
        let fd = opened.map_err(failed("opening directory", &stat.path))?;
        if is_dir {
            let there = rustix::fs::fstat(&fd).map_err(failed("looking at", &stat.path))?;
            if there.st_mode & 0o300 != 0o300 {
                // Unless it can be written nothing can come into it; who may write anyway doesn't need this.
                let _ = rustix::fs::fchmod(&fd, Mode::from_raw_mode(there.st_mode & 0o7777 | 0o700));
            }
        }
        let path = stat.path.clone();
        self.dirs.push(stat);
        self.enter(fd, path)
    }

    fn special(
        &mut self,
        stat: Stat,
        kind: FileKind,
        name: &str,
        present: Option<Present>,
    ) -> Result<(), SessionError> {
        if self.is_unchanged(&stat, kind, name, present.as_ref())? {
            return Ok(());
        }
        if present.is_some() {
            self.remove(name, &stat.path)?;
        }
        self.received.changed += 1;
        let dir = self.level()?.fd.as_fd();
        let made = match kind {
            FileKind::Symlink => rustix::fs::symlinkat(stat.linkname.as_str(), dir, name),
            _ => rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0),
        };
        made.map_err(failed("making", &stat.path))?;
        self.dress(dir, name, &stat, kind)
    }

    /// Gives an entry that was just made its owner, mode, attributes and time.
    fn dress(&self, dir: BorrowedFd<'_>, name: &str, stat: &Stat, kind: FileKind) -> Result<(), SessionError> {
        let path = &stat.path;
        if let Some((uid, gid)) = self.owner(stat) {
            let there = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("looking at", path))?;
            if (there.st_uid, there.st_gid) != (uid, gid) {
                let (uid, gid) = owner_ids(uid, gid, path)?;
                let changed = rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW);
                changed.map_err(failed("changing the owner of", path))?;
            }
        }
        if kind != FileKind::Symlink {
            let permissions = from_go_mode(stat.mode).map_or(0, |(_, permissions)| permissions);
            // Just made by us in a directory that is ours: no link.
            let changed = rustix::fs::chmodat(dir, name, Mode::from_raw_mode(permissions), AtFlags::empty());
            changed.map_err(failed("changing the mode of", path))?;
            xattr::write(dir, name.as_bytes(), &taken(stat)).map_err(failed("setting attributes of", path))?;
        }
        let times = times(stat.mod_time);
        rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(failed("setting the time of", path))
    }

    /// Asks for the files that are waiting, as many as may be under way.
    fn request(&mut self) -> Result<(), SessionError> {
        while self.in_flight.len() < IN_FLIGHT
            && let Some((id, stat)) = self.waiting.pop_front()
        {
            let path = &stat.path;
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let dir = open_beneath(self.root.as_fd(), parent.as_bytes(), OFlags::DIRECTORY | OFlags::PATH);
            let dir = dir.map_err(failed("opening the directory of", path))?;
            self.temporaries += 1;
            let temporary = format!("{}-{}", self.prefix, self.temporaries);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&dir, temporary.as_str(), flags, Mode::RUSR | Mode::WUSR);
            let file = File::from(file.map_err(failed("creating", path))?);
            let empty = stat.size == 0;
            let started = InFlight { stat, dir, temporary, file, got: 0 };
            if empty {
                self.complete(started)?;
            } else {
                self.in_flight.insert(id, started);
                self.put(PacketType::PacketReq, id)?;
            }
        }
        Ok(())
    }

    fn data(&mut self, id: u32, data: &[u8]) -> Result<(), SessionError> {
        let Some(file) = self.in_flight.get_mut(&id) else {
            return protocol(format!("data came for file {id}, which was not asked for"));
        };
        let path = &file.stat.path;
        if data.is_empty() {
            if file.got != file.stat.size as u64 {
                return protocol(format!(
                    "{path}: {} of {} bytes came: it can't be read, or changed while it was being sent",
                    file.got, file.stat.size
                ));
            }
            let Some(file) = self.in_flight.remove(&id) else { return Ok(()) };
            return self.complete(file);
        }
        file.got += data.len() as u64;
        if file.got > file.stat.size as u64 {
            return protocol(format!(
                "{path}: more than the {} bytes came that it has: it changed while it was being sent",
                file.stat.size
            ));
        }
        file.file.write_all(data).map_err(|error| SessionError::io(format!("writing {path}"), error))?;
        self.received.bytes += data.len() as u64;
        if let Some(progress) = &self.options.progress {
            progress(self.received.bytes);
        }
        Ok(())
    }

    /// Puts a file whose bytes are all there in its place.
    fn complete(&mut self, file: InFlight) -> Result<(), SessionError> {
        let path = file.stat.path.clone();
        let result = self.dress_file(&file).and_then(|()| {
            let name = path.rsplit_once('/').map_or(path.as_str(), |(_, name)| name);
            rustix::fs::renameat(&file.dir, file.temporary.as_str(), &file.dir, name)
                .map_err(failed("putting in place", &path))
        });
        match result {
            Ok(()) => {
                self.received.changed += 1;
                Ok(())
            }
            Err(error) => {
                discard(&file);
                Err(error)
            }
        }
    }

    fn dress_file(&self, file: &InFlight) -> Result<(), SessionError> {
        let (stat, path) = (&file.stat, &file.stat.path);
        if let Some((uid, gid)) = self.owner(stat) {
            let there = rustix::fs::fstat(&file.file).map_err(failed("looking at", path))?;
            if (there.st_uid, there.st_gid) != (uid, gid) {
                let (uid, gid) = owner_ids(uid, gid, path)?;
                rustix::fs::fchown(&file.file, Some(uid), Some(gid)).map_err(failed("changing the owner of", path))?;
            }
        }
        let xattrs = taken(stat);
        if !xattrs.is_empty() {
            let set = xattr::write(file.dir.as_fd(), file.temporary.as_bytes(), &xattrs);
            set.map_err(failed("setting attributes of", path))?;
        }
        let permissions = from_go_mode(stat.mode).map_or(0, |(_, permissions)| permissions);
        let changed = rustix::fs::fchmod(&file.file, Mode::from_raw_mode(permissions));
        changed.map_err(failed("changing the mode of", path))?;
        rustix::fs::futimens(&file.file, &times(stat.mod_time)).map_err(failed("setting the time of", path))
    }

    /// The list is complete: what was not passed is not in the tree.
    fn end_of_list(&mut self) -> Result<(), SessionError> {
        self.listed = true;
        while !self.levels.is_empty() {
            self.leave()?;
        }
        Ok(())
    }

    /// All files are there: makes hard links, then gives directories their modes and times, the innermost first.
    fn finish(&mut self) -> Result<(), SessionError> {
        for stat in std::mem::take(&mut self.links) {
            self.link(&stat)?;
        }
        for stat in std::mem::take(&mut self.dirs).iter().rev() {
            let path = &stat.path;
            let dir = open_beneath(self.root.as_fd(), path.as_bytes(), OFlags::DIRECTORY | OFlags::RDONLY);
            let dir = dir.map_err(failed("opening directory", path))?;
            let there = rustix::fs::fstat(&dir).map_err(failed("looking at", path))?;
            if let Some((uid, gid)) = self.owner(stat)
                && (there.st_uid, there.st_gid) != (uid, gid)
            {
                let (uid, gid) = owner_ids(uid, gid, path)?;
                rustix::fs::fchown(&dir, Some(uid), Some(gid)).map_err(failed("changing the owner of", path))?;
            }
            let xattrs = taken(stat);
            if !xattrs.is_empty() {
                xattr::write(dir.as_fd(), b".", &xattrs).map_err(failed("setting attributes of", path))?;
            }
            let permissions = from_go_mode(stat.mode).map_or(0, |(_, permissions)| permissions);
            if there.st_mode & 0o7777 != permissions {
                let changed = rustix::fs::fchmod(&dir, Mode::from_raw_mode(permissions));
                changed.map_err(failed("changing the mode of", path))?;
            }
            rustix::fs::futimens(&dir, &times(stat.mod_time)).map_err(failed("setting the time of", path))?;
        }
        Ok(())
    }

    fn link(&mut self, stat: &Stat) -> Result<(), SessionError> {
        let (path, target) = (&stat.path, &stat.linkname);
        let open = |path: &str| -> Result<(OwnedFd, String), SessionError> {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let dir = open_beneath(self.root.as_fd(), parent.as_bytes(), OFlags::DIRECTORY | OFlags::PATH);
            Ok((dir.map_err(failed("opening the directory of", path))?, name.to_owned()))
        };
        let ((dir, name), (target_dir, target_name)) = (open(path)?, open(target)?);
        let look = |dir: &OwnedFd, name: &str| rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW);
        let wanted = look(&target_dir, &target_name).map_err(failed("looking at", target))?;
        match look(&dir, &name) {
            Ok(there) if (there.st_dev, there.st_ino) == (wanted.st_dev, wanted.st_ino) => return Ok(()),
            Ok(_) => remove_tree(dir.as_fd(), name.as_bytes()).map_err(failed("replacing", path))?,
            Err(Errno::NOENT) => {}
            Err(error) => return Err(failed("looking at", path)(error)),
        }
        let made = rustix::fs::linkat(&target_dir, target_name.as_str(), &dir, name.as_str(), AtFlags::empty());
        made.map_err(failed("linking", path))?;
        self.received.changed += 1;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.in_flight.values().for_each(discard);
    }
}

/// Removes what there is of a file that will not be complete.
fn discard(file: &InFlight) {
    // Nothing can be done if this fails; the name says whose it is.
    let _ = rustix::fs::unlinkat(&file.dir, file.temporary.as_str(), AtFlags::empty());
}

fn taken(stat: &Stat) -> Xattrs {
    xattr::taken(&stat.xattrs)
}

fn owner_ids(uid: u32, gid: u32, path: &str) -> Result<(rustix::fs::Uid, rustix::fs::Gid), SessionError> {
    if uid == u32::MAX || gid == u32::MAX {
        return protocol(format!("{path:?} has an owner that can't be"));
    }
    Ok((rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid)))
}

/// The time to set, from nanoseconds since 1970; the time of access is left as it is.
fn times(mod_time: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_OMIT },
        last_modification: Timespec {
            tv_sec: mod_time.div_euclid(1_000_000_000),
            tv_nsec: mod_time.rem_euclid(1_000_000_000) as _,
        },
    }
}

/// Removes an entry and all below it, following no link.
fn remove_tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    let open = |dir: BorrowedFd<'_>, name: &[u8]| {
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        rustix::fs::openat(dir, name, flags, Mode::empty()).or_else(|error| match error {
            Errno::ACCESS => rustix::fs::chmodat(dir, name, Mode::RWXU, AtFlags::empty())
                .and_then(|()| rustix::fs::openat(dir, name, flags, Mode::empty())),
            error => Err(error),
        })
    };
    let list = |fd: BorrowedFd<'_>| {
        // A directory that can't be written can't be emptied either.
        if let Ok(stat) = rustix::fs::fstat(fd)
            && stat.st_mode & 0o300 != 0o300
        {
            let _ = rustix::fs::fchmod(fd, Mode::RWXU);
        }
        names(fd).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
    };
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        done => return done,
    }
    let fd = open(dir, name)?;
    let inside = list(fd.as_fd())?;
    let mut levels = vec![(fd, name.to_vec(), inside)];
    while let Some((fd, _, inside)) = levels.last_mut() {
        if let Some(name) = inside.pop() {
            match rustix::fs::unlinkat(&*fd, name.as_slice(), AtFlags::empty()) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(Errno::ISDIR | Errno::PERM) => {
                    let fd = open(fd.as_fd(), &name)?;
                    let inside = list(fd.as_fd())?;
                    levels.push((fd, name, inside));
                }
                Err(error) => return Err(error),
            }
        } else if let Some((_, name, _)) = levels.pop() {
            let parent = levels.last().map_or(dir, |(fd, ..)| fd.as_fd());
            rustix::fs::unlinkat(parent, name.as_slice(), AtFlags::REMOVEDIR)?;
        }
    }
    Ok(())
}
