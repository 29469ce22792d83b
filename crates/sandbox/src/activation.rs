//! Sockets that a service manager hands over when it starts a program (`sd_listen_fds(3)`).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::sys;

/// The number of the first descriptor that is handed over.
const FIRST: i32 = 3;
/// More sockets than this are a mistake.
const MOST: i32 = 16;

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes the descriptors that were handed over to this process; none if there are none, and at every call but the first.
///
/// They are closed in programs that this one starts. To be called before anything else opens files: what has these numbers is
/// taken to be what was handed over.
///
/// # Errors
/// The number of them makes no sense, or one is not open.
pub fn take() -> io::Result<Vec<OwnedFd>> {
    let variable = |name: &str| std::env::var(name).ok();
    let Some(count) = count(variable("LISTEN_PID").as_deref(), variable("LISTEN_FDS").as_deref(), std::process::id())?
    else {
        return Ok(Vec::new());
    };
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    (FIRST..FIRST + count)
        .map(|number| {
            let descriptor = sys::inherited(number)?;
            rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)?;
            Ok(descriptor)
        })
        .collect()
}

/// Reads the variables: how many descriptors are for the process; `None` if none are.
fn count(pid: Option<&str>, number: Option<&str>, own: u32) -> io::Result<Option<i32>> {
    let (Some(pid), Some(number)) = (pid, number) else { return Ok(None) };
    // They are inherited by all descendants of the process they are for.
    if pid.parse() != Ok(own) {
        return Ok(None);
    }
    match number.parse() {
        Ok(number @ 1..=MOST) => Ok(Some(number)),
        _ => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("LISTEN_FDS is {number:?}, not a number from 1 to {MOST}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_for_this_process_is_taken() {
        assert_eq!(count(Some("7"), Some("2"), 7).unwrap(), Some(2));
        assert_eq!(count(Some("7"), Some("2"), 8).unwrap(), None);
        assert_eq!(count(None, Some("2"), 8).unwrap(), None);
        assert_eq!(count(Some("7"), None, 7).unwrap(), None);
        for wrong in ["0", "-1", "17", "x", ""] {
            assert!(count(Some("7"), Some(wrong), 7).is_err(), "{wrong}");
        }
    }
}
