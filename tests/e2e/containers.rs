//! Inside containers, made with Debian's podman and runc: `bud daemon --addr tcp://0.0.0.0:1234`, and a build against it, in a network of
//! the container's own. The container has the machine's `/usr`, and nothing else of it.

use crate::harness::{Ran, bud, run, scratch};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The user inside: the first that a system makes.
const USER: u32 = 1000;

/// Starts the daemon with `$FLAGS`, waits until it answers, builds `ctx` into `out`, and ends the daemon.
const BUILD: &str = r#"
bud daemon --addr tcp://0.0.0.0:1234 $FLAGS > daemon.log 2>&1 & daemon=$!
until bud daemon status --buildkit-addr tcp://127.0.0.1:1234 > status 2>&1; do
    kill -0 $daemon 2>/dev/null || break
    sleep 0.05
done
rm -rf out
SECRET=of-the-client bud --progress plain --buildkit-addr tcp://127.0.0.1:1234 -o out ctx
echo "build: $?"
kill $daemon; wait $daemon
echo "daemon: $?"
cat daemon.log
[ ! -e out/seen ] || cat out/seen
"#;

/// A step that writes what it finds. The files of other processes that it could open would be listed.
const DOCKERFILE: &str = r#"
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "sh", "-c", "busybox --install -s /bin; exec sh /look > /seen", "--"]
"#;

const LOOK: &str = r#"
echo "pid $$, processes $(ls /proc | grep -c '^[0-9]')"
echo "ids $(wc -l < /proc/self/uid_map)"
cd /proc/self; own=$(pwd -P)
for p in /proc/[0-9]*; do
    [ $p = $own ] && continue
    [ $(head -c 1 $p/environ 2>/dev/null | wc -c) = 0 ] || echo "reads $p/environ"
    readlink $p/root >/dev/null && echo "follows $p/root"
    (echo 500 > $p/oom_score_adj) 2>/dev/null && echo "writes $p/oom_score_adj"
done
grep -q bud.daemon /proc/[0-9]*/cmdline && echo "the daemon is seen"
[ $(cat /proc/keys 2>/dev/null | wc -c) = 0 ] && echo "keys are hidden"
(echo x > /proc/sys/kernel/domainname) 2>/dev/null && echo "writes /proc/sys"
kill -9 $(cd /proc; echo [0-9]*) 2>/dev/null
echo "caps $(grep CapEff /proc/self/status | cut -f2)"
"#;

/// A root file system for containers, with a user that has sub-IDs.
struct Container {
    dir: PathBuf,
}

impl Container {
    fn new() -> Self {
        let dir = scratch("container");
        let root = dir.join("root");
        for sub in ["usr", "etc", "tmp", "proc", "sys", "dev", "run", "var", "home/u/ctx"] {
            std::fs::create_dir_all(root.join(sub)).expect("mkdir");
        }
        for link in ["bin", "sbin", "lib", "lib64"] {
            symlink(format!("usr/{link}"), root.join(link)).expect("symlink");
        }
        std::fs::set_permissions(root.join("tmp"), PermissionsExt::from_mode(0o1777)).expect("chmod");
        let etc = |name: &str, text: &str| std::fs::write(root.join("etc").join(name), text).expect("write");
        etc("passwd", "root:x:0:0::/home/u:/bin/sh\nu:x:1000:1000::/home/u:/bin/sh\n");
        etc("group", "root:x:0:\nu:x:1000:\n");
        etc("subuid", "u:100000:65536\n");
        etc("subgid", "u:100000:65536\n");
        let home = root.join("home/u");
        let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
        std::fs::copy(busybox.expect("busybox-static is installed"), home.join("ctx/busybox")).expect("copy");
        std::fs::write(home.join("ctx/Dockerfile"), DOCKERFILE.replace("RUN", "COPY look /look\nRUN")).expect("write");
        std::fs::write(home.join("ctx/look"), LOOK).expect("write");
        std::fs::write(home.join("build"), BUILD).expect("write");
        // With file capabilities instead of set-uid: the maps of a container's user can only be written by that user.
        let bin = dir.join("bin");
        std::fs::create_dir(&bin).expect("mkdir");
        std::fs::copy(bud(), bin.join("bud")).expect("copy");
        for (tool, capability) in [("newuidmap", 7), ("newgidmap", 6)] {
            let tool = Path::new("/usr/bin").join(tool);
            let copy = bin.join(tool.file_name().expect("a name"));
            std::fs::copy(&tool, &copy).expect("uidmap is installed");
            std::fs::set_permissions(&copy, PermissionsExt::from_mode(0o755)).expect("chmod");
            // Version 2 with the effective bit, the permitted set, nothing inheritable (`capabilities(7)`).
            let words: [u32; 5] = [0x0200_0001, 1 << capability, 0, 0, 0];
            let value: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            rustix::fs::setxattr(&copy, "security.capability", &value, rustix::fs::XattrFlags::empty())
                .expect("setcap");
        }
        Self { dir }
    }

