//! Giving memory back when a process has nothing to do.

use std::io;

use crate::sys;

/// Gives back what this process doesn't need while it rests: free memory of the heap, and the mapped pages of the program's own
/// code, which the kernel keeps in its page cache and maps again as soon as they are used.
///
/// A program as large as this one has most of its file mapped soon, because the kernel maps the neighbours of each page that is
/// touched. What stays is what a resting process really uses.
///
/// # Errors
/// `/proc` can't be read.
pub fn give_back() -> io::Result<()> {
    sys::trim_heap();
    let program = std::fs::read_link("/proc/self/exe")?;
    let maps = std::fs::read_to_string("/proc/self/smaps")?;
    for (start, length) in untouched(&maps, &program.to_string_lossy()) {
        sys::forget_pages(start, length)?;
    }
    Ok(())
}

/// Finds the mappings of the program's file, in the text of `smaps`, of which no page differs from the file and none can: not
/// writable and without anonymous pages. Addresses are turned into pointers of nobody: only the kernel looks at them.
fn untouched(smaps: &str, program: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut candidate = None;
    for line in smaps.lines() {
        if let Some(range) = header(line, program) {
            candidate = range;
        } else if let Some(anonymous) = line.strip_prefix("Anonymous:") {
            let candidate = candidate.take();
            if anonymous.split_whitespace().next() == Some("0") {
                found.extend(candidate);
            }
        }
    }
    found
}

/// Reads a line that begins a mapping: `Some(None)` if it isn't one of the program that can't be written.
fn header(line: &str, program: &str) -> Option<Option<(usize, usize)>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let (start, end) = (usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?);
    let mut fields = rest.splitn(5, ' ');
    let mode = fields.next()?;
    let path = fields.nth(3).unwrap_or_default().trim_start();
    let is_ours = matches!(mode, "r-xp" | "r--p") && path == program;
    Some(is_ours.then(|| (start, end.saturating_sub(start))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_mappings_of_the_program_are_given_back() {
        let smaps = "\
55d0-55d1 r--p 00000000 08:01 42                         /bin/a b
Size:                  4 kB
Anonymous:             0 kB
55d1-55d4 r-xp 00001000 08:01 42                         /bin/a b
Anonymous:             0 kB
VmFlags: rd ex mr
55d4-55d5 r--p 00004000 08:01 42                         /bin/a b
Anonymous:             8 kB
55d5-55d6 rw-p 00005000 08:01 42                         /bin/a b
Anonymous:             0 kB
55d6-55d7 r-xp 00005000 08:01 42                         /bin/a
Anonymous:             0 kB
55d7-55d8 r--p 00000000 00:00 0
Anonymous:             0 kB
";
        assert_eq!(untouched(smaps, "/bin/a b"), [(0x55d0, 1), (0x55d1, 3)]);
    }

    #[test]
    fn code_goes_and_comes_back() {
        let resident = || {
            let program = std::fs::read_link("/proc/self/exe").unwrap();
            let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
            let mut ours = false;
            let mut sum = 0;
            for line in maps.lines() {
                if line.contains('/') {
                    ours = line.contains("r-xp") && line.ends_with(program.to_str().unwrap());
                } else if let (true, Some(rss)) = (ours, line.strip_prefix("Rss:")) {
                    sum += rss.split_whitespace().next().unwrap().parse::<u64>().unwrap();
                }
            }
            sum
        };
        let before = resident();
        give_back().unwrap();
        let after = resident();
        assert!(after < before, "{after} kB after {before} kB");
        // All of it still works.
        assert_eq!(format!("{:?}", "a b".split(' ').map(str::len).collect::<Vec<_>>()), "[1, 1]");
    }
}
