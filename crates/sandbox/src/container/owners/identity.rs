//! Who the processes of a container believe to be.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::table::UNCHANGED;
use crate::seccomp::Set;

/// The most threads whose identities are kept.
const MAX_THREADS: usize = 65_536;
/// Threads that have ended are forgotten when so many are known.
const SWEEP_AT: usize = 2_048;
/// So many ancestors are asked for an identity.
const MAX_ANCESTORS: usize = 64;

/// User, group and supplementary groups, as `credentials(7)` has them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) user: Ids,
    pub(super) group: Ids,
    pub(super) groups: Rc<[u32]>,
}

/// An ID in its four roles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) real: u32,
    pub(super) effective: u32,
    pub(super) saved: u32,
    /// For files.
    pub(super) file: u32,
}

impl Ids {
    fn all(id: u32) -> Ids {
        Ids { real: id, effective: id, saved: id, file: id }
    }

    fn has(&self, id: u32) -> bool {
        [self.real, self.effective, self.saved].contains(&id)
    }

    fn set_one(&mut self, id: u32, may: bool) -> Result<(), Errno> {
        if id == UNCHANGED {
            return Err(Errno::INVAL);
        }
        if may {
            *self = Ids::all(id);
        } else if id == self.real || id == self.saved {
            self.effective = id;
            self.file = id;
        } else {
            return Err(Errno::PERM);
        }
        Ok(())
    }

    fn set_two(&mut self, real: u32, effective: u32, may: bool) -> Result<(), Errno> {
        let old = *self;
        if real != UNCHANGED {
            if !(may || real == old.real || real == old.effective) {
                return Err(Errno::PERM);
            }
            self.real = real;
        }
        if effective != UNCHANGED {
            if !(may || old.has(effective)) {
                return Err(Errno::PERM);
            }
            self.effective = effective;
        }
        if real != UNCHANGED || effective != UNCHANGED && effective != old.real {
            self.saved = self.effective;
        }
        self.file = self.effective;
        Ok(())
    }

    fn set_three(&mut self, ids: [u32; 3], may: bool) -> Result<(), Errno> {
        let old = *self;
        if ids.iter().any(|id| *id != UNCHANGED && !may && !old.has(*id)) {
            return Err(Errno::PERM);
        }
        for (place, id) in [&mut self.real, &mut self.effective, &mut self.saved].into_iter().zip(ids) {
            if id != UNCHANGED {
                *place = id;
            }
        }
        self.file = self.effective;
        Ok(())
    }

    /// Returns the old ID, also if it stays.
    fn set_file(&mut self, id: u32, may: bool) -> u32 {
        let old = self.file;
        if id != UNCHANGED && (may || self.has(id) || id == old) {
            self.file = id;
        }
        old
    }
}

impl Identity {
    pub(super) fn new(uid: u32, gid: u32, groups: &[u32]) -> Identity {
        Identity { user: Ids::all(uid), group: Ids::all(gid), groups: groups.into() }
    }

    fn is_root(&self) -> bool {
        self.user == Ids::all(0) && self.group == Ids::all(0)
    }

    /// Changes IDs as the kernel does for a process that has its capabilities as long as it is root; returns what the call returns.
    pub(super) fn set(&mut self, what: Set, ids: [u32; 3]) -> Result<i64, Errno> {
        let may = self.user.effective == 0;
        match what {
            Set::Uid => self.user.set_one(ids[0], may)?,
            Set::Gid => self.group.set_one(ids[0], may)?,
            Set::TwoUids => self.user.set_two(ids[0], ids[1], may)?,
            Set::TwoGids => self.group.set_two(ids[0], ids[1], may)?,
            Set::Uids => self.user.set_three(ids, may)?,
            Set::Gids => self.group.set_three(ids, may)?,
            Set::FileUid => return Ok(self.user.set_file(ids[0], may).into()),
            Set::FileGid => return Ok(self.group.set_file(ids[0], may).into()),
            Set::Groups => return Err(Errno::INVAL),
        }
        Ok(0)
    }