    /// Runs a script in a container of a kind, in the home of a user.
    fn run(&self, kind: &[&str], user: u32, env: &[&str], script: &str) -> Ran {
        let root = self.dir.join("root");
        let status = Command::new("chown").args(["-R", &user.to_string()]).arg(root.join("home/u")).status();
        assert!(status.expect("chown runs").success());
        chown(&root, Some(0), Some(0)).expect("chown");
        let mut command = Command::new("podman");
        command.args(["--runtime", "runc", "--cgroup-manager", "cgroupfs", "run", "--rm", "--network", "none"]);
        command.args(["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=4096:4096", "--user", &user.to_string()]);
        command.args(["-v", "/usr:/usr:ro", "-v", &format!("{}:/usr/local/bin:ro", self.dir.join("bin").display())]);
        command.args(["-e", "HOME=/home/u", "-e", "BUD_INSECURE_TCP=1", "-w", "/home/u"]).args(kind);
        command.args(env.iter().flat_map(|entry| ["-e", entry]));
        command.arg("--rootfs").arg(&root).args(["/bin/sh", "-c", script]);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        run(command)
    }

    fn build(&self, kind: &[&str], user: u32, flags: &str) -> Ran {
        self.run(kind, user, &[&format!("FLAGS={flags}")], ". ./build")
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        // What it holds is the user's and its sub-IDs', which root may remove.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

const DEFAULT: &[&str] = &["--security-opt", "seccomp=unconfined"];
const UNMASKED: &[&str] = &["--security-opt", "seccomp=unconfined", "--security-opt", "unmask=ALL"];
const PRIVILEGED: &[&str] = &["--privileged"];

/// What no step may manage.
#[track_caller]
fn is_closed(ran: Ran) -> Ran {
    for wrong in ["reads /proc", "follows /proc", "writes /proc"] {
        assert!(!ran.stdout.contains(wrong), "{wrong}: {ran}");
    }
    ran
}

#[test]
fn a_container_with_an_unmasked_proc_has_the_full_sandbox() {
    let container = Container::new();
    for kind in [UNMASKED, PRIVILEGED] {
        let ran = is_closed(container.build(kind, USER, "").ok().says(&["build: 0", "daemon: 0"]));
        // The shell, and those of the pipeline that counts.
        let count = ran.stdout.lines().find_map(|line| line.strip_prefix("pid 1, processes ")?.parse::<u32>().ok());
        assert!(count.is_some_and(|count| (2..=4).contains(&count)), "{ran}");
        assert!(!ran.stdout.contains("the daemon is seen"), "{ran}");
        ran.says(&["runs rootless, with sub-IDs", "ids 2", "caps 00000000a80425fb"]);
    }
}

#[test]
fn a_container_with_a_masked_proc_names_the_flag_and_works_with_it() {
    let container = Container::new();
    let ran = container.build(DEFAULT, USER, "").ok().says(&[
        "build: 1",
        "--oci-worker-no-process-sandbox",
        "systempaths=unconfined",
        "unmask=ALL",
        "procMount: Unmasked",
    ]);
    assert!(!ran.stdout.contains("caps "), "no step ran: {ran}");
    let ran = container.build(DEFAULT, USER, "--oci-worker-no-process-sandbox").ok();
    // Its own pid namespace, the outer /proc with what hides parts of it, and nobody's secrets.
    is_closed(ran).says(&[
        "build: 0",
        "daemon: 0",
        "RUN steps see the /proc around the daemon",
        "pid 1, ",
        "the daemon is seen",
        "keys are hidden",
        "ids 2",
        "caps 00000000a80425fb",
    ]);
}

#[test]
fn root_of_a_container_without_privileges_is_told_the_same() {
    let container = Container::new();
    container.build(DEFAULT, 0, "").ok().says(&["build: 1", "own ID alone", "--oci-worker-no-process-sandbox"]);
    let ran = container.build(DEFAULT, 0, "--oci-worker-no-process-sandbox").ok();
    is_closed(ran).says(&["build: 0", "daemon: 0", "ids 1", "keys are hidden"]);
    // In a privileged one root is root.
    let ran = container.build(PRIVILEGED, 0, "").ok();
    is_closed(ran).says(&["build: 0", "runs root", "caps 00000000a80425fb"]);
}

#[test]
fn a_container_that_forbids_namespaces_says_what_to_allow() {
    let container = Container::new();
    let profile = container.dir.join("seccomp.json");
    std::fs::write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["unshare"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}]}"#,
    )
    .expect("write");
    let kind = ["--security-opt", &format!("seccomp={}", profile.display())];
    for user in [USER, 0] {
        let ran = container.run(&kind, user, &[], "bud daemon --addr tcp://0.0.0.0:1234");
        ran.fails_with(&["may not make a user namespace", "seccomp=unconfined", "apparmor=unconfined"]);
    }
}

#[test]
fn set_uid_newuidmap_in_a_container_is_told_to_get_file_capabilities() {
    let container = Container::new();
    for tool in ["newuidmap", "newgidmap"] {
        std::fs::remove_file(container.dir.join("bin").join(tool)).expect("remove");
    }
    let ran = container.build(UNMASKED, USER, "").ok();
    is_closed(ran).says(&["build: 0", "ids 1", "own ID alone", "setcap cap_setuid=ep"]);
}
