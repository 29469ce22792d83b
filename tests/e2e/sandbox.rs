//! Point 5: what a RUN may do, and what it can't.

use crate::harness::{Home, read, wait_until};
use crate::registry;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

/// Pushes a Debian tree (debootstrap) once; kept below the target directory for the next run.
pub fn debian() -> &'static str {
    static DEBIAN: OnceLock<&str> = OnceLock::new();
    DEBIAN.get_or_init(|| {
        let tree = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("debian-tree");
        if !tree.join("etc/debian_version").exists() {
            let part = tree.with_extension("part");
            let _ = std::fs::remove_dir_all(&part);
            let out = Command::new("debootstrap")
                .args(["--variant=minbase", "--include=sudo,passwd", "bookworm"])
                .arg(&part)
                .output()
                .expect("debootstrap runs (package debootstrap)");
            assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
            for dir in ["proc", "sys", "dev", "var/cache/apt/archives"] {
                let _ = std::fs::remove_dir_all(part.join(dir));
                std::fs::create_dir_all(part.join(dir)).expect("mkdir");
            }
            std::fs::create_dir_all(part.join("var/cache/apt/archives/partial")).expect("mkdir");
            std::fs::rename(&part, &tree).expect("rename");
        }
        registry::registry().push_tree(&tree, "library/debian:bookworm", &["--config.cmd", "bash"]);
        "debian:bookworm"
    })
}

/// Fetches a small package from Debian's mirror through apt on the host.
fn a_package(dir: &Path) -> PathBuf {
    let out = Command::new("apt-get").args(["download", "hello"]).current_dir(dir).output().expect("apt-get runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    std::fs::read_dir(dir)
        .expect("readable")
        .flatten()
        .map(|e| e.path())
        .find(|p| p.extension().is_some_and(|e| e == "deb"))
        .expect("a package came")
}

#[test]
fn package_tools_and_users_work_as_on_a_machine() {
    let home = Home::sub();
    let base = debian();
    let context = home.context(&[(
        "Dockerfile",
        &format!(
            "FROM {base}\nCOPY *.deb /tmp/\n\
             RUN apt-get install -y /tmp/*.deb && hello\n\
             RUN dpkg --verify hello && useradd -m -u 1234 worker && chown worker:worker /opt\n\
             RUN su worker -c 'id -un' > /su && echo 'worker ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/w\n\
             USER worker\nRUN id -u > /tmp/id && sudo id -u > /tmp/sudo\n\
             USER root\nRUN mkdir /t && echo x > /t/f && chown 7:8 /t/f && tar -C /t -cf /t.tar f && mkdir /u && tar -C /u -xpf /t.tar && stat -c %u:%g /u/f > /tar\n"
        ),
    )]);
    a_package(&context);
    let tree = home.tree(&[], &context);
    assert_eq!(read(tree.join("su")), "worker\n");
    assert_eq!(read(tree.join("tmp/id")), "1234\n");
    assert_eq!(read(tree.join("tmp/sudo")), "0\n");
    assert_eq!(read(tree.join("tar")), "7:8\n");
}

#[test]
fn a_step_has_the_default_capabilities_seccomp_and_its_own_namespaces() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nRUN grep -E '^(CapEff|CapBnd|Seccomp|NoNewPrivs):' /proc/self/status > /status; ls -1 /proc | grep -c '^[0-9]' > /pids; hostname > /host; ls /proc/self/fd > /fds; id > /id\n\
         RUN for f in /proc/kcore /proc/keys /proc/timer_list; do [ ! -e $f ] || head -c1 $f 2>/dev/null | wc -c; done > /masked; echo x > /proc/sys/kernel/hostname 2>/dev/null && echo writable > /w || echo ro > /w\n\
         RUN mount -t tmpfs none /mnt 2>/dev/null && echo mounted > /m || echo refused > /m\n",
    );
    let tree = home.tree(&[], &context);
    let status = read(tree.join("status"));
    for line in ["CapEff:\t00000000a80425fb", "CapBnd:\t00000000a80425fb", "NoNewPrivs:\t0", "Seccomp:\t2"] {
        assert!(status.contains(line), "{line} in {status}");
    }
    assert!(read(tree.join("pids")).trim().parse::<u32>().unwrap() < 8);
    assert!(read(tree.join("masked")).lines().all(|l| l == "0"), "{}", read(tree.join("masked")));
    assert_eq!(read(tree.join("w")), "ro\n");
    assert_eq!(read(tree.join("m")), "refused\n");
    assert!(
        read(tree.join("fds")).split_whitespace().all(|fd| fd.parse::<u32>().unwrap() <= 3),
        "{}",
        read(tree.join("fds"))
    );
}

