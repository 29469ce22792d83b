//! The order in which a tree's entries have to come.

/// Longest path, in bytes.
const MAX_PATH: usize = 4096;
/// Longest name, in bytes.
const MAX_NAME: usize = 255;
/// Deepest directory.
const MAX_DEPTH: usize = 256;

/// Checks that entries come depth first, in byte order within each directory, once each, and below directories that came
/// before: so no path can lead through anything but these directories.
#[derive(Default)]
pub(super) struct Order {
    /// The directories that lead to the entry before, each with the last name seen in it. The root is the first.
    levels: Vec<Level>,
}

struct Level {
    dir: String,
    last: String,
}

/// How an entry stands to those before it.
pub(super) struct Place<'a> {
    /// How deep its directory is; the root's entries have 0.
    pub(super) depth: usize,
    /// Its name in that directory.
    pub(super) name: &'a str,
}

impl Order {
    /// Takes the next entry; an error says what is wrong with it.
    pub(super) fn check<'a>(&mut self, path: &'a str, is_dir: bool) -> Result<Place<'a>, String> {
        let bad = |what: &str| Err(format!("{path:?} {what}"));
        if path.len() > MAX_PATH {
            return Err(format!("a path is {} bytes long", path.len()));
        }
        if path.is_empty() || path.starts_with('/') {
            return bad("is not a relative path");
        }
        let mut depth = 0;
        for name in path.split('/') {
            if name.is_empty() || name == "." || name == ".." || name.contains('\0') {
                return bad("is not a clean path");
            }
            if name.len() > MAX_NAME {
                return bad("has a name of more than 255 bytes");
            }
            depth += 1;
        }
        if depth > MAX_DEPTH {
            return bad("is more than 256 directories deep");
        }
        let (dir, name) = path.rsplit_once('/').unwrap_or(("", path));
        if self.levels.is_empty() {
            self.levels.push(Level { dir: String::new(), last: String::new() });
        }
        let Some(at) = self.levels.iter().rposition(|level| level.dir == dir) else {
            return bad("is in a directory that was not listed before it");
        };
        self.levels.truncate(at + 1);
        let level = &mut self.levels[at];
        if name.as_bytes() <= level.last.as_bytes() {
            return Err(format!("{path:?} is out of order: {:?} of the same directory came before it", level.last));
        }
        name.clone_into(&mut level.last);
        if is_dir {
            self.levels.push(Level { dir: path.to_owned(), last: String::new() });
        }
        Ok(Place { depth: at, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths, directories with `/` at the end; tells the first that is refused.
    fn refused(paths: &[&str]) -> Option<String> {
        let mut order = Order::default();
        paths
            .iter()
            .find(|path| {
                order.check(path.strip_suffix("//").unwrap_or(path.trim_end_matches("%")), path.ends_with('%')).is_err()
            })
            .map(|path| (*path).to_owned())
    }

    #[test]
    fn a_walk_in_order_is_taken() {
        assert_eq!(refused(&["a%", "a/b%", "a/b/c", "a/b/d", "a/c", "a-b", "a.txt", "b"]), None);
        assert_eq!(refused(&[]), None);
    }

    #[test]
    fn what_is_no_walk_is_refused_at_the_first_wrong_entry() {
        for (paths, wrong) in [
            (&["../x"][..], "../x"),
            (&["a%", "a/../../x"], "a/../../x"),
            (&["/x"], "/x"),
            (&[".."], ".."),
            (&["."], "."),
            (&["a%", "a//b"], "a//b"),
            (&["a%", "a/./b"], "a/./b"),
            (&["a\0b"], "a\0b"),
            (&["b", "a"], "a"),
            (&["a", "a"], "a"),
            (&["a%", "a%"], "a%"),
            (&["a", "a/b"], "a/b"),
            (&["a/b"], "a/b"),
            (&["a%", "a/b", "c", "a/d"], "a/d"),
            (&["a%", "b%", "a/b"], "a/b"),
        ] {
            assert_eq!(refused(paths).as_deref(), Some(wrong), "{paths:?}");
        }
        let long = "x".repeat(256);
        assert!(refused(&[&long]).is_some());
        let deep = "a/".repeat(2047) + "a";
        assert!(refused(&[&deep]).is_some());
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_taken_stays_below_directories_that_were_listed(
            entries in proptest::collection::vec(("([ab.]{1,2}/?){1,4}", proptest::bool::ANY), 0..30),
        ) {
            let mut order = Order::default();
            let mut dirs = std::collections::HashSet::from([String::new()]);
            let mut before: Option<Vec<String>> = None;
            for (path, is_dir) in entries {
                if order.check(&path, is_dir).is_err() {
                    continue;
                }
                let names: Vec<String> = path.split('/').map(str::to_owned).collect();
                let parent = names[..names.len() - 1].join("/");
                proptest::prop_assert!(dirs.contains(&parent), "{path} is below no listed directory");
                proptest::prop_assert!(names.iter().all(|name| !matches!(name.as_str(), "" | "." | "..")));
                proptest::prop_assert!(before.as_ref().is_none_or(|before| *before < names), "{path} is out of order");
                if is_dir {
                    dirs.insert(path);
                }
                before = Some(names);
            }
        }
    }
}
