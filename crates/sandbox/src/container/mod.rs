//! The container a step executes in, seen from its first process: from the clone to the program.
//!
//! The process is alone in new mount, pid, ipc, uts and cgroup namespaces, and in a network namespace unless the host's
//! network is wanted. It becomes the program itself, so the program is process 1 and everything in the container dies with it.
//! No code of the image runs before the last line of [`start`].

mod dev;
mod exec;
mod failure;
mod kernel;
mod limits;
mod mounts;
mod owners;
mod privileges;
mod resolve;
mod stage;
mod stubs;
mod user;

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, UnmountFlags};

use crate::overlay::{MAX_LOWERS, MountApi};
use crate::seccomp::Filter;
use crate::spec::{ContainerSpec, Network, Rootfs, Security};
use crate::sys::{self, MountAttributes};

use failure::Doing;
pub(crate) use failure::Failure;
pub(crate) use owners::{Listener, listen};
pub(crate) use stubs::{Stubs, remove as remove_stubs};

/// The host name of containers that are given none, as in BuildKit.
const HOSTNAME: &str = "buildkitsandbox";

/// What is the same for all containers, found out once.
pub(crate) struct Context {
    filter: Filter,
    /// The filter for a container with a listener.
    filter_with_listener: Filter,
    api: MountApi,
    abstract_sockets: Option<OwnedFd>,
    capabilities: privileges::Capabilities,
    /// A sysfs can be mounted in the machine's network namespace.
    owns_network: bool,
    /// This is root of the machine, not of a user namespace.
    is_machine_root: bool,
    can_set_groups: bool,
    uids: Vec<(u32, u32)>,
    gids: Vec<(u32, u32)>,
    /// A `/proc` in which listeners see the containers' processes, where there are listeners.
    processes: Option<OwnedFd>,
}

impl Context {
    pub(crate) fn read() -> Context {
        let map = |path: &str| -> Vec<(u32, u32)> {
            let text = std::fs::read_to_string(path).unwrap_or_default();
            let line = |line: &str| {
                let mut numbers = line.split_whitespace().map(str::parse::<u32>);
                Some((numbers.next()?.ok()?, numbers.nth(1)?.ok()?))
            };
            text.lines().filter_map(line).collect()
        };
        let uids = map("/proc/self/uid_map");
        Context {
            filter: Filter::native(false),
            filter_with_listener: Filter::native(true),
            api: MountApi::from_environment(),
            abstract_sockets: privileges::abstract_socket_scope(),
            capabilities: privileges::Capabilities::read(),
            owns_network: kernel::can_mount_sysfs(),
            is_machine_root: uids == [(0, u32::MAX)],
            can_set_groups: std::fs::read_to_string("/proc/self/setgroups").is_ok_and(|text| text.trim() == "allow"),
            processes: owners::view_of_processes(uids.iter().map(|(_, count)| u64::from(*count)).sum()),
            uids,
            gids: map("/proc/self/gid_map"),
        }
    }

    /// The maps of a user namespace with the same IDs, for `uid_map` and `gid_map`.
    pub(crate) fn same_ids(&self) -> [String; 2] {
        [&self.uids, &self.gids]
            .map(|map| map.iter().map(|(start, count)| format!("{start} {start} {count}\n")).collect())
    }

    fn has_user(&self, id: u32) -> bool {
        contains(&self.uids, id)
    }

    fn has_group(&self, id: u32) -> bool {
        contains(&self.gids, id)
    }

    fn mapped_ids(&self) -> u64 {
        self.uids.iter().map(|(_, count)| u64::from(*count)).sum()
    }
}

fn contains(map: &[(u32, u32)], id: u32) -> bool {
    map.iter().any(|(start, count)| id >= *start && u64::from(id) < u64::from(*start) + u64::from(*count))
}

/// The namespaces that a container's process is cloned into (`CLONE_NEW*`).
pub(crate) fn namespaces(spec: &ContainerSpec) -> i32 {
    if has_own_users(spec) { libc::CLONE_NEWPID } else { libc::CLONE_NEWPID | inner_namespaces(spec) }
}

/// The namespaces but that of the processes.
fn inner_namespaces(spec: &ContainerSpec) -> i32 {
    let network = match spec.network {
        Network::Host => 0,
        Network::None => libc::CLONE_NEWNET,
    };
    libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP | network
}

