//! A list of patterns as in `.dockerignore`: later ones win, `!` takes back, what matches a directory holds for all below.

use crate::BadPattern;
use crate::clean::clean;
use crate::glob::Glob;
use crate::nodes::{Dialect, Nodes};

/// More patterns than this are refused.
const MAX_PATTERNS: usize = 100_000;

/// A list of patterns, compiled.
#[derive(Debug, Clone)]
pub struct PatternMatcher {
    patterns: Vec<Pattern>,
    has_exclusions: bool,
}

/// What a directory's match says about what is below it. The default is the root's.
#[derive(Debug, Clone, Default)]
pub struct MatchState {
    /// One for each pattern; empty at the root.
    matched: Vec<bool>,
}

impl PatternMatcher {
    /// Compiles the patterns. Empty ones are left out, the others trimmed and cleaned; a bad one is named.
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<PatternMatcher, BadPattern> {
        if patterns.len() > MAX_PATTERNS {
            return Err(BadPattern::new("", "there are more than 100000 patterns"));
        }
        let mut compiled = Vec::with_capacity(patterns.len());
        for pattern in patterns {
            let pattern = pattern.as_ref().trim();
            if !pattern.is_empty() {
                compiled.push(Pattern::new(pattern)?);
            }
        }
        Ok(PatternMatcher { has_exclusions: compiled.iter().any(|pattern| pattern.exclusion), patterns: compiled })
    }

    /// Tells whether there are no patterns.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Tells whether a pattern begins with `!`.
    pub fn has_exclusions(&self) -> bool {
        self.has_exclusions
    }

    /// Tells whether `path`, or a directory it is in, is matched after all patterns were looked at in order.
    pub fn matches_or_parent_matches(&self, path: impl AsRef<[u8]>) -> bool {
        let path = path.as_ref();
        let mut matched = false;
        for pattern in &self.patterns {
            if pattern.exclusion == matched && prefixes(path).any(|path| pattern.matches(path)) {
                matched = !pattern.exclusion;
            }
        }
        matched
    }

    /// Matches `path` during a walk, given what came out for its parent directory (the default state if that is the
    /// root). The state returned is for the entries of `path`.
    pub fn step(&self, parent: &MatchState, path: impl AsRef<[u8]>) -> (bool, MatchState) {
        let path = path.as_ref();
        let mut matched = false;
        let mut state = vec![false; self.patterns.len()];
        for (i, pattern) in self.patterns.iter().enumerate() {
            let mut hit = parent.matched.get(i).copied().unwrap_or(false);
            if !hit {
                if pattern.exclusion != matched {
                    continue;
                }
                hit = pattern.matches(path);
            }
            state[i] = hit;
            if hit {
                matched = !pattern.exclusion;
            }
        }
        (matched, MatchState { matched: state })
    }

    /// Tells whether something below the directory `dir` may be matched by a pattern without `!`.
    pub fn may_match_below(&self, dir: impl AsRef<[u8]>) -> bool {
        let dir = dir.as_ref();
        let mut patterns = self.patterns.iter();
        patterns.any(|pattern| !pattern.exclusion && pattern.may_match_below(dir))
    }

    /// Tells whether something below the directory `dir` may be matched by a pattern with `!`.
    pub fn may_exclude_below(&self, dir: impl AsRef<[u8]>) -> bool {
        let dir = dir.as_ref();
        let mut patterns = self.patterns.iter();
        patterns.any(|pattern| pattern.exclusion && pattern.may_match_below(dir))
    }
}

/// `path` and all directories above it, the longest first.
fn prefixes(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    let parents = (0..path.len()).rev().filter(|&i| path[i] == b'/');
    std::iter::once(path).chain(parents.map(|i| &path[..i]))
}

#[derive(Debug, Clone)]
struct Pattern {
    exclusion: bool,
    form: Form,
    /// The pattern's path elements, for pruning; none if a part of it crosses separators.
    elements: Option<Vec<Glob>>,
}

#[derive(Debug, Clone)]
enum Form {
    Exact(String),
    /// `text**`: all that begins with the text.
    Prefix(String),
    /// `**text`: all that ends with the text; `**/text` is also `text` at the root.
    Suffix(String),
    Nodes(Nodes),
}

