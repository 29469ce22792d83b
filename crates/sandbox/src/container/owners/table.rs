//! Which owners files have, as far as the step and the layers below it have said.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Statx, StatxFlags};
use rustix::io::Errno;

use crate::spec::{OWNER_BELOW, OWNER_RECORD};

/// An ID that is left as it is.
pub(super) const UNCHANGED: u32 = u32::MAX;

/// The most bytes of noted changes: nine million.
const MAX_NOTED: u64 = 256 << 20;
/// The most files whose owners are kept in memory.
const MAX_FILES: usize = 2_000_000;
/// A file that is renamed again and again while its owner changes is looked for so often.
const TRIES: usize = 16;

/// User and group.
pub(super) type Owner = (u32, u32);

/// When an inode was made: seconds and nanoseconds.
type Birth = (i64, u32);

/// The owners that are known.
pub(super) struct Table {
    /// The step's layer.
    upper: OwnedFd,
    file: File,
    written: u64,
    /// By the inode's number as the step sees it.
    noted: HashMap<u64, Noted>,
    /// Of files of the layers below, by their inode's number as the step sees it: files that are copied up keep it.
    below: HashMap<u64, Owner>,
}

struct Noted {
    /// When the inode was made: another file that gets its number later has another time.
    birth: Birth,
    owner: Owner,
    /// What was said of it, with [`UNCHANGED`].
    said: Owner,
}

/// What has to be known of a file to tell its owner.
pub(super) const WANTED: StatxFlags = StatxFlags::BASIC_STATS.union(StatxFlags::BTIME).union(StatxFlags::MNT_ID);

fn birth(stat: &Statx) -> Birth {
    (stat.stx_btime.tv_sec, stat.stx_btime.tv_nsec)
}

impl Table {
    /// Makes a table that writes to `file`, with the owners of files below ([`crate::Owners::below`]).
    pub(super) fn new(upper: OwnedFd, file: File, below: Option<File>) -> std::io::Result<Table> {
        let mut table = Table { upper, file, written: 0, noted: HashMap::new(), below: HashMap::new() };
        if let Some(file) = below {
            let mut bytes = Vec::new();
            file.take((MAX_FILES * OWNER_BELOW) as u64).read_to_end(&mut bytes)?;
            let word = |bytes: &[u8]| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            for record in bytes.chunks_exact(OWNER_BELOW) {
                let inode = u64::from(word(record)) | u64::from(word(&record[4..])) << 32;
                table.below.insert(inode, (word(&record[8..]), word(&record[12..])));
            }
        }
        Ok(table)
    }

    /// No file has another owner than the kernel says.
    pub(super) fn is_empty(&self) -> bool {
        self.noted.is_empty() && self.below.is_empty()
    }

    /// Files below have other owners than the kernel says.
    pub(super) fn has_below(&self) -> bool {
        !self.below.is_empty()
    }

    /// Returns the owner of a file of the root.
    pub(super) fn owner(&self, stat: &Statx) -> Owner {
        match self.noted.get(&stat.stx_ino) {
            Some(noted) if noted.birth == birth(stat) => noted.owner,
            _ => self.below.get(&stat.stx_ino).copied().unwrap_or((stat.stx_uid, stat.stx_gid)),
        }
    }

    /// Notes an owner for a file that is in the step's layer now.
    pub(super) fn note(&mut self, proc: BorrowedFd<'_>, file: &OwnedFd, wanted: Owner) -> Result<(), Errno> {
        let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, WANTED)?;
        // A file without a name is in no layer.
        if stat.stx_nlink == 0 {
            return Ok(());
        }
        let pick = |new: Owner, old: Owner| {
            (if new.0 == UNCHANGED { old.0 } else { new.0 }, if new.1 == UNCHANGED { old.1 } else { new.1 })
        };
        let before = self.noted.get(&stat.stx_ino).filter(|noted| noted.birth == birth(&stat));
        let before = before.map_or((UNCHANGED, UNCHANGED), |noted| noted.said);
        let said = pick(wanted, before);
        if said == before {
            return Ok(());
        }
        if self.noted.len() >= MAX_FILES || self.written >= MAX_NOTED {
            return Err(Errno::NOSPC);
        }
        let owner = pick(wanted, self.owner(&stat));
        let Some((number, born)) = self.kept(proc, file)? else { return Ok(()) };
        let mut record = Vec::with_capacity(OWNER_RECORD);
        record.extend(number.to_le_bytes());
        record.extend(born.0.to_le_bytes());
        record.extend(born.1.to_le_bytes());
        record.extend(said.0.to_le_bytes());
        record.extend(said.1.to_le_bytes());
        self.file.write_all(&record).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.written += record.len() as u64;
        self.noted.insert(stat.stx_ino, Noted { birth: birth(&stat), owner, said });
        Ok(())
    }

    /// Finds a file of the root in the layer's directory: its inode there. `None`: it was removed meanwhile.
    fn kept(&self, proc: BorrowedFd<'_>, file: &OwnedFd) -> Result<Option<(u64, Birth)>, Errno> {
        for _ in 0..TRIES {
            let place = format!("self/fd/{}", file.as_raw_fd());
            let path = rustix::fs::readlinkat(proc, place, Vec::new())?.into_bytes();
            let path = match path.strip_prefix(b"/") {
                Some(b"") => b".",
                Some(path) => path,
                None => return Ok(None),
            };
            let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            match rustix::fs::openat2(&self.upper, path, flags, Mode::empty(), resolve) {
                Ok(kept) => {
                    let stat = rustix::fs::statx(&kept, "", AtFlags::EMPTY_PATH, StatxFlags::INO | StatxFlags::BTIME)?;
                    return Ok(Some((stat.stx_ino, birth(&stat))));
                }
                // Removed, or renamed by another process of the step: then it is found where it is now.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::AGAIN) => {}
                Err(error) => return Err(error),
            }
            let stat = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::NLINK)?;
            if stat.stx_nlink == 0 {
                break;
            }
        }
        Ok(None)
    }
}
