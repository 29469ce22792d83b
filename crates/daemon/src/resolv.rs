//! The name servers that steps use.

use std::io::Read as _;

/// At most so much of the host's file is read.
const LIMIT: u64 = 64 << 10;

/// Returns the content of `/etc/resolv.conf` for a step on the host's network: the host's own.
///
/// Where the host has none, public servers stand in, as in Docker.
#[must_use]
pub fn content() -> String {
    let mut text = String::new();
    let read = std::fs::File::open("/etc/resolv.conf").and_then(|f| f.take(LIMIT).read_to_string(&mut text));
    if read.is_err() || !text.lines().any(|l| l.trim_start().starts_with("nameserver")) {
        return "nameserver 8.8.8.8\nnameserver 8.8.4.4\n".into();
    }
    text
}
