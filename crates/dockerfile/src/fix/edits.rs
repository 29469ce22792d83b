//! For each rule, the edits that could mend a place, the best first.

use crate::lint::list::LintWarning;
use crate::parser::{Dockerfile, Node, Word};
use std::ops::Range;

/// What is to be replaced, and by what.
type Edit = (Range<usize>, String);

/// A way to mend a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) edits: Vec<Edit>,
    /// The rule asks for another meaning than the text had.
    pub(super) changes_meaning: bool,
}

fn same(edits: Vec<Edit>) -> Candidate {
    Candidate { edits, changes_meaning: false }
}

fn other(edits: Vec<Edit>) -> Candidate {
    Candidate { edits, changes_meaning: true }
}

/// Finds the ways to mend what a rule found; none if a person must decide.
pub(super) fn candidates(text: &str, file: &Dockerfile, warning: &LintWarning) -> Vec<Candidate> {
    let Some(&line) = warning.lines.first() else { return Vec::new() };
    let Some(node) = file.nodes.iter().find(|node| (node.lines.start..=node.lines.end).contains(&line)) else {
        return Vec::new();
    };
    let escape = file.escape;
    match warning.rule.as_str() {
        "StageNameCasing" => plain_word(text, node, 2).map(|w| vec![same(vec![recased(w, true)])]),
        "FromAsCasing" => {
            let lower = node.keyword.text == node.keyword.text.to_lowercase();
            plain_word(text, node, 1).map(|w| vec![same(vec![recased(w, lower)])])
        }
        "ConsistentInstructionCasing" => {
            let lower = warning.message.ends_with("(lowercase)");
            is_plain(text, &node.keyword).then(|| vec![same(vec![recased(&node.keyword, lower)])])
        }
        "LegacyKeyValueFormat" => legacy_pair(text, node, escape),
        "JSONArgsRecommended" => exec_form(text, node, escape),
        "WorkdirRelativePath" => absolute_dir(text, node),
        "RedundantTargetPlatform" => drop_platform(text, node).map(|edit| vec![same(vec![edit])]),
        "FromPlatformFlagConstDisallowed" => drop_platform(text, node).map(|edit| vec![other(vec![edit])]),
        "MaintainerDeprecated" => author_label(text, node, escape),
        "ExposeProtoCasing" => ports(text, node, |word| {
            let (port, protocol) = word.split_once('/')?;
            Some(format!("{port}/{}", protocol.to_lowercase()))
        }),
        "ExposeInvalidFormat" => ports(text, node, |word| Some(word.rsplit_once(':')?.1.to_owned())),
        "NoEmptyContinuation" => empty_lines(text, node, line),
        "InvalidDefinitionDescription" => empty_line_before(text, node),
        _ => None,
    }
    .unwrap_or_default()
}

/// Tells whether a word stands in the source as it reads: no joined lines, no quotes taken away.
fn is_plain(text: &str, word: &Word) -> bool {
    text.get(word.bytes.clone()) == Some(word.text.as_str())
}

fn plain_word<'a>(text: &str, node: &'a Node, index: usize) -> Option<&'a Word> {
    node.words.get(index).filter(|word| is_plain(text, word))
}

fn recased(word: &Word, lower: bool) -> Edit {
    let with = if lower { word.text.to_lowercase() } else { word.text.to_uppercase() };
    (word.bytes.clone(), with)
}

/// Tells whether a place has a comment line in it, which an edit would lose.
fn has_comment(text: &str, place: &Range<usize>) -> bool {
    text.get(place.clone()).is_none_or(|part| part.lines().skip(1).any(|line| line.trim_start().starts_with('#')))
}

/// `KEY value` to `KEY=value`.
fn legacy_pair(text: &str, node: &Node, escape: char) -> Option<Vec<Candidate>> {
    let [key, value, _] = node.words.as_slice() else { return None };
    let place = key.bytes.end..value.bytes.end;
    if !is_plain(text, key) || has_comment(text, &place) || key.text.contains(['=', '"', '\'']) {
        return None;
    }
    let v = value.text.as_str();
    let is_bare = !v.is_empty() && !v.contains(|c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '='));
    let quoted = format!("\"{v}\"");
    let mut forms = Vec::new();
    if is_bare {
        forms.push(v.to_owned());
    }
    if !v.contains(['"', '\'']) && !v.contains(escape) {
        forms.push(quoted.clone());
    }
    forms.push(v.to_owned());
    // White space and quotes can always be escaped one by one.
    forms.push(quote_gaps(v, escape));
    forms.push(format!("\"{}\"", v.replace('"', &format!("{escape}\""))));
    Some(forms.into_iter().map(|form| same(vec![(place.clone(), format!("={form}"))])).collect())
}

/// Escapes white space that isn't in quotes.
fn quote_gaps(value: &str, escape: char) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match quote {
            None if c == escape => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            None if c.is_whitespace() => out.push(escape),
            None if matches!(c, '"' | '\'') => quote = Some(c),
            Some('"') if c == escape => {
                out.push(c);
                out.extend(chars.next());
                continue;
            }
            Some(q) if c == q => quote = None,
            _ => {}
        }
        out.push(c);
    }
    out
}

/// The shell form of `CMD` and `ENTRYPOINT` to the exec form.
fn exec_form(text: &str, node: &Node, escape: char) -> Option<Vec<Candidate>> {
    let first = node.words.first()?;
    let last = node.words.last()?;
    let place = first.bytes.start..last.bytes.end;
    if escape != '\\' || node.words.len() != 1 || has_comment(text, &place) || first.text.is_empty() {
        return None;
    }
    let line = first.text.as_str();
    let in_shell = array(["/bin/sh", "-c", line].into_iter());
    let mut list = Vec::new();
    if let Some(words) = plain_words(line) {
        list.push(other(vec![(place.clone(), array(words.iter().map(String::as_str)))]));
    }
    // The same command as before, said in full.
    list.push(same(vec![(place, in_shell)]));
    Some(list)
}

