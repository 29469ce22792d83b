//! Users and groups of a tree.

use crate::Tree;
use crate::fileop::{FileOpError, Owner};

/// More of a file than this is not read.
const LIMIT: u64 = 10 << 20;

/// Looks up a user in a tree's `/etc/passwd`: its number and its group.
///
/// # Errors
/// It isn't there, or the file can't be read within limits.
pub fn lookup_user(tree: &Tree, name: &str) -> Result<Owner, FileOpError> {
    let text = read(tree, "etc/passwd")?;
    find(&text, name, |fields| Some(Owner { uid: fields.next()?.parse().ok()?, gid: fields.next()?.parse().ok()? }))
        .ok_or_else(|| FileOpError::Invalid(format!("no user {name:?} in /etc/passwd of the image")))
}

/// Looks up a group in a tree's `/etc/group`.
///
/// # Errors
/// It isn't there, or the file can't be read within limits.
pub fn lookup_group(tree: &Tree, name: &str) -> Result<u32, FileOpError> {
    let text = read(tree, "etc/group")?;
    find(&text, name, |fields| fields.next()?.parse().ok())
        .ok_or_else(|| FileOpError::Invalid(format!("no group {name:?} in /etc/group of the image")))
}

/// Finds the line of a name; the fields after the password are the caller's.
fn find<T>(text: &str, name: &str, read: impl Fn(&mut std::str::Split<'_, char>) -> Option<T>) -> Option<T> {
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let mut fields = line.trim().split(':');
        (fields.next() == Some(name)).then_some(())?;
        fields.next()?;
        read(&mut fields)
    })
}

fn read(tree: &Tree, path: &str) -> Result<String, FileOpError> {
    let bytes = match tree.read_file(path.as_bytes(), LIMIT) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(|e| FileOpError::std("read", format!("/{path}").as_bytes(), e))?,
    };
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
