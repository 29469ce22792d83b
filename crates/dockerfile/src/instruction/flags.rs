//! Flags of instructions.

use crate::fault::Fault;
use crate::parser::Word;
use crate::text::suggest::{by_likeness, with_nearest};

/// What kind of value a flag has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlagKind {
    Bool,
    Text,
    List,
}

/// Flags that were given.
#[derive(Debug, Default)]
pub(super) struct Flags {
    given: Vec<(String, String)>,
}

impl Flags {
    /// Reads flags.
    pub(super) fn parse(words: &[Word], known: &[(&str, FlagKind)]) -> Result<Self, Fault> {
        let mut flags = Self::default();
        for word in words {
            flags.add(&word.text, known).map_err(|message| Fault::new(message).on(Some(word.bytes.clone())))?;
        }
        Ok(flags)
    }

    fn add(&mut self, text: &str, known: &[(&str, FlagKind)]) -> Result<(), String> {
        let Some(bare) = text.strip_prefix("--") else { return Err(format!("arg should start with -- : {text}")) };
        let (name, value) = match bare.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (bare, None),
        };
        let shown = format!("--{name}");
        let Some((_, kind)) = known.iter().find(|(known, _)| *known == name) else {
            let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
            return Err(with_nearest(format!("unknown flag: {shown}"), name, &by_likeness(name, &names), true));
        };
        if *kind != FlagKind::List && self.has(name) {
            return Err(format!("duplicate flag specified: {shown}"));
        }
        let missing = || format!("missing a value on flag: {shown}");
        let value = match (kind, value) {
            (FlagKind::Bool, None) => "true".to_owned(),
            (FlagKind::Bool, Some("")) | (_, None) => return Err(missing()),
            (FlagKind::Bool, Some(value)) => match value.to_lowercase().as_str() {
                v @ ("true" | "false") => v.to_owned(),
                _ => return Err(format!("expecting boolean value for flag {shown}, not: {value}")),
            },
            (_, Some(value)) => value.to_owned(),
        };
        self.given.push((name.to_owned(), value));
        Ok(())
    }

    fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| given == name)
    }

    /// Returns the value, or nothing.
    pub(super) fn text(&self, name: &str) -> String {
        self.given.iter().find(|(given, _)| given == name).map(|(_, v)| v.clone()).unwrap_or_default()
    }

    /// Returns whether it was said to be true or false, if it was given.
    pub(super) fn given_bool(&self, name: &str) -> Option<bool> {
        self.has(name).then(|| self.text(name) == "true")
    }

    /// Returns whether it was said to be true.
    pub(super) fn bool(&self, name: &str) -> bool {
        self.given_bool(name) == Some(true)
    }

    /// Returns all values of a flag that may be repeated.
    pub(super) fn list(&self, name: &str) -> Vec<String> {
        self.given.iter().filter(|(given, _)| given == name).map(|(_, v)| v.clone()).collect()
    }

    /// Returns the names of the flags given, sorted.
    pub(super) fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.given.iter().map(|(name, _)| name.clone()).collect();
        names.sort();
        names.dedup();
        names
    }
}
