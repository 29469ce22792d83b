//! How the server comes to life: this program again, from a copy that can't be written.
//!
//! A step can execute what `/proc/self/exe` of the process that becomes it shows (as an interpreter, as a loader), and
//! then open it. If that were the user's own file, which belongs to "root" of the namespace, the step could change it
//! (CVE-2019-5736). So the server is executed from a detached read-only mount of the file, which is in nobody's
//! namespace and can't be made writable again; where that can't be had, from a sealed copy in memory.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountPropagationFlags, OpenTreeFlags, mount_change, open_tree};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::{ServerError, serve};
use crate::sys::{self, CStrings, Cloned, MountAttributes};

/// Says to this program, when it starts, that it is the fork server. The value names the socket and the protocol.
const VARIABLE: &str = "BUD_FORK_SERVER";

/// The descriptor at which the server finds its socket.
const SOCKET: i32 = 3;

/// What the variable holds: a program of another version would not be understood.
const PROTOCOL: &str = "1";

/// Starts the server process and returns this side of its socket.
pub(super) fn launch() -> Result<OwnedFd, ServerError> {
    let doing = |what: &'static str| move |error: io::Error| ServerError::Sys { doing: what.into(), source: error };
    let flags = SocketFlags::CLOEXEC;
    let (ours, theirs) = rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
        .map_err(|e| doing("make a socket")(e.into()))?;
    let program = program().map_err(doing("open the program"))?;
    let arguments = CStrings::new(["bud-sandbox"]).map_err(doing("start"))?;
    let mut environment = vec![format!("{VARIABLE}={PROTOCOL}")];
    environment.extend(
        std::env::var(crate::overlay::MOUNT_API_VARIABLE)
            .map(|value| format!("{}={value}", crate::overlay::MOUNT_API_VARIABLE)),
    );
    environment.extend(std::env::var("TMPDIR").map(|value| format!("TMPDIR={value}")));
    let environment = CStrings::new(environment.iter().map(String::as_str)).map_err(doing("start"))?;

    // Process 1 of a namespace: when it dies, for whatever reason, the kernel kills all containers.
    match sys::clone_into(libc::CLONE_NEWPID | libc::CLONE_NEWNS).map_err(doing("clone"))? {
        // Between clone and exec nothing but system calls: the caller may have threads.
        Cloned::Child => {
            let result = sys::duplicate_to(theirs.as_fd(), SOCKET).and_then(|()| {
                if theirs.as_raw_fd() != SOCKET {
                    std::mem::forget(theirs);
                }
                sys::close_on_exec_from(SOCKET as u32 + 1)
            });
            if result.is_ok() {
                sys::exec_descriptor(program.as_fd(), &arguments, &environment);
            }
            sys::exit_now(127)
        }
        Cloned::Parent { .. } => Ok(ours),
    }
}

/// Opens this program's file so that nobody who gets hold of it can write to it.
fn program() -> io::Result<OwnedFd> {
    let file = readonly_mount().or_else(|_| sealed_copy())?;
    // Out of the way of the number that the socket gets.
    Ok(rustix::io::fcntl_dupfd_cloexec(&file, SOCKET + 1)?)
}

/// A detached read-only mount of the program's file.
fn readonly_mount() -> io::Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let tree = open_tree(CWD, &path, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    // The path may be another file's by now: an upgrade, another root.
    let (running, found) = (rustix::fs::stat("/proc/self/exe")?, rustix::fs::fstat(&tree)?);
    if (running.st_dev, running.st_ino) != (found.st_dev, found.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    sys::mount_setattr(
        tree.as_fd(),
        false,
        MountAttributes { set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(), clear: 0 },
    )?;
    Ok(tree)
}

/// A copy of the program's file in memory that nothing can change any more (`memfd_create(2)`).
fn sealed_copy() -> io::Result<OwnedFd> {
    use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
    let source = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let copy = memfd_create("bud", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut copy = std::fs::File::from(copy);
    io::copy(&mut std::fs::File::from(source), &mut copy)?;
    fcntl_add_seals(&copy, SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE)?;
    // A descriptor open for writing can't be executed.
    let name = format!("/proc/self/fd/{}", copy.as_raw_fd());
    Ok(rustix::fs::open(name, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Runs before `main` of every program that this crate is part of, and makes it the fork server if it was started as one.
///
/// So no program, no test either, has to remember a call at the start of its `main`.
#[used]
#[unsafe(link_section = ".init_array")]
static BEFORE_MAIN: extern "C" fn() = before_main;

extern "C" fn before_main() {
    let asked = std::env::var_os(VARIABLE).is_some_and(|value| value == PROTOCOL);
    if !asked || std::process::id() != 1 {
        return;
    }
    let Ok(socket) = sys::inherited(SOCKET) else {
        sys::exit_now(1);
    };
    let started = || -> io::Result<()> {
        rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
        rustix::process::setsid()?;
        // Containers inherit this: ignored signals would stay ignored in programs.
        sys::reset_signals();
        // The user's keys are no step's business. A kernel without keyrings, or a sandbox that forbids them, has none to give.
        sys::new_keyring().ok();
        // Nothing that is mounted here reaches the daemon's namespace.
        mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)?;
        rustix::process::chdir("/")?;
        if let Ok(name) = CString::new("bud-sandbox") {
            rustix::thread::set_name(&name)?;
        }
        Ok(())
    };
    match started() {
        Ok(()) => serve::serve(socket),
        Err(error) => {
            eprintln!("fork server: {error}");
            sys::exit_now(1)
        }
    }
}
