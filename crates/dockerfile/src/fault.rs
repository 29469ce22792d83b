//! What goes wrong inside: a message in the reference's words, and the places it is about.

use crate::frontend::{Error, Span};
use std::ops::Range;

/// An error on its way out.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Fault {
    /// What is wrong; the reference's text is in it.
    pub(crate) message: String,
    /// Places, innermost first.
    pub(crate) places: Vec<Vec<Span>>,
    /// The bytes of the source text to underline, where they are known better than by line.
    pub(crate) bytes: Option<Range<usize>>,
}

impl Fault {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), ..Self::default() }
    }

    /// Makes it the public error.
    pub(crate) fn into_error(self) -> Error {
        Error { message: self.message, places: self.places, ..Error::default() }
    }

    /// Adds a place outside of those known.
    pub(crate) fn at(mut self, place: &[Span]) -> Self {
        self.places.push(place.to_vec());
        self
    }

    /// Sets the bytes to underline unless they are known.
    pub(crate) fn on(mut self, bytes: Option<Range<usize>>) -> Self {
        if self.bytes.is_none() {
            self.bytes = bytes;
        }
        self
    }

    /// Says what was being done.
    pub(crate) fn during(mut self, what: impl std::fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }
}

impl From<String> for Fault {
    fn from(message: String) -> Self {
        Self::new(message)
    }
}

impl From<&str> for Fault {
    fn from(message: &str) -> Self {
        Self::new(message)
    }
}

impl From<crate::shell::ExpandError> for Fault {
    fn from(error: crate::shell::ExpandError) -> Self {
        Self::new(error.message)
    }
}

/// Returns the lines from `start` to `end`, each as a span of its own; just the first if `end` is before it.
pub(crate) fn lines(start: u32, end: u32) -> Vec<Span> {
    (start..=end.max(start)).map(|line| Span { start: line, end: line }).collect()
}
