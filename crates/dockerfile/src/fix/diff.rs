//! What an edit changes, as a unified diff.

use std::fmt::Write as _;

/// Lines shown around a change.
const CONTEXT: usize = 3;
/// Above this many pairs of lines a change is shown as one block.
const MAX_TABLE: usize = 4 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Both,
    Old,
    New,
}

/// Writes a unified diff of two texts under a file's name; nothing if they are equal.
///
/// ```
/// let shown = bud_dockerfile::fix::diff::unified("Dockerfile", "FROM a\nENV A b\n", "FROM a\nENV A=b\n");
/// assert_eq!(shown, "--- Dockerfile\n+++ Dockerfile\n@@ -1,2 +1,2 @@\n FROM a\n-ENV A b\n+ENV A=b\n");
/// ```
#[must_use]
pub fn unified(name: &str, old: &str, new: &str) -> String {
    let (a, b): (Vec<&str>, Vec<&str>) = (old.split_inclusive('\n').collect(), new.split_inclusive('\n').collect());
    let script = script(&a, &b);
    let mut out = String::new();
    let is_change = |i: usize| script.get(i).is_some_and(|(side, _)| *side != Side::Both);
    let mut i = 0;
    let (mut old_line, mut new_line) = (1, 1);
    while i < script.len() {
        // A hunk is what is near a change.
        let near = (i.saturating_sub(CONTEXT)..=i + CONTEXT).any(is_change);
        if !near {
            (old_line, new_line, i) = (old_line + 1, new_line + 1, i + 1);
            continue;
        }
        let mut end = i;
        while end < script.len() && (end.saturating_sub(CONTEXT)..=end + CONTEXT).any(is_change) {
            end += 1;
        }
        let count = |side: Side| script[i..end].iter().filter(|(s, _)| *s == Side::Both || *s == side).count();
        let (olds, news) = (count(Side::Old), count(Side::New));
        if out.is_empty() {
            _ = write!(out, "--- {name}\n+++ {name}\n");
        }
        _ = writeln!(out, "@@ -{} +{} @@", range(old_line, olds), range(new_line, news));
        for (side, line) in &script[i..end] {
            out.push(match side {
                Side::Both => ' ',
                Side::Old => '-',
                Side::New => '+',
            });
            out.push_str(line);
            if !line.ends_with('\n') {
                out.push_str("\n\\ No newline at end of file\n");
            }
        }
        (old_line, new_line, i) = (old_line + olds, new_line + news, end);
    }
    out
}

fn range(first: usize, count: usize) -> String {
    match count {
        0 => format!("{},0", first - 1),
        1 => first.to_string(),
        n => format!("{first},{n}"),
    }
}

/// The lines of both, in order, with the side that has them: by the longest common sequence.
fn script<'a>(a: &[&'a str], b: &[&'a str]) -> Vec<(Side, &'a str)> {
    let head = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let tail = a[head..].iter().rev().zip(b[head..].iter().rev()).take_while(|(x, y)| x == y).count();
    let (x, y) = (&a[head..a.len() - tail], &b[head..b.len() - tail]);
    let mut out: Vec<(Side, &str)> = a[..head].iter().map(|line| (Side::Both, *line)).collect();
    let width = y.len() + 1;
    let (mut i, mut j) = (0, 0);
    if x.len().saturating_mul(y.len()) <= MAX_TABLE {
        let mut common = vec![0u32; (x.len() + 1) * width];
        for i in (0..x.len()).rev() {
            for j in (0..y.len()).rev() {
                common[i * width + j] = if x[i] == y[j] {
                    common[(i + 1) * width + j + 1] + 1
                } else {
                    common[(i + 1) * width + j].max(common[i * width + j + 1])
                };
            }
        }
        while i < x.len() && j < y.len() {
            if x[i] == y[j] {
                out.push((Side::Both, x[i]));
                (i, j) = (i + 1, j + 1);
            } else if common[(i + 1) * width + j] >= common[i * width + j + 1] {
                out.push((Side::Old, x[i]));
                i += 1;
            } else {
                out.push((Side::New, y[j]));
                j += 1;
            }
        }
    }
    out.extend(x[i..].iter().map(|line| (Side::Old, *line)));
    out.extend(y[j..].iter().map(|line| (Side::New, *line)));
    out.extend(a[a.len() - tail..].iter().map(|line| (Side::Both, *line)));
    out
}

#[cfg(test)]
mod tests {
    use super::unified;
    use proptest::prelude::*;

    #[test]
    fn hunks_have_lines_around_them() {
        let old: String = (1..=20).map(|n| format!("{n}\n")).collect();
        let new = old.replace("\n2\n", "\ntwo\n").replace("\n19\n", "\n");
        assert_eq!(
            unified("f", &old, &new),
            "--- f\n+++ f\n@@ -1,5 +1,5 @@\n 1\n-2\n+two\n 3\n 4\n 5\n@@ -16,5 +16,4 @@\n 16\n 17\n 18\n-19\n 20\n"
        );
        assert_eq!(unified("f", &old, &old), "");
        assert_eq!(
            unified("f", "a", "b"),
            "--- f\n+++ f\n@@ -1 +1 @@\n-a\n\\ No newline at end of file\n+b\n\\ No newline at end of file\n"
        );
    }

    proptest! {
        /// What is not marked as new is the old text, and the other way round.
        #[test]
        fn both_texts_are_in_the_script(old in "([ab]\n){0,12}", new in "([ab]\n){0,12}") {
            let (a, b): (Vec<&str>, Vec<&str>) = (old.split_inclusive('\n').collect(), new.split_inclusive('\n').collect());
            let script = super::script(&a, &b);
            let side = |not: super::Side| script.iter().filter(|(s, _)| *s != not).map(|(_, l)| *l).collect::<String>();
            prop_assert_eq!(side(super::Side::New), old.as_str());
            prop_assert_eq!(side(super::Side::Old), new.as_str());
        }
    }
}
