//! `/dev` of a container: a handful of harmless devices, terminals, shared memory and message queues of its own.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, FileType, Mode, OFlags};
use rustix::mount::MountAttrFlags;

use super::Context;
use super::failure::{Doing, Failure};
use super::kernel::is_there;
use super::resolve::Root;
use super::stage::{Stage, attach, clone_tree, filesystem};
use crate::spec::{ContainerSpec, Security};

/// Name and number (major, minor) of the devices every container has.
const DEVICES: &[(&str, (u32, u32))] =
    &[("null", (1, 3)), ("zero", (1, 5)), ("full", (1, 7)), ("random", (1, 8)), ("urandom", (1, 9)), ("tty", (5, 0))];

/// Devices of the machine that an insecure step of real root gets, where they exist.
const INSECURE: &[&str] = &[
    "kmsg",
    "cuse",
    "fuse",
    "kvm",
    "loop-control",
    "loop0",
    "loop1",
    "loop2",
    "loop3",
    "loop4",
    "loop5",
    "loop6",
    "loop7",
];

const LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "fd"),
    ("/proc/self/fd/0", "stdin"),
    ("/proc/self/fd/1", "stdout"),
    ("/proc/self/fd/2", "stderr"),
    ("pts/ptmx", "ptmx"),
];

const DEFAULT_SHM: u64 = 64 << 20;

/// The group of terminals in every image.
const TTY_GROUP: u32 = 5;

const QUIET: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Opens a device of the machine, and makes sure that it is the one.
pub(super) fn host_device(name: &str) -> Result<OwnedFd, Failure> {
    let path = format!("/dev/{name}");
    let device =
        rustix::fs::openat(CWD, path.as_str(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
            .doing(|| path.clone())?;
    let stat = rustix::fs::fstat(&device).doing(|| path.clone())?;
    let known = DEVICES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    let number = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    let is_device = matches!(FileType::from_raw_mode(stat.st_mode), FileType::CharacterDevice | FileType::BlockDevice);
    if !is_device || known.is_some_and(|known| known != number) {
        return Err(Failure::new(format!("{path} of this machine is not the device that it should be")));
    }
    Ok(device)
}

/// Mounts `/dev` with all that is in it.
pub(super) fn mount_dev(
    spec: &ContainerSpec,
    root: &Root,
    stage: &mut Stage,
    context: &Context,
) -> Result<(), Failure> {
    let target = root.plain_directory("dev")?;
    let files = stage.directory()?;
    let directory = clone_tree(files).doing(|| "make /dev".into())?;
    attach(&directory, target).doing(|| "mount /dev".into())?;
    let doing = |what: &str| format!("make /dev/{what}");

    for (name, _) in DEVICES {
        bind_device(&directory, name)?;
    }
    if spec.security == Security::Insecure && context.is_machine_root {
        for name in INSECURE.iter().filter(|name| is_there(&format!("/dev/{name}"))) {
            bind_device(&directory, name)?;
        }
    }
    for (link, name) in LINKS {
        rustix::fs::symlinkat(*link, &directory, *name).doing(|| doing(name))?;
    }

    let group = TTY_GROUP.to_string();
    let mut terminals = vec![("ptmxmode", "0666"), ("mode", "0620")];
    if context.has_group(TTY_GROUP) {
        terminals.push(("gid", &group));
    }
    let size = spec.shm_size.filter(|size| *size > 0).unwrap_or(DEFAULT_SHM).to_string();
    let nodev = MountAttrFlags::MOUNT_ATTR_NODEV;
    mount_in(&directory, "pts", filesystem("devpts", &terminals, QUIET))?;
    mount_in(&directory, "shm", filesystem("tmpfs", &[("mode", "1777"), ("size", &size)], QUIET | nodev))?;
    match filesystem("mqueue", &[], QUIET | nodev) {
        // A kernel without POSIX message queues.
        Err(rustix::io::Errno::NODEV) => Ok(()),
        mount => mount_in(&directory, "mqueue", mount),
    }
}

fn bind_device(directory: &OwnedFd, name: &str) -> Result<(), Failure> {
    let tree = clone_tree(host_device(name)?).doing(|| format!("bind /dev/{name}"))?;
    let make = || -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::from_raw_mode(0o644))
    };
    let place = make().doing(|| format!("make /dev/{name}"))?;
    attach(tree, place).doing(|| format!("bind /dev/{name}"))
}

fn mount_in(directory: &OwnedFd, name: &str, mount: rustix::io::Result<OwnedFd>) -> Result<(), Failure> {
    let mount = mount.doing(|| format!("mount /dev/{name}"))?;
    rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(0o755)).doing(|| format!("make /dev/{name}"))?;
    let place = rustix::fs::openat(directory, name, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .doing(|| format!("open /dev/{name}"))?;
    attach(mount, place).doing(|| format!("mount /dev/{name}"))
}
