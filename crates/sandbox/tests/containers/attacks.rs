//! Attacks that have worked on other builders and runtimes. Each case runs one and fails if it succeeds.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::path::Path;
use std::process::Command;

use bud_sandbox::{Mount, MountKind, Network};

use crate::Case;
use crate::bed::{As, Bed, bind, tree, upper};

pub const CASES: &[Case] = &[
    ("r01_working_directory_in_a_descriptor", r01_working_directory_in_a_descriptor),
    ("r02_own_program_cannot_be_changed", r02_own_program_cannot_be_changed),
    ("r03_kernel_directories_as_links", r03_kernel_directories_as_links),
    ("r04_shared_mount_swapped_while_mounting", r04_shared_mount_swapped_while_mounting),
    ("r05_stub_parent_swapped_for_a_link", r05_stub_parent_swapped_for_a_link),
    ("r07_selector_and_destination_links_stay_inside", r07_selector_and_destination_links_stay_inside),
    ("r08_confinement_cannot_be_undone", r08_confinement_cannot_be_undone),
    ("r09_dangerous_calls_in_every_abi", r09_dangerous_calls_in_every_abi),
    ("r10_others_are_out_of_reach", r10_others_are_out_of_reach),
    ("r10_abstract_sockets", r10_abstract_sockets),
    ("r10_the_outer_proc_opens_no_process", r10_the_outer_proc_opens_no_process),
    ("r10_the_outer_proc_keeps_its_masks", r10_the_outer_proc_keeps_its_masks),
    ("r12_unknown_security_is_refused", r12_unknown_security_is_refused),
    ("r15_own_files_in_etc_are_not_the_images", r15_own_files_in_etc_are_not_the_images),
];

/// A directory outside of every container, and what must be the same afterwards.
struct Canary {
    directory: std::path::PathBuf,
    before: Vec<(String, u64, i64, u32, Vec<u8>)>,
}

impl Canary {
    fn new(bed: &mut Bed) -> Canary {
        let directory = bed.new_directory("canary");
        for name in ["file", "hosts", "k"] {
            std::fs::write(directory.join(name), "").unwrap();
        }
        std::fs::write(directory.join("secret"), "canary-content").unwrap();
        std::fs::create_dir(directory.join("empty")).unwrap();
        let before = Canary::look(&directory);
        Canary { directory, before }
    }

    fn look(directory: &Path) -> Vec<(String, u64, i64, u32, Vec<u8>)> {
        let of = |name: String| {
            let path = directory.join(&name);
            let metadata = path.symlink_metadata().unwrap();
            let content = if metadata.is_file() { std::fs::read(&path).unwrap() } else { Vec::new() };
            (name, metadata.nlink(), metadata.mtime_nsec(), metadata.mode(), content)
        };
        tree(directory).into_iter().map(of).collect()
    }

    #[track_caller]
    fn unchanged(&self) {
        assert_eq!(Canary::look(&self.directory), self.before, "something outside was changed");
    }
}

fn r01_working_directory_in_a_descriptor(bed: &mut Bed) {
    let lower = bed.busybox();
    symlink("/proc/self/fd/7", lower.join("link")).unwrap();
    symlink("/proc/self/cwd", lower.join("cwd")).unwrap();
    let mut spec = bed.shell_over(vec![lower], "pwd; ls ../../..; echo open $(ls /proc/self/fd)");
    let descriptors = (3..100).map(|number| format!("/proc/self/fd/{number}"));
    let others =
        ["/link", "/cwd", "/proc/self/cwd/../..", "/proc/1/root", "/proc/self/fd/8/../../.."].map(str::to_owned);
    for cwd in descriptors.chain(others) {
        spec.cwd = cwd.clone();
        let outcome = bed.run(&spec);
        assert!(
            outcome.result.as_ref().is_err_and(|(error, _)| error.contains("working directory")),
            "{cwd}: {outcome:?}"
        );
        assert_eq!(outcome.output, "");
    }
    spec.cwd = "/../../..".into();
    let output = bed.run(&spec).ok();
    assert!(output.starts_with("/\n") && output.contains("\nbin\n"), "{output}");
    // ls has its own directory open as 3.
    assert!(output.ends_with("open 0 1 2 3\n"), "{output}");
}

