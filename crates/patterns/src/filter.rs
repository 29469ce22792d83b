//! Which entries of a tree are taken: include and exclude patterns together, as a walk needs them.

use crate::BadPattern;
use crate::matcher::{MatchState, PatternMatcher};

/// Include and exclude patterns. Without includes everything is included; excludes win.
#[derive(Debug, Clone)]
pub struct Filter {
    includes: Option<PatternMatcher>,
    excludes: Option<PatternMatcher>,
}

/// What a walk carries from a directory to its entries. The default is the root's.
#[derive(Debug, Clone, Default)]
pub struct FilterState {
    includes: MatchState,
    excludes: MatchState,
}

/// What is to be done with an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The entry itself is taken. A directory that is not is still taken when something in it is.
    pub selected: bool,
    /// For a directory: something below may be taken, so it has to be read.
    pub descend: bool,
}

impl Filter {
    /// Compiles the patterns; an empty list of includes selects all.
    pub fn new<S: AsRef<str>>(includes: &[S], excludes: &[S]) -> Result<Filter, BadPattern> {
        let compile = |patterns: &[S]| -> Result<Option<PatternMatcher>, BadPattern> {
            let matcher = PatternMatcher::new(patterns)?;
            Ok(if patterns.is_empty() { None } else { Some(matcher) })
        };
        Ok(Filter { includes: compile(includes)?, excludes: compile(excludes)? })
    }

    /// A filter that takes everything.
    pub fn all() -> Filter {
        Filter { includes: None, excludes: None }
    }

    /// Tells whether everything is taken.
    pub fn takes_all(&self) -> bool {
        self.includes.is_none() && self.excludes.is_none()
    }

    /// Judges the entry `path` whose parent directory has state `parent`; the state is for what is in `path`.
    pub fn step(&self, parent: &FilterState, path: impl AsRef<[u8]>) -> (Verdict, FilterState) {
        let path = path.as_ref();
        let mut state = FilterState::default();
        let mut verdict = Verdict { selected: true, descend: true };
        if let Some(includes) = &self.includes {
            let (included, below) = includes.step(&parent.includes, path);
            state.includes = below;
            verdict.selected = included;
            verdict.descend = included || includes.may_match_below(path);
        }
        if let Some(excludes) = &self.excludes {
            let (excluded, below) = excludes.step(&parent.excludes, path);
            state.excludes = below;
            if excluded {
                verdict.selected = false;
                verdict.descend &= excludes.may_exclude_below(path);
            }
        }
        (verdict, state)
    }

    /// Judges one path without a walk.
    pub fn selects(&self, path: impl AsRef<[u8]>) -> bool {
        let path = path.as_ref();
        let included = self.includes.as_ref();
        let excluded = self.excludes.as_ref();
        included.is_none_or(|includes| includes.matches_or_parent_matches(path))
            && !excluded.is_some_and(|excludes| excludes.matches_or_parent_matches(path))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Walks a tree of paths (directories end in `/`) and returns what is taken, parents included, and what was read.
    fn walk(filter: &Filter, tree: &[&str]) -> (Vec<String>, Vec<String>) {
        let mut taken = std::collections::BTreeSet::new();
        let mut read = Vec::new();
        let mut states = vec![(String::new(), FilterState::default(), true)];
        for entry in tree {
            let path = entry.trim_end_matches('/');
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            while states.last().unwrap().0 != parent {
                states.pop();
            }
            let (_, state, descended) = states.last().unwrap().clone();
            if !descended {
                states.push((path.to_owned(), state, false));
                continue;
            }
            let (verdict, below) = filter.step(&state, path);
            if verdict.selected {
                for (i, _) in path.match_indices('/') {
                    taken.insert(path[..i].to_owned());
                }
                taken.insert(path.to_owned());
            }
            if entry.ends_with('/') {
                if verdict.descend {
                    read.push(path.to_owned());
                }
                states.push((path.to_owned(), below, verdict.descend));
            }
        }
        (taken.into_iter().collect(), read)
    }

    const TREE: &[&str] = &[
        "Dockerfile",
        "docs/",
        "docs/README.md",
        "docs/img/",
        "docs/img/a.png",
        "src/",
        "src/main.rs",
        "src/x.log",
        "target/",
        "target/debug/",
        "target/debug/bin",
    ];

    #[test]
    fn excludes_prune_and_exceptions_keep_reading() {
        let filter = Filter::new(&[], &["target", "docs", "!docs/README.md", "**/*.log"]).unwrap();
        let (taken, read) = walk(&filter, TREE);
        assert_eq!(taken, ["Dockerfile", "docs", "docs/README.md", "src", "src/main.rs"]);
        assert_eq!(read, ["docs", "src"]);
    }

    #[test]
    fn includes_take_parents_along_but_not_siblings() {
        let filter = Filter::new(&["docs/img"], &[]).unwrap();
        let (taken, read) = walk(&filter, TREE);
        assert_eq!(taken, ["docs", "docs/img", "docs/img/a.png"]);
        assert_eq!(read, ["docs", "docs/img"]);
    }

    #[test]
    fn excludes_win_over_includes() {
        let filter = Filter::new(&["docs"], &["docs/img"]).unwrap();
        assert_eq!(walk(&filter, TREE).0, ["docs", "docs/README.md"]);
        assert!(filter.selects("docs/README.md"));
        assert!(!filter.selects("docs/img/a.png"));
        assert!(!filter.selects("src/main.rs"));
    }

    #[test]
    fn no_patterns_take_all() {
        assert!(Filter::all().takes_all());
        assert_eq!(walk(&Filter::all(), TREE).0.len(), TREE.len());
    }
}
