//! Progress as lines, for CI and files. Each line carries its step's number, so that parallel steps can be told apart.

use super::filter;
use super::model::{Changes, Model, Time, Vertex};
use super::units;
use std::collections::HashMap;
use std::io::{self, Write};

/// A counter that moves is written again after this long.
const COUNTER_PAUSE: Time = 5_000_000_000;
/// A step that ran shorter than this, silently, may not have run yet.
const MUTE: Time = 10_000_000;

/// Writes events as lines.
pub struct Plain<W> {
    out: W,
    /// A terminal gets no control sequences of a log but colours.
    terminal: bool,
    colors: bool,
    numbers: HashMap<usize, usize>,
    ended: HashMap<usize, Option<Time>>,
    counters: HashMap<(usize, usize), (Time, bool)>,
    /// Steps whose end isn't written yet.
    held: Vec<usize>,
}

impl<W: Write> Plain<W> {
    /// Writes to `out`, which is a terminal or not.
    pub fn new(out: W, terminal: bool, colors: bool) -> Self {
        Self {
            out,
            terminal,
            colors,
            numbers: HashMap::new(),
            ended: HashMap::new(),
            counters: HashMap::new(),
            held: Vec::new(),
        }
    }

    /// Writes what an event changed.
    pub fn update(&mut self, model: &Model, changes: &Changes) -> io::Result<()> {
        self.end_held(model)?;
        let mut order = changes.vertices.clone();
        for index in changes.counters.iter().map(|c| c.0).chain(changes.lines.iter().map(|l| l.0)) {
            if !order.contains(&index) {
                order.push(index);
            }
        }
        for index in order {
            if model.vertices[index].started.is_some() {
                self.begin(model, index)?;
            }
            for &(_, counter) in changes.counters.iter().filter(|c| c.0 == index) {
                self.counter(model, index, counter)?;
            }
            for (_, at, line) in changes.lines.iter().filter(|l| l.0 == index) {
                self.line(model, index, *at, line)?;
            }
            self.end(&model.vertices[index], index)?;
        }
        self.out.flush()
    }

    /// Writes what was held back.
    pub fn finish(&mut self, model: &Model) -> io::Result<()> {
        self.end_held(model)?;
        self.out.flush()
    }

    fn end_held(&mut self, model: &Model) -> io::Result<()> {
        for index in std::mem::take(&mut self.held) {
            self.write_end(&model.vertices[index], index)?;
        }
        Ok(())
    }

    fn line(&mut self, model: &Model, index: usize, at: Time, line: &[u8]) -> io::Result<()> {
        self.begin(model, index)?;
        write!(self.out, "#{} {:.3} ", self.numbers[&index], at.max(0) as f64 / 1e9)?;
        if self.terminal {
            return writeln!(self.out, "{}", filter::log_line(line, self.colors));
        }
        self.out.write_all(line)?;
        self.out.write_all(b"\n")
    }

    fn begin(&mut self, model: &Model, index: usize) -> io::Result<()> {
        if self.numbers.contains_key(&index) {
            return Ok(());
        }
        self.end_held(model)?;
        let number = self.numbers.len() + 1;
        self.numbers.insert(index, number);
        let gap = if number == 1 { "" } else { "\n" };
        writeln!(self.out, "{gap}#{number} {}", model.vertices[index].name)
    }

    fn counter(&mut self, model: &Model, index: usize, at: usize) -> io::Result<()> {
        let counter = &model.vertices[index].counters[at];
        let done = counter.completed.is_some();
        let (before, ended) = *self.counters.entry((index, at)).or_insert((counter.timestamp, false));
        if ended || (!done && counter.timestamp.saturating_sub(before) < COUNTER_PAUSE) {
            return Ok(());
        }
        self.counters.insert((index, at), (counter.timestamp, done));
        self.begin(model, index)?;
        write!(self.out, "#{} {}", self.numbers[&index], counter.id)?;
        if counter.total > 0 {
            write!(self.out, " {} / {}", units::bytes(counter.current), units::bytes(counter.total))?;
        } else if counter.current > 0 {
            write!(self.out, " {}", units::bytes(counter.current))?;
        }
        if let (Some(started), Some(completed)) = (counter.started, counter.completed) {
            write!(self.out, " {} done", units::seconds(completed.saturating_sub(started)))?;
        }
        writeln!(self.out)
    }

