//! The daemon as a service: sockets that were handed over, its log, its limits, and that nothing is left of it.

use crate::harness::{Home, bud, json, read, run, wait_until};
use std::path::Path;
use std::process::{Child, Command, Stdio};

const TINY: &str = "FROM scratch\nLABEL a=b\n";

/// Listens on the path and becomes the program with the socket as a service manager hands it over.
const HAND_OVER: &str = r#"
use Socket; use POSIX ();
my $path = shift;
socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die "socket: $!"; bind($s, sockaddr_un($path)) or die "bind: $!";
chmod 0600, $path; listen($s, 64) or die "listen: $!";
POSIX::dup2(fileno($s), 3) or die "dup2: $!" unless fileno($s) == 3;
$^F = 3; fcntl(IO::Handle->new_from_fd(3, "r"), 2, 0); 
$ENV{LISTEN_FDS} = 1; $ENV{LISTEN_PID} = $$;
exec @ARGV or die "exec: $!";
"#;

fn activated(home: &Home, args: &[&str]) -> Child {
    let dir = home.socket().parent().unwrap().to_owned();
    std::fs::create_dir_all(&dir).unwrap();
    std::os::unix::fs::chown(&dir, Some(home.user.uid), Some(home.user.gid)).unwrap();
    let _ = std::fs::remove_file(home.socket());
    let mut command = home.command("perl");
    command.args(["-MIO::Handle", "-e", HAND_OVER]).arg(home.socket()).arg(bud()).arg("daemon").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::inherit());
    command.spawn().unwrap()
}

#[test]
fn a_socket_of_a_service_manager_is_used_and_left() {
    let home = Home::sub();
    let mut daemon = activated(&home, &["--addr", "fd://", "--idle-timeout", "2s"]);
    wait_until("the socket is there", || home.socket().exists());
    let inode = || std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(home.socket()).unwrap());
    let before = inode();
    home.build(&["-t", "foo"], &home.dockerfile(TINY)).ok();
    let status = home.bud(["daemon", "status", "--json"]).ok();
    let status = json(status.stdout.as_bytes());
    assert_eq!(status["pid"], daemon.id(), "no second daemon was started");
    assert_eq!(status["activated"], true);
    assert_eq!(status["address"], format!("unix://{}", home.socket().display()));
    // It leaves, and its socket stays for the service manager.
    assert!(daemon.wait().unwrap().success());
    assert_eq!(inode(), before);
}

#[test]
fn sockets_that_are_none_are_refused() {
    let home = Home::sub();
    let daemon = |env: &[(&str, &str)], args: &[&str]| {
        // The shell's own process becomes the daemon, so its number is the right one.
        let mut command = home.command("sh");
        command.args(["-c", "export LISTEN_PID=$$; exec \"$@\"", "sh"]).arg(bud()).arg("daemon").args(args);
        command.envs(env.iter().copied());
        run(command)
    };
    daemon(&[], &["--addr", "fd://"]).fails_with(&["fd://", "no service manager"]);
    daemon(&[("LISTEN_FDS", "900")], &[]).fails_with(&["LISTEN_FDS"]);
    daemon(&[("LISTEN_FDS", "3")], &[]).fails_with(&["service manager"]);
}

