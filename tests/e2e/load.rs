//! Loading into real Dockers and a real Podman: what is missing there is sent, and no more.

use crate::docker::{Dockerd, Door, ask, piped, tree_of_archive};
use crate::harness::{Home, json, read, run, scratch, wait_until};
use std::path::PathBuf;
use std::process::Command;

const MEGABYTE: u64 = 1 << 20;

/// Bytes that don't shrink.
fn noise(len: u64) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..len / 8).flat_map(|_| next()).collect()
}

/// A base of 16 MiB, and a context that adds a layer to it.
fn base_and_app(home: &Home) -> (PathBuf, PathBuf) {
    let base = home.dockerfile("FROM scratch\nCOPY big /big\n");
    home.write(&base.join("big"), noise(16 * MEGABYTE));
    let app = home.context(&[("Dockerfile", "FROM base\nCOPY app /app\n"), ("app", "one\n")]);
    (base, app)
}

fn loads(requests: &[String]) -> usize {
    requests.iter().filter(|line| line.starts_with("POST /images/load")).count()
}

fn id(ran: &crate::harness::Ran, docker: &Dockerd, name: &str) -> String {
    let found = docker.get(&format!("/images/{name}/json")).unwrap_or_else(|| panic!("no {name} in Docker: {ran}"));
    json(&found)["Id"].as_str().unwrap().to_owned()
}

#[test]
fn docker_gets_the_layers_that_it_lacks() {
    let docker = Dockerd::start("{}");
    let home = Home::sub();
    let door = Door::new(&home, &docker.socket());
    let (base, app) = base_and_app(&home);
    let (ran, sent, _) = door.build(&home, &["-t", "base"], &base);
    assert!(sent > 16 * MEGABYTE, "{sent}: {ran}");
    ran.says(&["loaded into Docker", "docker run --rm base"]);

    let (ran, sent, requests) = door.build(&home, &["-t", "app"], &app);
    assert!(sent < MEGABYTE && loads(&requests) == 1, "{sent}, {requests:?}: {ran}");
    let ran = ran.says(&["(1 of 2 layers; it has the rest)"]);
    let tree = docker.tree("app:latest");
    assert!(read(tree.join("app")) == "one\n" && std::fs::read(tree.join("big")).unwrap() == noise(16 * MEGABYTE));
    let iid = home.path("iid");
    let first = id(&ran, &docker, "app");

    // Nothing changed: nothing is sent. The ID is that which Docker has.
    let (ran, sent, requests) = door.build(&home, &["-t", "app", "--iidfile", iid.to_str().unwrap()], &app);
    assert!(sent < 4096 && loads(&requests) == 0, "{sent}, {requests:?}: {ran}");
    assert_eq!(read(&iid), first, "{ran}");
    // Another name of the same image.
    let (ran, sent, requests) = door.build(&home, &["-t", "app", "-t", "localhost:5000/app:v2"], &app);
    assert!(sent < 4096 && loads(&requests) == 0, "{sent}, {requests:?}: {ran}");
    assert_eq!(id(&ran, &docker, "localhost:5000/app:v2"), first);

    // Without a name, it is run by its ID.
    let nameless = home.dockerfile("FROM app\nLABEL a=b\n");
    let (ran, _, _) = door.build(&home, &[], &nameless);
    let run = ran.stderr.lines().find_map(|line| line.trim().strip_prefix("run it:  docker run --rm "));
    let found = json(&docker.get(&format!("/images/{}/json", run.expect("a command to type"))).unwrap());
    assert_eq!(found["Config"]["Labels"]["a"], "b", "{ran}");
    ask(&docker.socket(), "DELETE", &format!("/images/{}", run.unwrap())).expect("an image can be removed");

    // The base goes between the question and the load: all of it is sent after all.
    home.write(&app.join("app"), "three\n");
    let socket = docker.socket();
    door.before_next_load(move || {
        for name in ["app", "localhost:5000/app:v2", "base"] {
            ask(&socket, "DELETE", &format!("/images/{name}")).expect("an image can be removed");
        }
    });
    let (ran, sent, requests) = door.build(&home, &["-t", "app"], &app);
    assert!(sent > 16 * MEGABYTE && loads(&requests) == 2, "{sent}, {requests:?}: {ran}");
    let tree = docker.tree("app:latest");
    assert!(read(tree.join("app")) == "three\n" && std::fs::read(tree.join("big")).unwrap() == noise(16 * MEGABYTE));

    // The same bytes on a layer that is there and on one that isn't: both are empty.
    let middle = "FROM app\nCOPY app /app\nCOPY app /app\n";
    let again = home.context(&[("app", "one\n"), ("b", "two\n"), ("Dockerfile", middle)]);
    door.build(&home, &["-t", "middle"], &again);
    home.write(&again.join("Dockerfile"), "FROM middle\nCOPY b /b\nCOPY app /app\n");
    let (ran, sent, requests) = door.build(&home, &["-t", "again"], &again);
    assert!(sent < MEGABYTE && loads(&requests) == 1, "{sent}, {requests:?}: {ran}");
    let found = json(&docker.get("/images/again/json").unwrap());
    let layers = found["RootFS"]["Layers"].as_array().unwrap();
    assert!(layers.len() == 6 && layers[3] == layers[5], "{found}");
    assert_eq!(read(docker.tree("again:latest").join("b")), "two\n");
}

