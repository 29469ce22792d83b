//! An account of its own for each test: a user, a home, a runtime directory, contexts, and the daemon that comes up in it.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A Unix user that `tests/run` made.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub name: &'static str,
    pub uid: u32,
    pub gid: u32,
}

impl User {
    /// A user with 65,536 sub-IDs.
    pub fn sub() -> Self {
        Self::named("bud-sub")
    }

    /// A user without sub-IDs.
    pub fn plain() -> Self {
        Self::named("bud-plain")
    }

    /// A user with 1,000 sub-IDs, which are too few.
    pub fn few() -> Self {
        Self::named("bud-few")
    }

    /// A user with 65,536 sub-IDs in three pieces, one of them given to the number.
    pub fn ranges() -> Self {
        Self::named("bud-ranges")
    }

    /// A user with sub-IDs that one test has for itself: it looks at all that is there of the user.
    pub fn alone() -> Self {
        Self::named("bud-alone")
    }

    /// The first sub-ID of [`User::alone`], and how many there are.
    pub fn alone_sub_ids() -> (u32, u32) {
        let text = std::fs::read_to_string("/etc/subuid").expect("/etc/subuid is readable");
        let line = text.lines().find_map(|line| line.strip_prefix("bud-alone:")).expect("tests/run gives sub-IDs");
        let (first, count) = line.split_once(':').expect("a line has two numbers");
        (first.parse().expect("a number"), count.parse().expect("a number"))
    }

    fn named(name: &'static str) -> Self {
        let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd is readable");
        let line = passwd.lines().find(|l| l.split(':').next() == Some(name));
        let line = line.unwrap_or_else(|| panic!("no user {name}: run the tests through tests/run"));
        let field = |n| line.split(':').nth(n).and_then(|v: &str| v.parse().ok()).expect("a passwd line has IDs");
        Self { name, uid: field(2), gid: field(3) }
    }
}

/// Copies the programs to where every user may run them, once.
pub fn bud() -> &'static Path {
    static BUD: OnceLock<PathBuf> = OnceLock::new();
    BUD.get_or_init(|| {
        let dir = scratch("bin");
        open_to_all(&dir);
        let bud = dir.join("bud");
        std::fs::copy(env!("CARGO_BIN_EXE_bud"), &bud).expect("the binary can be copied");
        std::fs::set_permissions(&bud, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        bud
    })
}

fn open_to_all(dir: &Path) {
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755)).expect("chmod");
}

/// Makes a fresh directory below this run's scratch directory.
pub fn scratch(name: &str) -> PathBuf {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let root = ROOT.get_or_init(|| {
        assert!(rustix_is_root(), "these tests need root: run them through tests/run");
        let root = std::env::temp_dir().join(format!("bud-e2e-{}", std::process::id()));
        std::fs::create_dir_all(&root).expect("a scratch directory can be made");
        open_to_all(&root);
        root
    });
    let dir = root.join(format!("{}-{name}", NEXT.fetch_add(1, Ordering::Relaxed)));
    std::fs::create_dir_all(&dir).expect("a scratch directory can be made");
    dir
}

fn rustix_is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// What a command left behind.
#[derive(Debug)]
pub struct Ran {
    pub command: String,
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Ran {
    #[track_caller]
    pub fn ok(self) -> Self {
        assert_eq!(self.code, Some(0), "{self}");
        self
    }

    #[track_caller]
    pub fn fails_with(self, texts: &[&str]) -> Self {
        assert!(self.code.is_some_and(|c| c != 0 && c != 101), "expected a failure that is no panic: {self}");
        self.says(texts)
    }

    #[track_caller]
    pub fn says(self, texts: &[&str]) -> Self {
        for text in texts {
            assert!(self.stdout.contains(text) || self.stderr.contains(text), "expected {text:?} in: {self}");
        }
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { command, code, stdout, stderr, took } = self;
        write!(f, "$ {command}\nexit code {code:?} after {took:?}\n-- stdout\n{stdout}\n-- stderr\n{stderr}")
    }
}

/// One user's fresh account. Dropping it stops its daemon and removes all of it.
pub struct Home {
    pub user: User,
    pub dir: PathBuf,
}

impl Home {
    pub fn new(user: User) -> Self {
        let dir = scratch(user.name);
        let home = Self { user, dir };
        for sub in ["home", "run"] {
            home.own_dir(&home.dir.join(sub), 0o700);
        }
        chown(&home.dir, Some(user.uid), Some(user.gid)).expect("chown");
        home.write_config(&crate::registry::buildkitd_toml());
        home
    }