impl Pattern {
    fn new(given: &str) -> Result<Pattern, BadPattern> {
        let cleaned = clean(given);
        let (exclusion, text) = match cleaned.strip_prefix('!') {
            Some("") => return Err(BadPattern::new(given, "a ! alone excludes nothing")),
            Some(rest) => (true, rest),
            None => (false, cleaned.as_str()),
        };
        let nodes = Nodes::compile(text, Dialect::Ignore).map_err(|error| BadPattern::new(given, error.reason))?;
        let elements = if nodes.crosses_separators() || text.contains("**") {
            None
        } else {
            Some(text.split('/').map(Glob::new).collect::<Result<_, _>>()?)
        };
        let form = match (nodes.literal(), text.strip_prefix("**"), text.strip_suffix("**")) {
            (Some(literal), ..) => Form::Exact(literal.to_owned()),
            (_, Some(rest), _) if !rest.is_empty() && is_plain(rest) => Form::Suffix(rest.to_owned()),
            (_, _, Some(rest)) if is_plain(rest) => Form::Prefix(rest.to_owned()),
            _ => Form::Nodes(nodes),
        };
        Ok(Pattern { exclusion, form, elements })
    }

    fn matches(&self, path: &[u8]) -> bool {
        match &self.form {
            Form::Exact(text) => path == text.as_bytes(),
            Form::Prefix(text) => path.starts_with(text.as_bytes()),
            Form::Suffix(text) => {
                path.ends_with(text.as_bytes()) || text.strip_prefix('/').is_some_and(|rest| path == rest.as_bytes())
            }
            Form::Nodes(nodes) => nodes.matches(path),
        }
    }

    /// Tells whether a path below `dir`, or `dir` itself or a parent of it, may match. Never says no wrongly.
    fn may_match_below(&self, dir: &[u8]) -> bool {
        match (&self.elements, &self.form) {
            (Some(elements), _) => {
                let names = dir.split(|&byte| byte == b'/');
                elements.iter().zip(names).all(|(glob, name)| glob.matches(name))
            }
            (None, Form::Prefix(text)) => {
                let text = text.as_bytes();
                dir.starts_with(text) || {
                    let mut inside = dir.to_vec();
                    inside.push(b'/');
                    text.starts_with(&inside) || inside.starts_with(text)
                }
            }
            (None, _) => true,
        }
    }
}

