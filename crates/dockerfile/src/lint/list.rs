//! The reference's rules over a text alone.

use crate::frontend::{Error, Step};
use crate::offline;
use serde_json::Value;
use std::collections::BTreeMap;

/// What a rule found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LintWarning {
    /// The rule's name (`StageNameCasing`).
    pub rule: String,
    /// What is wrong.
    pub message: String,
    /// Where the rule is explained; empty if nowhere.
    pub url: String,
    /// The lines it is about, from 1.
    pub lines: Vec<u32>,
}

/// Looks at a text with the reference's rules, without asking for its base images.
///
/// `# check=` lines and comments count, and so do the front-end options (`target`, `build-arg:X`,
/// `build-arg:BUILDKIT_DOCKERFILE_CHECK`). What only a base image can tell is left out: whether a variable that is nowhere in the
/// text comes from it.
///
/// ```
/// let found = bud_dockerfile::lint::lint(b"FROM alpine AS Build\n", &Default::default())?;
/// assert_eq!(found[0].rule, "StageNameCasing");
/// assert_eq!(found[0].lines, [1]);
/// # Ok::<(), bud_dockerfile::Error>(())
/// ```
///
/// # Errors
///
/// If the options are wrong. A text that can't be built gives what was found up to there.
pub fn lint(text: &[u8], opts: &BTreeMap<String, String>) -> Result<Vec<LintWarning>, Error> {
    Ok(look(text, opts)?.0)
}

/// Also tells why the text can't be built.
pub(crate) fn look(text: &[u8], opts: &BTreeMap<String, String>) -> Result<(Vec<LintWarning>, Option<String>), Error> {
    let mut opts = opts.clone();
    opts.insert("requestid".into(), "frontend.lint".into());
    let Step::Answer(answer) = offline::run(text, &opts)? else { return Ok((Vec::new(), None)) };
    let json: Value =
        answer.metadata.get("result.json").and_then(|json| serde_json::from_slice(json).ok()).unwrap_or_default();
    let of = |value: &Value, key: &str| value[key].as_str().unwrap_or_default().to_owned();
    let lines = |value: &Value| -> Vec<u32> {
        let ranges = value["location"]["ranges"].as_array().into_iter().flatten();
        ranges.filter_map(|range| range["start"]["line"].as_u64()?.try_into().ok()).collect()
    };
    let warnings = json["warnings"].as_array().into_iter().flatten().map(|value| LintWarning {
        rule: of(value, "ruleName"),
        message: of(value, "detail"),
        url: of(value, "url"),
        lines: lines(value),
    });
    let is_known = |w: &LintWarning| w.rule != "UndefinedVar" || w.message.contains("did you mean");
    let error = json["buildError"]["message"].as_str().map(str::to_owned);
    Ok((warnings.filter(is_known).collect(), error))
}
