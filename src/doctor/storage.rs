//! The file system under the state directory.

use super::{Check, Machine};
use bud_sandbox::probe::Outcome;
use std::path::Path;

/// Less than this and a build can't even start.
const NEEDED: u64 = 100 << 20;
/// Less than this and it won't go far.
const WANTED: u64 = 2 << 30;
/// Files of a small base image.
const INODES: u64 = 20_000;
/// So much is set aside to see whether a quota lets it.
const TRIED: u64 = 16 << 20;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let dir = match &machine.tried {
        Ok(dir) => dir,
        Err(why) => {
            return vec![Check::broken(
                "state directory",
                why.clone(),
                "bud doctor --root DIR, with a directory of yours",
            )];
        }
    };
    let mut checks = vec![Check::ok("state directory", machine.state.display().to_string())];
    let kind = rustix::fs::statfs(dir).map_or(Kind::Other, |fs| kind(fs.f_type as u64));
    checks.push(kind.check());
    checks.extend(overlay(machine, kind));
    checks.extend(space(dir));
    checks
}

/// File systems that behave in ways of their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Tmpfs,
    Nfs,
    Ecryptfs,
    Overlay,
    Fuse,
    Named(&'static str),
    Other,
}

/// Tells a file system by its number (`statfs(2)`).
fn kind(magic: u64) -> Kind {
    match magic & 0xffff_ffff {
        0x0102_1994 => Kind::Tmpfs,
        0x6969 => Kind::Nfs,
        0xf15f => Kind::Ecryptfs,
        0x794c_7630 => Kind::Overlay,
        0x6573_5546 => Kind::Fuse,
        0xef53 => Kind::Named("ext4"),
        0x5846_5342 => Kind::Named("xfs"),
        0x9123_683e => Kind::Named("btrfs"),
        0x2fc1_2fc1 => Kind::Named("zfs"),
        0xf2f5_2010 => Kind::Named("f2fs"),
        0xca45_1a4e => Kind::Named("bcachefs"),
        _ => Kind::Other,
    }
}

impl Kind {
    fn check(self) -> Check {
        const ELSEWHERE: &str = "keep the state elsewhere: export XDG_DATA_HOME=DIR, with a directory on a local disk";
        let degraded = |detail, lost| Check::degraded("file system", detail, lost, ELSEWHERE);
        match self {
            Self::Tmpfs => degraded("tmpfs", "the cache takes memory and is gone after a restart"),
            Self::Nfs => degraded("NFS", "owners and overlays may be refused there, and it is slow"),
            Self::Ecryptfs => degraded("ecryptfs", "long file names are refused, overlays too"),
            Self::Fuse => degraded("FUSE", "it is slow, and overlays may be refused there"),
            Self::Overlay => degraded("overlay (a container's own)", "overlays on it may be refused: use a volume"),
            Self::Named(name) => Check::ok("file system", name),
            Self::Other => Check::ok("file system", "one without known trouble"),
        }
    }
}

fn overlay(machine: &Machine, kind: Kind) -> Vec<Check> {
    const VOLUME: &str =
        "keep the state on ext4, xfs, btrfs or tmpfs: export XDG_DATA_HOME=DIR (in a container: a volume, -v bud:DIR)";
    const COPIES: &str = "each RUN works in a copy of its image's files, which takes the time and the space of one";
    let trial = &machine.trial;
    let mut checks = Vec::new();
    match &trial.overlay {
        Outcome::Works => checks.push(Check::ok("overlayfs", "mounted, written to, files and directories replaced")),
        Outcome::Fails(why) => {
            let fix = if kind == Kind::Other { "sudo modprobe overlay, or Linux 5.13 or newer" } else { VOLUME };
            checks.push(Check::degraded("overlayfs", why.clone(), COPIES, fix));
        }
        Outcome::Untried => {}
    }
    if let Outcome::Fails(why) = &trial.xattrs {
        checks.push(Check::broken("file attributes", format!("user.* can't be set: {why}"), VOLUME));
    }
    match &trial.exec {
        Outcome::Works => checks.push(Check::ok("programs", "can be run there")),
        Outcome::Fails(why) => checks.push(Check::broken(
            "programs",
            format!("none can be run there ({why}): the file system is mounted noexec"),
            "keep the state elsewhere: export XDG_DATA_HOME=DIR, or sudo mount -o remount,exec its file system",
        )),
        Outcome::Untried => {}
    }
    checks
}

