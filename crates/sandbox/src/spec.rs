//! What a container is made of.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::overlay::Overlay;

/// Describes one container: its root, its mounts and its first process.
///
/// Paths of [`Rootfs`] and of mount sources are the daemon's own and trusted. Everything that is resolved
/// inside the root file system (`dest`, `selector`, `cwd`, `user`, `args`) is hostile.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerSpec {
    /// The root file system.
    pub rootfs: Rootfs,
    /// A directory made by [`crate::overlay::make_base_layer`], on the file system of the layers. It is laid below all layers of an
    /// overlay, so that the mount points that nearly every step needs are there without being made and removed each time. One that isn't there is done without.
    pub base_layer: Option<PathBuf>,
    /// Makes the root file system read-only for the process.
    pub readonly: bool,
    /// Mounts above the root, in order. Of two with one `dest` the later one counts.
    pub mounts: Vec<Mount>,
    /// The program and its arguments. The program is searched in `PATH` of `env` if it has no slash.
    pub args: Vec<String>,
    /// `NAME=value` entries. `PATH` gets a default if missing, `HOME` the one of the user's passwd entry.
    pub env: Vec<String>,
    /// The working directory; created, with the user's ownership, if it is missing. Empty means `/`.
    pub cwd: String,
    /// `name|uid[:group|gid]`, looked up in the root's `/etc/passwd` and `/etc/group`. Empty means root.
    pub user: String,
    /// The host name inside. `None` means `buildkitsandbox`, as in BuildKit.
    pub hostname: Option<String>,
    /// Which network the process sees.
    pub network: Network,
    /// How much the process may do.
    pub security: Security,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// What `/etc/hosts` holds. Empty: the image's own file is left alone.
    pub hosts: String,
    /// What `/etc/resolv.conf` holds. Empty: the image's own file is left alone.
    pub resolv_conf: String,
    /// Bytes of `/dev/shm`. `None` means 64 MiB.
    pub shm_size: Option<u64>,
    /// Binds the outer `/proc` instead of mounting a fresh one (`--oci-worker-no-process-sandbox`).
    pub no_process_sandbox: bool,
    /// Removes, with the mount points that had to be made, those of their parents that had to be made too.
    pub remove_mount_stubs_recursive: bool,
    /// Sets `no_new_privs`, so that set-uid programs gain nothing.
    pub no_new_privileges: bool,
    /// Where owners are noted and found, if only the own ID is mapped. `None`: calls that change owners fail there.
    pub owners: Option<Owners>,
    /// Adjustment of the OOM killer's score, −1000 to 1000; what the kernel refuses is left out.
    pub oom_score_adj: Option<i32>,
}

/// Bytes of a record of [`Owners::noted`].
pub const OWNER_RECORD: usize = 28;

/// Bytes of a record of [`Owners::below`].
pub const OWNER_BELOW: usize = 16;

/// Files with the owners that files should have, but can't have where only the own ID is mapped. All numbers are little endian.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Owners {
    /// Written: for files of the upper directory, in the order in which that was said, inode (8 bytes), seconds (8) and nanoseconds (4)
    /// of its birth, user (4), group (4). An ID of all ones means the one that the file had before.
    pub noted: PathBuf,
    /// Read: for files of the lower directories, the inode's number as the mounted overlay shows it (8 bytes), user (4), group (4).
    pub below: Option<PathBuf>,
}

/// The root file system of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Rootfs {
    /// An overlay of layer directories.
    Overlay(Overlay),
    /// A directory used as it is.
    Dir(PathBuf),
}

impl Default for Rootfs {
    fn default() -> Self {
        Rootfs::Dir(PathBuf::new())
    }
}

/// One mount above the root file system.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Mount {
    /// Where it appears; resolved inside the root file system, created if missing.
    pub dest: String,
    /// What appears there.
    pub kind: MountKind,
}

/// What a [`Mount`] shows.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountKind {
    /// A directory or file of the host.
    Bind {
        /// The trusted path on the host.
        source: PathBuf,
        /// A path resolved inside `source`; empty or `/` means `source` itself.
        selector: String,
        /// Refuses writes.
        readonly: bool,
    },
    /// An overlay of layer directories.
    Overlay {
        /// The layers.
        overlay: Overlay,
        /// A path resolved inside the overlay; empty or `/` means all of it.
        selector: String,
        /// Refuses writes.
        readonly: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its size limit in bytes; `None` means the kernel's default.
        size: Option<u64>,
        /// The mode of its root directory, for instance `0o1777`.
        mode: u32,
    },
    /// One file in memory: a secret.
    File {
        /// Its content.
        data: Vec<u8>,
        /// Its owner inside the container.
        uid: u32,
        /// Its group inside the container.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
    /// A unix socket of the host.
    Socket {
        /// The trusted path on the host. Owner and mode are set on the socket itself.
        source: PathBuf,
        /// Its owner inside the container.
        uid: u32,
        /// Its group inside the container.
        gid: u32,
        /// Its permission bits.
        mode: u32,
    },
}

/// Which network a container sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Network {
    /// The daemon's own network. Abstract unix sockets are out of reach where Landlock can scope them.
    #[default]
    Host,
    /// Loopback alone.
    None,
}

/// How much a container's processes may do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Security {
    /// Default capabilities, seccomp filter, masked and read-only paths.
    #[default]
    Sandbox,
    /// All capabilities the daemon has, no filter, nothing masked. Ask for a grant first.
    Insecure,
}

/// A resource limit, named as in BuildKit's API (`nofile`, `nproc`, …).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Rlimit {
    /// The name without `RLIMIT_`, in any case.
    pub name: String,
    /// The soft limit; −1 as `u64` means none.
    pub soft: u64,
    /// The hard limit; −1 as `u64` means none.
    pub hard: u64,
}