    pub fn sub() -> Self {
        Self::new(User::sub())
    }

    fn own_dir(&self, dir: &Path, mode: u32) {
        std::fs::create_dir_all(dir).expect("mkdir");
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).expect("chmod");
        chown(dir, Some(self.user.uid), Some(self.user.gid)).expect("chown");
    }

    /// Writes `~/.config/buildkit/buildkitd.toml`.
    pub fn write_config(&self, toml: &str) {
        let dir = self.dir.join("home/.config/buildkit");
        for d in [self.dir.join("home/.config"), dir.clone()] {
            self.own_dir(&d, 0o755);
        }
        self.write(&dir.join("buildkitd.toml"), toml);
    }

    /// Writes a file that belongs to the user, with the directories above it.
    pub fn write(&self, path: &Path, text: impl AsRef<[u8]>) {
        let parent = path.parent().expect("a file has a parent");
        if !parent.exists() {
            let mut missing: Vec<_> = parent.ancestors().take_while(|p| !p.exists()).collect();
            missing.reverse();
            for dir in missing {
                self.own_dir(dir, 0o755);
            }
        }
        std::fs::write(path, text).expect("write");
        chown(path, Some(self.user.uid), Some(self.user.gid)).expect("chown");
    }

    /// Makes a context of these files (path, content) and returns its directory.
    pub fn context(&self, files: &[(&str, &str)]) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = self.dir.join(format!("ctx{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        self.own_dir(&dir, 0o755);
        for (path, text) in files {
            self.write(&dir.join(path), text);
        }
        dir
    }

    /// Makes a context that is a Dockerfile alone.
    pub fn dockerfile(&self, text: &str) -> PathBuf {
        self.context(&[("Dockerfile", text)])
    }

    pub fn runtime_dir(&self) -> PathBuf {
        self.dir.join("run")
    }

    pub fn state_root(&self) -> PathBuf {
        self.dir.join("home/.local/share/bud")
    }

    pub fn socket(&self) -> PathBuf {
        self.runtime_dir().join("buildkit/buildkitd.sock")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join("home").join(name)
    }

    /// Returns a command that runs as the user with a small, clean environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.dir.join("home"))
            .env("USER", self.user.name)
            .env("LANG", "C.UTF-8")
            .env("XDG_RUNTIME_DIR", self.runtime_dir())
            .env("BUD_LOAD", "never")
            .env("BUD_DOCTOR_RESOLVER", "127.0.0.1")
            .current_dir(self.dir.join("home"))
            .uid(self.user.uid)
            .gid(self.user.gid)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    pub fn bud_command<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.command(bud());
        command.args(args);
        command
    }

    /// Runs `bud` with these arguments.
    pub fn bud<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Ran {
        run(self.bud_command(args))
    }

    /// Runs `bud --progress plain ARGS… CONTEXT`.
    pub fn build(&self, args: &[&str], context: &Path) -> Ran {
        let mut command = self.bud_command(["--progress", "plain"]);
        command.args(args).arg(context);
        run(command)
    }

