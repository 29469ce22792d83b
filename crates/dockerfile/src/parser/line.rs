//! A logical line: keyword, flags, and the rest by the instruction's own rules.

use super::Node;
use super::lines::Logical;
use crate::fault::Fault;
use crate::text::json::{self, NotExecForm};
use crate::text::quote::{decode, is_blank, is_space_byte, quote};
use std::borrow::Cow;
use std::ops::Range;

/// A piece of the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Word {
    /// What it says.
    pub text: String,
    /// Where it is in the source text, in bytes. A word that goes over the end of a line has the escape character and the
    /// line's end within it. Empty for what comes from elsewhere (the triggers of an image).
    pub bytes: Range<usize>,
}

/// How the rest of an instruction's line is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    /// Exec form, else the whole line as one word.
    Command,
    /// Exec form, else words.
    Paths,
    /// `KEY=value …`, or `KEY value`.
    Pairs,
    /// Words of which some are `KEY=value`.
    Names,
    /// Words.
    Words,
    /// The whole line as one word.
    Text,
    /// A type and a command.
    Health,
    /// Another instruction.
    Trigger,
    /// No instruction that is known.
    Unknown,
}

/// Tells how the rest of an instruction is read.
fn form_of(name: &str) -> Form {
    match name {
        "add" | "copy" | "volume" => Form::Paths,
        "arg" => Form::Names,
        "cmd" | "entrypoint" | "run" | "shell" => Form::Command,
        "env" | "label" => Form::Pairs,
        "expose" | "from" => Form::Words,
        "healthcheck" => Form::Health,
        "maintainer" | "stopsignal" | "user" | "workdir" => Form::Text,
        "onbuild" => Form::Trigger,
        _ => Form::Unknown,
    }
}

/// A part of a logical line: its text and where it begins.
#[derive(Clone)]
struct Part<'a> {
    text: Cow<'a, str>,
    start: usize,
}

impl Part<'_> {
    fn trim(&self) -> Part<'_> {
        let skip = self.text.len() - self.text.trim_start().len();
        Part { text: Cow::Borrowed(self.text.trim()), start: self.start + skip }
    }
}

/// Parses a logical line.
pub(super) fn parse_node(line: &Logical, escape: char) -> Result<Node, Fault> {
    let mut rest = Part { text: Cow::Borrowed(line.text.as_str()), start: 0 };
    let (mut node, args) = split(line, &rest, escape);
    if node.name() != "onbuild" {
        let name = node.name();
        fill(&mut node, &args, form_of(&name), line, escape)?;
        return Ok(node);
    }
    // An ONBUILD's instruction may be an ONBUILD again, to any depth.
    let mut args = args.into_owned_part();
    while !args.text.is_empty() {
        rest = args;
        let (mut trigger, inner) = split(line, &rest, escape);
        let name = trigger.name();
        let form = form_of(&name);
        let inner = inner.into_owned_part();
        if form != Form::Trigger {
            fill(&mut trigger, &inner, form, line, escape)?;
            node.triggers.push(trigger);
            break;
        }
        node.triggers.push(trigger);
        args = inner;
    }
    Ok(node)
}

impl Part<'_> {
    fn into_owned_part<'b>(self) -> Part<'b> {
        Part { text: Cow::Owned(self.text.into_owned()), start: self.start }
    }
}

/// Splits keyword and flags off.
fn split<'a>(line: &Logical, part: &'a Part<'_>, escape: char) -> (Node, Part<'a>) {
    let text = part.trim();
    let (start, text) = (text.start, part.text.trim());
    let keyword_len = text.find(is_blank).unwrap_or(text.len());
    let after = &text[keyword_len..];
    let args_start = keyword_len + (after.len() - after.trim_start_matches(is_blank).len());
    let (flags, args_at) = take_flags(&text.as_bytes()[args_start..], escape);
    let args = Part {
        text: match &text.as_bytes()[args_start + args_at..] {
            bytes if text.is_char_boundary(args_start + args_at) => {
                // Cut at a boundary, so it is text as before.
                Cow::Borrowed(std::str::from_utf8(bytes).unwrap_or_default())
            }
            bytes => Cow::Owned(decode(bytes).into_owned()),
        },
        start: start + args_start + args_at,
    };
    let args = Part { start: args.trim().start, text: Cow::Owned(args.text.trim().to_owned()) };
    let word =
        |text: String, range: Range<usize>| Word { text, bytes: line.range(start + range.start..start + range.end) };
    let node = Node {
        keyword: word(text[..keyword_len].to_owned(), 0..keyword_len),
        original: part.text.clone().into_owned(),
        flags: flags
            .into_iter()
            .map(|(text, range)| word(text, args_start + range.start..args_start + range.end))
            .collect(),
        ..Node::default()
    };
    (node, args)
}

