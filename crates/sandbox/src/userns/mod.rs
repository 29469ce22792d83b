//! The rootless start: a user namespace in which the daemon is root.
//!
//! What `unshare`, `newuidmap` and a root helper do together elsewhere, in the daemon's own first milliseconds: a helper
//! process stays outside, the daemon unshares its user and mount namespaces, the helper has newuidmap and newgidmap write
//! the ID maps (they refuse to be run from inside), and the daemon goes on as root in there. Its own ID is 0 inside,
//! sub-IDs follow from 1.

mod facts;
mod idmap;
mod remedy;
mod survey;

pub use remedy::{Distribution, Lack, WANTED};
pub use survey::{Survey, survey};

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::UnshareFlags;

use crate::sys::{self, Forked};
use facts::{Facts, Tool};
use idmap::Line;

/// Which identity the daemon shall take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// What the machine allows: real root, else sub-IDs, else the own ID alone.
    #[default]
    Auto,
    /// Sub-IDs, or an error.
    Subids,
    /// The own ID alone.
    Single,
    /// No user namespace: real root (or root of a namespace somebody else made).
    Root,
}

/// Which identity the daemon has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The own ID is 0 inside, sub-IDs from 1.
    Subids,
    /// The own ID is 0 inside and nothing else is mapped: owners are emulated.
    Single,
    /// No new user namespace.
    Root,
}

impl Mode {
    /// Says it to a person.
    #[must_use]
    pub fn shown(self) -> &'static str {
        match self {
            Mode::Subids => "rootless, with sub-IDs",
            Mode::Single => "rootless, own ID alone",
            Mode::Root => "root",
        }
    }
}

/// Where facts about the machine are read: `/`, or a directory that a test made.
#[derive(Clone, Debug)]
pub struct HostRoot(pub PathBuf);

impl Default for HostRoot {
    fn default() -> Self {
        HostRoot(PathBuf::from("/"))
    }
}

/// What [`enter`] made of the process.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The identity chosen.
    pub mode: Mode,
    /// One line each: what is missing on this machine and the command that mends it.
    pub notices: Vec<String>,
    /// The user's ID outside.
    pub uid: u32,
    /// The group's ID outside.
    pub gid: u32,
    /// How many user IDs there are inside, 0 included. `None` for [`Mode::Root`].
    pub mapped: Option<u64>,
}

/// Why no namespace could be entered.
#[derive(Debug, thiserror::Error)]
pub enum EnterError {
    /// A system call was refused.
    #[error("{doing}: {source}")]
    Sys {
        /// What was tried.
        doing: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The machine doesn't allow it; the text says what to type.
    #[error("{0}")]
    NotAllowed(String),
    /// newuidmap or newgidmap failed.
    #[error("{0}")]
    Helper(String),
}

fn doing<E: Into<io::Error>>(what: impl Into<String>) -> impl FnOnce(E) -> EnterError {
    move |source| {
        let (mut doing, source) = (what.into(), source.into());
        if doing == "fork" && source.raw_os_error() == Some(libc::EAGAIN) {
            doing.push_str(", with the user's limit on processes reached (`ulimit -u`, TasksMax= of a service)");
        }
        EnterError::Sys { doing, source }
    }
}

/// Enters the user and mount namespaces the daemon lives in. Call it while the process has one thread.
///
/// Mounts made later in the outer namespace come in; none goes out.
pub fn enter(policy: Policy, host: &HostRoot) -> Result<Identity, EnterError> {
    let is_root = rustix::process::geteuid().is_root();
    match policy {
        Policy::Auto if is_root => match enter_as_root() {
            // Root of a container that may not mount; in a user namespace of its own it may.
            Err(EnterError::Sys { source, .. }) if source.raw_os_error() == Some(libc::EPERM) => {
                enter_user_namespace(policy, &host.0)
            }
            result => result,
        },
        Policy::Root if is_root => enter_as_root(),
        Policy::Root => {
            Err(EnterError::NotAllowed("this needs root; without, the daemon makes a user namespace of its own".into()))
        }
        Policy::Auto | Policy::Subids | Policy::Single => enter_user_namespace(policy, &host.0),
    }
}

fn enter_as_root() -> Result<Identity, EnterError> {
    sys::unshare(UnshareFlags::NEWNS).map_err(doing("make a mount namespace"))?;
    make_slave()?;
    let (uid, gid) = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    Ok(Identity { mode: Mode::Root, notices: Vec::new(), uid, gid, mapped: None })
}

fn make_slave() -> Result<(), EnterError> {
    mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .map_err(doing("keep mounts from spreading to the outer namespace"))
}

fn enter_user_namespace(policy: Policy, root: &Path) -> Result<Identity, EnterError> {
    if let Some(what) = facts::forbidden(root) {
        return Err(EnterError::NotAllowed(remedy::forbidden(what, &program())));
    }
    let facts = Facts::read(root);
    let missing = if policy == Policy::Single { Vec::new() } else { remedy::missing_subids(&facts) };
    let (uid, gid) = (facts.user.uid, facts.user.gid);
    let tools = match (&facts.newuidmap, &facts.newgidmap) {
        (Tool::Usable(uids), Tool::Usable(gids)) if policy != Policy::Single && missing.is_empty() => {
            Some((uids, gids))
        }
        _ => None,
    };
    let identity = match tools {
        Some((newuidmap, newgidmap)) => {
            let helper = Helper::start(&[(newuidmap, &facts.uid_map), (newgidmap, &facts.gid_map)])?;
            unshare(root)?;
            match helper.map() {
                Ok(()) => Identity {
                    mode: Mode::Subids,
                    notices: Vec::new(),
                    uid,
                    gid,
                    mapped: Some(idmap::mapped(&facts.uid_map) + 1),
                },
                Err(EnterError::Helper(text)) if policy == Policy::Auto && is_unmapped() => {
                    map_own(uid, gid)?;
                    Identity { mode: Mode::Single, notices: vec![remedy::refused(&text)], uid, gid, mapped: Some(1) }
                }
                Err(error) => return Err(error),
            }
        }
        None if policy == Policy::Subids => return Err(EnterError::NotAllowed(missing.join("\n"))),
        None => {
            unshare(root)?;
            map_own(uid, gid)?;
            Identity { mode: Mode::Single, notices: missing, uid, gid, mapped: Some(1) }
        }
    };
    make_slave()?;
    Ok(identity)
}

/// The path of this program, for an AppArmor profile.
fn program() -> String {
    std::env::current_exe().map_or_else(|_| "/usr/bin/bud".into(), |path| path.display().to_string())
}

fn unshare(root: &Path) -> Result<(), EnterError> {
    match sys::unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) {
        Ok(()) => Ok(()),
        Err(error) => match (error, facts::forbidden(root)) {
            (_, Some(what)) => Err(EnterError::NotAllowed(remedy::forbidden(what, &program()))),
            (rustix::io::Errno::NOSPC | rustix::io::Errno::USERS, _) => {
                Err(EnterError::NotAllowed("the limit of user namespaces is reached. To raise it: sudo sysctl -w user.max_user_namespaces=15000".into()))
            }
            (rustix::io::Errno::PERM, _) => Err(EnterError::NotAllowed(
                "this process may not make a user namespace: it runs in a sandbox (container, seccomp filter, security module) that forbids it. \
                 In a container, allow unshare(2) and mount(2): docker run --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
                    .into(),
            )),
            (error, _) => Err(doing("make a user namespace")(error)),
        },
    }
}

