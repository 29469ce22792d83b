//! mkdir, mkfile, symlink, rm.

use crate::fileop::{FileOpError, Mkdir, Mkfile, Owner, Rm, Symlink};
use crate::scan::Kind;
use crate::snapshot::LayerDraft;
use crate::union::{NewDirs, Spot, Union, UnionDir, current, timespec_of_ns, timestamps};
use bud_patterns::clean::clean_in_root;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::io::Write;
use std::sync::Arc;

/// Makes a directory. One that is there is fine, and left as it is.
///
/// # Errors
/// See [`FileOpError`].
pub fn mkdir(draft: &LayerDraft, mkdir: &Mkdir) -> Result<(), FileOpError> {
    let union = Union::of(draft)?;
    check_mode(mkdir.mode)?;
    let new = NewDirs { mode: mkdir.mode & 0o777, owner: mkdir.owner, time: mkdir.timestamp };
    let path = clean_in_root(&mkdir.path);
    let parents = mkdir.make_parents.then_some(&new);
    let mut spot = union.resolve(path.as_bytes(), true, parents)?;
    match &spot.found {
        Some(node) if node.is_dir() => Ok(()),
        Some(_) => Err(FileOpError::io("create the directory", &spot.path(), Errno::NOTDIR)),
        None => {
            let name = std::mem::take(&mut spot.name);
            union.make_dir(&mut spot.dirs, &name, &new)
        }
    }
}

/// Makes or overwrites a file.
///
/// # Errors
/// See [`FileOpError`].
pub fn mkfile(draft: &LayerDraft, mkfile: &Mkfile) -> Result<(), FileOpError> {
    let union = Union::of(draft)?;
    check_mode(mkfile.mode)?;
    let path = clean_in_root(&mkfile.path);
    let mut spot = union.resolve(path.as_bytes(), true, None)?;
    if spot.found.as_ref().is_some_and(crate::scan::Node::is_dir) {
        return Err(FileOpError::io("write", &spot.path(), Errno::ISDIR));
    }
    union.copy_up(&mut spot.dirs)?;
    let dir = spot.dir()?;
    let shown = spot.path();
    union.clear_upper(dir, &spot.name)?;
    let mut file = std::fs::File::from(create_file(dir, &spot.name).map_err(|e| FileOpError::io("create", &shown, e))?);
    file.write_all(&mkfile.data).map_err(|e| FileOpError::std("write", &shown, e))?;
    let time = mkfile.timestamp.map(timespec_of_ns);
    // A file that is overwritten keeps its mode, as with any program that writes it.
    let mode = match &spot.found {
        Some(node) if matches!(node.kind, Kind::File) => node.meta.mode,
        _ => mkfile.mode & 0o777,
    };
    union.set_looks(&OwnedFd::from(file), &shown, mkfile.owner, Some(mode), time)
}

/// Creates an empty file in the draft's part of a directory, where there is nothing.
pub(crate) fn create_file(dir: &UnionDir, name: &[u8]) -> Result<OwnedFd, Errno> {
    create_file_as(dir, name, 0o600)
}

/// Creates an empty file with permissions, as far as the umask lets it have them.
pub(crate) fn create_file_as(dir: &UnionDir, name: &[u8], mode: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir.upper_fd()?.as_fd(), name, flags, Mode::from_raw_mode(mode & 0o777))
}

/// Makes a symbolic link.
///
/// # Errors
/// See [`FileOpError`].
pub fn symlink(draft: &LayerDraft, symlink: &Symlink) -> Result<(), FileOpError> {
    let union = Union::of(draft)?;
    let path = clean_in_root(&symlink.new_path);
    let mut spot = union.resolve(path.as_bytes(), true, None)?;
    if spot.found.is_some() {
        return Err(FileOpError::io("create the link", &spot.path(), Errno::EXIST));
    }
    union.copy_up(&mut spot.dirs)?;
    let dir = spot.dir()?;
    union.clear_upper(dir, &spot.name)?;
    let time = symlink.timestamp.map(timespec_of_ns);
    make_link(&union, dir, &spot.name, symlink.old_path.as_bytes(), symlink.owner, time)
}

/// Makes a symbolic link in the draft's part of a directory, where there is nothing.
pub(crate) fn make_link(
    union: &Union<'_>,
    dir: &UnionDir,
    name: &[u8],
    target: &[u8],
    owner: Option<Owner>,
    time: Option<(i64, u32)>,
) -> Result<(), FileOpError> {
    let path = dir.join(name);
    let upper = dir.upper_fd().map_err(|e| FileOpError::io("open", &dir.path, e))?;
    rustix::fs::symlinkat(target, upper.as_fd(), name).map_err(|e| FileOpError::io("create the link", &path, e))?;
    set_looks_of_name(union, dir, name, owner, time)
}