    pub(super) fn set_groups(&mut self, groups: Vec<u32>) -> Result<(), Errno> {
        if self.user.effective != 0 {
            return Err(Errno::PERM);
        }
        self.groups = groups.into();
        Ok(())
    }

    /// Tells whether a file may be given away: by root, or by its owner to a group of theirs.
    pub(super) fn may_chown(&self, file: (u32, u32), wanted: (u32, u32)) -> bool {
        if self.user.file == 0 {
            return true;
        }
        let own = file.0 == self.user.file;
        let user = wanted.0 == UNCHANGED || own && wanted.0 == file.0;
        let in_group = wanted.1 == self.group.file || self.groups.contains(&wanted.1);
        user && (wanted.1 == UNCHANGED || own && (in_group || wanted.1 == file.1))
    }
}

/// A thread that is known.
struct Thread {
    /// When it started: another thread that gets its number later started at another time.
    start: u64,
    identity: Rc<Identity>,
    /// A set-id program that it may have become: device, inode, and who it is then.
    becomes: Option<((u64, u64), Rc<Identity>)>,
}

/// The identities of a container's threads. A new thread has its maker's.
pub(super) struct Identities<'a> {
    proc: BorrowedFd<'a>,
    initial: Rc<Identity>,
    /// Somebody isn't root.
    active: bool,
    threads: HashMap<u32, Thread>,
}

impl Identities<'_> {
    pub(super) fn new(proc: BorrowedFd<'_>, initial: Identity) -> Identities<'_> {
        let active = !initial.is_root() || !matches!(*initial.groups, [] | [0]);
        Identities { proc, initial: Rc::new(initial), active, threads: HashMap::new() }
    }

    /// Nobody has ever been anybody but root.
    pub(super) fn all_are_root(&self) -> bool {
        !self.active
    }

    /// Returns who a thread is.
    pub(super) fn of(&mut self, thread: u32) -> Rc<Identity> {
        if !self.active {
            return Rc::clone(&self.initial);
        }
        self.find(thread, MAX_ANCESTORS)
    }

    fn find(&mut self, thread: u32, left: usize) -> Rc<Identity> {
        let Some((start, parent)) = self.look(thread) else { return Rc::clone(&self.initial) };
        if let Some(known) = self.threads.get_mut(&thread).filter(|known| known.start == start) {
            if let Some((program, identity)) = known.becomes.take() {
                let path = format!("{thread}/exe");
                let stat = rustix::fs::statx(self.proc, path, AtFlags::empty(), StatxFlags::INO);
                if stat.is_ok_and(|stat| (device(&stat), stat.stx_ino) == program) {
                    known.identity = identity;
                }
            }
            return Rc::clone(&known.identity);
        }
        let leader = self.leader(thread).filter(|leader| *leader != thread);
        let identity = match leader.or(parent) {
            Some(maker) if left > 0 => self.find(maker, left - 1),
            _ => Rc::clone(&self.initial),
        };
        self.keep(thread, start, Rc::clone(&identity));
        identity
    }

    fn keep(&mut self, thread: u32, start: u64, identity: Rc<Identity>) {
        if self.threads.len() >= SWEEP_AT && self.threads.len().is_power_of_two() || self.threads.len() >= MAX_THREADS {
            let proc = self.proc;
            self.threads.retain(|thread, known| look(proc, *thread).is_some_and(|(start, _)| start == known.start));
        }
        if self.threads.len() < MAX_THREADS {
            self.threads.insert(thread, Thread { start, identity, becomes: None });
        }
    }

    /// Makes a thread somebody else.
    pub(super) fn change(&mut self, thread: u32, identity: Identity) {
        if !self.active && identity.is_root() && identity == *self.initial {
            return;
        }
        self.active = true;
        self.pin_children(thread);
        let Some((start, _)) = self.look(thread) else { return };
        self.keep(thread, start, Rc::new(identity));
    }

    /// Notes that a thread executes a set-id program.
    pub(super) fn executes(&mut self, thread: u32, program: (u64, u64), identity: Identity) {
        self.of(thread);
        if let Some(known) = self.threads.get_mut(&thread) {
            known.becomes = Some((program, Rc::new(identity)));
        }
    }

    /// Notes who the children of a thread are, before it becomes another or ends.
    pub(super) fn pin_children(&mut self, thread: u32) {
        if !self.active {
            return;
        }
        // A child may be any thread's of the process.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let tasks = rustix::fs::openat(self.proc, format!("{thread}/task"), flags, Mode::empty());
        let Ok(tasks) = tasks.and_then(|tasks| rustix::fs::Dir::read_from(&tasks)) else { return };
        let tasks = tasks.filter_map(|task| task.ok()?.file_name().to_str().ok()?.parse::<u32>().ok());
        for task in tasks.collect::<Vec<_>>() {
            let path = format!("{thread}/task/{task}/children");
            let Ok(file) = rustix::fs::openat(self.proc, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) else {
                continue;
            };
            let mut text = String::new();
            if std::io::Read::read_to_string(&mut std::fs::File::from(file), &mut text).is_ok() {
                for child in text.split_whitespace().filter_map(|child| child.parse().ok()) {
                    self.find(child, MAX_ANCESTORS);
                }
            }
        }
    }

    fn look(&self, thread: u32) -> Option<(u64, Option<u32>)> {
        look(self.proc, thread)
    }

    /// Returns the first thread of a thread's process.
    fn leader(&self, thread: u32) -> Option<u32> {
        status(self.proc, thread, "Tgid:")?.parse().ok()
    }

    /// Returns a thread's mask for the modes of new files.
    pub(super) fn umask(&self, thread: u32) -> u32 {
        status(self.proc, thread, "Umask:").and_then(|mask| u32::from_str_radix(&mask, 8).ok()).unwrap_or(0o022)
    }
}

