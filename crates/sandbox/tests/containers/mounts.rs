//! What is mounted, and what is left of it in the layer.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bud_sandbox::overlay::{Overlay, make_base_layer};
use bud_sandbox::{Mount, MountKind, Rootfs};

use crate::Case;
use crate::bed::{As, Bed, bind, tree, upper};

pub const CASES: &[Case] = &[
    ("a_step_that_changes_nothing_leaves_nothing", a_step_that_changes_nothing_leaves_nothing),
    ("a_base_layer_has_the_usual_mount_points", a_base_layer_has_the_usual_mount_points),
    ("stubs_go_and_times_stay", stubs_go_and_times_stay),
    ("stubs_that_the_step_used_stay", stubs_that_the_step_used_stay),
    ("missing_kernel_directories_stay", missing_kernel_directories_stay),
    ("binds_and_selectors", binds_and_selectors),
    ("overlays_as_mounts", overlays_as_mounts),
    ("tmpfs_files_and_sockets", tmpfs_files_and_sockets),
    ("later_mounts_win_and_nest", later_mounts_win_and_nest),
    ("readonly_root", readonly_root),
    ("dangling_links_are_followed_inside", dangling_links_are_followed_inside),
    ("a_directory_as_root", a_directory_as_root),
    ("destinations_that_make_no_sense", destinations_that_make_no_sense),
];

fn secret(dest: &str) -> Mount {
    Mount { dest: dest.into(), kind: MountKind::File { data: b"hidden".to_vec(), uid: 0, gid: 0, mode: 0o400 } }
}

/// A busybox root that has the directories every image has.
fn image(bed: &mut Bed) -> std::path::PathBuf {
    let lower = bed.busybox();
    for name in ["proc", "sys", "dev", "run", "var", "var/lib"] {
        std::fs::create_dir(lower.join(name)).unwrap();
    }
    lower
}

fn a_step_that_changes_nothing_leaves_nothing(bed: &mut Bed) {
    let lower = image(bed);
    let mut spec =
        bed.shell_over(vec![lower], "test -s /etc/hosts && test -s /run/secrets/a/k && test -d /var/lib/deep/er");
    let cache = bed.new_directory("cache");
    spec.mounts = vec![secret("/run/secrets/a/k"), bind(&cache, "/var/lib/deep/er", false)];
    bed.run(&spec).ok();
    assert_eq!(tree(upper(&spec)), [""; 0]);
}

fn a_base_layer_has_the_usual_mount_points(bed: &mut Bed) {
    let base = bed.path("base");
    make_base_layer(&base).unwrap();
    make_base_layer(&base).unwrap();
    assert_eq!(tree(&base), ["etc", "etc/hosts", "etc/resolv.conf"]);
    let script = "stat -c '%n %u:%g %a' /etc /etc/hosts /etc/resolv.conf; cat /etc/hosts; echo x > /etc/hosts; rm -rf /etc/hosts; echo x > /etc/new";
    let lower = image(bed);
    let mut spec = bed.shell_over(vec![lower.clone()], script);
    spec.base_layer = Some(base.clone());
    let output = bed.run(&spec).output;
    assert!(
        output.starts_with("/etc 0:0 755\n/etc/hosts 0:0 644\n/etc/resolv.conf 0:0 644\n127.0.0.1 localhost\n"),
        "{output}"
    );
    assert_eq!(tree(upper(&spec)), ["etc", "etc/new"]);

    // What the image has goes before: its own file, a link, no directory at all.
    std::fs::write(lower.join("etc/hosts"), "the image's").unwrap();
    std::os::unix::fs::symlink("../run/none", lower.join("etc/resolv.conf")).unwrap();
    let mut spec = bed.shell_over(vec![lower.clone()], "cat /run/none; test -L /etc/resolv.conf; ls /etc");
    spec.base_layer = Some(base.clone());
    assert_eq!(bed.run(&spec).ok(), "nameserver 192.0.2.1\ngroup\nhosts\npasswd\nresolv.conf\n");
    assert_eq!(tree(upper(&spec)), [""; 0]);
    std::fs::remove_dir_all(lower.join("etc")).unwrap();
    let mut spec = bed.shell_over(vec![lower.clone()], "ls /etc");
    spec.base_layer = Some(base.clone());
    assert_eq!(bed.run(&spec).ok(), "hosts\nresolv.conf\n");
    assert_eq!(tree(upper(&spec)), [""; 0]);

    // A view without an upper has them as well.
    spec.rootfs = Rootfs::Overlay(Overlay { lowers: vec![lower], ..Overlay::default() });
    assert_eq!(bed.run(&spec).ok(), "hosts\nresolv.conf\n");
    assert_eq!(tree(&base), ["etc", "etc/hosts", "etc/resolv.conf"]);
}

