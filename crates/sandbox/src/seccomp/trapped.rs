//! The calls that the listener of a container answers where only the own ID is mapped.

use std::collections::HashMap;

use super::policy::Arch;
use super::table::{ALLOWED, NONE};

/// What a trapped call does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// Changes a file's owner.
    Chown(Chown),
    /// Tells a file's owner.
    Stat(Stat),
    /// Tells IDs of the process.
    Get(Get),
    /// Changes IDs of the process.
    Set(Set),
    /// Makes a file.
    Make(Make),
    /// Gives a file another name.
    Move(Move),
    /// Becomes another program: with its path as first argument, or as second one after a directory.
    Exec { at: bool },
    /// Ends.
    Exit,
}

/// How a call names the file whose owner it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chown {
    /// By a path, through a link at its end.
    Path,
    /// By a path, the link itself.
    Link,
    /// By a descriptor.
    Descriptor,
    /// `fchownat`.
    At,
}

/// How a call names the file that it looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stat {
    /// By a path, through a link at its end.
    Path,
    /// By a path, the link itself.
    Link,
    /// By a descriptor.
    Descriptor,
    /// `newfstatat`, `fstatat64`.
    At,
    /// `statx`.
    Extended,
}

/// What a call asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Get {
    Uid,
    EffectiveUid,
    Gid,
    EffectiveGid,
    /// Real, effective, saved.
    Uids,
    Gids,
    Groups,
}

/// What a call changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Set {
    Uid,
    Gid,
    /// Real, effective.
    TwoUids,
    TwoGids,
    /// Real, effective, saved.
    Uids,
    Gids,
    FileUid,
    FileGid,
    Groups,
}

/// How a call names the file that gets another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Move {
    /// `rename`, `link`.
    Path,
    /// `renameat`, `renameat2`.
    At,
    /// `linkat`, with flags.
    LinkAt,
}

/// What a call makes, and how it is told where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Make {
    /// `open`, `creat` (without flags).
    Open {
        has_flags: bool,
    },
    OpenAt,
    Directory,
    DirectoryAt,
    Node,
    NodeAt,
    Link,
    LinkAt,
}

impl Make {
    /// The argument with the flags of an opening call: without `O_CREAT` in it, nothing is made.
    pub(super) fn flags(self) -> Option<u32> {
        match self {
            Make::Open { has_flags: true } => Some(1),
            Make::OpenAt => Some(2),
            _ => None,
        }
    }
}

/// How an ABI lays out what it tells of a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Layout {
    X86_64,
    I386,
    Aarch64,
    Arm,
}

/// A trapped call of an ABI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trapped {
    pub(crate) call: Call,
    /// Its IDs have 16 bits.
    pub(crate) short_ids: bool,
    pub(crate) layout: Layout,
}

/// Names are those of the table; those with a `32` at their end are of ABIs that have older ones with 16 bits.
const TRAPPED: &[(&str, Call)] = &[
    ("chown", Call::Chown(Chown::Path)),
    ("lchown", Call::Chown(Chown::Link)),
    ("fchown", Call::Chown(Chown::Descriptor)),
    ("fchownat", Call::Chown(Chown::At)),
    ("stat", Call::Stat(Stat::Path)),
    ("lstat", Call::Stat(Stat::Link)),
    ("fstat", Call::Stat(Stat::Descriptor)),
    ("newfstatat", Call::Stat(Stat::At)),
    ("stat64", Call::Stat(Stat::Path)),
    ("lstat64", Call::Stat(Stat::Link)),
    ("fstat64", Call::Stat(Stat::Descriptor)),
    ("fstatat64", Call::Stat(Stat::At)),
    ("statx", Call::Stat(Stat::Extended)),
    ("getuid", Call::Get(Get::Uid)),
    ("geteuid", Call::Get(Get::EffectiveUid)),
    ("getgid", Call::Get(Get::Gid)),
    ("getegid", Call::Get(Get::EffectiveGid)),
    ("getresuid", Call::Get(Get::Uids)),
    ("getresgid", Call::Get(Get::Gids)),
    ("getgroups", Call::Get(Get::Groups)),
    ("setuid", Call::Set(Set::Uid)),
    ("setgid", Call::Set(Set::Gid)),
    ("setreuid", Call::Set(Set::TwoUids)),
    ("setregid", Call::Set(Set::TwoGids)),
    ("setresuid", Call::Set(Set::Uids)),
    ("setresgid", Call::Set(Set::Gids)),
    ("setfsuid", Call::Set(Set::FileUid)),
    ("setfsgid", Call::Set(Set::FileGid)),
    ("setgroups", Call::Set(Set::Groups)),
    ("open", Call::Make(Make::Open { has_flags: true })),
    ("creat", Call::Make(Make::Open { has_flags: false })),
    ("openat", Call::Make(Make::OpenAt)),
    ("mkdir", Call::Make(Make::Directory)),
    ("mkdirat", Call::Make(Make::DirectoryAt)),
    ("mknod", Call::Make(Make::Node)),
    ("mknodat", Call::Make(Make::NodeAt)),
    ("symlink", Call::Make(Make::Link)),
    ("symlinkat", Call::Make(Make::LinkAt)),
    ("rename", Call::Move(Move::Path)),
    ("link", Call::Move(Move::Path)),
    ("renameat", Call::Move(Move::At)),
    ("renameat2", Call::Move(Move::At)),
    ("linkat", Call::Move(Move::LinkAt)),
    ("execve", Call::Exec { at: false }),
    ("execveat", Call::Exec { at: true }),
    ("exit_group", Call::Exit),
];

/// Returns what a call does if it is trapped, and whether its IDs have 16 bits.
fn find(name: &str, arch: Arch) -> Option<(Call, bool)> {
    let old = matches!(arch, Arch::I386 | Arch::Arm);
    let (base, has_suffix) = name.strip_suffix("32").map_or((name, false), |base| (base, true));
    let call = TRAPPED.iter().find(|(known, _)| *known == base).map(|(_, call)| *call)?;
    match call {
        // Only libraries of long ago use the old structures, which have no room for today's numbers.
        Call::Stat(_) if old && matches!(name, "stat" | "lstat" | "fstat") => None,
        Call::Chown(Chown::At) => Some((call, false)),
        Call::Chown(_) | Call::Get(_) | Call::Set(_) => Some((call, old && !has_suffix)),
        _ => Some((call, false)),
    }
}

pub(super) fn trapped(name: &str, arch: Arch) -> Option<Call> {
    find(name, arch).map(|(call, _)| call)
}

/// Returns what trapped calls do, by ABI (`AUDIT_ARCH_*`) and number.
pub(crate) fn trapped_calls() -> HashMap<(u32, i32), Trapped> {
    let mut calls = HashMap::new();
    for (arch, layout) in [
        (Arch::X86_64, Layout::X86_64),
        (Arch::I386, Layout::I386),
        (Arch::Aarch64, Layout::Aarch64),
        (Arch::Arm, Layout::Arm),
    ] {
        for (name, numbers) in ALLOWED {
            let number = numbers[arch.column()];
            if let (true, Some((call, short_ids))) = (number != NONE, find(name, arch)) {
                calls.insert((arch.audit(), number), Trapped { call, short_ids, layout });
            }
        }
    }
    calls
}
