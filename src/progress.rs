//! Showing a build's progress: a model of what is known, and the ways to show it.

pub mod filter;
mod frame;
mod model;
mod plain;
mod rawjson;
mod screen;
#[cfg(test)]
pub(crate) mod testing;
mod tty;
mod units;

pub use frame::Style;
pub use model::{Model, Time, Vertex, now, time};
pub use units::{bytes as bytes_text, seconds as seconds_text};

use crate::cli::build::ProgressMode;
use bud_protocol::control::StatusResponse;
use std::io::{self, IsTerminal as _};

/// How a build is shown.
enum Display {
    Tty(Box<tty::Tty>),
    /// Each event is written at once: stderr itself doesn't gather what belongs together.
    Plain(Box<plain::Plain<io::BufWriter<io::Stderr>>>),
    RawJson(rawjson::RawJson<io::Stderr>),
    Quiet,
}

/// A build's progress: what is known of it, and how it is shown.
pub struct Progress {
    /// What is known.
    pub model: Model,
    /// When it began.
    pub began: Time,
    /// Colours and characters.
    pub style: Style,
    display: Display,
}

impl Progress {
    /// Begins to show a build.
    #[must_use]
    pub fn new(mode: ProgressMode) -> Self {
        let began = now();
        let style = Style { colors: crate::terminal::stderr_has_colors(), unicode: is_unicode() };
        let terminal = io::stderr().is_terminal();
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let display = match mode {
            ProgressMode::Auto if terminal && !dumb => {
                Display::Tty(Box::new(tty::Tty::new(screen::Screen::stderr(), style, began)))
            }
            ProgressMode::Tty if terminal => {
                Display::Tty(Box::new(tty::Tty::new(screen::Screen::stderr(), style, began)))
            }
            ProgressMode::Auto | ProgressMode::Plain | ProgressMode::Tty => {
                Display::Plain(Box::new(plain::Plain::new(io::BufWriter::new(io::stderr()), terminal, style.colors)))
            }
            ProgressMode::Rawjson => Display::RawJson(rawjson::RawJson(io::stderr())),
            ProgressMode::Quiet => Display::Quiet,
        };
        Self { model: Model::default(), began, style, display }
    }

    /// Shows an event.
    ///
    /// # Errors
    /// Whoever reads along is gone (`| head -1`), or the disk that the lines go to is full.
    pub fn update(&mut self, event: &StatusResponse) -> io::Result<()> {
        let changes = self.model.apply(event);
        match &mut self.display {
            // A terminal that goes away says so by a signal.
            Display::Tty(tty) => tty.update(&self.model, &changes, now()),
            Display::Plain(plain) => plain.update(&self.model, &changes)?,
            Display::RawJson(raw) => raw.update(event)?,
            Display::Quiet => {}
        }
        Ok(())
    }

    /// Lets time pass: elapsed times and spinners move.
    pub fn tick(&mut self) {
        if let Display::Tty(tty) = &mut self.display {
            tty.draw(&self.model, now());
        }
    }

    /// Tells whether time passing changes what is shown.
    #[must_use]
    pub fn is_live(&self) -> bool {
        matches!(self.display, Display::Tty(_))
    }

    /// Tells whether people read along, so that a summary is welcome.
    #[must_use]
    pub fn has_reader(&self) -> bool {
        matches!(self.display, Display::Tty(_) | Display::Plain(_))
    }

    /// Ends the display; the terminal is as it was, below what stays.
    pub fn finish(&mut self) {
        match &mut self.display {
            Display::Tty(tty) => tty.finish(),
            // At the end there is nothing left to stop.
            Display::Plain(plain) => _ = plain.finish(&self.model),
            Display::RawJson(_) | Display::Quiet => {}
        }
    }
}

impl Drop for Progress {
    /// A build that is given up leaves the terminal as it was, too.
    fn drop(&mut self) {
        self.finish();
    }
}

/// Tells whether the locale is one of UTF-8, as far as the environment says.
fn is_unicode() -> bool {
    let first =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    // Without any word on it, as in many containers, terminals today are UTF-8 all the same.
    first.is_none_or(|locale| {
        let locale = locale.to_ascii_lowercase();
        locale.contains("utf-8") || locale.contains("utf8")
    })
}