fn stubs_go_and_times_stay(bed: &mut Bed) {
    let lower = image(bed);
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    for name in ["etc", "run", ""] {
        std::fs::File::open(lower.join(name)).unwrap().set_modified(old).unwrap();
    }
    let mut spec =
        bed.shell_over(vec![lower], "stat -c %Y /etc /run; touch /etc/new && touch -d @1234567890 /etc; touch /run/x");
    spec.mounts = vec![secret("/run/secrets/k"), secret("/etc/k")];
    assert_eq!(bed.run(&spec).ok(), "1000000000\n1000000000\n");
    let upper = upper(&spec);
    assert_eq!(tree(upper), ["etc", "etc/new", "run", "run/x"]);
    assert_eq!(upper.join("etc").metadata().unwrap().mtime(), 1_234_567_890);
    assert!(upper.join("run").metadata().unwrap().mtime() > 1_600_000_000);

    let lower = image(bed);
    std::fs::remove_dir(lower.join("run")).unwrap();
    let mut spec = bed.shell_over(vec![lower], "true");
    spec.mounts = vec![secret("/run/secrets/k")];
    spec.remove_mount_stubs_recursive = false;
    bed.run(&spec).ok();
    assert_eq!(tree(super::bed::upper(&spec)), ["run", "run/secrets"]);
}

fn stubs_that_the_step_used_stay(bed: &mut Bed) {
    let lower = image(bed);
    let mut spec = bed.shell_over(vec![lower], "echo x > /opt/a/b/own; chmod 700 /etc");
    let source = bed.new_directory("source");
    spec.mounts = vec![bind(&source, "/opt/a/b/c", false)];
    bed.run(&spec).ok();
    assert_eq!(tree(upper(&spec)), ["etc", "opt", "opt/a", "opt/a/b", "opt/a/b/own"]);
    assert_eq!(upper(&spec).join("etc").metadata().unwrap().permissions().mode() & 0o777, 0o700);
}

fn missing_kernel_directories_stay(bed: &mut Bed) {
    // As in BuildKit: a layer over an image without these has them, and nothing else.
    let spec = bed.shell("true");
    bed.run(&spec).ok();
    assert_eq!(tree(upper(&spec)), ["dev", "proc", "sys"]);
    let mode = upper(&spec).join("proc").metadata().unwrap();
    assert_eq!((mode.mode() & 0o7777, mode.uid(), mode.gid()), (0o755, 0, 0));
}

fn binds_and_selectors(bed: &mut Bed) {
    let source = bed.new_directory("source");
    std::fs::create_dir_all(source.join("sub/dir")).unwrap();
    std::fs::write(source.join("sub/file"), "content\n").unwrap();
    std::os::unix::fs::symlink("/sub/file", source.join("absolute")).unwrap();
    let mut spec = bed.shell("cat /one /two; echo w > /rw/dir/new; echo w > /ro/dir/new && exit 1; ls /rw/dir /ro");
    let with = |dest: &str, selector: &str, readonly| Mount {
        dest: dest.into(),
        kind: MountKind::Bind { source: source.clone(), selector: selector.into(), readonly },
    };
    spec.mounts = vec![
        with("/one", "sub/file", true),
        with("/two", "/absolute", true),
        with("/rw", "sub", false),
        with("/ro", "/sub/../sub", true),
    ];
    let output = bed.run(&spec).ok();
    assert!(
        output.starts_with("content\ncontent\n") && output.ends_with("/ro:\ndir\nfile\n\n/rw/dir:\nnew\n"),
        "{output}"
    );
    assert_eq!(std::fs::read_to_string(source.join("sub/dir/new")).unwrap(), "w\n");
    spec.mounts = vec![with("/one", "no/such", true)];
    assert!(bed.run(&spec).refused().contains("no/such"));
}

