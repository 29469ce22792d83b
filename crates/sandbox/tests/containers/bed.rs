//! What a case stands on: an identity, a fork server, root file systems.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bud_sandbox::overlay::Overlay;
use bud_sandbox::server::{Container, Event, ExitStatus, ForkServer};
use bud_sandbox::userns::{HostRoot, Mode, Policy, enter};
use bud_sandbox::{ContainerSpec, Mount, MountKind, Rootfs};

/// The identity a case runs with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum As {
    Root,
    Subids,
    Single,
}

impl As {
    pub fn name(self) -> &'static str {
        match self {
            As::Root => "root",
            As::Subids => "subids",
            As::Single => "single",
        }
    }
}

pub struct Bed {
    pub identity: As,
    pub server: Option<ForkServer>,
    /// For files of the case; removed at the end.
    pub directory: PathBuf,
    next: u32,
    shared: Option<PathBuf>,
}

/// What came of a container.
#[derive(Debug)]
pub struct Outcome {
    pub output: String,
    pub result: Result<ExitStatus, (String, i32)>,
}

impl Outcome {
    /// The output of a program that must have succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        match self.result {
            Ok(ExitStatus { code: 0, .. }) => self.output,
            other => panic!("{other:?}, output:\n{}", self.output),
        }
    }

    /// The reason why no program could be started.
    #[track_caller]
    pub fn refused(self) -> String {
        match self.result {
            Err((error, _)) => error,
            Ok(status) => panic!("not refused: {status:?}, output:\n{}", self.output),
        }
    }
}

/// What the cases' scripts call.
const APPLETS: &str = "awk cat chmod chown chroot cp cut date df dmesg echo env false find grep head hostname id ip ipcmk kill ln \
    ls mkdir mknod mount mv ping ps pwd readlink rm rmdir sed seq sh sleep sort stat su swapoff tail tar test touch tr true \
    umount uname unshare wc setsid nc sync tty";

impl Bed {
    pub fn enter(identity: As) -> Bed {
        let policy = if identity == As::Single { Policy::Single } else { Policy::Auto };
        let entered = enter(policy, &HostRoot::default()).unwrap_or_else(|error| panic!("{error}"));
        let expected = [Mode::Root, Mode::Subids, Mode::Single][identity as usize];
        assert_eq!(entered.mode, expected, "{:?}", entered.notices);
        let directory = std::env::temp_dir().join(format!("case-{}", std::process::id()));
        std::fs::create_dir(&directory).unwrap();
        let server = Some(ForkServer::start().unwrap());
        Bed { identity, server, directory, next: 0, shared: None }
    }

    /// A new path in the case's directory.
    pub fn path(&mut self, name: &str) -> PathBuf {
        self.next += 1;
        self.directory.join(format!("{}-{name}", self.next))
    }

    pub fn new_directory(&mut self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir(&path).unwrap();
        path
    }

    /// A root file system with busybox and two users.
    pub fn busybox(&mut self) -> PathBuf {
        let root = self.new_directory("busybox");
        for directory in ["bin", "etc", "tmp", "root"] {
            std::fs::create_dir(root.join(directory)).unwrap();
        }
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].iter().find(|path| Path::new(path).exists());
        let busybox = busybox.expect("busybox is missing: apt-get install busybox-static");
        std::fs::copy(busybox, root.join("bin/busybox")).unwrap();
        let list = Command::new(busybox).arg("--list").output().unwrap();
        let known = |name: &&str| APPLETS.split_whitespace().any(|applet| applet == *name);
        for applet in String::from_utf8(list.stdout).unwrap().lines().filter(known) {
            std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
        }
        std::fs::write(root.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nanna:x:7:8::/home/anna:/bin/sh\n").unwrap();
        std::fs::write(root.join("etc/group"), "root:x:0:\nanna:x:8:\nfive:x:5:anna\nsix:x:6:x,anna\n").unwrap();
        root
    }

    /// A container over [`Bed::busybox`] that runs a shell script.
    pub fn shell(&mut self, script: &str) -> ContainerSpec {
        // Nothing writes to a lower directory, so one does for all.
        let lower = match &self.shared {
            Some(root) => root.clone(),
            None => {
                let root = self.busybox();
                self.shared.insert(root).clone()
            }
        };
        self.shell_over(vec![lower], script)
    }