/// Tells whether `text` has nothing that needs compiling.
fn is_plain(text: &str) -> bool {
    !text.contains(['*', '?', '[', ']', '\\'])
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matcher(patterns: &[&str]) -> PatternMatcher {
        PatternMatcher::new(patterns).unwrap()
    }

    #[test]
    fn single_patterns() {
        for (pattern, path, want) in [
            ("**", "file", true),
            ("**", "dir/file", true),
            ("**/", "file", true),
            ("**/**", "dir/file", true),
            ("dir/**", "dir/file", true),
            ("dir/**", "dir/dir2/file", true),
            ("dir/**", "dir", false),
            ("**/dir", "dir", true),
            ("**/dir", "dir/file", true),
            ("**/dir2/*", "dir/dir2/file", true),
            ("**/dir2/*", "dir/dir2/dir2/file", true),
            ("**/dir2/**", "dir/dir2/dir2/file", true),
            ("**file", "file", true),
            ("**file", "dir/file", true),
            ("**/file", "dir/dir/file", true),
            ("**/file*", "dir/dir/file.txt", true),
            ("**/file*txt", "dir/dir/file.txt", true),
            ("**/file*.txt*", "dir/dir/file.txt", true),
            ("**/**/*.txt", "dir/dir/file.txt", true),
            ("**/**/*.txt2", "dir/dir/file.txt", false),
            ("**/*.txt", "file.txt", true),
            ("a**/*.txt", "a/file.txt", true),
            ("a**/*.txt", "a/dir/dir/file.txt", true),
            ("a/*/*.txt", "a/dir/file.txt", true),
            ("a/*/*.txt", "a/file.txt", false),
            ("a/*/*.txt/**", "a/dir/file.txt", false),
            ("a/[b-d]e", "a/ce", true),
            ("**/a[b-d]e", "x/ace", true),
            ("a.|)$(}+{bc", "a.|)$(}+{bc", true),
            ("dist/*", "dist/whatever/else", true),
            ("dist/whatever", "dist/whatever/else", true),
            (".*", ".foo", true),
            (".*", "foo", false),
            ("abc.def", "abcXdef", false),
            ("foo", "foobar", false),
            ("foo**", "foobar/x", true),
            ("x/", "x/y", true),
            ("*", "a/b", true),
            ("*/b", "a/b/c", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "axb", false),
            ("/abs", "abs", false),
            ("ж?", "жж", true),
            ("a**b", "ab", true),
            ("a**b", "ax/b", true),
            ("a**b", "axb", false),
            ("**/.foo", "bar.foo", false),
            ("**/.foo", "x/.foo/y", true),
        ] {
            let matcher = matcher(&[pattern]);
            assert_eq!(matcher.matches_or_parent_matches(path), want, "{pattern:?} {path:?}");
        }
    }

    #[test]
    fn later_patterns_win_and_exclusions_take_back() {
        for (patterns, path, want) in [
            (&["docs", "!docs/README.md"][..], "docs/README.md", false),
            (&["docs", "!docs/README.md"], "docs/other", true),
            (&["!docs/README.md", "docs"], "docs/README.md", true),
            (&["docs", "!docs", "docs/a"], "docs/a", true),
            (&["docs", "!docs", "docs/a"], "docs/b", false),
            (&["**", "!util/docker/web"], "util/docker/web/foo", false),
            (&["**", "!util/docker/web"], "util/docker", true),
            (&["*", "!a/b"], "a/b/c", false),
            (&["**/*.md", "!README*.md", "README-secret.md"], "README-secret.md", true),
            (&["**/*.md", "!README*.md", "README-secret.md"], "README-x.md", false),
            (&["", "  ", "a"], "a", true),
        ] {
            assert_eq!(matcher(patterns).matches_or_parent_matches(path), want, "{patterns:?} {path:?}");
        }
    }

    #[test]
    fn bad_patterns_are_named_as_given() {
        for pattern in ["!", "a/[", "**/[]a]", "x\\", "!["] {
            let error = PatternMatcher::new(&["fine", pattern]).unwrap_err();
            assert_eq!(error.pattern, pattern);
        }
    }

    #[test]
    fn directories_are_pruned_where_nothing_below_can_match() {
        for (pattern, dir, want) in [
            ("a/b/c", "a", true),
            ("a/b/c", "a/b", true),
            ("a/b/c", "a/x", false),
            ("a/b/c", "x", false),
            ("a/*/c", "a/x", true),
            ("a/*/c", "b", false),
            ("**/c", "anything/at/all", true),
            ("a/**", "b", false),
            ("a/**", "a", true),
            ("a/b**", "a", true),
            ("a/b**", "a/bc", true),
            ("a/b**", "a/c", false),
            ("a[^b]c", "a", true),
        ] {
            assert_eq!(matcher(&[pattern]).may_match_below(dir), want, "{pattern:?} {dir:?}");
            let exclusion = matcher(&["**", &format!("!{pattern}")]);
            assert_eq!(exclusion.may_exclude_below(dir), want, "!{pattern:?} {dir:?}");
        }
    }

    #[test]
    fn hostile_patterns_take_polynomial_time() {
        let path = "a".repeat(4000);
        for pattern in
            ["*a".repeat(2000) + "b", "**/".repeat(2000) + "b", "**/a".repeat(1000) + "b", "?".repeat(3999) + "[b-z]"]
        {
            assert!(!matcher(&[pattern.as_str()]).matches_or_parent_matches(&path));
        }
    }

    fn pattern() -> impl Strategy<Value = String> {
        let element = prop::sample::select(vec!["a", "b", "ab", "*", "?", "a*", "**", "[ab]", "[^a]", "*b", "a**"]);
        (any::<bool>(), prop::collection::vec(element, 1..4))
            .prop_map(|(not, parts)| format!("{}{}", if not { "!" } else { "" }, parts.join("/")))
    }

    fn path() -> impl Strategy<Value = String> {
        let element = prop::sample::select(vec!["a", "b", "ab", "ba", "c"]);
        prop::collection::vec(element, 1..5).prop_map(|parts| parts.join("/"))
    }

    proptest! {
        #[test]
        fn a_walk_gives_what_a_single_match_gives(
            patterns in prop::collection::vec(pattern(), 1..5), path in path(),
        ) {
            let matcher = PatternMatcher::new(&patterns).unwrap();
            let mut state = MatchState::default();
            let mut matched = false;
            let ends = path.match_indices('/').map(|(i, _)| i).chain([path.len()]);
            for end in ends {
                (matched, state) = matcher.step(&state, &path[..end]);
            }
            // A walk may differ where an exclusion was skipped for a parent; both must agree without exclusions.
            if !matcher.has_exclusions() {
                prop_assert_eq!(matched, matcher.matches_or_parent_matches(&path));
            }
        }

        #[test]
        fn pruning_loses_nothing(patterns in prop::collection::vec(pattern(), 1..4), path in path()) {
            let matcher = PatternMatcher::new(&patterns).unwrap();
            let matched = matcher.matches_or_parent_matches(&path);
            for (i, _) in path.match_indices('/') {
                if matched && !matcher.has_exclusions() {
                    prop_assert!(matcher.may_match_below(&path[..i]));
                }
            }
        }

        #[test]
        fn nothing_panics(pattern in "\\PC{0,20}", path in prop::collection::vec(any::<u8>(), 0..30)) {
            if let Ok(matcher) = PatternMatcher::new(&[pattern]) {
                matcher.matches_or_parent_matches(&path);
                matcher.step(&MatchState::default(), &path);
                matcher.may_match_below(&path);
            }
        }
    }
}
