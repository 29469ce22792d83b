//! Trying out on this machine what a build needs, in processes that are thrown away.
//!
//! Versions and settings say little about what a kernel, a security module or a container lets through; doing it says all.

use std::fs;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, Mode, OFlags, XattrFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use crate::overlay::{MountApi, Overlay};
use crate::sys::{self, Forked};
use crate::userns::{self, HostRoot, Policy};

/// Trials that take longer than this are given up.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// How a trial went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// It could not be tried: something before it failed.
    #[default]
    Untried,
    /// It works.
    Works,
    /// It doesn't; what the kernel said.
    Fails(String),
}

impl Outcome {
    fn of<T, E: std::fmt::Display>(result: Result<T, E>) -> Outcome {
        match result {
            Ok(_) => Outcome::Works,
            Err(error) => Outcome::Fails(error.to_string()),
        }
    }
}

/// What was found by trying.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Entering the namespaces as the daemon does.
    pub namespaces: Outcome,
    /// Which identity came out, as [`userns::Mode::shown`] says it.
    pub mode: String,
    /// What is missing for a better one.
    pub notices: Vec<String>,
    /// The namespaces of a step, by name.
    pub step_namespaces: Vec<(String, Outcome)>,
    /// A `/proc` of a step's own.
    pub proc: Outcome,
    /// Overlayfs on the directory's file system: written to, a file and a directory replaced.
    pub overlay: Outcome,
    /// Attributes of files (`user.*`) there.
    pub xattrs: Outcome,
    /// Running a program from such an overlay; from the directory itself where there are no overlays.
    pub exec: Outcome,
}

/// Tries out what a build needs. `scratch` is an empty directory on the file system of the daemon's state; it is emptied.
///
/// Call it while the process has one thread.
pub fn try_out(policy: Policy, host: &HostRoot, scratch: &Path) -> io::Result<Trial> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Forked::Child => {
            drop(read);
            let text = serde_json::to_vec(&trial(policy, host, scratch)).unwrap_or_default();
            // A parent that is gone needs no answer.
            fs::File::from(write).write_all(&text).ok();
            sys::exit_now(0)
        }
        Forked::Parent { pid } => {
            drop(write);
            let answer = answer(read);
            if answer.is_err()
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                rustix::process::kill_process(pid, rustix::process::Signal::KILL)?;
            }
            sys::wait_for(pid)?;
            answer
        }
    }
}

fn answer(pipe: OwnedFd) -> io::Result<Trial> {
    let mut text = Vec::new();
    let mut file = fs::File::from(pipe);
    let mut buffer = [0; 4096];
    loop {
        if poll(&mut [PollFd::new(&file, PollFlags::IN)], Some(&PATIENCE))? == 0 {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the trials don't come to an end"));
        }
        match file.read(&mut buffer)? {
            0 => break,
            length => text.extend_from_slice(&buffer[..length]),
        }
    }
    serde_json::from_slice(&text).map_err(|_| io::Error::other("the process that tries things out died"))
}

fn trial(policy: Policy, host: &HostRoot, scratch: &Path) -> Trial {
    let mut trial = Trial::default();
    match userns::enter(policy, host) {
        Ok(identity) => {
            trial.namespaces = Outcome::Works;
            trial.mode = identity.mode.shown().to_owned();
            trial.notices = identity.notices;
        }
        Err(error) => {
            trial.namespaces = Outcome::Fails(error.to_string());
            return trial;
        }
    }
    overlay(scratch, &mut trial);
    // Here the owner of everything in it is root.
    for name in ["lower", "upper", "work"] {
        fs::remove_dir_all(scratch.join(name)).ok();
    }
    for (name, flag) in [
        ("mount", UnshareFlags::NEWNS),
        ("ipc", UnshareFlags::NEWIPC),
        ("uts", UnshareFlags::NEWUTS),
        ("network", UnshareFlags::NEWNET),
        ("cgroup", UnshareFlags::NEWCGROUP),
        ("pid", UnshareFlags::NEWPID),
    ] {
        trial.step_namespaces.push((name.to_owned(), Outcome::of(sys::unshare(flag))));
    }
    if trial.step_namespaces.last().is_some_and(|(_, outcome)| *outcome == Outcome::Works) {
        trial.proc = proc();
    }
    trial
}