fn device(stat: &rustix::fs::Statx) -> u64 {
    u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor)
}

/// Names a program as [`Identities::executes`] wants it.
pub(super) fn program(stat: &rustix::fs::Statx) -> (u64, u64) {
    (device(stat), stat.stx_ino)
}

fn read(proc: BorrowedFd<'_>, path: String) -> Option<Vec<u8>> {
    let file = rustix::fs::openat(proc.as_fd(), path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut bytes = vec![0; 4096];
    let length = rustix::io::read(&file, &mut bytes).ok()?;
    bytes.truncate(length);
    Some(bytes)
}

fn status(proc: BorrowedFd<'_>, thread: u32, field: &str) -> Option<String> {
    let text = read(proc, format!("{thread}/status"))?;
    let text = String::from_utf8_lossy(&text);
    Some(text.lines().find_map(|line| line.strip_prefix(field))?.trim().to_owned())
}

/// Returns when a thread started, and its process's parent.
fn look(proc: BorrowedFd<'_>, thread: u32) -> Option<(u64, Option<u32>)> {
    let text = read(proc, format!("{thread}/stat"))?;
    // The name of the program before it may have spaces and brackets.
    let end = text.iter().rposition(|byte| *byte == b')')?;
    let text = String::from_utf8_lossy(&text[end + 1..]);
    let mut fields = text.split_whitespace();
    let parent: u32 = fields.nth(1)?.parse().ok()?;
    let start = fields.nth(17)?.parse().ok()?;
    Some((start, (parent > 0).then_some(parent)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO: u32 = UNCHANGED;

    fn ids(real: u32, effective: u32, saved: u32, file: u32) -> Ids {
        Ids { real, effective, saved, file }
    }

    #[test]
    fn ids_change_as_the_kernel_changes_them() {
        let mut who = Identity::new(0, 0, &[]);
        // A server lowers itself for a while, and for good.
        assert_eq!(who.set(Set::Uids, [NO, 5, NO]), Ok(0));
        assert_eq!(who.user, ids(0, 5, 0, 5));
        assert_eq!(who.set(Set::Gid, [7, NO, NO]), Err(Errno::PERM));
        assert_eq!(who.set_groups(vec![1]), Err(Errno::PERM));
        assert_eq!(who.set(Set::Uid, [0, NO, NO]), Ok(0));
        assert_eq!(who.user, ids(0, 0, 0, 0));
        assert_eq!(who.set(Set::FileUid, [9, NO, NO]), Ok(0));
        assert_eq!(who.set(Set::FileUid, [NO, NO, NO]), Ok(9));
        assert_eq!(who.set(Set::TwoGids, [8, 7, NO]), Ok(0));
        assert_eq!(who.group, ids(8, 7, 7, 7));
        assert_eq!(who.set_groups(vec![50]), Ok(()));
        assert_eq!(who.set(Set::Uid, [6, NO, NO]), Ok(0));
        assert_eq!(who.user, Ids::all(6));
        for back in [
            who.clone().set(Set::Uid, [0, NO, NO]),
            who.clone().set(Set::TwoUids, [NO, 0, NO]),
            who.clone().set(Set::Uids, [0, 0, 0]),
            who.clone().set(Set::Gid, [0, NO, NO]),
        ] {
            assert_eq!(back, Err(Errno::PERM));
        }
        assert_eq!(who.set(Set::FileUid, [0, NO, NO]), Ok(6));
        assert_eq!(who.user.file, 6);
        assert_eq!(who.set(Set::TwoGids, [7, 8, NO]), Ok(0));
        assert_eq!(who.group, ids(7, 8, 8, 8));
    }

    #[test]
    fn files_are_given_away_by_root_and_within_ones_groups() {
        let root = Identity::new(0, 0, &[]);
        assert!(root.may_chown((5, 5), (7, 8)));
        let who = Identity::new(6, 7, &[50]);
        assert!(who.may_chown((6, 7), (NO, 50)) && who.may_chown((6, 7), (6, 7)) && who.may_chown((6, 9), (6, 9)));
        assert!(who.may_chown((5, 5), (NO, NO)));
        for (file, wanted) in [((6, 7), (0, NO)), ((6, 7), (NO, 51)), ((5, 7), (NO, 7)), ((5, 5), (6, NO))] {
            assert!(!who.may_chown(file, wanted), "{file:?} {wanted:?}");
        }
    }

    #[test]
    fn a_thread_is_found_by_number_and_start() {
        let proc = rustix::fs::open("/proc", OFlags::PATH, Mode::empty()).unwrap();
        let me = std::process::id();
        let (start, parent) = look(proc.as_fd(), me).unwrap();
        assert!(start > 0 && parent == Some(std::os::unix::process::parent_id()));
        assert_eq!(status(proc.as_fd(), me, "Tgid:"), Some(me.to_string()));
        let mut known = Identities::new(proc.as_fd(), Identity::new(0, 0, &[]));
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        known.change(me, Identity::new(3, 4, &[]));
        assert_eq!(known.of(me).user, Ids::all(3));
        // Who was made before a change is who its maker was before.
        assert_eq!(known.of(child.id()).user, Ids::all(0));
        let mut later = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        assert_eq!(known.of(later.id()).group, Ids::all(4));
        // A number that is used again is another thread.
        let before = Thread { start: 1, identity: Rc::new(Identity::new(9, 9, &[])), becomes: None };
        known.threads.insert(later.id(), before);
        assert_eq!(known.of(later.id()).user, Ids::all(3));
        known.change(me, Identity::new(5, 5, &[]));
        assert_eq!((known.of(later.id()).user, known.of(me).user), (Ids::all(3), Ids::all(5)));
        for child in [&mut child, &mut later] {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}
