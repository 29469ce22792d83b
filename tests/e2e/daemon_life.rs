//! Point 3: the daemon comes by itself, once, and leaves by itself.

use crate::harness::{Home, read, run, wait_until};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

const TINY: &str = "FROM scratch\nLABEL a=b\n";

#[test]
fn the_daemon_starts_by_itself_behind_a_private_socket() {
    let home = Home::sub();
    let context = home.dockerfile(TINY);
    home.build(&["-t", "foo"], &context).ok();
    let socket = home.socket();
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(std::fs::metadata(socket.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(std::fs::metadata(home.state_root()).unwrap().permissions().mode() & 0o777, 0o700);
    let pid = home.daemon_pid().expect("a daemon runs");
    assert_eq!(std::fs::metadata(format!("/proc/{pid}")).unwrap().uid(), home.user.uid);
    home.build(&["-t", "foo"], &context).ok();
    assert_eq!(home.daemon_pid(), Some(pid), "the same daemon serves the next build");
    home.bud(["daemon", "status"]).ok().says(&[&pid.to_string()]);
    home.bud(["daemon", "logs"]).ok();
    home.bud(["daemon", "stop"]).ok();
    wait_until("the daemon is gone", || home.daemon_pid().is_none());
    assert!(!socket.exists(), "its socket went with it");
    home.bud(["daemon", "start"]).ok();
    assert!(home.daemon_pid().is_some());
}

#[test]
fn many_clients_at_once_end_with_one_daemon() {
    let home = Home::sub();
    let context = home.dockerfile(TINY);
    let children: Vec<_> = (0..8)
        .map(|n| {
            let mut command = home.bud_command(["--progress", "plain", "-t"]);
            command.arg(format!("foo{n}")).arg(&context);
            command.spawn().unwrap()
        })
        .collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let pid = home.daemon_pid().expect("a daemon runs");
    // The daemon and its fork server are one session; nothing else of this account is left.
    let mut leaders = std::collections::BTreeSet::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(exe) = std::fs::read_link(entry.path().join("exe")) else { continue };
        let Ok(environ) = std::fs::read(entry.path().join("environ")) else { continue };
        if exe.ends_with("bud") && String::from_utf8_lossy(&environ).contains(home.dir.to_str().unwrap()) {
            let stat = read(entry.path().join("stat"));
            let session = stat.rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().to_owned();
            leaders.insert(session);
        }
    }
    assert_eq!(leaders.len(), 1, "one daemon of pid {pid}: {leaders:?}");
}

#[test]
fn a_shell_without_a_runtime_directory_finds_the_daemon() {
    let home = Home::sub();
    let context = home.dockerfile(TINY);
    home.build(&["-t", "foo"], &context).ok();
    let pid = home.daemon_pid();
    let mut command = home.bud_command(["--progress", "plain", "-t", "bar"]);
    command.arg(&context).env_remove("XDG_RUNTIME_DIR");
    run(command).ok();
    assert_eq!(home.daemon_pid(), pid);
}

#[test]
fn a_stale_socket_and_a_killed_daemon_are_no_obstacle() {
    let home = Home::sub();
    let context = home.dockerfile(TINY);
    home.build(&["-t", "foo"], &context).ok();
    let first = home.daemon_pid();
    home.kill_daemon();
    assert!(home.socket().exists(), "kill -9 leaves a socket behind");
    home.build(&["-t", "foo"], &context).ok();
    assert_ne!(home.daemon_pid(), first);
}

#[test]
fn an_idle_daemon_leaves_and_no_client_is_lost() {
    let home = Home::sub();
    let context = home.dockerfile(TINY);
    let start = |home: &Home| {
        let mut command = home.bud_command(["daemon", "start", "--idle-timeout", "1s"]);
        command.env("BUD_IDLE_TIMEOUT", "1s");
        run(command).ok();
    };
    start(&home);
    wait_until("the idle daemon is gone", || home.daemon_pid().is_none());
    assert!(!home.socket().exists());
    // Builds that come just when a daemon leaves must all succeed.
    for n in 0..12 {
        let mut command = home.bud_command(["--progress", "plain", "-t", "foo"]);
        command.arg(&context).env("BUD_IDLE_TIMEOUT", "1s");
        run(command).ok();
        std::thread::sleep(std::time::Duration::from_millis(960 + n * 8));
    }
}

#[test]
fn a_second_daemon_on_the_same_root_names_the_first() {
    let home = Home::sub();
    home.bud(["daemon", "start"]).ok();
    let pid = home.daemon_pid().unwrap();
    let mut command = home.bud_command(["daemon", "--addr"]);
    command.arg(format!("unix://{}", home.path("other.sock").display())).arg("--root").arg(home.state_root());
    run(command).fails_with(&[&pid.to_string()]);
    assert_eq!(home.daemon_pid(), Some(pid));
    assert!(home.socket().exists());
}

#[test]
fn a_start_that_fails_says_why() {
    let home = Home::sub();
    let context = home.dockerfile(TINY);
    // The state root is a file.
    home.write(&home.state_root(), "not a directory");
    let ran = home.build(&["-t", "foo"], &context).fails_with(&["bud"]);
    assert!(ran.stderr.contains(home.state_root().to_str().unwrap()), "{ran}");
    assert!(ran.took.as_secs() < 10, "{ran}");
}
