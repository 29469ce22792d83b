//! A newer `bud` takes over from an idle older daemon, and never from one that is used.

use crate::harness::{Home, bud, json, run, wait_until};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

/// Makes a newer build of the program: the same file with a later time.
fn newer(home: &Home) -> PathBuf {
    let path = home.path("newer-bud");
    std::fs::copy(bud(), &path).unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    file.set_modified(SystemTime::now() + Duration::from_secs(60)).unwrap();
    path
}

fn build(home: &Home, program: &Path, context: &Path) -> Command {
    let mut command = home.command(program);
    command.args(["--progress", "plain", "-t", "foo"]).arg(context);
    command
}

/// The daemon's process by its own word: the harness's look at the program's place doesn't know a second program.
fn pid(home: &Home) -> i64 {
    let status = home.bud(["daemon", "status", "--json"]).ok();
    json(status.stdout.as_bytes())["pid"].as_i64().unwrap()
}

#[test]
fn a_newer_bud_replaces_an_idle_daemon_and_an_older_one_doesn_t() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    let newer = newer(&home);
    run(build(&home, bud(), &context)).ok();
    let first = pid(&home);
    let mut status = home.command(&newer);
    status.args(["daemon", "status"]);
    run(status).ok().says(&["this bud is newer"]);
    assert_eq!(pid(&home), first, "looking changes nothing");
    run(build(&home, &newer, &context)).ok();
    let second = pid(&home);
    assert_ne!(second, first);
    wait_until("the older one is gone", || !Path::new(&format!("/proc/{first}/exe")).exists());
    // The two don't take turns.
    run(build(&home, bud(), &context)).ok();
    run(build(&home, &newer, &context)).ok();
    assert_eq!(pid(&home), second);
    assert!(home.socket().exists());
}

#[test]
fn a_daemon_that_builds_is_used_as_it_is() {
    let home = Home::sub();
    let newer = newer(&home);
    let quick = home.dockerfile("FROM busybox\nRUN true\n");
    run(build(&home, bud(), &quick)).ok();
    let first = pid(&home);
    let slow = home.dockerfile("FROM busybox\nRUN echo begun; sleep 4; echo done > /done\n");
    let building = build(&home, bud(), &slow).spawn().unwrap();
    wait_until("the build runs", || {
        let status = home.bud(["daemon", "status", "--json"]).ok();
        json(status.stdout.as_bytes())["activeBuilds"] == 1
    });
    for _ in 0..3 {
        run(build(&home, &newer, &quick)).ok();
        assert_eq!(pid(&home), first, "its build goes on");
    }
    let out = building.wait_with_output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    run(build(&home, &newer, &quick)).ok();
    assert_ne!(pid(&home), first);
}

#[test]
fn a_client_that_is_connected_keeps_the_daemon() {
    let home = Home::sub();
    let newer = newer(&home);
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    run(build(&home, bud(), &context)).ok();
    let first = pid(&home);
    // It may be about to build: nothing was said yet. Another user's connection would be dropped, so it is one of the same.
    let mut other = home.command("perl");
    other
        .args([
            "-MIO::Socket::UNIX",
            "-e",
            "my $s = IO::Socket::UNIX->new(Peer => $ARGV[0]) or die; print \"up\\n\"; close STDOUT; <STDIN>",
        ])
        .arg(home.socket())
        .stdin(std::process::Stdio::piped());
    let mut other = other.spawn().unwrap();
    let mut said = String::new();
    std::io::Read::read_to_string(&mut other.stdout.take().unwrap(), &mut said).unwrap();
    assert_eq!(said, "up\n");
    run(build(&home, &newer, &context)).ok();
    assert_eq!(pid(&home), first);
    drop(other.stdin.take());
    other.wait().unwrap();
    wait_until("the newer one takes over", || {
        run(build(&home, &newer, &context)).ok();
        pid(&home) != first
    });
}

#[test]
fn clients_of_both_ages_at_once_all_succeed() {
    let home = Home::sub();
    let newer = newer(&home);
    let context = home.dockerfile("FROM busybox\nRUN true\n");
    run(build(&home, bud(), &context)).ok();
    for round in 0..3 {
        let children: Vec<_> =
            (0..6).map(|n| build(&home, if n % 2 == 0 { &newer } else { bud() }, &context).spawn().unwrap()).collect();
        for child in children {
            let out = child.wait_with_output().unwrap();
            assert!(out.status.success(), "round {round}: {}", String::from_utf8_lossy(&out.stderr));
        }
    }
}
