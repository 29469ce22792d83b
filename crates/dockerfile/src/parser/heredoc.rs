//! Heredocs: `<<EOF`, `<<-EOF`, `<<"EOF"`, `3<<EOF`.

use super::lines::Lines;
use crate::fault::Fault;
use crate::shell::{Lexer, NoVars};

/// A text that stands in the lines after an instruction.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heredoc {
    /// The word that ends it.
    pub name: String,
    /// The number before `<<`, 0 without one.
    pub fd: u64,
    /// False if the name is quoted: then variables in the text aren't expanded.
    pub expand: bool,
    /// True for `<<-`: tabs at the beginning of lines are cut off.
    pub chomp: bool,
    /// The text, as it stands in the file.
    pub content: String,
}

impl Heredoc {
    /// Returns the text, without leading tabs where they are to be cut.
    #[must_use]
    pub fn text(&self) -> String {
        if self.chomp { chomp(&self.content) } else { self.content.clone() }
    }
}

/// Cuts tabs off the beginning of each line.
#[must_use]
pub fn chomp(text: &str) -> String {
    text.split_inclusive('\n').map(|line| line.trim_start_matches('\t')).collect()
}

/// Parses a word as the beginning of a heredoc; none if it is something else.
pub(crate) fn parse(word: &str) -> Result<Option<Heredoc>, Fault> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let Some(rest) = word[digits..].strip_prefix("<<") else { return Ok(None) };
    let (chomp, rest) = match rest.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, rest),
    };
    let rest = rest.trim_start_matches(['\t', '\n', '\x0c', '\r', ' ']);
    if rest.is_empty() || rest.contains('<') {
        return Ok(None);
    }
    // With and without its quotes: if they differ in number, a part of the name is quoted.
    let mut lexer = Lexer { skip_unset: true, ..Lexer::new('\\') };
    let words = lexer.expand(rest, &NoVars)?.words;
    let [name] = words.as_slice() else { return Ok(None) };
    lexer.raw_quotes = true;
    let raw = lexer.expand(rest, &NoVars)?.words;
    let [raw] = raw.as_slice() else {
        return Err(Fault::new(format!("internal lexing of heredoc produced inconsistent results: {rest}")));
    };
    let quotes = |text: &str| text.matches(['\'', '"']).count();
    Ok(Some(Heredoc {
        name: name.clone(),
        fd: word[..digits].parse().unwrap_or(if digits == 0 { 0 } else { u64::MAX }),
        expand: quotes(name) == quotes(raw),
        chomp,
        content: String::new(),
    }))
}

/// Finds the beginnings of heredocs in a logical line.
pub(crate) fn find(line: &str) -> Result<Vec<Heredoc>, Fault> {
    let lexer = Lexer { raw_quotes: true, raw_escapes: true, skip_unset: true, ..Lexer::new('\\') };
    // A line that the shell's rules can't split has none.
    let words = lexer.expand(line, &NoVars).map(|e| e.words).unwrap_or_default();
    let mut found = Vec::new();
    for word in words {
        found.extend(parse(&word)?);
    }
    Ok(found)
}

/// Reads a heredoc's text; tells whether its end was found.
pub(crate) fn read(heredoc: &mut Heredoc, lines: &mut Lines<'_>) -> bool {
    while let Some(line) = lines.next() {
        let bare = line.without_end().text;
        let bare = if heredoc.chomp { bare.trim_start_matches('\t') } else { bare };
        if bare == heredoc.name {
            return true;
        }
        heredoc.content.push_str(line.text);
    }
    false
}
