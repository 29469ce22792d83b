//! `/proc` and `/sys` of a container, and what of them is hidden or read-only.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::Context;
use super::dev::host_device;
use super::failure::{Doing, Failure};
use super::mounts::{clone_path, set};
use super::resolve::{Root, file_type};
use super::stage::{Stage, attach, clone_tree, filesystem};
use crate::spec::{ContainerSpec, Network, Security};
use crate::sys::{self, MountAttributes};

/// Hidden from a step: they tell about the machine, or do things to it (the OCI default set).
const MASKED: &[&str] = &[
    "proc/acpi",
    "proc/asound",
    "proc/kcore",
    "proc/keys",
    "proc/latency_stats",
    "proc/timer_list",
    "proc/timer_stats",
    "proc/sched_debug",
    "proc/scsi",
    "sys/firmware",
    "sys/devices/virtual/powercap",
];

/// Readable alone for a step.
const READONLY: &[&str] = &["proc/bus", "proc/fs", "proc/irq", "proc/sys", "proc/sysrq-trigger"];

/// `linux/magic.h`.
const SYSFS_MAGIC: u64 = 0x6265_6572;
const CGROUP2_MAGIC: u64 = 0x6367_7270;
const TMPFS_MAGIC: u64 = 0x0102_1994;

const QUIET: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// Mounts `/proc`: of the container's own processes, or the outer one.
pub(super) fn mount_proc(spec: &ContainerSpec, root: &Root) -> Result<(), Failure> {
    let target = root.plain_directory("proc")?;
    let tree = if spec.no_process_sandbox {
        // With what is mounted in it: what hides parts of it there hides them here. Read-only: the files of other processes of the
        // same user could be written (`oom_score_adj`).
        let tree = clone_path("/proc").doing(|| "bind /proc".into())?;
        set(&tree, MountAttrFlags::MOUNT_ATTR_RDONLY).doing(|| "make the outer /proc read-only".into())?;
        let quiet = MountAttributes { set: QUIET.bits().into(), clear: 0 };
        sys::mount_setattr(tree.as_fd(), false, quiet).doing(|| "set attributes of the outer /proc".into())?;
        tree
    } else {
        filesystem("proc", &[], QUIET).map_err(|error| match error {
            Errno::PERM => Failure::new(
                "mount /proc: not permitted: this is a container whose /proc is partly hidden. Start the container with \
                 --security-opt systempaths=unconfined (Docker), --security-opt unmask=ALL (Podman) or procMount: Unmasked (Kubernetes), \
                 or the daemon with --oci-worker-no-process-sandbox, which shows the container's processes to RUN steps",
            ),
            error => Failure::new(format!("mount /proc: {}", std::io::Error::from(error))),
        })?
    };
    attach(tree, target).doing(|| "mount /proc".into())
}

/// Mounts `/sys` and the control groups in it, read-only unless the step is an insecure one.
pub(super) fn mount_sys(spec: &ContainerSpec, root: &Root, context: &Context) -> Result<(), Failure> {
    let target = root.plain_directory("sys")?;
    let readonly =
        if spec.security == Security::Insecure { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    // A new sysfs shows a network namespace and needs rights over it.
    let fresh = (spec.network == Network::None || context.owns_network)
        .then(|| filesystem("sysfs", &[], QUIET | readonly).ok())
        .flatten();
    match fresh {
        Some(tree) => {
            attach(&tree, target).doing(|| "mount /sys".into())?;
            let place = rustix::fs::openat(
                &tree,
                "fs/cgroup",
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            );
            if let (Ok(place), Some(groups)) = (place, control_groups(readonly)?) {
                attach(groups, place).doing(|| "mount /sys/fs/cgroup".into())?;
            }
            Ok(())
        }
        None => {
            let tree = clone_path("/sys").doing(|| "bind /sys".into())?;
            set(&tree, QUIET | readonly).doing(|| "make /sys read-only".into())?;
            attach(tree, target).doing(|| "mount /sys".into())
        }
    }
}

/// The control groups: the container's own view where there is one hierarchy, else the machine's.
fn control_groups(readonly: MountAttrFlags) -> Result<Option<OwnedFd>, Failure> {
    let unified = match rustix::fs::statfs("/sys/fs/cgroup") {
        Ok(fs) if fs.f_type as u64 == CGROUP2_MAGIC => true,
        Ok(fs) if fs.f_type as u64 == TMPFS_MAGIC => false,
        _ => return Ok(None),
    };
    if unified && let Ok(tree) = filesystem("cgroup2", &[], QUIET | readonly) {
        return Ok(Some(tree));
    }
    let Ok(tree) = clone_path("/sys/fs/cgroup") else {
        return Ok(None);
    };
    set(&tree, QUIET | readonly).doing(|| "make /sys/fs/cgroup read-only".into())?;
    Ok(Some(tree))
}

/// Hides what a step shall not see and makes read-only what it shall not change.
pub(super) fn mask(root: &Root, stage: &mut Stage) -> Result<(), Failure> {
    let mut empty: Option<OwnedFd> = None;
    for path in MASKED {
        let Some(target) = own(root, path)? else { continue };
        let is_directory = file_type(&target).doing(|| format!("/{path}"))? == FileType::Directory;
        let cover = if is_directory {
            let directory = match &empty {
                Some(directory) => directory,
                None => empty.insert(stage.directory()?),
            };
            let tree = clone_tree(directory).doing(|| format!("hide /{path}"))?;
            set(&tree, QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY).doing(|| format!("hide /{path}"))?;
            tree
        } else {
            clone_tree(host_device("null")?).doing(|| format!("hide /{path}"))?
        };
        attach(cover, target).doing(|| format!("hide /{path}"))?;
    }
    for path in READONLY {
        let Some(target) = own(root, path)? else { continue };
        let tree = clone_tree(&target).doing(|| format!("make /{path} read-only"))?;
        set(&tree, QUIET | MountAttrFlags::MOUNT_ATTR_RDONLY).doing(|| format!("make /{path} read-only"))?;
        attach(tree, target).doing(|| format!("make /{path} read-only"))?;
    }
    Ok(())
}

/// Opens a file of the `/proc` or `/sys` that was just mounted; nothing else can stand at its path unnoticed.
///
/// `None` if the kernel doesn't have it, or if a mount of the step's own lies over it.
fn own(root: &Root, path: &str) -> Result<Option<OwnedFd>, Failure> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let target = match rustix::fs::openat2(
        root.directory(),
        Path::new(path),
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        resolve,
    ) {
        Ok(target) => target,
        Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => return Ok(None),
        Err(error) => return Err(error).doing(|| format!("/{path}")),
    };
    let magic = rustix::fs::fstatfs(&target).doing(|| format!("/{path}"))?.f_type;
    let expected = if path.starts_with("proc/") { magic == PROC_SUPER_MAGIC } else { magic as u64 == SYSFS_MAGIC };
    Ok(expected.then_some(target))
}

/// Says whether this process may mount a sysfs, which shows the network namespace it is in.
pub(crate) fn can_mount_sysfs() -> bool {
    filesystem("sysfs", &[], QUIET).is_ok()
}

/// Says whether a path of the machine is there.
pub(super) fn is_there(path: &str) -> bool {
    rustix::fs::accessat(CWD, path, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()).is_ok()
}
