//! Mends what the linter finds, by editing the places it is about and keeping every other byte.
//!
//! An edit is tried and looked at before it is kept: its rule must have nothing to say any more, and, unless the rule asks for
//! another meaning, every stage must give the same definition and the same image as before.

pub mod diff;
mod edits;

use crate::edit::Editor;
use crate::frontend::{Error, Step};
use crate::lint::list::{LintWarning, look};
use crate::offline;
use crate::parser::{self, Dockerfile};
use edits::Candidate;
use std::collections::BTreeMap;

/// One mended place may bring another to light (the case of `FROM` decides that of `AS`).
const ROUNDS: usize = 4;
/// Places that are tried one by one in a round, when they can't all be mended together.
const MAX_TRIED: usize = 200;
/// Stages that are compared before and after, from the last.
const MAX_STAGES: usize = 64;

/// A mended text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fixed {
    /// The text.
    pub text: String,
    /// What was mended, in order of the text.
    pub changes: Vec<Change>,
    /// What the linter still finds.
    pub left: Vec<LintWarning>,
}

/// One thing that was mended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The rule.
    pub rule: String,
    /// The line, from 1.
    pub line: u32,
    /// What was wrong.
    pub message: String,
    /// The image may now behave differently, as the rule wants it.
    pub changes_meaning: bool,
}

/// Mends a text.
///
/// Rules that are switched off (`# check=skip=…`) are left alone. A second call changes nothing.
///
/// ```
/// let text = b"from alpine AS Build\nenv GREETING hello world\nCMD echo hi\n";
/// let fixed = bud_dockerfile::fix::fix(text, &Default::default())?;
/// assert_eq!(fixed.text, "from alpine as build\nenv GREETING=\"hello world\"\ncmd [\"echo\", \"hi\"]\n");
/// # Ok::<(), bud_dockerfile::Error>(())
/// ```
///
/// # Errors
///
/// If the text can't be parsed or isn't UTF-8, or the options are wrong.
pub fn fix(text: &[u8], opts: &BTreeMap<String, String>) -> Result<Fixed, Error> {
    let Ok(text) = std::str::from_utf8(text) else {
        return Err(Error { message: "the Dockerfile is not UTF-8, so it can't be edited".into(), ..Error::default() });
    };
    crate::program(text.as_bytes())?;
    let mut fixed = Fixed { text: text.to_owned(), ..Fixed::default() };
    for _ in 0..ROUNDS {
        let (found, error) = look(fixed.text.as_bytes(), opts)?;
        let changes = round(&mut fixed.text, &found, error.as_deref(), opts)?;
        if changes.is_empty() {
            break;
        }
        fixed.changes.extend(changes);
    }
    // A place that was mended anew, because of what was mended around it, counts once.
    let mut seen = std::collections::BTreeSet::new();
    fixed.changes.retain(|change| seen.insert((change.line, change.rule.clone())));
    fixed.changes.sort_by_key(|change| change.line);
    fixed.left = look(fixed.text.as_bytes(), opts)?.0;
    Ok(fixed)
}

/// Mends what was found, as far as edits don't overlap.
fn round(
    text: &mut String,
    found: &[LintWarning],
    error: Option<&str>,
    opts: &BTreeMap<String, String>,
) -> Result<Vec<Change>, Error> {
    let file = parse(text)?;
    let plans: Vec<(&LintWarning, Vec<Candidate>)> = found
        .iter()
        .map(|warning| (warning, edits::candidates(text, &file, warning)))
        .filter(|(_, candidates)| !candidates.is_empty())
        .collect();
    let change = |(warning, candidates): &(&LintWarning, Vec<Candidate>), chosen: usize| Change {
        rule: warning.rule.clone(),
        line: warning.lines.first().copied().unwrap_or_default(),
        message: warning.message.clone(),
        changes_meaning: candidates[chosen].changes_meaning,
    };
    let judge = Judge { before: text.clone(), found, error, opts };
    // All at once first: that is what nearly every text needs.
    let all: Vec<(&LintWarning, &Candidate)> = plans.iter().map(|(w, c)| (*w, &c[0])).collect();
    if let Some(edited) = apply(text, &all)
        && judge.accepts(&edited, &all)?
    {
        *text = edited;
        return Ok(plans.iter().map(|plan| change(plan, 0)).collect());
    }
    let mut kept: Vec<(&LintWarning, &Candidate)> = Vec::new();
    let mut changes = Vec::new();
    for plan in plans.iter().take(MAX_TRIED) {
        for (index, candidate) in plan.1.iter().enumerate() {
            kept.push((plan.0, candidate));
            if let Some(edited) = apply(text, &kept)
                && judge.accepts(&edited, &kept)?
            {
                changes.push(change(plan, index));
                break;
            }
            kept.pop();
        }
    }
    if let Some(edited) = apply(text, &kept) {
        *text = edited;
    }
    Ok(changes)
}

