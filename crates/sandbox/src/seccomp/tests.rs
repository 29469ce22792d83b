//! The filter, run by a small interpreter.

use super::bpf::{ALLOW, Instruction, NOTIFY, argument, errno};
use super::policy::{Arch, compile};
use super::table::{ALLOWED, NEWEST, NONE};
use super::trapped::{Call, Chown, Get, Layout, Make, Set, Trapped, trapped_calls};

/// Runs a program over `struct seccomp_data`.
fn run(program: &[Instruction], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
    let word = |offset: u32| match offset {
        0 => number,
        4 => arch,
        _ => {
            let at = (offset - argument(0)) / 4;
            let value = arguments[at as usize / 2];
            if at.is_multiple_of(2) { value as u32 } else { (value >> 32) as u32 }
        }
    };
    let (mut accumulator, mut at) = (0u32, 0usize);
    loop {
        let instruction = program[at];
        at += 1;
        let taken = match instruction.code {
            0x20 => {
                accumulator = word(instruction.value);
                continue;
            }
            0x54 => {
                accumulator &= instruction.value;
                continue;
            }
            0x05 => {
                at += instruction.value as usize;
                continue;
            }
            0x06 => return instruction.value,
            0x15 => accumulator == instruction.value,
            0x35 => accumulator >= instruction.value,
            0x45 => accumulator & instruction.value != 0,
            other => panic!("unknown instruction {other:#x}"),
        };
        at += usize::from(if taken { instruction.jump_true } else { instruction.jump_false });
    }
}

fn machines() -> [Vec<Arch>; 2] {
    [vec![Arch::X86_64, Arch::I386], vec![Arch::Aarch64, Arch::Arm]]
}

const EPERM: u32 = errno(libc::EPERM);
const TIOCSTI: u64 = 0x5412;
const ENOSYS: u32 = errno(libc::ENOSYS);

#[test]
fn every_number_of_every_abi_gets_the_answer_of_the_table() {
    for machine in machines() {
        let program = compile(&machine, false);
        assert!(program.len() < 4096, "{} instructions", program.len());
        for arch in machine {
            let column = match arch {
                Arch::X86_64 => 0,
                Arch::I386 => 1,
                Arch::Aarch64 => 2,
                Arch::Arm => 3,
            };
            let decided: &[i32] = [
                &[41, 135, 56, 16, 435],
                &[359, 136, 120, 54, 435],
                &[198, 92, 220, 29, 435],
                &[281, 136, 120, 54, 435],
            ][column];
            for number in 0..0x1000u32 {
                if decided.contains(&(number as i32)) {
                    continue;
                }
                let allowed = ALLOWED.iter().any(|(_, numbers)| numbers[column] == number as i32);
                let want = match (allowed, number > NEWEST) {
                    (true, _) => ALLOW,
                    (false, true) => ENOSYS,
                    (false, false) => EPERM,
                };
                assert_eq!(run(&program, arch.audit(), number, [0; 6]), want, "{arch:?} {number}");
            }
            for (name, numbers) in ALLOWED {
                if numbers[column] != NONE {
                    assert_eq!(run(&program, arch.audit(), numbers[column] as u32, [0; 6]), ALLOW, "{arch:?} {name}");
                }
            }
        }
    }
}

#[test]
fn dangerous_calls_are_refused() {
    let program = compile(&[Arch::X86_64, Arch::I386], false);
    // keyctl, add_key, request_key, bpf, perf_event_open, io_uring_setup, userfaultfd, open_by_handle_at, kexec_load,
    // mount, umount2, pivot_root, unshare, setns, init_module, ptrace stays allowed.
    for number in [250, 248, 249, 321, 298, 425, 323, 304, 246, 165, 166, 155, 272, 308, 175] {
        assert_eq!(run(&program, Arch::X86_64.audit(), number, [0; 6]), EPERM, "x86_64 {number}");
    }
    for number in [288, 286, 287, 357, 336, 425, 374, 342, 283, 21, 52, 217, 310, 346, 128] {
        assert_eq!(run(&program, Arch::I386.audit(), number, [0; 6]), EPERM, "i386 {number}");
    }
    for number in [0u32, 1, 59, 250, 512, 547] {
        assert_eq!(run(&program, Arch::X86_64.audit(), 0x4000_0000 | number, [0; 6]), ENOSYS, "x32 {number}");
    }
    assert_eq!(run(&program, Arch::Aarch64.audit(), 0, [0; 6]), ENOSYS);
}

