//! Storage fallbacks: overlays, and copies where there are none, give the same images.

use crate::harness::{Home, User, bud, read};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// A daemon in the foreground with flags of its own; ended with the test.
pub struct Daemon(std::process::Child);

impl Daemon {
    pub fn start(home: &Home, flags: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_by(home.command(bud()), home, &home.state_root(), flags, env)
    }

    /// Starts it in a mount namespace of its own, in which root has run a script (the state directory is `$STATE`).
    pub fn start_in(home: &Home, script: &str, flags: &[&str]) -> Self {
        std::fs::create_dir_all(home.state_root()).unwrap();
        let mut command = home.command("unshare");
        let user = home.user;
        let script =
            format!("set -e; {script}; exec setpriv --reuid {} --regid {} --init-groups \"$@\"", user.uid, user.gid);
        command.uid(0).gid(0).env("STATE", home.state_root()).args(["--mount", "sh", "-c", &script, "sh"]).arg(bud());
        Self::start_by(command, home, &home.state_root(), flags, &[])
    }

    fn start_by(
        mut command: std::process::Command,
        home: &Home,
        root: &Path,
        flags: &[&str],
        env: &[(&str, &str)],
    ) -> Self {
        let address = format!("unix://{}", home.socket().display());
        command.args(["daemon", "--addr", &address, "--root"]).arg(root).args(flags);
        command.envs(env.iter().copied()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0);
        let child = Self(command.spawn().expect("the daemon can be started"));
        crate::harness::wait_until("the daemon listens", || home.bud(["daemon", "status"]).code == Some(0));
        child
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.0);
        // One that has ended is what we want.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        for _ in 0..500 {
            if self.0.try_wait().is_ok_and(|status| status.is_some()) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

const STEPS: &str = "\
FROM busybox AS made
RUN mkdir -p /d/sub /gone /opq && echo 1 > /d/f && echo 2 > /d/sub/g && echo 3 > /gone/a && echo 4 > /opq/old
RUN echo x > /one && ln /one /two && ln -s d /l && touch -d 2001-02-03 /d/f /one
RUN rm -r /gone /opq && mkdir /opq && echo new > /opq/new && mv /d /moved && echo more >> /one
RUN chmod 600 /moved/f && chown 5:6 /moved/sub && rm /l && mkdir /l && ln /moved/f /hard
FROM made AS base
RUN true
COPY f /etc/f
RUN --mount=type=bind,from=made,source=/moved,target=/mnt cat /mnt/f > /copied && ls /mnt > /listed
RUN --mount=type=cache,target=/cache echo c > /cache/c && cat /cache/c > /from-cache
FROM scratch
COPY --from=base /moved /moved
";

/// Names, modes, owners and links of every layer, without the times that differ between any two builds.
fn layers(home: &Home, context: &Path) -> Vec<Vec<String>> {
    let image = home.image(&["--target", "base"], context);
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        [&words[..3], &words[5..]].concat().join(" ")
    };
    (0..image.layers()).map(|n| image.layer_listing(n).lines().map(line).collect()).collect()
}

/// Builds the steps' image with a daemon that has to say which snapshotter it has.
#[track_caller]
fn built(home: &Home, snapshotter: &str) -> Vec<Vec<String>> {
    home.bud(["daemon", "status", "--json"]).ok().says(&[&format!("\"snapshotter\":\"{snapshotter}\"")]);
    let context = home.context(&[("Dockerfile", STEPS), ("f", "F")]);
    let tree = home.tree(&["--target", "base"], &context);
    assert_eq!(read(tree.join("two")), "x\n", "a name that was not written to keeps what it had");
    assert_eq!(read(tree.join("listed")), "f\nsub\n");
    layers(home, &context)
}

/// The state directory is on an overlay, as in a container without a volume: the kernel stacks no writable overlay there, and
/// there are no whiteouts in it.
const ON_OVERLAY: &str = "for d in l u w; do mkdir -p $HOME/o/$d; done; chown $OWNER $HOME/o/u; chmod 700 $HOME/o/u
    mount -t overlay none -o lowerdir=$HOME/o/l,upperdir=$HOME/o/u,workdir=$HOME/o/w $STATE";

fn on_overlay(home: &Home) -> String {
    ON_OVERLAY.replace("$OWNER", &format!("{}:{}", home.user.uid, home.user.gid))
}

