//! Reading files of a result: for front ends, and for clients that look into one.

use crate::value::{Opened, Value, blocking, store_error};
use bud_protocol::errors::BuildError;
use bud_protocol::fsutil;
use bud_store::Store;
use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// At most so many bytes are read at once.
pub const MAX_READ: u64 = 16 << 20;
/// At most so many entries are listed.
const MAX_ENTRIES: usize = 100_000;

/// Opens a path of a value.
fn open(value: &Value, store: &Arc<Store>, path: &str, flags: OFlags) -> Result<OwnedFd, BuildError> {
    let opened = value.open(store).map_err(store_error)?;
    let opened = match &opened {
        Opened::Tree(tree) => tree.open(path.as_bytes(), flags),
        Opened::Context(context) => context.open_path(path.as_bytes(), flags),
    };
    opened.map_err(|e| path_error(path, e.into()))
}

fn path_error(path: &str, error: std::io::Error) -> BuildError {
    match error.kind() {
        std::io::ErrorKind::NotFound => BuildError::not_found(format!("{path}: no such file or directory")),
        _ => BuildError::other(format!("{path}: {error}")),
    }
}

/// Reads a part of a file; a length of 0 reads to the end.
///
/// # Errors
/// It isn't there, isn't a file, or is too large.
pub async fn read(
    store: &Arc<Store>,
    value: Value,
    path: String,
    offset: u64,
    length: u64,
) -> Result<Vec<u8>, BuildError> {
    let store = Arc::clone(store);
    blocking(move || {
        if let Value::Context(context) = &value {
            return part_of(context.read_file(path.as_bytes(), MAX_READ), &path, offset, length);
        }
        let fd = open(&value, &store, &path, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| path_error(&path, e.into()))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(BuildError::invalid(format!("{path}: not a regular file")));
        }
        let mut file = std::fs::File::from(fd);
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(offset)).map_err(|e| path_error(&path, e))?;
        let limit = if length == 0 { MAX_READ + 1 } else { length.min(MAX_READ) };
        let mut bytes = Vec::new();
        file.take(limit).read_to_end(&mut bytes).map_err(|e| path_error(&path, e))?;
        if bytes.len() as u64 > MAX_READ {
            return Err(BuildError::new(
                tonic::Code::ResourceExhausted,
                format!("{path}: larger than {MAX_READ} bytes; read it in parts"),
            ));
        }
        Ok(bytes)
    })
    .await
}

/// A directory in place is read by its listing: what is filtered out isn't there.
fn part_of(read: std::io::Result<Vec<u8>>, path: &str, offset: u64, length: u64) -> Result<Vec<u8>, BuildError> {
    let bytes = read.map_err(|e| path_error(path, e))?;
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let length = if length == 0 { usize::MAX } else { usize::try_from(length).unwrap_or(usize::MAX) };
    Ok(bytes[start..].iter().copied().take(length).collect())
}

/// Looks at a path; a link at its end is not followed.
///
/// # Errors
/// It isn't there.
pub async fn stat(store: &Arc<Store>, value: Value, path: String) -> Result<fsutil::Stat, BuildError> {
    let store = Arc::clone(store);
    blocking(move || {
        let fd = open(&value, &store, &path, OFlags::PATH | OFlags::NOFOLLOW)?;
        let stat = rustix::fs::fstat(&fd).map_err(|e| path_error(&path, e.into()))?;
        let name = path.rsplit('/').find(|p| !p.is_empty()).unwrap_or(".").to_owned();
        let link = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(|e| path_error(&path, e.into()))?;
            target.to_string_lossy().into_owned()
        } else {
            String::new()
        };
        Ok(to_stat(name, &stat, link))
    })
    .await
}

/// Lists a directory, sorted by name; with a pattern, only names that match it.
///
/// # Errors
/// It isn't there, or the pattern is bad.
pub async fn list(
    store: &Arc<Store>,
    value: Value,
    path: String,
    pattern: String,
) -> Result<Vec<fsutil::Stat>, BuildError> {
    let store = Arc::clone(store);
    blocking(move || {
        let fd = open(&value, &store, &path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let fail = |e: rustix::io::Errno| path_error(&path, e.into());
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd).map_err(fail)? {
            let entry = entry.map_err(fail)?;
            let Ok(name) = entry.file_name().to_str() else { continue };
            if name == "." || name == ".." {
                continue;
            }
            if !pattern.is_empty()
                && !bud_patterns::glob::matches(&pattern, name).map_err(|e| BuildError::invalid(e.to_string()))?
            {
                continue;
            }
            if entries.len() >= MAX_ENTRIES {
                return Err(BuildError::new(
                    tonic::Code::ResourceExhausted,
                    format!("{path}: more than {MAX_ENTRIES} entries"),
                ));
            }
            let stat = rustix::fs::statat(&fd, name, AtFlags::SYMLINK_NOFOLLOW).map_err(fail)?;
            let link = if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
                rustix::fs::readlinkat(&fd, name, Vec::new()).map_err(fail)?.to_string_lossy().into_owned()
            } else {
                String::new()
            };
            entries.push(to_stat(name.to_owned(), &stat, link));
        }
        entries.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(entries)
    })
    .await
}

/// Converts to Go's file modes.
fn to_stat(path: String, stat: &rustix::fs::Stat, linkname: String) -> fsutil::Stat {
    let mut mode = stat.st_mode & 0o777;
    let kind = FileType::from_raw_mode(stat.st_mode);
    mode |= match kind {
        FileType::Directory => 1 << 31,
        FileType::Symlink => 1 << 27,
        FileType::BlockDevice => 1 << 26,
        FileType::CharacterDevice => 1 << 26 | 1 << 21,
        FileType::Fifo => 1 << 25,
        FileType::Socket => 1 << 24,
        _ => 0,
    };
    for (bit, go) in [(0o4000, 23), (0o2000, 22), (0o1000, 20)] {
        if stat.st_mode & bit != 0 {
            mode |= 1 << go;
        }
    }
    fsutil::Stat {
        path,
        mode,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: if kind == FileType::Directory { 0 } else { stat.st_size },
        mod_time: stat
            .st_mtime
            .saturating_mul(1_000_000_000)
            .saturating_add(i64::try_from(stat.st_mtime_nsec).unwrap_or(0)),
        linkname,
        devmajor: i64::from(rustix::fs::major(stat.st_rdev)),
        devminor: i64::from(rustix::fs::minor(stat.st_rdev)),
        ..fsutil::Stat::default()
    }
}
