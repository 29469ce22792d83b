//! Parse trees.

use super::{Report, difference, dockerfile, error_difference};
use bud_dockerfile::parser::{Node, directive};
use serde_json::{Value, json};

pub(crate) fn compare(report: &mut Report, label: &str, record: &Value) {
    let Some(want) = record.get("parse") else { return };
    let bytes = dockerfile(record);
    let text = String::from_utf8_lossy(&bytes);
    let differs = match (bud_dockerfile::parse(&bytes), want.get("error")) {
        (Ok(file), None) => {
            let mut got = json!({"escape": file.escape.to_string()});
            got["ast"] = file.nodes.iter().map(|node| tree(node, true)).collect();
            if !file.empty_continuations.is_empty() {
                got["warnings"] = file
                    .empty_continuations
                    .iter()
                    .map(|w| {
                        json!({
                            "lines": [w.line, w.line],
                            "short": format!("Empty continuation line found in: {}", w.text),
                            "url": "https://docs.docker.com/go/dockerfile/rule/no-empty-continuation/",
                        })
                    })
                    .collect();
            }
            if let Some(d) = directive::find_syntax(&text) {
                let name = d.value.split(' ').next().unwrap_or_default();
                got["syntax"] = json!({"cmdline": d.value, "ref": name, "lines": [d.line]});
            }
            if let Some(d) = directive::find(&text, "check") {
                got["check"] = json!({"value": d.value.split(' ').next(), "lines": [d.line]});
            }
            difference(want, &got)
        }
        (Err(got), Some(_)) => error_difference(want, &got),
        (Ok(_), Some(error)) => Some(format!("wanted error {error}, got none")),
        (Err(error), None) => Some(format!("wanted none, got error {error}")),
    };
    report.count("parse", label, differs);
}

fn tree(node: &Node, top: bool) -> Value {
    let mut value = json!({"value": node.keyword.text, "original": node.original});
    if top {
        value["lines"] = json!([node.lines.start, node.lines.end]);
    }
    if !node.flags.is_empty() {
        value["flags"] = node.flags.iter().map(|w| w.text.as_str()).collect();
    }
    if node.is_json {
        value["attributes"] = json!({"json": true});
    }
    if !node.comments.is_empty() {
        value["prev_comment"] = json!(node.comments);
    }
    if !node.heredocs.is_empty() {
        value["heredocs"] = node
            .heredocs
            .iter()
            .map(|h| json!({"name": h.name, "fd": h.fd, "expand": h.expand, "chomp": h.chomp, "content": h.content}))
            .collect();
    }
    if !node.triggers.is_empty() {
        // The chain of triggers, innermost first.
        let mut inner: Option<Value> = None;
        for trigger in node.triggers.iter().rev() {
            let mut child = tree(trigger, false);
            if let Some(inner) = inner.take() {
                child["next"] = json!([{"value": "", "children": [inner]}]);
            }
            inner = Some(child);
        }
        value["next"] = json!([{"value": "", "children": [inner]}]);
    } else if !node.words.is_empty() {
        value["args"] = node.words.iter().map(|w| w.text.as_str()).collect();
    }
    value
}
