//! Point 10: what comes out, and what the user is told.

use crate::harness::{Home, json, read, run};
use std::process::Command;

#[test]
fn the_end_says_what_was_made_and_what_to_type_next() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    let ran = home.build(&["-t", "foo"], &context).ok();
    let said = format!("{}{}", ran.stdout, ran.stderr);
    assert!(said.contains("foo"), "{ran}");
    assert!(said.contains("FROM foo") || said.contains("bud push") || said.contains("--push"), "{ran}");
    // Without a name nothing is named, and that is said.
    home.build(&[], &context).ok().says(&["-t"]);
}

#[test]
fn every_output_type_holds_the_same_tree() {
    let home = Home::sub();
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY a /x/a\n"), ("a", "A")]);
    let p = |n: &str| home.path(n).to_str().unwrap().to_owned();
    home.build(
        &[
            "-t",
            "foo",
            "-o",
            &format!("type=local,dest={}", p("local")),
            "-o",
            &format!("type=tar,dest={}", p("t.tar")),
            "-o",
            &format!("type=oci,dest={}", p("oci.tar")),
            "-o",
            &format!("type=docker,dest={}", p("docker.tar")),
            "-o",
            &format!("type=oci,tar=false,dest={}", p("layout")),
        ],
        &context,
    )
    .ok();
    assert_eq!(read(home.path("local/x/a")), "A");
    let tar = Command::new("tar").args(["-xOf", &p("t.tar"), "x/a"]).output().unwrap();
    assert_eq!(tar.stdout, b"A");
    let manifest = Command::new("tar").args(["-xOf", &p("docker.tar"), "manifest.json"]).output().unwrap();
    assert_eq!(json(&manifest.stdout)[0]["RepoTags"], serde_json::json!(["foo:latest"]));
    assert!(home.path("layout/index.json").exists());
    for source in [
        format!("oci-archive:{}", p("oci.tar")),
        format!("docker-archive:{}", p("docker.tar")),
        format!("oci:{}", p("layout")),
    ] {
        let out = Command::new("skopeo").args(["inspect", &source]).output().unwrap();
        assert!(out.status.success(), "{source}: {}", String::from_utf8_lossy(&out.stderr));
    }
    // To stdout: a tar, and nothing but it.
    let ran = run(home.bud_command(["-o", "-", context.to_str().unwrap()])).ok();
    assert!(ran.stdout.contains("ustar"), "{}", ran.stderr);
}

#[test]
fn source_date_epoch_makes_it_reproducible() {
    let digest = |home: &Home, context: &std::path::Path| {
        let tar = home.path("r.tar");
        home.build(
            &[
                "--no-cache",
                "--build-arg",
                "SOURCE_DATE_EPOCH=1700000000",
                "-o",
                &format!("type=oci,dest={},rewrite-timestamp=true", tar.display()),
            ],
            context,
        )
        .ok();
        crate::harness::sha256(&std::fs::read(&tar).unwrap())
    };
    let text = "FROM busybox\nRUN mkdir /d && echo x > /d/f && ln /d/f /d/g\nCOPY a /a\n";
    let first = {
        let home = Home::sub();
        digest(&home, &home.context(&[("Dockerfile", text), ("a", "A")]))
    };
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let home = Home::sub();
    let context = home.context(&[("Dockerfile", text), ("a", "A")]);
    assert_eq!(digest(&home, &context), first);
    let image = home.image(&["--build-arg", "SOURCE_DATE_EPOCH=1700000000"], &context);
    assert_eq!(image.config["created"], "2023-11-14T22:13:20Z");
}

#[test]
fn local_output_merges_and_mirrors() {
    let home = Home::sub();
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY a /a\n"), ("a", "A")]);
    let out = home.path("o");
    home.write(&out.join("kept"), "k");
    home.build(&["-o", out.to_str().unwrap()], &context).ok();
    assert_eq!(read(out.join("kept")), "k");
    home.build(&["-o", &format!("type=local,dest={},mode=delete", out.display())], &context).ok();
    assert!(!out.join("kept").exists());
    assert_eq!(read(out.join("a")), "A");
}

#[test]
fn progress_speaks_each_of_its_languages() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN echo visible; printf '\\033]52;c;aGk=\\007\\033[2Jhidden\\n'\n");
    let plain = home.build(&["-t", "foo"], &context).ok();
    assert!(plain.stderr.contains("#1 [internal] load build definition from Dockerfile"), "{plain}");
    assert!(plain.stderr.contains("[2/2] RUN echo visible"), "{plain}");
    let raw = home.bud(["--progress", "rawjson", "--no-cache", "-t", "foo", context.to_str().unwrap()]).ok();
    let lines: Vec<_> = raw.stderr.lines().filter(|l| l.starts_with('{')).map(|l| json(l.as_bytes())).collect();
    assert!(lines.iter().any(|l| l["vertexes"].is_array()) && lines.iter().any(|l| l["logs"].is_array()), "{raw}");
    // On a terminal: no control sequence of the step's reaches it.
    let typescript = home.path("typescript");
    let mut command = home.command("script");
    command
        .env("TERM", "xterm-256color")
        .arg("-qec")
        .arg(format!("{} --no-cache -t foo {}", crate::harness::bud().display(), context.display()))
        .arg(&typescript);
    run(command).ok();
    let bytes = std::fs::read(&typescript).unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(text.contains("RUN echo visible"), "{text}");
    assert!(!text.contains("\x1b]52") && !text.contains("\x1b[2J"), "{text:?}");
    assert!(text.rfind("\x1b[?25h") >= text.rfind("\x1b[?25l"), "the cursor is shown again: {text:?}");
}
