//! Edits that keep every other byte: words are replaced where they stand ([`crate::parser::Word::bytes`]).
//!
//! The splicing is `dockerfile-parser`'s: it keeps count of how earlier edits moved later places.

use dockerfile_parser::{Dockerfile, Span, Splicer};
use std::fmt;
use std::ops::Range;

/// A text being edited. Places are those of the text as it was at the beginning.
///
/// ```
/// let text = "from alpine AS Build\nRUN make\n";
/// let file = bud_dockerfile::parse(text.as_bytes())?;
/// let mut editor = bud_dockerfile::edit::Editor::new(text);
/// editor.replace(&file.nodes[0].keyword.bytes, "FROM")?;
/// editor.replace(&file.nodes[0].words[2].bytes, "build")?;
/// assert_eq!(editor.finish(), "FROM alpine AS build\nRUN make\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct Editor {
    splicer: Splicer,
    text: String,
    done: Vec<Range<usize>>,
}

/// Says why a place can't be edited.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("bytes {0:?} can't be replaced: they are not whole characters of the text, or were replaced already")]
pub struct BadPlace(pub Range<usize>);

impl Editor {
    /// Begins to edit a text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        let file = Dockerfile { content: text.to_owned(), global_args: Vec::new(), instructions: Vec::new() };
        Self { splicer: file.splicer(), text: text.to_owned(), done: Vec::new() }
    }

    /// Replaces some bytes by a text.
    ///
    /// # Errors
    ///
    /// If the place is not in the text, or overlaps one that was replaced.
    pub fn replace(&mut self, place: &Range<usize>, with: &str) -> Result<(), BadPlace> {
        let overlaps =
            |done: &Range<usize>| place.start < done.end && done.start < place.end || place.start == done.start;
        if self.text.get(place.clone()).is_none() || self.done.iter().any(overlaps) {
            return Err(BadPlace(place.clone()));
        }
        self.splicer.splice(&Span::new(place.start, place.end), with);
        self.done.push(place.clone());
        Ok(())
    }

    /// Returns the text as it is now.
    #[must_use]
    pub fn finish(self) -> String {
        self.splicer.content
    }
}

impl fmt::Debug for Editor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Editor").field("content", &self.splicer.content).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_those_of_the_first_text() {
        let mut editor = Editor::new("aé b c");
        editor.replace(&(6..7), "long").unwrap();
        editor.replace(&(0..1), "").unwrap();
        editor.replace(&(4..5), "B").unwrap();
        assert_eq!(editor.replace(&(4..5), "x"), Err(BadPlace(4..5)));
        assert_eq!(editor.replace(&(2..3), "x"), Err(BadPlace(2..3)));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = 5..3;
        assert!(editor.replace(&reversed, "x").is_err());
        assert_eq!(editor.finish(), "é B long");
    }
}
