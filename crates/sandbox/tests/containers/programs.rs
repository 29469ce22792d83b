//! What a program finds in its container.

use std::os::unix::fs::{MetadataExt, PermissionsExt};

use bud_sandbox::{Network, Rlimit, Security};

use crate::Case;
use crate::bed::{As, Bed, upper};

pub const CASES: &[Case] = &[
    ("program_output_and_exit_code", program_output_and_exit_code),
    ("program_is_process_one_of_its_own", program_is_process_one_of_its_own),
    ("environment_and_host_name", environment_and_host_name),
    ("working_directory_is_made_for_the_user", working_directory_is_made_for_the_user),
    ("users_and_groups", users_and_groups),
    ("owners_can_be_changed_with_subids", owners_can_be_changed_with_subids),
    ("devices", devices),
    ("limits", limits),
    ("programs_that_cannot_be_started", programs_that_cannot_be_started),
    ("insecure_has_all_capabilities_and_no_filter", insecure_has_all_capabilities_and_no_filter),
    ("network_none_has_loopback_alone", network_none_has_loopback_alone),
    ("outer_proc_on_request", outer_proc_on_request),
    ("no_new_privileges_on_request", no_new_privileges_on_request),
    ("set_uid_programs_work", set_uid_programs_work),
];

fn program_output_and_exit_code(bed: &mut Bed) {
    let spec = bed.shell("echo out; echo err >&2; cat; exit 7");
    let outcome = bed.run(&spec);
    assert_eq!(outcome.output, "out\nerr\n");
    assert_eq!(bed.run_with_input(&spec, "given\n").output, "out\nerr\ngiven\n");
    let status = outcome.result.unwrap();
    assert_eq!((status.code, status.signal), (7, None));
    let spec = bed.shell("kill -9 $$; echo the first process is not killed from inside; exit 3");
    assert_eq!(bed.run(&spec).result.unwrap().code, 3);
}

fn program_is_process_one_of_its_own(bed: &mut Bed) {
    let spec = bed.shell(
        "echo $$; set -- /proc/[0-9]*; echo $#; readlink /proc/self/fd/0; ls /proc/self/fd | wc -l; pwd; ls ../..",
    );
    let output = bed.run(&spec).ok();
    let lines: Vec<&str> = output.lines().collect();
    // The shell is all there is; ls sees its own directory descriptor beside 0 to 2.
    assert_eq!(&lines[..5], ["1", "1", "/dev/null", "4", "/"], "{output}");
    assert!(lines[5..].contains(&"bin"), "{output}");
}

fn environment_and_host_name(bed: &mut Bed) {
    let mut spec = bed.shell("env; hostname; umask; cat /etc/hosts /etc/resolv.conf");
    spec.env = vec!["A=1".into(), "A=2".into()];
    let output = bed.run(&spec).ok();
    for line in [
        "A=2",
        "HOME=/root",
        "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "buildkitsandbox",
        "0022",
        "127.0.0.1 localhost",
        "nameserver 192.0.2.1",
    ] {
        assert!(output.lines().any(|found| found == line), "{line} is not in\n{output}");
    }
    assert!(!output.contains("A=1") && !output.contains("BUD_") && !output.contains("TMPDIR"), "{output}");
    spec.hostname = Some("maria".into());
    assert!(bed.run(&spec).ok().contains("maria\n"));
}

fn working_directory_is_made_for_the_user(bed: &mut Bed) {
    let mut spec = bed.shell("pwd; stat -c '%u:%g %a' . ..");
    spec.cwd = "/srv/a/b".into();
    assert_eq!(bed.run(&spec).ok(), "/srv/a/b\n0:0 755\n0:0 755\n");
    assert!(upper(&spec).join("srv/a/b").is_dir(), "the working directory stays in the layer");
    if bed.identity != As::Single {
        spec.user = "anna".into();
        spec.cwd = "/home/anna/x".into();
        assert_eq!(bed.run(&spec).ok(), "/home/anna/x\n7:8 755\n7:8 755\n");
    }
    spec.cwd = "/bin/busybox/x".into();
    spec.user = String::new();
    assert!(bed.run(&spec).refused().contains("working directory"));
}