    /// A container over layers, the top one first, with a new upper directory.
    pub fn shell_over(&mut self, lowers: Vec<PathBuf>, script: &str) -> ContainerSpec {
        let (upper, work) = (self.new_directory("upper"), self.new_directory("work"));
        ContainerSpec {
            rootfs: Rootfs::Overlay(Overlay { lowers, upper: Some(upper), work: Some(work), volatile: true }),
            args: ["/bin/sh", "-c", script].map(str::to_owned).to_vec(),
            hosts: "127.0.0.1 localhost\n".into(),
            resolv_conf: "nameserver 192.0.2.1\n".into(),
            remove_mount_stubs_recursive: true,
            ..ContainerSpec::default()
        }
    }

    /// A container in which this program runs as the probe of [`crate::probe`], on the machine's own libraries.
    pub fn probe(&mut self, what: &str) -> ContainerSpec {
        let root = self.busybox();
        let mut mounts = Vec::new();
        for name in ["lib", "lib64", "lib32"] {
            let path = Path::new("/").join(name);
            match std::fs::read_link(&path) {
                Ok(target) => std::os::unix::fs::symlink(target, root.join(name)).unwrap(),
                Err(_) if path.is_dir() => mounts.push(bind(&path, &format!("/{name}"), true)),
                Err(_) => {}
            }
        }
        mounts.push(bind(Path::new("/usr"), "/usr", true));
        mounts.push(bind(&std::env::current_exe().unwrap(), "/probe", true));
        let mut spec = self.shell_over(vec![root], "");
        spec.mounts = mounts;
        spec.args = vec!["/probe".into()];
        spec.env = vec![format!("{}={what}", crate::probe::VARIABLE)];
        spec
    }

    /// Runs a container that reads a text.
    pub fn run_with_input(&self, spec: &ContainerSpec, input: &str) -> Outcome {
        use std::io::Write;
        renew(spec);
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(input.as_bytes()).unwrap();
        drop(write);
        let (mut output, end) = std::io::pipe().unwrap();
        let errors = OwnedFd::from(end.try_clone().unwrap());
        let container = self.server.as_ref().unwrap().run(spec, Some(read.into()), end.into(), errors).unwrap();
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        Outcome { output: text, result: finish(container) }
    }

    pub fn start(&self, spec: &ContainerSpec) -> (Container, std::io::PipeReader) {
        renew(spec);
        let (output, write) = std::io::pipe().unwrap();
        let errors = OwnedFd::from(write.try_clone().unwrap());
        (self.server.as_ref().unwrap().run(spec, None, write.into(), errors).unwrap(), output)
    }

    pub fn run(&self, spec: &ContainerSpec) -> Outcome {
        let (container, mut output) = self.start(spec);
        let mut bytes = Vec::new();
        output.read_to_end(&mut bytes).unwrap();
        Outcome { output: String::from_utf8_lossy(&bytes).into_owned(), result: finish(container) }
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        self.server = None;
        std::fs::remove_dir_all(&self.directory).ok();
    }
}

/// Makes the work directory new: the kernel refuses to mount a volatile overlay's directories a second time.
fn renew(spec: &ContainerSpec) {
    if let Rootfs::Overlay(Overlay { work: Some(work), .. }) = &spec.rootfs {
        std::fs::remove_dir_all(work).unwrap();
        std::fs::create_dir(work).unwrap();
    }
}

/// Waits for the end of a container.
pub fn finish(mut container: Container) -> Result<ExitStatus, (String, i32)> {
    loop {
        match container.next_event().unwrap() {
            Some(Event::Started { pid }) => assert!(Path::new(&format!("/proc/{pid}")).exists() || pid > 1),
            Some(Event::Exited(status)) => return Ok(status),
            Some(Event::Failed { error, code }) => return Err((error, code)),
            None => panic!("the fork server has died"),
        }
    }
}

pub fn bind(source: &Path, dest: &str, readonly: bool) -> Mount {
    Mount { dest: dest.into(), kind: MountKind::Bind { source: source.into(), selector: String::new(), readonly } }
}

/// Where changes of a container's root go.
pub fn upper(spec: &ContainerSpec) -> &Path {
    match &spec.rootfs {
        Rootfs::Overlay(overlay) => overlay.upper.as_deref().unwrap(),
        Rootfs::Dir(path) => path,
    }
}

/// Every path below a directory, sorted.
pub fn tree(directory: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(next) = pending.pop() {
        for entry in std::fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                pending.push(entry.path());
            }
            found.push(entry.path().strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    found
}

/// Waits until something holds, for ten seconds at most.
#[track_caller]
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < Duration::from_secs(10), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
