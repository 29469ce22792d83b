//! What each command does.

mod build;
mod cache;
mod check;
mod complete;
mod daemon;
mod images;
mod space;

use crate::cli::{Cli, Command};
use crate::progress::filter;
use crate::terminal;
use anyhow::{Context as _, Result};
use std::process::ExitCode;
use std::time::Duration;

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    if std::env::args_os().nth(1).is_some_and(|word| word == complete::NAME) {
        return complete::run(std::env::args_os().skip(2));
    }
    let cli = match Cli::from_args(std::env::args_os()) {
        Ok(cli) => cli,
        Err(error) => {
            // That help can't be written is told by the exit code alone.
            let code = u8::try_from(error.exit_code()).unwrap_or(2);
            return if error.print().is_ok() { ExitCode::from(code) } else { ExitCode::FAILURE };
        }
    };
    let result = match cli.command {
        None => build::run(cli.build),
        Some(Command::Build(args)) => build::run(*args),
        Some(Command::Check(args)) => check::run(&args),
        Some(Command::Images(args)) => block_on(images::list(args)),
        Some(Command::Rmi(args)) => block_on(images::remove(args)),
        Some(Command::Du(args)) => block_on(space::du(args)),
        Some(Command::Prune(args)) => block_on(space::prune(args)),
        Some(Command::Cache(command)) => block_on(cache::run(command)),
        Some(Command::Daemon(args)) => daemon::run(*args),
        Some(Command::Doctor(args)) => crate::doctor::run(&args),
    };
    result.unwrap_or_else(|error| {
        let style = crate::progress::Style { colors: terminal::stderr_has_colors(), unicode: true };
        terminal::note(&format!("{} {}", style.red("error:"), filter::plain_text(&format!("{error:#}"))));
        ExitCode::FAILURE
    })
}

/// Runs a command that speaks with a daemon.
fn block_on(command: impl Future<Output = Result<ExitCode>>) -> Result<ExitCode> {
    let runtime = runtime()?;
    let result = runtime.block_on(command);
    // A thread that still reads a file doesn't hold the command up.
    runtime.shutdown_timeout(Duration::from_millis(500));
    result
}

/// Makes an event loop on this thread.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start the event loop")
}

/// Says in one line which users there are in a daemon's builds.
fn mode_line(status: &bud_protocol::bud::StatusResponse) -> String {
    let mode = if status.mode == "root" { "as root".to_owned() } else { filter::name(&status.mode) };
    format!("note: the daemon runs {mode}; `bud doctor` says more")
}

/// Says what went wrong with a call to the daemon, in its own words.
fn told(status: tonic::Status) -> anyhow::Error {
    if status.code() == tonic::Code::Unimplemented {
        return anyhow::anyhow!("the daemon is a BuildKit that has no such service; this works with bud's own daemon");
    }
    anyhow::anyhow!("{}", status.message().trim())
}

/// Writes rows as a table whose columns are as wide as they must be.
fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| console::measure_text_width(cell)).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let gap = width - console::measure_text_width(cell) + 3;
            line.push_str(cell);
            line.push_str(&" ".repeat(gap));
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

/// Says how long ago something was, in one unit.
fn ago(seconds_since_1970: i64) -> String {
    let now = crate::progress::now() / 1_000_000_000;
    let (n, unit) = match now.saturating_sub(seconds_since_1970).max(0) {
        s @ 0..60 => (s, "second"),
        s @ 60..3600 => (s / 60, "minute"),
        s @ 3600..172_800 => (s / 3600, "hour"),
        s => (s / 86_400, "day"),
    };
    format!("{n} {unit}{} ago", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let rows = [vec!["A".into(), "LONGER".into()], vec!["wide".into(), "b".into()]];
        assert_eq!(table(&rows), "A      LONGER\nwide   b\n");
    }
}
