//! Point 12: every kind of bad input gets a clear error, and the daemon builds on.

use crate::harness::{Home, read, wait_until};
use crate::registry;
use std::io::{BufRead as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;

#[track_caller]
fn alive(home: &Home) {
    let pid = home.daemon_pid();
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY a /\n"), ("a", "alive")]);
    assert_eq!(read(home.tree(&[], &context).join("a")), "alive");
    assert!(pid.is_none() || home.daemon_pid() == pid, "the daemon is another one");
}

#[test]
fn a_missing_source_an_unknown_image_and_a_failing_step_are_told() {
    let home = Home::sub();
    home.build(&[], &home.dockerfile("FROM scratch\nCOPY nope.txt /\n")).fails_with(&[
        "\"/nope.txt\": not found",
        "COPY nope.txt /",
        "Dockerfile:2",
    ]);
    home.build(&[], &home.dockerfile("FROM no-such-image:9\n")).fails_with(&[
        "no-such-image:9",
        "not found",
        "Dockerfile:1",
    ]);
    let ran = home
        .build(&[], &home.dockerfile("FROM busybox\nRUN echo almost; echo why it failed >&2; exit 41\n"))
        .fails_with(&["why it failed", "exit code: 41", "Dockerfile:2", "did not complete successfully"]);
    assert!(ran.took.as_secs() < 30);
    home.build(&[], &home.dockerfile("FROM busybox\nRUN [\"/no/such/program\"]\n")).fails_with(&["/no/such/program"]);
    home.build(&[], &home.dockerfile("FROM busybox\nRUN sh -c 'kill -9 $$'; exit $?\n")).fails_with(&["137"]);
    home.build(&[], &home.dockerfile("FROM busybox\nUSER nobodyhere\nRUN true\n")).fails_with(&["nobodyhere"]);
    alive(&home);
}

#[test]
fn a_registry_that_cuts_off_or_lies_is_told() {
    let own = registry::start();
    let tree = crate::harness::scratch("tree");
    std::fs::write(tree.join("f"), "content ".repeat(1000)).unwrap();
    own.push_tree(&tree, "team/base:latest", &[]);
    let home = Home::sub();
    home.write_config(&format!("[registry.\"127.0.0.1:{}\"]\n  http = true\n", own.port));
    // Flip one byte in the layer that the registry stores.
    let mut blobs = Vec::new();
    let dir = own.storage.join("docker/registry/v2/blobs/sha256");
    for outer in std::fs::read_dir(&dir).unwrap().flatten() {
        for blob in std::fs::read_dir(outer.path()).unwrap().flatten() {
            blobs.push(blob.path().join("data"));
        }
    }
    let layer = blobs.iter().find(|b| std::fs::read(b).unwrap().starts_with(&[0x1f, 0x8b])).expect("a gzip layer");
    let good = std::fs::read(layer).unwrap();
    let mut bad = good.clone();
    let middle = bad.len() / 2;
    bad[middle] ^= 1;
    std::fs::write(layer, &bad).unwrap();
    let context = home
        .dockerfile(&format!("FROM 127.0.0.1:{}/team/base\nCOPY --from=0 /f /g\n", own.port).replace("--from=0 ", ""));
    let context_run = home.context(&[("Dockerfile", &read(context.join("Dockerfile"))), ("f", "f")]);
    // The error tells both digests: the one that was asked for, and that of what came.
    let digests = [&good, &bad].map(|bytes| format!("sha256:{}", crate::harness::sha256(bytes)));
    let texts = ["digest is", digests[0].as_str(), digests[1].as_str()];
    home.build(&["-o", home.path("o").to_str().unwrap()], &context_run).fails_with(&texts);
    std::fs::write(layer, &good).unwrap();
    home.build(&["-o", home.path("o").to_str().unwrap()], &context_run).ok();
    alive(&home);
    let port = registry::free_port();
    home.build(&[], &home.dockerfile(&format!("FROM 127.0.0.1:{port}/x\n")))
        .fails_with(&[&format!("127.0.0.1:{port}")]);
}

#[test]
fn files_that_cannot_be_read_or_written_are_named() {
    let home = Home::sub();
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY . /\n"), ("locked", "x")]);
    std::fs::set_permissions(context.join("locked"), std::fs::Permissions::from_mode(0o000)).unwrap();
    // Another user's file that nobody else may read.
    std::os::unix::fs::chown(context.join("locked"), Some(0), Some(0)).unwrap();
    home.build(&["-o", home.path("o").to_str().unwrap()], &context).fails_with(&["locked"]);
    std::fs::remove_file(context.join("locked")).unwrap();
    home.build(&["-o", "/root/not/writable"], &context).fails_with(&["/root/not/writable"]);
    home.build(&["-o", "type=oci,dest=/proc/x.tar"], &context).fails_with(&["/proc/x.tar"]);
    rustix::fs::mknodat(rustix::fs::CWD, context.join("fifo"), rustix::fs::FileType::Fifo, 0o644.into(), 0).unwrap();
    let ran = home.build(&["-o", home.path("o2").to_str().unwrap()], &context);
    assert!(ran.took.as_secs() < 20 && ran.code.is_some(), "a FIFO hangs nothing: {ran}");
    alive(&home);
}

#[test]
fn a_socket_without_permission_and_an_address_without_daemon_are_told() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    let other = Home::new(crate::harness::User::plain());
    other.bud(["daemon", "start"]).ok();
    std::fs::set_permissions(&other.dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    let address = format!("unix://{}", other.socket().display());
    home.build(&["--buildkit-addr", &address], &context).fails_with(&[other.socket().to_str().unwrap()]);
    home.build(&["--buildkit-addr", "unix:///nowhere/at/all.sock"], &context).fails_with(&["/nowhere/at/all.sock"]);
    home.build(&["--buildkit-addr", "gopher://x"], &context).fails_with(&["gopher"]);
}

#[test]
fn a_machine_without_user_namespaces_says_what_to_type() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    // A user namespace in which no further one may be made; the shell in it waits until its IDs are mapped.
    let script = format!(
        "echo ready; read x; exec sh -c 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --reuid {} --regid {} --clear-groups {} --progress plain -t foo {}'",
        home.user.uid,
        home.user.gid,
        crate::harness::bud().display(),
        context.display()
    );
    let mut child = std::process::Command::new("unshare")
        .args(["-U", "sh", "-c", &script])
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", home.path(""))
        .env("XDG_RUNTIME_DIR", home.runtime_dir())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{}/{map}", child.id()), "0 0 600000\n").unwrap();
    }
    child.stdin.take().unwrap().write_all(b"go\n").unwrap();
    let out = child.wait_with_output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(!out.status.success() && text.contains("max_user_namespaces"), "{text}");
}

