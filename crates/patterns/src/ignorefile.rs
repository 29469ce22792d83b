//! Reading a `.dockerignore` file.

use crate::clean::clean;

/// Returns the patterns of an ignore file, in order.
///
/// A byte order mark at the start and lines that begin with `#` are left out, white space around a pattern too;
/// patterns are cleaned, and a leading `/` or that after `!` is taken away: all paths are relative to the context.
pub fn read(text: &[u8]) -> Vec<String> {
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text);
    let mut patterns = Vec::new();
    for line in text.split(|&byte| byte == b'\n') {
        if line.starts_with(b"#") {
            continue;
        }
        let line = String::from_utf8_lossy(line);
        let line = line.trim();
        if line.is_empty() {
            continue;
        }
        let (negated, line) = match line.strip_prefix('!') {
            Some(rest) => (true, rest.trim()),
            None => (false, line),
        };
        let mut pattern = if negated { "!" } else { "" }.to_owned();
        if !line.is_empty() {
            let cleaned = clean(line);
            pattern.push_str(match cleaned.strip_prefix('/') {
                Some(relative) if !relative.is_empty() => relative,
                _ => &cleaned,
            });
        }
        patterns.push(pattern);
    }
    patterns
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_by_the_documented_rules() {
        let text = "\u{feff}test1\n/test2\n/a/file/here\n\nlastfile\n# this is a comment\n  # not one\n! /inverted/abs/path\n!\n! \n\
                    a/../b/./c//d/\n/\r\n.\n..\n  spaced  \r\n!./x\n**/*.o";
        assert_eq!(
            read(text.as_bytes()),
            [
                "test1",
                "test2",
                "a/file/here",
                "lastfile",
                "# not one",
                "!inverted/abs/path",
                "!",
                "!",
                "b/c/d",
                "/",
                ".",
                "..",
                "spaced",
                "!x",
                "**/*.o",
            ]
        );
    }

    #[test]
    fn nothing_in_it_is_nothing() {
        assert!(read(b"").is_empty());
        assert!(read(b"\xef\xbb\xbf").is_empty());
        assert!(read(b"\n\n \n#x").is_empty());
    }
}
