//! Paths as Go matches them: `filepath.Match`, and the rules of `.dockerignore`.
//!
//! Patterns and paths are `/`-separated and relative. Paths are bytes, since file names are; patterns are text. All
//! matching takes time proportional to pattern length × path length: no pattern makes it blow up.

#![forbid(unsafe_code)]

pub mod clean;
pub mod filter;
pub mod follow;
pub mod glob;
pub mod ignorefile;
pub mod matcher;
mod nodes;

pub use filter::{Filter, FilterState, Verdict};
pub use follow::{FollowError, Links, follow};
pub use glob::has_wildcards;
pub use matcher::{MatchState, PatternMatcher};

/// A pattern that can't be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("bad pattern {pattern:?}: {reason}")]
pub struct BadPattern {
    /// The pattern as it was given.
    pub pattern: String,
    /// What is wrong with it.
    pub reason: &'static str,
}

impl BadPattern {
    pub(crate) fn new(pattern: &str, reason: &'static str) -> BadPattern {
        BadPattern { pattern: pattern.to_owned(), reason }
    }
}
