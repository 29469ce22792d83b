//! Overlay mounts of layer directories.
//!
//! A mount is made detached: it is in no mount namespace's tree, its descriptor is its root directory, and it goes when
//! the descriptor is closed. Nothing has to be unmounted or cleaned up after a kill.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, open_tree, unmount,
};
use serde::{Deserialize, Serialize};

use crate::sys::{self, MountAttributes};

/// The most lower layers that the kernel stacks (`OVL_MAX_STACK`).
pub const MAX_LOWERS: usize = 500;

/// Strings for `fsconfig(2)` end at 255 bytes; a longer path goes in as a name under `/proc/self/fd`.
const MAX_OPTION: usize = 255;

/// What `mount(2)` reads of an option string: one page, of the smallest size there is.
const MAX_STRING: usize = 4096;

/// Environment variable that forces an API: `old` means [`MountApi::Old`].
pub const MOUNT_API_VARIABLE: &str = "BUD_MOUNT_API";

/// An overlay of directories.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overlay {
    /// Lower layers, the TOP one first.
    pub lowers: Vec<PathBuf>,
    /// Where changes go; `None` makes a read-only view.
    pub upper: Option<PathBuf>,
    /// The kernel's work directory, on the file system of `upper`.
    pub work: Option<PathBuf>,
    /// Skips every sync: for uppers that are thrown away after a crash. The kernel mounts such an upper and work directory
    /// once and refuses them from then on.
    pub volatile: bool,
}

/// Which system calls make overlay mounts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountApi {
    /// `fsopen` and `lowerdir+`, else the option string.
    #[default]
    Auto,
    /// The option string of `mount(2)` alone.
    Old,
}

impl MountApi {
    /// Returns what `BUD_MOUNT_API` asks for.
    pub fn from_environment() -> MountApi {
        match std::env::var_os(MOUNT_API_VARIABLE) {
            Some(value) if value == "old" => MountApi::Old,
            _ => MountApi::Auto,
        }
    }
}

