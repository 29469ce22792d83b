//! What the command writes besides a build's progress.

use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::Path;

/// Writes a line to stderr. That it can't be written is no reason to fail.
pub fn note(line: &str) {
    _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes to stdout; a closed pipe or a full disk is an error, not a panic.
pub fn print(text: &str) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()).context("cannot write to standard output")
}

/// Tells whether stderr takes colours: a terminal that isn't dumb, and no NO_COLOR; CLICOLOR_FORCE overrules.
#[must_use]
pub fn stderr_has_colors() -> bool {
    use std::io::IsTerminal as _;
    has_colors(io::stderr().is_terminal())
}

/// Tells the same of stdout.
#[must_use]
pub fn stdout_has_colors() -> bool {
    use std::io::IsTerminal as _;
    has_colors(io::stdout().is_terminal())
}

fn has_colors(is_terminal: bool) -> bool {
    let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    if set("CLICOLOR_FORCE") && std::env::var_os("CLICOLOR_FORCE").is_some_and(|v| v != "0") {
        return true;
    }
    is_terminal && std::env::var_os("TERM").is_none_or(|term| term != "dumb")
}

/// Reads the last bytes of a file.
pub fn tail(path: &Path, bytes: u64) -> io::Result<String> {
    let mut file = std::fs::File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(bytes)))?;
    let mut text = Vec::new();
    file.take(bytes).read_to_end(&mut text)?;
    Ok(String::from_utf8_lossy(&text).into_owned())
}
