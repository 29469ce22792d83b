//! Point 2: the flags mean what they mean in `docker build`; mistakes are answered before anything is started.

use crate::harness::{Home, json, read, run};
use std::io::Write as _;
use std::process::Stdio;

/// A home whose daemon must not be there after a mistake.
fn nothing_started(home: &Home) {
    assert!(home.daemon_pid().is_none(), "a daemon was started");
    assert!(!home.socket().exists(), "a socket was made");
}

#[test]
fn mistakes_are_answered_before_anything_is_started() {
    let home = Home::sub();
    let missing = home.context(&[("README", "")]);
    home.build(&[], &missing).fails_with(&["Dockerfile"]);
    let typo = home.dockerfile("FROM scratch\nCOPPY a /\n");
    home.build(&[], &typo).fails_with(&["COPPY a /", "COPY", "2"]);
    let flag = home.dockerfile("FROM scratch\nCOPY --chwon=1 a /\n");
    home.build(&[], &flag).fails_with(&["--chwon", "chown"]);
    let good = home.dockerfile("FROM scratch AS runtime\nARG VERSION=1\nLABEL v=$VERSION\n");
    home.build(&["--target", "runtim"], &good).fails_with(&["runtim", "runtime"]);
    home.build(&["--no-such-flag"], &good).fails_with(&["--no-such-flag"]);
    home.build(&[], &home.dir.join("nowhere")).fails_with(&["nowhere"]);
    nothing_started(&home);
}

#[test]
fn a_mistyped_build_arg_is_told_with_the_nearest_name() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nARG VERSION=1\nLABEL v=$VERSION\n");
    let ran = home.build(&["--build-arg", "VERSOIN=2"], &context);
    let ran = ran.says(&["VERSOIN", "VERSION"]);
    assert!(ran.code.is_some());
}

