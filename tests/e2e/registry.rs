//! A real registry on loopback, mirror of docker.io, with base images made from Debian's packages.

use crate::harness::scratch;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// The registry's address on loopback.
pub struct Registry {
    pub port: u16,
    pub storage: PathBuf,
}

/// Starts the registry once for the test run; it ends with it.
pub fn registry() -> &'static Registry {
    static REGISTRY: OnceLock<Registry> = OnceLock::new();
    REGISTRY.get_or_init(|| {
        let registry = start();
        push_busybox(&registry);
        registry
    })
}

/// The daemon's configuration: docker.io is served by the registry here.
pub fn buildkitd_toml() -> String {
    let port = registry().port;
    format!(
        "[registry.\"docker.io\"]\n  mirrors = [\"127.0.0.1:{port}\"]\n[registry.\"127.0.0.1:{port}\"]\n  http = true\n"
    )
}

/// Starts a registry of its own for a test that breaks it.
pub fn start() -> Registry {
    let dir = scratch("registry");
    let port = free_port();
    let config = dir.join("config.yml");
    let storage = dir.join("data");
    std::fs::write(
        &config,
        format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}, delete: {{enabled: true}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            storage.display()
        ),
    )
    .expect("write");
    // A parent-death signal follows the thread that started the process, so this thread stays until the process has ended.
    let (started, wait) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "docker-registry", "serve"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let result = child.as_ref().map(|_| ()).map_err(ToString::to_string);
        started.send(result).expect("the test waits");
        if let Ok(mut child) = child {
            child.wait().expect("the registry can be waited for");
        }
    });
    wait.recv().expect("the thread answers").expect("docker-registry starts (package docker-registry)");
    let deadline = Instant::now() + Duration::from_secs(20);
    while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(Instant::now() < deadline, "the registry does not answer");
        std::thread::sleep(Duration::from_millis(20));
    }
    Registry { port, storage }
}

pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port is free");
    listener.local_addr().expect("it has an address").port()
}

impl Registry {
    /// Pushes a directory tree as the one layer of an image, with `PATH` and `Cmd` set.
    pub fn push_tree(&self, root: &Path, name: &str, extra: &[&str]) {
        let layout = scratch("layout");
        let image = layout.join("l");
        let target = format!("{}:x", image.display());
        let sh = |args: &[&str]| {
            let out = Command::new(args[0]).args(&args[1..]).output().unwrap_or_else(|e| panic!("{}: {e}", args[0]));
            assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        };
        sh(&["umoci", "init", "--layout", image.to_str().expect("text")]);
        sh(&["umoci", "new", "--image", &target]);
        sh(&["umoci", "insert", "--image", &target, root.to_str().expect("text"), "/"]);
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let mut config = vec!["umoci", "config", "--image", &target, "--config.env", path, "--config.cmd", "sh"];
        config.extend(extra);
        sh(&config);
        let dest = format!("docker://127.0.0.1:{}/{name}", self.port);
        sh(&["skopeo", "copy", "-q", "--dest-tls-verify=false", &format!("oci:{target}"), &dest]);
        std::fs::remove_dir_all(&layout).expect("the layout can be removed");
    }
}

fn push_busybox(registry: &Registry) {
    let root = scratch("busybox");
    for dir in ["bin", "etc", "root", "tmp", "usr/bin", "var/tmp"] {
        std::fs::create_dir_all(root.join(dir)).expect("mkdir");
    }
    let busybox = root.join("bin/busybox");
    std::fs::copy("/bin/busybox", &busybox).expect("/bin/busybox is there (package busybox-static)");
    let list = Command::new(&busybox).arg("--list").output().expect("busybox runs");
    for applet in String::from_utf8_lossy(&list.stdout).lines().filter(|a| *a != "busybox") {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).expect("symlink");
    }
    std::fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/usr/sbin:/bin/false\n",
    )
    .expect("write");
    std::fs::write(root.join("etc/group"), "root:x:0:\ndaemon:x:1:\nstaff:x:50:daemon\n").expect("write");
    registry.push_tree(&root, "library/busybox:latest", &[]);
    std::fs::remove_dir_all(&root).expect("the tree can be removed");
}
