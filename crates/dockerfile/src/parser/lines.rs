//! Lines of the text, and logical lines joined of them.

use super::MAX_LINE;
use std::ops::Range;

/// Goes through the lines of a text.
pub(crate) struct Lines<'a> {
    text: &'a str,
    pos: usize,
    /// The number of the line read last, from 1.
    pub(crate) number: u32,
    /// A line was too long: it and all after it are not read.
    pub(crate) too_long: bool,
}

/// A line or a part of it, and where it is.
#[derive(Clone, Copy)]
pub(crate) struct Line<'a> {
    pub(crate) text: &'a str,
    pub(crate) start: usize,
}

impl<'a> Lines<'a> {
    pub(crate) fn new(text: &'a str) -> Self {
        Self { text, pos: 0, number: 0, too_long: false }
    }

    /// Returns the next line with its end.
    pub(crate) fn next(&mut self) -> Option<Line<'a>> {
        let rest = &self.text[self.pos..];
        if rest.is_empty() || self.too_long {
            return None;
        }
        let found = rest.find('\n');
        let len = found.map_or(rest.len(), |i| i + 1);
        if len > MAX_LINE - usize::from(found.is_none()) {
            self.too_long = true;
            return None;
        }
        let line = Line { text: &rest[..len], start: self.pos };
        self.pos += len;
        self.number += 1;
        Some(line)
    }
}

impl<'a> Line<'a> {
    fn cut(self, from: usize, to: usize) -> Self {
        Self { text: &self.text[from..to], start: self.start + from }
    }

    pub(crate) fn range(self) -> Range<usize> {
        self.start..self.start + self.text.len()
    }

    pub(crate) fn without_bom(self) -> Self {
        let skip = if self.text.starts_with('\u{feff}') { '\u{feff}'.len_utf8() } else { 0 };
        self.cut(skip, self.text.len())
    }

    pub(crate) fn without_end(self) -> Self {
        self.cut(0, self.text.trim_end_matches(['\r', '\n']).len())
    }

    /// Cuts the line's end, and white space at its beginning if asked for.
    pub(crate) fn trimmed(self, leading: bool) -> Self {
        let line = self.without_end();
        let skip = if leading { line.text.len() - line.text.trim_start().len() } else { 0 };
        line.cut(skip, line.text.len())
    }

    pub(crate) fn is_comment(self) -> bool {
        self.text.trim_start().starts_with('#')
    }

    pub(crate) fn without_comment(self) -> Self {
        if self.is_comment() { self.cut(0, 0) } else { self }
    }
}

/// A logical line: pieces of lines put together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Logical {
    pub(crate) text: String,
    /// Where the pieces begin, here and in the source.
    pieces: Vec<(usize, usize)>,
}

impl Logical {
    /// Adds a line; tells whether it is the last, which doesn't end with the escape character.
    pub(crate) fn push(&mut self, line: Line<'_>, escape: char) -> bool {
        let kept = continued(line.text, escape);
        let text = kept.unwrap_or(line.text);
        self.pieces.push((self.text.len(), line.start));
        self.text.push_str(text);
        kept.is_none()
    }

    /// Returns where a part of the logical line is in the source.
    pub(crate) fn range(&self, part: Range<usize>) -> Range<usize> {
        let place = |at: usize| {
            let i = self.pieces.partition_point(|(logical, _)| *logical <= at);
            let (logical, source) = i.checked_sub(1).map_or((0, 0), |i| self.pieces[i]);
            source + (at - logical)
        };
        // The end belongs to the piece in which the last byte is.
        let start = place(part.start);
        let end = if part.is_empty() { start } else { place(part.end - 1) + 1 };
        start..end.max(start)
    }
}

/// Returns what stands before the escape character at the end of a line, if that continues the line.
fn continued(line: &str, escape: char) -> Option<&str> {
    let kept = line.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!kept.ends_with(escape)).then_some(kept)
}
