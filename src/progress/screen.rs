//! The terminal that indicatif draws on: lines end with newlines instead of being filled up, and a drawing is one write.

use indicatif::TermLike;
use std::fmt::Debug;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, PoisonError};

/// Tells a terminal's rows and columns.
pub type Size = Arc<dyn Fn() -> (u16, u16) + Send + Sync>;

/// A terminal to draw on.
#[derive(Clone)]
pub struct Screen {
    inner: Arc<Mutex<Inner>>,
    size: Size,
}

struct Inner {
    out: Box<dyn Write + Send>,
    buffer: String,
    /// A line was ended; the newline is written when something follows.
    line_ended: bool,
}

impl Screen {
    /// Draws on `out`, whose size is asked for at each drawing.
    pub fn new(out: Box<dyn Write + Send>, size: Size) -> Self {
        Self { inner: Arc::new(Mutex::new(Inner { out, buffer: String::new(), line_ended: false })), size }
    }

    /// Draws on stderr.
    pub fn stderr() -> Self {
        let term = console::Term::stderr();
        Self::new(Box::new(io::stderr()), Arc::new(move || columns_from_env(term.size())))
    }

    /// Returns rows and columns.
    #[must_use]
    pub fn size(&self) -> (u16, u16) {
        (self.size)()
    }

    /// Writes lines that stay.
    pub fn print(&self, text: &str) -> io::Result<()> {
        let mut inner = self.lock();
        inner.line_ended = false;
        inner.out.write_all(text.as_bytes())?;
        inner.out.flush()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // A panic elsewhere leaves at worst half a line.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_cursor(&self, n: usize, direction: char) {
        let mut inner = self.lock();
        inner.line_ended = false;
        if n > 0 {
            inner.buffer.push_str(&format!("\u{1b}[{n}{direction}"));
        }
    }
}

/// COLUMNS, where it is set, says how wide to draw.
fn columns_from_env(size: (u16, u16)) -> (u16, u16) {
    let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok()).filter(|n| (20..=1000).contains(n));
    (size.0, columns.map_or(size.1, |columns: u16| if size.1 == 0 { columns } else { columns.min(size.1) }))
}

impl Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Screen")
    }
}

impl TermLike for Screen {
    fn width(&self) -> u16 {
        self.size().1
    }

    fn height(&self) -> u16 {
        self.size().0
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A');
        Ok(())
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B');
        Ok(())
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C');
        Ok(())
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D');
        Ok(())
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write_str(text)?;
        let mut inner = self.lock();
        inner.line_ended = false;
        inner.buffer.push_str("\r\n");
        Ok(())
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        let mut inner = self.lock();
        if text.chars().all(|c| c == ' ') {
            // What fills a line up to the right edge, where the next one would begin by itself: a line's end, for us.
            inner.buffer.push_str("\u{1b}[K");
            inner.line_ended = true;
        } else {
            if std::mem::take(&mut inner.line_ended) {
                inner.buffer.push_str("\r\n");
            }
            inner.buffer.push_str(text);
        }
        Ok(())
    }

    fn clear_line(&self) -> io::Result<()> {
        let mut inner = self.lock();
        inner.line_ended = false;
        inner.buffer.push_str("\r\u{1b}[2K");
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        let mut inner = self.lock();
        let buffer = std::mem::take(&mut inner.buffer);
        inner.out.write_all(buffer.as_bytes())?;
        inner.out.flush()
    }
}
