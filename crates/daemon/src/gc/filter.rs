//! containerd's filters: `field==value`, `field!=value`, `field~=pattern` or `field`, joined by commas; of several filters one must match.

use bud_protocol::errors::BuildError;

/// At most so many filters of so many characters.
const MAX_FILTERS: usize = 100;
const MAX_LENGTH: usize = 10_000;

/// A comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    /// A part of the value; `^` and `$` fix it at the ends. What filters of this API are used for needs no more.
    Contains {
        text: String,
        start: bool,
        end: bool,
    },
}

/// A filter: all comparisons hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter(Vec<(String, Test)>);

/// Reads filters.
///
/// # Errors
/// One is malformed.
pub fn parse(filters: &[String]) -> Result<Vec<Filter>, BuildError> {
    if filters.len() > MAX_FILTERS || filters.iter().any(|f| f.len() > MAX_LENGTH) {
        return Err(BuildError::invalid("too many filters"));
    }
    filters.iter().filter(|f| !f.trim().is_empty()).map(|f| parse_one(f)).collect()
}

fn parse_one(text: &str) -> Result<Filter, BuildError> {
    let bad = |why: &str| BuildError::invalid(format!("filter {text:?}: {why}"));
    let mut tests = Vec::new();
    let mut rest = text;
    loop {
        let end = rest
            .char_indices()
            .scan(false, |quoted, (i, c)| {
                if c == '"' {
                    *quoted = !*quoted;
                }
                Some((i, c, *quoted))
            })
            .find(|(_, c, quoted)| !quoted && matches!(c, '=' | '!' | '~' | ','))
            .map_or(rest.len(), |(i, ..)| i);
        let field = rest[..end].trim();
        if field.is_empty() {
            return Err(bad("a field is missing"));
        }
        rest = &rest[end..];
        let operator = ["==", "!=", "~="].into_iter().find(|o| rest.starts_with(o));
        let test = match operator {
            None if rest.is_empty() || rest.starts_with(',') => Test::Present,
            None => return Err(bad("expected ==, != or ~=")),
            Some(operator) => {
                let (value, after) = value(&rest[2..]).ok_or_else(|| bad("a value is not closed"))?;
                rest = after;
                match operator {
                    "==" => Test::Equal(value),
                    "!=" => Test::NotEqual(value),
                    _ => pattern(&value),
                }
            }
        };
        tests.push((field.to_owned(), test));
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None if rest.trim().is_empty() => return Ok(Filter(tests)),
            None => return Err(bad("expected a comma")),
        }
    }
}

fn value(text: &str) -> Option<(String, &str)> {
    for quote in ['"', '/', '|'] {
        if let Some(quoted) = text.strip_prefix(quote) {
            let mut value = String::new();
            let mut characters = quoted.char_indices();
            while let Some((i, c)) = characters.next() {
                match c {
                    '\\' if quote == '"' => value.push(characters.next()?.1),
                    c if c == quote => return Some((value, &quoted[i + c.len_utf8()..])),
                    c => value.push(c),
                }
            }
            return None;
        }
    }
    let end = text.find(',').unwrap_or(text.len());
    Some((text[..end].trim().to_owned(), &text[end..]))
}

fn pattern(text: &str) -> Test {
    let (text, start) = text.strip_prefix('^').map_or((text, false), |t| (t, true));
    let (text, end) = text.strip_suffix('$').map_or((text, false), |t| (t, true));
    Test::Contains { text: text.trim_matches(|c| c == '*').replace(".*", ""), start, end }
}

/// Tells whether one of the filters matches; no filters match everything.
pub fn matches(filters: &[Filter], field: impl Fn(&str) -> Option<String>) -> bool {
    filters.is_empty()
        || filters.iter().any(|filter| {
            filter.0.iter().all(|(name, test)| {
                let value = field(name);
                match test {
                    Test::Present => value.is_some(),
                    Test::Equal(wanted) => value.as_ref() == Some(wanted),
                    Test::NotEqual(wanted) => value.as_ref() != Some(wanted),
                    Test::Contains { text, start, end } => value.is_some_and(|value| match (start, end) {
                        (true, true) => value == *text,
                        (true, false) => value.starts_with(text),
                        (false, true) => value.ends_with(text),
                        (false, false) => value.contains(text),
                    }),
                }
            })
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(filters: &[&str]) -> bool {
        let filters: Vec<String> = filters.iter().map(|f| (*f).to_owned()).collect();
        matches(&parse(&filters).unwrap(), |name| match name {
            "id" => Some("abcdef".into()),
            "type" => Some("exec.cachemount".into()),
            "inuse" => None,
            "shared" => Some("true".into()),
            _ => None,
        })
    }

    #[test]
    fn filters_are_containerds() {
        assert!(check(&[]));
        assert!(check(&["type==exec.cachemount"]));
        assert!(check(&["type==\"exec.cachemount\",shared"]));
        assert!(!check(&["type==regular"]));
        assert!(!check(&["type==exec.cachemount,inuse"]));
        assert!(check(&["inuse", "id~=^abc"]));
        assert!(check(&["id~=cde"]));
        assert!(!check(&["id~=^cde"]));
        assert!(check(&["type!=regular"]));
        for bad in ["==x", "a=b", "a==\"x", "a==b,"] {
            assert!(parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
    }
}