fn r02_own_program_cannot_be_changed(bed: &mut Bed) {
    let program = std::env::current_exe().unwrap();
    let look = || {
        let metadata = program.metadata().unwrap();
        (std::fs::read(&program).unwrap(), metadata.mode(), metadata.mtime())
    };
    let before = look();
    let mut spec = bed.probe("own-file");
    // Without the bind: the program is only to be had through the process that becomes the step.
    spec.mounts.retain(|mount| mount.dest != "/probe");
    let root = upper(&spec).to_owned();
    std::fs::write(root.join("script"), "#!/proc/self/exe\n").unwrap();
    std::fs::set_permissions(root.join("script"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    for program in ["/proc/self/exe", "/script"] {
        spec.args = vec![program.into()];
        let output = bed.run(&spec).ok();
        let tried: Vec<&str> = output.lines().collect();
        assert_eq!(tried.len(), 10, "{output}");
        for line in tried {
            assert!(!line.ends_with("done"), "{program}: {output}");
        }
        // Not only busy: on a file system that can't be written through this process, ever.
        assert!(output.contains(&format!("mode: {}", libc::EROFS)), "{output}");
    }
    assert!(look() == before, "the program was changed");
}

fn r03_kernel_directories_as_links(bed: &mut Bed) {
    let canary = Canary::new(bed);
    for name in ["proc", "sys", "dev"] {
        for target in [canary.directory.to_str().unwrap(), "/etc", "../../..", "/no/such"] {
            let lower = bed.busybox();
            symlink(target, lower.join(name)).unwrap();
            let spec = bed.shell_over(vec![lower], "true");
            let error = bed.run(&spec).refused();
            assert!(error.contains(&format!("/{name} of the root file system is not a directory")), "{error}");
        }
        let lower = bed.busybox();
        std::fs::write(lower.join(name), "").unwrap();
        let spec = bed.shell_over(vec![lower], "true");
        bed.run(&spec).refused();
    }
    let lower = bed.busybox();
    for directory in ["dev", "dev/pts", "proc", "proc/sys"] {
        std::fs::create_dir(lower.join(directory)).unwrap();
    }
    for name in ["null", "console", "ptmx", "shm", "mqueue"] {
        symlink(canary.directory.join("file"), lower.join("dev").join(name)).unwrap();
    }
    symlink(&canary.directory, lower.join("proc/acpi")).unwrap();
    let spec = bed.shell_over(vec![lower], "echo written > /dev/null; test -c /dev/null && ! test -e /dev/console && test -d /dev/shm && ls /proc/self/status");
    bed.run(&spec).ok();
    canary.unchanged();
}

fn r04_shared_mount_swapped_while_mounting(bed: &mut Bed) {
    let canary = Canary::new(bed);
    let cache = bed.new_directory("cache");
    std::fs::create_dir_all(cache.join("a/b")).unwrap();
    let outside = canary.directory.to_str().unwrap().to_owned();
    let mut swap = bed.shell(&format!("cd /cache; while :; do mv a real; ln -s {outside} a; rm a; ln -s /proc/self/root/{outside} a; rm a; ln -s ../../../../.. a; rm a; mv real a; done"));
    swap.mounts = vec![bind(&cache, "/cache", false)];
    let (swapper, _output) = bed.start(&swap);
    let secret = |dest: &str| Mount {
        dest: dest.into(),
        kind: MountKind::File { data: b"x".to_vec(), uid: 0, gid: 0, mode: 0o400 },
    };
    let within = |dest: &str| Mount {
        dest: dest.into(),
        kind: MountKind::Bind { source: cache.clone(), selector: "a/b".into(), readonly: false },
    };
    // Whatever the mounts hit, nothing outside of root and cache is mounted on, made or shown.
    let mut spec =
        bed.shell("cat /view/secret /view/b/secret /cache/a/secret 2>/dev/null; touch /view/made; ls / > /dev/null");
    spec.mounts = vec![bind(&cache, "/cache", false), secret("/cache/a/b/k"), within("/view")];
    for _ in 0..100 {
        let outcome = bed.run(&spec);
        assert!(!outcome.output.contains("canary-content"), "{outcome:?}");
        if let Err((error, _)) = &outcome.result {
            assert!(!error.contains("panicked"), "{error}");
        }
    }
    drop(swapper);
    canary.unchanged();
}

fn r05_stub_parent_swapped_for_a_link(bed: &mut Bed) {
    let canary = Canary::new(bed);
    let outside = canary.directory.to_str().unwrap().to_owned();
    let lower = bed.busybox();
    std::fs::create_dir_all(lower.join("a/empty")).unwrap();
    let script = format!(
        "cp -a /etc /etc2; mv /etc /old-etc 2>/dev/null; mv /new /old-new && ln -s {outside} /new && mv /a/m /a/old && ln -s {outside} /a/m; ls -d /old-new"
    );
    let mut spec = bed.shell_over(vec![lower], &script);
    let file = |dest: &str| Mount {
        dest: dest.into(),
        kind: MountKind::File { data: Vec::new(), uid: 0, gid: 0, mode: 0o600 },
    };
    let source = bed.new_directory("source");
    spec.mounts =
        vec![file("/new/file"), file("/a/m/k"), bind(&source, "/new/empty", false), bind(&source, "/a/m/empty", false)];
    let output = bed.run(&spec).ok();
    assert_eq!(output, "/old-new\n", "the attack must take place");
    canary.unchanged();
    assert!(upper(&spec).join("new").symlink_metadata().unwrap().is_symlink(), "the step's own link stays");
}

fn r07_selector_and_destination_links_stay_inside(bed: &mut Bed) {
    let canary = Canary::new(bed);
    let outside = canary.directory.to_str().unwrap().to_owned();
    let image = bed.new_directory("image");
    std::fs::write(image.join("mine"), "").unwrap();
    symlink("/", image.join("l")).unwrap();
    symlink("../../../../../../..", image.join("up")).unwrap();
    symlink(&outside, image.join("out")).unwrap();
    let lower = bed.busybox();
    symlink(&outside, lower.join("dest")).unwrap();
    let mut spec = bed.shell_over(vec![lower], "ls /one /two; touch /dest/written");
    let selected = |dest: &str, selector: &str| Mount {
        dest: dest.into(),
        kind: MountKind::Bind { source: image.clone(), selector: selector.into(), readonly: false },
    };
    spec.mounts = vec![selected("/one", "/l"), selected("/two", "up/../.."), selected("/dest/x", "l/l/l")];
    let output = bed.run(&spec).ok();
    assert_eq!(output, "/one:\nl\nmine\nout\nup\n\n/two:\nl\nmine\nout\nup\n");
    spec.mounts = vec![selected("/one", "out")];
    bed.run(&spec).refused();
    canary.unchanged();
}

fn r08_confinement_cannot_be_undone(bed: &mut Bed) {
    let script = "
        grep -E '^(Seccomp|CapBnd|CapEff|NoNewPrivs):' /proc/self/status
        mkdir -p /m
        t() { \"$@\" > /dev/null 2>&1 && echo \"SUCCEEDED: $*\"; }
        t mount -t tmpfs none /m
        t mount -t proc proc /m
        t mount --bind / /m
        t mount -o remount,rw /proc/sys
        t mount -o remount,rw,bind /proc/sys
        t umount /proc/sys
        t umount -l /proc/kcore
        t umount /etc/hosts
        t unshare -U true
        t unshare -m true
        t unshare -Urm true
        t unshare -p true
        t unshare -n true
        t unshare -C true
        t sh -c 'echo 1 > /proc/sys/kernel/domainname'
        t sh -c 'echo b > /proc/sysrq-trigger'
        t sh -c 'echo /x > /proc/sys/kernel/core_pattern'
        t sh -c 'echo 1 > /sys/kernel/mm/ksm/run'
        t hostname changed
        t mkdir /sys/fs/cgroup/x
        for g in /sys/fs/cgroup /sys/fs/cgroup/*; do t mkdir $g/x; t sh -c \"echo /x > $g/release_agent\"; done
        t swapoff -a
        date -s 2020-01-01 > /dev/null 2>&1; date +%Y | grep 2020 && echo 'SUCCEEDED: date'
        t chroot /proc/1/root/.. ls /.canary
        t dmesg
        test -s /proc/kcore && echo 'SUCCEEDED: kcore'
        test -s /proc/keys && echo 'SUCCEEDED: keys'
        test -n \"$(ls -A /sys/firmware)\" && echo 'SUCCEEDED: firmware'
        test -n \"$(ls -A /proc/acpi 2>/dev/null)\" && echo 'SUCCEEDED: acpi'
        true";
    let spec = bed.shell(script);
    let output = bed.run(&spec).ok();
    assert_eq!(output, "CapEff:\t00000000a80425fb\nCapBnd:\t00000000a80425fb\nNoNewPrivs:\t0\nSeccomp:\t2\n");
}

fn r09_dangerous_calls_in_every_abi(bed: &mut Bed) {
    let spec = bed.probe("calls");
    let output = bed.run(&spec).ok();
    let (refused, missing) = (-libc::EPERM, -libc::ENOSYS);
    let (mut tried, mut worked) = (0, false);
    for line in output.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        if words[0] == "pid" {
            assert_eq!(line, "pid 1 1");
            worked = true;
            continue;
        }
        let result: i32 = words[2].parse().unwrap();
        assert!(result == refused || result == missing, "{line}");
        if words[1] == "clone3" || words[0] == "x32" || words[1] == "newer" {
            assert_eq!(result, missing, "{line}");
        }
        tried += 1;
    }
    assert!(worked || cfg!(not(target_arch = "x86_64")), "{output}");
    assert!(tried >= if cfg!(target_arch = "x86_64") { 80 } else { 4 }, "{output}");
}

fn r10_others_are_out_of_reach(bed: &mut Bed) {
    let mut outside = Command::new("sleep").arg("100").spawn().unwrap();
    let other = bed.shell("echo $$; sleep 1000");
    let (_other, _output) = bed.start(&other);
    let directory = bed.directory.to_str().unwrap().to_owned();
    let spec = bed.shell(&format!(
        "kill -9 -1 2> /dev/null; cat /proc/[0-9]*/comm > /tmp/names 2> /dev/null; sort -u /tmp/names; ls {directory} 2>&1 | grep -c 'No such'; ls /run/user 2>&1 | grep -c 'No such'; echo alive"
    ));
    let output = bed.run(&spec).output;
    assert_eq!(output, "sh\n1\n1\nalive\n");
    assert!(outside.try_wait().unwrap().is_none(), "a process outside was killed");
    outside.kill().unwrap();
    outside.wait().unwrap();
    let spec = bed.shell("echo still serving");
    assert_eq!(bed.run(&spec).ok(), "still serving\n");
}

fn r10_abstract_sockets(bed: &mut Bed) {
    let name = format!("bud-test-{}", std::process::id());
    let _listener = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let mut spec = bed.probe(&format!("abstract-socket {name}"));
    let output = bed.run(&spec).ok();
    // SAFETY: asks for the version of Landlock: a null pointer of size 0 and a flag.
    let version = unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<u8>(), 0usize, 1u32) };
    if version >= 6 {
        assert_eq!(output, format!("outside: {}\ninside: done\n", libc::EPERM));
    } else {
        eprintln!(
            "note: this kernel's Landlock (version {version}) can't scope abstract sockets: with the host's network they are in reach"
        );
        assert_eq!(output, "outside: done\ninside: done\n");
    }
    spec.network = Network::None;
    assert_eq!(bed.run(&spec).ok(), format!("outside: {}\ninside: done\n", libc::ECONNREFUSED));
}

