//! Times and sizes as people read them.

use super::model::Time;

/// Writes a time in seconds with one digit, from a minute on as minutes and seconds.
#[must_use]
pub fn seconds(time: Time) -> String {
    let tenths = time.max(0) / 100_000_000;
    match tenths / 10 {
        0..60 => format!("{}.{}s", tenths / 10, tenths % 10),
        s @ 60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        s => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

/// Writes a size by thousands, as Docker does.
#[must_use]
#[expect(clippy::cast_precision_loss, reason = "four digits are shown")]
pub fn bytes(bytes: i64) -> String {
    let mut value = bytes.max(0) as f64;
    let mut unit = 0;
    const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1000.0;
        unit += 1;
    }
    match unit {
        0 => format!("{value:.0} B"),
        _ if value < 9.95 => format!("{value:.2} {}", UNITS[unit]),
        _ if value < 99.95 => format!("{value:.1} {}", UNITS[unit]),
        _ => format!("{value:.0} {}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_people_read_them() {
        assert_eq!(seconds(1_250_000_000), "1.2s");
        assert_eq!(seconds(-5), "0.0s");
        assert_eq!(seconds(61_000_000_000), "1m 01s");
        assert_eq!(seconds(3_700_000_000_000), "1h 01m");
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(1000), "1.00 kB");
        assert_eq!(bytes(12_345_678), "12.3 MB");
        assert_eq!(bytes(999_600_000), "1.00 GB");
        assert_eq!(bytes(-1), "0 B");
    }
}
