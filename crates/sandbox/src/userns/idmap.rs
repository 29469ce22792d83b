//! Sub-ID ranges and the maps made of them (`subuid(5)`, `user_namespaces(7)`).

/// A range of IDs outside that a user may map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) start: u32,
    pub(super) count: u32,
}

impl Range {
    fn end(self) -> u64 {
        u64::from(self.start) + u64::from(self.count)
    }

    fn overlaps(self, other: Range) -> bool {
        u64::from(self.start) < other.end() && u64::from(other.start) < self.end()
    }
}

/// One line of a map: IDs inside from `inside` on are those outside from `range.start` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) inside: u32,
    pub(super) range: Range,
}

/// The kernel takes 340 lines of a map; the first is the own ID's.
const MAX_LINES: usize = 340;

/// Files of ranges are read up to this size.
pub(super) const MAX_FILE: u64 = 10 << 20;

/// Reads the ranges of one user, named by login name or number, from `/etc/subuid` or `/etc/subgid`.
///
/// Lines that make no sense are left out, as newuidmap does.
pub(super) fn ranges(file: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let number = uid.to_string();
    parse(file).filter(|(owner, _)| Some(*owner) == name || *owner == number).map(|(_, range)| range).collect()
}

/// Returns the first range start, at least 100,000, that nobody in the file has been given.
pub(super) fn first_free(file: &str) -> u32 {
    let end = parse(file).map(|(_, range)| range.end()).max().unwrap_or(0);
    u32::try_from(end.max(100_000)).unwrap_or(100_000)
}

fn parse(file: &str) -> impl Iterator<Item = (&str, Range)> {
    file.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let owner = fields.next()?.trim();
        let start: u32 = fields.next()?.trim().parse().ok()?;
        let count: u32 = fields.next()?.trim().parse().ok()?;
        // The last ID, −1, is no ID.
        let count = count.min(u32::MAX.checked_sub(start)?);
        (count > 0 && !owner.starts_with('#')).then_some((owner, Range { start, count }))
    })
}

/// Joins ranges to one map: the own ID is 0 inside, the ranges follow from 1 on without gaps.
pub(super) fn map(own: u32, ranges: &[Range]) -> Vec<Line> {
    let mut lines = vec![Line { inside: 0, range: Range { start: own, count: 1 } }];
    let mut inside: u32 = 1;
    for range in ranges {
        // A range that overlaps another, or holds the own ID, would make the kernel refuse the whole map.
        if lines.len() == MAX_LINES || lines.iter().any(|line| line.range.overlaps(*range)) {
            continue;
        }
        let count = range.count.min(u32::MAX - inside);
        if count == 0 {
            break;
        }
        lines.push(Line { inside, range: Range { start: range.start, count } });
        inside += count;
    }
    lines
}

/// How many IDs a map has beside the own one.
pub(super) fn mapped(lines: &[Line]) -> u64 {
    lines.iter().skip(1).map(|line| u64::from(line.range.count)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_found_by_name_and_by_number_and_joined() {
        let file = "# comment\nroot:1:9\nanna:100000:65536\n1000:300000:10\nbert:165536:65536\n1000:x:3\nanna:5:0\n:::\nanna:4294967295:5\nanna:4294967290:100\n";
        let found = ranges(file, Some("anna"), 1000);
        assert_eq!(
            found,
            [
                Range { start: 100000, count: 65536 },
                Range { start: 300000, count: 10 },
                Range { start: 4294967290, count: 5 }
            ]
        );
        let map = map(1000, &found);
        let line = |inside, start, count| Line { inside, range: Range { start, count } };
        assert_eq!(
            map,
            [line(0, 1000, 1), line(1, 100000, 65536), line(65537, 300000, 10), line(65547, 4294967290, 5)]
        );
        assert_eq!(mapped(&map), 65551);
        assert_eq!(ranges(file, None, 7), []);
    }

    #[test]
    fn ranges_that_the_kernel_would_refuse_are_left_out() {
        let range = |start, count| Range { start, count };
        let lines = map(1000, &[range(900, 200), range(5000, 10), range(5009, 10), range(6000, u32::MAX - 6000)]);
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[2].inside, 11);
        let many: Vec<Range> = (0..1000).map(|i| range(10_000 + i * 2, 1)).collect();
        assert_eq!(map(0, &many).len(), MAX_LINES);
    }

    #[test]
    fn a_free_range_follows_all_others() {
        assert_eq!(first_free(""), 100_000);
        assert_eq!(first_free("a:100000:65536\nb:165536:65536\n"), 231_072);
    }
}
