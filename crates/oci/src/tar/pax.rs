//! PAX records: `length key=value\n`.

use super::header::Time;

/// A key and its value.
type Record<'a> = (&'a [u8], &'a [u8]);

/// Splits records; the text of the error says what is wrong.
pub(super) fn records(mut data: &[u8]) -> Result<Vec<Record<'_>>, String> {
    let mut found = Vec::new();
    // Some writers fill the rest of the last block's share with NUL.
    while !data.is_empty() && data.iter().any(|b| *b != 0) {
        let space = data.iter().take(12).position(|b| *b == b' ').ok_or("PAX record without a length")?;
        let length = decimal(&data[..space]).ok_or("PAX record with a length that is no number")?;
        let length = usize::try_from(length).map_err(|_| "PAX record with an impossible length")?;
        let record =
            data.get(space + 1..length).filter(|r| r.last() == Some(&b'\n')).ok_or("PAX record with a wrong length")?;
        let record = &record[..record.len() - 1];
        let equals = record.iter().position(|b| *b == b'=').ok_or("PAX record without '='")?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        if key.is_empty() || key.contains(&0) {
            return Err("PAX record with an impossible key".into());
        }
        found.push((key, value));
        data = &data[length..];
    }
    Ok(found)
}

/// Parses digits alone.
pub(super) fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || text.len() > 20 {
        return None;
    }
    text.iter().try_fold(0u64, |n, b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 10)?;
        n.checked_mul(10)?.checked_add(u64::from(digit))
    })
}

/// Parses `[-]seconds[.fraction]`.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let (whole, fraction) = match text.iter().position(|b| *b == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = (0..9).map(|i| fraction.get(i).map_or(0, |b| u32::from(b - b'0')));
    let nanos = digits.fold(0, |n, digit| n * 10 + digit);
    Some(match (negative, nanos) {
        (false, _) => Time { seconds, nanos },
        (true, 0) => Time { seconds: -seconds, nanos },
        (true, _) => Time { seconds: (-seconds).checked_sub(1)?, nanos: 1_000_000_000 - nanos },
    })
}

/// Writes a time as Go does: the fraction without zeros at its end.
pub(super) fn format_time(time: Time) -> String {
    if time.nanos == 0 {
        return time.seconds.to_string();
    }
    let (sign, seconds, nanos) = if time.seconds < 0 {
        ("-", -(i128::from(time.seconds) + 1), 1_000_000_000 - time.nanos)
    } else {
        ("", i128::from(time.seconds), time.nanos)
    };
    let text = format!("{sign}{seconds}.{nanos:09}");
    text.trim_end_matches('0').to_owned()
}

/// Writes a record; its length counts its own digits.
pub(super) fn push_record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() != rest.to_string().len() {
        length = rest + length.to_string().len();
    }
    out.extend_from_slice(length.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}
