//! What the kernel tells of a file, as the ABIs lay it out.

use rustix::fs::Statx;

use super::table::Owner;
use crate::seccomp::Layout;

/// `struct stat` of 64-bit ABIs, `struct stat64` of 32-bit ones.
pub(super) fn old(stat: &Statx, owner: Owner, layout: Layout) -> Vec<u8> {
    let (mode, links) = (u32::from(stat.stx_mode), stat.stx_nlink);
    let device = number(stat.stx_dev_major, stat.stx_dev_minor);
    let node = number(stat.stx_rdev_major, stat.stx_rdev_minor);
    let times = [&stat.stx_atime, &stat.stx_mtime, &stat.stx_ctime];
    let mut out = Buffer(Vec::with_capacity(144));
    match layout {
        Layout::X86_64 => {
            out.long(device).long(stat.stx_ino).long(links.into());
            out.word(mode).word(owner.0).word(owner.1).word(0).long(node);
            out.long(stat.stx_size).long(stat.stx_blksize.into()).long(stat.stx_blocks);
            for time in times {
                out.long(time.tv_sec.cast_unsigned()).long(time.tv_nsec.into());
            }
            out.long(0).long(0).long(0);
        }
        Layout::Aarch64 => {
            out.long(device).long(stat.stx_ino).word(mode).word(links);
            out.word(owner.0).word(owner.1).long(node).long(0);
            out.long(stat.stx_size).word(stat.stx_blksize).word(0).long(stat.stx_blocks);
            for time in times {
                out.long(time.tv_sec.cast_unsigned()).long(time.tv_nsec.into());
            }
            out.word(0).word(0);
        }
        Layout::I386 | Layout::Arm => {
            // On arm, numbers of 64 bits begin at multiples of 8 bytes.
            let aligned = layout == Layout::Arm;
            out.long(device).word(0).word(stat.stx_ino as u32).word(mode).word(links);
            out.word(owner.0).word(owner.1).long(node).word(0);
            if aligned {
                out.word(0);
            }
            out.long(stat.stx_size).word(stat.stx_blksize);
            if aligned {
                out.word(0);
            }
            out.long(stat.stx_blocks);
            for time in times {
                out.word(time.tv_sec as u32).word(time.tv_nsec);
            }
            out.long(stat.stx_ino);
        }
    }
    out.0
}

/// Sets the owner in a `struct statx`.
pub(super) fn set_extended_owner(bytes: &mut [u8; 256], owner: Owner) {
    bytes[20..24].copy_from_slice(&owner.0.to_ne_bytes());
    bytes[24..28].copy_from_slice(&owner.1.to_ne_bytes());
}

/// A device's number in user space's encoding.
fn number(major: u32, minor: u32) -> u64 {
    u64::from(minor & 0xff | (major & 0xfff) << 8 | (minor & !0xff) << 12)
}

struct Buffer(Vec<u8>);

impl Buffer {
    fn word(&mut self, value: u32) -> &mut Buffer {
        self.0.extend(value.to_ne_bytes());
        self
    }

    fn long(&mut self, value: u64) -> &mut Buffer {
        self.0.extend(value.to_ne_bytes());
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::fs::{AtFlags, CWD};
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn structures_say_what_the_kernel_says() {
        for path in ["/proc/self/exe", "/dev/null", "/"] {
            let stat = rustix::fs::statx(CWD, path, AtFlags::empty(), super::super::table::WANTED).unwrap();
            let real = std::fs::metadata(path).unwrap();
            let long = |bytes: &[u8], at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().unwrap());
            let word = |bytes: &[u8], at: usize| u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap());
            let x86 = old(&stat, (7, 8), Layout::X86_64);
            assert_eq!(x86.len(), 144);
            assert_eq!((long(&x86, 0), long(&x86, 8), long(&x86, 16)), (real.dev(), real.ino(), real.nlink()));
            assert_eq!((word(&x86, 24), word(&x86, 28), word(&x86, 32)), (real.mode(), 7, 8));
            assert_eq!((long(&x86, 40), long(&x86, 48), long(&x86, 64)), (real.rdev(), real.size(), real.blocks()));
            assert_eq!((long(&x86, 88) as i64, long(&x86, 112) as i64), (real.mtime(), real.ctime_nsec()));
            let i386 = old(&stat, (7, 8), Layout::I386);
            assert_eq!(i386.len(), 96);
            assert_eq!((word(&i386, 16), word(&i386, 24), word(&i386, 28)), (real.mode(), 7, 8));
            assert_eq!((long(&i386, 44), long(&i386, 56), long(&i386, 88)), (real.size(), real.blocks(), real.ino()));
            assert_eq!(old(&stat, (7, 8), Layout::Aarch64).len(), 128);
            assert_eq!(old(&stat, (7, 8), Layout::Arm).len(), 104);
        }
    }
}
