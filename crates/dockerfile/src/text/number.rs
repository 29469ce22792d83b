//! Numbers and truth values as Go's `strconv` reads them, with its error texts.

use super::quote::quote;

/// Reads a truth value: `1`, `t`, `T`, `TRUE`, `true`, `True` and their opposites.
pub(crate) fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Why a text is no number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NumberError {
    Syntax,
    Range,
}

impl NumberError {
    /// Returns the text of Go's `strconv.NumError`.
    pub(crate) fn describe(self, function: &str, text: &str) -> String {
        format!("strconv.{function}: parsing {}: {}", quote(text), self.reason())
    }

    /// Returns the bare reason.
    pub(crate) fn reason(self) -> &'static str {
        match self {
            Self::Syntax => "invalid syntax",
            Self::Range => "value out of range",
        }
    }
}

/// Reads a signed decimal number.
pub(crate) fn parse_int(text: &str, bits: u32) -> Result<i64, NumberError> {
    let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(NumberError::Syntax);
    }
    let value: i64 = text.parse().map_err(|_| NumberError::Range)?;
    let limit = 1_i128 << (bits - 1);
    if (-limit..limit).contains(&i128::from(value)) { Ok(value) } else { Err(NumberError::Range) }
}

/// Reads an unsigned number in a base of at most 10.
pub(crate) fn parse_uint(text: &str, base: u32, bits: u32) -> Result<u64, NumberError> {
    if text.is_empty() || !text.chars().all(|c| c.is_digit(base)) {
        return Err(NumberError::Syntax);
    }
    let value = u64::from_str_radix(text, base).map_err(|_| NumberError::Range)?;
    if bits < 64 && value >> bits != 0 { Err(NumberError::Range) } else { Ok(value) }
}

/// Reads a size such as `512`, `64k`, `1.5GiB` as a number of bytes.
pub(crate) fn parse_size(text: &str) -> Option<i64> {
    let last = text.rfind(|c: char| c.is_ascii_digit() || c == '.' || c == ' ')?;
    let (number, suffix) =
        if text.as_bytes()[last] == b' ' { (&text[..last], &text[last + 1..]) } else { text.split_at(last + 1) };
    let size: f64 = number.parse().ok().filter(|n: &f64| *n >= 0.0)?;
    let suffix = suffix.to_ascii_lowercase();
    let factor = match suffix.as_bytes() {
        [] | [b'b'] => 1_u64,
        [unit] | [unit, b'b'] | [unit, b'i', b'b'] => match unit {
            b'k' => 1 << 10,
            b'm' => 1 << 20,
            b'g' => 1 << 30,
            b't' => 1 << 40,
            b'p' => 1 << 50,
            _ => return None,
        },
        _ => return None,
    };
    // Saturates, as a float beyond the range has no other sensible meaning.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)]
    Some((size * factor as f64) as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_like_go() {
        assert_eq!(parse_int("-12", 64), Ok(-12));
        assert_eq!(parse_int("+3", 64), Ok(3));
        assert_eq!(parse_int("99999999999", 32), Err(NumberError::Range));
        assert_eq!(parse_int("", 64), Err(NumberError::Syntax));
        assert_eq!(parse_uint("0755", 8, 32), Ok(0o755));
        assert_eq!(parse_uint("8", 8, 32), Err(NumberError::Syntax));
        assert_eq!(parse_size("64m"), Some(64 << 20));
        assert_eq!(parse_size("1.5 KiB"), Some(1536));
        assert_eq!(parse_size("x"), None);
        assert_eq!(parse_size("-1"), None);
    }
}