/// Why an overlay could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum OverlayError {
    /// The kernel refused.
    #[error("mount overlay: {doing}: {source}")]
    Sys {
        /// The step that failed.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// Too many layers for this kernel.
    #[error("an overlay of {layers} layers is more than the kernel mounts ({limit}); flatten the chain")]
    TooManyLayers {
        /// How many there are.
        layers: usize,
        /// How many can be mounted.
        limit: usize,
    },
    /// No lower layer, or an upper without a work directory.
    #[error("mount overlay: {0}")]
    Invalid(&'static str),
}

/// Makes a directory with the mount points that nearly every container needs, if it isn't there: see
/// [`crate::ContainerSpec::base_layer`]. Killed on the way, it leaves nothing that would be taken for one.
pub fn make_base_layer(path: &Path) -> io::Result<()> {
    if path.exists() {
        return Ok(());
    }
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let draft = PathBuf::from(draft);
    if draft.exists() {
        std::fs::remove_dir_all(&draft)?;
    }
    let etc = draft.join("etc");
    std::fs::create_dir_all(&etc)?;
    for file in ["hosts", "resolv.conf"] {
        std::fs::write(etc.join(file), "")?;
        std::fs::set_permissions(etc.join(file), std::fs::Permissions::from_mode(0o644))?;
    }
    for directory in [&etc, &draft] {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
    }
    match std::fs::rename(&draft, path) {
        // Somebody else was faster.
        Err(_) if path.exists() => std::fs::remove_dir_all(&draft),
        result => result,
    }
}

/// Adds what was being done to an error of the kernel.
fn doing<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> OverlayError {
    move |source| OverlayError::Sys { doing: what.into(), source: source.into() }
}

impl Overlay {
    /// Mounts the overlay detached; the descriptor is its root directory and usable as a dirfd.
    ///
    /// Without an upper it is read-only; one lower layer alone is then bound as it is. Device files don't work in it
    /// (`nodev`). Attributes that overlayfs keeps itself are `user.overlay.*` (`userxattr`), rootless or not.
    pub fn mount(&self, api: MountApi) -> Result<OwnedFd, OverlayError> {
        if self.lowers.is_empty() {
            return Err(OverlayError::Invalid("no lower layer"));
        }
        if self.lowers.len() > MAX_LOWERS {
            return Err(OverlayError::TooManyLayers { layers: self.lowers.len(), limit: MAX_LOWERS });
        }
        if self.upper.is_some() != self.work.is_some() {
            return Err(OverlayError::Invalid("upper and work directory go together"));
        }
        match (&self.upper, self.lowers.as_slice()) {
            (None, [only]) => bind_readonly(only),
            _ if api == MountApi::Old => self.mount_with_string(),
            _ => match self.mount_with_context()? {
                Some(mount) => Ok(mount),
                None => self.mount_with_string(),
            },
        }
    }

    fn attributes(&self) -> MountAttrFlags {
        let readonly = if self.upper.is_none() { MountAttrFlags::MOUNT_ATTR_RDONLY } else { MountAttrFlags::empty() };
        MountAttrFlags::MOUNT_ATTR_NODEV | readonly
    }

    /// The new mount API. `None` if the kernel doesn't know it, or doesn't know `lowerdir+`.
    fn mount_with_context(&self) -> Result<Option<OwnedFd>, OverlayError> {
        let context = match fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC) {
            Ok(context) => context,
            Err(rustix::io::Errno::NOSYS) => return Ok(None),
            Err(error) => return Err(doing("fsopen")(error)),
        };
        // Descriptors behind names under /proc/self/fd, open until the mount is made.
        let mut held = Vec::new();
        for (index, lower) in self.lowers.iter().enumerate() {
            let value = option_value(lower, &mut held)?;
            match fsconfig_set_string(&context, "lowerdir+", value.as_os_str()) {
                Ok(()) => {}
                Err(rustix::io::Errno::INVAL) if index == 0 => return Ok(None),
                Err(error) => return Err(refused(&context, format!("lower layer {}", lower.display()), error)),
            }
        }
        for (key, path) in [("upperdir", &self.upper), ("workdir", &self.work)] {
            if let Some(path) = path {
                let value = option_value(path, &mut held)?;
                fsconfig_set_string(&context, key, value.as_os_str())
                    .map_err(|e| refused(&context, format!("{key} {}", path.display()), e))?;
            }
        }
        fsconfig_set_string(&context, "source", "overlay").map_err(|e| refused(&context, "source".into(), e))?;
        fsconfig_set_flag(&context, "userxattr").map_err(|e| refused(&context, "userxattr".into(), e))?;
        fsconfig_set_string(&context, "index", "off").map_err(|e| refused(&context, "index=off".into(), e))?;
        if self.volatile && self.upper.is_some() {
            fsconfig_set_flag(&context, "volatile").map_err(|e| refused(&context, "volatile".into(), e))?;
        }
        fsconfig_create(&context).map_err(|e| refused(&context, format!("{} layers", self.lowers.len()), e))?;
        let mount = fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, self.attributes()).map_err(doing("fsmount"))?;
        Ok(Some(mount))
    }

    /// One option string and `mount(2)`, as kernels before 6.7 want it.
    ///
    /// The string has to fit a page. A long one is told with short links in a scratch directory, relative to it.
    fn mount_with_string(&self) -> Result<OwnedFd, OverlayError> {
        let scratch = Scratch::make()?;
        let options = self.options(|_, path| Ok(path.as_os_str().as_bytes().to_vec()))?;
        if options.len() < MAX_STRING {
            self.mount_at(&scratch.mountpoint(), &options, &scratch.mountpoint())
        } else {
            let options = self.options(|index, path| {
                let name = format!("{index}");
                std::os::unix::fs::symlink(path, scratch.0.join(&name)).map_err(doing("link to a layer"))?;
                Ok(name.into_bytes())
            })?;
            if options.len() >= MAX_STRING {
                return Err(OverlayError::TooManyLayers { layers: self.lowers.len(), limit: MAX_STRING / 5 });
            }
            // The working directory is the process's; a thread can have one of its own.
            std::thread::scope(|scope| {
                let work = || {
                    sys::unshare(rustix::thread::UnshareFlags::FS).map_err(doing("unshare the working directory"))?;
                    rustix::process::chdir(&scratch.0).map_err(doing("enter the scratch directory"))?;
                    self.mount_at(Path::new("m"), &options, Path::new("m"))
                };
                let thread = std::thread::Builder::new().spawn_scoped(scope, work).map_err(doing("start a thread"))?;
                thread.join().unwrap_or(Err(OverlayError::Invalid("the mounting thread panicked")))
            })
        }
    }

    /// The option string, with each directory named by `name(index, path)`.
    fn options(
        &self,
        mut name: impl FnMut(usize, &Path) -> Result<Vec<u8>, OverlayError>,
    ) -> Result<Vec<u8>, OverlayError> {
        let mut options = b"userxattr,index=off".to_vec();
        if self.volatile && self.upper.is_some() {
            options.extend(b",volatile");
        }
        let mut next = 0;
        let mut escaped = |path: &Path| -> Result<Vec<u8>, OverlayError> {
            let name = name(next, path)?;
            next += 1;
            Ok(name
                .iter()
                .flat_map(|b| if matches!(b, b'\\' | b':' | b',') { vec![b'\\', *b] } else { vec![*b] })
                .collect())
        };
        for (key, path) in [(",upperdir=", &self.upper), (",workdir=", &self.work)] {
            if let Some(path) = path {
                options.extend(key.as_bytes());
                options.extend(escaped(path)?);
            }
        }
        options.extend(b",lowerdir=");
        for (index, lower) in self.lowers.iter().enumerate() {
            if index > 0 {
                options.push(b':');
            }
            options.extend(escaped(lower)?);
        }
        Ok(options)
    }

    /// Mounts on a directory and takes the mount off again, into a descriptor.
    fn mount_at(&self, target: &Path, options: &[u8], shown: &Path) -> Result<OwnedFd, OverlayError> {
        let options = std::ffi::CString::new(options).map_err(|_| OverlayError::Invalid("a layer's path has a NUL"))?;
        let readonly = if self.upper.is_none() { MountFlags::RDONLY } else { MountFlags::empty() };
        mount("overlay", target, "overlay", MountFlags::NODEV | readonly, options.as_c_str())
            .map_err(doing(format!("{} layers", self.lowers.len())))?;
        let tree = open_tree(CWD, target, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC);
        let unmounted = unmount(target, UnmountFlags::DETACH);
        let tree = tree.map_err(doing(format!("take the mount off {}", shown.display())))?;
        unmounted.map_err(doing(format!("unmount {}", shown.display())))?;
        Ok(tree)
    }
}

