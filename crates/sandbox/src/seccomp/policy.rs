//! Which call gets which answer, and the program that gives it.

use super::bpf::{
    ALLOW, AND, Instruction, JUMP, JUMP_BITS, JUMP_EQUAL, LOAD, NOTIFY, OFFSET_ARCH, OFFSET_NUMBER, RETURN, argument,
    branch, errno, jump, statement,
};
use super::table::{ALLOWED, NEWEST, NONE};
use super::trapped::{Call, trapped};

/// An ABI that a process on the machine can call the kernel with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Arch {
    X86_64,
    I386,
    Aarch64,
    Arm,
}

impl Arch {
    /// `AUDIT_ARCH_*` of `linux/audit.h`.
    pub(super) fn audit(self) -> u32 {
        match self {
            Arch::X86_64 => 0xc000_003e,
            Arch::I386 => 0x4000_0003,
            Arch::Aarch64 => 0xc000_00b7,
            Arch::Arm => 0x4000_0028,
        }
    }

    pub(super) fn column(self) -> usize {
        match self {
            Arch::X86_64 => 0,
            Arch::I386 => 1,
            Arch::Aarch64 => 2,
            Arch::Arm => 3,
        }
    }
}

/// What a call gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Allow,
    Errno(i32),
    /// The listener of the container answers (`container::owners`).
    Notify,
    /// The listener answers if the flags in this argument have `O_CREAT`.
    NotifyIfCreating(u32),
    /// Any address family but `AF_VSOCK`: it reaches the hypervisor whatever the network namespace.
    Socket,
    /// The execution domains that programs need (`personality(2)`).
    Personality,
    /// No new namespaces.
    Clone,
    /// No input pushed into a terminal (`TIOCSTI`, `TIOCLINUX`).
    Ioctl,
}

/// The calls whose arguments decide, numbered as in [`ALLOWED`].
const DECIDED: &[(Answer, [i32; 4])] = &[
    (Answer::Socket, [41, 359, 198, 281]),
    (Answer::Personality, [135, 136, 92, 136]),
    (Answer::Clone, [56, 120, 220, 120]),
    // Its flags are behind a pointer that a filter can't follow; libraries fall back to `clone`.
    (Answer::Errno(libc::ENOSYS), [435, 435, 435, 435]),
    (Answer::Ioctl, [16, 54, 29, 54]),
];

/// Numbers with this bit are x32 calls; on another ABI it means nothing.
const X32_BIT: u32 = 0x4000_0000;

/// Every `CLONE_NEW*` flag that `clone` takes.
const NEW_NAMESPACES: u32 = 0x7e02_0000;

/// Compiles the program for the ABIs of one machine; with `owners`, calls that change owners go to a listener.
pub(super) fn compile(arches: &[Arch], owners: bool) -> Vec<Instruction> {
    let mut program = vec![statement(LOAD, OFFSET_ARCH)];
    for arch in arches {
        let calls = calls(*arch, owners);
        program.push(jump(JUMP_EQUAL, arch.audit(), 1, 0));
        program.push(statement(JUMP, calls.len() as u32));
        program.extend(calls);
    }
    program.push(statement(RETURN, errno(libc::ENOSYS)));
    program
}

/// The part of the program for one ABI.
fn calls(arch: Arch, owners: bool) -> Vec<Instruction> {
    let mut program = vec![statement(LOAD, OFFSET_NUMBER)];
    if arch == Arch::X86_64 {
        program.push(jump(JUMP_BITS, X32_BIT, 0, 1));
        program.push(statement(RETURN, errno(libc::ENOSYS)));
    }
    program.extend(tree(&ranges(arch, owners)));
    program
}

