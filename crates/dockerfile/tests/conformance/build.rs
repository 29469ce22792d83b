//! Builds: definitions, image configs, warnings, subrequests.

use super::world;
use super::{Report, difference, error_difference, is_unstable};
use bud_dockerfile::{Build, Error, Step, Subresult};
use bud_protocol::{llb, pb};
use prost::Message as _;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};

pub(crate) fn compare(report: &mut Report, label: &str, record: &Value) {
    if let Some(want) = record.get("build") {
        compare_build(report, label, record, want);
    }
    for (measure, id) in [("lint", "frontend.lint"), ("outline", "frontend.outline"), ("targets", "frontend.targets")] {
        if let Some(want) = record.get(measure) {
            let (result, _) = world::ask(record, Some(id));
            let differs = compare_answer(record, measure, want, result);
            report.count(measure, label, differs);
        }
    }
}

/// Cuts a suggestion off: of several words that are equally near the reference takes any.
fn without_hint(text: &str) -> &str {
    text.split(" (did you mean").next().unwrap_or_default()
}

fn compare_error(record: &Value, pointer: &str, want: &Value, got: &Error) -> Option<String> {
    if is_unstable(record, &format!("{pointer}/error")) {
        let want = without_hint(want["error"].as_str().unwrap_or_default());
        // Lists are in any order, and the linter's may be cut short.
        let common = want.split_once("for rules: ").map_or(want, |(common, _)| common);
        return (!got.message.contains(common)).then(|| format!("wanted {want}, got {got}"));
    }
    let mut want = want.clone();
    let mut got = got.clone();
    if is_unstable(record, &format!("{pointer}/lines")) || want.get("lines").is_none() {
        want["lines"] = Value::Null;
        got.places.clear();
    }
    error_difference(&want, &got)
}

fn compare_build(report: &mut Report, label: &str, record: &Value, want: &Value) {
    let (result, asked) = world::ask(record, None);
    if want.get("error").is_some() {
        let differs = match result {
            Err(error) if want.get("lines").is_none() && !error.places.is_empty() => {
                Some(format!("wanted no lines for {}, got {:?}", want["error"], error.places))
            }
            Err(error) => compare_error(record, "/build", want, &error),
            Ok(_) => Some(format!("wanted error {}, got none", want["error"])),
        };
        report.count("errors", label, differs);
        return;
    }
    let build = match result {
        Ok(Step::Build(build)) => *build,
        Ok(_) => Build::default(),
        Err(error) => {
            for measure in ["config", "llb"] {
                report.count(measure, label, Some(format!("refused: {error} {:?}", error.places)));
            }
            let total = definitions(want).iter().map(|(_, d)| ops(d).len()).sum();
            report.count_many("llb_vertices", label, 0, total, None);
            return;
        }
    };
    let metadata: BTreeMap<String, Value> = build
        .metadata()
        .unwrap_or_default()
        .into_iter()
        .map(|(k, v)| match serde_json::from_slice(&v) {
            Ok(value @ Value::Object(_)) => (k, value),
            // A number is kept as a text in the records.
            _ => (k, json!(String::from_utf8_lossy(&v))),
        })
        .collect();
    report.count("config", label, difference(&want["metadata"], &json!(metadata)));

    let mut differs: Option<String> = None;
    let (mut passed, mut total) = (0, 0);
    let ours: HashMap<&str, &pb::Definition> = build.platforms.iter().map(|p| (p.id.as_str(), &p.definition)).collect();
    for (platform, want) in definitions(want) {
        let got = match &platform {
            Some(platform) => ours.get(platform.as_str()).copied(),
            None => build.platforms.first().map(|p| &p.definition),
        };
        let Some(got) = got else {
            differs.get_or_insert_with(|| format!("no definition for {platform:?}"));
            total += ops(want).len();
            continue;
        };
        let mut left: HashMap<String, usize> = HashMap::new();
        for bytes in &got.def {
            *left.entry(llb::op_digest(bytes)).or_default() += 1;
        }
        for op in ops(want) {
            total += 1;
            if let Some(n) = left.get_mut(op["digest"].as_str().unwrap_or_default()).filter(|n| **n > 0) {
                *n -= 1;
                passed += 1;
            }
        }
        differs = differs.or_else(|| definition_difference(want, got));
    }
    for (platform, wanted) in want["attestations"].as_object().into_iter().flatten() {
        let ours = build.platforms.iter().find(|p| p.id == *platform);
        let ours = ours.map(|p| p.attestations.as_slice()).unwrap_or_default();
        let wanted = wanted.as_array().map(Vec::as_slice).unwrap_or_default();
        if wanted.len() != ours.len() {
            differs.get_or_insert_with(|| format!("wanted {} attestations, got {}", wanted.len(), ours.len()));
        }
        for (wanted, ours) in wanted.iter().zip(ours) {
            differs = differs.or_else(|| definition_difference(&wanted["definition"], &ours.definition));
        }
    }
    let vertices = (passed != total).then(|| format!("{passed} of {total}"));
    report.count_many("llb_vertices", label, passed, total, vertices);
    if differs.is_none() && !is_unstable(record, "/build/images") {
        let wanted: Vec<Value> = want["images"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|i| json!([i["ref"], i["platform"], i["log_name"]]))
            .collect();
        differs = difference(&json!(wanted), &json!(asked)).map(|d| format!("images{d}"));
    }
    if differs.is_none() && !is_unstable(record, "/build/warnings") {
        let got: Vec<Value> = build
            .warnings
            .iter()
            .map(|w| {
                let lines: Vec<u32> = w.spans.iter().flatten().map(|span| span.start).collect();
                json!({"message": w.short, "detail": w.detail, "url": w.url, "level": 1, "lines": lines})
            })
            .collect();
        let wanted: Vec<Value> = want["warnings"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|w| {
                let mut w = w.clone();
                for (key, empty) in [("url", json!("")), ("lines", json!([]))] {
                    if w.get(key).is_none() {
                        w[key] = empty;
                    }
                }
                w
            })
            .collect();
        differs = difference(&json!(wanted), &json!(got)).map(|d| format!("warnings{d}"));
    }
    report.count("llb", label, differs);
}