/// With the outer `/proc`, processes of others are seen there, but nothing that only their owner may see, and nothing can be changed.
/// (How many descriptors a process of the same user has is seen, not what they are.)
fn r10_the_outer_proc_opens_no_process(bed: &mut Bed) {
    // Another step, with what a step may hold; and whoever runs this, as the same user.
    let mut other = bed.shell("echo ready; exec sleep 100");
    other.no_process_sandbox = true;
    // With the host's network Landlock is in the way as well, where the kernel has it.
    other.network = Network::None;
    other.env = vec!["SECRET=of-another-step".into()];
    let (other, mut said) = bed.start(&other);
    std::io::Read::read_exact(&mut said, &mut [0; 6]).unwrap();
    let script = "cd /proc/self; own=$(pwd -P); echo 'processes' $(ls -d /proc/[0-9]* | wc -l); \
        for p in /proc/[0-9]*; do [ $p = $own ] && continue; for f in environ mem maps auxv; do [ $(head -c 1 $p/$f 2>/dev/null | wc -c) = 0 ] || echo reads $p/$f; done; \
        for l in root cwd exe fd/0 ns/mnt ns/user; do readlink $p/$l >/dev/null && echo follows $p/$l; done; for d in root/ cwd/ fdinfo map_files; do [ -z \"$(ls -A $p/$d 2>/dev/null)\" ] || echo enters $p/$d; done; \
        for f in oom_score_adj coredump_filter comm clear_refs timerslack_ns mem; do (echo 1 > $p/$f) 2>/dev/null && echo writes $p/$f; done; done; \
        (echo 1 > /proc/self/oom_score_adj) 2>/dev/null && echo writes its own; \
        kill -9 $(cd /proc; echo [0-9]*) 2>/dev/null; cat /proc/*/environ 2>/dev/null | grep -c of-another-step; tr '\\0' '\\n' < $own/environ | grep MARK";
    for user in ["", "7:8"] {
        if bed.identity == As::Single && !user.is_empty() {
            continue;
        }
        let mut spec = bed.shell(script);
        spec.user = user.into();
        spec.no_process_sandbox = true;
        spec.network = Network::None;
        spec.env = vec!["MARK=own".into()];
        let output = bed.run(&spec).output;
        let lines: Vec<&str> = output.lines().collect();
        let [processes, "0", "MARK=own"] = lines[..] else { panic!("{output}") };
        let processes: u32 = processes.strip_prefix("processes ").unwrap().parse().unwrap();
        assert!(processes > 3, "the outer /proc: {output}");
    }
    drop(other);
    let spec = bed.shell("echo still serving");
    assert_eq!(bed.run(&spec).ok(), "still serving\n");
}

