//! The small languages inside flags' values: sizes, durations, lists, key=value, limits, hosts.

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use std::net::IpAddr;
use std::time::Duration;

/// Parses a size such as `128m`, `1.5GB`, `1GiB` or plain bytes; letters count by 1024, as `docker build` does.
pub fn bytes(text: &str) -> Result<u64> {
    let wrong = || anyhow!("`{text}` is not a size: give a number and a unit, such as 128m or 2GB");
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number: f64 = text[..end].parse().map_err(|_| wrong())?;
    let unit = text[end..].trim().to_ascii_lowercase();
    let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 1,
        "m" => 2,
        "g" => 3,
        "t" => 4,
        _ => return Err(wrong()),
    };
    let bytes = number * 1024_f64.powi(power);
    // Above 2^60 a size is a typing error.
    if !(0.0..1_152_921_504_606_846_976.0).contains(&bytes) {
        return Err(wrong());
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
    Ok(bytes as u64)
}

/// Parses a duration as Go writes them (`90s`, `1h30m`, `250ms`), and plain `0`.
pub fn duration(text: &str) -> Result<Duration> {
    let wrong = || anyhow!("`{text}` is not a duration: write it like 90s, 30m, 1h30m or 48h");
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text.trim();
    let mut total = 0.0_f64;
    if rest.is_empty() {
        return Err(wrong());
    }
    while !rest.is_empty() {
        let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
        let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
        rest = &rest[end..];
        let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        total += number
            * match &rest[..end] {
                "ms" => 0.001,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                "d" => 86400.0,
                _ => return Err(wrong()),
            };
        rest = &rest[end..];
    }
    Duration::try_from_secs_f64(total).map_err(|_| wrong())
}

/// Splits a line of comma-separated values; a field may be quoted as in CSV (`"a,b"`, `""` for a quote inside).
pub fn fields(text: &str) -> Result<Vec<String>> {
    let mut fields = Vec::new();
    let mut chars = text.chars().peekable();
    loop {
        let mut field = String::new();
        if chars.next_if_eq(&'"').is_some() {
            loop {
                match chars.next() {
                    Some('"') if chars.next_if_eq(&'"').is_some() => field.push('"'),
                    Some('"') => break,
                    Some(c) => field.push(c),
                    None => bail!("`{text}` has a quote that doesn't end"),
                }
            }
            ensure!(matches!(chars.peek(), None | Some(',')), "`{text}` goes on after a closing quote");
        } else {
            while let Some(c) = chars.next_if(|c| *c != ',') {
                field.push(c);
            }
        }
        fields.push(field);
        if chars.next().is_none() {
            return Ok(fields);
        }
    }
}

/// Splits `key=value`; the key must not be empty.
pub fn key_value(text: &str) -> Result<(&str, &str)> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key, value)),
        _ => bail!("`{text}` is not KEY=VALUE"),
    }
}

/// Turns `--add-host` values (`host:ip`, `host=ip`, IPv6 with or without brackets) into the front end's list.
pub fn hosts(values: &[String]) -> Result<String> {
    let mut list = Vec::new();
    for value in values {
        let (host, ip) = value
            .split_once('=')
            .or_else(|| value.split_once(':'))
            .filter(|(host, ip)| !host.is_empty() && !ip.is_empty())
            .with_context(|| format!("--add-host {value}: write it as HOST:IP, such as db:10.0.0.5"))?;
        let bare = ip.strip_prefix('[').and_then(|ip| ip.strip_suffix(']')).unwrap_or(ip);
        if ip == "host-gateway" {
            bail!("--add-host {value}: host-gateway is not known to BuildKit; give the address itself");
        }
        bare.parse::<IpAddr>().map_err(|_| anyhow!("--add-host {value}: `{ip}` is not an IP address"))?;
        list.push(format!("{host}={bare}"));
    }
    Ok(list.join(","))
}

const LIMITS: &[&str] = &[
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Turns `--ulimit` values (`name=soft[:hard]`, -1 for no limit) into the front end's list.
pub fn ulimits(values: &[String]) -> Result<String> {
    let mut list = Vec::new();
    for value in values {
        let (name, limits) =
            key_value(value).with_context(|| format!("--ulimit {value}: write it as NAME=SOFT[:HARD]"))?;
        ensure!(LIMITS.contains(&name), "--ulimit {value}: `{name}` is not a limit; there are {}", LIMITS.join(", "));
        let (soft, hard) = limits.split_once(':').unwrap_or((limits, limits));
        let number = |text: &str| -> Result<i64> {
            let n: i64 = text.parse().map_err(|_| anyhow!("--ulimit {value}: `{text}` is not a number"))?;
            ensure!(n >= -1, "--ulimit {value}: `{text}` is below -1 (which means no limit)");
            Ok(n)
        };
        let (soft, hard) = (number(soft)?, number(hard)?);
        ensure!(hard == -1 || (soft != -1 && soft <= hard), "--ulimit {value}: the soft limit is above the hard limit");
        list.push(format!("{name}={soft}:{hard}"));
    }
    Ok(list.join(","))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, expected) in
            [("0", 0), ("1024", 1024), ("128m", 128 << 20), ("1.5G", 3 << 29), ("2GB", 2 << 30), ("1kib", 1024)]
        {
            assert_eq!(bytes(text).unwrap(), expected, "{text}");
        }
        for text in ["", "m", "-1", "1x", "1e9", "99999999999g", "1..2"] {
            assert!(bytes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, expected) in [("0", 0), ("90s", 90_000), ("1h30m", 5_400_000), ("250ms", 250), ("1.5h", 5_400_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(expected), "{text}");
        }
        for text in ["", "5", "s", "1y", "-3s", "1h5"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quoted_fields() {
        assert_eq!(fields("a,b=c,").unwrap(), ["a", "b=c", ""]);
        assert_eq!(fields(r#"type=image,"name=a,b""#).unwrap(), ["type=image", "name=a,b"]);
        assert_eq!(fields(r#""say ""hi""""#).unwrap(), [r#"say "hi""#]);
        assert!(fields(r#""open"#).is_err());
        assert!(fields(r#""a"b"#).is_err());
    }

    #[test]
    fn host_lines() {
        let list = hosts(&["a:1.2.3.4".into(), "b=::1".into(), "c:[fe80::1]".into(), "d:::1".into()]).unwrap();
        assert_eq!(list, "a=1.2.3.4,b=::1,c=fe80::1,d=::1");
        assert!(hosts(&["a".into()]).is_err());
        assert!(hosts(&["a:host-gateway".into()]).unwrap_err().to_string().contains("address itself"));
        assert!(hosts(&["a:1.2.3".into()]).is_err());
    }

    #[test]
    fn limits() {
        assert_eq!(ulimits(&["nofile=10:20".into(), "core=-1".into()]).unwrap(), "nofile=10:20,core=-1:-1");
        for bad in ["nofile", "nofiles=1", "nofile=a", "nofile=20:10", "nofile=-2", "nofile=-1:5"] {
            assert!(ulimits(&[bad.into()]).is_err(), "{bad}");
        }
    }
}
