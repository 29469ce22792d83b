//! The mounts that a step asks for.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, PROC_SUPER_MAGIC};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use super::Context;
use super::failure::{Doing, Failure};
use super::resolve::{Kind, Made, Root, file_type, open_in_root};
use super::stage::{Stage, attach, clone_tree, filesystem};
use crate::spec::{ContainerSpec, Mount, MountKind, Security};
use crate::sys::{self, MountAttributes};

/// `MOUNT_ATTR_*` bits of things that are not programs: nothing in them is executed, set-uid or a device.
const PLAIN: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV).union(MountAttrFlags::MOUNT_ATTR_NOEXEC);

/// A mount made while the old root is whole: its sources are opened by trusted paths.
pub(super) enum Prepared<'a> {
    /// Ready to be attached.
    Tree { tree: OwnedFd, attributes: MountAttrFlags },
    /// A mount of which a path inside is wanted: it has to be attached somewhere first.
    Within { mount: OwnedFd, selector: &'a str, attributes: MountAttrFlags },
    /// A file in memory.
    File { content: &'a [u8], owner: (u32, u32), mode: u32 },
}

/// A mount with the place it is for.
pub(super) struct Planned<'a> {
    dest: PathBuf,
    prepared: Prepared<'a>,
}

impl Planned<'_> {
    /// Tells whether the place is inside a directory.
    pub(super) fn is_below(&self, directory: &Path) -> bool {
        self.dest != directory && self.dest.starts_with(directory)
    }
}

/// Cleans a destination: absolute, without `.` and `..` (which stops at the root).
fn clean(dest: &str) -> PathBuf {
    let mut path = PathBuf::from("/");
    for component in Path::new(dest).components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                path.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    path
}

/// Opens and makes the sources of all mounts, the container's own files in `/etc` first.
pub(super) fn prepare<'a>(spec: &'a ContainerSpec, context: &Context) -> Result<Vec<Planned<'a>>, Failure> {
    let mut planned: Vec<Planned<'a>> = Vec::new();
    let mut add = |dest: PathBuf, prepared| match planned.iter_mut().find(|earlier| earlier.dest == dest) {
        Some(earlier) => earlier.prepared = prepared,
        None => planned.push(Planned { dest, prepared }),
    };
    for (dest, content) in [("/etc/resolv.conf", &spec.resolv_conf), ("/etc/hosts", &spec.hosts)] {
        if !content.is_empty() {
            add(PathBuf::from(dest), Prepared::File { content: content.as_bytes(), owner: (0, 0), mode: 0o644 });
        }
    }
    for mount in &spec.mounts {
        let dest = clean(&mount.dest);
        if mount.dest.contains('\0') || dest == Path::new("/") {
            return Err(Failure::new(format!("mount destination {:?} is not a path below the root", mount.dest)));
        }
        let prepared = prepare_one(mount, spec.security, context)?;
        add(dest, prepared);
    }
    Ok(planned)
}

fn prepare_one<'a>(mount: &'a Mount, security: Security, context: &Context) -> Result<Prepared<'a>, Failure> {
    let nodev = if security == Security::Insecure { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_NODEV };
    let access = |readonly: bool| if readonly { nodev | MountAttrFlags::MOUNT_ATTR_RDONLY } else { nodev };
    match &mount.kind {
        MountKind::Bind { source, selector, readonly } => {
            let opened = rustix::fs::openat(CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
                .doing(|| format!("mount {}", mount.dest))?;
            let opened = if is_whole(selector) { opened } else { select(&opened, selector)? };
            let tree = clone_tree(&opened).doing(|| format!("mount {}", mount.dest))?;
            Ok(Prepared::Tree { tree, attributes: access(*readonly) })
        }
        MountKind::Overlay { overlay, selector, readonly } => {
            let made =
                overlay.mount(context.api).map_err(|error| Failure::new(format!("mount {}: {error}", mount.dest)))?;
            let attributes = access(*readonly);
            Ok(if is_whole(selector) {
                Prepared::Tree { tree: made, attributes }
            } else {
                Prepared::Within { mount: made, selector, attributes }
            })
        }
        MountKind::Tmpfs { size, mode } => {
            let (size, mode) = (size.map(|size| size.to_string()), format!("{:04o}", mode & 0o7777));
            let mut options = vec![("mode", mode.as_str())];
            if let Some(size) = &size {
                options.push(("size", size));
            }
            let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
            let tree =
                filesystem("tmpfs", &options, attributes).doing(|| format!("mount a tmpfs on {}", mount.dest))?;
            Ok(Prepared::Tree { tree, attributes: MountAttrFlags::empty() })
        }
        MountKind::File { data, uid, gid, mode } => {
            Ok(Prepared::File { content: data, owner: (*uid, *gid), mode: *mode })
        }
        MountKind::Socket { source, uid, gid, mode } => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let opened =
                rustix::fs::openat(CWD, source, flags, Mode::empty()).doing(|| format!("mount {}", mount.dest))?;
            if file_type(&opened).doing(|| mount.dest.clone())? != FileType::Socket {
                return Err(Failure::new(format!("mount {}: the source is not a socket", mount.dest)));
            }
            // The path is the daemon's own; a mode can't be set on a descriptor that is for resolving alone.
            let (owner, group) = (rustix::fs::Uid::from_raw(*uid), rustix::fs::Gid::from_raw(*gid));
            rustix::fs::chownat(CWD, source, Some(owner), Some(group), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .doing(|| format!("give the socket for {} to user {uid} and group {gid}", mount.dest))?;
            rustix::fs::chmod(source, Mode::from_raw_mode(mode & 0o777))
                .doing(|| format!("set the mode of the socket for {}", mount.dest))?;
            let tree = clone_tree(&opened).doing(|| format!("mount {}", mount.dest))?;
            Ok(Prepared::Tree { tree, attributes: PLAIN })
        }
    }
}

