//! Reads conformance records and compares what we make of them with what the reference made.

mod build;
mod instructions;
mod tree;
mod words;
mod world;

use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::path::Path;

/// The measures, in the order in which they are printed.
const MEASURES: [&str; 11] = [
    "parse",
    "instructions",
    "words",
    "references",
    "config",
    "llb",
    "llb_vertices",
    "lint",
    "outline",
    "targets",
    "errors",
];

/// What was measured.
#[derive(Default)]
pub struct Report {
    counts: BTreeMap<&'static str, (usize, usize)>,
    /// What differs, by record.
    pub failures: Vec<String>,
}

/// Reads the records of a file, one after another, so that a large one needs no memory.
pub fn records(file: &Path) -> std::io::Result<impl Iterator<Item = Result<Value, String>> + use<>> {
    let opened = std::fs::File::open(file)?;
    let text: Box<dyn Read> = if file.extension().is_some_and(|e| e == "zst") {
        Box::new(zstd::Decoder::new(opened)?)
    } else {
        Box::new(opened)
    };
    let lines = BufReader::new(text).split(b'\n').enumerate();
    Ok(lines.filter_map(|(number, line)| {
        let parsed = match line {
            Ok(line) if line.trim_ascii().is_empty() => return None,
            Ok(line) => serde_json::from_slice(&line).map_err(|e| e.to_string()),
            Err(e) => Err(e.to_string()),
        };
        Some(parsed.map_err(|e| format!("line {}: {e}", number + 1)))
    }))
}

impl Report {
    /// Reads a file of records. A line that is none is told on stderr; the others count.
    pub fn read(&mut self, file: &Path) -> std::io::Result<()> {
        for record in records(file)? {
            match record {
                Ok(record) => self.compare(&record),
                Err(e) => eprintln!("{}: {e}", file.display()),
            }
        }
        Ok(())
    }

    fn compare(&mut self, record: &Value) {
        let name = |key: &str| record[key].as_str().unwrap_or_default().to_owned();
        if record.get("word").is_some() {
            words::compare(self, record);
        } else if record.get("ref").is_some() {
            words::compare_reference(self, record);
        } else if record.get("dockerfile").is_some() {
            let label = format!("{} {}{}", name("id"), name("name"), name("path"));
            tree::compare(self, &label, record);
            instructions::compare(self, &label, record);
            build::compare(self, &label, record);
        }
    }

    /// Counts one comparison; a difference is told by `differs`.
    pub(crate) fn count(&mut self, measure: &'static str, label: &str, differs: Option<String>) {
        self.count_many(measure, label, usize::from(differs.is_none()), 1, differs);
    }

    pub(crate) fn count_many(
        &mut self,
        measure: &'static str,
        label: &str,
        passed: usize,
        total: usize,
        differs: Option<String>,
    ) {
        let entry = self.counts.entry(measure).or_default();
        entry.0 += passed;
        entry.1 += total;
        if let Some(text) = differs {
            let text: String = text.chars().take(1500).collect();
            self.failures.push(format!("{measure}: {label}: {text}"));
        }
    }

    /// Returns the rate of a measure in percent, if there were records for it.
    #[allow(dead_code, clippy::cast_precision_loss)]
    pub fn rate(&self, measure: &str) -> Option<f64> {
        self.counts.get(measure).map(|(passed, total)| 100.0 * *passed as f64 / (*total).max(1) as f64)
    }
}

impl fmt::Display for Report {
    #[allow(clippy::cast_precision_loss)]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in MEASURES {
            if let Some((passed, total)) = self.counts.get(name) {
                let rate = 100.0 * *passed as f64 / (*total).max(1) as f64;
                writeln!(f, "{name} {rate:.2} {passed} {total}")?;
            }
        }
        Ok(())
    }
}

/// Returns the record's Dockerfile.
pub fn dockerfile(record: &Value) -> Vec<u8> {
    let text = record["dockerfile"].as_str().unwrap_or_default();
    if record["base64"] == true {
        use base64::Engine as _;
        return base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
    }
    text.as_bytes().to_vec()
}

/// Tells whether a place of a record differs from run to run in the reference.
pub(crate) fn is_unstable(record: &Value, pointer: &str) -> bool {
    record["unstable"].as_array().is_some_and(|list| {
        list.iter()
            .filter_map(Value::as_str)
            .any(|u| u == pointer || u.strip_prefix(pointer).is_some_and(|rest| rest.starts_with('/')))
    })
}

/// Describes the first difference between two values; none if they are equal.
pub(crate) fn difference(want: &Value, got: &Value) -> Option<String> {
    diff_at(want, got, String::new())
}

fn diff_at(want: &Value, got: &Value, path: String) -> Option<String> {
    match (want, got) {
        (Value::Object(a), Value::Object(b)) => a
            .iter()
            .find_map(|(k, v)| diff_at(v, b.get(k).unwrap_or(&Value::Null), format!("{path}/{k}")))
            .or_else(|| {
                let extra = b.iter().find(|(k, _)| !a.contains_key(*k))?;
                Some(format!("{path}/{}: not wanted, got {}", extra.0, extra.1))
            }),
        (Value::Array(a), Value::Array(b)) => {
            let inner = a.iter().zip(b).enumerate().find_map(|(i, (x, y))| diff_at(x, y, format!("{path}/{i}")));
            inner.or_else(|| {
                (a.len() != b.len())
                    .then(|| format!("{path}: wanted {} elements, got {}: {want} {got}", a.len(), b.len()))
            })
        }
        _ => (want != got).then(|| format!("{path}: wanted {want}, got {got}")),
    }
}

/// Compares an error: refused where the reference refuses, at the same lines, its text contained in ours.
pub(crate) fn error_difference(want: &Value, got: &bud_dockerfile::Error) -> Option<String> {
    let message = want["error"].as_str().unwrap_or_default();
    if !got.message.contains(message) {
        return Some(format!("wanted error {message:?}, got {:?}", got.message));
    }
    let lines: Vec<Vec<u32>> = got.places.iter().map(|p| p.iter().map(|span| span.start).collect()).collect();
    let got_lines = if lines.is_empty() { Value::Null } else { serde_json::json!(lines) };
    difference(&want["lines"], &got_lines).map(|d| format!("lines of {message:?}{d}"))
}
