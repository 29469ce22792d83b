//! Questions instead of builds: what a Dockerfile's targets and parameters are, and what is wrong with it.

use super::context::Context;
use super::options::Options;
use super::outline;
use super::platform;
use super::world::{Stop, World};
use super::{Refusal, lint_settings, parse, task};
use crate::fault::Fault;
use crate::frontend::{Error, ErrorKind, SourceText, Span, Step, Subresult};
use crate::instruction::parse_all;
use crate::lint::{Finding, Linter};
use crate::parser;
use crate::text::quote::decode;
use crate::text::table;
use base64::Engine as _;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Answers a question.
pub(super) fn answer(
    id: &str,
    world: &World<'_>,
    options: &Options,
    context: &Context,
    text: &SourceText,
    found: &RefCell<Option<Linter>>,
) -> Result<Step, Refusal> {
    let (value, shown, status) = match id {
        "frontend.subrequests.describe" => {
            let value = describe();
            let shown = show_describe(&value);
            (value, Some(shown), None)
        }
        "frontend.outline" => {
            let value = outline(world, options, context, text, found)?;
            let shown = show_outline(&value);
            (value, Some(shown), None)
        }
        "frontend.targets" => {
            let value = targets(text)?;
            let shown = show_targets(&value);
            (value, Some(shown), None)
        }
        "frontend.lint" => {
            let (value, shown) = lint(world, options, context, text)?;
            let clean = value["warnings"].is_null() && value.get("buildError").is_none();
            (value, Some(shown), Some(if clean { "0" } else { "1" }))
        }
        other => {
            return Err(Refusal::Error(Box::new(Error {
                message: format!("unsupported request {other}"),
                kind: ErrorKind::Subrequest(other.to_owned()),
                ..Error::default()
            })));
        }
    };
    let mut metadata = BTreeMap::from([
        ("result.json".to_owned(), pretty(&value).into_bytes()),
        ("version".to_owned(), b"1.0.0".to_vec()),
    ]);
    if let Some(shown) = shown {
        metadata.insert("result.txt".into(), shown.into_bytes());
    }
    if let Some(status) = status {
        metadata.insert("result.statuscode".into(), status.into());
    }
    Ok(Step::Answer(Subresult { metadata }))
}

fn pretty(value: &Value) -> String {
    // A JSON value can always be written.
    serde_json::to_string_pretty(value).unwrap_or_default()
}

fn location(place: &[Span]) -> Value {
    if place.is_empty() {
        return Value::Null;
    }
    json!({ "ranges": ranges(place) })
}

fn ranges(place: &[Span]) -> Value {
    let at = |line: u32| if line == 0 { json!({}) } else { json!({ "line": line }) };
    place.iter().map(|span| json!({"start": at(span.start), "end": at(span.end)})).collect()
}

/// Puts members into an object, without those that are empty.
fn object(members: &[(&str, Value)]) -> Value {
    let is_set = |v: &Value| !v.is_null() && *v != json!("") && *v != json!(false) && *v != json!([]);
    let kept = members.iter().filter(|(_, v)| is_set(v)).map(|(k, v)| ((*k).to_owned(), v.clone()));
    Value::Object(kept.collect::<Map<_, _>>())
}

fn source_copy(text: &SourceText) -> Value {
    json!([base64::engine::general_purpose::STANDARD.encode(&text.data)])
}

fn describe() -> Value {
    let request = |name: &str, description: &str, opts: Value| {
        let named = |name: &str| json!({"name": name, "description": ""});
        json!({
            "name": name, "version": "1.0.0", "type": "rpc", "description": description, "opts": opts,
            "inputs": null, "metadata": [named("result.json"), named("result.txt")], "refs": null,
        })
    };
    let target = json!([{"name": "target", "description": "Target build stage"}]);
    json!([
        request("frontend.outline", "List all parameters current build target supports", target),
        request("frontend.targets", "List all targets current build supports", json!([])),
        request("frontend.subrequests.describe", "List available subrequest types", Value::Null),
    ])
}

fn text_of<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_default()
}

fn rows(value: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    value.as_array().into_iter().flatten().map(row).collect()
}

fn headed(head: &[&str], mut rows: Vec<Vec<String>>, gap: usize) -> String {
    rows.insert(0, head.iter().map(|h| (*h).to_owned()).collect());
    table::render(&rows, gap)
}

