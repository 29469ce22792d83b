//! Which program this is: its version, and which build of it.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

/// The program that runs, as a path.
const SELF: &str = "/proc/self/exe";

/// A build of the program: the time and the size of its file. Builds of one version differ in it, and the later one is the newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BuildId {
    seconds: i64,
    nanoseconds: i64,
    size: u64,
}

impl BuildId {
    /// Returns that of the running program, also if its file was replaced since.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn running() -> std::io::Result<Self> {
        Ok(Self::of(&std::fs::metadata(SELF)?))
    }

    fn of(file: &std::fs::Metadata) -> Self {
        Self { seconds: file.mtime(), nanoseconds: file.mtime_nsec(), size: file.size() }
    }

    /// Reads what [`std::fmt::Display`] wrote.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (time, size) = text.rsplit_once('-')?;
        let (seconds, nanoseconds) = time.split_once('.')?;
        Some(Self { seconds: seconds.parse().ok()?, nanoseconds: nanoseconds.parse().ok()?, size: size.parse().ok()? })
    }
}

impl std::fmt::Display for BuildId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:09}-{}", self.seconds, self.nanoseconds, self.size)
    }
}

/// Tells whether one program is newer than another: by its version, and in one version by the time of its file. What can't be
/// compared is not newer, so two programs never take turns at replacing each other.
#[must_use]
pub fn is_newer(ours: (&str, Option<BuildId>), theirs: (&str, Option<BuildId>)) -> bool {
    let parts = |version: &str| -> Option<Vec<u32>> {
        let version = version.strip_prefix('v').unwrap_or(version);
        version.split(['-', '+']).next()?.split('.').map(|part| part.parse().ok()).collect()
    };
    let (Some(our_version), Some(their_version)) = (parts(ours.0), parts(theirs.0)) else { return false };
    if our_version != their_version {
        return our_version > their_version;
    }
    // Two names of one version that differ after the number (`-rc1`) have no order that we know.
    ours.0 == theirs.0
        && ours
            .1
            .zip(theirs.1)
            .is_some_and(|(ours, theirs)| (ours.seconds, ours.nanoseconds) > (theirs.seconds, theirs.nanoseconds))
}

/// The program's file, as it was when the daemon started.
#[derive(Clone, Debug)]
pub struct Program {
    /// Which build it is.
    pub build: BuildId,
    path: PathBuf,
    file: (u64, u64),
}

impl Program {
    /// Looks at the running program. To be called before another root or namespace is entered.
    ///
    /// # Errors
    /// There is no `/proc`.
    pub fn running() -> std::io::Result<Self> {
        let file = std::fs::metadata(SELF)?;
        Ok(Self { build: BuildId::of(&file), path: std::fs::read_link(SELF)?, file: (file.dev(), file.ino()) })
    }

    /// Tells whether another file is in its place now.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        std::fs::metadata(&self.path)
            .is_ok_and(|found| (found.dev(), found.ino()) != self.file || BuildId::of(&found) != self.build)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(seconds: i64, nanoseconds: i64) -> Option<BuildId> {
        Some(BuildId { seconds, nanoseconds, size: 1 })
    }

    #[test]
    fn a_build_is_read_as_it_is_written() {
        let running = BuildId::running().unwrap();
        assert_eq!(BuildId::parse(&running.to_string()), Some(running));
        assert_eq!(BuildId::parse("12.000000003-1"), build(12, 3));
        for text in ["", "1-2", "1.2", "a.b-c", "-"] {
            assert_eq!(BuildId::parse(text), None, "{text}");
        }
    }

    #[test]
    fn newer_is_a_higher_version_or_a_later_build_of_the_same() {
        let newer = [
            (("0.2.0", None), ("0.1.9", None)),
            (("v0.10.0", build(1, 0)), ("0.9.0", build(2, 0))),
            (("0.1.0", build(2, 0)), ("0.1.0", build(1, 9))),
            (("0.1.0", build(1, 2)), ("0.1.0", build(1, 1))),
        ];
        for (ours, theirs) in newer {
            assert!(is_newer(ours, theirs), "{ours:?} {theirs:?}");
            assert!(!is_newer(theirs, ours), "{theirs:?} {ours:?}");
        }
        for other in ["", "unknown", "0.1.0-rc1"] {
            assert!(!is_newer(("0.1.0", build(2, 0)), (other, build(1, 0))), "{other}");
        }
        assert!(!is_newer(("0.1.0", build(1, 0)), ("0.1.0", build(1, 0))));
        assert!(!is_newer(("0.1.0", build(1, 0)), ("0.1.0", None)));
    }
}