/// Enters a user namespace of its own with all other namespaces: they belong to it, so that they can be set up from inside.
///
/// A network that somebody else made has to be entered before.
pub(crate) fn enter_own_users(spec: &ContainerSpec) -> rustix::io::Result<()> {
    let flags = (libc::CLONE_NEWUSER | inner_namespaces(spec)) as u32;
    sys::unshare(rustix::thread::UnshareFlags::from_bits_retain(flags))
}

/// Says whether a container gets a user namespace of its own, in which its IDs are the same as outside.
///
/// With the outer `/proc` it does: what the kernel shows of a process to others of the same user (environment, memory, open files,
/// root) it shows only to those who have capabilities over the process's user namespace, or are in it with no fewer.
pub(crate) fn has_own_users(spec: &ContainerSpec) -> bool {
    spec.no_process_sandbox
}

/// Standard input, output and error of the program.
pub(crate) struct Streams {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    /// Where the filter's listener is sent, if the container has one.
    pub(crate) owners: Option<OwnedFd>,
}

/// Becomes the container's program. Returns only if that failed.
///
/// `report` is called once, when all mount points are made, with what has to be removed at the end.
pub(crate) fn start(
    spec: &ContainerSpec,
    context: &Context,
    streams: &Streams,
    report: impl FnOnce(&Stubs),
) -> Failure {
    match prepare(spec, context, streams, report) {
        Ok(program) => program.exec(),
        Err(failure) => failure,
    }
}

fn prepare(
    spec: &ContainerSpec,
    context: &Context,
    streams: &Streams,
    report: impl FnOnce(&Stubs),
) -> Result<exec::Program, Failure> {
    rustix::process::setsid().doing(|| "make a session".into())?;
    // Modes of what is made on the way are exactly those that are asked for.
    rustix::process::umask(Mode::empty());
    let (root, upper) = mount_root(spec, context)?;
    let planned = mounts::prepare(spec, context)?;
    let mut stage = stage::Stage::mount()?;
    let place = stage.directory()?;
    stage::attach(&root, place).doing(|| "mount the root file system".into())?;
    let mut root = resolve::Root::new(root, upper)?;

    let user = user::look_up(root.directory(), &spec.user)?;
    let program = exec::Program::new(&spec.args, &spec.env, &user.home)?;
    own_mount_points(spec, &planned, &mut root)?;
    kernel::mount_proc(spec, &root)?;
    dev::mount_dev(spec, &root, &mut stage, context)?;
    kernel::mount_sys(spec, &root, context)?;
    mounts::attach_all(planned, &mut root, &mut stage)?;
    if spec.security == Security::Sandbox {
        kernel::mask(&root, &mut stage)?;
    }
    let cwd = working_directory(spec, &mut root, &user, streams.owners.is_some())?;
    let (root, changes) = root.into_changes();
    report(&changes.finish());
    if spec.readonly {
        let readonly = MountAttributes { set: MountAttrFlags::MOUNT_ATTR_RDONLY.bits().into(), clear: 0 };
        sys::mount_setattr(root.as_fd(), false, readonly).doing(|| "make the root file system read-only".into())?;
    }

    rustix::system::sethostname(spec.hostname.as_deref().unwrap_or(HOSTNAME).as_bytes())
        .doing(|| "set the host name".into())?;
    if spec.network == Network::None {
        sys::loopback_up().doing(|| "switch the loopback interface on".into())?;
    }
    if spec.security == Security::Insecure {
        // Others can't call for keys. Where none is to be had, the server's own empty one is kept.
        sys::new_keyring().ok();
    }
    limits::set(spec)?;
    change_root(&root)?;
    enter(&cwd, spec)?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    let null;
    let stdin = match &streams.stdin {
        Some(stdin) => stdin,
        None => {
            null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
                .doing(|| "open /dev/null".into())?;
            &null
        }
    };
    for (stream, number) in [(stdin, 0), (&streams.stdout, 1), (&streams.stderr, 2)] {
        sys::duplicate_to(stream.as_fd(), number).doing(|| "connect the standard streams".into())?;
    }
    sys::close_on_exec_from(3).doing(|| "close descriptors".into())?;
    privileges::drop_to(spec, &user, context, streams.owners.as_ref())?;
    Ok(program)
}

