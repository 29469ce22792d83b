//! `bud check`: says what is wrong with a Dockerfile, and mends it. Nothing is started and nobody is asked.

use crate::cli::check::CheckArgs;
use crate::progress::filter;
use crate::request::context::{self, Context};
use crate::request::dockerfile::Source;
use crate::terminal;
use anyhow::{Context as _, Result, bail};
use bud_dockerfile::fix::{self, Fixed, diff};
use bud_dockerfile::{CheckOptions, Diagnostic, Report, Severity, advice, inspect};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

/// A context of this size wants a `.dockerignore`.
const LARGE: u64 = 1 << 30;
/// Files that are looked at to find out.
const MAX_FILES: usize = 100_000;

/// Runs `bud check`.
pub fn run(args: &CheckArgs) -> Result<ExitCode> {
    let (context, source) = context::open(&args.context, args.file.as_deref())?;
    let text = source.text().context("`bud check` reads a Dockerfile of this machine, not one in a tar or at a URL")?;
    if args.fix {
        return mend(args, &source, text);
    }
    let options =
        CheckOptions { filename: source.shown().to_owned(), target: args.target.clone(), ..CheckOptions::default() };
    let mut report = inspect(text, &options);
    if let Context::Dir(dir) = &context
        && !advice::is_off(text, "BudLargeContext")
        && uses_context(text)
        && let Some(found) = large_context(dir, &source)
    {
        report.push(found);
    }
    show(&report)?;
    let has_advice = report.diagnostics.iter().any(|d| d.severity == Severity::Advice);
    let fails = report.has_errors() || report.has_warnings() || (args.strict && has_advice);
    Ok(if fails { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn show(report: &Report) -> Result<()> {
    let colors = terminal::stdout_has_colors();
    let shown = report.render(colors);
    for line in shown.trim_end().lines() {
        // The lines of a Dockerfile are somebody else's text.
        terminal::print(&(filter::log_line(line.as_bytes(), colors) + "\n"))?;
    }
    let count = |severity| report.diagnostics.iter().filter(|d| d.severity == severity).count();
    let number = |n: usize, word: &str| format!("{n} {word}{}", if n == 1 { "" } else { "s" });
    let (errors, warnings, notes) = (count(Severity::Error), count(Severity::Warning), count(Severity::Advice));
    let parts: Vec<String> = [(errors, "error"), (warnings, "warning"), (notes, "piece of advice")]
        .into_iter()
        .filter(|(n, _)| *n > 0)
        .map(
            |(n, word)| {
                if word == "piece of advice" && n > 1 { format!("{n} pieces of advice") } else { number(n, word) }
            },
        )
        .collect();
    let last = if parts.is_empty() { "nothing found".to_owned() } else { parts.join(", ") };
    terminal::note(&last);
    Ok(())
}

fn mend(args: &CheckArgs, source: &Source, text: &[u8]) -> Result<ExitCode> {
    let mut opts = BTreeMap::new();
    opts.extend(args.target.iter().map(|target| ("target".to_owned(), target.clone())));
    let fixed = match fix::fix(text, &opts) {
        Ok(fixed) => fixed,
        Err(error) => {
            // What can't be parsed is shown as it always is.
            let options = CheckOptions { filename: source.shown().to_owned(), ..CheckOptions::default() };
            let report = inspect(text, &options);
            if report.has_errors() {
                show(&report)?;
                return Ok(ExitCode::FAILURE);
            }
            bail!("{}: {error}", source.shown());
        }
    };
    let has_changes = !fixed.changes.is_empty();
    if args.dry_run {
        let old = String::from_utf8_lossy(text);
        let shown = diff::unified(source.shown(), &old, &fixed.text);
        for line in shown.split_inclusive('\n') {
            let clean = filter::log_line(line.trim_end_matches(['\n', '\r']).as_bytes(), false);
            terminal::print(&(clean + "\n"))?;
        }
        tell(&fixed, "would be mended");
        return Ok(if has_changes { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    match source {
        Source::File { dir, name, .. } if has_changes => replace(&dir.join(name), fixed.text.as_bytes())?,
        Source::File { .. } => {}
        _ => terminal::print(&fixed.text)?,
    }
    tell(&fixed, "mended");
    Ok(if fixed.left.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Says what was done and what is left.
fn tell(fixed: &Fixed, done: &str) {
    for change in &fixed.changes {
        let note = if change.changes_meaning { " (the image may behave differently)" } else { "" };
        terminal::note(&filter::plain_text(&format!("line {}: {} {done}{note}", change.line, change.rule)));
    }
    for left in &fixed.left {
        let line = left.lines.first().copied().unwrap_or_default();
        terminal::note(&filter::plain_text(&format!("line {line}: left to you: {}: {}", left.rule, left.message)));
    }
    if fixed.changes.is_empty() && fixed.left.is_empty() {
        terminal::note("nothing to mend");
    }
}

/// Writes a file whole or not at all, with the mode it had; a link stays one.
fn replace(path: &Path, text: &[u8]) -> Result<()> {
    let path = path.canonicalize().with_context(|| format!("cannot write {}", path.display()))?;
    let shown = path.display();
    let dir = path.parent().with_context(|| format!("{shown} is in no folder"))?;
    let mode = std::fs::metadata(&path).with_context(|| format!("cannot read {shown}"))?.permissions();
    let mut new = tempfile::NamedTempFile::new_in(dir).with_context(|| format!("cannot write beside {shown}"))?;
    let written = new.write_all(text).and_then(|()| new.as_file().set_permissions(mode));
    written.with_context(|| format!("cannot write beside {shown}"))?;
    new.persist(&path).with_context(|| format!("cannot replace {shown}"))?;
    Ok(())
}

/// Tells whether a text takes anything from the context.
fn uses_context(text: &[u8]) -> bool {
    use bud_dockerfile::instruction::Kind;
    let Ok(program) = bud_dockerfile::program(text) else { return false };
    program.stages.iter().flat_map(|stage| &stage.instructions).any(|instruction| match &instruction.kind {
        Kind::Copy(copy) => copy.from.is_empty() && !copy.paths.sources.is_empty(),
        Kind::Add(add) => !add.paths.sources.is_empty(),
        _ => false,
    })
}

/// Says that a context is large and has no `.dockerignore`.
fn large_context(dir: &Path, source: &Source) -> Option<Diagnostic> {
    let own = match source {
        Source::File { dir, name, .. } => dir.join(format!("{name}.dockerignore")).exists(),
        _ => false,
    };
    if own || dir.join(".dockerignore").exists() {
        return None;
    }
    let size = size_up_to(dir, LARGE);
    (size >= LARGE).then(|| Diagnostic {
        severity: Severity::Advice,
        rule: Some("BudLargeContext".into()),
        message: format!("the context {} has more than {} GiB, and no .dockerignore", dir.display(), LARGE >> 30),
        span: None,
        line: 0,
        help: Some(
            "name in a file .dockerignore what the build doesn't need (such as .git, node_modules, target)".into(),
        ),
    })
}

/// Adds up files' sizes until there is enough; links aren't followed.
fn size_up_to(dir: &Path, enough: u64) -> u64 {
    let (mut size, mut seen) = (0u64, 0usize);
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            seen += 1;
            let Ok(meta) = entry.metadata() else { continue };
            if meta.is_dir() {
                folders.push(entry.path());
            } else if meta.is_file() {
                size = size.saturating_add(meta.len());
            }
            if size >= enough || seen >= MAX_FILES {
                return size;
            }
        }
    }
    size
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_context_wants_a_dockerignore() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        let file = std::fs::File::create(dir.path().join("sub/big")).unwrap();
        assert!(large_context(dir.path(), &Source::Remote(None)).is_none());
        // A file with a hole is as large as it says.
        file.set_len(LARGE).unwrap();
        let found = large_context(dir.path(), &Source::Remote(None)).unwrap();
        assert_eq!(found.rule.as_deref(), Some("BudLargeContext"));
        std::fs::write(dir.path().join(".dockerignore"), "sub\n").unwrap();
        assert!(large_context(dir.path(), &Source::Remote(None)).is_none());
        assert!(uses_context(b"FROM a\nCOPY . /\n"));
        assert!(!uses_context(b"FROM a\nCOPY --from=b . /\nCOPY <<E /x\nE\n"));
    }

    #[test]
    fn a_file_is_replaced_through_a_link_and_keeps_its_mode() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        std::os::unix::fs::symlink("real", &link).unwrap();
        replace(&link, b"new").unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640);
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
    }
}