    /// Builds into a fresh directory with `-o` and returns it.
    #[track_caller]
    pub fn tree(&self, args: &[&str], context: &Path) -> PathBuf {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let out = self.path(&format!("out{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let dest = out.to_str().expect("paths here are text").to_owned();
        let mut all = vec!["-o", dest.as_str()];
        all.extend(args);
        self.build(&all, context).ok();
        out
    }

    /// Builds an OCI archive and returns what is in it.
    #[track_caller]
    pub fn image(&self, args: &[&str], context: &Path) -> Image {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let tar = self.path(&format!("image{}.tar", NEXT.fetch_add(1, Ordering::Relaxed)));
        let output = format!("type=oci,dest={}", tar.display());
        let mut all = vec!["-o", output.as_str()];
        all.extend(args);
        self.build(&all, context).ok();
        Image::read(&tar)
    }

    /// The daemon's process, if one runs: what the lock file in the state root says.
    pub fn daemon_pid(&self) -> Option<u32> {
        let text = std::fs::read_to_string(self.state_root().join("daemon.lock")).ok()?;
        let lock: serde_json::Value = serde_json::from_str(&text).ok()?;
        let pid = u32::try_from(lock["pid"].as_u64()?).ok()?;
        let exe = std::fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        exe.starts_with(std::env::temp_dir()).then_some(pid)
    }

    /// Kills the daemon with SIGKILL and waits until it is gone.
    pub fn kill_daemon(&self) {
        if let Some(pid) = self.daemon_pid() {
            kill(pid, rustix::process::Signal::KILL);
            wait_until("the daemon is gone", || !Path::new(&format!("/proc/{pid}")).exists());
        }
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon_pid() {
            kill(pid, rustix::process::Signal::TERM);
            let deadline = Instant::now() + Duration::from_secs(15);
            while Path::new(&format!("/proc/{pid}")).exists() {
                if Instant::now() > deadline {
                    kill(pid, rustix::process::Signal::KILL);
                    if !std::thread::panicking() {
                        panic!("the daemon did not stop within 15 s of SIGTERM");
                    }
                    break;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        if std::thread::panicking() && std::env::var_os("BUD_E2E_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

fn kill(pid: u32, signal: rustix::process::Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) {
        // A process that ended in the meantime is what we want.
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Runs a command to its end, within five minutes.
pub fn run(mut command: Command) -> Ran {
    let text = format!("{command:?}");
    let start = Instant::now();
    let child = command.spawn().unwrap_or_else(|e| panic!("{text}: {e}"));
    let pid = child.id();
    let (done, finished) = std::sync::mpsc::channel::<()>();
    let watch = std::thread::spawn(move || {
        if finished.recv_timeout(Duration::from_secs(300)) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            kill(pid, rustix::process::Signal::KILL);
        }
    });
    let Output { status, stdout, stderr } = child.wait_with_output().expect("a child's output can be read");
    drop(done);
    watch.join().expect("the watch ends");
    Ran {
        command: text,
        code: status.code(),
        stdout: String::from_utf8_lossy(&stdout).into_owned(),
        stderr: String::from_utf8_lossy(&stderr).into_owned(),
        took: start.elapsed(),
    }
}

/// Waits for something that must happen within 15 seconds.
#[track_caller]
pub fn wait_until(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(15);
    while !happened() {
        assert!(Instant::now() < deadline, "15 s went by before {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An image read back from an OCI archive with independent eyes: tar and JSON alone.
pub struct Image {
    pub dir: PathBuf,
    pub index: serde_json::Value,
    pub manifest: serde_json::Value,
    pub config: serde_json::Value,
}

impl Image {
    #[track_caller]
    pub fn read(tar: &Path) -> Self {
        let dir = scratch("image");
        let status = Command::new("tar").arg("-xf").arg(tar).arg("-C").arg(&dir).status().expect("tar runs");
        assert!(status.success(), "{} is no tar", tar.display());
        let index = json(&std::fs::read(dir.join("index.json")).expect("an OCI archive has an index.json"));
        let blob = |digest: &serde_json::Value| {
            let hex = digest.as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
            let bytes = std::fs::read(dir.join("blobs/sha256").join(hex)).expect("the blob is in the archive");
            assert_eq!(sha256(&bytes), hex, "a blob has its digest");
            bytes
        };
        let mut manifest = json(&blob(&index["manifests"][0]["digest"]));
        if let Some(first) = manifest.get("manifests") {
            manifest = json(&blob(&first[0]["digest"]));
        }
        let config = json(&blob(&manifest["config"]["digest"]));
        for layer in manifest["layers"].as_array().expect("a manifest has layers") {
            blob(&layer["digest"]);
        }
        Self { dir, index, manifest, config }
    }

    /// Lists a layer's tar as GNU tar shows it, with numeric owners.
    pub fn layer_listing(&self, n: usize) -> String {
        let digest = self.manifest["layers"][n]["digest"].as_str().expect("a digest");
        let blob = self.dir.join("blobs/sha256").join(&digest["sha256:".len()..]);
        let out = Command::new("tar").args(["--numeric-owner", "-tvf"]).arg(blob).output().expect("tar runs");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).into_owned()
    }

    pub fn layers(&self) -> usize {
        self.manifest["layers"].as_array().map_or(0, Vec::len)
    }
}

pub fn json(bytes: &[u8]) -> serde_json::Value {
    serde_json::from_slice(bytes).unwrap_or_else(|e| panic!("no JSON: {e}: {}", String::from_utf8_lossy(bytes)))
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}

#[track_caller]
pub fn read(path: impl AsRef<Path>) -> String {
    let path = path.as_ref();
    std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}
