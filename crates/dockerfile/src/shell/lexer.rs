//! The lexer itself: one pass over a word's characters.

use super::{ExpandError, Expansion, Lexer, MAX_DEPTH, MAX_EXPANSION, Vars, glob};
use crate::text::quote::quote;
use std::collections::BTreeSet;

/// What is gathered of the text between two ends: as one text, and split into words.
#[derive(Default)]
struct Gathered {
    text: String,
    words: Vec<String>,
    in_word: bool,
}

pub(super) struct Run<'a> {
    lexer: Lexer,
    source: &'a str,
    chars: std::iter::Peekable<std::str::Chars<'a>>,
    vars: &'a dyn Vars,
    raw_escapes: bool,
    /// The word that is being gathered. There is one for all levels of nesting, as in the reference: a word that was
    /// begun before a `${…:-word}` is lost from the list of words (not from the text).
    word: String,
    matched: BTreeSet<String>,
    unmatched: BTreeSet<String>,
    depth: usize,
    produced: usize,
}

impl<'a> Run<'a> {
    pub(super) fn new(lexer: Lexer, source: &'a str, vars: &'a dyn Vars) -> Self {
        // A byte order mark at the start is no part of a word.
        let chars = source.strip_prefix('\u{feff}').unwrap_or(source).chars().peekable();
        Self {
            lexer,
            source,
            chars,
            vars,
            raw_escapes: lexer.raw_escapes,
            word: String::new(),
            matched: BTreeSet::new(),
            unmatched: BTreeSet::new(),
            depth: 0,
            produced: 0,
        }
    }

    pub(super) fn finish(mut self) -> Result<Expansion, ExpandError> {
        let result = self.until(None, self.lexer.raw_escapes);
        let (matched, unmatched) = (self.matched, self.unmatched);
        match result {
            Ok(gathered) => Ok(Expansion { text: gathered.text, words: gathered.words, matched, unmatched }),
            Err(reason) => Err(ExpandError {
                message: format!("failed to process {}: {reason}", quote(self.source)),
                matched,
                unmatched,
            }),
        }
    }

    fn at_end(&mut self) -> bool {
        self.chars.peek().is_none()
    }

    /// Counts what is produced, at all levels.
    fn produce(&mut self, bytes: usize) -> Result<(), String> {
        self.produced = self.produced.saturating_add(bytes);
        if self.produced > 4 * MAX_EXPANSION {
            return Err(format!("the text is longer than {MAX_EXPANSION} bytes when its variables are expanded"));
        }
        Ok(())
    }

