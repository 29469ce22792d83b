//! containerd's filters: `field==value`, `field!=value`, `field~=pattern` or `field`, joined by commas; of several filters one must match.

use bud_protocol::errors::BuildError;
use regex::{Regex, RegexBuilder};

/// At most so many filters of so many characters.
const MAX_FILTERS: usize = 100;
const MAX_LENGTH: usize = 10_000;
/// A pattern may take so many bytes once it is compiled.
const MAX_PATTERN: usize = 1 << 20;

/// A comparison. A field that is not there is compared as an empty text, but equals nothing.
#[derive(Clone, Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// A filter: all comparisons hold.
#[derive(Clone, Debug)]
pub struct Filter(Vec<(String, Test)>);

/// Reads filters.
///
/// # Errors
/// One is malformed, or its pattern is no regular expression.
pub fn parse(filters: &[String]) -> Result<Vec<Filter>, BuildError> {
    if filters.len() > MAX_FILTERS || filters.iter().any(|f| f.len() > MAX_LENGTH) {
        return Err(BuildError::invalid("too many filters"));
    }
    filters
        .iter()
        .map(|text| {
            if text.is_empty() {
                // Matches everything.
                return Ok(Filter(Vec::new()));
            }
            Reader { text, at: 0 }.filter().map_err(|why| {
                BuildError::invalid(format!(
                    "filter {text:?}: {why}; filters are like type==exec.cachemount, description~=apt, or inuse"
                ))
            })
        })
        .collect()
}

struct Reader<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Reader<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    /// Takes what consists of such characters, which may be nothing.
    fn take(&mut self, of: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !of(c)).unwrap_or(rest.len());
        self.at += end;
        &rest[..end]
    }

    fn eat(&mut self, c: char) -> bool {
        let found = self.rest().starts_with(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn filter(mut self) -> Result<Filter, String> {
        let mut tests = Vec::new();
        loop {
            let field = self.fields()?;
            tests.push((field, self.test()?));
            self.skip_space();
            if self.eat(',') {
                continue;
            }
            if self.rest().is_empty() {
                return Ok(Filter(tests));
            }
            return Err(format!("unexpected {:?}", self.rest()));
        }
    }

    /// Reads a path of fields; its parts are joined by dots.
    fn fields(&mut self) -> Result<String, String> {
        let mut path = String::new();
        loop {
            self.skip_space();
            if self.rest().starts_with('"') {
                path.push_str(&self.quoted('"')?);
            } else {
                let field = self.take(|c| c.is_ascii_alphanumeric() || c == '_');
                if field.is_empty() {
                    return Err("a field is missing".into());
                }
                path.push_str(field);
            }
            if !self.eat('.') {
                return Ok(path);
            }
            path.push('.');
        }
    }

    fn test(&mut self) -> Result<Test, String> {
        self.skip_space();
        if self.rest().is_empty() || self.rest().starts_with(',') {
            return Ok(Test::Present);
        }
        let operator = self.take(|c| matches!(c, '=' | '!' | '~'));
        if !matches!(operator, "==" | "!=" | "~=") {
            return Err("expected ==, != or ~=".into());
        }
        self.skip_space();
        let value = match self.rest().chars().next() {
            Some('"') => self.quoted('"')?,
            Some(quote @ ('/' | '|')) if operator == "~=" => self.quoted(quote)?,
            _ => self.take(|c| c != ',' && !c.is_whitespace() && !c.is_control()).to_owned(),
        };
        match operator {
            "==" => Ok(Test::Equal(value)),
            "!=" => Ok(Test::NotEqual(value)),
            _ => {
                let regex = RegexBuilder::new(&value).size_limit(MAX_PATTERN).build();
                regex.map(Test::Matches).map_err(|e| format!("the pattern is no regular expression: {e}"))
            }
        }
    }

    /// Reads what is in quotes, with Go's escapes. In alternative quotes a backslash belongs to the pattern, but before the quote.
    fn quoted(&mut self, quote: char) -> Result<String, String> {
        self.eat(quote);
        let mut value = String::new();
        let mut characters = self.rest().char_indices();
        while let Some((at, c)) = characters.next() {
            match c {
                c if c == quote => {
                    self.at += at + c.len_utf8();
                    return Ok(value);
                }
                '\n' => break,
                '\\' => match characters.next().map(|(_, c)| c) {
                    Some(c) if c == quote => value.push(c),
                    Some(c) if quote != '"' => value.extend(['\\', c]),
                    Some('n') => value.push('\n'),
                    Some('t') => value.push('\t'),
                    Some('r') => value.push('\r'),
                    Some('\\') => value.push('\\'),
                    Some(kind @ ('x' | 'u' | 'U')) => {
                        let length = match kind {
                            'x' => 2,
                            'u' => 4,
                            _ => 8,
                        };
                        let digits: String = characters.by_ref().take(length).map(|(_, c)| c).collect();
                        let code = u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == length);
                        value.push(code.and_then(char::from_u32).ok_or("a value has an unknown escape")?);
                    }
                    _ => return Err("a value has an unknown escape".into()),
                },
                c => value.push(c),
            }
        }
        Err("a value is not closed".into())
    }
}

/// Tells whether one of the filters matches; no filters match everything. A field that is there without a value (`inuse`) is
/// an empty text.
pub fn matches(filters: &[Filter], field: impl Fn(&str) -> Option<String>) -> bool {
    filters.is_empty()
        || filters.iter().any(|filter| {
            filter.0.iter().all(|(name, test)| {
                let value = field(name);
                match test {
                    Test::Present => value.is_some(),
                    Test::Equal(wanted) => value.as_ref() == Some(wanted),
                    Test::NotEqual(wanted) => value.unwrap_or_default() != *wanted,
                    Test::Matches(pattern) => pattern.is_match(&value.unwrap_or_default()),
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
            "description" => Some("cached mount /root/.cache, \"quoted\"".into()),
            "shared" => Some(String::new()),
            "labels.org.example.a b" => Some("x".into()),
            _ => None,
        })
    }

    #[test]
    fn filters_are_containerds() {
        for yes in [
            &[][..],
            &[""],
            &["type==exec.cachemount"],
            &["type==\"exec.cachemount\",shared"],
            &[" type == exec.cachemount , shared"],
            &["inuse", "id~=^abc"],
            &["id~=cde"],
            &["id~=^a.c.+f$"],
            &["id~=/^a[b-d]+/"],
            &["id~=|^[xa]b|", "shared"],
            &["description~=\"cached mount /root/\\\\.cache\""],
            &["description~=/mount \\/root/"],
            &["description~=\"\\x22quoted\\u0022\""],
            &["type!=regular"],
            &["inuse!=true"],
            &["inuse~=^$"],
            &["labels.\"org.example.a b\"==x"],
        ] {
            assert!(check(yes), "{yes:?}");
        }
        for no in [
            &["type==regular"][..],
            &["type==exec.cachemount,inuse"],
            &["id~=^cde"],
            &["inuse=="],
            // The field has no value.
            &["shared==true"],
            &["type==regular", "id~=x"],
        ] {
            assert!(!check(no), "{no:?}");
        }
        for bad in [
            "==x",
            "a=b",
            "a===b",
            "a==\"x",
            "a==b,",
            "a==b c",
            "id~=(",
            "id~=/x",
            "a==\"\\q\"",
            "a.",
            "a~=(?:x{1000}){1000}",
        ] {
            let error = parse(&[bad.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("filter"), "{bad}: {error}");
        }
        assert!(parse(&vec!["a".to_owned(); 101]).is_err());
    }
}
