//! URLs as far as sources need them: `scheme://[user@]host[:port]/path?query#fragment`.

/// A URL, taken apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Url {
    pub(crate) scheme: String,
    /// User and password as written, with `@` after it; empty without.
    pub(crate) user: String,
    pub(crate) host: String,
    /// The path, with `%XX` read.
    pub(crate) path: String,
    /// The path as it is written.
    pub(crate) raw_path: String,
    pub(crate) query: String,
    pub(crate) fragment: String,
}

impl Url {
    /// Takes a URL apart. None if it is malformed.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        if text.bytes().any(|b| b < 0x20 || b == 0x7f) {
            return None;
        }
        let (rest, fragment) = text.split_once('#').unwrap_or((text, ""));
        let (scheme, rest) = match rest.split_once("://") {
            Some((scheme, after)) if is_scheme(scheme) => (scheme.to_lowercase(), Some(after)),
            _ => (String::new(), None),
        };
        let rest_text = rest.unwrap_or(text.split('#').next().unwrap_or(text));
        let (before_query, query) = rest_text.split_once('?').unwrap_or((rest_text, ""));
        let (authority, raw_path) = match rest {
            Some(_) => before_query.split_at(before_query.find('/').unwrap_or(before_query.len())),
            None => ("", before_query),
        };
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (format!("{user}@"), host),
            None => (String::new(), authority),
        };
        if !is_user(&user) || !is_host(host) {
            return None;
        }
        Some(Self {
            scheme,
            user,
            host: host.to_owned(),
            path: unescape(raw_path)?,
            raw_path: raw_path.to_owned(),
            query: query.to_owned(),
            fragment: unescape(fragment)?,
        })
    }

    /// Writes it without query and fragment.
    pub(crate) fn without_query(&self) -> String {
        let path = escape_path(&self.raw_path);
        if self.scheme.is_empty() {
            return path;
        }
        format!("{}://{}{}{}", self.scheme, self.user, self.host, path)
    }
}

fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'-' | b'.'))
}

fn is_user(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._:~!$&'()*+,;=%@".contains(&b))
}

fn is_host(text: &str) -> bool {
    let (name, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((name, port)) => (name, port),
            None => return false,
        },
        None => text.rfind(':').map_or((text, ""), |colon| text.split_at(colon)),
    };
    let port_ok = port.is_empty() || port.strip_prefix(':').is_some_and(|p| p.bytes().all(|b| b.is_ascii_digit()));
    port_ok && !name.chars().any(|c| c.is_ascii() && (c <= ' ' || "\\^`{|}%".contains(c)))
}

/// Reads `%XX`. None if an escape is malformed.
fn unescape(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.to_owned());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let digit = |b: Option<u8>| char::from(b?).to_digit(16);
        let value = digit(rest.next())? * 16 + digit(rest.next())?;
        bytes.push(u8::try_from(value).ok()?);
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Writes what may not stand in a path as `%XX`; what is written so already stays.
fn escape_path(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%[]".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// Reads the pairs of a query, in order. None if an escape is malformed.
pub(crate) fn query_pairs(query: &str) -> Option<Vec<(String, String)>> {
    let mut pairs = Vec::new();
    for part in query.split('&').filter(|part| !part.is_empty()) {
        if part.contains(';') {
            return None;
        }
        let (key, value) = part.split_once('=').unwrap_or((part, ""));
        pairs.push((unescape(&key.replace('+', " "))?, unescape(&value.replace('+', " "))?));
    }
    Some(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts() {
        let url = Url::parse("https://u:p@h.example:8080/a%20b/c.git?x=1#ref:dir").unwrap();
        assert_eq!(
            (url.scheme.as_str(), url.host.as_str(), url.path.as_str()),
            ("https", "h.example:8080", "/a b/c.git")
        );
        assert_eq!((url.query.as_str(), url.fragment.as_str()), ("x=1", "ref:dir"));
        assert_eq!(url.without_query(), "https://u:p@h.example:8080/a%20b/c.git");
        for bad in ["http://h:x/", "http://a b/", "http://h/%zz", "http://h/\n"] {
            assert_eq!(Url::parse(bad), None, "{bad}");
        }
    }
}
