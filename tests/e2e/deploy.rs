//! What `deploy/` holds is what works: the systemd units, the image, the pod.

use crate::harness::{Home, bud, json, read, run, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

fn deploy(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy").join(name)
}

/// The value of a key of a unit.
fn value(unit: &str, key: &str) -> String {
    let prefix = format!("{key}=");
    let found: Vec<&str> = unit.lines().filter_map(|line| line.strip_prefix(&prefix)).collect();
    let [one] = found[..] else { panic!("{key} is there once: {found:?}") };
    one.to_owned()
}

#[test]
fn systemd_takes_the_units() {
    let home = Home::sub();
    let mut verify = home.command("systemd-analyze");
    verify.args(["--user", "--man=no", "verify"]).arg(deploy("systemd/bud.socket")).arg(deploy("systemd/bud.service"));
    let ran = run(verify).ok();
    // Keys and values that it doesn't know are said, and no error.
    assert!(!ran.stderr.contains("deploy/systemd"), "{ran}");
}

#[test]
fn the_units_start_a_daemon_that_is_found() {
    let home = Home::sub();
    let socket = read(deploy("systemd/bud.socket"));
    let listen = value(&socket, "ListenStream").replace("%t", &home.runtime_dir().display().to_string());
    assert_eq!(Path::new(&listen), home.socket(), "where clients look without being told");
    assert_eq!((value(&socket, "SocketMode"), value(&socket, "DirectoryMode")), ("0600".into(), "0700".into()));
    let start = value(&read(deploy("systemd/bud.service")), "ExecStart");
    // As the manager does it: the directory, the socket, and the program at the first connection, found in the user's path.
    let dir = home.socket().parent().expect("a parent").to_owned();
    std::fs::create_dir(&dir).expect("mkdir");
    std::os::unix::fs::chown(&dir, Some(home.user.uid), Some(home.user.gid)).expect("chown");
    let mut activate = home.command("systemd-socket-activate");
    let path = format!("{}:/usr/bin:/bin", bud().parent().expect("a parent").display());
    activate.env("PATH", path).arg("-l").arg(&listen).args(["-E", "HOME", "-E", "XDG_RUNTIME_DIR", "-E", "PATH"]);
    activate.args(start.split_whitespace()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = activate.spawn().expect("systemd-socket-activate is installed");
    wait_until("the socket is there", || home.socket().exists());
    home.build(&["-t", "foo"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let status = json(home.bud(["daemon", "status", "--json"]).ok().stdout.as_bytes());
    assert_eq!((&status["pid"], &status["activated"]), (&daemon.id().into(), &true.into()));
    assert_eq!(status["idleTimeoutSeconds"], 3600);
    home.bud(["daemon", "stop"]).ok();
    assert!(daemon.wait().expect("it ends").success());
}

/// The items of a list of texts in the pod's YAML, which has each list once.
fn list(pod: &str, key: &str) -> Vec<String> {
    let mut lines = pod.lines().skip_while(|line| line.trim() != format!("{key}:"));
    let indent = |line: &str| line.len() - line.trim_start().len();
    let key = indent(lines.next().unwrap_or_else(|| panic!("{key} is there")));
    let items = lines.take_while(|line| indent(line) > key).map(str::trim).filter(|line| !line.starts_with('#'));
    items.map(|line| line.strip_prefix("- ").unwrap_or_else(|| panic!("an item: {line}")).to_owned()).collect()
}

/// A list in brackets, on the line of its key.
fn flow(pod: &str, key: &str) -> Vec<String> {
    let line = pod.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap_or_else(|| panic!("{key} is there"));
    let inner = line.trim_start_matches(':').trim().trim_start_matches('[').trim_end_matches(']');
    inner.split(',').map(|item| item.trim().trim_matches('"').to_owned()).collect()
}

#[test]
fn the_image_is_built_by_bud_and_builds_in_a_pod() {
    let base = crate::sandbox::debian();
    let home = Home::sub();
    let program = bud().parent().expect("a parent").display().to_string();
    let dockerfile = deploy("Dockerfile").display().to_string();
    let tar = home.path("bud.tar");
    // All but the compiling, for which the program under test stands, and git.
    let output = format!("type=docker,dest={}", tar.display());
    let (debian, rust, program) = (format!("DEBIAN={base}"), format!("RUST={base}"), format!("bud={program}"));
    let arguments = ["-t", "bud", "-f", &dockerfile, "--build-arg", &debian, "--build-arg", &rust];
    let arguments = [&arguments[..], &["--build-arg", "PACKAGES=ca-certificates"]].concat();
    let arguments = [&arguments[..], &["--build-context", &program, "-o", &output]].concat();
    home.build(&arguments, Path::new(env!("CARGO_MANIFEST_DIR"))).ok();

    let store = crate::harness::scratch("podman");
    let (root, state) = (store.join("s"), store.join("r"));
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.arg("--root").arg(&root).arg("--runroot").arg(&state);
        command.args(["--storage-driver", "overlay", "--cgroup-manager", "cgroupfs", "--runtime", "runc"]).args(args);
        run({
            command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
            command
        })
    };
    podman(&["load", "-q", "-i", &tar.display().to_string()]).ok();
    let pod = read(deploy("pod.yaml"));
    for line in
        ["runAsNonRoot: true", "runAsUser: 1000", "type: Unconfined", "allowPrivilegeEscalation: true", "drop: [ALL]"]
    {
        assert!(pod.lines().any(|found| found.trim() == line), "{line}");
    }
    let context = home.context(&[(
        "Dockerfile",
        "FROM scratch\nCOPY busybox /bin/sh\nRUN [\"/bin/sh\", \"-c\", \"cat /proc/self/uid_map > /map\"]\n",
    )]);
    std::fs::copy("/bin/busybox", context.join("busybox")).expect("busybox-static is installed");
    let mount = format!("{}:/ctx:ro", context.display());
    let name = format!("bud-pod-{}", std::process::id());
    let mut start = vec!["run", "-d", "--name", &name, "--network", "none", "--ulimit", "nofile=1024:1024"];
    start.extend([
        "--ulimit",
        "nproc=4096:4096",
        "--security-opt",
        "seccomp=unconfined",
        "--cap-drop",
        "ALL",
        "-v",
        &mount,
    ]);
    let capabilities = flow(&pod, "add:");
    start.extend(capabilities.iter().flat_map(|capability| ["--cap-add", capability]));
    let arguments = list(&pod, "args");
    start.push("docker.io/library/bud:latest");
    start.extend(arguments.iter().map(String::as_str));
    std::fs::set_permissions(&home.dir, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("chmod");
    podman(&start).ok();
    let probe = flow(&pod, "command:");
    let exec = [vec!["exec", &name], probe.iter().map(String::as_str).collect()].concat();
    // Each question is a container's process, which takes its time on a busy machine.
    let ready = (0..30).any(|_| {
        podman(&exec).code == Some(0) || {
            std::thread::sleep(std::time::Duration::from_millis(200));
            false
        }
    });
    assert!(ready, "{}", podman(&["logs", &name]));
    let build = ["bud", "--progress", "plain", "--buildkit-addr", "tcp://127.0.0.1:1234", "-o", "/tmp/out", "/ctx"];
    let built = podman(&[&["exec", &name], &build[..]].concat());
    let map = podman(&["exec", &name, "cat", "/tmp/out/map"]);
    let log = podman(&["logs", &name]);
    podman(&["stop", "-t", "20", &name]).ok();
    let ended = podman(&["inspect", "--format", "{{.State.ExitCode}}", &name]);
    podman(&["rm", "-f", &name]).ok();
    podman(&["rmi", "-a", "-f"]).ok();
    built.ok();
    // Sub-IDs, by the file capabilities that the image gives newuidmap.
    assert_eq!(map.stdout.lines().count(), 2, "{map}\n{log}");
    log.says(&["runs rootless, with sub-IDs", "RUN steps see the /proc around the daemon"]);
    assert_eq!(ended.stdout.trim(), "0", "it ends when it is told to: {ended}");
}