fn show_describe(value: &Value) -> String {
    let row = |r: &Value| {
        let name = text_of(r, "name");
        let name = name.strip_prefix("frontend.").unwrap_or(name);
        vec![name.to_owned(), text_of(r, "version").to_owned(), text_of(r, "description").to_owned()]
    };
    headed(&["NAME", "VERSION", "DESCRIPTION"], rows(value, row), 1)
}

fn targets(text: &SourceText) -> Result<Value, Fault> {
    let file = parser::parse(&decode(&text.data))?;
    let program = parse_all(&file, &Linter::silent())?;
    let last = program.stages.len().saturating_sub(1);
    let list: Vec<Value> = program
        .stages
        .iter()
        .enumerate()
        .map(|(i, stage)| {
            object(&[
                ("name", json!(stage.name)),
                ("default", json!(i == last)),
                ("description", json!(stage.description)),
                ("base", json!(stage.base)),
                ("platform", json!(stage.platform)),
                ("location", location(&stage.origin.place)),
            ])
        })
        .collect();
    let list = if list.is_empty() { Value::Null } else { Value::Array(list) };
    Ok(json!({ "targets": list, "sources": source_copy(text) }))
}

fn show_targets(value: &Value) -> String {
    let row = |t: &Value| {
        let name = match (text_of(t, "name"), t["default"] == true) {
            ("", true) => "(default)".to_owned(),
            (name, true) => format!("{name} (default)"),
            (name, false) => name.to_owned(),
        };
        vec![name, text_of(t, "description").to_owned()]
    };
    headed(&["TARGET", "DESCRIPTION"], rows(&value["targets"], row), 1)
}

fn outline(
    world: &World<'_>,
    options: &Options,
    context: &Context,
    text: &SourceText,
    found: &RefCell<Option<Linter>>,
) -> Result<Value, Stop> {
    let lint = Linter::new(lint_settings(options, text)?);
    *found.borrow_mut() = Some(lint.clone());
    let parsed = parse(&text.data, &lint)?;
    let task = task(world, options, context, text, &parsed, None, false);
    let lowered = platform::lower(&task, &lint)?;
    let stages = &lowered.lowering.stages;
    let target = &stages.list[lowered.target];
    let parameters = outline::gather(stages, lowered.target);
    let args: Vec<Value> = parameters
        .args
        .iter()
        .map(|(name, info)| {
            let mut value = object(&[
                ("name", json!(name)),
                ("description", json!(info.description)),
                ("value", json!(info.value)),
                ("location", location(&info.place)),
            ]);
            value["name"] = json!(name);
            value
        })
        .collect();
    let mounts = |list: &[(String, outline::MountInfo)]| -> Vec<Value> {
        let entry = |(name, info): &(String, outline::MountInfo)| {
            let mut value = object(&[
                ("name", json!(name)),
                ("required", json!(info.required)),
                ("location", location(&info.place)),
            ]);
            value["name"] = json!(name);
            value
        };
        list.iter().map(entry).collect()
    };
    Ok(object(&[
        ("name", json!(target.name)),
        ("description", json!(target.description)),
        ("args", json!(args)),
        ("secrets", json!(mounts(&parameters.secrets))),
        ("ssh", json!(mounts(&parameters.agents))),
        ("sources", source_copy(text)),
    ]))
}

fn show_outline(value: &Value) -> String {
    let mut out = String::new();
    let (name, description) = (text_of(value, "name"), text_of(value, "description"));
    if !name.is_empty() || !description.is_empty() {
        let name = if name.is_empty() { "(default)" } else { name };
        let mut rows = vec![vec!["TARGET:".to_owned(), name.to_owned()]];
        if !description.is_empty() {
            rows.push(vec!["DESCRIPTION:".to_owned(), description.to_owned()]);
        }
        out.push_str(&table::render(&rows, 1));
        out.push('\n');
    }
    let arg = |a: &Value| ["name", "value", "description"].map(|k| text_of(a, k).to_owned()).to_vec();
    if value.get("args").is_some() {
        out.push_str(&headed(&["BUILD ARG", "VALUE", "DESCRIPTION"], rows(&value["args"], arg), 3));
        out.push('\n');
    }
    let mount = |m: &Value| {
        vec![text_of(m, "name").to_owned(), if m["required"] == true { "true".into() } else { String::new() }]
    };
    for (key, head) in [("secrets", "SECRET"), ("ssh", "SSH")] {
        if value.get(key).is_some() {
            out.push_str(&headed(&[head, "REQUIRED"], rows(&value[key], mount), 3));
            out.push('\n');
        }
    }
    out
}

