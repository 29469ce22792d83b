//! Text to instructions as they are written: keyword, flags, words, heredocs, each with its place.
//!
//! A logical line is one or more lines joined by the escape character at their ends; comment lines within it are left out.
//! Every word keeps the place it has in the source text ([`Word::bytes`]), so that a message can underline it and an edit
//! can replace it and nothing else.
//!
//! `dockerfile-parser` from the registry was tried for this: it types eight instructions of eighteen, has no heredocs and
//! a fixed escape character, so it can't be the language. Its span-keeping splicer is what [`crate::edit`] stands on, and a
//! test compares its stage graph with ours over real files. Its image references know no digest beside a tag and refuse
//! nothing, so [`bud_image::ImageRef`] is our own.

pub mod directive;
pub mod heredoc;
mod line;
mod lines;

use crate::fault::{Fault, lines as line_spans};
use crate::frontend::Span;
pub use directive::{Directive, Directives};
pub use heredoc::Heredoc;
pub use line::Word;
use lines::{Lines, Logical};

/// A Dockerfile larger than this is refused.
pub const MAX_SIZE: usize = 16 << 20;

/// The longest line, in bytes, with its end.
pub const MAX_LINE: usize = 64 << 10;

/// A parsed text.
#[derive(Clone, Debug, Default)]
pub struct Dockerfile {
    /// The instructions, in order.
    pub nodes: Vec<Node>,
    /// The escape character.
    pub escape: char,
    /// Logical lines which have empty lines in them.
    pub empty_continuations: Vec<EmptyContinuation>,
}

/// A logical line with an empty line in it: shells may take it for the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmptyContinuation {
    /// The last line of the logical line.
    pub line: u32,
    /// The logical line.
    pub text: String,
}

/// One instruction as it is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// The keyword, in the case in which it is written.
    pub keyword: Word,
    /// The logical line.
    pub original: String,
    /// First and last line, with those of heredocs.
    pub lines: Span,
    /// Flags (`--x=y`), quotes and escapes taken away.
    pub flags: Vec<Word>,
    /// The rest, as words; what a word is depends on the instruction. Quotes and escapes are kept. For `ENV` and `LABEL`:
    /// triples of key, value and separator (`=` or nothing).
    pub words: Vec<Word>,
    /// True if the words come from a JSON array: the exec form.
    pub is_json: bool,
    /// Heredocs, in order.
    pub heredocs: Vec<Heredoc>,
    /// The comments directly above.
    pub comments: Vec<String>,
    /// For `ONBUILD`: its instruction; if that is an `ONBUILD` too, its instruction follows, and so on.
    pub triggers: Vec<Node>,
}

impl Node {
    /// Returns the keyword in lower case.
    #[must_use]
    pub fn name(&self) -> String {
        self.keyword.text.to_lowercase()
    }

    /// Returns each line as a span of its own.
    #[must_use]
    pub fn location(&self) -> Vec<Span> {
        line_spans(self.lines.start, self.lines.end)
    }

    fn can_have_heredocs(&self) -> bool {
        let inner = if self.name() == "onbuild" { self.triggers.first().unwrap_or(self) } else { self };
        matches!(inner.name().as_str(), "add" | "copy" | "run") && !inner.is_json
    }
}

/// Parses a text.
pub(crate) fn parse(text: &str) -> Result<Dockerfile, Fault> {
    let mut faults = Vec::new();
    let mut file = Dockerfile { escape: '\\', ..Dockerfile::default() };
    let end = parse_into(text, &mut file, &mut faults);
    match faults.into_iter().next() {
        Some(first) => Err(first),
        None => end.map(|()| file),
    }
}

/// Parses as much of a text as can be parsed, and says all that is wrong with it.
pub(crate) fn parse_all(text: &str) -> (Dockerfile, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut file = Dockerfile { escape: '\\', ..Dockerfile::default() };
    let end = parse_into(text, &mut file, &mut faults);
    faults.extend(end.err());
    (file, faults)
}

