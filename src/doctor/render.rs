//! The report as people read it: groups, columns, and below each trouble what to type.

use super::{Report, Status};
use crate::progress::{Style, filter};
use std::fmt::Write as _;

/// Writes the report.
pub(super) fn text(report: &Report, style: Style) -> String {
    let mut out = String::new();
    let width = report.checks.iter().map(|check| console::measure_text_width(&check.name)).max().unwrap_or(0);
    let mut group = "";
    for check in &report.checks {
        if check.group != group {
            let gap = if group.is_empty() { "" } else { "\n" };
            _ = writeln!(out, "{gap}{}", style.paint("1", &check.group));
            group = &check.group;
        }
        let word = match check.status {
            Status::Ok => style.green("ok      "),
            Status::Degraded => style.yellow("degraded"),
            Status::Broken => style.red("broken  "),
        };
        let gap = " ".repeat(width - console::measure_text_width(&check.name));
        _ = writeln!(out, "  {word}  {}{gap}  {}", filter::name(&check.name), filter::name(&check.detail));
        if check.status == Status::Ok {
            continue;
        }
        let indent = " ".repeat(width + 14);
        if let Some(lost) = &check.lost {
            _ = writeln!(out, "{indent}{}", style.faint(&format!("lost: {lost}")));
        }
        if let Some(fix) = check.fix.as_ref().filter(|fix| !fix.is_empty()) {
            _ = writeln!(out, "{indent}fix:  {}", filter::name(fix));
        }
    }
    let count = |status| report.checks.iter().filter(|check| check.status == status).count();
    let (degraded, broken) = (count(Status::Degraded), count(Status::Broken));
    let verdict = match (report.ok, degraded) {
        (false, _) => style.red(&format!("Builds don't work here yet: {broken} broken.")),
        (true, 0) => style.green(&format!("Builds work here ({}).", report.users)),
        (true, _) => format!("{} {degraded} degraded.", style.green(&format!("Builds work here ({}).", report.users))),
    };
    _ = writeln!(out, "\n{verdict}");
    out
}

#[cfg(test)]
mod tests {
    use super::super::Check;
    use super::*;

    #[test]
    fn a_report() {
        let in_group = |group: &str, check: Check| Check { group: group.into(), ..check };
        let mut report = Report {
            ok: true,
            users: "rootless, own ID alone".into(),
            checks: vec![
                in_group("Kernel", Check::ok("user namespace", "can be made")),
                in_group(
                    "Users",
                    Check::degraded("newuidmap", "not installed", "owners", "sudo apt-get install uidmap"),
                ),
            ],
        };
        insta::assert_snapshot!(text(&report, Style { colors: false, unicode: true }));
        report.checks.push(in_group("Storage", Check::broken("programs", "n\x1bone", "remount")));
        report.ok = false;
        insta::assert_snapshot!(text(&report, Style { colors: false, unicode: true }));
    }
}
