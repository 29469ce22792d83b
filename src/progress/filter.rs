//! What may reach a terminal: text from steps, files and registries is other people's, so nothing in it may steer the
//! terminal. Of a log's control sequences only colours stay; names have none.

/// A line that never ends is cut here, in bytes.
const LINE_LIMIT: usize = 16 << 10;
/// Columns between tab stops.
const TAB: usize = 8;

/// Returns text with every control character written out (`\x1b`), so that it is one line.
#[must_use]
pub fn name(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\r' | '\t' => out.push(' '),
            c if steers(c) => escape(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

/// Returns text in which lines and tabs stay and every other control character is written out.
#[must_use]
pub fn plain_text(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => out.push(c),
            '\r' => {}
            c if steers(c) => escape(c, &mut out),
            c => out.push(c),
        }
    }
    out
}

fn escape(c: char, out: &mut String) {
    if u32::from(c) < 0x100 {
        out.push_str(&format!("\\x{:02x}", u32::from(c)));
    } else {
        out.push_str(&format!("\\u{{{:x}}}", u32::from(c)));
    }
}

/// Tells whether a character could do more than appear: controls (C0, C1), and those that turn text around.
fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

/// Returns a line of a log for a terminal: colours stay if `colors`, other sequences go, a carriage return begins the line anew.
#[must_use]
pub fn log_line(line: &[u8], colors: bool) -> String {
    let line = &line[..line.len().min(LINE_LIMIT)];
    let text = String::from_utf8_lossy(line);
    let mut out = String::with_capacity(text.len());
    let mut column = 0;
    let mut colored = false;
    let mut chars = text.trim_end_matches('\r').chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\r' => {
                out.clear();
                (column, colored) = (0, false);
            }
            '\t' => {
                let width = TAB - column % TAB;
                out.extend(std::iter::repeat_n(' ', width));
                column += width;
            }
            '\u{1b}' => {
                if let Some(color) = escape_sequence(&mut chars)
                    && colors
                {
                    colored = true;
                    out.push_str(&color);
                }
            }
            '\u{9b}' => {
                if let Some(color) = control_sequence(&mut chars)
                    && colors
                {
                    colored = true;
                    out.push_str(&color);
                }
            }
            '\u{90}' | '\u{98}' | '\u{9d}'..='\u{9f}' => skip_string(&mut chars),
            c if c.is_control() => {}
            c if steers(c) => escape(c, &mut out),
            c => {
                out.push(c);
                column += 1;
            }
        }
    }
    if colored {
        out.push_str("\u{1b}[0m");
    }
    out
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

/// Reads what follows an ESC; returns the sequence if it sets colours.
fn escape_sequence(chars: &mut Chars<'_>) -> Option<String> {
    match chars.next()? {
        '[' => control_sequence(chars),
        ']' | 'P' | 'X' | '^' | '_' => {
            skip_string(chars);
            None
        }
        // Charsets and the like: intermediates, then a final.
        ' '..='/' => {
            while chars.next_if(|c| (' '..='/').contains(c)).is_some() {}
            chars.next();
            None
        }
        _ => None,
    }
}

/// Reads a control sequence after its introducer; returns it if it sets colours (SGR).
fn control_sequence(chars: &mut Chars<'_>) -> Option<String> {
    let mut parameters = String::new();
    let mut plain = true;
    while let Some(c) = chars.next_if(|c| ('0'..='?').contains(c)) {
        plain &= c.is_ascii_digit() || c == ';' || c == ':';
        parameters.push(c);
    }
    while chars.next_if(|c| (' '..='/').contains(c)).is_some() {
        plain = false;
    }
    let end = chars.next_if(|c| ('@'..='~').contains(c))?;
    (plain && end == 'm' && parameters.len() <= 64).then(|| format!("\u{1b}[{parameters}m"))
}

