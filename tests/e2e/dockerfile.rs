//! Point 7: the instructions, end to end.

use crate::harness::{Home, read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

#[test]
fn the_config_holds_what_the_instructions_say() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nENV A=1 B=\"two words\"\nLABEL l=v\nWORKDIR /w\nWORKDIR sub\nUSER daemon\nSHELL [\"/bin/sh\", \"-ec\"]\nCMD [\"c\"]\nENTRYPOINT [\"e\", \"f\"]\nEXPOSE 80 53/udp\nVOLUME /data\nSTOPSIGNAL SIGINT\nHEALTHCHECK --interval=5s CMD true\nONBUILD RUN echo hi\nMAINTAINER me\n",
    );
    let image = home.image(&[], &context);
    let config = &image.config["config"];
    assert_eq!(
        config,
        &serde_json::json!({
            "User": "daemon", "ExposedPorts": {"53/udp": {}, "80/tcp": {}},
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "A=1", "B=two words"],
            "Entrypoint": ["e", "f"], "Cmd": ["c"], "Volumes": {"/data": {}}, "WorkingDir": "/w/sub", "Labels": {"l": "v"},
            "StopSignal": "SIGINT", "ArgsEscaped": true, "Healthcheck": {"Test": ["CMD-SHELL", "true"], "Interval": 5_000_000_000_i64},
            "OnBuild": ["RUN echo hi"], "Shell": ["/bin/sh", "-ec"]
        })
    );
    assert_eq!(image.config["author"], "me");
    let history = image.config["history"].as_array().unwrap();
    let layers = history.iter().filter(|h| h["empty_layer"] != true).count();
    assert_eq!(layers, image.layers());
    assert_eq!(image.config["rootfs"]["diff_ids"].as_array().unwrap().len(), image.layers());
    assert!(
        history.iter().any(|h| h["created_by"] == "ENV A=1 B=two words" && h["comment"] == "buildkit.dockerfile.v0")
    );
}

#[test]
fn onbuild_triggers_run_in_the_child() {
    let home = Home::sub();
    home.build(
        &["-t", "parent"],
        &home.dockerfile("FROM busybox\nONBUILD RUN echo triggered > /t\nONBUILD COPY f /f\n"),
    )
    .ok();
    let tree = home.tree(&[], &home.context(&[("Dockerfile", "FROM parent\n"), ("f", "F")]));
    assert_eq!(read(tree.join("t")), "triggered\n");
    assert_eq!(read(tree.join("f")), "F");
}

#[test]
fn copies_take_what_they_are_told() {
    let home = Home::sub();
    let context = home.context(&[
        (
            "Dockerfile",
            "# escape=`\nFROM busybox AS b\nRUN mkdir -p /o/d && echo o > /o/d/f && ln -s f /o/d/l\nFROM busybox\n\
             COPY --chown=daemon:staff --chmod=640 a.txt /owned/\n\
             COPY *.md dir /many/\n\
             COPY --parents dir/sub/x.txt /par/\n\
             COPY --exclude=*.log logs /nologs/\n\
             COPY --from=b /o/d /d\n\
             COPY --from=0 /o/d/f /num\n\
             COPY --link a.txt /linked/a\n\
             COPY <<one <<\"two\" /here/\nvalue of A: $A\none\nliteral $A\ntwo\n\
             ADD archive.tar.gz /unpacked/\n\
             RUN <<EOS\nset -e\necho heredoc > /heredoc\nEOS\n\
             RUN <<-EOS cat > /stdin\n\tindented\nEOS\n",
        ),
        ("a.txt", "a"),
        ("one.md", "1"),
        ("two.md", "2"),
        ("dir/sub/x.txt", "x"),
        ("logs/k.txt", "k"),
        ("logs/l.log", "l"),
        ("ignored/secret", "no"),
        (".dockerignore", "ignored\n"),
    ]);
    let ok = std::process::Command::new("tar")
        .args(["-C"])
        .arg(&context)
        .args(["-czf"])
        .arg(context.join("archive.tar.gz"))
        .arg("dir")
        .status();
    assert!(ok.unwrap().success());
    let tree = home.tree(&[], &context);
    assert_eq!(std::fs::metadata(tree.join("owned/a.txt")).unwrap().permissions().mode() & 0o777, 0o640);
    for (path, text) in [
        ("many/one.md", "1"),
        ("many/two.md", "2"),
        ("many/sub/x.txt", "x"),
        ("par/dir/sub/x.txt", "x"),
        ("nologs/k.txt", "k"),
        ("d/f", "o\n"),
        ("num", "o\n"),
        ("linked/a", "a"),
        ("here/one", "value of A: \n"),
        ("here/two", "literal $A\n"),
        ("unpacked/dir/sub/x.txt", "x"),
        ("heredoc", "heredoc\n"),
        ("stdin", "indented\n"),
    ] {
        assert_eq!(read(tree.join(path)), text, "{path}");
    }
    assert!(!tree.join("nologs/l.log").exists());
    assert_eq!(std::fs::read_link(tree.join("d/l")).unwrap().to_str(), Some("f"));
    let image = home.image(&[], &context);
    assert!(
        (0..image.layers())
            .any(|n| image.layer_listing(n).lines().any(|l| l.contains("1/50") && l.ends_with("owned/a.txt")))
    );
    let ignored = home.context(&[
        ("Dockerfile", "FROM scratch\nCOPY ignored/secret /\n"),
        ("ignored/secret", ""),
        (".dockerignore", "ignored\n"),
    ]);
    home.build(&[], &ignored).fails_with(&["ignored/secret", "not found"]);
}