fn definitions(want: &Value) -> Vec<(Option<String>, &Value)> {
    match want.get("definitions").and_then(Value::as_object) {
        Some(map) => map.iter().map(|(platform, d)| (Some(platform.clone()), d)).collect(),
        None => vec![(None, &want["definition"])],
    }
}

fn ops(definition: &Value) -> &[Value] {
    definition["ops"].as_array().map(Vec::as_slice).unwrap_or_default()
}

fn definition_difference(want: &Value, got: &pb::Definition) -> Option<String> {
    let mut groups: Vec<String> = Vec::new();
    let wanted = ops(want);
    for (i, bytes) in got.def.iter().enumerate() {
        let digest = llb::op_digest(bytes);
        let Some(op) = wanted.get(i) else { return Some(format!("op {i} is not wanted: {}", show(bytes))) };
        if op["digest"] != json!(digest) {
            return Some(format!("op {i}: wanted {} {}, got {}", op["op"], op["metadata"], show(bytes)));
        }
        let metadata = metadata(got.metadata.get(&digest), &mut groups);
        if let Some(d) = difference(op.get("metadata").unwrap_or(&json!({})), &metadata) {
            return Some(format!("op {i}{d}"));
        }
        let locations: Vec<Vec<i32>> = got
            .source
            .iter()
            .filter_map(|s| s.locations.get(&digest))
            .flat_map(|l| &l.locations)
            .map(|l| l.ranges.iter().filter_map(|r| r.start.as_ref()).map(|p| p.line).collect())
            .collect();
        let locations = if locations.is_empty() { Value::Null } else { json!(locations) };
        if let Some(d) = difference(&without_empty(&op["locations"]), &without_empty(&locations)) {
            return Some(format!("op {i} locations{d}"));
        }
    }
    if wanted.len() != got.def.len() {
        return Some(format!("wanted {} ops, got {}: {}", wanted.len(), got.def.len(), wanted[got.def.len()]["op"]));
    }
    let infos = got.source.as_ref().map_or(0, |s| s.infos.len());
    let wanted = want["sources"].as_array().map_or(0, Vec::len);
    (infos != wanted).then(|| format!("wanted {wanted} sources, got {infos}"))
}

/// A place without lines is null in the records.
fn without_empty(locations: &Value) -> Value {
    let Some(list) = locations.as_array() else { return locations.clone() };
    list.iter().map(|l| if *l == json!([]) { Value::Null } else { l.clone() }).collect()
}

fn show(bytes: &[u8]) -> String {
    format!("{:?}", pb::Op::decode(bytes).unwrap_or_default())
}