/// Says whether neither map of this process is written yet.
fn is_unmapped() -> bool {
    ["/proc/self/uid_map", "/proc/self/gid_map"]
        .iter()
        .all(|path| std::fs::read_to_string(path).is_ok_and(|map| map.trim().is_empty()))
}

/// Maps the own user and group to 0, which needs no privileges (`user_namespaces(7)`).
fn map_own(uid: u32, gid: u32) -> Result<(), EnterError> {
    let write = |path: &str, text: &str| std::fs::write(path, text).map_err(doing(format!("write {path}")));
    write("/proc/self/uid_map", &format!("0 {uid} 1\n"))?;
    write("/proc/self/setgroups", "deny")?;
    write("/proc/self/gid_map", &format!("0 {gid} 1\n"))
}

/// The process that stays outside and has the maps written.
struct Helper {
    pid: i32,
    go: std::fs::File,
    answer: std::fs::File,
}

impl Helper {
    /// Forks the helper. It waits for [`Helper::map`].
    fn start(maps: &[(&PathBuf, &Vec<Line>); 2]) -> Result<Helper, EnterError> {
        let pipe = || -> Result<(OwnedFd, OwnedFd), EnterError> {
            rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).map_err(doing("make a pipe"))
        };
        let (go_read, go_write) = pipe()?;
        let (answer_read, answer_write) = pipe()?;
        let target = std::process::id();
        match sys::fork().map_err(doing("fork"))? {
            Forked::Parent { pid } => Ok(Helper { pid, go: go_write.into(), answer: answer_read.into() }),
            Forked::Child => {
                drop((go_write, answer_read));
                let mut byte = [0];
                // End of file: the parent has given up.
                if std::fs::File::from(go_read).read(&mut byte).unwrap_or(0) == 1 {
                    let text = match write_maps(target, maps) {
                        Ok(()) => "ok".to_owned(),
                        Err(text) => text,
                    };
                    // A parent that is gone needs no answer.
                    std::fs::File::from(answer_write).write_all(text.as_bytes()).ok();
                }
                sys::exit_now(0)
            }
        }
    }

    /// Lets the helper write the maps of this process, now that it is in its namespace.
    fn map(mut self) -> Result<(), EnterError> {
        self.go.write_all(b"!").map_err(doing("wake the helper"))?;
        let mut text = String::new();
        self.answer.read_to_string(&mut text).map_err(doing("read the helper's answer"))?;
        sys::wait_for(self.pid).map_err(doing("wait for the helper"))?;
        match text.as_str() {
            "ok" => Ok(()),
            "" => Err(EnterError::Helper("the process that runs newuidmap died".into())),
            _ => Err(EnterError::Helper(text)),
        }
    }
}

/// Runs newuidmap and newgidmap at the same time.
fn write_maps(target: u32, maps: &[(&PathBuf, &Vec<Line>); 2]) -> Result<(), String> {
    let start = |tool: &PathBuf, lines: &[Line]| {
        let mut command = Command::new(tool);
        command.arg(target.to_string());
        for line in lines {
            command.args([line.inside, line.range.start, line.range.count].map(|number| number.to_string()));
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).env_clear();
        command.spawn().map_err(|error| format!("can't run {}: {error}", tool.display()))
    };
    let children = [start(maps[0].0, maps[0].1), start(maps[1].0, maps[1].1)];
    let mut failure = None;
    for (child, (tool, _)) in children.into_iter().zip(maps) {
        let result = child.and_then(|child| {
            let output = child.wait_with_output().map_err(|error| format!("{}: {error}", tool.display()))?;
            let text = String::from_utf8_lossy(&output.stderr);
            if output.status.success() {
                Ok(())
            } else {
                Err(format!("{} failed ({}): {}", tool.display(), output.status, text.trim()))
            }
        });
        failure = failure.or(result.err());
    }
    failure.map_or(Ok(()), Err)
}