/// Skips a string (a title, a clipboard) up to its terminator.
fn skip_string(chars: &mut Chars<'_>) {
    while let Some(c) = chars.next() {
        match c {
            '\u{7}' | '\u{9c}' => return,
            '\u{1b}' => {
                chars.next_if_eq(&'\\');
                return;
            }
            _ => {}
        }
    }
}

/// Puts chunks of a log together to lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Takes a chunk and calls back with each line that is complete, without its end.
    pub fn push(&mut self, mut chunk: &[u8], mut line: impl FnMut(&[u8])) {
        while let Some(end) = chunk.iter().position(|&b| b == b'\n') {
            let (head, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.partial.is_empty() {
                line(head);
            } else {
                self.partial.extend_from_slice(head);
                line(&self.partial);
                self.partial.clear();
            }
            chunk = rest;
        }
        self.partial.extend_from_slice(chunk);
        if self.partial.len() > LINE_LIMIT {
            // What a carriage return began anew isn't shown any more.
            if let Some(at) = self.partial.iter().rposition(|&b| b == b'\r')
                && at + 1 < self.partial.len()
            {
                self.partial.drain(..=at);
            }
            if self.partial.len() > LINE_LIMIT {
                line(&self.partial);
                self.partial.clear();
            }
        }
    }

    /// Returns the line that has no end yet.
    #[must_use]
    pub fn partial(&self) -> &[u8] {
        &self.partial
    }

    /// Takes the line that has no end.
    pub fn take_partial(&mut self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_colours_stay_in_a_log() {
        for (input, expected) in [
            ("plain", "plain"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m\x1b[0m"),
            ("\x1b[38;2;1;2;3mrgb", "\x1b[38;2;1;2;3mrgb\x1b[0m"),
            ("a\x1b[2Jb\x1b[Hc\x1b[?25ld", "abcd"),
            ("\x1b]52;c;aGk=\x07x", "x"),
            ("\x1b]0;title\x1b\\x", "x"),
            ("\x1bPq...\x1b\\x", "x"),
            ("\x1b(Bx\x1b7y\x1bcz", "xyz"),
            ("\u{9b}2Jx\u{9d}0;t\u{9c}y", "xy"),
            ("10%\r20%\r30%", "30%"),
            ("dos\r", "dos"),
            ("a\tb", "a       b"),
            ("bell\x07 back\x08 null\0", "bell back null"),
            ("evil \u{202e}txt", "evil \\u{202e}txt"),
            ("\x1b[31", ""),
            ("\x1b[>4;1mx", "x"),
            ("\x1b", ""),
        ] {
            assert_eq!(log_line(input.as_bytes(), true), expected, "{input:?}");
        }
        assert_eq!(log_line(b"\x1b[31mred", false), "red");
        assert_eq!(log_line(b"bad \xff utf", true), "bad \u{fffd} utf");
    }

    #[test]
    fn names_are_one_line_without_controls() {
        assert_eq!(name("RUN a\x1b[2J\nb\u{202e}\u{9b}"), "RUN a\\x1b[2J b\\u{202e}\\x9b");
        assert_eq!(plain_text("a\r\nb\x1b]0;x\x07"), "a\nb\\x1b]0;x\\x07");
    }

    #[test]
    fn lines_are_put_together_and_bounded() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        for chunk in ["a", "b\nc\n", "", "\nd"] {
            lines.push(chunk.as_bytes(), |line| seen.push(String::from_utf8(line.to_vec()).unwrap()));
        }
        assert_eq!(seen, ["ab", "c", ""]);
        assert_eq!(lines.partial(), b"d");
        for _ in 0..100 {
            lines.push(&[b'x'; 1000], |_| {});
        }
        assert!(lines.partial().len() <= LINE_LIMIT);
        let mut bar = Lines::default();
        for _ in 0..100 {
            bar.push(&[b"\r".as_slice(), &[b'y'; 999]].concat(), |_| panic!("no line ended"));
        }
        assert!(bar.partial().len() <= LINE_LIMIT);
    }
}
