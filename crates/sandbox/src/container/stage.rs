//! A container's own tmpfs, mounted in its mount namespace before the root is changed.
//!
//! It holds what the container shows from memory (`/dev`, secrets, `/etc/hosts`), places to mount things before they
//! are moved to where they belong, and an empty directory to mask others with. With the old root it goes out of sight;
//! what was bound from it lives on. One file system for all of these costs a fifth of five.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_string,
    fsmount, fsopen, move_mount, open_tree,
};

use super::failure::{Doing, Failure};

/// Directories, one of which every Linux has. The stage hides it in the container's setup alone.
const PLACES: &[&str] = &["/tmp", "/var", "/usr", "/etc"];

/// Bytes that `/dev` and files in memory may take, as in BuildKit's `/dev`.
const SIZE: &str = "67108864";

pub(super) struct Stage {
    directory: OwnedFd,
    next: u32,
}

/// Makes a detached file system from its type and options.
pub(super) fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", kind)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Attaches a detached mount where a descriptor stands.
pub(super) fn attach(mount: impl AsFd, target: impl AsFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(mount, "", target, "", flags)
}

/// Copies the mounts at and below a descriptor, detached.
pub(super) fn clone_tree(file: impl AsFd) -> rustix::io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH
        | OpenTreeFlags::AT_RECURSIVE;
    open_tree(file, "", flags)
}

impl Stage {
    /// Mounts the stage over a directory of the old root. From here on nothing below that directory is found by path.
    pub(super) fn mount() -> Result<Stage, Failure> {
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let directory =
            filesystem("tmpfs", &[("mode", "0755"), ("size", SIZE)], attributes).doing(|| "make a tmpfs".into())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let place = PLACES.iter().find_map(|place| rustix::fs::openat(CWD, *place, flags, Mode::empty()).ok());
        let place =
            place.ok_or_else(|| Failure::new(format!("the machine has none of {} to mount on", PLACES.join(", "))))?;
        attach(&directory, place).doing(|| "mount a tmpfs".into())?;
        Ok(Stage { directory, next: 0 })
    }

    /// Makes a new empty directory.
    pub(super) fn directory(&mut self) -> Result<OwnedFd, Failure> {
        let name = self.name();
        let make = || -> rustix::io::Result<OwnedFd> {
            rustix::fs::mkdirat(&self.directory, &name, Mode::from_raw_mode(0o755))?;
            rustix::fs::openat(
                &self.directory,
                &name,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        make().doing(|| "make a directory in memory".into())
    }

    /// Makes a file with a content and returns a descriptor of it for mounting.
    pub(super) fn file(&mut self, content: &[u8], owner: (u32, u32), mode: u32) -> Result<OwnedFd, Failure> {
        let name = self.name();
        let make = || -> rustix::io::Result<OwnedFd> {
            let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let file = rustix::fs::openat(&self.directory, &name, flags, Mode::RUSR | Mode::WUSR)?;
            let mut rest = content;
            while !rest.is_empty() {
                let written = rustix::io::write(&file, rest)?;
                rest = &rest[written..];
            }
            if owner != (0, 0) {
                rustix::fs::fchown(
                    &file,
                    Some(rustix::fs::Uid::from_raw(owner.0)),
                    Some(rustix::fs::Gid::from_raw(owner.1)),
                )?;
            }
            rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
            Ok(file)
        };
        make().doing(|| format!("make a file in memory for user {} and group {}", owner.0, owner.1))
    }

    fn name(&mut self) -> String {
        self.next += 1;
        self.next.to_string()
    }
}
