//! The live part of the terminal: what runs now, as lines. Pure: the same model, size and time give the same lines.

use super::filter;
use super::model::{Counter, Model, Time, Vertex};
use super::units;
use std::fmt::Write as _;

/// Rows of log that a running step shows at most.
const LOG_ROWS: usize = 5;
/// Lines are not wider than this: a time at the far end of a wide screen isn't read as its step's.
const WIDTH_LIMIT: usize = 110;
/// Columns of a byte bar.
const BAR: usize = 24;

/// What lines are drawn with.
#[derive(Debug, Clone, Copy)]
pub struct Style {
    /// Colours are allowed.
    pub colors: bool,
    /// The locale has the box and check characters.
    pub unicode: bool,
}

impl Style {
    /// Wraps text into a colour (SGR parameters).
    #[must_use]
    pub fn paint(self, color: &str, text: &str) -> String {
        if self.colors && !text.is_empty() { format!("\u{1b}[{color}m{text}\u{1b}[0m") } else { text.to_owned() }
    }

    /// Makes text faint.
    #[must_use]
    pub fn faint(self, text: &str) -> String {
        self.paint("2", text)
    }

    /// Makes text red and bold.
    #[must_use]
    pub fn red(self, text: &str) -> String {
        self.paint("1;31", text)
    }

    /// Makes text green.
    #[must_use]
    pub fn green(self, text: &str) -> String {
        self.paint("32", text)
    }

    /// Makes text yellow.
    #[must_use]
    pub fn yellow(self, text: &str) -> String {
        self.paint("33", text)
    }

    fn spinner(self, now: Time) -> &'static str {
        const UNICODE: [&str; 10] = ["⠋", "⠙", "⠹", "⠸", "⠼", "⠴", "⠦", "⠧", "⠇", "⠏"];
        const ASCII: [&str; 4] = ["|", "/", "-", "\\"];
        let tick = usize::try_from(now.max(0) / 100_000_000).unwrap_or(0);
        if self.unicode { UNICODE[tick % UNICODE.len()] } else { ASCII[tick % ASCII.len()] }
    }

    /// The mark of what went well.
    #[must_use]
    pub fn done(self) -> String {
        self.green(if self.unicode { "✔" } else { "*" })
    }

    /// The mark of what failed.
    #[must_use]
    pub fn failed(self) -> String {
        self.red(if self.unicode { "✘" } else { "x" })
    }

    fn log_edge(self) -> &'static str {
        if self.unicode { "│" } else { "|" }
    }

    fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "..." }
    }
}

/// Returns the lines of what runs at `now`, none wider than the screen, at most as many as it has rows to spare.
#[must_use]
pub fn lines(model: &Model, began: Time, now: Time, rows: usize, columns: usize, style: Style) -> Vec<String> {
    let width = columns.saturating_sub(1).min(WIDTH_LIMIT);
    let running: Vec<&Vertex> = model.vertices.iter().filter(|v| v.is_running() && !v.name.is_empty()).collect();
    let space = rows.saturating_sub(2).max(1);
    let shown = running.len().min(space.saturating_sub(1).max(1));
    // Each step has its line; what is left is shared out for logs and bars.
    let details = (space.saturating_sub(shown)).checked_div(shown).unwrap_or(0).min(LOG_ROWS);
    let mut lines = Vec::new();
    for vertex in &running[..shown] {
        let mark = style.paint("36", style.spinner(now));
        lines.push(step_line(&mark, vertex, now, width, style));
        lines.extend(detail_lines(vertex, details, now, width, style));
    }
    if running.len() > shown {
        lines.push(style.faint(&format!("   and {} more", running.len() - shown)));
    }
    lines.push(cut(&summary(model, began, now, style), width, style));
    lines
}

fn summary(model: &Model, began: Time, now: Time, style: Style) -> String {
    let (all, ended, cached) = model.counts();
    let elapsed = units::seconds(now.saturating_sub(began));
    let mut text = format!("   {elapsed}");
    if all > 0 {
        _ = write!(text, "  {ended} of {all} steps");
    }
    if cached > 0 {
        _ = write!(text, ", {cached} cached");
    }
    style.faint(&text)
}

/// Returns a step's line: mark, name, and its time at the right.
#[must_use]
pub fn step_line(mark: &str, vertex: &Vertex, now: Time, width: usize, style: Style) -> String {
    let time = units::seconds(vertex.elapsed(now));
    let room = width.saturating_sub(time.len() + 5);
    let name = short_digest(&vertex.name);
    let name = console::truncate_str(&name, room, style.ellipsis());
    let gap = room.saturating_sub(console::measure_text_width(&name)) + 1;
    format!(" {mark} {name}{}{}", " ".repeat(gap), style.faint(&time))
}

