//! A real Docker of its own: Debian's `dockerd` on a private socket, in namespaces of its own, and a door to it that counts.

use crate::debian;
use crate::harness::{Home, Ran, run, scratch};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// A Docker daemon; gone with all of its processes and mounts when dropped.
pub struct Dockerd {
    child: Child,
    pub dir: PathBuf,
}

impl Dockerd {
    /// Starts one with these features (`daemon.json`) and waits until it answers.
    pub fn start(config: &str) -> Self {
        let dir = scratch("dockerd");
        std::fs::write(dir.join("daemon.json"), config).unwrap();
        let (docker, containerd) = (debian::trixie("docker.io"), debian::trixie("containerd"));
        let path = |sub: &str| dir.join(sub).display().to_string();
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new("setpriv");
        // It dies with this thread, and all in its namespaces die with it.
        command.args(["--pdeathsig", "KILL", "unshare", "-m", "-n", "-p", "--fork", "--kill-child", "--mount-proc"]);
        command.arg(docker.join("usr/sbin/dockerd"));
        command.args(["--config-file", &path("daemon.json"), "--host", &format!("unix://{}", path("docker.sock"))]);
        command.args(["--data-root", &path("data"), "--exec-root", &path("exec"), "--pidfile", &path("pid")]);
        command.args([
            "--bridge",
            "none",
            "--iptables=false",
            "--ip6tables=false",
            "--ip-forward=false",
            "--userland-proxy=false",
        ]);
        command.args(["--group", "root"]);
        let programs = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", containerd.join("usr/bin").display());
        command.env_clear().env("PATH", programs).env("HOME", &dir);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        let mut dockerd = Self { child: command.spawn().expect("setpriv runs"), dir };
        let deadline = Instant::now() + Duration::from_secs(90);
        while dockerd.get("/_ping").is_none() {
            let ended = dockerd.child.try_wait().unwrap();
            let log = || std::fs::read_to_string(dockerd.dir.join("log")).unwrap_or_default();
            assert!(ended.is_none() && Instant::now() < deadline, "dockerd doesn't come up ({ended:?}): {}", log());
            std::thread::sleep(Duration::from_millis(50));
        }
        dockerd
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("docker.sock")
    }

    pub fn get(&self, path: &str) -> Option<Vec<u8>> {
        ask(&self.socket(), "GET", path)
    }

    /// Takes an image out again and unpacks its layers one over the other.
    pub fn tree(&self, name: &str) -> PathBuf {
        let archive = scratch("saved").join("image.tar");
        std::fs::write(&archive, self.get(&format!("/images/{name}/get")).expect("Docker saves the image")).unwrap();
        tree_of_archive(&archive)
    }
}

/// Asks a Docker's API; none if it doesn't answer with success.
pub fn ask(socket: &Path, method: &str, path: &str) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(socket).ok()?;
    write!(stream, "{method} {path} HTTP/1.0\r\nhost: d\r\ncontent-length: 0\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&answer[..end]);
    head.split(' ').nth(1)?.starts_with('2').then(|| answer[end + 4..].to_vec())
}

impl Drop for Dockerd {
    fn drop(&mut self) {
        _ = self.child.kill();
        _ = self.child.wait();
        _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Unpacks the layers of a Docker archive one over the other, as skopeo reads it.
pub fn tree_of_archive(archive: &Path) -> PathBuf {
    let dir = scratch("read-back");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "-q"]);
    skopeo.arg(format!("docker-archive:{}", archive.display())).arg(format!("dir:{}", dir.display()));
    run(piped(skopeo)).ok();
    let manifest = crate::harness::json(&std::fs::read(dir.join("manifest.json")).unwrap());
    let tree = dir.join("tree");
    std::fs::create_dir(&tree).unwrap();
    for layer in manifest["layers"].as_array().unwrap() {
        let blob = layer["digest"].as_str().unwrap().split(':').nth(1).unwrap();
        let mut tar = Command::new("tar");
        tar.arg("-xf").arg(dir.join(blob)).arg("-C").arg(&tree);
        run(piped(tar)).ok();
    }
    tree
}

pub fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

type Hook = Box<dyn FnOnce() + Send>;

/// A socket of a user in front of another one, that counts what comes in.
pub struct Door {
    pub path: PathBuf,
    sent: Arc<AtomicU64>,
    requests: Arc<Mutex<Vec<String>>>,
    before_load: Arc<Mutex<Option<Hook>>>,
}

impl Door {
    pub fn new(home: &Home, behind: &Path) -> Self {
        let path = home.dir.join("run/door.sock");
        _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(&path).unwrap();
        chown(&path, Some(home.user.uid), Some(home.user.gid)).unwrap();
        let door = Self { path, sent: Arc::default(), requests: Arc::default(), before_load: Arc::default() };
        let (sent, requests, hook) = (door.sent.clone(), door.requests.clone(), door.before_load.clone());
        let behind = behind.to_owned();
        // It ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = UnixStream::connect(&behind) else { continue };
                let (sent, requests, hook) = (sent.clone(), requests.clone(), hook.clone());
                std::thread::spawn(move || pass(client, server, &sent, &requests, &hook));
            }
        });
        door
    }

    /// Does something when the next image is about to be loaded.
    pub fn before_next_load(&self, hook: impl FnOnce() + Send + 'static) {
        *self.before_load.lock().unwrap() = Some(Box::new(hook));
    }

    /// Builds with this door as Docker; returns what bud said, how many bytes went through, and the requests' first lines.
    pub fn build(&self, home: &Home, args: &[&str], context: &Path) -> (Ran, u64, Vec<String>) {
        self.sent.store(0, Ordering::SeqCst);
        self.requests.lock().unwrap().clear();
        let mut command = home.bud_command(["--progress", "plain"]);
        command.args(args).arg(context).env_remove("BUD_LOAD");
        command.env("DOCKER_HOST", format!("unix://{}", self.path.display()));
        let ran = run(command).ok();
        (ran, self.sent.load(Ordering::SeqCst), self.requests.lock().unwrap().clone())
    }
}

fn pass(
    mut client: UnixStream,
    mut server: UnixStream,
    sent: &AtomicU64,
    requests: &Mutex<Vec<String>>,
    hook: &Mutex<Option<Hook>>,
) {
    let (mut back_from, mut back_to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    std::thread::spawn(move || {
        _ = std::io::copy(&mut back_from, &mut back_to);
        _ = back_to.shutdown(std::net::Shutdown::Write);
    });
    let mut buffer = vec![0; 1 << 16];
    let mut first = true;
    while let Ok(n) = client.read(&mut buffer) {
        if n == 0 {
            break;
        }
        if std::mem::take(&mut first) {
            let line = String::from_utf8_lossy(&buffer[..n]).lines().next().unwrap_or_default().to_owned();
            if line.starts_with("POST /images/load")
                && let Some(hook) = hook.lock().unwrap().take()
            {
                hook();
            }
            requests.lock().unwrap().push(line);
        }
        sent.fetch_add(n as u64, Ordering::SeqCst);
        if server.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    _ = server.shutdown(std::net::Shutdown::Write);
}
