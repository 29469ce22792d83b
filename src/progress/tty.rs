//! The live display: what ended is written above and stays, what runs is drawn below it.

use super::frame::{self, Style};
use super::model::{Changes, Model, Time, Vertex};
use super::screen::Screen;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::collections::HashSet;

/// Pauses between drawings, in nanoseconds.
const DRAW_PAUSE: Time = 80_000_000;
/// What isn't a step of the Dockerfile is written down only if it took this long.
const NOTABLE: Time = 1_000_000_000;
/// The display begins to draw after this long, so that a build which is done at once doesn't flicker.
const QUIET_START: Time = 120_000_000;

/// The live display.
pub struct Tty {
    screen: Screen,
    style: Style,
    multi: MultiProgress,
    bar: ProgressBar,
    began: Time,
    drawn: Time,
    /// Columns at the last drawing, and the widths of its lines.
    columns: u16,
    widths: Vec<usize>,
    written: HashSet<usize>,
}

impl Tty {
    /// Draws on a screen.
    pub fn new(screen: Screen, style: Style, now: Time) -> Self {
        let (multi, bar) = Self::bar(&screen);
        Self {
            screen,
            style,
            multi,
            bar,
            began: now,
            drawn: 0,
            columns: 0,
            widths: Vec::new(),
            written: HashSet::new(),
        }
    }