fn overlays_as_mounts(bed: &mut Bed) {
    let lower = |bed: &mut Bed, file: &str| {
        let directory = bed.new_directory("lower");
        std::fs::create_dir(directory.join("d")).unwrap();
        std::fs::write(directory.join("d").join(file), file).unwrap();
        directory
    };
    let (top, bottom) = (lower(bed, "top"), lower(bed, "bottom"));
    let (changes, work) = (bed.new_directory("changes"), bed.new_directory("work"));
    let writable = Overlay {
        lowers: vec![top.clone(), bottom.clone()],
        upper: Some(changes.clone()),
        work: Some(work),
        volatile: true,
    };
    let view = Overlay { lowers: vec![top.clone(), bottom.clone()], ..Overlay::default() };
    let mut spec = bed.shell("ls /rw/d /ro; cat /one/top; rm /rw/d/bottom; echo x > /rw/d/new; touch /ro/x && exit 1; touch /one/x && exit 1; true");
    let mount = |dest: &str, overlay: &Overlay, selector: &str, readonly| Mount {
        dest: dest.into(),
        kind: MountKind::Overlay { overlay: overlay.clone(), selector: selector.into(), readonly },
    };
    let one = Overlay { lowers: vec![top.clone()], ..Overlay::default() };
    spec.mounts =
        vec![mount("/rw", &writable, "", false), mount("/ro", &view, "d", true), mount("/one", &one, "/d", false)];
    let output = bed.run(&spec).ok();
    assert!(output.starts_with("/ro:\nbottom\ntop\n\n/rw/d:\nbottom\ntop\ntop"), "{output}");
    assert_eq!(tree(&changes), ["d", "d/bottom", "d/new"]);
    assert_eq!(
        (tree(&top), tree(&bottom)),
        (vec!["d".into(), "d/top".to_owned()], vec!["d".into(), "d/bottom".to_owned()])
    );
}

