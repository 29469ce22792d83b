//! File modes as Go's `os.FileMode` on the wire.

const DIR: u32 = 1 << 31;
const SYMLINK: u32 = 1 << 27;
const DEVICE: u32 = 1 << 26;
const NAMED_PIPE: u32 = 1 << 25;
const SETUID: u32 = 1 << 23;
const SETGID: u32 = 1 << 22;
const CHAR_DEVICE: u32 = 1 << 21;
const STICKY: u32 = 1 << 20;
const PERMISSIONS: u32 = 0o777;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A plain file.
    Regular,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A named pipe.
    Fifo,
    /// A block device.
    BlockDevice,
    /// A character device.
    CharDevice,
}

/// Splits a Go mode into kind and Unix permission bits (07777); `None` if it is none that a tree may hold.
pub fn from_go_mode(mode: u32) -> Option<(FileKind, u32)> {
    let kind = match mode & !(PERMISSIONS | SETUID | SETGID | STICKY) {
        0 => FileKind::Regular,
        DIR => FileKind::Directory,
        SYMLINK => FileKind::Symlink,
        NAMED_PIPE => FileKind::Fifo,
        DEVICE => FileKind::BlockDevice,
        bits if bits == DEVICE | CHAR_DEVICE => FileKind::CharDevice,
        _ => return None,
    };
    let special = [(SETUID, 0o4000), (SETGID, 0o2000), (STICKY, 0o1000)];
    let special = special.iter().filter(|(go, _)| mode & go != 0).map(|(_, unix)| unix);
    Some((kind, mode & PERMISSIONS | special.sum::<u32>()))
}

/// Makes a Go mode.
pub fn to_go_mode(kind: FileKind, permissions: u32) -> u32 {
    let kind = match kind {
        FileKind::Regular => 0,
        FileKind::Directory => DIR,
        FileKind::Symlink => SYMLINK,
        FileKind::Fifo => NAMED_PIPE,
        FileKind::BlockDevice => DEVICE,
        FileKind::CharDevice => DEVICE | CHAR_DEVICE,
    };
    let special = [(SETUID, 0o4000), (SETGID, 0o2000), (STICKY, 0o1000)];
    let special = special.iter().filter(|(_, unix)| permissions & unix != 0).map(|(go, _)| go);
    kind | permissions & PERMISSIONS | special.sum::<u32>()
}

/// The kind in a `st_mode`; `None` for sockets and what isn't known.
pub(crate) fn kind_of(st_mode: u32) -> Option<FileKind> {
    use rustix::fs::FileType;
    Some(match FileType::from_raw_mode(st_mode) {
        FileType::RegularFile => FileKind::Regular,
        FileType::Directory => FileKind::Directory,
        FileType::Symlink => FileKind::Symlink,
        FileType::Fifo => FileKind::Fifo,
        FileType::BlockDevice => FileKind::BlockDevice,
        FileType::CharacterDevice => FileKind::CharDevice,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes_go_both_ways() {
        for (go, kind, unix) in [
            (0o644, FileKind::Regular, 0o644),
            (DIR | 0o755, FileKind::Directory, 0o755),
            (DIR | STICKY | 0o777, FileKind::Directory, 0o1777),
            (SETUID | SETGID | 0o755, FileKind::Regular, 0o6755),
            (SYMLINK | 0o777, FileKind::Symlink, 0o777),
            (NAMED_PIPE | 0o600, FileKind::Fifo, 0o600),
            (DEVICE | 0o660, FileKind::BlockDevice, 0o660),
            (DEVICE | CHAR_DEVICE | 0o666, FileKind::CharDevice, 0o666),
        ] {
            assert_eq!(from_go_mode(go), Some((kind, unix)), "{go:o}");
            assert_eq!(to_go_mode(kind, unix), go);
        }
    }

    #[test]
    fn mixtures_and_unknown_kinds_are_refused() {
        for go in [DIR | SYMLINK, CHAR_DEVICE, 1 << 24, 1 << 19, 1 << 30, 0o1000, DIR | DEVICE] {
            assert_eq!(from_go_mode(go), None, "{go:o}");
        }
    }
}