#[test]
fn a_full_disk_is_told_and_the_daemon_goes_on() {
    let home = Home::sub();
    let small = home.state_root();
    home.write(&small.join(".keep"), "");
    let out = std::process::Command::new("mount")
        .args([
            "-t",
            "tmpfs",
            "-o",
            &format!("size=140m,uid={},gid={},mode=700", home.user.uid, home.user.gid),
            "bud-test",
        ])
        .arg(&small)
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let result = std::panic::catch_unwind(|| {
        let big = home.context(&[("Dockerfile", "FROM scratch\nCOPY big /\n")]);
        home.write(&big.join("big"), vec![7_u8; 200 << 20]);
        home.build(&["-o", home.path("o").to_str().unwrap()], &big).fails_with(&["space"]);
        let step = home.dockerfile("FROM busybox\nRUN dd if=/dev/zero of=/big bs=1M count=200\n");
        home.build(&["-t", "foo"], &step).fails_with(&["No space left on device"]);
        home.bud(["prune", "--all", "--force"]).ok();
        alive(&home);
    });
    home.bud(["daemon", "stop", "--force"]);
    wait_until("the daemon is gone", || home.daemon_pid().is_none());
    std::process::Command::new("umount").args(["-l"]).arg(&small).status().unwrap();
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_daemon_killed_in_the_middle_is_told_at_once() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN sleep 100\n");
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let mut command = home.bud_command(["--progress", "plain", "-t", "foo"]);
    let child = command.arg(&context).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(1500));
    let pid = home.daemon_pid().expect("a daemon runs");
    home.kill_daemon();
    let start = std::time::Instant::now();
    let out = child.wait_with_output().unwrap();
    assert!(start.elapsed().as_secs() < 5);
    assert!(!out.status.success());
    let text = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(text.contains("daemon.log"), "the message names the log: {text}");
    wait_until("nothing of the step is left", || {
        !std::fs::read_dir("/proc")
            .unwrap()
            .flatten()
            .any(|p| std::fs::read(p.path().join("cmdline")).is_ok_and(|c| c == b"sleep\x00100\x00"))
    });
    assert_ne!(pid, 0);
    alive(&home);
}
