//! This program as the one that runs in a container: tries what a shell can't.

#[cfg(not(target_arch = "x86_64"))]
use std::ffi::CStr;
use std::io;
use std::process::ExitCode;

/// Says what to try.
pub const VARIABLE: &str = "BUD_SANDBOX_PROBE";

pub fn asked() -> Option<String> {
    std::env::var(VARIABLE).ok()
}

pub fn run(what: &str) -> ExitCode {
    let (what, argument) = what.split_once(' ').unwrap_or((what, ""));
    match what {
        "ids" => println!("uid {} euid {}", rustix::process::getuid().as_raw(), rustix::process::geteuid().as_raw()),
        "own-file" => own_file(),
        "abstract-socket" => abstract_socket(argument),
        "calls" => calls(),
        other => panic!("unknown probe {other}"),
    }
    ExitCode::SUCCESS
}

fn told(what: &str, result: io::Result<()>) {
    match result {
        Ok(()) => println!("{what}: done"),
        Err(error) => println!("{what}: {}", error.raw_os_error().unwrap_or(0)),
    }
}

/// Tries to change the file that this process was executed from.
fn own_file() {
    use std::os::unix::fs::PermissionsExt;
    for path in ["/proc/self/exe", "/proc/1/exe"] {
        told("mode", std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)));
        told("write", std::fs::OpenOptions::new().append(true).open(path).map(drop));
        told("truncate", std::fs::OpenOptions::new().write(true).truncate(true).open(path).map(drop));
        let file = rustix::fs::open(path, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty());
        use std::os::fd::AsRawFd;
        let again = file.map_err(io::Error::from).and_then(|file| {
            std::fs::OpenOptions::new().append(true).open(format!("/proc/self/fd/{}", file.as_raw_fd())).map(drop)
        });
        told("reopen", again);
        let times = std::fs::File::open(path).and_then(|file| file.set_modified(std::time::SystemTime::UNIX_EPOCH));
        told("times", times);
    }
}

fn abstract_socket(name: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
    let address = SocketAddr::from_abstract_name(name).unwrap();
    told("outside", UnixStream::connect_addr(&address).map(drop));
    let own = SocketAddr::from_abstract_name("own").unwrap();
    let listener = UnixListener::bind_addr(&own);
    told("inside", listener.and_then(|_listener| UnixStream::connect_addr(&own).map(drop)));
}

/// Calls the kernel by the machine's own ABI.
fn native(number: i64, arguments: [i64; 3]) -> i64 {
    // SAFETY: the calls tried get null or invalid pointers and descriptors: the worst that can happen is that one of
    // them succeeds, which is what this program is there to find out.
    let result = unsafe { libc::syscall(number, arguments[0], arguments[1], arguments[2]) };
    if result == -1 { -i64::from(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { result }
}

/// Calls the kernel by the i386 ABI. The number in rax, two arguments.
#[cfg(target_arch = "x86_64")]
fn i386(number: i32, first: i32, second: i32) -> i32 {
    let result: i32;
    // SAFETY: as for `native`; rbx is reserved by the compiler and put back. The kernel may clobber r8 to r11.
    unsafe {
        std::arch::asm!(
            "xchg {first:r}, rbx",
            "int 0x80",
            "xchg {first:r}, rbx",
            first = inout(reg) i64::from(first) => _,
            inlateout("eax") number => result,
            in("ecx") second,
            in("edx") 0,
            in("esi") 0,
            in("edi") 0,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    result
}

/// Calls that a step must not make: name, x86_64 number, i386 number.
#[cfg(target_arch = "x86_64")]
pub const REFUSED: &[(&str, i32, i32)] = &[
    ("keyctl", 250, 288),
    ("add_key", 248, 286),
    ("request_key", 249, 287),
    ("bpf", 321, 357),
    ("perf_event_open", 298, 336),
    ("io_uring_setup", 425, 425),
    ("userfaultfd", 323, 374),
    ("open_by_handle_at", 304, 342),
    ("kexec_load", 246, 283),
    ("mount", 165, 21),
    ("umount2", 166, 52),
    ("pivot_root", 155, 217),
    ("unshare", 272, 310),
    ("setns", 308, 346),
    ("init_module", 175, 128),
    ("clone3", 435, 435),
    ("fsopen", 430, 430),
    ("open_tree", 428, 428),
    ("move_mount", 429, 429),
    ("swapon", 167, 87),
    ("reboot", 169, 88),
    ("settimeofday", 164, 79),
    ("iopl", 172, 110),
    ("acct", 163, 51),
    ("quotactl", 179, 131),
];

#[cfg(target_arch = "x86_64")]
fn calls() {
    const X32_BIT: i64 = 0x4000_0000;
    for (name, number, compatible) in REFUSED {
        println!("x86_64 {name} {}", native(i64::from(*number), [0, 0, 0]));
        println!("x32 {name} {}", native(i64::from(*number) | X32_BIT, [0, 0, 0]));
        println!("i386 {name} {}", i386(*compatible, 0, 0));
    }
    // getpid, so that the ways of calling are shown to work; x32 has no allowed call.
    println!("pid {} {}", native(39, [0, 0, 0]), i386(20, 0, 0));
    println!("i386 TIOCSTI {}", i386(54, 0, 0x5412));
    println!("x86_64 TIOCSTI {}", native(16, [0, 0x5412, 0]));
    println!("x86_64 AF_VSOCK {}", native(41, [40, 1, 0]));
    println!("i386 AF_VSOCK {}", i386(359, 40, 1));
    println!("x86_64 CLONE_NEWUSER {}", native(56, [0x1000_0000 | 17, 0, 0]));
    println!("i386 CLONE_NEWUSER {}", i386(120, 0x1000_0000 | 17, 0));
    println!("x86_64 newer {}", native(1000, [0, 0, 0]));
}

#[cfg(not(target_arch = "x86_64"))]
fn calls() {
    let name = |name: &CStr, number| println!("native {} {}", name.to_str().unwrap(), native(number, [0, 0, 0]));
    name(c"keyctl", libc::SYS_keyctl);
    name(c"bpf", libc::SYS_bpf);
    name(c"mount", libc::SYS_mount);
    name(c"clone3", libc::SYS_clone3);
}