/// Makes those of `/proc`, `/dev` and `/sys` that are missing and that a mount is asked for in: as its parents they go with it.
///
/// Where no mount is asked for in them, they stay in the layer, as in BuildKit.
fn own_mount_points(
    spec: &ContainerSpec,
    planned: &[mounts::Planned<'_>],
    root: &mut resolve::Root,
) -> Result<(), Failure> {
    for path in ["/proc", "/dev", "/sys"].map(Path::new) {
        if spec.remove_mount_stubs_recursive
            && planned.iter().any(|mount| mount.is_below(path))
            && root.find(path)?.is_none()
        {
            root.ensure(path, resolve::Kind::Directory, resolve::Made::Stub)?;
        }
    }
    Ok(())
}

/// Mounts the root file system detached; also opens the upper directory, if it has one.
fn mount_root(spec: &ContainerSpec, context: &Context) -> Result<(OwnedFd, Option<OwnedFd>), Failure> {
    let directory = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let (root, upper) = match &spec.rootfs {
        Rootfs::Overlay(overlay) => {
            let mut overlay = overlay.clone();
            let fits = overlay.lowers.len() < MAX_LOWERS;
            if let Some(base) = spec.base_layer.as_ref().filter(|base| fits && base.is_dir()) {
                overlay.lowers.push(base.clone());
            }
            let root = overlay.mount(context.api).map_err(|error| Failure::new(error.to_string()))?;
            let upper = overlay.upper.as_ref().map(|upper| rustix::fs::openat(CWD, upper, directory, Mode::empty()));
            (root, upper.transpose().doing(|| "open the upper directory".into())?)
        }
        Rootfs::Dir(path) => {
            let opened = rustix::fs::openat(CWD, path, directory, Mode::empty())
                .doing(|| format!("root file system {}", path.display()))?;
            (stage::clone_tree(opened).doing(|| format!("bind {}", path.display()))?, None)
        }
    };
    let nodev = u64::from(MountAttrFlags::MOUNT_ATTR_NODEV.bits());
    let attributes = match (&spec.rootfs, spec.security) {
        (Rootfs::Dir(_), Security::Sandbox) => MountAttributes { set: nodev, clear: 0 },
        (Rootfs::Overlay(_), Security::Insecure) if context.is_machine_root => MountAttributes { set: 0, clear: nodev },
        _ => return Ok((root, upper)),
    };
    sys::mount_setattr(root.as_fd(), true, attributes).doing(|| "set attributes of the root file system".into())?;
    Ok((root, upper))
}

/// Opens the working directory inside the root, made for the user if it is missing.
///
/// Where owners are emulated, nobody is there yet who could note one: a directory that had to be made is root's.
fn working_directory(
    spec: &ContainerSpec,
    root: &mut resolve::Root,
    user: &user::User,
    emulated: bool,
) -> Result<OwnedFd, Failure> {
    let path = Path::new(if spec.cwd.is_empty() { "/" } else { &spec.cwd });
    let refuse = |failure: Failure| Failure::new(format!("working directory: {}", failure.text));
    let kept = if emulated {
        resolve::Made::Kept { uid: 0, gid: 0 }
    } else {
        resolve::Made::Kept { uid: user.uid, gid: user.gid }
    };
    root.ensure(path, resolve::Kind::Directory, kept).map_err(refuse)
}

/// Makes a mount the root and puts the old root out of sight (`pivot_root(2)`).
fn change_root(root: &OwnedFd) -> Result<(), Failure> {
    rustix::process::fchdir(root).doing(|| "enter the root file system".into())?;
    rustix::process::pivot_root(".", ".").doing(|| "change the root".into())?;
    // The old root lies over the new one now.
    rustix::mount::unmount(".", UnmountFlags::DETACH).doing(|| "leave the old root".into())?;
    rustix::process::chdir("/").doing(|| "enter the new root".into())
}

/// Enters the working directory and proves that it lies inside the root.
fn enter(directory: &OwnedFd, spec: &ContainerSpec) -> Result<(), Failure> {
    rustix::process::fchdir(directory).doing(|| format!("enter the working directory {}", spec.cwd))?;
    let outside = || Failure::new(format!("working directory {} is outside of the root file system", spec.cwd));
    // The kernel tells a directory that can't be reached from the root by a name without a slash in front.
    let shown = rustix::process::getcwd(Vec::new()).map_err(|_| outside())?;
    if !shown.to_bytes().starts_with(b"/") {
        return Err(outside());
    }
    let here = rustix::fs::stat(OsStr::new(".")).map_err(|_| outside())?;
    let there = rustix::fs::stat(shown.as_c_str()).map_err(|_| outside())?;
    let same = (here.st_dev, here.st_ino) == (there.st_dev, there.st_ino)
        && FileType::from_raw_mode(here.st_mode) == FileType::Directory;
    if same { Ok(()) } else { Err(outside()) }
}