/// Reads flags byte by byte (each byte is taken for a character, as the reference does) and returns them with where the
/// rest begins.
fn take_flags(line: &[u8], escape: char) -> (Vec<(String, Range<usize>)>, usize) {
    let escape = u8::try_from(escape).unwrap_or(b'\\');
    let mut flags = Vec::new();
    let mut pos = 0;
    loop {
        while line.get(pos).is_some_and(|b| is_space_byte(*b)) {
            pos += 1;
        }
        if !line[pos..].starts_with(b"--") {
            return (flags, pos);
        }
        let start = pos;
        let mut word = String::new();
        let mut was_quoted = false;
        let mut quote: Option<u8> = None;
        while let Some(&byte) = line.get(pos) {
            if let Some(open) = quote {
                if byte == open {
                    quote = None;
                    pos += 1;
                    continue;
                }
            } else if is_space_byte(byte) {
                break;
            } else if matches!(byte, b'\'' | b'"') {
                quote = Some(byte);
                was_quoted = true;
                pos += 1;
                continue;
            }
            let mut byte = byte;
            if byte == escape {
                pos += 1;
                match line.get(pos) {
                    Some(next) => byte = *next,
                    None => break,
                }
            }
            word.push(char::from(byte));
            pos += 1;
        }
        let at_end = pos >= line.len();
        if word == "--" {
            return (flags, pos.min(line.len()));
        }
        if was_quoted || !word.is_empty() {
            flags.push((word, start..pos.min(line.len())));
        }
        if at_end {
            return (flags, line.len());
        }
    }
}

fn fill(node: &mut Node, args: &Part<'_>, form: Form, line: &Logical, escape: char) -> Result<(), Fault> {
    let text = args.text.as_ref();
    let word = |text: &str, range: Range<usize>| Word {
        text: text.to_owned(),
        bytes: line.range(args.start + range.start..args.start + range.end),
    };
    let whole = || word(text, 0..text.len());
    match form {
        Form::Unknown => node.words = vec![Word { text: String::new(), bytes: whole().bytes }],
        Form::Trigger => {}
        Form::Text => {
            if !text.is_empty() {
                node.words = vec![whole()];
            }
        }
        Form::Words => node.words = split_blank(text, &word),
        Form::Names => node.words = words(text, escape).into_iter().map(|(t, r)| word(&t, r)).collect(),
        Form::Command | Form::Paths => {
            if text.is_empty() {
                return Ok(());
            }
            match exec_form(text, whole().bytes)? {
                Some(strings) => {
                    node.words = strings.into_iter().map(|text| Word { text, bytes: whole().bytes }).collect();
                    node.is_json = true;
                }
                None if form == Form::Command => node.words = vec![whole()],
                None => node.words = split_blank(text, &word),
            }
        }
        Form::Health => {
            let type_len = text.bytes().position(is_space_byte).unwrap_or(text.len());
            if type_len == 0 {
                return Ok(());
            }
            let bytes = text.as_bytes();
            let spaces = bytes[type_len..].iter().take_while(|b| is_space_byte(**b)).count();
            let command = decode(&bytes[type_len + spaces..]).into_owned();
            let kind = decode(&bytes[..type_len]).into_owned();
            node.words.push(word(&kind, 0..type_len));
            if command.is_empty() {
                return Ok(());
            }
            let range = line.range(args.start + type_len + spaces..args.start + text.len());
            match exec_form(&command, range.clone())? {
                Some(strings) => {
                    node.words.extend(strings.into_iter().map(|text| Word { text, bytes: range.clone() }));
                    node.is_json = true;
                }
                None => node.words.push(Word { text: command, bytes: range }),
            }
        }
        Form::Pairs => node.words = pairs(node, text, escape, &word)?,
    }
    Ok(())
}

