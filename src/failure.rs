//! A build that failed, as people see it: the step's last lines, the Dockerfile's lines, what went wrong.

use crate::progress::filter;
use crate::progress::{Model, Style};
use bud_protocol::errors::{BuildError, SourcePlace};
use std::fmt::Write as _;

/// So many lines of a failed step's log are shown again.
const LOG_LINES: usize = 20;
/// Lines around the one that is marked.
const AROUND: usize = 2;
/// Longer lines are cut.
const LINE_WIDTH: usize = 400;
/// At most so many lines of a Dockerfile are shown for one place.
const PLACE_LINES: usize = 20;

/// Writes a failed build's error. `with_log`: the step's last lines are worth repeating.
#[must_use]
pub fn render(error: &BuildError, model: &Model, style: Style, with_log: bool) -> String {
    let mut out = String::new();
    if with_log {
        log(&mut out, error, model, style);
    }
    // The innermost place is last on the wire and first of interest; the same place isn't shown twice.
    let mut shown = Vec::new();
    for place in error.places() {
        let text = place_text(place, style);
        if !text.is_empty() && !shown.contains(&text) {
            out.push_str(&text);
            shown.push(text);
        }
    }
    let message = filter::plain_text(without_codes(error.message.trim_end()).as_str());
    _ = writeln!(out, "{} {message}", style.red("error:"));
    if let Some(help) = help(error) {
        _ = writeln!(out, "{} {help}", style.paint("36", "help:"));
    }
    out
}

/// Says what can be done about errors that many people meet.
fn help(error: &BuildError) -> Option<&'static str> {
    let has = |text: &str| error.message.contains(text);
    match error.exit_code() {
        Some(127) => return Some("127 is a shell's word for: no such command. It isn't in this image, or not in PATH"),
        Some(126) => {
            return Some("126 is a shell's word for: found, but not executable (chmod +x, or another platform's)");
        }
        Some(137) => return Some("137 means killed, most often because memory ran out"),
        _ => {}
    }
    if has("failed to compute cache key") && has("not found") {
        return Some(
            "the path isn't in the build context (or the stage) that it is taken from, or .dockerignore leaves it out",
        );
    }
    if has("network.host is not allowed") || has("network.host not allowed") {
        return Some("grant it with --allow network.host");
    }
    if has("security.insecure is not allowed") || has("security.insecure not allowed") {
        return Some("grant it with --allow security.insecure; the daemon must allow it, too");
    }
    if has("no space left on device") || has("No space left on device") {
        return Some("`bud du` shows what the cache takes, `bud prune` makes room");
    }
    None
}

/// Takes out what gRPC libraries put before the words of an error that passed through them.
fn without_codes(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    let mut rest = message;
    while let Some(at) = rest.find("rpc error: code = ") {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let code = after["rpc error: code = ".len()..].trim_start_matches(|c: char| c.is_ascii_alphabetic());
        match code.strip_prefix(" desc = ") {
            Some(words) => rest = words,
            None => {
                out.push_str("rpc error: code = ");
                rest = &after["rpc error: code = ".len()..];
            }
        }
    }
    out.push_str(rest);
    out
}

fn log(out: &mut String, error: &BuildError, model: &Model, style: Style) {
    let named = error.details.iter().find_map(|detail| match detail {
        bud_protocol::errors::Detail::Vertex(digest) => model.vertex(digest),
        _ => None,
    });
    let Some(vertex) = named.or_else(|| model.failed()).filter(|v| !v.log.is_empty()) else { return };
    let rule = style.faint("--------------------");
    _ = writeln!(out, "{rule}");
    _ = writeln!(out, " > {}:", vertex.name);
    let skipped = vertex.lines.saturating_sub(LOG_LINES.min(vertex.log.len()));
    if skipped > 0 {
        _ = writeln!(out, "{}", style.faint(&format!("   … {skipped} lines before")));
    }
    let first = vertex.log.len().saturating_sub(LOG_LINES);
    for (at, line) in vertex.log.iter().skip(first) {
        let time = style.faint(&format!("{:.3}", *at as f64 / 1e9));
        _ = writeln!(out, "{time} {}", filter::log_line(line, style.colors));
    }
    _ = writeln!(out, "{rule}");
}

