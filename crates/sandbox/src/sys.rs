//! System calls that `rustix` doesn't offer, each behind one safe function.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::seccomp::Filter;

/// Turns the `-1` of a C function into the error of the thread.
fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Which side of a fork the caller is on.
pub(crate) enum Forked {
    Child,
    Parent { pid: i32 },
}

/// Forks. Only a process with one thread may go on normally in the child (`fork(2)`).
pub(crate) fn fork() -> io::Result<Forked> {
    // SAFETY: fork has no memory arguments; the child gets a copy of everything, and the callers of this crate have
    // one thread, so that no lock is held by a thread that the child lacks.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Ok(Forked::Parent { pid }),
    }
}

/// Moves the calling thread into new namespaces, or gives it a working directory of its own (`unshare(2)`).
pub(crate) fn unshare(flags: rustix::thread::UnshareFlags) -> rustix::io::Result<()> {
    debug_assert!(!flags.contains(rustix::thread::UnshareFlags::FILES));
    // SAFETY: unsharing the descriptor table could leave descriptors that other threads close; the flags that this crate
    // uses (namespaces, FS) don't touch it.
    unsafe { rustix::thread::unshare_unsafe(flags) }
}

/// Ends the process at once: no destructors, no exit handlers, nothing flushed.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit doesn't return and touches no memory of ours.
    unsafe { libc::_exit(code) }
}

/// A child made by [`clone_container`].
pub(crate) enum Cloned {
    Child,
    Parent { pid: i32, pidfd: OwnedFd },
}

/// Clones the calling process, which has one thread, into new namespaces (`CLONE_NEW*` flags, `clone(2)`).
pub(crate) fn clone_into(namespaces: i32) -> io::Result<Cloned> {
    let mut pidfd: i32 = -1;
    // SAFETY: all-zero bytes are a valid `clone_args`.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = (namespaces as u32 as u64) | libc::CLONE_PIDFD as u64;
    arguments.pidfd = &raw mut pidfd as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no CLONE_VM, so the child runs on a copy of this stack as after fork; the kernel writes one `int` through
    // `pidfd`, which outlives the call. The process has one thread, so no lock is left held in the child.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) })?;
    if pid == 0 {
        return Ok(Cloned::Child);
    }
    // SAFETY: the kernel has made this descriptor for us; nothing else owns it.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    Ok(Cloned::Parent { pid: pid as i32, pidfd })
}

/// How a child ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    /// The raw status of `wait4(2)`.
    pub(crate) status: i32,
    pub(crate) cpu_usec: u64,
    pub(crate) max_rss: u64,
}

impl Ended {
    pub(crate) fn exit_code(self) -> Option<i32> {
        libc::WIFEXITED(self.status).then(|| libc::WEXITSTATUS(self.status))
    }

    pub(crate) fn signal(self) -> Option<i32> {
        libc::WIFSIGNALED(self.status).then(|| libc::WTERMSIG(self.status))
    }
}

/// Waits for a child to end and reaps it.
pub(crate) fn wait_for(pid: i32) -> io::Result<Ended> {
    loop {
        let mut status = 0;
        // SAFETY: all-zero bytes are a valid `rusage`.
        let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are to locals that outlive the call.
        let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
        if waited >= 0 {
            let micros = |t: libc::timeval| t.tv_sec as u64 * 1_000_000 + t.tv_usec as u64;
            return Ok(Ended {
                status,
                cpu_usec: micros(usage.ru_utime) + micros(usage.ru_stime),
                max_rss: usage.ru_maxrss as u64 * 1024,
            });
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Mount attributes that [`mount_setattr`] sets and clears (`MOUNT_ATTR_*`).
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MountAttributes {
    pub(crate) set: u64,
    pub(crate) clear: u64,
}

/// Changes the attributes of the mount that a descriptor is the root of, and with `recursive` of all below it.
pub(crate) fn mount_setattr(mount: BorrowedFd<'_>, recursive: bool, attributes: MountAttributes) -> io::Result<()> {
    #[repr(C)]
    struct Attr {
        set: u64,
        clear: u64,
        propagation: u64,
        userns_fd: u64,
    }
    let attr = Attr { set: attributes.set, clear: attributes.clear, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a constant C string, `attr` has the layout of `struct mount_attr` and the size passed.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<Attr>(),
        )
    })?;
    Ok(())
}

/// Sets the supplementary groups of the process, which has one thread.
pub(crate) fn set_groups(groups: &[u32]) -> io::Result<()> {
    // SAFETY: pointer and length are those of one slice of `gid_t`.
    check(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })?;
    Ok(())
}