#[test]
fn build_flags_reach_the_image() {
    let home = Home::sub();
    let context = home.context(&[
        ("other.Dockerfile", "FROM scratch AS a\nARG V=none\nLABEL v=$V\nFROM scratch AS b\nLABEL stage=b\n"),
        ("Dockerfile", "FROM scratch\n"),
    ]);
    let file = context.join("other.Dockerfile");
    let image = home.image(
        &[
            "-f",
            file.to_str().unwrap(),
            "--target",
            "a",
            "--build-arg",
            "V=7",
            "--label",
            "extra=yes",
            "-t",
            "foo:1",
            "-t",
            "bar",
        ],
        &context,
    );
    let labels = &image.config["config"]["Labels"];
    assert_eq!(labels, &serde_json::json!({"extra": "yes", "v": "7"}));
    let names: Vec<_> = image.index["manifests"]
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["annotations"]["io.containerd.image.name"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(names, ["docker.io/library/foo:1", "docker.io/library/bar:latest"]);
}

#[test]
fn a_dockerfile_and_a_context_come_from_stdin() {
    let home = Home::sub();
    let context = home.context(&[("a", "A")]);
    let feed = |args: &[&str], input: &[u8]| {
        let mut command = home.bud_command(args);
        command.stdin(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let out = home.path("from-stdin");
    let dest = out.to_str().unwrap();
    feed(&["-f", "-", "-o", dest, context.to_str().unwrap()], b"FROM scratch\nCOPY a /b\n");
    assert_eq!(read(out.join("b")), "A");
    let only = home.path("only-dockerfile.tar");
    feed(&["-o", &format!("type=oci,dest={}", only.display()), "-"], b"FROM scratch\nLABEL x=y\n");
    assert!(only.exists());
    let tar =
        std::process::Command::new("tar").arg("-C").arg(&context).args(["-cf", "-", "."]).output().unwrap().stdout;
    home.write(&context.join("Dockerfile"), "FROM scratch\nCOPY a /c\n");
    let tar = [tar, Vec::new()].concat();
    assert!(!tar.is_empty());
    let tar =
        std::process::Command::new("tar").arg("-C").arg(&context).args(["-cf", "-", "."]).output().unwrap().stdout;
    let out = home.path("from-tar");
    feed(&["-o", out.to_str().unwrap(), "-"], &tar);
    assert_eq!(read(out.join("c")), "A");
}

#[test]
fn named_contexts_replace_images_and_serve_copies() {
    let home = Home::sub();
    let lib = home.context(&[("lib.txt", "library")]);
    let context = home.dockerfile("FROM base\nCOPY --from=lib lib.txt /l\nCOPY --from=busy /etc/group /group\n");
    let tree = home.tree(
        &[
            "--build-context",
            &format!("lib={}", lib.display()),
            "--build-context",
            "base=docker-image://busybox",
            "--build-context",
            "busy=docker-image://busybox:latest",
        ],
        &context,
    );
    assert_eq!(read(tree.join("l")), "library");
    assert!(tree.join("bin/busybox").exists());
    assert!(read(tree.join("group")).contains("staff"));
}

#[test]
fn secrets_hosts_limits_and_shm_reach_the_step() {
    let home = Home::sub();
    home.write(&home.path("token"), "s3cret");
    let context = home.dockerfile(
        "FROM busybox\nRUN --mount=type=secret,id=tok --mount=type=secret,id=envtok,env=T \
         { cat /run/secrets/tok; echo; echo $T; cat /etc/hosts; ulimit -n; df -k /dev/shm; } > /out\n",
    );
    let mut command =
        home.bud_command(["--progress", "plain", "--secret", "id=tok,src=token", "--secret", "id=envtok,env=TOK"]);
    command.env("TOK", "from-env").args([
        "--add-host",
        "db:10.1.2.3",
        "--ulimit",
        "nofile=1062:1062",
        "--shm-size",
        "128m",
    ]);
    let out = home.path("o");
    command.arg("-o").arg(&out).arg(&context);
    run(command).ok();
    let text = read(out.join("out"));
    for part in ["s3cret", "from-env", "10.1.2.3\tdb", "1062", "131072"] {
        assert!(text.contains(part), "{part} in {text}");
    }
}

#[test]
fn quiet_prints_the_id_alone_and_files_tell_the_rest() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    let iid = home.path("iid");
    let meta = home.path("meta.json");
    let ran = home
        .bud([
            "-q",
            "-t",
            "foo",
            "--iidfile",
            iid.to_str().unwrap(),
            "--metadata-file",
            meta.to_str().unwrap(),
            context.to_str().unwrap(),
        ])
        .ok();
    let id = ran.stdout.trim();
    assert!(id.starts_with("sha256:") && id.len() == 71, "{ran}");
    assert_eq!(read(&iid).trim(), id);
    let meta = json(&std::fs::read(&meta).unwrap());
    assert_eq!(meta["containerimage.config.digest"], id);
    assert_eq!(ran.stderr, "");
}

#[test]
fn network_none_has_only_loopback() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN cat /proc/net/dev | grep : | cut -d: -f1 | tr -d ' ' > /devs\n");
    let tree = home.tree(&["--network=none"], &context);
    assert_eq!(read(tree.join("devs")), "lo\n");
}

#[test]
fn no_cache_runs_again_and_a_filter_only_its_stage() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox AS a\nRUN cat /proc/sys/kernel/random/uuid > /a\nFROM busybox AS b\nRUN cat /proc/sys/kernel/random/uuid > /b\nFROM scratch\nCOPY --from=a /a /\nCOPY --from=b /b /\n",
    );
    let ids = |args: &[&str]| {
        let tree = home.tree(args, &context);
        (read(tree.join("a")), read(tree.join("b")))
    };
    let first = ids(&[]);
    assert_eq!(ids(&[]), first);
    let filtered = ids(&["--no-cache-filter", "b"]);
    assert_eq!(filtered.0, first.0);
    assert_ne!(filtered.1, first.1);
    let fresh = ids(&["--no-cache"]);
    assert!(fresh.0 != first.0 && fresh.1 != filtered.1);
}