fn is_whole(selector: &str) -> bool {
    clean(selector) == Path::new("/")
}

/// Opens a path that lies inside a mount, whatever links are on the way.
fn select(source: impl AsFd, selector: &str) -> Result<OwnedFd, Failure> {
    open_in_root(source, Path::new(selector), OFlags::PATH).doing(|| format!("mount source {selector:?}"))
}

/// Attaches prepared mounts inside the root, in order.
pub(super) fn attach_all(planned: Vec<Planned<'_>>, root: &mut Root, stage: &mut Stage) -> Result<(), Failure> {
    for Planned { dest, prepared } in planned {
        let (tree, attributes) = match prepared {
            Prepared::Tree { tree, attributes } => (tree, attributes),
            Prepared::Within { mount, selector, attributes } => {
                let place = stage.directory()?;
                attach(&mount, place).doing(|| format!("mount {}", dest.display()))?;
                let selected = select(&mount, selector)?;
                (clone_tree(&selected).doing(|| format!("mount {}", dest.display()))?, attributes)
            }
            Prepared::File { content, owner, mode } => {
                let file = stage.file(content, owner, mode)?;
                let tree = clone_tree(&file).doing(|| format!("mount {}", dest.display()))?;
                (tree, PLAIN | MountAttrFlags::MOUNT_ATTR_RDONLY)
            }
        };
        set(&tree, attributes).doing(|| format!("mount {}", dest.display()))?;
        let kind = if file_type(&tree).doing(|| dest.display().to_string())? == FileType::Directory {
            Kind::Directory
        } else {
            Kind::File
        };
        let target = root.ensure(&dest, kind, Made::Stub)?;
        if root.is_root(&target) {
            return Err(Failure::new(format!("mount destination {} is the root itself", dest.display())));
        }
        if rustix::fs::fstatfs(&target).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC) {
            return Err(Failure::new(format!("mount destination {} is inside /proc", dest.display())));
        }
        attach(&tree, &target).doing(|| format!("mount {}", dest.display()))?;
    }
    Ok(())
}

/// Sets attributes of a tree of mounts.
pub(super) fn set(tree: &OwnedFd, attributes: MountAttrFlags) -> std::io::Result<()> {
    if attributes.is_empty() {
        return Ok(());
    }
    sys::mount_setattr(tree.as_fd(), true, MountAttributes { set: attributes.bits().into(), clear: 0 })
}

/// Copies the mounts at a path of the old root, detached.
pub(super) fn clone_path(path: &str) -> rustix::io::Result<OwnedFd> {
    open_tree(
        CWD,
        path,
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations_are_absolute_and_stay_below_the_root() {
        for (dest, want) in [
            ("x", "/x"),
            ("/a/./b//c", "/a/b/c"),
            ("../..", "/"),
            ("/a/../../b", "/b"),
            ("", "/"),
            ("/run/secrets/k/", "/run/secrets/k"),
        ] {
            assert_eq!(clean(dest), Path::new(want), "{dest}");
        }
    }
}