    /// Ends a step. A source that ended in no time and had nothing to say may go on at once, as BuildKit's do after they were
    /// looked at: its end waits for what comes next.
    fn end(&mut self, vertex: &Vertex, index: usize) -> io::Result<()> {
        if !self.numbers.contains_key(&index) || vertex.completed.is_none() {
            return Ok(());
        }
        let is_mute = !vertex.is_step()
            && vertex.lines == 0
            && vertex.counters.is_empty()
            && !vertex.cached
            && vertex.error.is_empty();
        if is_mute && vertex.elapsed(0) < MUTE {
            self.held.push(index);
            return Ok(());
        }
        self.write_end(vertex, index)
    }

    fn write_end(&mut self, vertex: &Vertex, index: usize) -> io::Result<()> {
        if vertex.completed.is_none() || self.ended.get(&index) == Some(&vertex.started) {
            return Ok(());
        }
        self.ended.insert(index, vertex.started);
        let number = self.numbers[&index];
        if vertex.is_canceled() {
            writeln!(self.out, "#{number} CANCELED")
        } else if !vertex.error.is_empty() {
            writeln!(self.out, "#{number} ERROR: {}", vertex.error)
        } else if vertex.cached {
            writeln!(self.out, "#{number} CACHED")
        } else {
            writeln!(self.out, "#{number} DONE {}", units::seconds(vertex.elapsed(0)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;
    use bud_protocol::control::StatusResponse;

    fn run(events: &[StatusResponse], terminal: bool) -> String {
        let mut out = Vec::new();
        let mut model = Model::default();
        let mut plain = Plain::new(&mut out, terminal, true);
        for event in events {
            let changes = model.apply(event);
            plain.update(&model, &changes).unwrap();
        }
        plain.finish(&model).unwrap();
        drop(plain);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn a_build() {
        let events: Vec<_> = recorded().into_iter().map(|(_, event)| event).collect();
        insta::assert_snapshot!(run(&events, true).replace('\u{1b}', "␛"));
    }

    #[test]
    fn a_file_keeps_the_bytes_of_a_log() {
        let events =
            [vertex("a", "[1/1] RUN x", Some(1.0), None), log("a", 1.5, "a\x1b[2Jb\x1b[31mc\rd\n"), log("a", 1.6, "e")];
        assert_eq!(run(&events, false), "#1 [1/1] RUN x\n#1 0.500 a\x1b[2Jb\x1b[31mc\rd\n");
        assert_eq!(run(&events, true), "#1 [1/1] RUN x\n#1 0.500 d\n");
    }

    #[test]
    fn a_source_that_goes_on_has_one_end() {
        let name = "[internal] load build context";
        let mut cached_pair = cached("a", "[1/2] COPY a /", 3.0);
        cached_pair.vertexes.extend(cached("b", "[2/2] COPY b /", 3.0).vertexes);
        let mut quick_pair = vertex("x", "[3/4] COPY x /", Some(5.0), Some(5.001));
        quick_pair.vertexes.extend(vertex("y", "[4/4] COPY y /", Some(5.0), Some(5.001)).vertexes);
        let events = [
            vertex("c", name, Some(1.0), Some(1.001)),
            vertex("c", name, Some(1.1), None),
            counter("c", "transferring context:", 24, 0, 1.1, None),
            counter("c", "transferring context:", 38, 0, 1.1, Some(1.3)),
            vertex("c", name, Some(1.1), Some(1.3)),
            cached_pair,
            vertex("e", "exporting to image", Some(4.0), Some(4.001)),
            quick_pair,
        ];
        insta::assert_snapshot!(run(&events, false));
    }

    #[test]
    fn a_failure() {
        let events = [
            vertex("a", "[1/2] RUN x\x1b[2J", Some(1.0), None),
            log("a", 1.5, "oh no"),
            failed("a", "[1/2] RUN x\x1b[2J", 1.0, 2.0, "process \"x\" did not complete successfully: exit code: 3"),
            failed("b", "[2/2] RUN y", 1.0, 2.0, "context canceled: context canceled"),
        ];
        insta::assert_snapshot!(run(&events, false));
    }
}