#[test]
fn systemd_s_own_activation_works() {
    let home = Home::sub();
    let mut command = home.command("systemd-socket-activate");
    std::fs::create_dir_all(home.socket().parent().unwrap()).unwrap();
    std::os::unix::fs::chown(home.socket().parent().unwrap(), Some(home.user.uid), Some(home.user.gid)).unwrap();
    command.arg("-l").arg(home.socket()).args(["-E", "HOME", "-E", "XDG_RUNTIME_DIR", "-E", "PATH"]);
    command.arg(bud()).args(["daemon", "--idle-timeout", "1s"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut daemon = command.spawn().unwrap();
    wait_until("the socket is there", || home.socket().exists());
    // The first connection starts it.
    home.build(&["-t", "foo"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    assert!(daemon.wait().unwrap().success());
}

#[test]
fn the_log_has_a_size_and_one_old_file_and_can_be_followed() {
    // More than a build writes, so that the file is not put aside several times between two looks of `logs -f`.
    const LIMIT: u64 = 512 << 10;
    let home = Home::sub();
    let mut start = home.bud_command(["daemon", "start"]);
    start.env("BUD_LOG", "trace").env("BUD_LOG_LIMIT", LIMIT.to_string());
    run(start).ok();
    let log = home.state_root().join("daemon.log");
    let old = home.state_root().join("daemon.log.old");
    let followed = home.dir.join("followed");
    let mut follow = home.bud_command(["daemon", "logs", "-f", "-n", "1"]);
    let mut follow = follow.stdout(std::fs::File::create(&followed).unwrap()).spawn().unwrap();
    wait_until("the log is followed", || std::fs::metadata(&followed).unwrap().len() > 0);
    let mut builds = 0;
    while !old.exists() {
        builds += 1;
        assert!(builds < 100, "the log is never put aside: {:?}", std::fs::metadata(&log));
        home.build(&["-t", "foo"], &home.dockerfile(&format!("FROM scratch\nLABEL n={builds}\n"))).ok();
        // In the moment between the two files there is none.
        let so_far = std::fs::read_to_string(&log).unwrap_or_default();
        if let Some(last) = so_far.lines().rev().nth(1) {
            wait_until("the build's lines are shown", || read(&followed).contains(last));
        }
    }
    let length = |path: &Path| std::fs::metadata(path).map_or(0, |m| m.len());
    assert!(length(&old) >= LIMIT, "{}", length(&old));
    assert!(length(&old) < LIMIT * 2 && length(&log) < LIMIT * 2, "{} {}", length(&old), length(&log));
    let names: Vec<_> = std::fs::read_dir(home.state_root()).unwrap().flatten().map(|e| e.file_name()).collect();
    assert_eq!(names.iter().filter(|n| n.to_string_lossy().contains(".log")).count(), 2, "{names:?}");
    // The lines around the seam: the last of the old file, and the first of the new one.
    let (before, after) = (read(&old), read(&log));
    for seam in [before.lines().next_back().unwrap(), after.lines().next().unwrap()] {
        wait_until("both sides of the seam are shown", || read(&followed).contains(seam));
    }
    follow.kill().unwrap();
    follow.wait().unwrap();
}

#[test]
fn stop_waits_for_builds_when_asked() {
    let home = Home::sub();
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let slow = home.dockerfile("FROM busybox\nRUN sleep 3\n");
    let mut building = home.bud_command(["--progress", "plain", "-t", "foo"]);
    building.arg(&slow);
    let building = building.spawn().unwrap();
    wait_until("the build runs", || {
        let status = home.bud(["daemon", "status", "--json"]).ok();
        json(status.stdout.as_bytes())["activeBuilds"] == 1
    });
    home.bud(["daemon", "stop"]).fails_with(&["1 build is running", "--wait"]);
    home.bud(["daemon", "stop", "--wait"]).ok();
    let out = building.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    wait_until("the daemon is gone", || home.daemon_pid().is_none());
}

/// All processes of this account's daemon, by a word that all of them have in their environment, command or root.
fn processes_of(home: &Home) -> Vec<String> {
    let word = home.dir.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let of = |file: &str| std::fs::read(entry.path().join(file)).unwrap_or_default();
        let text = [of("environ"), of("cmdline"), of("mountinfo")].concat();
        if entry.path().join("exe").read_link().is_ok() && String::from_utf8_lossy(&text).contains(word) {
            found.push(format!("{}: {}", entry.file_name().to_string_lossy(), String::from_utf8_lossy(&of("cmdline"))));
        }
    }
    found
}

#[test]
fn nothing_is_left_of_a_daemon_that_was_killed() {
    let home = Home::sub();
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let marker = "31.4159";
    let slow = home.dockerfile(&format!(
        "FROM busybox\nRUN --mount=type=cache,target=/c (sleep {marker} &) ; echo x > /x; sleep {marker}\n"
    ));
    let mut building = home.bud_command(["--progress", "plain", "-t", "foo"]);
    building.arg(&slow);
    let building = building.spawn().unwrap();
    let sleeping = || {
        let all = Command::new("ps").args(["-e", "-o", "args="]).output().unwrap();
        String::from_utf8_lossy(&all.stdout).lines().filter(|l| l.contains("sleep") && l.contains(marker)).count()
    };
    wait_until("both processes of the step run", || sleeping() >= 2);
    home.kill_daemon();
    let out = building.wait_with_output().unwrap();
    assert!(!out.status.success());
    wait_until("the step's processes are gone", || sleeping() == 0);
    wait_until("no process of the account is left", || processes_of(&home).is_empty());
    let mounts = read("/proc/self/mountinfo");
    assert!(!mounts.contains(home.dir.to_str().unwrap()), "{mounts}");
    // The next start removes what the killed step had written, and the socket.
    let drafts = || {
        let layers = std::fs::read_dir(home.state_root().join("layers")).unwrap();
        layers.flatten().map(|e| e.file_name().to_string_lossy().into_owned()).collect::<Vec<_>>()
    };
    let before = drafts();
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok().says(&["CACHED"]);
    wait_until("the draft is gone", || drafts().len() < before.len());
    home.bud(["daemon", "stop"]).ok();
    wait_until("no process of the account is left", || processes_of(&home).is_empty());
    assert!(!home.socket().exists());
    assert_eq!(std::fs::read_dir(home.runtime_dir().join("buildkit")).unwrap().count(), 0, "no socket is left");
}

#[test]
fn a_limit_on_processes_is_named() {
    let home = Home::sub();
    let limited = |limit: u32| {
        let mut command = home.command("prlimit");
        command.arg(format!("--nproc={limit}")).arg(bud()).args(["--progress", "plain", "-t", "foo"]);
        command.arg(home.dockerfile("FROM busybox\nRUN true\n"));
        run(command)
    };
    for limit in [1, 4, 12] {
        let ran = limited(limit).fails_with(&["ulimit -u"]);
        assert!(!ran.stderr.contains("panicked"), "{ran}");
    }
}