fn detail_lines(vertex: &Vertex, rows: usize, now: Time, width: usize, style: Style) -> Vec<String> {
    let bars: Vec<&Counter> = vertex.counters.iter().filter(|c| c.completed.is_none()).collect();
    let mut lines: Vec<String> =
        bars.iter().rev().take(rows).rev().map(|counter| counter_line(counter, now, width, style)).collect();
    let left = rows.saturating_sub(lines.len());
    let mut log: Vec<String> = Vec::new();
    let partial = vertex.open.iter().map(|open| open.partial()).filter(|p| !p.is_empty());
    let whole = vertex.log.iter().rev().map(|(_, line)| line.as_slice());
    for line in partial.chain(whole) {
        if log.len() >= left {
            break;
        }
        let text = filter::log_line(line, style.colors);
        if console::measure_text_width(&text) > 0 {
            log.push(format!("   {} {}", style.faint(style.log_edge()), cut(&text, width.saturating_sub(5), style)));
        }
    }
    log.reverse();
    lines.extend(log);
    lines
}

fn counter_line(counter: &Counter, now: Time, width: usize, style: Style) -> String {
    let elapsed = counter.started.map(|started| now.saturating_sub(started));
    let id = shorten(&counter.id);
    let edge = style.faint(style.log_edge());
    let text = if counter.total > 0 {
        let per_mille = (i128::from(counter.current.min(counter.total)) * 1000 / i128::from(counter.total)).max(0);
        let filled = usize::try_from(per_mille).unwrap_or(0) * BAR / 1000;
        let (full, empty) = if style.unicode { ("━", "─") } else { ("=", "-") };
        let bar = format!("{}{}", style.paint("36", &full.repeat(filled)), style.faint(&empty.repeat(BAR - filled)));
        format!("{id} {bar} {} of {}", units::bytes(counter.current), units::bytes(counter.total))
    } else if counter.current > 0 {
        format!("{id} {}", units::bytes(counter.current))
    } else {
        format!("{id} {}", style.faint(&elapsed.map(units::seconds).unwrap_or_default()))
    };
    format!("   {edge} {}", cut(&text, width.saturating_sub(5), style))
}

/// Shortens the digest that an image's name ends with: it is there to be recognized, not to be copied.
fn short_digest(name: &str) -> std::borrow::Cow<'_, str> {
    match name.split_once("@sha256:") {
        Some((image, digest)) if digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit()) => {
            format!("{image}@{}", &digest[..12]).into()
        }
        _ => name.into(),
    }
}

/// Shortens the digest in a counter's id.
fn shorten(id: &str) -> String {
    let Some(at) = id.find("sha256:") else { return id.to_owned() };
    let (head, digest) = id.split_at(at + "sha256:".len());
    let end = digest.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(digest.len());
    let (hex, rest) = digest.split_at(end);
    format!("{}{}{rest}", head.strip_suffix("sha256:").unwrap_or(head), &hex[..hex.len().min(12)])
}

fn cut(text: &str, width: usize, style: Style) -> String {
    let cut = console::truncate_str(text, width, style.ellipsis());
    // Colours end with the line.
    if style.colors && cut.contains('\u{1b}') && !cut.ends_with("\u{1b}[0m") {
        format!("{cut}\u{1b}[0m")
    } else {
        cut.into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    const BARE: Style = Style { colors: false, unicode: true };

    fn at(seconds_: f64, rows: usize, columns: usize, style: Style) -> String {
        let mut model = Model::default();
        for (when, event) in recorded() {
            if when <= seconds_ {
                model.apply(&event);
            }
        }
        lines(&model, 0, seconds(seconds_), rows, columns, style).join("\n")
    }

    #[test]
    fn a_pull_has_bars() {
        insta::assert_snapshot!(at(2.0, 24, 80, BARE));
    }

    #[test]
    fn a_run_has_its_last_lines() {
        insta::assert_snapshot!(at(3.0, 24, 80, BARE));
    }

    #[test]
    fn a_pinned_image_has_a_short_digest() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(short_digest(&format!("[1/2] FROM a:1@sha256:{hex}")), "[1/2] FROM a:1@0123456789ab");
        assert_eq!(short_digest("[1/2] RUN echo @sha256:x"), "[1/2] RUN echo @sha256:x");
    }

    #[test]
    fn colours_end_with_their_line() {
        for line in at(3.0, 24, 60, Style { colors: true, unicode: false }).lines() {
            let last = line.rfind('\u{1b}').map(|at| &line[at..]);
            assert!(last.is_none_or(|last| last.starts_with("\u{1b}[0m")), "{line:?}");
        }
    }

    #[test]
    fn nothing_is_wider_or_higher_than_the_screen() {
        let mut model = Model::default();
        for i in 0..50 {
            let name = format!("[{i}/50] RUN {}", "漢字 wide ".repeat(20));
            model.apply(&vertex(&i.to_string(), &name, Some(1.0), None));
            model.apply(&log(&i.to_string(), 1.0, &"\x1b[31mlong ".repeat(100)));
        }
        for (rows, columns) in [(24, 80), (3, 20), (1, 1), (0, 0), (10, 200)] {
            let lines = lines(&model, 0, seconds(5.0), rows, columns, BARE);
            assert!(lines.len() <= rows.max(3), "{} lines on {rows} rows", lines.len());
            for line in &lines {
                let width = console::measure_text_width(line);
                assert!(columns < 20 || width < columns, "{width} on {columns}: {line}");
            }
        }
    }
}
