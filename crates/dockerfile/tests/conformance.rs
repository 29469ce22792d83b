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
    ("llb", 99.9),
    ("llb_vertices", 100.0),
    ("lint", 100.0),
    ("outline", 99.9),
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
