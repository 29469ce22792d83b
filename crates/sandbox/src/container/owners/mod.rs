//! Owners where only the own ID is mapped: `chown` and its kin are answered by a process beside the container.
//!
//! The filter hands these calls to a listener (seccomp's user notification), so static programs are served too. The listener
//! makes the call with the own ID in place of the wanted one: the kernel still says no where a mount is read-only
//! or a file isn't the user's, copies the file into the step's layer, and clears set-id bits. Then it notes the wanted owner in a
//! table, by the inode in the layer's directory and its time of birth: renames and hard links keep it, a new file with an old
//! inode doesn't get it.
//!
//! What processes then ask is answered as if it had happened: who they are (`identity`), and whose files are (`table`). What they make as
//! another user than root is made by the listener, which notes it for that user.
//!
//! What a call points to is copied once; its path is resolved from the caller's own root and directory, by descriptors that were
//! opened before the notification was found to be still valid. Nothing is done that the step couldn't do itself.

mod caller;
mod desk;
mod identity;
mod layout;
mod table;

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::mount::MountAttrFlags;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType,
};
use rustix::process::{Signal, pidfd_send_signal};

use super::Context;
use super::stage::filesystem;
use super::user::User;
use crate::spec::{ContainerSpec, Rootfs, Security};
use crate::sys::{self, Cloned};

use desk::Desk;
use identity::Identity;
use table::Table;

/// The most supplementary groups that the first process has.
const MAX_GROUPS: usize = 16_384;

/// The process that answers a container's calls.
pub(crate) struct Listener {
    pid: i32,
    pidfd: OwnedFd,
}

/// Mounts the view of processes that listeners need, if they are needed.
///
/// Without it there is no emulation: owners can't be changed. That is said once.
pub(super) fn view_of_processes(mapped_ids: u64) -> Option<OwnedFd> {
    if mapped_ids != 1 {
        return None;
    }
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC | MountAttrFlags::MOUNT_ATTR_NODEV;
    match filesystem("proc", &[], attributes) {
        Ok(proc) => Some(proc),
        Err(error) => {
            eprintln!("owners of files can't be emulated here, chown will fail in steps: mount proc: {error}");
            None
        }
    }
}

/// Starts the listener if the container needs one, with the end of the socket that the container is to have.
///
/// The caller is the fork server, which has one thread.
pub(crate) fn listen(spec: &ContainerSpec, context: &Context) -> std::io::Result<Option<(Listener, OwnedFd)>> {
    let (Some(proc), Security::Sandbox) = (&context.processes, spec.security) else { return Ok(None) };
    let (Some(owners), Rootfs::Overlay(overlay)) = (&spec.owners, &spec.rootfs) else { return Ok(None) };
    let Some(upper) = &overlay.upper else { return Ok(None) };
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let upper = rustix::fs::open(upper, directory, Mode::empty())?;
    let home = rustix::fs::open("/", directory, Mode::empty())?;
    let noted = File::options().create(true).append(true).open(&owners.noted)?;
    let below = owners.below.as_ref().map(File::open).transpose()?;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    match sys::clone_into(0)? {
        Cloned::Child => {
            let mut kept = vec![ours.as_fd(), upper.as_fd(), home.as_fd(), noted.as_fd(), proc.as_fd()];
            kept.extend(below.as_ref().map(AsFd::as_fd));
            if sys::close_all_but(&kept).is_err() {
                sys::exit_now(1);
            }
            let Ok(table) = Table::new(upper, noted, below) else { sys::exit_now(1) };
            serve(&ours, proc, home, table)
        }
        Cloned::Parent { pid, pidfd } => Ok(Some((Listener { pid, pidfd }, theirs))),
    }
}

impl Listener {
    /// Ends the listener. What it has answered is in the table.
    pub(crate) fn end(self) {
        // One that is gone already can't be killed.
        pidfd_send_signal(&self.pidfd, Signal::KILL).ok();
        sys::wait_for(self.pid).ok();
    }
}

/// Hands the filter's listener and the container's root to the process that answers.
///
/// The program starts as `user`, in the eyes of the container.
pub(super) fn hand_over(socket: &OwnedFd, listener: OwnedFd, user: &User) -> rustix::io::Result<()> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let descriptors = [listener.as_fd(), root.as_fd()];
    let groups = &user.groups[..user.groups.len().min(MAX_GROUPS)];
    let message: Vec<u8> = [user.uid, user.gid].iter().chain(groups).flat_map(|id| id.to_ne_bytes()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    rustix::net::sendmsg(socket, &[IoSlice::new(&message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

fn take_over(socket: &OwnedFd) -> Option<(OwnedFd, OwnedFd, Identity)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut message = vec![0; 4 * (MAX_GROUPS + 2)];
    let received = rustix::io::retry_on_intr(|| {
        rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut message)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })
    .ok()?;
    let mut descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(rights) => Some(rights),
        _ => None,
    });
    let mut descriptors = descriptors.next()?;
    let words = message[..received.bytes].chunks_exact(4);
    let mut ids = words.map(|word| u32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    let (uid, gid) = (ids.next()?, ids.next()?);
    let mut groups: Vec<u32> = ids.collect();
    groups.sort_unstable();
    Some((descriptors.next()?, descriptors.next()?, Identity::new(uid, gid, &groups)))
}

fn serve(socket: &OwnedFd, proc: &OwnedFd, home: OwnedFd, table: Table) -> ! {
    let Some((listener, root, user)) = take_over(socket) else { sys::exit_now(0) };
    let Ok(stat) = rustix::fs::statx(&root, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID) else { sys::exit_now(1) };
    drop(root);
    // Modes of what is made here are exactly the caller's.
    rustix::process::umask(Mode::empty());
    // Answering on the caller's processor is faster. Before Linux 6.6 there is no such flag.
    sys::answer_on_the_same_processor(listener.as_fd()).ok();
    let mut desk = Desk::new(proc.as_fd(), home.as_fd(), stat.stx_mnt_id, table, user);
    let mut taken = VecDeque::new();
    loop {
        // All that wait are taken before one is answered: until a call is taken, any signal to its caller interrupts it, and
        // programs don't expect that of calls that never wait.
        while taken.is_empty() || sys::has_notification(listener.as_fd()) {
            match sys::next_notification(listener.as_fd()) {
                Ok(call) => taken.push_back(call),
                // The caller died before its call could be taken.
                Err(error) if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => {}
                Err(_) => sys::exit_now(1),
            }
        }
        let Some(call) = taken.pop_front() else { continue };
        let reply = desk.answer(listener.as_fd(), &call);
        // A caller that is gone needs no answer.
        sys::answer_notification(listener.as_fd(), call.id, reply).ok();
    }
}
