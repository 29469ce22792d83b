//! Words through the lexer, and image references.

use super::{Report, difference};
use bud_dockerfile::shell::{ExpandError, Expansion, Lexer};
use bud_image::ImageRef;
use serde_json::{Value, json};

pub(crate) fn compare(report: &mut Report, record: &Value) {
    let word = record["word"].as_str().unwrap_or_default();
    let escape = record["escape"].as_str().and_then(|e| e.chars().next()).unwrap_or('\\');
    let vars: Vec<(String, String)> = record["env"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .map(|pair| pair.split_once('=').map_or((pair.to_owned(), String::new()), |(k, v)| (k.into(), v.into())))
        .collect();
    let plain = Lexer::new(escape);
    let run = |lexer: Lexer| lexer.expand(word, &vars);
    let mut differs = difference(&record["default"], &full(&run(plain)));
    for (name, lexer) in [
        ("raw_quotes", Lexer { raw_quotes: true, ..plain }),
        ("raw_escapes", Lexer { raw_escapes: true, ..plain }),
        ("raw_both", Lexer { raw_quotes: true, raw_escapes: true, ..plain }),
        ("skip_unset", Lexer { skip_unset: true, ..plain }),
    ] {
        let want = record.get(name).unwrap_or(&record["default"]);
        let got = run(lexer);
        let (want, got) = match &got {
            Ok(e) => (&want["result"], json!(e.text)),
            Err(e) => (&want["error"], json!(e.message)),
        };
        differs = differs.or_else(|| difference(want, &got).map(|d| format!("{name}{d}")));
    }
    report.count("words", &format!("{word:?}"), differs);
}

fn full(result: &Result<Expansion, ExpandError>) -> Value {
    match result {
        Ok(e) => {
            let mut value = json!({"result": e.text, "words": e.words, "process_words": e.words});
            for (key, names) in [("matched", &e.matched), ("unmatched", &e.unmatched)] {
                if !names.is_empty() {
                    value[key] = json!(names);
                }
            }
            if e.words.is_empty() {
                value["words"] = Value::Null;
                value["process_words"] = Value::Null;
            }
            value
        }
        Err(e) => json!({"error": e.message, "process_words_error": e.message}),
    }
}

pub(crate) fn compare_reference(report: &mut Report, record: &Value) {
    let text = record["ref"].as_str().unwrap_or_default();
    let got = match ImageRef::parse(text) {
        Ok(parsed) => {
            let mut value = json!({
                "ref": text,
                "domain": parsed.domain,
                "path": parsed.path,
                "familiar": parsed.familiar(),
                "normalized": parsed.to_string(),
                "tag_name_only": parsed.clone().or_latest().to_string(),
            });
            if let Some(tag) = &parsed.tag {
                value["tag"] = json!(tag);
            }
            if let Some(digest) = &parsed.digest {
                value["digest"] = json!(digest.to_string());
            }
            value
        }
        Err(e) => json!({"ref": text, "error": e.to_string()}),
    };
    report.count("references", text, difference(record, &got));
}