#[test]
fn all_processes_die_with_their_step() {
    let home = Home::sub();
    let mark = format!("31{}", std::process::id());
    let context = home.dockerfile(&format!(
        "FROM busybox\nRUN (setsid nohup sleep {mark} >/dev/null 2>&1 &) ; sleep 0.1; echo done\n"
    ));
    let ran = home.build(&["-t", "foo"], &context).ok();
    assert!(ran.took < Duration::from_secs(30), "{ran}");
    wait_until("the sleeper is dead", || !sleeps(&mark));
}

#[test]
fn ctrl_c_and_a_dying_client_stop_the_build_at_once() {
    let home = Home::sub();
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::KILL] {
        let mark = format!("{}{}", 32 + signal.as_raw(), std::process::id());
        let context = home.dockerfile(&format!("FROM busybox\nRUN sleep {mark}\n"));
        let mut command = home.bud_command(["--progress", "plain", "-t", "foo"]);
        let mut child = command.arg(&context).spawn().unwrap();
        wait_until("the step runs", || sleeps(&mark));
        let pid = rustix::process::Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
        let status = child.wait().unwrap();
        assert!(!status.success());
        wait_until("the step is dead", || !sleeps(&mark));
    }
    // The daemon is alive and builds on.
    home.build(&["-t", "foo"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
}

fn sleeps(mark: &str) -> bool {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .any(|p| std::fs::read(p.path().join("cmdline")).is_ok_and(|c| c == format!("sleep\0{mark}\0").into_bytes()))
}

#[test]
fn mount_points_and_the_files_of_the_network_are_not_in_the_layer() {
    let home = Home::sub();
    let context = home.context(&[
        (
            "Dockerfile",
            "FROM busybox\nRUN --mount=type=bind,target=/deep/src --mount=type=cache,target=/cache --mount=type=tmpfs,target=/scratch --mount=type=secret,id=s cat /etc/resolv.conf /etc/hosts > /seen; cat /deep/src/f >> /seen; echo x > /cache/x; echo y > /scratch/y\n",
        ),
        ("f", "from the context"),
    ]);
    let image = home.image(&[], &context);
    let listing = image.layer_listing(image.layers() - 1);
    for gone in ["resolv.conf", "hosts", "cache/x", "scratch/y", "src/f", "run/secrets/s"] {
        assert!(!listing.contains(gone), "{gone} in {listing}");
    }
    assert!(listing.contains("seen"), "{listing}");
}

#[test]
fn programs_for_i386_run() {
    let home = Home::sub();
    let context = home.context(&[("Dockerfile", "FROM scratch\nCOPY p /p\nRUN [\"/p\"]\n")]);
    // exit(0) by the 32-bit system call gate; a hand-made ELF, since no 32-bit compiler is there.
    let mut elf = vec![0x7f, b'E', b'L', b'F', 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend([2, 0, 3, 0]);
    for word in [1_u32, 0x0804_8054, 52, 0, 0] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([52, 0, 32, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    for word in [1_u32, 0, 0x0804_8000, 0x0804_8000, 0x60, 0x60, 5, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend([0x31, 0xdb, 0x31, 0xc0, 0x40, 0xcd, 0x80]);
    elf.resize(0x60, 0x90);
    home.write(&context.join("p"), &elf);
    std::fs::set_permissions(context.join("p"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    home.build(&["-t", "foo"], &context).ok();
}
