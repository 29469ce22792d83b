//! Questions instead of builds (`--call`, `--check`): their answers on stdout, with the exit codes of `docker buildx`.

use crate::progress::filter;
use crate::request::call::{Call, Format};
use crate::terminal;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::ExitCode;

/// Prints an answer; the exit code is what it says of the Dockerfile.
pub(super) fn print(call: &Call, answer: &BTreeMap<String, String>) -> Result<ExitCode> {
    let json = answer.get("result.json").context("the front end answered nothing; it may not know this question")?;
    let text = answer.get("result.txt");
    match (call.format, text) {
        (Format::Text, Some(text)) => {
            for line in text.trim_start_matches('\n').lines() {
                terminal::print(&(filter::log_line(line.as_bytes(), false) + "\n"))?;
            }
        }
        _ => terminal::print(&format!("{json}\n"))?,
    }
    if call.request != "frontend.lint" {
        return Ok(ExitCode::SUCCESS);
    }
    let value: Value = serde_json::from_str(json).context("the front end's answer is no JSON")?;
    let error = value["buildError"]["message"].as_str();
    if call.format == Format::Text {
        let count = value["warnings"].as_array().map_or(0, Vec::len);
        terminal::note(&filter::plain_text(&summary(count, error)));
    }
    let status = answer.get("result.statuscode").and_then(|code| code.parse::<u8>().ok());
    let failed = status.unwrap_or_else(|| u8::from(error.is_some() || value["warnings"].is_array()));
    Ok(if call.ignore_status { ExitCode::SUCCESS } else { ExitCode::from(failed) })
}

fn summary(warnings: usize, error: Option<&str>) -> String {
    let found = match warnings {
        0 => "no warnings found.".to_owned(),
        1 => "1 warning has been found!".to_owned(),
        n => format!("{n} warnings have been found!"),
    };
    match error {
        None => format!("Check complete, {found}"),
        Some(error) => format!("Check stopped at an error, {found}\n{error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_counts() {
        assert_eq!(summary(0, None), "Check complete, no warnings found.");
        assert_eq!(summary(2, None), "Check complete, 2 warnings have been found!");
        assert!(summary(1, Some("bad")).ends_with("1 warning has been found!\nbad"));
    }
}