    /// Reads up to an end character, or up to the end of the word.
    fn until(&mut self, stop: Option<char>, raw_escapes: bool) -> Result<Gathered, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("substitutions are nested more than {MAX_DEPTH} deep"));
        }
        let outer_raw = std::mem::replace(&mut self.raw_escapes, raw_escapes);
        self.word.clear();
        let mut gathered = Gathered::default();
        loop {
            let Some(&c) = self.chars.peek() else {
                if let Some(stop) = stop {
                    return Err(format!("unexpected end of statement while looking for matching {stop}"));
                }
                break;
            };
            if stop == Some(c) {
                self.chars.next();
                break;
            }
            match c {
                '$' => {
                    let text = self.dollar()?;
                    self.produce(text.len())?;
                    gathered.text.push_str(&text);
                    for c in text.chars() {
                        self.add(&mut gathered, c);
                    }
                }
                '<' | '\'' | '"' if c == '<' || !self.lexer.skip_quotes => {
                    let text = match c {
                        '<' => self.angle(),
                        '\'' => self.single_quoted()?,
                        _ => self.double_quoted()?,
                    };
                    gathered.text.push_str(&text);
                    self.word.push_str(&text);
                    gathered.in_word = true;
                }
                _ => {
                    self.chars.next();
                    if c == self.lexer.escape {
                        if self.raw_escapes {
                            self.add_raw(&mut gathered, c);
                            gathered.text.push(c);
                        }
                        // An escape character at the end escapes nothing.
                        if let Some(escaped) = self.chars.next() {
                            self.add_raw(&mut gathered, escaped);
                            gathered.text.push(escaped);
                        }
                    } else {
                        self.add(&mut gathered, c);
                        gathered.text.push(c);
                    }
                }
            }
            if gathered.text.len() > MAX_EXPANSION.max(self.source.len()) {
                return Err(format!("the text is longer than {MAX_EXPANSION} bytes when its variables are expanded"));
            }
        }
        self.raw_escapes = outer_raw;
        self.depth -= 1;
        if !self.word.is_empty() {
            gathered.words.push(std::mem::take(&mut self.word));
        }
        Ok(gathered)
    }

    fn add(&mut self, gathered: &mut Gathered, c: char) {
        if !c.is_whitespace() {
            self.add_raw(gathered, c);
        } else if gathered.in_word && !self.word.is_empty() {
            gathered.words.push(std::mem::take(&mut self.word));
            gathered.in_word = false;
        }
    }

    fn add_raw(&mut self, gathered: &mut Gathered, c: char) {
        self.word.push(c);
        gathered.in_word = true;
    }

    fn single_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        self.chars.next();
        if self.lexer.raw_quotes {
            text.push('\'');
        }
        loop {
            match self.chars.next() {
                None => return Err("unexpected end of statement while looking for matching single-quote".into()),
                Some('\'') => {
                    if self.lexer.raw_quotes {
                        text.push('\'');
                    }
                    return Ok(text);
                }
                Some(c) => text.push(c),
            }
        }
    }

    fn double_quoted(&mut self) -> Result<String, String> {
        let mut text = String::new();
        self.chars.next();
        if self.lexer.raw_quotes {
            text.push('"');
        }
        loop {
            match self.chars.peek().copied() {
                None => return Err("unexpected end of statement while looking for matching double-quote".into()),
                Some('"') => {
                    self.chars.next();
                    if self.lexer.raw_quotes {
                        text.push('"');
                    }
                    return Ok(text);
                }
                Some('$') => {
                    let value = self.dollar()?;
                    self.produce(value.len())?;
                    text.push_str(&value);
                }
                Some(c) => {
                    self.chars.next();
                    let mut shown = c;
                    if c == self.lexer.escape {
                        if self.raw_escapes {
                            text.push(c);
                        }
                        match self.chars.peek().copied() {
                            None => continue,
                            // Only these can be escaped here; before others the escape character stays.
                            Some(next) if next == '"' || next == '$' || next == self.lexer.escape => {
                                self.chars.next();
                                shown = next;
                            }
                            Some(_) => {}
                        }
                    }
                    text.push(shown);
                }
            }
        }
    }

    /// Reads `<`, or `<<` with the blanks after it, which belong to the name of a heredoc.
    fn angle(&mut self) -> String {
        self.chars.next();
        if self.chars.peek() != Some(&'<') {
            return "<".into();
        }
        self.chars.next();
        let mut text = String::from("<<");
        while let Some(c) = self.chars.next_if(|c| matches!(c, '\t' | '\r' | ' ')) {
            text.push(c);
        }
        text
    }

    fn dollar(&mut self) -> Result<String, String> {
        self.chars.next();
        if self.chars.peek() != Some(&'{') {
            let name = self.name();
            if name.is_empty() {
                return Ok("$".into());
            }
            return Ok(match self.lookup(&name) {
                Some(value) => value.to_owned(),
                None if self.lexer.skip_unset => format!("${name}"),
                None => String::new(),
            });
        }
        self.chars.next();
        match self.chars.peek() {
            None => return Err("syntax error: missing '}'".into()),
            Some('{' | '}' | ':') => return Err("syntax error: bad substitution".into()),
            Some(_) => {}
        }
        let name = self.name();
        let unsupported = |modifier: &str| Err(format!("unsupported modifier ({modifier}) in substitution"));
        match self.chars.next() {
            Some('}') => Ok(match self.lookup(&name) {
                Some(value) => value.to_owned(),
                None if self.lexer.skip_unset => format!("${{{name}}}"),
                None => String::new(),
            }),
            Some(':') => match self.chars.next() {
                Some(c @ ('#' | '%')) => unsupported(&format!(":{c}")),
                c => self.modified(&name, c, true),
            },
            Some(c @ ('+' | '-' | '?' | '#' | '%')) => self.modified(&name, Some(c), false),
            Some('/') => self.replaced(&name),
            c => unsupported(&c.unwrap_or('\u{fffd}').to_string()),
        }
    }

    /// Reads the rest of `${name:-word}` and its like.
    fn modified(&mut self, name: &str, modifier: Option<char>, empty_is_unset: bool) -> Result<String, String> {
        let raw = matches!(modifier, Some('#' | '%'));
        let word = self.part('}', raw, "syntax error: missing '}'")?;
        let value = self.lookup(name);
        let c = modifier.unwrap_or('\u{fffd}');
        let shown = if empty_is_unset { format!(":{c}") } else { c.to_string() };
        if self.lexer.skip_unset && value.is_none() {
            return Ok(format!("${{{name}{shown}{word}}}"));
        }
        let given = value.filter(|v| !(empty_is_unset && v.is_empty()));
        match c {
            '-' => Ok(given.map_or(word, str::to_owned)),
            '+' => Ok(given.map_or_else(String::new, |_| word)),
            '?' => given.map(str::to_owned).ok_or_else(|| {
                let state = if value.is_none() { "unset" } else { "empty" };
                let message = if word.is_empty() { format!("is not allowed to be {state}") } else { word };
                format!("{name}: {message}")
            }),
            '%' | '#' => {
                let (pattern, longest) = match word.strip_prefix(c) {
                    Some(pattern) => (pattern, true),
                    None => (word.as_str(), false),
                };
                let value = value.unwrap_or_default();
                if c == '%' {
                    glob::trim_suffix(pattern, value, longest)
                } else {
                    glob::trim_prefix(pattern, value, longest)
                }
            }
            _ => Err(format!("unsupported modifier ({shown}) in substitution")),
        }
    }

    /// Reads the rest of `${name/pattern/replacement}`.
    fn replaced(&mut self, name: &str) -> Result<String, String> {
        let all = self.chars.next_if_eq(&'/').is_some();
        let pattern = self.part('/', true, "syntax error: missing '/' in ${}")?;
        let replacement = self.part('}', true, "syntax error: missing '}'")?;
        let value = self.lookup(name);
        if self.lexer.skip_unset && value.is_none() {
            return Ok(format!("${{{name}/{pattern}/{replacement}}}"));
        }
        glob::replace(&pattern, value.unwrap_or_default(), &replacement, all)
    }

    fn part(&mut self, stop: char, raw_escapes: bool, missing: &str) -> Result<String, String> {
        match self.until(Some(stop), raw_escapes) {
            Ok(gathered) => {
                self.produce(gathered.text.len())?;
                Ok(gathered.text)
            }
            Err(reason) if self.depth > MAX_DEPTH => Err(reason),
            Err(_) if self.at_end() => Err(missing.into()),
            Err(reason) => Err(reason),
        }
    }

    /// Reads a variable's name: a word, a number, or one special character.
    fn name(&mut self) -> String {
        let mut name = String::new();
        match self.chars.peek().copied() {
            Some(c) if c.is_numeric() && is_digit(c) => {
                while let Some(c) = self.chars.next_if(|c| is_digit(*c)) {
                    name.push(c);
                }
            }
            Some(c @ ('@' | '*' | '#' | '?' | '-' | '$' | '!')) => {
                self.chars.next();
                name.push(c);
            }
            _ => {
                while let Some(c) = self.chars.next_if(|c| c.is_alphabetic() || is_digit(*c) || *c == '_') {
                    name.push(c);
                }
            }
        }
        name
    }

    fn lookup(&mut self, name: &str) -> Option<&'a str> {
        let value = self.vars.get(name);
        let names = if value.is_some() { &mut self.matched } else { &mut self.unmatched };
        if !names.contains(name) {
            names.insert(name.to_owned());
        }
        value
    }
}

/// Decimal digits of all scripts, as Unicode has them.
fn is_digit(c: char) -> bool {
    c.is_ascii_digit() || (!c.is_ascii() && c.is_numeric() && !c.is_alphabetic() && unicode_digit(c))
}

/// Tells the decimal digits from other numbers (fractions, circled ones): they come in runs of ten.
fn unicode_digit(c: char) -> bool {
    const ZEROS: [u32; 36] = [
        0x660, 0x6f0, 0x7c0, 0x966, 0x9e6, 0xa66, 0xae6, 0xb66, 0xbe6, 0xc66, 0xce6, 0xd66, 0xde6, 0xe50, 0xed0, 0xf20,
        0x1040, 0x1090, 0x17e0, 0x1810, 0x1946, 0x19d0, 0x1a80, 0x1a90, 0x1b50, 0x1bb0, 0x1c40, 0x1c50, 0xa620, 0xa8d0,
        0xa900, 0xa9d0, 0xa9f0, 0xaa50, 0xabf0, 0xff10,
    ];
    ZEROS.iter().any(|zero| (*zero..*zero + 10).contains(&u32::from(c)))
}