fn lint(world: &World<'_>, options: &Options, context: &Context, text: &SourceText) -> Result<(Value, String), Stop> {
    let mut findings = Vec::new();
    let outcome = lint_settings(options, text).map_err(Stop::from).and_then(|settings| {
        let linter = Linter::new(settings);
        let outcome = lint_all(world, options, context, text, &linter);
        findings = linter.findings();
        outcome
    });
    let error = match outcome {
        Ok(()) => None,
        Err(Stop::Need) => return Err(Stop::Need),
        Err(Stop::Fail(fault)) => Some(fault),
    };
    let warnings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            let mut value = object(&[
                ("ruleName", json!(finding.rule.name)),
                ("description", json!(finding.rule.description)),
                ("url", json!(finding.rule.url)),
                ("detail", json!(finding.message)),
            ]);
            value["location"] = object(&[("ranges", ranges(&finding.place))]);
            value
        })
        .collect();
    let source = json!({
        "filename": text.filename,
        "data": base64::engine::general_purpose::STANDARD.encode(&text.data),
        "language": "Dockerfile",
    });
    let warnings = if warnings.is_empty() { Value::Null } else { Value::Array(warnings) };
    let mut value = json!({ "warnings": warnings, "sources": [source] });
    if let Some(fault) = error {
        let place = object(&[("ranges", ranges(&merge(&fault.places)))]);
        value["buildError"] = json!({ "message": fault.message, "location": place });
    }
    Ok((value, show_lint(&findings, text)))
}

fn lint_all(
    world: &World<'_>,
    options: &Options,
    context: &Context,
    text: &SourceText,
    linter: &Linter,
) -> Result<(), Stop> {
    let parsed = parse(&text.data, linter)?;
    // Without a target all stages are looked at.
    let task = task(world, options, context, text, &parsed, None, options.target.is_empty());
    platform::lower(&task, linter).map(|_| ())
}

/// Puts places in order, and those together that overlap.
fn merge(places: &[Vec<Span>]) -> Vec<Span> {
    let mut all: Vec<Span> = places.iter().flatten().copied().collect();
    all.sort_by_key(|span| span.start);
    let mut out: Vec<Span> = Vec::new();
    for span in all {
        match out.last_mut() {
            Some(last) if span.start <= last.end => last.end = last.end.max(span.end),
            _ => out.push(span),
        }
    }
    out
}

fn show_lint(findings: &[Finding], text: &SourceText) -> String {
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by(|a, b| match (a.place.first(), b.place.first()) {
        (None, None) => a.rule.name.cmp(b.rule.name),
        (a, b) => a.map(|span| span.start).cmp(&b.map(|span| span.start)),
    });
    let mut out = String::new();
    for finding in sorted {
        out.push_str(&format!("\nWARNING: {}", finding.rule.name));
        if !finding.rule.url.is_empty() {
            out.push_str(&format!(" - {}", finding.rule.url));
        }
        out.push_str(&format!("\n{}\n", finding.message));
        out.push_str(&excerpt(text, &finding.place));
    }
    out
}

/// The lines of a place and some around them, those of the place marked.
fn excerpt(text: &SourceText, place: &[Span]) -> String {
    let data = decode(&text.data);
    let lines: Vec<&str> = data.split('\n').collect();
    let (Some(first), Some(last)) =
        (place.iter().map(|s| s.start).min(), place.iter().map(|s| s.end.max(s.start)).max())
    else {
        return String::new();
    };
    let (mut start, mut end) = (first as usize, (last as usize).min(lines.len()));
    if start > lines.len() || start < 1 {
        return String::new();
    }
    let context = if start == last as usize { 4 } else { 2 };
    let mut added = 0;
    while added < context {
        if start > 1 {
            start -= 1;
            added += 1;
        }
        if end != lines.len() {
            end += 1;
            added += 1;
        }
        added += 1;
    }
    let rule = "-".repeat(20);
    let mut out = format!("{}:{first}\n{rule}\n", text.filename);
    for number in start..=end {
        let hit = place.iter().any(|s| (s.start as usize..=s.end.max(s.start) as usize).contains(&number));
        let mark = if hit { ">>>" } else { "   " };
        out.push_str(&format!(" {number:3} | {mark} {}\n", lines[number - 1]));
    }
    out + &rule + "\n"
}
