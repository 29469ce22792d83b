//! The linter: which rules are on, and what they found.

pub(crate) mod list;
pub mod rules;

use crate::fault::Fault;
use crate::frontend::Span;
use crate::parser::directive;
use crate::text::number::parse_bool;
use crate::text::quote::quote;
pub use list::{LintWarning, lint};
pub use rules::Rule;
use std::cell::RefCell;
use std::rc::Rc;

/// Which rules are on: `skip=A,B;error=true;experimental=C`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    /// No rule but the experimental ones that are asked for.
    pub skip_all: bool,
    /// Rules that are off.
    pub skip: Vec<String>,
    /// All experimental rules are on.
    pub experimental_all: bool,
    /// Experimental rules that are on.
    pub experimental: Vec<String>,
    /// A warning ends the build.
    pub as_error: bool,
}

impl Settings {
    /// Reads settings.
    ///
    /// # Errors
    ///
    /// The option that is unknown or has no right value.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut settings = Self::default();
        let text = text.trim();
        if text.is_empty() {
            return Ok(settings);
        }
        for part in text.splitn(3, ';') {
            let Some((key, value)) = part.split_once('=') else {
                return Err(format!("invalid check option {}", quote(part)));
            };
            let (key, value) = (key.trim(), value.trim());
            let names = || value.split(',').map(|name| name.trim().to_owned()).collect();
            match key {
                "skip" if value == "all" => settings.skip_all = true,
                "skip" => settings.skip = names(),
                "experimental" if value == "all" => settings.experimental_all = true,
                "experimental" => settings.experimental = names(),
                "error" => {
                    settings.as_error = parse_bool(value).ok_or_else(|| {
                        let number = format!("strconv.ParseBool: parsing {}: invalid syntax", quote(value));
                        format!("failed to parse check option {}: {number}", quote(part))
                    })?;
                }
                _ => return Err(format!("invalid check option {}", quote(key))),
            }
        }
        Ok(settings)
    }
}

/// Something that a rule found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Finding {
    pub(crate) rule: &'static Rule,
    pub(crate) message: String,
    pub(crate) place: Vec<Span>,
}

/// The rules in force at a place. Clones share what was found.
#[derive(Clone, Debug)]
pub(crate) struct Linter {
    settings: Rc<Settings>,
    found: Option<Rc<RefCell<Vec<Finding>>>>,
}

impl Linter {
    /// Returns a linter that gathers findings.
    pub(crate) fn new(settings: Settings) -> Self {
        Self { settings: Rc::new(settings), found: Some(Rc::default()) }
    }

    /// Returns a linter that finds nothing.
    pub(crate) fn silent() -> Self {
        Self { settings: Rc::default(), found: None }
    }

    /// Returns the linter for an instruction, whose comments may switch rules off or on: `# check=skip=…`.
    pub(crate) fn under(&self, comments: &[String]) -> Self {
        let Some(value) = comments.iter().find_map(|comment| directive::find_in_comment(comment)) else {
            return self.clone();
        };
        let Ok(more) = Settings::parse(value.split(' ').next().unwrap_or_default()) else { return self.clone() };
        let mut settings = (*self.settings).clone();
        settings.skip_all |= more.skip_all;
        settings.skip.extend(more.skip);
        settings.experimental_all |= more.experimental_all;
        settings.experimental.extend(more.experimental);
        Self { settings: Rc::new(settings), found: self.found.clone() }
    }

    /// Notes a finding, unless its rule is off.
    pub(crate) fn report(&self, rule: &'static Rule, place: &[Span], message: String) {
        let Some(found) = &self.found else { return };
        let named = |names: &[String]| names.iter().any(|name| name == rule.name);
        let on = if rule.experimental {
            self.settings.experimental_all || named(&self.settings.experimental)
        } else {
            !self.settings.skip_all && !named(&self.settings.skip)
        };
        if on {
            found.borrow_mut().push(Finding { rule, message, place: place.to_vec() });
        }
    }

    /// Returns what was found so far.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        self.found.as_ref().map(|found| found.borrow().clone()).unwrap_or_default()
    }

    /// Fails if findings are to end the build and there are some.
    pub(crate) fn verdict(&self) -> Result<(), Fault> {
        let mut names: Vec<&str> = Vec::new();
        for finding in self.findings() {
            if !names.contains(&finding.rule.name) {
                names.push(finding.rule.name);
            }
        }
        if self.settings.as_error && !names.is_empty() {
            return Err(Fault::new(format!("lint violation found for rules: {}", names.join(", "))));
        }
        Ok(())
    }
}