#[test]
fn docker_with_the_containerd_image_store_gets_the_whole() {
    let docker = Dockerd::start(r#"{"features": {"containerd-snapshotter": true}}"#);
    let home = Home::sub();
    let door = Door::new(&home, &docker.socket());
    let (base, app) = base_and_app(&home);
    door.build(&home, &["-t", "base"], &base);
    let (ran, sent, requests) = door.build(&home, &["-t", "app"], &app);
    assert!(sent > 16 * MEGABYTE && loads(&requests) == 1, "{sent}, {requests:?}: {ran}");
    let tree = docker.tree("app:latest");
    assert!(read(tree.join("app")) == "one\n" && std::fs::read(tree.join("big")).unwrap() == noise(16 * MEGABYTE));
    let (ran, sent, requests) = door.build(&home, &["-t", "app"], &app);
    assert!(sent < 4096 && loads(&requests) == 0, "{sent}, {requests:?}: {ran}");
    let (ran, sent, requests) = door.build(&home, &["-t", "other:v1"], &app);
    assert!(sent < 4096 && loads(&requests) == 0, "{sent}, {requests:?}: {ran}");
    assert_eq!(id(&ran, &docker, "other:v1"), id(&ran, &docker, "app"));
}

/// Kills the process that holds a rootless Podman's namespaces, which outlives every command.
struct Pause(PathBuf);

impl Drop for Pause {
    fn drop(&mut self) {
        let pid = std::fs::read_to_string(&self.0).ok().and_then(|pid| pid.trim().parse().ok());
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

#[test]
fn podman_gets_the_whole_once() {
    let home = Home::sub();
    let _pause = Pause(home.runtime_dir().join("libpod/tmp/pause.pid"));
    home.write(&home.path(".config/containers/storage.conf"), "[storage]\ndriver = \"vfs\"\n");
    let context = home.dockerfile("FROM scratch\nCOPY Dockerfile /d\nCMD [\"/d\"]\n");
    let build = |args: &[&str]| {
        let mut command = home.bud_command(["--progress", "plain"]);
        command.args(args).arg(&context).env_remove("BUD_LOAD");
        // A Docker that may be on this machine isn't the test's.
        command.env("DOCKER_HOST", "unix:///nowhere/docker.sock");
        run(command).ok()
    };
    build(&["-t", "mine", "-t", "also:v1"]).says(&[
        "loaded into Podman",
        "named also:v1 in Podman",
        "podman run --rm mine",
    ]);
    let podman = |args: &[&str]| {
        let mut command = home.command("podman");
        command.args(args);
        run(command).ok().stdout
    };
    let ids = podman(&["image", "inspect", "--format", "{{.Id}}", "mine", "also:v1"]);
    let ids: Vec<_> = ids.lines().collect();
    assert!(ids.len() == 2 && ids[0] == ids[1], "{ids:?}");
    let archive = home.path("out.tar");
    podman(&["save", "-q", "-o", archive.to_str().unwrap(), "mine"]);
    let tree = tree_of_archive(&archive);
    assert_eq!(read(tree.join("d")), read(context.join("Dockerfile")));
    let again = build(&["-t", "mine", "-t", "also:v1"]).says(&["Podman has mine, also:v1 as it is"]);
    assert!(!again.stderr.contains("loaded into"), "{again}");
}

#[test]
fn podman_that_speaks_as_docker_gets_the_whole() {
    let home = Home::sub();
    let dir = scratch("podman-service");
    let path = |sub: &str| dir.join(sub).display().to_string();
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "podman", "--root", &path("s"), "--runroot", &path("r")]);
    command.args(["--tmpdir", &path("t"), "--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
    command.args(["system", "service", "--time", "0", &format!("unix://{}", path("podman.sock"))]);
    let mut service = piped(command).spawn().unwrap();
    let socket = dir.join("podman.sock");
    wait_until("podman's service answers", || ask(&socket, "GET", "/_ping").is_some());
    let door = Door::new(&home, &socket);
    let (base, app) = base_and_app(&home);
    door.build(&home, &["-t", "base"], &base);
    let (ran, sent, requests) = door.build(&home, &["-t", "app"], &app);
    let (again, little, none) = door.build(&home, &["-t", "app"], &app);
    _ = service.kill();
    _ = service.wait();
    assert!(sent > 16 * MEGABYTE && loads(&requests) == 1, "{sent}, {requests:?}: {ran}");
    assert!(little < 4096 && loads(&none) == 0, "{little}, {none:?}: {again}");
}