/// Writes the lines of a text that a place is in.
fn place_text(place: &SourcePlace, style: Style) -> String {
    let Some(info) = &place.info else { return String::new() };
    let text = String::from_utf8_lossy(&info.data);
    let lines: Vec<&str> = text.lines().collect();
    let marked: Vec<(usize, usize)> = place
        .ranges
        .iter()
        .filter_map(|range| {
            let line = |p: &Option<bud_protocol::pb::Position>| p.as_ref().and_then(|p| usize::try_from(p.line).ok());
            let start = line(&range.start)?;
            let end = line(&range.end).unwrap_or(start).max(start).min(lines.len());
            (1..=lines.len()).contains(&start).then_some((start, end))
        })
        .collect();
    let (Some(first), Some(last)) = (marked.iter().map(|m| m.0).min(), marked.iter().map(|m| m.1).max()) else {
        return String::new();
    };
    // A line by itself says little: it gets more company.
    let around = if first == last { AROUND * 2 } else { AROUND };
    let from = first.saturating_sub(around).max(1);
    let to = (last + around).min(lines.len()).min(from + PLACE_LINES);
    let rule = style.faint("--------------------");
    let mut out = format!("{}:{first}\n{rule}\n", filter::name(&info.filename));
    for number in from..=to {
        let is_marked = marked.iter().any(|&(start, end)| (start..=end).contains(&number));
        let line = filter::name(lines[number - 1].trim_end());
        let line = console::truncate_str(&line, LINE_WIDTH, "…");
        let mark = if is_marked { style.red(">>>") } else { "   ".into() };
        let line = format!("{number:4} | {mark} {line}");
        _ = writeln!(out, "{}", line.trim_end());
    }
    _ = writeln!(out, "{rule}");
    out
}

/// Returns the warnings of a build, for its end.
#[must_use]
pub fn warnings(model: &Model, style: Style) -> String {
    /// More than these are counted only.
    const SHOWN: usize = 10;
    let mut out = String::new();
    if model.warnings.is_empty() {
        return out;
    }
    let count = model.warnings.len();
    _ = writeln!(out, "\n{}", style.yellow(&format!("{count} warning{}:", if count == 1 { "" } else { "s" })));
    for warning in model.warnings.iter().take(SHOWN) {
        _ = writeln!(out, " {} {}", style.yellow("-"), filter::name(&String::from_utf8_lossy(&warning.short)));
    }
    if count > SHOWN {
        _ = writeln!(out, "   … and {} more", count - SHOWN);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::testing;
    use bud_protocol::errors::Detail;
    use bud_protocol::pb;

    const BARE: Style = Style { colors: false, unicode: true };

    fn place(data: &str, start: i32, end: i32) -> Detail {
        let position = |line| Some(pb::Position { line, character: 0 });
        Detail::Source(Box::new(SourcePlace {
            info: Some(pb::SourceInfo { filename: "Dockerfile".into(), data: data.into(), ..Default::default() }),
            ranges: vec![pb::Range { start: position(start), end: position(end) }],
        }))
    }

    #[test]
    fn a_failed_run() {
        let mut model = Model::default();
        let name = "[2/2] RUN ./build.sh";
        for event in [
            testing::vertex("sha256:r", name, Some(1.0), None),
            testing::log("sha256:r", 1.1, &(0..30).map(|i| format!("line {i}\n")).collect::<String>()),
            testing::log("sha256:r", 1.5, "\x1b[31mboom\x1b[0m\x1b[2J\n"),
            testing::failed("sha256:r", name, 1.0, 2.0, "exit code: 3"),
        ] {
            model.apply(&event);
        }
        let message = "process \"/bin/sh -c ./build.sh\" did not complete successfully: exit code: 3";
        let error = BuildError::other(message)
            .with(place("FROM debian\nCOPY . .\n\nRUN \\\n  ./build.sh\nCMD x\nUSER a\nLABEL b=c\n", 4, 5))
            .with(Detail::Vertex("sha256:r".into()))
            .with(Detail::Exit(3));
        insta::assert_snapshot!(render(&error, &model, BARE, true));
    }

    #[test]
    fn what_many_meet_has_a_word_of_help() {
        let shown = |error: BuildError| render(&error, &Model::default(), BARE, false);
        let gone = BuildError::other("failed to compute cache key: \"/x\": not found");
        assert!(shown(gone).contains("\nhelp: the path isn't in the build context"));
        assert!(shown(BuildError::other("x").with(Detail::Exit(127))).contains("no such command"));
        assert!(!shown(BuildError::other("x").with(Detail::Exit(3))).contains("help"));
    }

    #[test]
    fn codes_of_the_wire_are_not_for_people() {
        for (message, shown) in [
            ("rpc error: code = Internal desc = disk full", "disk full"),
            ("solving: rpc error: code = Unknown desc = rpc error: code = NotFound desc = x", "solving: x"),
            ("rpc error: code = ", "rpc error: code = "),
            ("plain", "plain"),
        ] {
            assert_eq!(without_codes(message), shown);
        }
    }

    #[test]
    fn places_outside_the_text_are_no_panic() {
        for (start, end) in [(0, 0), (-1, 5), (9, 9), (2, 1), (1, i32::MAX), (i32::MIN, i32::MAX)] {
            let error = BuildError::other("x").with(place("FROM a\nRUN b\n", start, end));
            assert!(render(&error, &Model::default(), BARE, false).ends_with("error: x\n"), "{start} {end}");
        }
    }

    #[test]
    fn a_hostile_error_doesn_t_steer_the_terminal() {
        let error = BuildError::other("no\x1b]0;x\x07\nnext").with(place("RUN \x1b[2J\u{202e}x\n", 1, 1));
        let text = render(&error, &Model::default(), BARE, false);
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
        assert!(text.contains("no\\x1b]0;x\\x07\nnext"), "{text}");
    }
}
