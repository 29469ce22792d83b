//! `bud doctor` in real accounts and on machines that forbid something.

use crate::harness::{Home, Ran, User, bud, json, run};
use serde_json::Value;
use std::process::Command;

/// Returns the report and one of its checks.
#[track_caller]
fn check(ran: &Ran, name: &str) -> (Value, Value) {
    let report = json(ran.stdout.as_bytes());
    let found = report["checks"].as_array().expect("checks").iter().find(|check| check["name"] == name).cloned();
    (report.clone(), found.unwrap_or_else(|| panic!("no check {name} in {report:#}")))
}

/// Runs a shell line as the user, in which `$BUD` is the program.
fn shell(home: &Home, line: &str) -> Command {
    let mut command = home.command("sh");
    command.arg("-c").arg(line).env("BUD", bud());
    command
}

#[test]
fn with_sub_ids_all_that_matters_is_well() {
    let home = Home::sub();
    let ran = home.bud(["doctor", "--json"]).ok();
    for name in ["user namespace", "user IDs", "newuidmap", "/etc/subuid", "/proc", "overlayfs", "programs", "socket"] {
        let (report, check) = check(&ran, name);
        assert_eq!(report["ok"], true, "{ran}");
        assert_eq!(check["status"], "ok", "{ran}");
    }
    assert_eq!(check(&ran, "user IDs").1["detail"], "rootless, with sub-IDs");
    let text = home.bud(["doctor"]).ok();
    assert!(text.stdout.contains("Builds work here (rootless, with sub-IDs)"), "{text}");
    assert!(!text.stdout.contains('\u{1b}'), "no colours in a pipe: {text}");
    // Nothing of it stays, and no state directory is made for a question.
    let left: Vec<_> = std::fs::read_dir(home.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".config"], "{left:?}");
    assert_eq!(std::fs::read_dir(home.runtime_dir()).unwrap().count(), 0);
    home.build(&[], &home.dockerfile("FROM scratch\nLABEL a=b\n")).ok();
}

#[test]
fn without_sub_ids_the_command_is_told_and_builds_work() {
    for (user, said) in [(User::plain(), "no IDs for bud-plain"), (User::few(), "1000 IDs for bud-few")] {
        let home = Home::new(user);
        let ran = home.bud(["doctor", "--json"]).ok();
        let (report, found) = check(&ran, "/etc/subuid");
        assert_eq!(report["users"], "rootless, own ID alone", "{ran}");
        assert_eq!(found["status"], "degraded", "{ran}");
        assert!(found["detail"].as_str().unwrap().contains(said), "{ran}");
        assert!(found["fix"].as_str().unwrap().starts_with("sudo usermod --add-subuids "), "{ran}");
        // They were asked for: then nothing would work.
        home.bud(["doctor", "--userns=subids"]).fails_with(&["broken", "/etc/subuid", "Builds don't work"]);
    }
}

#[test]
fn no_new_privs_is_seen() {
    let home = Home::sub();
    let ran = run(shell(&home, "exec setpriv --no-new-privs $BUD doctor --json")).ok();
    let (report, found) = check(&ran, "newuidmap");
    assert_eq!(report["users"], "rootless, own ID alone", "{ran}");
    assert!(found["detail"].as_str().unwrap().contains("no_new_privs"), "{ran}");
    assert!(found["fix"].as_str().unwrap().contains("login shell"), "{ran}");
}

#[test]
fn forbidden_namespaces_are_broken_and_a_failed_start_says_so() {
    let home = Home::new(User::plain());
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    // The limit is each user namespace's own: below this one no more can be made.
    let limited = |command: &str| {
        let outer = "unshare --user --map-root-user sh -c";
        let line = format!(
            "{outer} 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -all --inh-caps -all {command}'"
        );
        run(shell(&home, &line))
    };
    let ran = limited("$BUD doctor --json");
    assert_eq!(ran.code, Some(1), "{ran}");
    let (report, found) = check(&ran, "user namespace");
    assert_eq!((&report["ok"], &found["status"]), (&Value::Bool(false), &Value::from("broken")), "{ran}");
    assert!(found["detail"].as_str().unwrap().contains("user.max_user_namespaces is 0"), "{ran}");
    assert!(found["fix"].as_str().unwrap().contains("sysctl"), "{ran}");
    let ran = limited(&format!("$BUD {}", context.display()));
    assert_eq!(ran.code, Some(1), "{ran}");
    ran.says(&["can't start", "user.max_user_namespaces is 0", "`bud doctor` finds"]);
}

#[test]
fn a_state_directory_that_can_t_be_used_is_broken() {
    let home = Home::sub();
    home.bud(["doctor", "--root", "/proc/nothing"]).fails_with(&["broken", "state directory", "--root DIR"]);
    let line = "exec unshare --user --map-root-user --mount sh -c \
                'mkdir -p m && mount -t tmpfs -o ro none m && exec $BUD doctor --json --root $PWD/m/state'";
    let ran = run(shell(&home, line));
    assert_eq!(ran.code, Some(1), "{ran}");
    let (_, found) = check(&ran, "state directory");
    assert!(found["detail"].as_str().unwrap().contains("Read-only"), "{ran}");
}

#[test]
fn what_is_tried_counts_not_what_is_known() {
    let home = Home::sub();
    // Overlays have flags of their own: programs run from one although the file system below is mounted noexec.
    let line = "exec unshare --user --map-root-user --mount sh -c \
                'mkdir -p m && mount -t tmpfs -o noexec none m && exec $BUD doctor --json --root $PWD/m/state'";
    let ran = run(shell(&home, line)).ok();
    assert_eq!(check(&ran, "programs").1["status"], "ok", "{ran}");
    assert_eq!(check(&ran, "file system").1["detail"], "tmpfs", "{ran}");
    // A /proc that is partly hidden, as in containers, doesn't let a new one be mounted. Only who can't take away what hides
    // it is bound by that: so there are two namespaces.
    let line = "exec unshare --user --map-root-user --mount sh -c \
                'mount -t tmpfs none /proc/tty && exec unshare --user --map-root-user --mount $BUD doctor --json'";
    let ran = run(shell(&home, line));
    assert_eq!(ran.code, Some(1), "{ran}");
    let (_, found) = check(&ran, "/proc");
    assert!(found["fix"].as_str().unwrap().contains("--oci-worker-no-process-sandbox"), "{ran}");
}

#[test]
fn root_is_well() {
    let home = Home::new(User { name: "root", uid: 0, gid: 0 });
    let ran = home.bud(["doctor", "--json"]).ok();
    let (report, _) = check(&ran, "overlayfs");
    assert_eq!(report["users"], "root", "{ran}");
}
