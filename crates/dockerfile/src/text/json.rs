//! The exec form: a JSON array of strings.

/// Why a text isn't the exec form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NotExecForm {
    /// No JSON array at all: it is the shell form.
    NotArray,
    /// A JSON array, but not of strings only: an error.
    NotStrings,
}

/// Deeper arrays than this are no JSON, as in Go.
const MAX_DEPTH: usize = 10_000;

/// Reads a JSON array of strings.
pub(crate) fn parse_strings(text: &str) -> Result<Vec<String>, NotExecForm> {
    let text = text.trim_start();
    if !text.starts_with('[') {
        return Err(NotExecForm::NotArray);
    }
    Scanner { text, pos: 0 }.run().ok_or(NotExecForm::NotArray)?.ok_or(NotExecForm::NotStrings)
}

/// Returns a string member of a JSON object that is a whole text.
pub(crate) fn string_member(text: &str, name: &str) -> Option<String> {
    let value: serde_json::Value = serde_json::from_str(text).ok()?;
    Some(value.get(name)?.as_str()?.to_owned())
}

/// Where in a value the scanner is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Frame {
    Array,
    Object,
}

struct Scanner<'a> {
    text: &'a str,
    pos: usize,
}

impl Scanner<'_> {
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.pos).copied()
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.pos += 1;
        }
    }

    fn eat(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.pos += usize::from(found);
        found
    }

    /// Walks over the whole text without recursion. None: not JSON. Some(None): an element isn't a string.
    fn run(mut self) -> Option<Option<Vec<String>>> {
        let mut strings = Some(Vec::new());
        let mut stack: Vec<Frame> = Vec::new();
        loop {
            // A value begins here.
            self.skip_space();
            let top_element = stack.len() == 1;
            let mut done = true;
            match self.peek()? {
                b'[' => {
                    if top_element {
                        strings = None;
                    }
                    self.pos += 1;
                    self.skip_space();
                    stack.push(Frame::Array);
                    if self.eat(b']') {
                        stack.pop();
                    } else {
                        done = false;
                    }
                }
                b'{' => {
                    if top_element {
                        strings = None;
                    }
                    self.pos += 1;
                    self.skip_space();
                    stack.push(Frame::Object);
                    if self.eat(b'}') {
                        stack.pop();
                    } else {
                        self.key()?;
                        done = false;
                    }
                }
                b'"' => {
                    let value = self.string()?;
                    if top_element && let Some(strings) = &mut strings {
                        strings.push(value);
                    }
                }
                _ => {
                    if top_element {
                        strings = None;
                    }
                    self.scalar()?;
                }
            }
            if stack.len() > MAX_DEPTH {
                return None;
            }
            // After a value: the next one, or the end of what it is in.
            while done {
                self.skip_space();
                let Some(frame) = stack.last().copied() else {
                    return (self.pos == self.text.len()).then_some(strings);
                };
                if self.eat(b',') {
                    if frame == Frame::Object {
                        self.skip_space();
                        self.key()?;
                    }
                    done = false;
                } else if self.eat(if frame == Frame::Array { b']' } else { b'}' }) {
                    stack.pop();
                } else {
                    return None;
                }
            }
        }
    }

    fn key(&mut self) -> Option<()> {
        self.string()?;
        self.skip_space();
        self.eat(b':').then_some(())
    }

    fn string(&mut self) -> Option<String> {
        if !self.eat(b'"') {
            return None;
        }
        let mut out = String::new();
        loop {
            let rest = &self.text[self.pos..];
            let plain = rest.find(|c: char| c == '"' || c == '\\' || c < ' ')?;
            out.push_str(&rest[..plain]);
            self.pos += plain + 1;
            match rest.as_bytes()[plain] {
                b'"' => return Some(out),
                b'\\' => self.escape(&mut out)?,
                _ => return None,
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Option<()> {
        let c = self.peek()?;
        self.pos += 1;
        out.push(match c {
            b'"' | b'\\' | b'/' => char::from(c),
            b'b' => '\x08',
            b'f' => '\x0c',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => {
                let first = self.hex()?;
                let low = self.text[self.pos..].starts_with("\\u").then(|| {
                    let before = self.pos;
                    self.pos += 2;
                    let low = self.hex();
                    if !low.is_some_and(|l| (0xdc00..0xe000).contains(&l) && (0xd800..0xdc00).contains(&first)) {
                        self.pos = before;
                        return None;
                    }
                    low
                });
                match low.flatten() {
                    Some(low) => char::from_u32(0x10000 + ((first - 0xd800) << 10) + (low - 0xdc00))?,
                    None => char::from_u32(first).unwrap_or('\u{fffd}'),
                }
            }
            _ => return None,
        });
        Some(())
    }

    fn hex(&mut self) -> Option<u32> {
        let digits = self.text.as_bytes().get(self.pos..self.pos + 4)?;
        let mut value = 0;
        for digit in digits {
            value = value * 16 + char::from(*digit).to_digit(16)?;
        }
        self.pos += 4;
        Some(value)
    }

    /// A number, `true`, `false` or `null`.
    fn scalar(&mut self) -> Option<()> {
        let rest = &self.text[self.pos..];
        let len =
            rest.find(|c: char| !c.is_ascii_alphanumeric() && !matches!(c, '+' | '-' | '.')).unwrap_or(rest.len());
        let word = &rest[..len];
        self.pos += len;
        (matches!(word, "true" | "false" | "null") || is_number(word)).then_some(())
    }
}

/// Tests the form of a JSON number, and that it is finite.
fn is_number(word: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let unsigned = word.strip_prefix('-').unwrap_or(word);
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((m, e)) => (m, Some(e.strip_prefix(['+', '-']).unwrap_or(e))),
        None => (unsigned, None),
    };
    let (whole, fraction) = match mantissa.split_once('.') {
        Some((w, f)) => (w, Some(f)),
        None => (mantissa, None),
    };
    digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && fraction.is_none_or(digits)
        && exponent.is_none_or(digits)
        && word.parse::<f64>().is_ok_and(f64::is_finite)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exec_forms() {
        assert_eq!(parse_strings(r#" ["a", "b\"\u00e9\ud83d\ude00\ud800"] "#).unwrap(), ["a", "b\"é😀\u{fffd}"]);
        assert_eq!(parse_strings("[]").unwrap(), Vec::<String>::new());
        for shell in ["[a]", "[\"a\",]", "[\"a\"] x", "['a']", "echo", "[01]", "[1e999]", "[\"a\nb\"]"] {
            assert_eq!(parse_strings(shell), Err(NotExecForm::NotArray), "{shell}");
        }
        for wrong in ["[1]", "[\"a\", [\"b\"]]", "[{\"a\":1}]", "[null]"] {
            assert_eq!(parse_strings(wrong), Err(NotExecForm::NotStrings), "{wrong}");
        }
    }

    #[test]
    fn depth_is_bounded() {
        assert_eq!(parse_strings(&"[".repeat(100_000)), Err(NotExecForm::NotArray));
        let deep = format!("{}{}", "[".repeat(5_000), "]".repeat(5_000));
        assert_eq!(parse_strings(&deep), Err(NotExecForm::NotStrings));
    }
}
