//! Runs the conformance records at hand, and fails when a rate falls under what was reached.

#[path = "conformance/mod.rs"]
mod runner;

use std::path::{Path, PathBuf};

/// The rates reached, in percent.
const FLOORS: [(&str, f64); 11] = [
    ("parse", 100.0),
    ("instructions", 100.0),
    ("words", 100.0),
    ("references", 100.0),
    ("config", 100.0),
    ("llb", 100.0),
    ("llb_vertices", 100.0),
    ("lint", 100.0),
    ("outline", 100.0),
    ("targets", 100.0),
    ("errors", 100.0),
];

/// Finds the data: `BUD_CONFORMANCE` names its folder, or it is in `shared/conformance` beside the project.
fn data() -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os("BUD_CONFORMANCE") {
        return Some(folder.into());
    }
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().map(|dir| dir.join("shared/conformance/dockerfile")).find(|dir| dir.is_dir())
}

#[test]
fn as_exact_as_the_reference() {
    let Some(folder) = data() else {
        eprintln!(
            "as_exact_as_the_reference: NOT RUN, the conformance data is not here (BUD_CONFORMANCE names its folder)"
        );
        return;
    };
    let mut report = runner::Report::default();
    for file in ["corpus.jsonl.zst", "options.jsonl", "shell.jsonl", "refs.jsonl"] {
        report.read(&folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
    }
    println!("{report}");
    for (measure, floor) in FLOORS {
        let rate = report.rate(measure).unwrap_or_else(|| panic!("no records for {measure}"));
        let failures = report.failures.join("\n");
        assert!(rate >= floor, "{measure} fell to {rate:.2} (was {floor})\n{failures}");
    }
}

/// The instant check refuses no file that the reference builds, and refuses those that it can't parse.
#[test]
fn the_check_refuses_what_the_reference_refuses() {
    let Some(folder) = data() else {
        eprintln!("the_check_refuses_what_the_reference_refuses: NOT RUN, the conformance data is not here");
        return;
    };
    let mut wrong = Vec::new();
    for file in ["corpus.jsonl.zst", "options.jsonl"] {
        let records = runner::records(&folder.join(file)).unwrap_or_else(|e| panic!("{file}: {e}"));
        for record in records.map(Result::unwrap) {
            let opts = record["opts"].as_object().cloned().unwrap_or_default();
            let names = |prefix: &str| opts.keys().filter_map(|k| k.strip_prefix(prefix)).map(str::to_owned).collect();
            if opts.contains_key("filename") || opts.contains_key("context") {
                continue;
            }
            let options = bud_dockerfile::CheckOptions {
                filename: "Dockerfile".into(),
                target: opts.get("target").and_then(|t| t.as_str()).map(str::to_owned),
                build_args: names("build-arg:"),
                contexts: names("context:"),
            };
            let checked = bud_dockerfile::check(&runner::dockerfile(&record), &options);
            let builds = record["build"].get("error").is_none();
            let parses = record["parse"].get("error").is_none() && record["instructions"].get("error").is_none();
            // A text for another front end is none of ours.
            let is_ours = record["parse"].get("syntax").is_none() || builds;
            if (builds && checked.has_errors()) || (!parses && is_ours && !checked.has_errors()) {
                wrong.push(format!("{} {}\n{}", record["id"], record["build"]["error"], checked.render(false)));
            }
        }
    }
    assert!(wrong.is_empty(), "{} files\n{}", wrong.len(), wrong.join("\n"));
}

/// The runner reads what it has never seen: other keys, compressed files, lines that are no records.
#[test]
fn records_of_any_shape_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let lines = concat!(
        r#"{"id":"a","new":1,"dockerfile":"RlJPTSB4Cg==","base64":true,"opts":null,"parse":{"escape":"\\","ast":[{"value":"FROM","original":"FROM x","lines":[1,1],"args":["x"]}]}}"#,
        "\n\nnot a record\n",
        r#"{"something":"else"}"#,
        "\n",
        r#"{"ref":"a","domain":"docker.io","path":"library/a","familiar":"a","normalized":"docker.io/library/a","tag_name_only":"docker.io/library/b"}"#,
    );
    let file = folder.path().join("other.jsonl.zst");
    std::fs::write(&file, zstd::encode_all(lines.as_bytes(), 1).unwrap()).unwrap();
    let mut report = runner::Report::default();
    report.read(&file).unwrap();
    assert_eq!(report.to_string(), "parse 100.00 1 1\nreferences 0.00 0 1\n");
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
}
