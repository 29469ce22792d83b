//! Parser directives: `# syntax=…`, `# escape=…`, `# check=…` at the top of a text.

use crate::fault::Fault;
use crate::text::json;

/// A directive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directive {
    /// `syntax`, `escape` or `check`.
    pub name: String,
    /// What stands after `=`.
    pub value: String,
    /// The line, from 1; 0 if it isn't known.
    pub line: u32,
}

/// Reads directives line by line; they end with the first line that is none.
#[derive(Clone, Debug, Default)]
pub struct Directives {
    line: u32,
    seen: Vec<String>,
    done: bool,
}

impl Directives {
    /// Reads a line, without white space before it.
    pub(crate) fn read_line(&mut self, line: &str) -> Result<Option<Directive>, Fault> {
        self.read(line, "#")
    }

    fn read(&mut self, line: &str, comment: &str) -> Result<Option<Directive>, Fault> {
        self.line += 1;
        if self.done {
            return Ok(None);
        }
        let Some((name, value)) = line.strip_prefix(comment).and_then(split) else {
            self.done = true;
            return Ok(None);
        };
        if self.seen.contains(&name) {
            return Err(Fault::new(format!("only one {name} parser directive can be used")));
        }
        self.seen.push(name.clone());
        Ok(Some(Directive { name, value: value.to_owned(), line: self.line }))
    }
}

/// Splits the text of a directive's comment.
fn split(text: &str) -> Option<(String, &str)> {
    let space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
    let text = text.trim_start();
    let (name, value) = text.split_once('=')?;
    let name = name.trim_end_matches(space).to_lowercase();
    let value = value.trim_matches(space);
    let known = matches!(name.as_str(), "syntax" | "escape" | "check");
    (known && !value.is_empty() && !value.contains('\n')).then_some((name, value))
}

/// Returns the directive of that name at the top of a text, after a `#!` line if there is one.
#[must_use]
pub fn find(text: &str, name: &str) -> Option<Directive> {
    find_with(text, name, "#")
}

fn find_with(text: &str, name: &str, comment: &str) -> Option<Directive> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut line, mut rest) = (0, text);
    if text.starts_with("#!") {
        line = 1;
        rest = text.split_once('\n').map_or("", |(_, rest)| rest);
    }
    let mut directives = Directives { line, ..Directives::default() };
    for line in rest.split('\n') {
        let line = line.strip_suffix('\r').unwrap_or(line);
        match directives.read(line, comment) {
            Ok(Some(directive)) if directive.name == name => return Some(directive),
            Ok(Some(_)) => {}
            _ => return None,
        }
    }
    None
}

/// Returns what names the front end of a text: `# syntax=`, `// syntax=`, or `{"syntax": …}`.
#[must_use]
pub fn find_syntax(text: &str) -> Option<Directive> {
    find_with(text, "syntax", "#").or_else(|| find_with(text, "syntax", "//")).or_else(|| {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (line, rest) = match text.strip_prefix("#!") {
            Some(rest) => (1, rest.split_once('\n').map_or("", |(_, rest)| rest)),
            None => (0, text),
        };
        let value = json::string_member(rest, "syntax")?;
        Some(Directive { name: "syntax".into(), value, line })
    })
}

/// Returns a `check` directive in a comment directly above an instruction.
pub(crate) fn find_in_comment(comment: &str) -> Option<String> {
    let (name, value) = split(comment)?;
    (name == "check").then(|| value.to_owned())
}
