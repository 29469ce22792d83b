//! One line of comma-separated values, as mount and other options are written.

/// Splits a line into its fields.
pub(crate) fn fields(line: &str) -> Result<Vec<String>, String> {
    let line = line.strip_suffix('\n').map_or(line, |l| l.strip_suffix('\r').unwrap_or(l));
    if line.is_empty() {
        return Err("EOF".into());
    }
    let at = |pos: usize, what: &str| format!("parse error on line 1, column {}: {what}", pos + 1);
    const STRAY: &str = "extraneous or missing \" in quoted-field";
    let mut out = Vec::new();
    let mut rest = line;
    loop {
        let pos = line.len() - rest.len();
        let Some(mut inner) = rest.strip_prefix('"') else {
            let end = rest.find(',').unwrap_or(rest.len());
            let field = &rest[..end];
            if let Some(bare) = field.find('"') {
                return Err(at(pos + bare, "bare \" in non-quoted field"));
            }
            out.push(field.to_owned());
            if end == rest.len() {
                return Ok(out);
            }
            rest = &rest[end + 1..];
            continue;
        };
        let mut field = String::new();
        loop {
            let Some(end) = inner.find('"') else { return Err(at(line.len() - inner.len(), STRAY)) };
            field.push_str(&inner[..end]);
            inner = &inner[end + 1..];
            if let Some(after) = inner.strip_prefix('"') {
                field.push('"');
                inner = after;
            } else {
                break;
            }
        }
        out.push(field);
        if inner.is_empty() {
            return Ok(out);
        }
        rest = inner.strip_prefix(',').ok_or_else(|| at(line.len() - inner.len() - 1, STRAY))?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_fields_may_hold_commas() {
        assert_eq!(fields(r#"a,"b,""c",d="#).unwrap(), ["a", r#"b,"c"#, "d="]);
        assert_eq!(fields("a,").unwrap(), ["a", ""]);
        for bad in ["", "a\"b", "\"a", "\"a\"b"] {
            assert!(fields(bad).is_err(), "{bad}");
        }
    }
}