#[test]
fn args_have_scopes_and_platforms_are_known() {
    let home = Home::sub();
    let context = home.dockerfile(
        "ARG BASE=busybox\nARG G=global\nFROM $BASE AS one\nARG G\nARG TARGETPLATFORM\nARG BUILDPLATFORM\nARG L=${G:+set}-${NONE:-default}\nRUN echo $G $TARGETPLATFORM $BUILDPLATFORM $L > /args\nFROM one\nRUN echo \"[$L]\" > /second\n",
    );
    let tree = home.tree(&[], &context);
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    assert_eq!(read(tree.join("args")), format!("global linux/{arch} linux/{arch} set-default\n"));
    assert_eq!(read(tree.join("second")), "[set-default]\n", "a stage upon a stage has its args");
}

#[test]
fn cache_mounts_keep_and_lock_and_binds_show() {
    let home = Home::sub();
    let text = |n: u32| {
        format!(
            "FROM busybox AS src\nRUN echo s > /s\nFROM busybox\nRUN --mount=type=cache,id=c,target=/c,sharing=locked --mount=type=bind,from=src,source=/s,target=/in echo {n} >> /c/log && cat /c/log /in > /out\n"
        )
    };
    let first = home.tree(&[], &home.dockerfile(&text(1)));
    assert_eq!(read(first.join("out")), "1\ns\n");
    let second = home.tree(&[], &home.dockerfile(&text(2)));
    assert_eq!(read(second.join("out")), "1\n2\ns\n");
    assert!(!second.join("c/log").exists());
}

#[test]
fn http_and_git_are_sources() {
    let home = Home::sub();
    let dir = home.dir.join("www");
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("file.txt"), "over http").unwrap();
    let port = crate::registry::free_port();
    let repo = dir.join("work");
    let git = |args: &[&str]| {
        let out = std::process::Command::new("git")
            .args(["-c", "user.name=t", "-c", "user.email=t@t", "-c", "init.defaultBranch=main"])
            .args(args)
            .output()
            .unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    };
    let path = repo.to_str().unwrap();
    git(&["init", "-q", path]);
    std::fs::create_dir_all(repo.join("sub")).unwrap();
    std::fs::write(repo.join("sub/g.txt"), "from git").unwrap();
    std::fs::write(repo.join("Dockerfile"), "FROM scratch\nCOPY sub/g.txt /ctx\n").unwrap();
    git(&["-C", path, "add", "."]);
    git(&["-C", path, "commit", "-qm", "one"]);
    git(&["clone", "-q", "--bare", path, dir.join("r.git").to_str().unwrap()]);
    git(&["-C", dir.join("r.git").to_str().unwrap(), "update-server-info"]);
    let mut server = std::process::Command::new("python3")
        .args(["-m", "http.server", &port.to_string(), "--bind", "127.0.0.1", "--directory"])
        .arg(&dir)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    crate::harness::wait_until("the web server answers", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
    let context = home.dockerfile(&format!(
        "FROM busybox\nADD http://127.0.0.1:{port}/file.txt /h/\nADD http://127.0.0.1:{port}/r.git#main:sub /g/\n"
    ));
    let out = home.path("o");
    let ran = home.build(&["-o", out.to_str().unwrap()], &context);
    let ctx = home.path("ctx");
    let remote = format!("http://127.0.0.1:{port}/r.git");
    let ran2 = home.bud(["--progress", "plain", "-o", ctx.to_str().unwrap(), &remote]);
    server.kill().unwrap();
    server.wait().unwrap();
    ran.ok();
    ran2.ok();
    assert_eq!(read(out.join("h/file.txt")), "over http");
    assert_eq!(std::fs::metadata(out.join("h/file.txt")).unwrap().mode() & 0o777, 0o600);
    assert_eq!(read(out.join("g/g.txt")), "from git");
    assert_eq!(read(ctx.join("ctx")), "from git");
}