/// Room on the disk, by its numbers and by setting some aside: a quota is in no number.
fn space(dir: &Path) -> Vec<Check> {
    let mut checks = Vec::new();
    const FIX: &str = "make room: bud prune, or export XDG_DATA_HOME=DIR on another disk";
    match rustix::fs::statvfs(dir) {
        Ok(fs) => {
            let free = fs.f_bavail.saturating_mul(fs.f_frsize);
            let shown = format!("{} free", crate::progress::bytes_text(i64::try_from(free).unwrap_or(i64::MAX)));
            checks.push(match free {
                _ if free < NEEDED => Check::broken("disk space", shown, FIX),
                _ if free < WANTED => Check::degraded("disk space", shown, "larger images don't fit", FIX),
                _ => Check::ok("disk space", shown),
            });
            // Some file systems (btrfs) have no number of files and say 0.
            if fs.f_files > 0 {
                let shown = format!("{} more files fit", fs.f_favail);
                checks.push(match fs.f_favail {
                    few if few < 1000 => Check::broken("inodes", shown, FIX),
                    few if few < INODES => Check::degraded("inodes", shown, "larger images don't fit", FIX),
                    _ => Check::ok("inodes", shown),
                });
            }
        }
        Err(error) => checks.push(Check::broken("disk space", format!("can't be asked for: {error}"), FIX)),
    }
    if let Err(error) = set_aside(dir) {
        checks.push(Check::broken("quota", format!("16 MiB can't be set aside: {error}"), FIX));
    }
    checks
}

fn set_aside(dir: &Path) -> rustix::io::Result<()> {
    use rustix::fs::{FallocateFlags, Mode, OFlags};
    let path = dir.join("room");
    let file = rustix::fs::open(&path, OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
    let outcome = rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, TRIED);
    rustix::fs::unlink(&path)?;
    match outcome {
        Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => Ok(()),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::{machine, named};
    use super::*;

    #[test]
    fn what_was_refused_names_a_way() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        machine.trial.overlay = Outcome::Fails("invalid argument".into());
        machine.trial.exec = Outcome::Fails("permission denied".into());
        machine.trial.xattrs = Outcome::Fails("not supported".into());
        let found = checks(&machine);
        for (name, status) in
            [("overlayfs", Status::Degraded), ("programs", Status::Broken), ("file attributes", Status::Broken)]
        {
            assert_eq!(named(&found, name).status, status, "{name}");
            assert!(named(&found, name).fix.is_some());
        }
        assert!(named(&found, "overlayfs").lost.as_ref().is_some_and(|lost| lost.contains("copy")));
        assert!(!root.path().join("room").exists(), "what was set aside is given back");
    }

    #[test]
    fn a_directory_that_can_t_be_written_is_all_there_is_to_say() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        machine.tried = Err("nothing can be written in /x".into());
        let found = checks(&machine);
        assert_eq!((found.len(), found[0].status), (1, Status::Broken));
    }

    #[test]
    fn file_systems_are_told_apart() {
        for (magic, status) in [
            (0xef53, Status::Ok),
            (0x6969, Status::Degraded),
            (0xf15f, Status::Degraded),
            (0x0102_1994, Status::Degraded),
            (0x794c_7630, Status::Degraded),
            (1, Status::Ok),
        ] {
            assert_eq!(kind(magic).check().status, status, "{magic:x}");
        }
    }
}
