//! Copying the bytes of one file: shared blocks where the file system can, else inside the kernel, else by hand; holes stay
//! holes.

use crate::Observer;
use crate::fileop::FileOpError;
use crate::scan::Meta;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use std::sync::atomic::{AtomicBool, Ordering};

/// Files up to this size are read and written in one go.
const SMALL: u64 = 128 << 10;
/// Copied between two looks at whether to go on.
const CHUNK: u64 = 16 << 20;

/// Copies the content of a file into an empty one. Returns how many bytes there were.
pub(crate) fn copy_content(
    from: &OwnedFd,
    to: &OwnedFd,
    meta: &Meta,
    observer: &dyn Observer,
    path: &[u8],
) -> Result<u64, FileOpError> {
    let fail = |what, e: Errno| FileOpError::io(what, path, e);
    if meta.size <= SMALL {
        return copy_small(from, to, meta.size).map_err(|e| fail("copy", e));
    }
    if share_blocks(from, to) {
        return Ok(meta.size);
    }
    let sparse = meta.blocks.saturating_mul(512) < meta.size;
    let mut offset = 0;
    let mut in_kernel = true;
    while offset < meta.size {
        let (start, end) = if sparse {
            match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(offset)) {
                Ok(start) => {
                    let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start)).unwrap_or(meta.size);
                    (start, end.min(meta.size))
                }
                // Nothing but a hole to the end.
                Err(Errno::NXIO) => break,
                Err(_) => (offset, meta.size),
            }
        } else {
            (offset, meta.size)
        };
        offset = start;
        while offset < end {
            if observer.is_cancelled() {
                return Err(FileOpError::Cancelled);
            }
            let want = (end - offset).min(CHUNK);
            let n = copy_range(from, to, offset, want, &mut in_kernel).map_err(|e| fail("copy", e))?;
            if n == 0 {
                // Shorter than it was said to be.
                return Ok(offset);
            }
            offset += n;
        }
    }
    if sparse {
        rustix::fs::ftruncate(to, meta.size).map_err(|e| fail("copy", e))?;
    }
    Ok(meta.size)
}

fn copy_small(from: &OwnedFd, to: &OwnedFd, size: u64) -> Result<u64, Errno> {
    thread_local! {
        static BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; SMALL as usize]);
    }
    BUFFER.with_borrow_mut(|buffer| {
        let mut done = 0;
        while done < size {
            let n = rustix::io::read(from, buffer.as_mut_slice())?;
            if n == 0 {
                break;
            }
            write_all(to, &buffer[..n], done)?;
            done += n as u64;
        }
        Ok(done)
    })
}

fn write_all(to: &OwnedFd, mut bytes: &[u8], mut offset: u64) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let n = rustix::io::pwrite(to, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

/// Makes a file share another's blocks (`FICLONE`), where the file system can.
fn share_blocks(from: &OwnedFd, to: &OwnedFd) -> bool {
    // A file system that can't says so the first time; the state is on one file system.
    static REFUSED: AtomicBool = AtomicBool::new(false);
    if REFUSED.load(Ordering::Relaxed) {
        return false;
    }
    match rustix::fs::ioctl_ficlone(to, from) {
        Ok(()) => true,
        Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS) => {
            REFUSED.store(true, Ordering::Relaxed);
            false
        }
        Err(_) => false,
    }
}

fn copy_range(from: &OwnedFd, to: &OwnedFd, offset: u64, want: u64, in_kernel: &mut bool) -> Result<u64, Errno> {
    let want = usize::try_from(want).unwrap_or(usize::MAX);
    if *in_kernel {
        let (mut read_at, mut write_at) = (offset, offset);
        match rustix::fs::copy_file_range(from, Some(&mut read_at), to, Some(&mut write_at), want) {
            Ok(n) => return Ok(n as u64),
            Err(Errno::NOSPC) => return Err(Errno::NOSPC),
            // Two kinds of file system, or one that can't.
            Err(_) => *in_kernel = false,
        }
    }
    let mut buffer = vec![0_u8; want.min(1 << 20)];
    let n = rustix::io::pread(from, buffer.as_mut_slice(), offset)?;
    write_all(to, &buffer[..n], offset)?;
    Ok(n as u64)
}
