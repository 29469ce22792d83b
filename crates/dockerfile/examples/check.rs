//! Says what is wrong with a Dockerfile: `cargo run -p bud-dockerfile --example check -- Dockerfile [TARGET]`.

use bud_dockerfile::{CheckOptions, check};
use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(filename) = args.next() else {
        eprintln!("usage: check FILE [TARGET]");
        return ExitCode::from(2);
    };
    let text = match std::fs::read(&filename) {
        Ok(text) => text,
        Err(error) => {
            eprintln!("{filename}: {error}");
            return ExitCode::FAILURE;
        }
    };
    let options = CheckOptions { filename, target: args.next(), ..CheckOptions::default() };
    let report = check(&text, &options);
    print!("{}", report.render(false));
    if report.has_errors() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}