    fn bar(screen: &Screen) -> (MultiProgress, ProgressBar) {
        let multi = MultiProgress::with_draw_target(ProgressDrawTarget::term_like(Box::new(screen.clone())));
        // The template is a constant: it has no part that could be wrong.
        let style = ProgressStyle::with_template("{msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
        let bar = multi.add(ProgressBar::no_length().with_style(style));
        (multi, bar)
    }

    /// Takes changes in: what ended is written down.
    pub fn update(&mut self, model: &Model, changes: &Changes, now: Time) {
        let mut ended = Vec::new();
        for &index in &changes.vertices {
            let vertex = &model.vertices[index];
            if vertex.completed.is_some() && is_worth_a_line(vertex) && self.written.insert(index) {
                ended.push(self.ended_line(vertex));
            }
        }
        if !ended.is_empty() {
            self.write_above(&ended);
            self.drawn = 0;
        }
        self.draw(model, now);
    }

    fn width(&self) -> usize {
        usize::from(self.screen.size().1).saturating_sub(1).clamp(20, 110)
    }

    fn ended_line(&self, vertex: &Vertex) -> String {
        let mark = if vertex.error.is_empty() {
            self.style.done()
        } else if vertex.is_canceled() {
            self.style.faint("-")
        } else {
            self.style.failed()
        };
        frame::step_line(&mark, vertex, 0, self.width(), self.style)
    }

    /// Writes lines above the live part, where they stay.
    pub fn write_above(&mut self, lines: &[String]) {
        let text: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
        let screen = &self.screen;
        // What can't be written is not shown; the build goes on.
        self.multi.suspend(|| _ = screen.print(&text));
    }

    /// Draws what runs, unless that was done a moment ago.
    pub fn draw(&mut self, model: &Model, now: Time) {
        if now.saturating_sub(self.drawn) < DRAW_PAUSE || now.saturating_sub(self.began) < QUIET_START {
            return;
        }
        self.drawn = now;
        let (rows, columns) = self.screen.size();
        if self.columns != 0 && columns < self.columns {
            self.erase_reflowed(columns);
        }
        self.columns = columns;
        let lines = frame::lines(model, self.began, now, rows.into(), columns.into(), self.style);
        self.widths = lines.iter().map(|line| console::measure_text_width(line)).collect();
        self.bar.set_message(lines.join("\n"));
        self.bar.tick();
    }

    /// Erases the live part after the terminal became narrower, and broke its lines.
    fn erase_reflowed(&mut self, columns: u16) {
        let columns = usize::from(columns.max(1));
        let rows: usize = self.widths.iter().map(|width| width.div_ceil(columns).max(1)).sum();
        let (multi, bar) = Self::bar(&self.screen);
        self.bar.set_draw_target(ProgressDrawTarget::hidden());
        self.multi.set_draw_target(ProgressDrawTarget::hidden());
        (self.multi, self.bar) = (multi, bar);
        let up = rows.saturating_sub(1);
        let up = if up > 0 { format!("\u{1b}[{up}A") } else { String::new() };
        // As above: what can't be written is not shown.
        _ = self.screen.print(&format!("\r{up}\u{1b}[J"));
    }

    /// Ends the live part: it disappears, what was written above stays.
    pub fn finish(&mut self) {
        self.bar.finish_and_clear();
        // The terminal may be gone.
        _ = self.multi.clear();
    }
}

/// Tells whether a step that ended is written down: steps of the Dockerfile that did something, and what took long.
fn is_worth_a_line(vertex: &Vertex) -> bool {
    if !vertex.error.is_empty() {
        return true;
    }
    if vertex.name.is_empty() || vertex.cached {
        return false;
    }
    vertex.is_step() || vertex.elapsed(0) >= NOTABLE
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use std::io::{self, Write};
    use std::sync::{Arc, Mutex};

    #[derive(Clone)]
    struct Terminal(Arc<Mutex<vt100::Parser>>);

    impl Write for Terminal {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            // As the terminal's line discipline does.
            for &byte in bytes {
                self.0.lock().unwrap().process(&[byte]);
            }
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn parser(rows: u16, columns: u16) -> vt100::Parser {
        vt100::Parser::new(rows.try_into().unwrap(), columns.try_into().unwrap(), 100)
    }

    fn terminal(rows: u16, columns: u16) -> (Terminal, Screen) {
        let terminal = Terminal(Arc::new(Mutex::new(parser(rows, columns))));
        let asked = terminal.clone();
        let size = Arc::new(move || {
            let (rows, columns) = asked.0.lock().unwrap().screen().size();
            (rows.get(), columns.get())
        });
        let screen = Screen::new(Box::new(terminal.clone()), size);
        (terminal, screen)
    }

    const BARE: Style = Style { colors: false, unicode: true };

    fn contents(terminal: &Terminal) -> String {
        terminal.0.lock().unwrap().screen().contents()
    }

    #[test]
    fn a_build_on_a_terminal() {
        let (terminal, screen) = terminal(16, 80);
        let mut model = Model::default();
        let mut tty = Tty::new(screen, BARE, 0);
        let mut shots = String::new();
        let mut want = [2.0, 3.0, 4.25].into_iter().peekable();
        for (when, event) in recorded() {
            while let Some(at) = want.next_if(|at| *at < when) {
                tty.draw(&model, seconds(at));
                shots.push_str(&format!("== {at}s\n{}\n", contents(&terminal)));
            }
            let changes = model.apply(&event);
            tty.update(&model, &changes, seconds(when));
        }
        tty.finish();
        shots.push_str(&format!("== end\n{}\n", contents(&terminal)));
        insta::assert_snapshot!(shots);
    }

    #[test]
    fn a_build_from_the_cache_draws_nothing() {
        let (terminal, screen) = terminal(16, 80);
        let mut model = Model::default();
        let mut tty = Tty::new(screen, BARE, 0);
        for i in 0..5 {
            let event = cached(&i.to_string(), &format!("[{i}/5] RUN x"), 0.01);
            let changes = model.apply(&event);
            tty.update(&model, &changes, seconds(0.01));
        }
        tty.finish();
        assert_eq!(contents(&terminal), "");
        assert_eq!(model.counts(), (5, 5, 5));
    }

    #[test]
    fn hostile_names_and_logs_don_t_steer_the_terminal() {
        let (terminal, screen) = terminal(16, 80);
        let mut model = Model::default();
        let mut tty = Tty::new(screen, Style { colors: true, unicode: true }, 0);
        for event in [
            vertex("a", "[1/1] RUN \x1b]0;pwned\x07\x1b[2J\nnext\u{202e}", Some(0.0), None),
            log("a", 0.5, "\x1b[H\x1b[2J\x1b]52;c;eA==\x07\x1b[41mred\n"),
        ] {
            let changes = model.apply(&event);
            tty.update(&model, &changes, seconds(1.0));
        }
        tty.draw(&model, seconds(2.0));
        let shown = contents(&terminal);
        assert!(shown.starts_with(" ⠋ [1/1] RUN \\x1b]0;pwned\\x07\\x1b[2J next\\u{202e}"), "{shown}");
        assert!(shown.contains("│ red"), "{shown}");
        let parser = terminal.0.lock().unwrap();
        assert_eq!(parser.screen().cell(3, 0).unwrap().bgcolor(), vt100::Color::Default);
    }

    #[test]
    fn a_narrower_terminal_leaves_nothing_behind() {
        let (terminal, screen) = terminal(24, 100);
        let mut model = Model::default();
        let mut tty = Tty::new(screen, BARE, 0);
        for i in 0..3 {
            let changes = model.apply(&vertex(&i.to_string(), &format!("[{i}/3] RUN x"), Some(0.0), None));
            tty.update(&model, &changes, seconds(1.0));
        }
        // As terminals do that reflow: each line of 99 columns takes two rows of 60.
        let reflowed: Vec<String> = contents(&terminal)
            .lines()
            .flat_map(|line| {
                let chars: Vec<char> = line.chars().collect();
                chars.chunks(60).map(|chunk| chunk.iter().collect::<String>()).collect::<Vec<_>>()
            })
            .collect();
        {
            let mut parser = terminal.0.lock().unwrap();
            *parser = self::parser(24, 60);
            parser.process(reflowed.join("\r\n").as_bytes());
        }
        tty.draw(&model, seconds(2.0));
        let shown = contents(&terminal);
        assert_eq!(shown.matches("RUN x").count(), 3, "{shown}");
        assert!(shown.lines().all(|line| line.chars().count() < 60), "{shown}");
    }
}