/// The answers in order of the numbers: each holds from its number up to the next one's.
fn ranges(arch: Arch, owners: bool) -> Vec<(u32, Answer)> {
    let allowed = ALLOWED.iter().map(|(name, numbers)| {
        let answer = match trapped(name, arch).filter(|_| owners) {
            Some(Call::Make(make)) => make.flags().map_or(Answer::Notify, Answer::NotifyIfCreating),
            Some(_) => Answer::Notify,
            None => Answer::Allow,
        };
        (numbers[arch.column()], answer)
    });
    let decided = DECIDED.iter().map(|(answer, numbers)| (numbers[arch.column()], *answer));
    let mut calls: Vec<(u32, Answer)> = allowed
        .chain(decided)
        .filter(|(number, _)| *number != NONE)
        .map(|(number, answer)| (number as u32, answer))
        .collect();
    calls.sort_by_key(|(number, _)| *number);

    const REFUSED: Answer = Answer::Errno(libc::EPERM);
    let mut ranges: Vec<(u32, Answer)> = Vec::new();
    let mut next = 0;
    let mut push = |from: u32, answer: Answer| {
        if ranges.last().is_none_or(|(_, last)| *last != answer) {
            ranges.push((from, answer));
        }
    };
    let mut newer = false;
    for (number, answer) in calls {
        if number > NEWEST && !newer {
            // Private numbers of an ABI (arm's 0xf0001…) lie above all others.
            push(next, REFUSED);
            push(NEWEST + 1, Answer::Errno(libc::ENOSYS));
            newer = true;
        } else if number > next {
            push(next, if newer { Answer::Errno(libc::ENOSYS) } else { REFUSED });
        }
        push(number, answer);
        next = number + 1;
    }
    if !newer && next <= NEWEST {
        push(next, REFUSED);
    }
    push(next.max(NEWEST + 1), Answer::Errno(libc::ENOSYS));
    ranges
}

/// A balanced search tree over the ranges.
fn tree(ranges: &[(u32, Answer)]) -> Vec<Instruction> {
    match ranges {
        [] => vec![statement(RETURN, errno(libc::EPERM))],
        [(_, answer)] => leaf(*answer),
        _ => {
            let (below, above) = ranges.split_at(ranges.len() / 2);
            branch(above[0].0, tree(below), tree(above))
        }
    }
}

fn leaf(answer: Answer) -> Vec<Instruction> {
    let allow = statement(RETURN, ALLOW);
    let refuse = statement(RETURN, errno(libc::EPERM));
    match answer {
        Answer::Allow => vec![allow],
        Answer::Notify => vec![statement(RETURN, NOTIFY)],
        Answer::NotifyIfCreating(index) => vec![
            statement(LOAD, argument(index)),
            jump(JUMP_BITS, libc::O_CREAT as u32, 0, 1),
            statement(RETURN, NOTIFY),
            allow,
        ],
        Answer::Errno(number) => vec![statement(RETURN, errno(number))],
        Answer::Socket => {
            vec![statement(LOAD, argument(0)), jump(JUMP_EQUAL, libc::AF_VSOCK as u32, 1, 0), allow, refuse]
        }
        Answer::Personality => vec![
            statement(LOAD, argument(0)),
            jump(JUMP_EQUAL, 0xffff_ffff, 2, 0),
            // PER_LINUX32 and UNAME26 alone or together.
            statement(AND, !(0x0008 | 0x2_0000)),
            jump(JUMP_EQUAL, 0, 0, 1),
            allow,
            refuse,
        ],
        Answer::Clone => vec![statement(LOAD, argument(0)), jump(JUMP_BITS, NEW_NAMESPACES, 1, 0), allow, refuse],
        Answer::Ioctl => vec![
            statement(LOAD, argument(1)),
            jump(JUMP_EQUAL, libc::TIOCSTI as u32, 2, 0),
            jump(JUMP_EQUAL, TIOCLINUX, 1, 0),
            allow,
            refuse,
        ],
    }
}

/// Controls the Linux console, its selection buffer too (`ioctl_console(2)`).
const TIOCLINUX: u32 = 0x541c;
