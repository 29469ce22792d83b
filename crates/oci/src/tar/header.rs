//! What an entry of a tar is.

/// What an entry makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A regular file; its bytes follow.
    File,
    /// One more name for the file that [`Header::link`] names, by a path from the archive's root.
    HardLink,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A directory.
    Directory,
    /// A named pipe.
    Fifo,
}

impl Kind {
    /// Returns the byte that stands for it in a header.
    pub(crate) const fn flag(self) -> u8 {
        match self {
            Self::File => b'0',
            Self::HardLink => b'1',
            Self::Symlink => b'2',
            Self::CharDevice => b'3',
            Self::BlockDevice => b'4',
            Self::Directory => b'5',
            Self::Fifo => b'6',
        }
    }
}

/// A time: seconds since 1970, and nanoseconds forward from there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds, negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// One entry of a tar, without its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// The path as the archive has it: any bytes but NUL, not cleaned, directories often with a slash at the end.
    pub path: Vec<u8>,
    /// What the entry makes.
    pub kind: Kind,
    /// Permission, set-id and sticky bits: 0 to 0o7777.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Bytes that follow; 0 for all but files.
    pub size: u64,
    /// Time of the last change.
    pub mtime: Time,
    /// Where a link points, as the archive has it.
    pub link: Vec<u8>,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Name of the owner; mostly empty in layers.
    pub user: Vec<u8>,
    /// Name of the group.
    pub group: Vec<u8>,
    /// Extended attributes, by name. Each name is there once.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Header {
    /// Returns an entry with mode 0644 (directories: 0755), no owner and time 0.
    #[must_use]
    pub fn new(path: impl Into<Vec<u8>>, kind: Kind) -> Self {
        Self {
            path: path.into(),
            kind,
            mode: if kind == Kind::Directory { 0o755 } else { 0o644 },
            uid: 0,
            gid: 0,
            size: 0,
            mtime: Time::default(),
            link: Vec::new(),
            device: (0, 0),
            user: Vec::new(),
            group: Vec::new(),
            xattrs: Vec::new(),
        }
    }

    /// Returns the path fit for messages: escaped and cut.
    #[must_use]
    pub fn display_name(&self) -> String {
        printable(&self.path)
    }
}

/// Makes bytes fit for messages.
pub(crate) fn printable(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    let text: String = bytes[..bytes.len().min(SHOWN)].escape_ascii().to_string();
    if bytes.len() > SHOWN { format!("{text}… ({} bytes)", bytes.len()) } else { text }
}