fn metadata(metadata: Option<&pb::OpMetadata>, groups: &mut Vec<String>) -> Value {
    let Some(m) = metadata else { return json!({}) };
    let mut out = json!({});
    if !m.description.is_empty() {
        out["description"] = json!(m.description);
    }
    if !m.caps.is_empty() {
        out["caps"] = m.caps.keys().map(String::as_str).collect();
    }
    if m.ignore_cache {
        out["ignore_cache"] = json!(true);
    }
    if let Some(group) = &m.progress_group {
        let number = groups.iter().position(|id| *id == group.id).unwrap_or_else(|| {
            groups.push(group.id.clone());
            groups.len() - 1
        });
        let id = format!("pg-{}", number + 1);
        out["progress_group"] = json!({"id": id, "name": group.name, "weak": group.weak});
    }
    if let Some(r) = &m.linux_resources {
        let mut value = json!({});
        for (key, number) in [("memory", r.memory), ("memorySwap", r.memory_swap), ("cpuQuota", r.cpu_quota)] {
            if number != 0 {
                value[key] = json!(number.to_string());
            }
        }
        for (key, number) in [("cpuShares", r.cpu_shares), ("cpuPeriod", r.cpu_period)] {
            if number != 0 {
                value[key] = json!(number.to_string());
            }
        }
        for (key, text) in [("cpusetCpus", &r.cpuset_cpus), ("cpusetMems", &r.cpuset_mems)] {
            if !text.is_empty() {
                value[key] = json!(text);
            }
        }
        out["linux_resources"] = value;
    }
    out
}

fn compare_answer(record: &Value, name: &str, want: &Value, got: Result<Step, Error>) -> Option<String> {
    let pointer = format!("/{name}");
    match (got, want.get("error")) {
        (Err(error), Some(_)) => {
            let mut want = want.clone();
            want["lines"] = Value::Null;
            compare_error(record, &pointer, &want, &Error { places: Vec::new(), ..error })
        }
        (Err(error), None) => Some(format!("wanted none, got error {error}")),
        (Ok(_), Some(error)) => Some(format!("wanted error {error}, got none")),
        (Ok(Step::Answer(Subresult { metadata })), None) => {
            let text = |key: &str| metadata.get(key).map(|v| String::from_utf8_lossy(v).into_owned());
            let json_text = text("result.json").unwrap_or_default();
            let mut got: Value = serde_json::from_str(&json_text).unwrap_or(Value::Null);
            if let Some(map) = got.as_object_mut() {
                map.remove("sources");
            }
            got["text"] = json!(text("result.txt"));
            if let Some(status) = text("result.statuscode") {
                got["statuscode"] = json!(status);
            }
            let mut want = want.clone();
            for side in [&mut want, &mut got] {
                sort_blocks(side);
            }
            // Our message of a build error may say more.
            let message = want["buildError"]["message"].as_str().map(str::to_owned);
            if let Some(message) = message
                && got["buildError"]["message"].as_str().is_some_and(|m| m.contains(&message))
            {
                got["buildError"]["message"] = json!(message);
            }
            leave_out_unstable(record, &pointer, &mut want, &mut got);
            difference(&want, &got)
        }
        (Ok(other), None) => Some(format!("no answer: {other:?}")),
    }
}

/// Puts the blocks of a lint's text in order: the reference sorts more than a dozen of them by line with a sort that is not
/// stable.
fn sort_blocks(value: &mut Value) {
    let many = value["warnings"].as_array().is_some_and(|list| list.len() > 12);
    if let Some(text) = value["text"].as_str().filter(|_| many) {
        let mut blocks: Vec<&str> = text.split("\nWARNING: ").collect();
        blocks.sort_unstable();
        value["text"] = json!(blocks.join("\nWARNING: "));
    }
}

/// Takes away what differs from run to run, on both sides.
fn leave_out_unstable(record: &Value, pointer: &str, want: &mut Value, got: &mut Value) {
    let pointers = record["unstable"].as_array().into_iter().flatten().filter_map(Value::as_str);
    for inner in pointers.filter_map(|u| u.strip_prefix(pointer)) {
        // A value within a list whose order is any: the list is compared by its length.
        let list = ["/args/", "/secrets/", "/ssh/", "/warnings/"].iter().find(|list| inner.starts_with(**list));
        match list {
            Some(list) => {
                let list = list.trim_end_matches('/');
                for value in [&mut *want, &mut *got] {
                    if let Some(v) = value.pointer_mut(list) {
                        *v = json!(v.as_array().map(Vec::len));
                    }
                }
            }
            None => {
                for value in [&mut *want, &mut *got] {
                    if let Some(v) = value.pointer_mut(inner) {
                        *v = Value::Null;
                    }
                }
            }
        }
    }
}