/// What is hidden in the outer `/proc` stays hidden with it.
fn r10_the_outer_proc_keeps_its_masks(bed: &mut Bed) {
    // The fork server has a mount namespace of its own from its start on: a new one sees what is mounted here now.
    bed.server = None;
    let empty = bed.new_directory("empty");
    for (kind, place) in [("dir", "/proc/tty"), ("file", "/proc/version")] {
        let source = if kind == "dir" { empty.as_path() } else { std::path::Path::new("/dev/null") };
        rustix::mount::mount_bind(source, place).unwrap();
    }
    bed.server = Some(bud_sandbox::server::ForkServer::start().unwrap());
    let mut spec =
        bed.shell("ls /proc/tty; cat /proc/version; umount /proc/tty 2>/dev/null; ls /proc/tty; test -d /proc/1");
    spec.no_process_sandbox = true;
    assert_eq!(bed.run(&spec).ok(), "");
    for place in ["/proc/tty", "/proc/version"] {
        rustix::mount::unmount(place, rustix::mount::UnmountFlags::DETACH).unwrap();
    }
}

fn r12_unknown_security_is_refused(bed: &mut Bed) {
    let spec = bed.shell("true");
    let text = serde_json::to_string(&spec).unwrap();
    assert!(text.contains("\"security\":\"Sandbox\""), "{text}");
    for wrong in
        ["\"security\":\"Sandbax\"", "\"security\":2", "\"security\":-1", "\"security\":null", "\"security\":99"]
    {
        let changed = text.replace("\"security\":\"Sandbox\"", wrong);
        assert!(serde_json::from_str::<bud_sandbox::ContainerSpec>(&changed).is_err(), "{wrong}");
    }
}

fn r15_own_files_in_etc_are_not_the_images(bed: &mut Bed) {
    let canary = Canary::new(bed);
    let lower = bed.busybox();
    symlink(canary.directory.join("hosts"), lower.join("etc/hosts")).unwrap();
    symlink("/etc/shadow", lower.join("etc/resolv.conf")).unwrap();
    let script = "echo x >> /etc/hosts; echo x >> /etc/resolv.conf; rm -f /etc/hosts; mkdir -p /dev/shm; touch /dev/shm/left; ipcmk -Q 2>/dev/null; ls /dev/shm";
    let spec = bed.shell_over(vec![lower], script);
    assert!(bed.run(&spec).output.ends_with("left\n"));
    let left = tree(upper(&spec));
    assert!(!left.iter().any(|path| path.contains("shadow") || path.contains("canary")), "{left:?}");
    canary.unchanged();
    let spec = bed.shell("ls -A /dev/shm");
    assert_eq!(bed.run(&spec).ok(), "");
    if bed.identity == As::Subids {
        let spec = bed.shell("touch /f; chown 4000000000 /f");
        assert!(bed.run(&spec).output.contains("Invalid argument"));
    }
}
