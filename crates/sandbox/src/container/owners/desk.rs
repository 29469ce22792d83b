//! The answers to calls.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Statx, StatxFlags};
use rustix::io::Errno;

use super::caller::{Caller, Path};
use super::identity::{Identities, Identity, program};
use super::layout;
use super::table::{Owner, Table, UNCHANGED, WANTED};
use crate::seccomp::{Call, Chown, Get, Make, Move, Set, Stat, Trapped, trapped_calls};
use crate::sys::{self, Notification, Reply};

/// Supplementary groups that the kernel takes (`NGROUPS_MAX`).
const MAX_GROUPS: usize = 65_536;

/// What the listener works with.
pub(super) struct Desk<'a> {
    proc: BorrowedFd<'a>,
    home: BorrowedFd<'a>,
    /// The mount of the container's root.
    root_mount: u64,
    table: Table,
    identities: Identities<'a>,
    calls: HashMap<(u32, i32), Trapped>,
}

/// The file that a call is about.
enum Named {
    /// What a descriptor stands for.
    Descriptor(i32),
    /// A path from a directory; with true, a link at its end is meant itself.
    Path(i32, Path, bool),
}

impl Desk<'_> {
    pub(super) fn new<'a>(
        proc: BorrowedFd<'a>,
        home: BorrowedFd<'a>,
        root_mount: u64,
        table: Table,
        initial: Identity,
    ) -> Desk<'a> {
        let identities = Identities::new(proc, initial);
        Desk { proc, home, root_mount, table, identities, calls: trapped_calls() }
    }

    /// Answers a call.
    pub(super) fn answer(&mut self, listener: BorrowedFd<'_>, call: &Notification) -> Reply {
        let Some(trapped) = self.calls.get(&(call.arch, call.number)).copied() else {
            return Reply::Error(libc::ENOSYS);
        };
        let caller = Caller { proc: self.proc, home: self.home, listener, call };
        let done = match trapped.call {
            Call::Chown(how) => self.chown(&caller, how, trapped),
            Call::Stat(how) => Ok(self.stat(&caller, how, trapped)),
            Call::Get(what) => self.get(&caller, what, trapped),
            Call::Set(what) => self.set(&caller, what, trapped),
            Call::Make(what) => self.make(&caller, what),
            Call::Move(how) => Ok(self.moves(&caller, how)),
            Call::Exec { at } => Ok(self.executes(&caller, at)),
            Call::Exit => {
                self.identities.pin_children(call.pid);
                Ok(Reply::Continue)
            }
        };
        done.unwrap_or_else(|error| Reply::Error(error.raw_os_error()))
    }

    fn chown(&mut self, caller: &Caller<'_>, how: Chown, trapped: Trapped) -> Result<Reply, Errno> {
        let [a, b, c, d, e, _] = caller.call.arguments;
        let here = libc::AT_FDCWD;
        let id = |value| wide(value, trapped);
        let (owner, named) = match how {
            Chown::Path => ((id(b), id(c)), Named::Path(here, caller.path(a)?, false)),
            Chown::Link => ((id(b), id(c)), Named::Path(here, caller.path(a)?, true)),
            Chown::Descriptor => ((id(b), id(c)), Named::Descriptor(a as i32)),
            Chown::At => {
                let flags = e as i32;
                if flags & !(libc::AT_SYMLINK_NOFOLLOW | libc::AT_EMPTY_PATH) != 0 {
                    return Err(Errno::INVAL);
                }
                ((id(c), id(d)), named(caller, a as i32, b, flags)?)
            }
        };
        let file = open(caller, &named)?;
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, WANTED)?;
        // What lies on other mounts is in no layer.
        let is_kept = stat.stx_mnt_id == self.root_mount;
        let before = if is_kept { self.table.owner(&stat) } else { (stat.stx_uid, stat.stx_gid) };
        if !self.identities.of(caller.call.pid).may_chown(before, owner) {
            return Err(Errno::PERM);
        }
        // The kernel's own answer to the call, with the only ID that there is.
        let own = |id: u32| if id == UNCHANGED { UNCHANGED } else { 0 };
        sys::change_owner(file.as_fd(), own(owner.0), own(owner.1))
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        if is_kept {
            self.table.note(self.proc, &file, owner)?;
        }
        Ok(Reply::Value(0))
    }

    /// Tells a file's owner if it is another than the kernel would tell. All else, errors too, is the kernel's to say.
    fn stat(&mut self, caller: &Caller<'_>, how: Stat, trapped: Trapped) -> Reply {
        if self.table.is_empty() {
            return Reply::Continue;
        }
        self.shown(caller, how, trapped).ok().flatten().unwrap_or(Reply::Continue)
    }

    fn shown(&mut self, caller: &Caller<'_>, how: Stat, trapped: Trapped) -> Result<Option<Reply>, Errno> {
        let [a, b, c, d, e, _] = caller.call.arguments;
        let here = libc::AT_FDCWD;
        let (named, buffer) = match how {
            Stat::Path => (Named::Path(here, caller.path(a)?, false), b),
            Stat::Link => (Named::Path(here, caller.path(a)?, true), b),
            Stat::Descriptor => (Named::Descriptor(a as i32), b),
            Stat::At => (named(caller, a as i32, b, d as i32)?, c),
            Stat::Extended => (named(caller, a as i32, b, c as i32)?, e),
        };
        let file = open(caller, &named)?;
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, WANTED)?;
        if stat.stx_mnt_id != self.root_mount {
            return Ok(None);
        }
        let owner = self.table.owner(&stat);
        if owner == (stat.stx_uid, stat.stx_gid) {
            return Ok(None);
        }
        let bytes = match how {
            Stat::Extended => {
                let (flags, mask) = (c as u32, d as u32);
                let sync = flags & (libc::AT_STATX_FORCE_SYNC | libc::AT_STATX_DONT_SYNC) as u32;
                let mut bytes = sys::statx_bytes(file.as_fd(), sync, mask)
                    .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
                layout::set_extended_owner(&mut bytes, owner);
                bytes.to_vec()
            }
            _ => layout::old(&stat, owner, trapped.layout),
        };
        caller.write(buffer, &bytes)?;
        Ok(Some(Reply::Value(0)))
    }

    fn get(&mut self, caller: &Caller<'_>, what: Get, trapped: Trapped) -> Result<Reply, Errno> {
        if self.identities.all_are_root() && what != Get::Groups {
            return Ok(Reply::Continue);
        }
        let who = self.identities.of(caller.call.pid);
        let [a, b, c, ..] = caller.call.arguments;
        let value = |id: u32| Ok(Reply::Value(narrow(id, trapped).into()));
        let three = |ids: [u32; 3]| {
            for (address, id) in [a, b, c].into_iter().zip(ids) {
                caller.write(address, &bytes_of(id, trapped))?;
            }
            Ok(Reply::Value(0))
        };
        match what {
            Get::Uid => value(who.user.real),
            Get::EffectiveUid => value(who.user.effective),
            Get::Gid => value(who.group.real),
            Get::EffectiveGid => value(who.group.effective),
            Get::Uids => three([who.user.real, who.user.effective, who.user.saved]),
            Get::Gids => three([who.group.real, who.group.effective, who.group.saved]),
            Get::Groups => {
                let room = a as i32;
                let count = who.groups.len() as i64;
                if room != 0 {
                    if i64::from(room) < count {
                        return Err(Errno::INVAL);
                    }
                    let bytes: Vec<u8> = who.groups.iter().flat_map(|id| bytes_of(*id, trapped)).collect();
                    caller.write(b, &bytes)?;
                }
                Ok(Reply::Value(count))
            }
        }
    }

    fn set(&mut self, caller: &Caller<'_>, what: Set, trapped: Trapped) -> Result<Reply, Errno> {
        let mut who = Identity::clone(&*self.identities.of(caller.call.pid));
        let [a, b, c, ..] = caller.call.arguments;
        let value = if what == Set::Groups {
            let count = usize::try_from(a as i32).ok().filter(|count| *count <= MAX_GROUPS).ok_or(Errno::INVAL)?;
            let size = if trapped.short_ids { 2 } else { 4 };
            let bytes = caller.read(b, count * size)?;
            let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, byte| id << 8 | u32::from(*byte));
            let mut groups: Vec<u32> = bytes.chunks_exact(size).map(id).collect();
            groups.sort_unstable();
            who.set_groups(groups)?;
            0
        } else {
            who.set(what, [a, b, c].map(|value| wide(value, trapped)))?
        };
        self.identities.change(caller.call.pid, who);
        Ok(Reply::Value(value))
    }

    /// Makes a file that belongs to somebody else than root. What root makes, and what is there already, is the kernel's to make.
    fn make(&mut self, caller: &Caller<'_>, what: Make) -> Result<Reply, Errno> {
        let who = self.identities.of(caller.call.pid);
        if (who.user.file, who.group.file) == (0, 0) {
            return Ok(Reply::Continue);
        }
        let [a, b, c, d, ..] = caller.call.arguments;
        let here = libc::AT_FDCWD;
        let (directory, path) = match what {
            Make::Open { .. } | Make::Directory | Make::Node => (here, a),
            Make::OpenAt | Make::DirectoryAt | Make::NodeAt => (a as i32, b),
            Make::Link => (here, b),
            Make::LinkAt => (b as i32, c),
        };
        let path = caller.path(path)?;
        let is_directory = matches!(what, Make::Directory | Make::DirectoryAt);
        let Some((parent, name)) = path.split(is_directory) else { return Ok(Reply::Continue) };
        // Errors on the way are the kernel's to tell.
        let Ok(parent) = caller.open_path(directory, &parent, OFlags::DIRECTORY) else { return Ok(Reply::Continue) };
        let place = rustix::fs::statx(&parent, "", AtFlags::EMPTY_PATH, WANTED)?;
        let exists = rustix::fs::statx(&parent, &*name, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::TYPE);
        if place.stx_mnt_id != self.root_mount || exists.err() != Some(Errno::NOENT) {
            return Ok(Reply::Continue);
        }
        let umask = self.identities.umask(caller.call.pid);
        let mode = |mode: u64| Mode::from_raw_mode(mode as u32 & 0o7777 & !umask);
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::NOCTTY | OFlags::NONBLOCK;
        let mut reply = Reply::Continue;
        match what {
            Make::Open { .. } | Make::OpenAt => {
                let (flags, bits) = match what {
                    Make::OpenAt => (c as i32, d),
                    Make::Open { has_flags: true } => (b as i32, c),
                    _ => (libc::O_CREAT | libc::O_TRUNC | libc::O_WRONLY, b),
                };
                let exclusive = flags & libc::O_EXCL != 0;
                let mine = if exclusive {
                    // Made new here, it is a plain file: opening it waits for nothing.
                    create | OFlags::from_bits_retain(flags as u32) | OFlags::CLOEXEC
                } else {
                    create | OFlags::WRONLY | OFlags::CLOEXEC
                };
                let file = match rustix::fs::openat(&parent, &*name, mine, mode(bits)) {
                    Ok(file) => file,
                    Err(Errno::EXIST) => return Ok(Reply::Continue),
                    Err(error) => return Err(error),
                };
                self.note_new(&file, &who, &place)?;
                if exclusive {
                    if flags & libc::O_NONBLOCK == 0 {
                        let now = rustix::fs::fcntl_getfl(&file)?;
                        rustix::fs::fcntl_setfl(&file, now - OFlags::NONBLOCK)?;
                    }
                    let number = sys::add_descriptor(
                        caller.listener,
                        caller.call.id,
                        file.as_fd(),
                        flags & libc::O_CLOEXEC != 0,
                    )
                    .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
                    reply = Reply::Value(number.into());
                }
                return Ok(reply);
            }
            Make::Directory | Make::DirectoryAt => {
                let bits = if what == Make::Directory { b } else { c };
                rustix::fs::mkdirat(&parent, &*name, mode(bits & 0o1777))?;
            }
            Make::Node | Make::NodeAt => {
                let bits = if what == Make::Node { b } else { c };
                let kind = FileType::from_raw_mode(bits as u32 & libc::S_IFMT);
                let kind = if bits as u32 & libc::S_IFMT == 0 { FileType::RegularFile } else { kind };
                if !matches!(kind, FileType::RegularFile | FileType::Fifo | FileType::Socket) {
                    return Ok(Reply::Continue);
                }
                rustix::fs::mknodat(&parent, &*name, kind, mode(bits), 0)?;
            }
            Make::Link | Make::LinkAt => {
                let target = caller.path(a)?;
                rustix::fs::symlinkat(target.bytes(), &parent, &*name)?;
            }
        }
        let made =
            rustix::fs::openat(&parent, &*name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?;
        self.note_new(&made, &who, &place)?;
        Ok(Reply::Value(0))
    }

    /// Gives a new file to who made it, and to the group of the directory if that hands its group down.
    fn note_new(&mut self, file: &OwnedFd, who: &Identity, place: &Statx) -> Result<(), Errno> {
        let hands_down = u32::from(place.stx_mode) & 0o2000 != 0;
        let group = if hands_down { self.table.owner(place).1 } else { who.group.file };
        let owner: Owner = (who.user.file, group);
        self.table.note(self.proc, file, owner)
    }

    /// Notes the owner of a file of the layers below before it gets another name: until then it is known by its path there.
    fn moves(&mut self, caller: &Caller<'_>, how: Move) -> Reply {
        if self.table.has_below() {
            // What can't be opened can't be moved either.
            let _noted = self.note_moved(caller, how);
        }
        Reply::Continue
    }

    fn note_moved(&mut self, caller: &Caller<'_>, how: Move) -> Result<(), Errno> {
        let [a, b, _, _, e, _] = caller.call.arguments;
        let named = match how {
            Move::Path => Named::Path(libc::AT_FDCWD, caller.path(a)?, true),
            Move::At => Named::Path(a as i32, caller.path(b)?, true),
            Move::LinkAt => {
                let follows = e as i32 & libc::AT_SYMLINK_FOLLOW != 0;
                let flags = if follows { e as i32 } else { e as i32 | libc::AT_SYMLINK_NOFOLLOW };
                named(caller, a as i32, b, flags)?
            }
        };
        let file = open(caller, &named)?;
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, WANTED)?;
        let owner = self.table.owner(&stat);
        if stat.stx_mnt_id != self.root_mount || owner == (stat.stx_uid, stat.stx_gid) {
            return Ok(());
        }
        // The kernel copies up what is changed or opened for writing.
        match FileType::from_raw_mode(stat.stx_mode.into()) {
            FileType::Symlink => sys::change_owner(file.as_fd(), UNCHANGED, UNCHANGED).map_err(|_| Errno::IO)?,
            FileType::RegularFile => drop(caller.open_own(&file, OFlags::WRONLY | OFlags::NONBLOCK)?),
            // Directories of the layers below can't be moved.
            _ => return Ok(()),
        }
        self.table.note(self.proc, &file, owner)
    }

    /// Notes that a process may become a set-id program. Whether it does is seen at its next call.
    fn executes(&mut self, caller: &Caller<'_>, at: bool) -> Reply {
        if !self.identities.all_are_root() {
            // What can't be found can't be executed either.
            let _noted = self.note_program(caller, at);
        }
        Reply::Continue
    }

    fn note_program(&mut self, caller: &Caller<'_>, at: bool) -> Result<(), Errno> {
        let [a, b, _, _, e, _] = caller.call.arguments;
        let named = if at {
            named(caller, a as i32, b, e as i32)?
        } else {
            Named::Path(libc::AT_FDCWD, caller.path(a)?, false)
        };
        let file = open(caller, &named)?;
        let stat = rustix::fs::statx(&file, "", AtFlags::EMPTY_PATH, WANTED)?;
        let mode = u32::from(stat.stx_mode);
        let sets_group = mode & 0o2010 == 0o2010;
        if stat.stx_mnt_id != self.root_mount || mode & 0o4000 == 0 && !sets_group {
            return Ok(());
        }
        let owner = self.table.owner(&stat);
        let mut who = Identity::clone(&*self.identities.of(caller.call.pid));
        let become_id = |ids: &mut super::identity::Ids, id| (ids.effective, ids.saved, ids.file) = (id, id, id);
        if mode & 0o4000 != 0 {
            become_id(&mut who.user, owner.0);
        }
        if sets_group {
            become_id(&mut who.group, owner.1);
        }
        self.identities.executes(caller.call.pid, program(&stat), who);
        Ok(())
    }
}