fn parse(text: &str) -> Result<Dockerfile, Error> {
    parser::parse(text).map_err(crate::fault::Fault::into_error)
}

/// Applies edits; nothing if two are about the same place, but for the same edit of both.
fn apply(text: &str, chosen: &[(&LintWarning, &Candidate)]) -> Option<String> {
    let mut edits: Vec<_> = chosen.iter().flat_map(|(_, candidate)| &candidate.edits).collect();
    edits.sort_by_key(|(place, _)| (place.start, place.end));
    edits.dedup();
    let mut editor = Editor::new(text);
    for (place, with) in edits {
        editor.replace(place, with).ok()?;
    }
    Some(editor.finish())
}

/// Looks at what edits make of a text.
struct Judge<'a> {
    before: String,
    found: &'a [LintWarning],
    error: Option<&'a str>,
    opts: &'a BTreeMap<String, String>,
}

impl Judge<'_> {
    fn accepts(&self, edited: &str, chosen: &[(&LintWarning, &Candidate)]) -> Result<bool, Error> {
        if crate::program(edited.as_bytes()).is_err() {
            return Ok(false);
        }
        let (now, error) = look(edited.as_bytes(), self.opts)?;
        // That findings are errors is no error of the text's.
        let real =
            |error: Option<&str>| error.filter(|text| !text.starts_with("lint violation found")).map(str::to_owned);
        if real(error.as_deref()) != real(self.error) {
            return Ok(false);
        }
        // Each rule has as many things less to say as were mended.
        let count = |list: &[LintWarning], rule: &str| list.iter().filter(|w| w.rule == rule).count();
        let is_mended = chosen.iter().all(|(warning, _)| {
            let mended = chosen.iter().filter(|(other, _)| other.rule == warning.rule).count();
            count(&now, &warning.rule) + mended <= count(self.found, &warning.rule)
        });
        if !is_mended {
            return Ok(false);
        }
        // The meaning is compared without those edits that are meant to change it.
        let plain: Vec<_> = chosen.iter().copied().filter(|(_, c)| !c.changes_meaning).collect();
        let Some(plain) = apply(&self.before, &plain) else { return Ok(false) };
        Ok(meaning(&self.before, self.opts) == meaning(&plain, self.opts))
    }
}

/// What each stage comes to: the digests of its definition and its image's config, or why it can't be built.
fn meaning(text: &str, opts: &BTreeMap<String, String>) -> Vec<Result<(Vec<String>, String), String>> {
    let stages = crate::program(text.as_bytes()).map_or(0, |program| program.stages.len());
    let targets = (stages.saturating_sub(MAX_STAGES)..stages).map(|index| {
        let mut opts = opts.clone();
        opts.insert("target".into(), index.to_string());
        opts.insert("build-arg:BUILDKIT_DOCKERFILE_CHECK".into(), "skip=all".into());
        match offline::run(text.as_bytes(), &opts) {
            Ok(Step::Build(build)) => {
                let platform = build.platforms.into_iter().next().unwrap_or_default();
                let mut config = platform.config;
                // It tells how the instructions were written.
                config.history = None;
                let ops = platform.definition.def.iter().map(|op| bud_protocol::llb::op_digest(op)).collect();
                serde_json::to_string(&config).map(|config| (ops, config)).map_err(|e| e.to_string())
            }
            Ok(_) => Err(String::new()),
            Err(error) => Err(error.message),
        }
    });
    targets.collect()
}

#[cfg(test)]
mod tests;
