//! `WWW-Authenticate` headers (RFC 9110, section 11.6.1).

/// Most bytes of a header that are looked at.
const MAX_LENGTH: usize = 8 << 10;
const MAX_CHALLENGES: usize = 8;
const MAX_PARAMETERS: usize = 16;

/// One way to authenticate that a server offers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// `bearer`, `basic`, in lower case.
    pub(super) scheme: String,
    parameters: Vec<(String, String)>,
}

impl Challenge {
    /// Returns a parameter's value; names have no case.
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// Parses a header's challenges; the text of the error says what is wrong.
pub(super) fn parse(header: &str) -> Result<Vec<Challenge>, String> {
    if header.len() > MAX_LENGTH {
        return Err(format!("authentication challenge of over {MAX_LENGTH} bytes"));
    }
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        if rest.is_empty() {
            break;
        }
        let (word, after) = token(rest);
        if word.is_empty() {
            return Err("authentication challenge that can't be understood".into());
        }
        if let Some(value) = after.trim_start().strip_prefix('=').filter(|_| !found.is_empty()) {
            let (value, after) = parameter_value(value.trim_start())?;
            let challenge = found.last_mut().ok_or("authentication parameter without a scheme")?;
            if challenge.parameters.len() >= MAX_PARAMETERS {
                return Err("authentication challenge with too many parameters".into());
            }
            challenge.parameters.push((word.to_ascii_lowercase(), value));
            rest = after;
        } else {
            if found.len() >= MAX_CHALLENGES {
                return Err("too many authentication challenges".into());
            }
            found.push(Challenge { scheme: word.to_ascii_lowercase(), parameters: Vec::new() });
            rest = after;
        }
    }
    Ok(found)
}

fn token(text: &str) -> (&str, &str) {
    let end =
        text.find(|c: char| !(c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~/:".contains(c))).unwrap_or(text.len());
    text.split_at(end)
}

fn parameter_value(text: &str) -> Result<(String, &str), String> {
    let Some(quoted) = text.strip_prefix('"') else {
        let (word, rest) = token(text);
        return Ok((word.to_owned(), rest));
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((value, &quoted[i + 1..])),
            '\\' => value.extend(chars.next().map(|(_, c)| c)),
            c => value.push(c),
        }
    }
    Err("authentication challenge with an open quote".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_taken_apart() {
        let found = parse(
            "Bearer realm=\"https://auth.test/token\",service=\"a, b\" , Scope=\"repository:x:pull,push\", Basic realm=plain",
        )
        .unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].scheme, "bearer");
        assert_eq!(found[0].parameter("realm"), Some("https://auth.test/token"));
        assert_eq!(found[0].parameter("service"), Some("a, b"));
        assert_eq!(found[0].parameter("scope"), Some("repository:x:pull,push"));
        assert_eq!(found[1].parameter("realm"), Some("plain"));
        assert_eq!(parse("BASIC").unwrap()[0].scheme, "basic");
        assert_eq!(parse("Bearer a=\"x\\\"y\"").unwrap()[0].parameter("a"), Some("x\"y"));
        assert_eq!(parse("").unwrap(), []);
    }

    #[test]
    fn nonsense_is_refused() {
        for bad in ["Bearer realm=\"open", "=x", "\u{7f}", "Bearer \"x\"", &"a, ".repeat(20), &"x".repeat(1 << 20)] {
            assert!(parse(bad).is_err(), "{:?}", bad.chars().take(20).collect::<String>());
        }
        assert!(parse(&format!("Bearer {}", "a=b,".repeat(20))).is_err());
    }
}
