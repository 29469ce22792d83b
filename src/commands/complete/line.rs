//! A command line with a place in it: which command, what was given, and what stands at the place.

use clap::{Arg, Command};
use std::collections::BTreeMap;

/// What may stand at the place.
pub enum Place<'a> {
    /// A flag.
    Flag,
    /// A flag's value, behind a part of the word that isn't the value's (`--target=`).
    Value {
        /// The flag.
        arg: &'a Arg,
        /// The part.
        prefix: String,
    },
    /// A positional argument, or a command as well.
    Word {
        /// Whether a command fits.
        commands: bool,
    },
}

/// A line that was read.
pub struct Line<'a> {
    /// The innermost command.
    pub command: &'a Command,
    /// The flags' values, by the flag's ID.
    pub values: BTreeMap<&'a str, Vec<String>>,
    /// The positional arguments, but the one at the place.
    pub positionals: Vec<String>,
    /// The word at the place.
    pub current: String,
    /// What may stand there.
    pub place: Place<'a>,
    /// It begins with `bud help`.
    pub is_help: bool,
}

impl<'a> Line<'a> {
    /// Reads the words; the one at `index` (1 or more) is being typed.
    pub fn read(root: &'a Command, words: &[String], index: usize) -> Self {
        let current = words.get(index).cloned().unwrap_or_default();
        let mut line = Self {
            command: root,
            values: BTreeMap::new(),
            positionals: Vec::new(),
            current,
            place: Place::Word { commands: true },
            is_help: index > 1 && words.get(1).is_some_and(|word| word == "help"),
        };
        let mut reader = Reader::default();
        for word in words.iter().take(index).skip(if line.is_help { 2 } else { 1 }) {
            reader.take(&mut line, word, true);
        }
        line.place = reader.place(&line);
        // What follows tells of contexts and files too, but of no commands.
        reader.waiting = None;
        for word in words.iter().skip(index + 1) {
            reader.take(&mut line, word, false);
        }
        line
    }

    /// Returns the last value of a flag.
    pub fn value(&self, id: &str) -> Option<&str> {
        self.values.get(id).and_then(|values| values.last()).map(String::as_str)
    }
}

#[derive(Default)]
struct Reader<'a> {
    /// A flag whose value is the next word.
    waiting: Option<&'a Arg>,
    /// There was something that no command can follow.
    begun: bool,
    /// There was a `--`.
    only_words: bool,
}

impl<'a> Reader<'a> {
    fn take(&mut self, line: &mut Line<'a>, word: &str, commands: bool) {
        if let Some(arg) = self.waiting.take() {
            line.values.entry(arg.get_id().as_str()).or_default().push(word.to_owned());
        } else if !self.only_words && word == "--" {
            self.only_words = true;
            self.begun = true;
        } else if !self.only_words && word.len() > 1 && word.starts_with('-') {
            self.begun = true;
            let (arg, value) = flag(line.command, word);
            for given in arg.iter().chain(&value.others) {
                line.values.entry(given.get_id().as_str()).or_default();
            }
            match (arg, value.text) {
                (Some(arg), Some((_, text))) => line.values.entry(arg.get_id().as_str()).or_default().push(text),
                (Some(arg), None) if wants_next(arg) => self.waiting = Some(arg),
                _ => {}
            }
        } else if commands
            && !self.begun
            && let Some(sub) = line.command.find_subcommand(word)
        {
            line.command = sub;
        } else {
            self.begun = true;
            line.positionals.push(word.to_owned());
        }
    }

    fn place(&self, line: &Line<'a>) -> Place<'a> {
        if let Some(arg) = self.waiting {
            return Place::Value { arg, prefix: String::new() };
        }
        if self.only_words || !line.current.starts_with('-') {
            return Place::Word { commands: !self.begun };
        }
        match flag(line.command, &line.current) {
            (Some(arg), Value { text: Some((at, _)), .. }) => {
                Place::Value { arg, prefix: line.current[..at].to_owned() }
            }
            _ => Place::Flag,
        }
    }
}

/// What a word that begins with a dash says besides its last flag.
#[derive(Default)]
struct Value<'a> {
    /// The value in the same word, and where it begins.
    text: Option<(usize, String)>,
    /// Flags before the last (`-qf`).
    others: Vec<&'a Arg>,
}

fn takes_value(arg: &Arg) -> bool {
    arg.get_action().takes_values()
}

/// Tells whether the value is the next word.
fn wants_next(arg: &Arg) -> bool {
    takes_value(arg) && !arg.is_require_equals_set()
}

fn flag<'a>(command: &'a Command, word: &str) -> (Option<&'a Arg>, Value<'a>) {
    let mut value = Value::default();
    if let Some(long) = word.strip_prefix("--") {
        let (name, text) = long.split_once('=').map_or((long, None), |(name, text)| (name, Some(text)));
        let is_named = |arg: &&Arg| {
            arg.get_long() == Some(name) || arg.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        };
        value.text = text.map(|text| (name.len() + 3, text.to_owned()));
        return (command.get_arguments().find(is_named), value);
    }
    for (at, short) in word.char_indices().skip(1) {
        let Some(arg) = command.get_arguments().find(|arg| arg.get_short() == Some(short)) else { break };
        let rest = at + short.len_utf8();
        if takes_value(arg) && !arg.is_require_equals_set() {
            let begins = rest + usize::from(word[rest..].starts_with('='));
            value.text = (rest < word.len()).then(|| (begins, word[begins..].to_owned()));
            return (Some(arg), value);
        }
        value.others.push(arg);
    }
    (None, value)
}

/// Puts together what bash took apart: with its usual settings `--target=dev` is three words, as is `foo:latest`; and quotes are
/// still there. Returns the words, the index, and how much of the word at the index bash leaves alone.
pub fn join_bash(words: &[String], index: usize) -> (Vec<String>, usize, usize) {
    let is_break = |word: &str| !word.is_empty() && word.chars().all(|c| c == '=' || c == ':');
    let (mut out, mut at, mut cut) = (Vec::<String>::new(), 0, 0);
    let mut glue = false;
    for (n, word) in words.iter().enumerate() {
        let breaks = is_break(word);
        let text = unquote(word);
        let before = match out.last_mut() {
            Some(last) if n > 1 && (breaks || glue) => {
                let before = last.len();
                last.push_str(&text);
                before
            }
            _ => {
                out.push(text.clone());
                0
            }
        };
        glue = breaks;
        if n == index {
            at = out.len() - 1;
            cut = if breaks { before + text.len() } else { before };
            // What follows is another word.
            glue = false;
        }
    }
    if index >= words.len() {
        at = out.len();
    }
    (out, at, cut)
}

fn unquote(word: &str) -> String {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' if quote != Some('\'') => out.extend(chars.next()),
            '\'' | '"' if quote.is_none() => quote = Some(c),
            _ if quote == Some(c) => quote = None,
            _ => out.push(c),
        }
    }
    out
}