/// Parses a text. Instructions that can't be parsed go to the faults; what ends the parsing is returned.
fn parse_into(text: &str, file: &mut Dockerfile, faults: &mut Vec<Fault>) -> Result<(), Fault> {
    if text.len() > MAX_SIZE {
        return Err(Fault::new(format!("the Dockerfile is larger than {} MiB", MAX_SIZE >> 20)));
    }
    let mut lines = Lines::new(text);
    let mut directives = Directives::default();
    let mut comments: Vec<String> = Vec::new();
    while let Some(raw) = lines.next() {
        let raw = if lines.number == 1 { raw.without_bom() } else { raw };
        if raw.is_comment() {
            // One byte is cut off without looking: with white space before it the `#` stays.
            match String::from_utf8_lossy(&raw.text.as_bytes()[1..]).trim() {
                "" => comments.clear(),
                comment => comments.push(comment.to_owned()),
            }
        }
        let line = raw.trimmed(true);
        match read_directive(&mut directives, line.text, &mut file.escape) {
            Ok(true) => {
                comments.pop();
            }
            Ok(false) => {}
            Err(fault) => {
                let number = lines.number;
                return Err(fault.at(&line_spans(number - 1, 0)).on(Some(line.range())));
            }
        }
        let line = line.without_comment();
        let mut logical = Logical::default();
        let mut at_end = logical.push(line, file.escape);
        if at_end && logical.text.is_empty() {
            continue;
        }
        let start = lines.number;
        let mut has_empty = false;
        while !at_end {
            let Some(raw) = lines.next() else { break };
            let line = raw.trimmed(false);
            // A directive can't be in here, but the reference counts lines with the same state.
            if let Err(fault) = read_directive(&mut directives, line.text, &mut file.escape) {
                return Err(fault.at(&line_spans(lines.number - 1, 0)).on(Some(line.range())));
            }
            if raw.is_comment() {
                continue;
            }
            if line.text.trim().is_empty() {
                has_empty = true;
                continue;
            }
            at_end = logical.push(line, file.escape);
        }
        if has_empty {
            file.empty_continuations.push(EmptyContinuation { line: lines.number, text: logical.text.clone() });
        }
        let end = lines.number;
        let here = |fault: Fault| fault.at(&line_spans(start, end)).on(Some(logical.range(0..logical.text.len())));
        let parsed = line::parse_node(&logical, file.escape).and_then(|mut node| {
            if node.can_have_heredocs() && logical.text.contains("<<") {
                node.heredocs = heredoc::find(&logical.text)?;
            }
            Ok(node)
        });
        let mut node = match parsed {
            Ok(node) => node,
            Err(fault) => {
                faults.push(here(fault));
                comments.clear();
                continue;
            }
        };
        for heredoc in &mut node.heredocs {
            if !heredoc::read(heredoc, &mut lines) {
                let fault = Fault::new("unterminated heredoc").at(&line_spans(start, lines.number));
                return Err(fault.on(Some(logical.range(0..logical.text.len()))));
            }
        }
        node.lines = Span { start, end: lines.number };
        node.comments = std::mem::take(&mut comments);
        file.nodes.push(node);
    }
    let last = line_spans(lines.number, 0);
    if file.nodes.is_empty() && faults.is_empty() {
        return Err(Fault::new("file with no instructions").at(&last));
    }
    if lines.too_long {
        let fault = Fault::new(format!("dockerfile line greater than max allowed size of {}", MAX_LINE - 1));
        return Err(fault.at(&last));
    }
    Ok(())
}

/// Takes a line for a directive if it is one.
fn read_directive(directives: &mut Directives, line: &str, escape: &mut char) -> Result<bool, Fault> {
    let Some(directive) = directives.read_line(line)? else { return Ok(false) };
    if directive.name == "escape" {
        *escape = match directive.value.as_str() {
            "\\" => '\\',
            "`" => '`',
            other => return Err(Fault::new(format!("invalid escape token '{other}' does not match ` or \\"))),
        };
    }
    Ok(true)
}
