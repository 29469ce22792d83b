//! Point 13, seen from outside: canaries stay as they are. (The rows about tars, registries and steps are tested in their crates.)

use crate::harness::{Home, bud, read, run};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;

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
    // No XDG_RUNTIME_DIR, no /run/user: the fallback in /tmp was made by somebody else. Both directories are this test's own.
    let uid = home.user.uid;
    let trap = format!("/tmp/buildkit-{uid}");
    let kept = home.dir.parent().unwrap().to_str().unwrap();
    let own_tmp = format!(
        "set -e
        mount -t tmpfs none /mnt && mkdir /mnt/tmp && mount --bind /tmp /mnt/tmp
        mount -t tmpfs -o mode=1777 none /tmp
        case {kept} in /tmp/*) mkdir -p {kept}; mount --bind /mnt{kept} {kept};; esac
        [ ! -d /run/user ] || mount -t tmpfs none /run/user"
    );
    let user = format!("setpriv --reuid {uid} --regid {} --init-groups", home.user.gid);
    for (made, works) in [
        (format!("mkdir {trap}; chmod 777 {trap}"), false),
        (format!("mkdir -m 700 {trap}"), false),
        (format!("mkdir -m 700 /tmp/other; chown {uid} /tmp/other; ln -s other {trap}"), false),
        (format!("mkdir -m 700 /tmp/other; chown {uid} /tmp/other; {user} ln -s other {trap}"), false),
        (format!("{user} mkdir -m 755 {trap}; {user} chmod 777 {trap}"), false),
        (String::new(), true),
    ] {
        let own = Home::sub();
        let context = own.dockerfile("FROM scratch\nLABEL a=b\n");
        let mut command = own.command("unshare");
        let build = "bud=$1; shift; $bud --progress plain -t foo \"$@\" && stat -c %a $TRAP && $bud daemon stop";
        let script = format!("{own_tmp}\n{made}\nTRAP={trap} exec {user} sh -c '{build}' sh \"$@\"");
        command.uid(0).gid(0).env_remove("XDG_RUNTIME_DIR").args(["--mount", "sh", "-c", &script, "sh"]);
        command.arg(bud()).arg(&context);
        let ran = run(command);
        if works {
            assert!(ran.ok().stdout.contains("700\n"), "a directory for its user alone is made");
        } else {
            ran.fails_with(&[&trap]);
            assert!(own.daemon_pid().is_none(), "nothing is started: {made}");
        }
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

/// Damages files in turns: emptied, cut in half, a byte flipped.
fn damage(dir: &std::path::Path, only: impl Fn(&str) -> bool) -> usize {
    let mut count = 0;
    for blob in std::fs::read_dir(dir).unwrap().flatten() {
        if !only(&blob.file_name().to_string_lossy()) {
            continue;
        }
        let bytes = std::fs::read(blob.path()).unwrap();
        let bad = match count % 3 {
            0 => bytes.iter().enumerate().map(|(at, b)| if at == bytes.len() / 2 { b ^ 1 } else { *b }).collect(),
            1 => bytes[..bytes.len() / 2].to_vec(),
            _ => Vec::new(),
        };
        std::fs::set_permissions(blob.path(), std::fs::Permissions::from_mode(0o644)).unwrap();
        std::fs::write(blob.path(), bad).unwrap();
        count += 1;
    }
    count
}

#[test]
fn f02_damaged_and_lost_blobs_of_a_base_are_fetched_again() {
    let own = crate::registry::start();
    let tree = crate::harness::scratch("tree");
    std::fs::write(tree.join("f"), "content ".repeat(1000)).unwrap();
    own.push_tree(&tree, "team/base:latest", &[]);
    let name = format!("127.0.0.1:{}/team/base", own.port);
    let home = Home::sub();
    home.write_config(&format!("[registry.\"127.0.0.1:{}\"]\n  http = true\n", own.port));
    let context = home.context(&[("Dockerfile", &format!("FROM {name}\nCOPY g /g\n")), ("g", "G")]);
    let first = home.image(&[], &context);
    let digest = |image: &crate::harness::Image, n: usize| image.manifest["layers"][n]["digest"].clone();
    let base = digest(&first, 0).as_str().unwrap()["sha256:".len()..].to_owned();
    let blobs = home.state_root().join("blobs/sha256");
    let spoil: [&dyn Fn(&std::path::Path); 4] = [
        &|path| {
            damage(path.parent().unwrap(), |name| name == base);
        },
        &|path| std::fs::write(path, "").unwrap(),
        &|path| std::fs::write(path, &std::fs::read(path).unwrap()[..100]).unwrap(),
        &|path| std::fs::remove_file(path).unwrap(),
    ];
    for (n, spoil) in spoil.iter().enumerate() {
        // While it runs, and between two runs.
        if n % 2 == 0 {
            home.bud(["daemon", "stop"]).ok();
        }
        spoil(&blobs.join(&base));
        // The very bytes of the registry: ours would be compressed otherwise. Nothing else is fetched or made.
        let again = home.image(&[], &context);
        assert_eq!(first.manifest, again.manifest, "{n}");
        assert_eq!(crate::harness::sha256(&std::fs::read(blobs.join(&base)).unwrap()), base, "{n}");
    }
    // Where it can't be had any more, the layer's files are all there.
    let blob = own.storage.join("docker/registry/v2/blobs/sha256").join(&base[..2]).join(&base).join("data");
    std::fs::remove_file(blob).unwrap();
    std::fs::remove_file(blobs.join(&base)).unwrap();
    let remade = home.image(&[], &context);
    assert_ne!(digest(&first, 0), digest(&remade, 0));
    assert_eq!(digest(&first, 1), digest(&remade, 1));
    assert!(remade.layer_listing(0).contains(" f\n"), "{}", remade.layer_listing(0));
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
    // The base's layer is fetched again; what was built here is the same again.
    let second = crate::harness::Image::read(&tar);
    assert_eq!(first.config["rootfs"]["diff_ids"], second.config["rootfs"]["diff_ids"]);
    let names = |image: &crate::harness::Image| image.layer_listing(0).lines().filter(|l| !l.ends_with(" /")).count();
    assert_eq!(names(&first), names(&second));
}
