//! What the doctor says of a start that failed.

use super::{Report, Status};
use crate::cli::daemon::Userns;
use crate::progress::filter;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

/// The doctor is given this long.
const PATIENCE: Duration = Duration::from_secs(3);

/// Has this program look at the machine in a process of its own, and returns one or two lines to add to an error; nothing if it
/// finds nothing broken, or nothing that the error doesn't say itself.
pub async fn verdict(root: &Path, userns: Userns, error: &str) -> String {
    let mut command = tokio::process::Command::new("/proc/self/exe");
    command.arg0("bud").args(["doctor", "--json", "--userns", userns.word(), "--root"]).arg(root);
    command.stdin(Stdio::null()).stderr(Stdio::null()).kill_on_drop(true);
    let Ok(Ok(output)) = tokio::time::timeout(PATIENCE, command.output()).await else { return String::new() };
    serde_json::from_slice::<Report>(&output.stdout).map_or_else(|_| String::new(), |report| lines(&report, error))
}

fn lines(report: &Report, error: &str) -> String {
    let Some(check) = report.checks.iter().find(|check| check.status == Status::Broken) else { return String::new() };
    let fix = check.fix.as_deref().unwrap_or_default();
    if error.contains(fix) && error.contains(&check.detail) {
        return "\n`bud doctor` finds the same; it shows all that this machine lacks".into();
    }
    filter::plain_text(&format!("\n`bud doctor` finds: {}: {}\nfix: {fix}", check.name, check.detail))
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;

    #[test]
    fn the_first_broken_thing_is_told_once() {
        let mut report = Report { ok: true, users: String::new(), checks: vec![Check::ok("a", "b")] };
        assert_eq!(lines(&report, "x"), "");
        report.checks.push(Check::broken("disk space", "1 KB free", "bud prune"));
        report.checks.push(Check::broken("other", "y", "z"));
        assert_eq!(lines(&report, "cannot write"), "\n`bud doctor` finds: disk space: 1 KB free\nfix: bud prune");
        assert!(lines(&report, "1 KB free; try bud prune").contains("finds the same"));
    }
}