fn open(caller: &Caller<'_>, named: &Named) -> Result<OwnedFd, Errno> {
    match named {
        Named::Descriptor(descriptor) => caller.open_descriptor(*descriptor),
        Named::Path(directory, path, nofollow) => {
            let flags = if *nofollow { OFlags::NOFOLLOW } else { OFlags::empty() };
            caller.open_path(*directory, path, flags)
        }
    }
}

/// The file of a call with directory, path and `AT_` flags.
fn named(caller: &Caller<'_>, directory: i32, path: u64, flags: i32) -> Result<Named, Errno> {
    // Linux 6.11 takes no path for an empty one.
    if path == 0 && flags & libc::AT_EMPTY_PATH != 0 {
        return Ok(Named::Descriptor(directory));
    }
    let path = caller.path(path)?;
    Ok(if path.is_empty() && flags & libc::AT_EMPTY_PATH != 0 {
        Named::Descriptor(directory)
    } else {
        Named::Path(directory, path, flags & libc::AT_SYMLINK_NOFOLLOW != 0)
    })
}

/// An ID as a call gives it.
fn wide(value: u64, trapped: Trapped) -> u32 {
    match value as u32 {
        short if trapped.short_ids && short & 0xffff == 0xffff => UNCHANGED,
        short if trapped.short_ids => short & 0xffff,
        id => id,
    }
}

/// An ID as a call returns it: one that has no place in 16 bits is the overflow ID, as in the kernel.
fn narrow(id: u32, trapped: Trapped) -> u32 {
    if trapped.short_ids && id > 0xffff { 65_534 } else { id }
}

fn bytes_of(id: u32, trapped: Trapped) -> Vec<u8> {
    let bytes = narrow(id, trapped).to_ne_bytes();
    if trapped.short_ids { bytes[..2].to_vec() } else { bytes.to_vec() }
}