/// A directory for mounting by path: `m` to mount on, beside it links to layers. Removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make() -> Result<Scratch, OverlayError> {
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic).tv_nsec;
        let path = std::env::temp_dir().join(format!(".bud-overlay-{}-{number}-{time}", std::process::id()));
        rustix::fs::mkdir(&path, Mode::RWXU).map_err(doing(format!("make {}", path.display())))?;
        let scratch = Scratch(path);
        rustix::fs::mkdir(scratch.mountpoint(), Mode::RWXU).map_err(doing("make a mount point"))?;
        Ok(scratch)
    }

    fn mountpoint(&self) -> PathBuf {
        self.0.join("m")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Entry by entry, never down: a mount that could not be taken off must not be emptied.
        if let Ok(entries) = std::fs::read_dir(&self.0) {
            for entry in entries.flatten() {
                if std::fs::remove_file(entry.path()).is_err() {
                    // A directory: the mount point, below.
                    continue;
                }
            }
        }
        if std::fs::remove_dir(self.mountpoint()).is_ok() {
            // Leaves an empty directory in the temporary directory at worst.
            std::fs::remove_dir(&self.0).ok();
        }
    }
}

/// Returns what to say to `fsconfig(2)` for a directory: its path, or a name under `/proc/self/fd` if that is long or has
/// characters that overlayfs reads as its own.
fn option_value(path: &Path, held: &mut Vec<OwnedFd>) -> Result<OsString, OverlayError> {
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() <= MAX_OPTION && !bytes.iter().any(|b| matches!(b, b'\\' | b':' | b',')) {
        return Ok(path.as_os_str().to_owned());
    }
    let directory = rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(doing(format!("open {}", path.display())))?;
    let name = format!("/proc/self/fd/{}", directory.as_raw_fd());
    held.push(directory);
    Ok(name.into())
}

/// An error with what the kernel wrote into the context's log.
fn refused(context: &OwnedFd, what: String, error: rustix::io::Errno) -> OverlayError {
    let mut log = [0; 1024];
    let text = match rustix::io::read(context, &mut log) {
        Ok(length) => {
            let message = OsString::from_vec(log[..length].to_vec());
            format!("{what} ({})", message.to_string_lossy().trim_start_matches("e ").trim())
        }
        Err(_) => what,
    };
    OverlayError::Sys { doing: text, source: error.into() }
}

/// Binds a directory detached and read-only.
fn bind_readonly(path: &Path) -> Result<OwnedFd, OverlayError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = open_tree(CWD, path, flags).map_err(doing(format!("bind {}", path.display())))?;
    let attributes = MountAttributes {
        set: u64::from((MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV).bits()),
        clear: 0,
    };
    sys::mount_setattr(tree.as_fd(), true, attributes).map_err(doing(format!("make {} read-only", path.display())))?;
    Ok(tree)
}