fn exec_form(text: &str, bytes: Range<usize>) -> Result<Option<Vec<String>>, Fault> {
    match json::parse_strings(text) {
        Ok(strings) => Ok(Some(strings)),
        Err(NotExecForm::NotArray) => Ok(None),
        Err(NotExecForm::NotStrings) => {
            Err(Fault::new("when using JSON array syntax, arrays must be comprised of strings only").on(Some(bytes)))
        }
    }
}

fn split_blank(text: &str, word: &impl Fn(&str, Range<usize>) -> Word) -> Vec<Word> {
    let mut out = Vec::new();
    if text.is_empty() {
        return out;
    }
    let mut start = 0;
    loop {
        let rest = &text[start..];
        let len = rest.find(is_blank).unwrap_or(rest.len());
        out.push(word(&rest[..len], start..start + len));
        let after = &rest[len..];
        if after.is_empty() {
            return out;
        }
        start += len + (after.len() - after.trim_start_matches(is_blank).len());
    }
}

/// Splits at white space that is neither quoted nor escaped; quotes and escapes are kept.
fn words(text: &str, escape: char) -> Vec<(String, Range<usize>)> {
    let mut out = Vec::new();
    let mut chars = text.char_indices().peekable();
    while let Some((start, first)) = chars.next_if(|_| true) {
        if first.is_whitespace() {
            continue;
        }
        let mut word = String::new();
        let mut was_quoted = false;
        let mut quote: Option<char> = None;
        let mut current = Some((start, first));
        let mut end = text.len();
        while let Some((at, c)) = current {
            if quote.is_none() && c.is_whitespace() {
                end = at;
                break;
            }
            match quote {
                None if matches!(c, '\'' | '"') => {
                    quote = Some(c);
                    was_quoted = true;
                }
                Some(open) if c == open => quote = None,
                _ => {}
            }
            // Within single quotes nothing can be escaped.
            if c == escape && quote != Some('\'') {
                match chars.next() {
                    None => break,
                    Some((_, escaped)) => {
                        word.push(c);
                        word.push(escaped);
                    }
                }
            } else {
                word.push(c);
            }
            current = chars.next();
        }
        if was_quoted || !word.is_empty() {
            out.push((word, start..end));
        }
    }
    out
}

/// Reads `KEY=value …`, or `KEY value` in the old form, as triples.
fn pairs(
    node: &Node,
    text: &str,
    escape: char,
    word: &impl Fn(&str, Range<usize>) -> Word,
) -> Result<Vec<Word>, Fault> {
    let list = words(text, escape);
    let Some((first, first_range)) = list.first() else { return Ok(Vec::new()) };
    if !first.contains('=') {
        let key_len = text.find(is_blank).unwrap_or(text.len());
        let after = &text[key_len..];
        let value = after.trim_start_matches(is_blank);
        if after.is_empty() {
            let name = node.name().to_uppercase();
            let fault = Fault::new(format!("{name} must have two arguments"));
            return Err(fault.on(Some(word(first, first_range.clone()).bytes)));
        }
        let value_at = text.len() - value.len();
        return Ok(vec![
            word(&text[..key_len], 0..key_len),
            word(value, value_at..text.len()),
            word("", text.len()..text.len()),
        ]);
    }
    let mut out = Vec::with_capacity(3 * list.len());
    for (pair, range) in list {
        let Some((key, value)) = pair.split_once('=') else {
            let message = format!("Syntax error - can't find = in {}. Must be of the form: name=value", quote(&pair));
            return Err(Fault::new(message).on(Some(word(&pair, range).bytes)));
        };
        let sep = range.start + key.len();
        out.push(word(key, range.start..sep));
        out.push(word(value, sep + 1..range.end.max(sep + 1)));
        out.push(word("=", sep..sep + 1));
    }
    Ok(out)
}