fn tmpfs_files_and_sockets(bed: &mut Bed) {
    let socket = bed.path("agent.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let owner = if bed.identity == As::Single { (0, 0) } else { (7, 8) };
    let mut spec = bed.shell(
        "stat -c '%u:%g %a' /t /run/secrets/k /agent; df -k /t | tail -n 1 | awk '{print $2}'; cat /run/secrets/k; \
         echo x > /run/secrets/k && exit 1; echo x > /t/x; test -S /agent && echo socket; grep -c 'secrets/k tmpfs ro,nosuid,nodev,noexec' /proc/mounts",
    );
    spec.mounts = vec![
        Mount { dest: "/t".into(), kind: MountKind::Tmpfs { size: Some(2 << 20), mode: 0o1777 } },
        Mount {
            dest: "/run/secrets/k".into(),
            kind: MountKind::File { data: b"hidden\n".to_vec(), uid: owner.0, gid: owner.1, mode: 0o440 },
        },
        Mount {
            dest: "/agent".into(),
            kind: MountKind::Socket { source: socket.clone(), uid: owner.0, gid: owner.1, mode: 0o600 },
        },
    ];
    let output = bed.run(&spec).ok();
    let ids = format!("{}:{}", owner.0, owner.1);
    assert_eq!(
        output,
        format!(
            "0:0 1777\n{ids} 440\n{ids} 600\n2048\nhidden\n/bin/sh: can't create /run/secrets/k: Read-only file system\nsocket\n1\n"
        )
    );
    drop(listener);
}

fn later_mounts_win_and_nest(bed: &mut Bed) {
    let (one, two) = (bed.new_directory("one"), bed.new_directory("two"));
    std::fs::write(one.join("one"), "").unwrap();
    std::fs::write(two.join("two"), "").unwrap();
    let mut spec = bed.shell("ls /m /m/in/ner; cat /etc/hosts");
    spec.mounts =
        vec![bind(&one, "/m", false), bind(&two, "m/", false), bind(&one, "/m/in/ner", true), secret("/etc/hosts")];
    let output = bed.run(&spec).ok();
    assert_eq!(output, "/m:\nin\ntwo\n\n/m/in/ner:\none\nhidden");
    // What was made for the inner one lies in the other mount, and is that one's own.
    assert_eq!(tree(&two), ["in", "in/ner", "two"]);
    assert_eq!(tree(upper(&spec)), ["dev", "proc", "sys"]);
}

fn readonly_root(bed: &mut Bed) {
    let mut spec = bed.shell("touch /x && exit 1; touch /dev/shm/x && echo x > /cache/x");
    let cache = bed.new_directory("cache");
    spec.mounts = vec![bind(&cache, "/cache", false)];
    spec.readonly = true;
    bed.run(&spec).ok();
    assert!(cache.join("x").exists());
}

fn dangling_links_are_followed_inside(bed: &mut Bed) {
    let lower = image(bed);
    std::os::unix::fs::symlink("../run/systemd/resolve/stub-resolv.conf", lower.join("etc/resolv.conf")).unwrap();
    std::os::unix::fs::symlink("/../../var/lib/../gone", lower.join("m")).unwrap();
    let mut spec =
        bed.shell_over(vec![lower], "cat /etc/resolv.conf; cat /run/systemd/resolve/stub-resolv.conf; ls /var");
    let source = bed.new_directory("source");
    spec.mounts = vec![bind(&source, "/m/x", false)];
    assert_eq!(bed.run(&spec).ok(), "nameserver 192.0.2.1\nnameserver 192.0.2.1\ngone\nlib\n");
    assert_eq!(tree(upper(&spec)), [""; 0]);
    let lower = image(bed);
    std::os::unix::fs::symlink("loop", lower.join("loop")).unwrap();
    let mut spec = bed.shell_over(vec![lower], "true");
    spec.mounts = vec![bind(&source, "/loop/x", false)];
    assert!(bed.run(&spec).refused().contains("symbolic links"));
}

fn a_directory_as_root(bed: &mut Bed) {
    let root = image(bed);
    let before = tree(&root);
    let mut spec = bed.shell_over(vec![root.clone()], "echo x > /made; cat /etc/hosts");
    spec.rootfs = Rootfs::Dir(root.clone());
    spec.mounts = vec![secret("/run/secrets/k")];
    assert_eq!(bed.run(&spec).ok(), "127.0.0.1 localhost\n");
    let added: Vec<String> = tree(&root).into_iter().filter(|path| !before.contains(path)).collect();
    assert_eq!(added, ["made"]);
}

fn destinations_that_make_no_sense(bed: &mut Bed) {
    let mut spec = bed.shell("true");
    let source = bed.new_directory("source");
    for (dest, text) in [
        ("/", "below the root"),
        ("../..", "below the root"),
        ("a\0b", "below the root"),
        ("/proc/1", "inside /proc"),
        ("/proc/x", "/proc"),
        ("/etc/passwd", "not a directory"),
        ("/etc/passwd/x", "Not a directory"),
    ] {
        spec.mounts = vec![bind(&source, dest, false)];
        let error = bed.run(&spec).refused();
        assert!(error.contains(text), "{dest:?}: {error}");
    }
    spec.mounts = vec![bind(Path::new("/no/such/source"), "/x", false)];
    assert!(bed.run(&spec).refused().contains("mount /x"));
}
