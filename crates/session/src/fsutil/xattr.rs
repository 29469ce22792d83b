//! Extended attributes that travel with a file.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use rustix::io::Errno;

/// Largest list of names and largest value that Linux knows, in bytes (`xattr(7)`).
const MAX: usize = 64 << 10;

/// Attributes of an entry, by name.
pub(super) type Xattrs = BTreeMap<String, Vec<u8>>;

/// A path that names `name` in `dir` to calls that take no directory. The last element is never followed by them.
fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> Vec<u8> {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    path
}

/// Reads the attributes that a sender tells of: all that can be read, but those that belong to this machine.
pub(super) fn read(dir: BorrowedFd<'_>, name: &[u8]) -> Xattrs {
    let path = proc_path(dir, name);
    let mut xattrs = Xattrs::new();
    let mut names = vec![0u8; 512];
    let length = loop {
        match llistxattr(path.as_slice(), &mut names) {
            Ok(length) => break length,
            Err(Errno::RANGE) if names.len() < MAX => names.resize(MAX, 0),
            Err(_) => return xattrs,
        }
    };
    for name in names[..length].split(|&byte| byte == 0) {
        let Ok(name) = std::str::from_utf8(name) else { continue };
        if name.is_empty() || name.starts_with("com.apple.") || name == "security.selinux" || is_overlay(name) {
            continue;
        }
        let mut value = vec![0u8; 256];
        let length = loop {
            match lgetxattr(path.as_slice(), name, &mut value) {
                Ok(length) => break Some(length),
                Err(Errno::RANGE) if value.len() < MAX => value.resize(MAX, 0),
                Err(_) => break None,
            }
        };
        if let Some(length) = length {
            value.truncate(length);
            xattrs.insert(name.to_owned(), value);
        }
    }
    xattrs
}

/// Overlay's own attributes: they would change what the layers below mean.
fn is_overlay(name: &str) -> bool {
    name.starts_with("user.overlay.") || name.starts_with("trusted.overlay.")
}

/// Tells whether a receiver takes this attribute over.
fn is_taken(name: &str) -> bool {
    (name.starts_with("user.") && !is_overlay(name)) || name == "security.capability"
}

/// Leaves those that a receiver takes over.
pub(super) fn taken(xattrs: &Xattrs) -> Xattrs {
    let taken = xattrs.iter().filter(|(name, value)| is_taken(name) && value.len() <= MAX);
    taken.map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Sets attributes; what the file system or the rights here don't allow is left out.
pub(super) fn write(dir: BorrowedFd<'_>, name: &[u8], xattrs: &Xattrs) -> Result<(), Errno> {
    let path = proc_path(dir, name);
    for (name, value) in xattrs {
        match lsetxattr(path.as_slice(), name.as_str(), value, XattrFlags::empty()) {
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM | Errno::ACCESS | Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