fn users_and_groups(bed: &mut Bed) {
    let mut spec = bed.shell("id -u; id -g; id -G; echo $HOME; grep CapEff /proc/self/status");
    assert_eq!(bed.run(&spec).ok().lines().take(2).collect::<Vec<_>>(), ["0", "0"]);
    spec.user = "nobody-here".into();
    assert!(bed.run(&spec).refused().contains("no such user"));
    spec.user = "4294967295".into();
    assert!(!bed.run(&spec).refused().is_empty());
    spec.user = "anna".into();
    if bed.identity == As::Single {
        assert!(bed.run(&spec).refused().contains("not mapped"));
        return;
    }
    assert_eq!(bed.run(&spec).ok(), "7\n8\n8 5 6\n/home/anna\nCapEff:\t0000000000000000\n");
    spec.user = "anna:six".into();
    assert!(bed.run(&spec).ok().starts_with("7\n6\n6\n"));
    spec.user = "12:34".into();
    assert!(bed.run(&spec).ok().starts_with("12\n34\n34\n/\n"));
    if bed.identity == As::Subids {
        spec.user = "70000000:1".into();
        assert!(bed.run(&spec).refused().contains("70000000 is not mapped"));
    }
}

fn owners_can_be_changed_with_subids(bed: &mut Bed) {
    let spec = bed.shell("touch /f && chown 33:44 /f && chmod 4755 /f && stat -c '%u:%g %a' /f");
    let outcome = bed.run(&spec);
    if bed.identity == As::Single {
        assert_ne!(outcome.result.unwrap().code, 0);
        eprintln!("note: without a place to note owners (`ContainerSpec::owners`), the own ID alone can't change them");
        return;
    }
    assert_eq!(outcome.ok(), "33:44 4755\n");
    let file = upper(&spec).join("f").metadata().unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o7777), (33, 44, 0o4755));
}

fn devices(bed: &mut Bed) {
    let script = "for d in null zero full random urandom tty; do stat -c '%n %F' /dev/$d; done; echo x > /dev/null || exit 1; \
         head -c 4 /dev/zero | wc -c; head -c 4 /dev/urandom | wc -c; (echo x > /dev/full) 2> /dev/null && exit 1; ls -d /dev/pts/ptmx /dev/mqueue /dev/fd/0; \
         stat -c %a /dev/shm; df -k /dev/shm | tail -n 1 | awk '{print $2}'; readlink /dev/ptmx; ls /dev | wc -l; \
         mknod /tmp/disk b 254 0 2>/dev/null; cat /tmp/disk 2>/dev/null && exit 1; exit 0";
    let mut spec = bed.shell(script);
    spec.shm_size = Some(1 << 20);
    let output = bed.run(&spec).ok();
    assert_eq!(output.matches("character special file").count(), 6, "{output}");
    assert!(output.ends_with("4\n4\n/dev/fd/0\n/dev/mqueue\n/dev/pts/ptmx\n1777\n1024\npts/ptmx\n14\n"), "{output}");
}

fn limits(bed: &mut Bed) {
    let mut spec = bed.shell("ulimit -n; ulimit -Hn; ulimit -c");
    let limit = |name: &str, soft, hard| Rlimit { name: name.into(), soft, hard };
    spec.rlimits = vec![limit("nofile", 100, 200), limit("CORE", 0, 0)];
    assert_eq!(bed.run(&spec).ok(), "100\n200\n0\n");
    spec.rlimits = vec![limit("nofiles", 1, 1)];
    assert!(bed.run(&spec).refused().contains("unknown resource limit \"nofiles\""));
}