/// Mounts `/proc` as the first process of the pid namespace that was just made.
fn proc() -> Outcome {
    let mount = || -> rustix::io::Result<()> {
        let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_create(&context)?;
        fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::MOUNT_ATTR_NODEV)?;
        Ok(())
    };
    match sys::fork() {
        Ok(Forked::Child) => {
            let code = mount().map_or_else(|error| error.raw_os_error(), |()| 0);
            sys::exit_now(code)
        }
        Ok(Forked::Parent { pid }) => match sys::wait_for(pid).map(|ended| ended.exit_code()) {
            Ok(Some(0)) => Outcome::Works,
            Ok(Some(errno)) => Outcome::Fails(io::Error::from_raw_os_error(errno).to_string()),
            Ok(None) => Outcome::Fails("the process that mounts it died".into()),
            Err(error) => Outcome::Fails(error.to_string()),
        },
        Err(error) => Outcome::Fails(error.to_string()),
    }
}

fn overlay(scratch: &Path, trial: &mut Trial) {
    let (lower, upper, work) = (scratch.join("lower"), scratch.join("upper"), scratch.join("work"));
    let prepared = (|| {
        for directory in [&lower, &upper, &work, &lower.join("d")] {
            fs::create_dir(directory)?;
        }
        fs::write(lower.join("gone"), "x")?;
        fs::write(lower.join("d/below"), "x")
    })();
    if let Err(error) = prepared {
        trial.overlay = Outcome::Fails(format!("{}: {error}", scratch.display()));
        return;
    }
    let program = lower.join("true");
    let has_program = fs::copy("/bin/true", &program).is_ok()
        && fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).is_ok();
    trial.xattrs = Outcome::of(rustix::fs::setxattr(&lower, "user.bud.trial", b"1", XattrFlags::empty()));
    let overlay = Overlay { lowers: vec![lower], upper: Some(upper.clone()), work: Some(work), volatile: false };
    let run = |path: PathBuf| {
        let mut command = Command::new(path);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Outcome::of(command.status())
    };
    match overlay.mount(MountApi::from_environment()) {
        Ok(mount) => {
            trial.overlay = Outcome::of(change(&mount, &upper));
            if has_program {
                trial.exec = run(format!("/proc/self/fd/{}/true", mount.as_raw_fd()).into());
            }
        }
        Err(error) => {
            trial.overlay = Outcome::Fails(error.to_string());
            if has_program {
                trial.exec = run(program);
            }
        }
    }
}

/// Changes an overlay as steps do, and looks at what the kernel made of it in the upper directory.
fn change(mount: &OwnedFd, upper: &Path) -> io::Result<()> {
    rustix::fs::unlinkat(mount, "gone", AtFlags::empty())?;
    rustix::fs::unlinkat(mount, "d/below", AtFlags::empty())?;
    rustix::fs::unlinkat(mount, "d", AtFlags::REMOVEDIR)?;
    rustix::fs::mkdirat(mount, "d", Mode::RWXU)?;
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
    fs::File::from(rustix::fs::openat(mount, "new", flags, Mode::RUSR | Mode::WUSR)?).write_all(b"new")?;
    if !fs::symlink_metadata(upper.join("gone"))?.file_type().is_char_device() {
        return Err(io::Error::other("a removed file leaves no whiteout"));
    }
    let mut value = [0; 8];
    match rustix::fs::getxattr(upper.join("d"), "user.overlay.opaque", &mut value[..]) {
        Ok(1) if value[0] == b'y' => {}
        _ => return Err(io::Error::other("a replaced directory is not marked (user.overlay.opaque)")),
    }
    if fs::read(upper.join("new"))? != b"new" {
        return Err(io::Error::other("what was written is not in the upper directory"));
    }
    Ok(())
}