/// Sets real, effective and saved group of the process, which has one thread.
pub(crate) fn set_gid(gid: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) })?;
    Ok(())
}

/// Sets real, effective and saved user of the process, which has one thread.
pub(crate) fn set_uid(uid: u32) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) })?;
    Ok(())
}

/// Sets a resource limit by the kernel's number (`RLIMIT_*`).
pub(crate) fn set_rlimit(resource: u32, soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit64 { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` outlives the call and the old limit is not asked for.
    check(unsafe {
        libc::syscall(libc::SYS_prlimit64, 0, resource, &raw const limit, std::ptr::null_mut::<libc::rlimit64>())
    })?;
    Ok(())
}

/// Sets the permitted, effective and inheritable capabilities of the process.
pub(crate) fn set_capabilities(permitted: u64, effective: u64, inheritable: u64) -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    #[repr(C)]
    struct Data {
        effective: u32,
        permitted: u32,
        inheritable: u32,
    }
    let header = Header { version: 0x2008_0522, pid: 0 };
    let half = |shift: u32| Data {
        effective: (effective >> shift) as u32,
        permitted: (permitted >> shift) as u32,
        inheritable: (inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: header and data have the layouts of version 3 of `capset(2)`, two data words.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) })?;
    Ok(())
}

/// Calls `prctl(2)` with up to two plain numbers.
pub(crate) fn prctl(option: i32, second: u64, third: u64) -> io::Result<i64> {
    // SAFETY: the options this crate uses (capabilities, keepcaps, no_new_privs, death signal) take numbers, not pointers.
    check(unsafe { libc::prctl(option, second, third, 0, 0) } as libc::c_long)
}

/// Gives the process a new, empty session keyring, so that it has no keys of whoever started it (`keyctl(2)`).
pub(crate) fn new_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: i32 = 1;
    // SAFETY: a null name asks for an anonymous keyring; no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, std::ptr::null::<libc::c_char>()) })?;
    Ok(())
}

/// Leaves the speculative store bypass setting alone; kernels before 5.16 would switch it off and slow the step down.
const SECCOMP_SPEC_ALLOW: u32 = 4;

fn load_seccomp_with(filter: &Filter, flags: u32) -> io::Result<libc::c_long> {
    #[repr(C)]
    struct Program {
        length: u16,
        instructions: *const crate::seccomp::Instruction,
    }
    const SET_MODE_FILTER: u32 = 1;
    let instructions = filter.instructions();
    let program = Program { length: instructions.len() as u16, instructions: instructions.as_ptr() };
    // SAFETY: `program` has the layout of `struct sock_fprog`; pointer and length are of one slice that outlives the call.
    check(unsafe { libc::syscall(libc::SYS_seccomp, SET_MODE_FILTER, flags, &raw const program) })
}

/// Loads a seccomp filter onto the process. Needs CAP_SYS_ADMIN in its user namespace, or `no_new_privs`.
pub(crate) fn load_seccomp(filter: &Filter) -> io::Result<()> {
    load_seccomp_with(filter, SECCOMP_SPEC_ALLOW).map(drop)
}

/// Returns the Landlock ABI of the kernel; an error if it has none.
pub(crate) fn landlock_abi() -> io::Result<i64> {
    const CREATE_RULESET_VERSION: u32 = 1;
    // SAFETY: with this flag the kernel wants a null pointer and size 0.
    check(unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, CREATE_RULESET_VERSION)
    })
}

/// Makes a Landlock ruleset that only scopes (`LANDLOCK_SCOPE_*`).
pub(crate) fn landlock_scopes(scoped: u64) -> io::Result<OwnedFd> {
    let attr = [0u64, 0, scoped];
    // SAFETY: `attr` has the layout of `struct landlock_ruleset_attr` (three 64-bit words) and its size is passed.
    let fd =
        check(unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, attr.as_ptr(), size_of_val(&attr), 0u32) })?;
    // SAFETY: the kernel has made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Puts the process under a Landlock ruleset.
pub(crate) fn landlock_restrict(ruleset: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no memory is passed.
    check(unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0u32) })?;
    Ok(())
}

/// C strings with the null-terminated pointer array that `execve(2)` takes.
pub(crate) struct CStrings {
    /// Each points to the heap memory of a string in `_strings`, which is never changed; the last is null.
    pointers: Vec<*const libc::c_char>,
    _strings: Vec<CString>,
}

impl CStrings {
    /// Copies strings; one with a NUL inside is an error.
    pub(crate) fn new<'a>(strings: impl IntoIterator<Item = &'a str>) -> io::Result<CStrings> {
        let copy = |s| CString::new(s).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL));
        let strings = strings.into_iter().map(copy).collect::<io::Result<Vec<CString>>>()?;
        let pointers = strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect();
        Ok(CStrings { pointers, _strings: strings })
    }
}

/// Replaces the program of the process. Returns only if that failed.
pub(crate) fn exec(path: &CStr, arguments: &CStrings, environment: &CStrings) -> io::Error {
    // SAFETY: the path is a C string; both arrays end with a null pointer and point to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), arguments.pointers.as_ptr(), environment.pointers.as_ptr()) };
    io::Error::last_os_error()
}

/// Replaces the program of the process by the file behind a descriptor. Returns only if that failed.
pub(crate) fn exec_descriptor(file: BorrowedFd<'_>, arguments: &CStrings, environment: &CStrings) -> io::Error {
    // SAFETY: the path is a constant C string; both arrays end with a null pointer and point to strings that outlive the call.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            arguments.pointers.as_ptr(),
            environment.pointers.as_ptr(),
            libc::AT_EMPTY_PATH,
        )
    };
    io::Error::last_os_error()
}

/// Closes every descriptor from `first` on at the next exec.
pub(crate) fn close_on_exec_from(first: u32) -> io::Result<()> {
    // SAFETY: no memory is passed and no descriptor is closed yet.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Makes `target` a copy of a descriptor, without close-on-exec.
pub(crate) fn duplicate_to(from: BorrowedFd<'_>, target: i32) -> io::Result<()> {
    if from.as_raw_fd() == target {
        let flags = rustix::io::fcntl_getfd(from)?;
        return Ok(rustix::io::fcntl_setfd(from, flags - rustix::io::FdFlags::CLOEXEC)?);
    }
    // SAFETY: no memory is passed; `target` is one of the standard descriptors, which this process doesn't own otherwise.
    check(unsafe { libc::dup2(from.as_raw_fd(), target) } as libc::c_long)?;
    Ok(())
}

/// Takes over a descriptor that the parent process left at a number.
///
/// The caller must be the one that knows that the number was given to this process for it alone.
pub(crate) fn inherited(number: i32) -> io::Result<OwnedFd> {
    // SAFETY: fcntl(F_GETFD) only looks whether the number is open.
    check(unsafe { libc::fcntl(number, libc::F_GETFD) } as libc::c_long)?;
    // SAFETY: the descriptor is open and, by the contract above, nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Gives every signal its default action and unblocks all of them.
pub(crate) fn reset_signals() {
    for signal in 1..=64 {
        // SAFETY: SIG_DFL is a valid handler; numbers that can't be set are refused by the kernel.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    // SAFETY: all-zero bytes are a valid `sigset_t`, filled in by sigemptyset before it is used.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Switches the loopback interface of the current network namespace on.
pub(crate) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: all-zero bytes are a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_name[0] = b'l' as libc::c_char;
    request.ifr_name[1] = b'o' as libc::c_char;
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as i16;
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, which outlives the call.
    let result = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS as _, &raw const request) };
    check(result.into())?;
    Ok(())
}

/// Gives free memory of the heap back to the kernel.
pub(crate) fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes no pointer and gives back only what nobody has allocated; locks what it looks at.
    unsafe {
        libc::malloc_trim(0);
    }
}

/// Unmaps the pages of a private mapping of a file, which come back from the file when they are used (`madvise(2)`).
///
/// The mapping must be one of the program's own file, that can't be written and has no page that differs from it: then what is
/// read from it is the same before and after.
pub(crate) fn forget_pages(start: usize, length: usize) -> io::Result<()> {
    // SAFETY: as the caller promises, no byte that can be read through this mapping changes. The mappings of the program's file
    // stay where they are until the process ends.
    check(unsafe { libc::madvise(start as *mut libc::c_void, length, libc::MADV_DONTNEED) } as libc::c_long)?;
    Ok(())
}

/// Loads a seccomp filter that hands calls to a listener, and returns the listener.
pub(crate) fn load_seccomp_listener(filter: &Filter) -> io::Result<OwnedFd> {
    const FLAG_NEW_LISTENER: u32 = 8;
    // From Linux 5.19 on: a call that was taken is interrupted by nothing but the caller's death.
    const FLAG_WAIT_KILLABLE: u32 = 32;
    let flags = SECCOMP_SPEC_ALLOW | FLAG_NEW_LISTENER;
    let listener =
        load_seccomp_with(filter, flags | FLAG_WAIT_KILLABLE).or_else(|_| load_seccomp_with(filter, flags))?;
    // SAFETY: the kernel has made this descriptor for us; nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(listener as i32) })
}

/// A system call that waits for an answer (`struct seccomp_notif`).
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Notification {
    pub(crate) id: u64,
    /// The calling thread, in the pid namespace of the process that asked.
    pub(crate) pid: u32,
    flags: u32,
    pub(crate) number: i32,
    pub(crate) arch: u32,
    instruction_pointer: u64,
    pub(crate) arguments: [u64; 6],
}

/// Waits for the next call.
pub(crate) fn next_notification(listener: BorrowedFd<'_>) -> io::Result<Notification> {
    const RECEIVE: u64 = 0xc050_2100;
    let mut call = Notification::default();
    // SAFETY: `call` has the layout of `struct seccomp_notif`, is zeroed as the kernel demands, and outlives the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), RECEIVE as _, &raw mut call) }.into())?;
    Ok(call)
}

/// Tells whether a call waits, so that [`next_notification`] won't.
pub(crate) fn has_notification(listener: BorrowedFd<'_>) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut listener = [PollFd::from_borrowed_fd(listener, PollFlags::IN)];
    poll(&mut listener, Some(&Timespec::default())).is_ok_and(|_| listener[0].revents().contains(PollFlags::IN))
}

/// The answer to a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// What the call returns.
    Value(i64),
    /// The number of an error.
    Error(i32),
    /// The kernel goes on with the call, which reads its arguments anew: only for what the caller may do anyway.
    Continue,
}

/// Answers a call.
pub(crate) fn answer_notification(listener: BorrowedFd<'_>, id: u64, reply: Reply) -> io::Result<()> {
    #[repr(C)]
    struct Answer {
        id: u64,
        value: i64,
        error: i32,
        flags: u32,
    }
    const SEND: u64 = 0xc018_2101;
    let (value, error, flags) = match reply {
        Reply::Value(value) => (value, 0, 0),
        Reply::Error(error) => (0, -error, 0),
        Reply::Continue => (0, 0, 1),
    };
    let mut answer = Answer { id, value, error, flags };
    // SAFETY: `answer` has the layout of `struct seccomp_notif_resp` and outlives the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SEND as _, &raw mut answer) }.into())?;
    Ok(())
}

/// Lets the kernel run caller and listener in turn on one processor.
pub(crate) fn answer_on_the_same_processor(listener: BorrowedFd<'_>) -> io::Result<()> {
    const SET_FLAGS: u64 = 0x4008_2104;
    const SYNC_WAKE_UP: u64 = 1;
    // SAFETY: takes a number, no pointer.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), SET_FLAGS as _, SYNC_WAKE_UP) }.into())?;
    Ok(())
}

/// Gives the caller of a waiting call a copy of a descriptor, and returns its number there.
pub(crate) fn add_descriptor(
    listener: BorrowedFd<'_>,
    id: u64,
    descriptor: BorrowedFd<'_>,
    close_on_exec: bool,
) -> io::Result<i32> {
    #[repr(C)]
    struct Added {
        id: u64,
        flags: u32,
        source: u32,
        number: u32,
        number_flags: u32,
    }
    const ADD: u64 = 0x4018_2103;
    let number_flags = if close_on_exec { libc::O_CLOEXEC as u32 } else { 0 };
    let added = Added { id, flags: 0, source: descriptor.as_raw_fd() as u32, number: 0, number_flags };
    // SAFETY: `added` has the layout of `struct seccomp_notif_addfd` and outlives the call.
    let number = check(unsafe { libc::ioctl(listener.as_raw_fd(), ADD as _, &raw const added) }.into())?;
    Ok(number as i32)
}

/// `statx(2)` of a descriptor, as the kernel lays it out.
pub(crate) fn statx_bytes(file: BorrowedFd<'_>, flags: u32, mask: u32) -> io::Result<[u8; 256]> {
    let mut bytes = [0_u8; 256];
    let flags = flags | libc::AT_EMPTY_PATH as u32;
    // SAFETY: the path is a constant C string; the kernel writes the 256 bytes of `struct statx`.
    let result =
        unsafe { libc::syscall(libc::SYS_statx, file.as_raw_fd(), c"".as_ptr(), flags, mask, bytes.as_mut_ptr()) };
    check(result)?;
    Ok(bytes)
}

/// Says whether a call still waits: then what was opened by its thread's number belongs to that thread.
pub(crate) fn notification_is_valid(listener: BorrowedFd<'_>, id: u64) -> io::Result<()> {
    const IS_VALID: u64 = 0x4008_2102;
    // SAFETY: the kernel reads one 64-bit word, which outlives the call.
    check(unsafe { libc::ioctl(listener.as_raw_fd(), IS_VALID as _, &raw const id) }.into())?;
    Ok(())
}

/// Changes the owner of the file behind a descriptor, also one that is only a place (`O_PATH`); −1 leaves an ID as it is.
pub(crate) fn change_owner(file: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: the path is a constant C string.
    let result = unsafe { libc::fchownat(file.as_raw_fd(), c"".as_ptr(), uid, gid, libc::AT_EMPTY_PATH) };
    check(result.into())?;
    Ok(())
}

/// Closes all descriptors but the standard ones and some others. For a child that never returns and drops nothing.
pub(crate) fn close_all_but(kept: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut numbers: Vec<u32> = kept.iter().map(|fd| fd.as_raw_fd() as u32).filter(|number| *number > 2).collect();
    numbers.sort_unstable();
    let mut from = 3;
    for number in numbers.into_iter().chain([u32::MAX]) {
        if number > from {
            // SAFETY: no memory is passed. The owners of these descriptors are never dropped in this process, which ends by `_exit`.
            check(unsafe { libc::syscall(libc::SYS_close_range, from, number - 1, 0u32) })?;
        }
        from = number.saturating_add(1);
    }
    Ok(())
}
