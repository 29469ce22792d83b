//! Words with quotes, escapes and variables: `"$A/${B:-c}"`.
//!
//! The rules are the shell's for the most part, in the form in which the reference has them: `${v:-w}`, `${v-w}`, `${v:+w}`,
//! `${v+w}`, `${v:?m}`, `${v?m}`, `${v#p}`, `${v##p}`, `${v%p}`, `${v%%p}`, `${v/p/r}`, `${v//p/r}`.

mod glob;
mod lexer;

use std::collections::BTreeSet;

/// The longest text that a word may expand to. Longer ones can't be passed to a program anyway.
pub const MAX_EXPANSION: usize = 1 << 20;

/// Deeper nesting of `${a:-${b:-…}}` than this is refused.
pub const MAX_DEPTH: usize = 100;

/// Variables by name.
pub trait Vars {
    /// Returns a variable's value, if it is set.
    fn get(&self, name: &str) -> Option<&str>;
}

/// No variables at all.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoVars;

impl Vars for NoVars {
    fn get(&self, _name: &str) -> Option<&str> {
        None
    }
}

/// How words are read.
#[derive(Clone, Copy, Debug)]
pub struct Lexer {
    /// The escape character: `\`, or a backtick where the file says so.
    pub escape: char,
    /// Keep quotes in the result.
    pub raw_quotes: bool,
    /// Keep escape characters in the result.
    pub raw_escapes: bool,
    /// Take quotes as ordinary characters.
    pub skip_quotes: bool,
    /// Leave variables that are not set as they are written.
    pub skip_unset: bool,
}

/// A word after expansion.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expansion {
    /// The text.
    pub text: String,
    /// The text split at white space that is neither quoted nor escaped.
    pub words: Vec<String>,
    /// Variables that were used and are set.
    pub matched: BTreeSet<String>,
    /// Variables that were used and are not set.
    pub unmatched: BTreeSet<String>,
}

/// Why a word can't be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ExpandError {
    /// What is wrong.
    pub message: String,
    /// Variables used up to there that are set.
    pub matched: BTreeSet<String>,
    /// Variables used up to there that are not set.
    pub unmatched: BTreeSet<String>,
}

impl Lexer {
    /// Returns a lexer that takes quotes and escapes away.
    #[must_use]
    pub fn new(escape: char) -> Self {
        Self { escape, raw_quotes: false, raw_escapes: false, skip_quotes: false, skip_unset: false }
    }

    /// Expands a word.
    ///
    /// # Errors
    ///
    /// Quotes or braces that aren't closed, unknown modifiers, `${v:?}` of a variable that isn't set, and texts beyond
    /// [`MAX_EXPANSION`] and [`MAX_DEPTH`].
    pub fn expand(&self, word: &str, vars: &dyn Vars) -> Result<Expansion, ExpandError> {
        lexer::Run::new(*self, word, vars).finish()
    }
}

impl<V: AsRef<str>> Vars for Vec<(String, V)> {
    fn get(&self, name: &str) -> Option<&str> {
        self.iter().rev().find(|(k, _)| k == name).map(|(_, v)| v.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(word: &str) -> Result<String, String> {
        let vars = vec![("A".to_owned(), "foo/bar/foo"), ("E".into(), "")];
        Lexer::new('\\').expand(word, &vars).map(|e| e.text).map_err(|e| e.message)
    }

    #[test]
    fn modifiers() {
        for (word, text) in [
            ("$A", "foo/bar/foo"),
            ("${A}x", "foo/bar/foox"),
            ("${N:-d$A}", "dfoo/bar/foo"),
            ("${E:-d}${E-d}", "d"),
            ("${A:+y}${N:+y}", "y"),
            ("${A#*/}", "bar/foo"),
            ("${A##*/}", "foo"),
            ("${A%/*}", "foo/bar"),
            ("${A%%/*}", "foo"),
            ("${A/foo/x}", "x/bar/foo"),
            ("${A//foo/x}", "x/bar/x"),
            ("'$A' \"$E\" \\$A", "$A  $A"),
            ("$1x$", "x$"),
        ] {
            assert_eq!(expand(word).as_deref(), Ok(text), "{word}");
        }
        assert_eq!(expand("${N:?must}").unwrap_err(), r#"failed to process "${N:?must}": N: must"#);
        assert!(expand("${A:-x").unwrap_err().contains("missing '}'"));
        assert!(expand("${A!x}").unwrap_err().contains("unsupported modifier (!)"));
    }

    #[test]
    fn nesting_and_growth_are_bounded() {
        assert!(expand(&"${N:-".repeat(10_000)).unwrap_err().contains("nested"));
        let big = vec![("B".to_owned(), "x".repeat(MAX_EXPANSION / 2 + 1))];
        assert!(Lexer::new('\\').expand("$B$B", &big).unwrap_err().message.contains("longer than"));
        let star = format!("${{B//{}y/z}}", "*x".repeat(30));
        // It comes to an end, which it would not in a lifetime if stars were tried one after another.
        let _ = Lexer::new('\\').expand(&star, &big);
    }

    proptest::proptest! {
        #[test]
        fn any_word_gives_a_result(word in r#"[\\`$"'{}:+\-?#%/*<A-C \t]{0,40}"#) {
            let _ = expand(&word);
        }
    }
}
