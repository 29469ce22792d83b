//! The file name that a URL's answer has.

use url::Url;

/// Longest file name of Linux, in bytes.
const MAX: usize = 255;

/// Tells whether a text is one file name and nothing else.
pub(super) fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= MAX
        && !matches!(name, "." | "..")
        && !name.contains(|c: char| c == '/' || c.is_control())
}

/// Returns the last element of what `Content-Disposition` says, else of the URL's path, else `download`. `None` if that is none that
/// can be used.
pub(super) fn of(url: &Url, disposition: &str) -> Option<String> {
    if let Some(name) = from_disposition(disposition)
        && is_name(&name)
    {
        return Some(name);
    }
    let path = decode(url.path());
    let name = base(&path);
    if matches!(name, "" | "." | "..") {
        return Some("download".to_owned());
    }
    is_name(name).then(|| name.to_owned())
}

fn base(path: &str) -> &str {
    let path = path.trim_end_matches('/');
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

/// Reads the parameter `filename` (RFC 6266), or `filename*` in UTF-8, and takes its last element.
fn from_disposition(header: &str) -> Option<String> {
    let mut plain = None;
    let mut rest = header.split_once(';')?.1;
    while !rest.is_empty() {
        let (key, after) = rest.split_once('=')?;
        let (value, after) = value(after.trim_start())?;
        match key.trim().to_ascii_lowercase().as_str() {
            "filename*" => {
                if let Some(encoded) = value.strip_prefix("UTF-8''").or_else(|| value.strip_prefix("utf-8''")) {
                    return Some(base(&decode(encoded)).to_owned());
                }
            }
            "filename" => plain = Some(value),
            _ => {}
        }
        rest = after;
    }
    let plain = plain?;
    // A directory's name is no file's.
    (!plain.ends_with('/')).then(|| base(&plain).to_owned())
}

/// Reads a value, quoted or not, and returns what follows its `;`.
fn value(text: &str) -> Option<(String, &str)> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (value, rest) = text.split_once(';').unwrap_or((text, ""));
        return Some((value.trim().to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => {
                let rest = &quoted[i + 1..];
                return Some((value, rest.split_once(';').map_or("", |(_, rest)| rest)));
            }
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

/// Decodes `%XX`; what is not UTF-8 then is replaced.
fn decode(text: &str) -> String {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        let mut ahead = bytes.clone();
        let mut digit = || char::from(ahead.next()?).to_digit(16);
        match (byte, digit(), digit()) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits are below 256.
                decoded.push((high * 16 + low) as u8);
                bytes = ahead;
            }
            _ => decoded.push(byte),
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_the_header_or_the_path() {
        for (url, disposition, want) in [
            ("http://h/a/b.tar.gz", "", Some("b.tar.gz")),
            ("http://h/a/b?x=/c", "", Some("b")),
            ("http://h/", "", Some("download")),
            ("http://h", "", Some("download")),
            ("http://h/a/", "", Some("a")),
            ("http://h/a%20b", "", Some("a b")),
            ("http://h/..%2f..%2fc", "", Some("c")),
            ("http://h/x/%2e%2e", "", Some("download")),
            ("http://h/a%00b", "", None),
            ("http://h/a%0ab", "", None),
            ("http://h/x", "attachment; filename=\"n.txt\"", Some("n.txt")),
            ("http://h/x", "attachment; filename=n.txt; size=3", Some("n.txt")),
            ("http://h/x", "attachment; size=\"a;b\"; filename=n", Some("n")),
            ("http://h/x", "attachment; filename=\"../../c\"", Some("c")),
            ("http://h/x", "attachment; filename=\"/c\"", Some("c")),
            ("http://h/x", "attachment; filename=\"..\"", Some("x")),
            ("http://h/x", "attachment; filename=\"a/\"", Some("x")),
            ("http://h/x", "attachment; filename=\"\"", Some("x")),
            ("http://h/x", "attachment; filename=\"a\\\"b\"", Some("a\"b")),
            ("http://h/x", "attachment; filename*=UTF-8''%e2%82%ac; filename=e", Some("€")),
            ("http://h/x", "attachment; filename=\"unterminated", Some("x")),
            ("http://h/x", "nonsense", Some("x")),
        ] {
            let got = of(&Url::parse(url).unwrap(), disposition);
            assert_eq!(got.as_deref(), want, "{url} {disposition}");
        }
        let long = format!("http://h/{}", "c".repeat(5000));
        assert_eq!(of(&Url::parse(&long).unwrap(), ""), None);
    }

    #[test]
    fn one_name_is_one_element() {
        assert!(is_name("a b") && is_name("...") && is_name("€"));
        for bad in ["", ".", "..", "a/b", "/a", "a\0", "a\n"] {
            assert!(!is_name(bad), "{bad:?}");
        }
    }
}