#[test]
fn overlays_and_copies_give_the_same_image() {
    let mut found = Vec::new();
    for snapshotter in ["overlayfs", "native"] {
        let home = Home::sub();
        let daemon = Daemon::start(&home, &[&format!("--oci-worker-snapshotter={snapshotter}")], &[]);
        found.push(built(&home, snapshotter));
        drop(daemon);
    }
    let home = Home::sub();
    let daemon = Daemon::start_in(&home, &on_overlay(&home), &[]);
    found.push(built(&home, "native"));
    // It is said once what that costs and what mends it.
    let context = home.dockerfile("FROM busybox\nRUN true\n");
    home.build(&[], &context).ok().says(&["overlays can't be mounted here", "copied", "--root"]);
    drop(daemon);
    let overlay = &found[0];
    assert!(overlay.iter().flatten().any(|l| l.ends_with(".wh.gone")), "{overlay:?}");
    for copies in &found[1..] {
        assert_eq!(overlay, copies);
    }
}

#[test]
fn root_works_in_copies_too() {
    let home = Home::new(User { name: "root", uid: 0, gid: 0 });
    let daemon = Daemon::start(&home, &["--oci-worker-snapshotter=native"], &[]);
    let copies = built(&home, "native");
    drop(daemon);
    let home = Home::new(User { name: "root", uid: 0, gid: 0 });
    assert_eq!(layers(&home, &home.context(&[("Dockerfile", STEPS), ("f", "F")])), copies);
}

#[test]
fn who_has_one_id_works_in_copies_too() {
    let text = STEPS.replace(" && chown 5:6 /moved/sub", "");
    let mut found = Vec::new();
    for snapshotter in ["overlayfs", "native"] {
        let home = Home::new(User::plain());
        let _daemon = Daemon::start(&home, &[&format!("--oci-worker-snapshotter={snapshotter}")], &[]);
        found.push(layers(&home, &home.context(&[("Dockerfile", &text), ("f", "F")])));
    }
    assert_eq!(found[0], found[1]);
}

#[test]
fn the_doctor_says_what_copies_cost() {
    let home = Home::sub();
    std::fs::create_dir_all(home.state_root()).unwrap();
    let script = format!(
        "{}; exec setpriv --reuid {} --regid {} --init-groups \"$@\"",
        on_overlay(&home),
        home.user.uid,
        home.user.gid
    );
    let mut command = home.command("unshare");
    command.uid(0).gid(0).env("STATE", home.state_root()).args(["--mount", "sh", "-c", &script, "sh"]).arg(bud());
    // A build would work.
    let ran = crate::harness::run({
        command.args(["doctor", "--json"]);
        command
    });
    let report = crate::harness::json(ran.ok().stdout.as_bytes());
    let found = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "overlayfs").unwrap();
    assert_eq!(found["status"], "degraded", "{report:#}");
    assert!(found["lost"].as_str().unwrap().contains("copy"), "{report:#}");
}

#[test]
fn a_failed_step_leaves_no_copy_behind() {
    let home = Home::sub();
    let _daemon = Daemon::start(&home, &["--oci-worker-snapshotter=native"], &[]);
    let context = home.dockerfile("FROM busybox\nRUN echo 1 > /f && exit 3\n");
    home.build(&[], &context).fails_with(&["exit code: 3"]);
    let layers = home.state_root().join("layers");
    crate::harness::wait_until("the copy is removed", || {
        std::fs::read_dir(&layers).unwrap().flatten().all(|layer| !layer.path().join("private").exists())
    });
}

/// Every step sees what the ones before left, however many there are: the kernel stacks 500 layers.
fn six_hundred_steps(env: &[(&str, &str)]) {
    let home = Home::sub();
    // With names this long, what is told to mount(2) wouldn't fit its page.
    let root = home.path(&format!("{}/{}", "deep".repeat(50), "state".repeat(40)));
    let _daemon = Daemon::start_by(home.command(bud()), &home, &root, &[], env);
    let mut text = String::from("FROM busybox\nRUN mkdir /d && echo x > /d/first && echo x > /gone\n");
    for n in 0..598 {
        text += &match n % 100 {
            50 => {
                format!("RUN rm -r /d /gone && mkdir /d && echo {n} > /d/new && echo {n} > /gone && echo {n} >> /log\n")
            }
            _ => format!("RUN echo {n} >> /log\n"),
        };
    }
    text += "RUN ls /d > /listed && rm /gone\n";
    let tree = home.tree(&[], &home.dockerfile(&text));
    let lines: String = (0..598).map(|n| format!("{n}\n")).collect();
    assert_eq!(read(tree.join("log")), lines);
    assert_eq!(read(tree.join("listed")), "new\n");
    assert_eq!(read(tree.join("d/new")), "550\n");
    assert!(!tree.join("gone").exists());
}

#[test]
fn six_hundred_steps_by_the_new_mount_api() {
    six_hundred_steps(&[]);
}

#[test]
fn six_hundred_steps_by_the_old_mount_api() {
    six_hundred_steps(&[("BUD_MOUNT_API", "old")]);
}