#[test]
fn arguments_decide() {
    let program = compile(&[Arch::X86_64, Arch::I386], false);
    let call = |number, arguments| run(&program, Arch::X86_64.audit(), number, arguments);
    let one = |value: u64| [value, 0, 0, 0, 0, 0];
    assert_eq!(call(41, one(libc::AF_INET as u64)), ALLOW);
    assert_eq!(call(41, one(libc::AF_UNIX as u64)), ALLOW);
    assert_eq!(call(41, one(libc::AF_VSOCK as u64)), EPERM);
    for (persona, answer) in [
        (0, ALLOW),
        (8, ALLOW),
        (0x20000, ALLOW),
        (0x20008, ALLOW),
        (0xffff_ffff, ALLOW),
        (0x0040_0000, EPERM),
        (0x0004_0000, EPERM),
    ] {
        assert_eq!(call(135, one(persona)), answer, "{persona:#x}");
    }
    for flag in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_NEWNET,
        libc::CLONE_NEWIPC,
        libc::CLONE_NEWUTS,
        libc::CLONE_NEWCGROUP,
    ] {
        assert_eq!(call(56, one(flag as u64 | libc::SIGCHLD as u64)), EPERM);
    }
    assert_eq!(call(56, one((libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD) as u64)), ALLOW);
    assert_eq!(call(435, one(0)), ENOSYS);
    let ioctl = |request: u64| call(16, [3, request, 0, 0, 0, 0]);
    assert_eq!(ioctl(TIOCSTI), EPERM);
    // The kernel looks at the low half alone.
    assert_eq!(ioctl(TIOCSTI | 1 << 32), EPERM);
    assert_eq!(ioctl(0x541c), EPERM);
    assert_eq!(ioctl(0x5413), ALLOW);
    let ioctl_i386 = run(&program, Arch::I386.audit(), 54, [3, TIOCSTI, 0, 0, 0, 0]);
    assert_eq!(ioctl_i386, EPERM);
}

#[test]
fn with_one_id_the_calls_about_owners_go_to_the_listener() {
    let calls = trapped_calls();
    for machine in machines() {
        let (with, without) = (compile(&machine, true), compile(&machine, false));
        assert!(with.len() < 4096, "{} instructions", with.len());
        for arch in machine {
            for number in 0..=NEWEST {
                let trapped = calls.get(&(arch.audit(), number as i32));
                // An opening call goes there if it may make a file.
                for (flags, opens) in [(0, false), (libc::O_CREAT as u64, true)] {
                    let program = |program| run(program, arch.audit(), number, [flags; 6]);
                    let (now, before) = (program(&with), program(&without));
                    let told = trapped.is_some_and(|trapped| match trapped.call {
                        Call::Make(make) => make.flags().is_none() || opens,
                        _ => true,
                    });
                    assert_eq!(now, if told { NOTIFY } else { before }, "{arch:?} {number}");
                    assert!(trapped.is_none() || before == ALLOW);
                }
            }
        }
    }
    let call = |arch: Arch, number| calls.get(&(arch.audit(), number)).copied();
    let short = |call| Some(Trapped { call, short_ids: true, layout: Layout::I386 });
    let i386 = |call| Some(Trapped { call, short_ids: false, layout: Layout::I386 });
    let x86_64 = |call| Some(Trapped { call, short_ids: false, layout: Layout::X86_64 });
    assert_eq!(call(Arch::X86_64, 92), x86_64(Call::Chown(Chown::Path)));
    assert_eq!(call(Arch::I386, 182), short(Call::Chown(Chown::Path)));
    assert_eq!(call(Arch::I386, 198), i386(Call::Chown(Chown::Link)));
    assert_eq!(call(Arch::I386, 298), i386(Call::Chown(Chown::At)));
    assert_eq!(call(Arch::I386, 24), short(Call::Get(Get::Uid)));
    assert_eq!(call(Arch::I386, 206), i386(Call::Set(Set::Groups)));
    // The old `stat` of 32-bit ABIs.
    assert_eq!(call(Arch::I386, 106), None);
    assert_eq!(call(Arch::X86_64, 257), x86_64(Call::Make(Make::OpenAt)));
    assert_eq!(call(Arch::Aarch64, 54).map(|trapped| trapped.call), Some(Call::Chown(Chown::At)));
}