fn programs_that_cannot_be_started(bed: &mut Bed) {
    let mut spec = bed.shell("");
    let root = upper(&spec).to_owned();
    std::fs::write(root.join("text"), "not a program").unwrap();
    std::fs::write(root.join("garbage"), "\u{7f}garbage").unwrap();
    std::fs::write(root.join("script"), "#!/no/such/interpreter\n").unwrap();
    for name in ["garbage", "script"] {
        std::fs::set_permissions(root.join(name), PermissionsExt::from_mode(0o755)).unwrap();
    }
    for (program, text, code) in [
        ("foo", "exec: \"foo\": executable file not found in $PATH", 127),
        ("/foo", "exec: \"/foo\": stat /foo: no such file or directory", 127),
        ("/text", "exec: \"/text\": permission denied", 126),
        ("/bin", "exec: \"/bin\": is a directory", 126),
        ("/garbage", "exec /garbage: exec format error", 126),
        ("/script", "exec /script: no such file or directory", 127),
    ] {
        spec.args = vec![program.into()];
        assert_eq!(bed.run(&spec).result, Err((text.to_owned(), code)), "{program}");
    }
    spec.args.clear();
    assert!(bed.run(&spec).refused().contains("no command"));
}

fn insecure_has_all_capabilities_and_no_filter(bed: &mut Bed) {
    let script = "grep -E '^(Seccomp|CapEff|CapBnd|CapAmb):' /proc/self/status; mkdir -p /m && mount -t tmpfs none /m && unshare -m true && echo mounted";
    let mut spec = bed.shell(script);
    assert!(bed.run(&spec).output.contains("Seccomp:\t2\n"));
    spec.security = Security::Insecure;
    let output = bed.run(&spec).ok();
    assert!(output.contains("Seccomp:\t0\n") && output.ends_with("mounted\n"), "{output}");
    // As many as the daemon has: root of a container may lack some.
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = status.lines().find_map(|line| line.strip_prefix("CapPrm:")).unwrap();
    assert_eq!(
        output.lines().filter(|line| line.starts_with("Cap") && line.ends_with(own)).count(),
        3,
        "{output}, not {own}"
    );
}

fn network_none_has_loopback_alone(bed: &mut Bed) {
    let mut spec = bed.shell("ls /sys/class/net; ip addr show lo | grep -c 'inet 127.0.0.1'; ping -c 1 -W 1 127.0.0.1 > /dev/null && echo alive; ping -c 1 -W 1 192.0.2.1 2>&1; true");
    spec.network = Network::None;
    let output = bed.run(&spec).ok();
    assert!(output.starts_with("lo\n1\n") && output.contains("unreachable"), "{output}");
}

fn outer_proc_on_request(bed: &mut Bed) {
    let mut spec = bed.shell("echo $$; echo /proc/[0-9]* | wc -w; echo 1 > /proc/sys/kernel/panic && echo written; kill -9 $(cd /proc; echo [0-9]*) 2> /dev/null; echo alive");
    spec.no_process_sandbox = true;
    let output = bed.run(&spec).ok();
    let lines: Vec<&str> = output.lines().collect();
    assert_eq!(lines[0], "1");
    assert!(lines[1].parse::<u32>().unwrap() > 3, "{output}");
    assert!(!output.contains("written"), "{output}");
    let spec = bed.shell("echo still serving");
    assert_eq!(bed.run(&spec).ok(), "still serving\n");
}

fn no_new_privileges_on_request(bed: &mut Bed) {
    let mut spec = bed.shell("grep NoNewPrivs /proc/self/status");
    assert_eq!(bed.run(&spec).ok(), "NoNewPrivs:\t0\n");
    spec.no_new_privileges = true;
    assert_eq!(bed.run(&spec).ok(), "NoNewPrivs:\t1\n");
}

fn set_uid_programs_work(bed: &mut Bed) {
    if bed.identity == As::Single {
        return;
    }
    let mut spec = bed.probe("ids");
    spec.args = ["/bin/sh", "-c", "as='/usr/bin/setpriv --reuid=7 --regid=8 --clear-groups'; cp /probe /set-uid && chmod 4755 /set-uid && $as /set-uid && $as /probe"].map(str::to_owned).to_vec();
    assert_eq!(bed.run(&spec).ok(), "uid 7 euid 0\nuid 7 euid 7\n");
    spec.no_new_privileges = true;
    assert_eq!(bed.run(&spec).ok(), "uid 7 euid 7\nuid 7 euid 7\n");
}