fn array<'a>(words: impl Iterator<Item = &'a str>) -> String {
    let words: Vec<String> = words.map(|word| serde_json::Value::from(word).to_string()).collect();
    format!("[{}]", words.join(", "))
}

/// Splits a command that needs no shell into its words: nothing to expand, nothing built in.
fn plain_words(line: &str) -> Option<Vec<String>> {
    const BUILT_IN: [&str; 26] = [
        ".", ":", "alias", "bg", "cd", "command", "eval", "exit", "export", "fg", "hash", "if", "jobs", "local",
        "read", "readonly", "return", "set", "shift", "source", "trap", "type", "ulimit", "umask", "unset", "wait",
    ];
    let mut words: Vec<String> = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = line.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' => words.extend(word.take()),
            '"' | '\'' => {
                let word = word.get_or_insert_default();
                loop {
                    match chars.next()? {
                        end if end == c => break,
                        '$' | '`' | '\\' if c == '"' => return None,
                        inner => word.push(inner),
                    }
                }
            }
            '$' | '`' | '\\' | '|' | '&' | ';' | '<' | '>' | '(' | ')' | '{' | '}' | '[' | ']' | '*' | '?' | '#'
            | '~' | '!' | '\n' | '\r' => return None,
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if words.first().is_some_and(|first| first == "exec") {
        words.remove(0);
    }
    let first = words.first()?;
    let needs_shell =
        first.is_empty() || first.contains('=') || first.starts_with('-') || BUILT_IN.contains(&first.as_str());
    (!needs_shell).then_some(words)
}

/// `WORKDIR app` to `WORKDIR /app`, which it is unless the base image says otherwise.
fn absolute_dir(text: &str, node: &Node) -> Option<Vec<Candidate>> {
    let word = node.words.first()?;
    let written = text.get(word.bytes.clone())?;
    let at = word.bytes.start + usize::from(written.starts_with(['"', '\'']));
    let rest = &text[at..word.bytes.end];
    let end = if rest.starts_with("./") { at + 2 } else { at };
    let mut list = vec![same(vec![(at..end, "/".into())])];
    if written == "." {
        list.insert(0, same(vec![(word.bytes.clone(), "/".into())]));
    }
    Some(list)
}

/// Takes `--platform` away, with the blanks after it.
fn drop_platform(text: &str, node: &Node) -> Option<Edit> {
    let flag = node.flags.iter().find(|flag| flag.text.starts_with("--platform="))?;
    let after = text.get(flag.bytes.end..)?;
    let blanks = after.len() - after.trim_start_matches([' ', '\t']).len();
    Some((flag.bytes.start..flag.bytes.end + blanks, String::new()))
}

/// `MAINTAINER` to the label that took its place.
fn author_label(text: &str, node: &Node, escape: char) -> Option<Vec<Candidate>> {
    let (first, last) = (node.words.first()?, node.words.last()?);
    let place = node.keyword.bytes.start..last.bytes.end;
    if has_comment(text, &place) || node.words.len() != 1 {
        return None;
    }
    let name = first.text.trim();
    let name = name.strip_prefix('"').and_then(|name| name.strip_suffix('"')).unwrap_or(name);
    let mut value = String::new();
    for c in name.chars() {
        if matches!(c, '"' | '$') || c == escape {
            value.push(escape);
        }
        value.push(c);
    }
    let keyword = if node.keyword.text == node.keyword.text.to_lowercase() { "label" } else { "LABEL" };
    Some(vec![other(vec![(place, format!("{keyword} org.opencontainers.image.authors=\"{value}\""))])])
}

/// Changes the words of an `EXPOSE` that have no variables.
fn ports(text: &str, node: &Node, change: impl Fn(&str) -> Option<String>) -> Option<Vec<Candidate>> {
    let edits: Vec<Edit> = node
        .words
        .iter()
        .filter(|word| is_plain(text, word) && !word.text.contains(['$', '"', '\'']))
        .filter_map(|word| {
            let with = change(&word.text)?;
            (with != word.text).then(|| (word.bytes.clone(), with))
        })
        .collect();
    (!edits.is_empty()).then(|| vec![same(edits)])
}

/// Takes the empty lines out of a logical line that ends with `last`.
fn empty_lines(text: &str, node: &Node, last: u32) -> Option<Vec<Candidate>> {
    let mut edits = Vec::new();
    let mut at = 0;
    for (number, line) in (1..).zip(text.split_inclusive('\n')) {
        let place = at..at + line.len();
        at = place.end;
        if number > node.lines.start && number <= last && line.trim().is_empty() {
            edits.push((place, String::new()));
        }
    }
    (!edits.is_empty()).then(|| vec![same(edits)])
}

/// Parts a comment from what it isn't about.
fn empty_line_before(text: &str, node: &Node) -> Option<Vec<Candidate>> {
    let at = text.get(..node.keyword.bytes.start)?.rfind('\n')? + 1;
    let end = if text[..at].ends_with("\r\n") { "\r\n" } else { "\n" };
    // An empty line is what people take for a gap; where it isn't one, an empty comment is.
    Some(vec![same(vec![(at..at, end.into())]), same(vec![(at..at, format!("#{end}"))])])
}
