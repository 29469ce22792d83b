//! Point 13, seen from outside: canaries stay as they are. (The rows about tars, registries and steps are tested in their crates.)

use crate::harness::{Home, read, run};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

/// A file that nothing may read into an image or change.
struct Canary {
    path: std::path::PathBuf,
    before: (u64, i64, u32, u64),
}

impl Canary {
    fn new(home: &Home) -> Self {
        let path = home.path("canary");
        home.write(&path, "CANARY-CONTENT");
        let before = Self::state(&path);
        Self { path, before }
    }

    fn state(path: &std::path::Path) -> (u64, i64, u32, u64) {
        let m = std::fs::metadata(path).expect("the canary is there");
        (m.size(), m.mtime_nsec(), m.mode(), m.nlink())
    }

    #[track_caller]
    fn unharmed(&self) {
        assert_eq!(Self::state(&self.path), self.before);
        assert_eq!(read(&self.path), "CANARY-CONTENT");
    }
}

/// Fails if the canary's content is anywhere below a directory.
#[track_caller]
fn not_in(dir: &std::path::Path) {
    let out = std::process::Command::new("grep").args(["-r", "-l", "CANARY-CONTENT"]).arg(dir).output().unwrap();
    assert!(out.stdout.is_empty(), "leaked: {}", String::from_utf8_lossy(&out.stdout));
}

#[test]
fn s11_links_in_a_context_lead_nowhere() {
    let home = Home::sub();
    let canary = Canary::new(&home);
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY x/canary /\n"), ("f", "")]);
    symlink(home.path(""), context.join("x")).unwrap();
    home.build(&["-o", home.path("o").to_str().unwrap()], &context).fails_with(&["not found"]);
    let direct = home.context(&[("Dockerfile", "FROM scratch\nCOPY link /\n")]);
    symlink(&canary.path, direct.join("link")).unwrap();
    let ran = home.build(&["-o", home.path("o2").to_str().unwrap()], &direct);
    assert!(ran.code.is_some());
    if home.path("o2").exists() {
        not_in(&home.path("o2"));
    }
    let dockerfile = home.context(&[("f", "")]);
    symlink(&canary.path, dockerfile.join("Dockerfile")).unwrap();
    let ran = home.build(&[], &dockerfile);
    assert_ne!(ran.code, Some(0));
    not_in(&home.state_root());
    canary.unharmed();
}

#[test]
fn s13_links_of_a_stage_stay_in_the_stage() {
    let home = Home::sub();
    let canary = Canary::new(&home);
    let up = "../".repeat(20);
    let target = canary.path.display();
    let context = home.context(&[
        (
            "Dockerfile",
            &format!(
                "FROM busybox AS a\nRUN ln -s / /o && ln -s {up}{target} /direct && ln -s {up} /dst && mkdir -p /etc && echo inner > /etc/inner\n\
                 FROM a\nCOPY --from=a /o/etc/inner /got\nCOPY f /dst/landed\nRUN cat /landed /got > /both\nRUN --mount=type=bind,from=a,source=/o,target=/m ls /m/etc/inner\n"
            ),
        ),
        ("f", "file\n"),
    ]);
    let tree = home.tree(&[], &context);
    assert_eq!(read(tree.join("both")), "file\ninner\n");
    let leak = home.dockerfile(&format!(
        "FROM busybox AS a\nRUN ln -s {up}{target} /direct\nFROM scratch\nCOPY --from=a /direct/ /d\n"
    ));
    let ran = home.build(&["-o", home.path("leak").to_str().unwrap()], &leak);
    assert!(ran.code.is_some());
    not_in(&home.state_root());
    canary.unharmed();
    assert!(!home.dir.join("landed").exists() && !std::path::Path::new("/landed").exists());
}

#[test]
fn r11_r12_host_network_and_insecure_need_a_grant() {
    let home = Home::sub();
    home.build(&[], &home.dockerfile("FROM busybox\nRUN --network=host true\n")).fails_with(&["network.host"]);
    home.build(&[], &home.dockerfile("FROM busybox\nRUN --security=insecure true\n"))
        .fails_with(&["security.insecure"]);
    home.build(&["--allow", "security.insecure"], &home.dockerfile("FROM busybox\nRUN --security=insecure true\n"))
        .fails_with(&["security.insecure"]);
    home.build(&["--allow", "network.host", "-t", "x"], &home.dockerfile("FROM busybox\nRUN --network=host true\n"))
        .ok();
}

#[test]
fn r13_secrets_are_nowhere() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nRUN --mount=type=secret,id=s,mode=0400,uid=1 stat -c '%a %u' /run/secrets/s > /mode; wc -c < /run/secrets/s > /n\nRUN ls /run/secrets 2>/dev/null | wc -l > /left; env > /env\nRUN --mount=type=secret,id=none,required=false ls /run/secrets/none 2>/dev/null || true\n",
    );
    home.write(&home.path("s"), "CANARY-CONTENT");
    let mut command = home.bud_command(["--progress", "plain", "--secret", "id=s,src=s", "-t", "foo", "-o"]);
    command
        .arg(home.path("o"))
        .arg(&context)
        .env("AWS_SECRET_ACCESS_KEY", "CANARY-CONTENT")
        .env("SSH_AUTH_SOCK", "/canary");
    let ran = run(command).ok();
    assert!(!ran.stdout.contains("CANARY-CONTENT") && !ran.stderr.contains("CANARY-CONTENT"));
    assert_eq!(read(home.path("o/mode")), "400 1\n");
    assert_eq!(read(home.path("o/n")).trim(), "14");
    assert_eq!(read(home.path("o/left")).trim(), "0");
    let env = read(home.path("o/env"));
    assert!(!env.contains("AWS") && !env.contains("SSH"), "{env}");
    not_in(&home.path("o"));
    not_in(&home.state_root());
    home.build(&[], &home.dockerfile("FROM busybox\nRUN --mount=type=secret,id=absent,required=true true\n"))
        .fails_with(&["absent"]);
}

