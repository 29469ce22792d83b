//! Measures this front end against records of what the reference makes of Dockerfiles.
//!
//! `cargo run --release -p bud-dockerfile --example conformance -- [--failures] FILE.jsonl…` reads records (also
//! `.jsonl.zst`) and prints a line a measure: `NAME PERCENT PASSED TOTAL`; `--failures` says what differs, by record.

#[path = "../tests/conformance/mod.rs"]
mod conformance;

use std::process::ExitCode;

fn main() -> ExitCode {
    let (options, files): (Vec<String>, Vec<String>) = std::env::args().skip(1).partition(|arg| arg.starts_with("--"));
    let show = options.iter().any(|option| option == "--failures");
    if files.is_empty() || options.iter().any(|option| option != "--failures") {
        eprintln!("usage: conformance [--failures] FILE.jsonl[.zst]…");
        return ExitCode::from(2);
    }
    let mut report = conformance::Report::default();
    for file in &files {
        if let Err(error) = report.read(std::path::Path::new(file)) {
            eprintln!("{file}: {error}");
            return ExitCode::FAILURE;
        }
    }
    if show {
        for failure in &report.failures {
            println!("{failure}");
        }
    }
    print!("{report}");
    ExitCode::SUCCESS
}