/// Sets owner and time of something that can't be opened.
pub(crate) fn set_looks_of_name(
    union: &Union<'_>,
    dir: &UnionDir,
    name: &[u8],
    owner: Option<Owner>,
    time: Option<(i64, u32)>,
) -> Result<(), FileOpError> {
    let path = dir.join(name);
    let upper = dir.upper_fd().map_err(|e| FileOpError::io("open", &dir.path, e))?;
    let owner = owner.unwrap_or(Owner { uid: 0, gid: 0 });
    let (uid, gid) = (rustix::fs::Uid::from_raw_unchecked(owner.uid), rustix::fs::Gid::from_raw_unchecked(owner.gid));
    match rustix::fs::chownat(upper.as_fd(), name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW) {
        Ok(()) => union.forget_owner(&path),
        Err(Errno::INVAL | Errno::PERM) => union.note_owner(&path, owner),
        Err(e) => return Err(FileOpError::io("set the owner of", &path, e)),
    }
    if let Some(time) = time {
        rustix::fs::utimensat(upper.as_fd(), name, &timestamps(time), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|e| FileOpError::io("set the time of", &path, e))?;
    }
    Ok(())
}

/// Removes a file or a whole directory.
///
/// # Errors
/// See [`FileOpError`].
pub fn rm(draft: &LayerDraft, rm: &Rm) -> Result<(), FileOpError> {
    let union = Union::of(draft)?;
    let path = clean_in_root(&rm.path);
    let paths = if rm.allow_wildcard { expand(&union, &path)? } else { vec![path.into_bytes()] };
    for path in paths {
        if path.is_empty() {
            return Err(FileOpError::Invalid("the root directory can't be removed".into()));
        }
        let spot = match union.resolve(&path, false, None) {
            Err(FileOpError::Io { source, .. })
                if rm.allow_not_found
                    && matches!(source.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
            {
                continue;
            }
            Err(FileOpError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {
                return Err(FileOpError::NotFound { path: super::shown(&path) });
            }
            other => other?,
        };
        let Spot { mut dirs, name, found } = spot;
        if name.is_empty() {
            return Err(FileOpError::Invalid("the root directory can't be removed".into()));
        }
        match found {
            Some(_) => union.remove(&mut dirs, &name)?,
            None if rm.allow_not_found => {}
            None => return Err(FileOpError::NotFound { path: super::shown(&path) }),
        }
    }
    Ok(())
}

/// Returns what a path with patterns stands for in the union; links are followed before the last component alone.
fn expand(union: &Union<'_>, path: &str) -> Result<Vec<Vec<u8>>, FileOpError> {
    let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
    let Some(first) = parts.iter().position(|p| bud_patterns::has_wildcards(p)) else {
        return Ok(vec![path.as_bytes().to_vec()]);
    };
    let globs = parts[first..].iter().map(|p| bud_patterns::glob::Glob::new(p)).collect::<Result<Vec<_>, _>>()?;
    let start = match union.resolve(parts[..first].join("/").as_bytes(), false, None) {
        Ok(spot) if spot.found.as_ref().is_some_and(crate::scan::Node::is_dir) => spot.enter()?,
        _ => return Ok(Vec::new()),
    };
    let mut matches = Vec::new();
    // A directory is opened when its turn comes: the names wait beside the directory they are in.
    let mut waiting = vec![(Arc::new(current(&start)?.clone()), None::<Box<[u8]>>, 0_usize)];
    while let Some((dir, name, depth)) = waiting.pop() {
        let dir = match name {
            None => dir,
            Some(name) => Arc::new(dir.enter(&name).map_err(|e| FileOpError::io("open", &dir.join(&name), e))?),
        };
        let names = dir.names().map_err(|e| FileOpError::io("read", &dir.path, e))?;
        let last = depth + 1 == globs.len();
        let matching = names.into_iter().filter(|n| globs[depth].matches(n));
        if last {
            matches.extend(matching.map(|name| dir.join(&name)));
            continue;
        }
        let is_dir = |name: &[u8]| dir.child(name).is_ok_and(|c| c.is_some_and(|(node, _)| node.is_dir()));
        let below: Vec<_> = matching.filter(|name| is_dir(name)).collect();
        waiting.extend(below.into_iter().rev().map(|name| (Arc::clone(&dir), Some(name), depth + 1)));
    }
    Ok(matches)
}

fn check_mode(mode: u32) -> Result<(), FileOpError> {
    if mode > 0o7777 {
        return Err(FileOpError::Invalid(format!("invalid mode {mode:o}: more than 07777")));
    }
    Ok(())
}
