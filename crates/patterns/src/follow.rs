//! Paths whose symlinks are followed: what has to be taken so that each of them can be reached.

use std::collections::{BTreeSet, HashSet};

use crate::clean::{clean, clean_in_root};
use crate::glob::{Glob, has_wildcards};

/// Links followed one after the other for one path, as in Linux.
const MAX_LINKS: u32 = 40;
/// Paths looked at in all.
const MAX_STEPS: usize = 100_000;

/// What following needs to know of a tree. Paths are relative to its root, which is the empty path; nothing may be followed.
pub trait Links {
    /// Returns the target if `path` is a symlink; `None` if it is something else or isn't there.
    fn read_link(&self, path: &str) -> std::io::Result<Option<String>>;
    /// Returns the names in the directory `path`; none if it is not a directory.
    fn names(&self, path: &str) -> std::io::Result<Vec<String>>;
}

/// Why following gave up.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// The tree can't be read.
    #[error("following {path}: {source}")]
    Io {
        /// The path that was looked at.
        path: String,
        /// The reason.
        source: std::io::Error,
    },
    /// Too many paths.
    #[error("following the symlinks of {0} leads to more than 100000 paths")]
    TooMany(String),
}

/// Returns the include patterns for `paths`: each path itself and the targets of all links on the way, which stay in the
/// root. `None` if the root itself is among them: everything is included then.
///
/// The last element of a path, or any other, may be a pattern. What doesn't exist is kept as it is; links in circles end.
pub fn follow<S: AsRef<str>>(tree: &impl Links, paths: &[S]) -> Result<Option<Vec<String>>, FollowError> {
    let mut patterns = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut work: Vec<(String, u32)> = Vec::new();
    for path in paths.iter().rev() {
        work.push((clean_in_root(path.as_ref()), 0));
    }
    while let Some((path, links)) = work.pop() {
        if path.is_empty() {
            return Ok(None);
        }
        if !seen.insert(path.clone()) {
            continue;
        }
        if seen.len() > MAX_STEPS {
            return Err(FollowError::TooMany(path));
        }
        let mut stopped = false;
        let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
        for end in ends {
            let current = &path[..end];
            let rest = path[end..].trim_start_matches('/');
            let targets =
                targets(tree, current).map_err(|source| FollowError::Io { path: current.to_owned(), source })?;
            if targets.is_empty() {
                continue;
            }
            patterns.insert(current.to_owned());
            if links < MAX_LINKS {
                for target in targets {
                    work.push((clean_in_root(&format!("{target}/{rest}")), links + 1));
                }
            }
            // A pattern also stands for what is no link, so what follows it is wanted as well.
            if !has_wildcards(current) || rest.is_empty() {
                stopped = true;
                break;
            }
        }
        if !stopped {
            patterns.insert(path);
        }
    }
    Ok(Some(without_covered(patterns)))
}

/// Returns the link targets of `path`, whose last element may be a pattern, as paths from the root.
fn targets(tree: &impl Links, path: &str) -> std::io::Result<Vec<String>> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let mut links = Vec::new();
    if has_wildcards(name) {
        let Ok(glob) = Glob::new(name) else {
            return Ok(links);
        };
        for name in tree.names(parent)? {
            if glob.matches(&name) {
                let path = if parent.is_empty() { name } else { format!("{parent}/{name}") };
                links.extend(tree.read_link(&path)?);
            }
        }
    } else {
        links.extend(tree.read_link(path)?);
    }
    let absolute = |target: String| {
        if target.starts_with('/') { clean(&target) } else { clean(&format!("/{parent}/{target}")) }
    };
    Ok(links.into_iter().map(absolute).collect())
}

/// Leaves out paths that are below others of the set.
fn without_covered(patterns: BTreeSet<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for pattern in &patterns {
        let covered = pattern.match_indices('/').any(|(i, _)| patterns.contains(&pattern[..i]));
        if !covered {
            kept.push(pattern.clone());
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Path to link target; `None` is a file or directory.
    struct Tree(BTreeMap<&'static str, Option<&'static str>>);

    impl Links for Tree {
        fn read_link(&self, path: &str) -> std::io::Result<Option<String>> {
            Ok(self.0.get(path).copied().flatten().map(str::to_owned))
        }
        fn names(&self, path: &str) -> std::io::Result<Vec<String>> {
            let names = self.0.keys().filter_map(|entry| {
                let (parent, name) = entry.rsplit_once('/').unwrap_or(("", entry));
                (parent == path).then(|| name.to_owned())
            });
            Ok(names.collect())
        }
    }

    fn follow_in(tree: &[(&'static str, Option<&'static str>)], paths: &[&str]) -> Option<Vec<String>> {
        follow(&Tree(tree.iter().copied().collect()), paths).unwrap()
    }

    #[test]
    fn links_lead_to_their_targets_within_the_root() {
        let tree = [
            ("dir", None),
            ("dir/l1", Some("/foo1")),
            ("foo1", None),
            ("foo2", Some("../../../foo1")),
            ("bar", Some("dir")),
            ("loop", Some("loop")),
            ("grow", Some("grow/x")),
        ];
        let follow = |paths: &[&str]| follow_in(&tree, paths).unwrap();
        assert_eq!(follow(&["dir/l1"]), ["dir/l1", "foo1"]);
        assert_eq!(follow(&["foo2"]), ["foo1", "foo2"]);
        assert_eq!(follow(&["bar/l1"]), ["bar", "dir/l1", "foo1"]);
        assert_eq!(follow(&["bar/l1", "bar/l2"]), ["bar", "dir/l1", "dir/l2", "foo1"]);
        assert_eq!(follow(&["../../foo1"]), ["foo1"]);
        assert_eq!(follow(&["missing/x"]), ["missing/x"]);
        assert_eq!(follow(&["loop"]), ["loop"]);
        assert_eq!(follow(&["grow"]), ["grow"]);
        assert_eq!(follow(&["dir", "dir/l1"]), ["dir", "foo1"]);
    }

    #[test]
    fn patterns_are_expanded_for_their_links() {
        let tree = [("a1", Some("x")), ("a2", Some("y/z")), ("a3", None), ("x", None)];
        assert_eq!(follow_in(&tree, &["a*"]).unwrap(), ["a*", "x", "y/z"]);
        assert_eq!(follow_in(&tree, &["a*/f"]).unwrap(), ["a*", "x/f", "y/z/f"]);
        assert_eq!(follow_in(&tree, &["[/f"]).unwrap(), ["[/f"]);
    }

    #[test]
    fn the_root_means_everything() {
        let tree = [("up", Some(".."))];
        assert_eq!(follow_in(&tree, &["a", "."]), None);
        assert_eq!(follow_in(&tree, &["up"]), None);
        assert_eq!(follow_in(&tree, &[]), Some(vec![]));
    }
}
