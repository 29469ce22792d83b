//! Go's `filepath.Match`: `*`, `?`, `[a-z]`, `[^a]` and `\` within one whole path.

use crate::BadPattern;
use crate::nodes::{Dialect, Nodes};

/// A compiled `filepath.Match` pattern.
#[derive(Debug, Clone)]
pub struct Glob(Nodes);

impl Glob {
    /// Compiles `pattern`; the whole of it is checked.
    pub fn new(pattern: &str) -> Result<Glob, BadPattern> {
        Nodes::compile(pattern, Dialect::Match).map(Glob)
    }

    /// Tells whether the whole of `name` matches.
    pub fn matches(&self, name: impl AsRef<[u8]>) -> bool {
        self.0.matches(name.as_ref())
    }
}

/// Tells whether `name` matches `pattern` by the rules of Go's `filepath.Match`.
pub fn matches(pattern: &str, name: impl AsRef<[u8]>) -> Result<bool, BadPattern> {
    Ok(Glob::new(pattern)?.matches(name))
}

/// Tells whether `name` has a character that makes it a pattern (`*`, `?` or `[`, not escaped).
pub fn has_wildcards(name: &str) -> bool {
    let mut bytes = name.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => {
                bytes.next();
            }
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matches_like_go() {
        for (pattern, name, want) in [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*", "", true),
            ("*c", "abc", true),
            ("a*", "a", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*/b", "a/c/b", false),
            ("a*b*c*d*e*/f", "axbxcxdxe/f", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/fff", false),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a\\*b", "a*b", true),
            ("a\\*b", "ab", false),
            ("a?b", "a☺b", true),
            ("a[^a]b", "a☺b", true),
            ("a???b", "a☺b", false),
            ("[a-ζ]*", "α", true),
            ("*[a-ζ]", "A", false),
            ("a?b", "a/b", false),
            ("a*b", "a/b", false),
            ("[\\]a]", "]", true),
            ("[\\-]", "-", true),
            ("[x\\-]", "-", true),
            ("[x\\-]", "z", false),
            ("[\\-x]", "a", false),
            ("**", "a/b", false),
            ("**", "ab", true),
            ("", "", true),
            ("", "a", false),
        ] {
            assert_eq!(matches(pattern, name), Ok(want), "{pattern:?} {name:?}");
        }
    }

    #[test]
    fn bad_patterns_are_named_wherever_the_fault_is() {
        for pattern in ["[]a]", "[-]", "[x-]", "[-x]", "[a-b-c]", "[", "[^", "[^bc", "a[", "a[b", "\\", "[\\"] {
            let error = Glob::new(pattern).unwrap_err();
            assert_eq!(error.pattern, pattern);
            assert!(error.to_string().contains(&format!("{pattern:?}")));
        }
    }

    #[test]
    fn bytes_that_are_no_text_are_one_character_each() {
        assert_eq!(matches("a?b", b"a\xffb"), Ok(true));
        assert_eq!(matches("a?b", b"a\xff\xfeb"), Ok(false));
        assert_eq!(matches("a*", b"a\xe2\x98"), Ok(true));
    }

    #[test]
    fn wildcards_are_seen_unless_escaped() {
        assert!(has_wildcards("a*"));
        assert!(has_wildcards("a\\\\?"));
        assert!(!has_wildcards("a\\*b"));
        assert!(!has_wildcards("a]b"));
    }
}