#[test]
fn a01_unsafe_places_are_refused() {
    // A runtime directory that is a link to somebody else's place.
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    let tcp = run({
        let mut c = home.bud_command(["daemon", "--addr", "tcp://127.0.0.1:0", "--root"]);
        c.arg(home.path("root"));
        c
    });
    tcp.fails_with(&["--insecure-tcp"]);
    let foreign = home.path("foreign");
    std::fs::create_dir_all(&foreign).unwrap();
    std::fs::set_permissions(&foreign, std::fs::Permissions::from_mode(0o777)).unwrap();
    let mut command = home.bud_command(["daemon", "--root"]);
    command.arg(&foreign).arg("--addr").arg(format!("unix://{}", home.path("a/s.sock").display()));
    run(command).fails_with(&[foreign.to_str().unwrap()]);
    // No XDG_RUNTIME_DIR, no /run/user: the fallback in /tmp was made by somebody else.
    let uid = home.user.uid;
    let trap = std::path::PathBuf::from(format!("/tmp/buildkit-{uid}"));
    if !std::path::Path::new(&format!("/run/user/{uid}")).exists() && !trap.exists() {
        std::fs::create_dir(&trap).unwrap();
        std::fs::set_permissions(&trap, std::fs::Permissions::from_mode(0o777)).unwrap();
        let mut command = home.bud_command(["--progress", "plain", "-t", "foo"]);
        command.arg(&context).env_remove("XDG_RUNTIME_DIR");
        let ran = run(command);
        std::fs::remove_dir_all(&trap).unwrap();
        ran.fails_with(&[trap.to_str().unwrap()]);
    } else {
        eprintln!("a01: the /tmp fallback is in use on this machine, so its row was not tried");
    }
}

#[test]
fn f01_killed_at_any_moment_the_next_start_builds_rightly() {
    let home = Home::sub();
    let text = |n: u32| {
        format!(
            "FROM busybox\nRUN mkdir -p /d && for i in $(seq 1 200); do echo {n} > /d/$i; done; chmod 000 /d; chown -R 1000:1000 /d\nCOPY f /f\nRUN echo {n} > /n\n"
        )
    };
    let kills = if std::env::var_os("BUD_LONG").is_some() { 200 } else { 25 };
    let mut seed = 0x2545_f491_4f6c_dd1d_u64;
    for n in 0..kills {
        let context = home.context(&[("Dockerfile", &text(n)), ("f", &"content ".repeat(20_000))]);
        let out = home.path("x.tar");
        let mut command = home.bud_command(["--progress", "plain", "-t", "foo"]);
        command.arg("-o").arg(format!("type=oci,dest={}", out.display())).arg(&context);
        let child = command.spawn().unwrap();
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        std::thread::sleep(std::time::Duration::from_millis(seed % 400));
        home.kill_daemon();
        let result = child.wait_with_output().unwrap();
        assert!(result.status.success() || !out.exists() || std::fs::metadata(&out).unwrap().len() > 0);
        let _ = std::fs::remove_file(&out);
        if n % 5 == 4 {
            let image = home.image(&[], &context);
            assert_eq!(image.layers(), 4, "after kill {n}");
            let _ = std::fs::remove_dir_all(&image.dir);
        }
    }
    // Every blob that is stored has the digest that it is stored under.
    let blobs = home.state_root().join("blobs/sha256");
    for blob in std::fs::read_dir(&blobs).into_iter().flatten().flatten() {
        let name = blob.file_name().to_string_lossy().into_owned();
        if name.len() == 64 {
            assert_eq!(crate::harness::sha256(&std::fs::read(blob.path()).unwrap()), name);
        }
    }
    home.bud(["prune", "--all", "--force"]).ok();
}

#[test]
fn f02_damaged_blobs_and_lost_layers_are_made_again() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN echo content > /c\n");
    let first = home.image(&[], &context);
    home.bud(["daemon", "stop"]).ok();
    let mut damaged = 0;
    for (n, blob) in std::fs::read_dir(home.state_root().join("blobs/sha256")).unwrap().flatten().enumerate() {
        let bytes = std::fs::read(blob.path()).unwrap();
        let bad = match n % 3 {
            0 => Vec::new(),
            1 => bytes[..bytes.len() / 2].to_vec(),
            _ => bytes.iter().map(|b| b ^ 1).collect(),
        };
        std::fs::set_permissions(blob.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(blob.path(), bad).unwrap();
        damaged += 1;
    }
    assert!(damaged > 0);
    // What is damaged is never exported: it is made again at once, or named and made again by the next build.
    let tar = home.path("again.tar");
    let output = format!("type=oci,dest={}", tar.display());
    for _ in 0..damaged {
        let ran = home.build(&["-o", &output], &context);
        if ran.code == Some(0) {
            break;
        }
        ran.fails_with(&["damaged"]);
        assert!(!tar.exists());
    }
    // The base's layer may be written anew from its files, whose tar then differs; what was built here is the same again.
    let second = crate::harness::Image::read(&tar);
    assert_eq!(first.config["rootfs"]["diff_ids"][1], second.config["rootfs"]["diff_ids"][1]);
    let names = |image: &crate::harness::Image| image.layer_listing(0).lines().filter(|l| !l.ends_with(" /")).count();
    assert_eq!(names(&first), names(&second));
}
