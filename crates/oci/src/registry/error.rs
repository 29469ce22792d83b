//! What goes wrong with registries, said so that a person can do something about it.

use std::time::Duration;

/// Says what a registry was asked for and what came of it.
#[derive(Debug, thiserror::Error)]
#[error("{action} {reference}: {registry}: {problem}")]
pub struct RegistryError {
    /// What was being done: `pull`, `push`.
    pub action: &'static str,
    /// The image, as people type it.
    pub reference: String,
    /// The host that was asked.
    pub registry: String,
    /// What happened.
    #[source]
    pub problem: Problem,
}

/// What happened at a registry. Texts from outside are escaped and cut.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// The registry doesn't have it.
    #[error("not found{0}")]
    NotFound(String),
    /// It is not there, or only for others: registries don't say which.
    #[error("not found, or private: if it exists, log in with `docker login {host}` (status {status}{message})")]
    NotFoundOrPrivate {
        /// Where to log in.
        host: String,
        /// HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// The credentials were refused.
    #[error(
        "access refused for user {user:?} (status {status}{message}): log in again with `docker login {host}`, or ask for access"
    )]
    Refused {
        /// Whose credentials.
        user: String,
        /// Where to log in.
        host: String,
        /// HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// Too many requests, even after waiting.
    #[error("too many requests{message}; waited and tried {tries} times: try later, or log in for a higher limit")]
    RateLimited {
        /// How often it was tried.
        tries: u32,
        /// What the server said.
        message: String,
    },
    /// Another answer than expected.
    #[error("unexpected status {status}{message}")]
    Status {
        /// HTTP status.
        status: u16,
        /// What the server said.
        message: String,
    },
    /// No connection, or it broke.
    #[error("{0}")]
    Network(String),
    /// Nothing came for too long.
    #[error("no answer for {} s", .0.as_secs())]
    Silent(Duration),
    /// The bytes are not those that were asked for.
    #[error("content has digest {actual}, not {expected}: the registry or something on the way changed it")]
    Digest {
        /// What came.
        actual: bud_image::Digest,
        /// What was asked for.
        expected: bud_image::Digest,
    },
    /// More or fewer bytes than the descriptor says.
    #[error("content has {actual} bytes where {expected} were announced")]
    Size {
        /// What came; at least, if it was cut off.
        actual: u64,
        /// What was announced.
        expected: u64,
    },
    /// A manifest or index is not valid.
    #[error(transparent)]
    Document(#[from] super::DocumentError),
    /// A redirect or other address that is not followed.
    #[error("{0}")]
    Address(String),
    /// The answer breaks the protocol.
    #[error("{0}")]
    Protocol(String),
    /// The credentials can't be had.
    #[error("get credentials for {host}: {message}")]
    Credentials {
        /// For which host.
        host: String,
        /// Why not.
        message: String,
    },
    /// Certificates or keys of this host's configuration can't be used.
    #[error("{0}")]
    Config(String),
    /// What is to be pushed can't be read.
    #[error("read what is to be pushed: {0}")]
    Source(std::io::Error),
}

impl Problem {
    /// Tells if the registry can't be reached, refuses or limits: a remembered answer may do then.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::NotFoundOrPrivate { .. }
            | Self::Refused { .. }
            | Self::RateLimited { .. }
            | Self::Network(_)
            | Self::Silent(_)
            | Self::Credentials { .. } => true,
            Self::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }

    /// Tells if the thing isn't there, or not for us.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound(_) | Self::NotFoundOrPrivate { .. })
    }

    /// Tells if trying again may help.
    pub(crate) fn is_transient(&self) -> bool {
        match self {
            Self::Network(_) | Self::Silent(_) => true,
            Self::Status { status, .. } => is_transient(*status),
            _ => false,
        }
    }
}

/// Tells if a status may be another a moment later.
pub(crate) fn is_transient(status: u16) -> bool {
    matches!(status, 408 | 429 | 500 | 502 | 503 | 504)
}

/// Makes text from outside fit for a terminal: control and direction characters escaped, cut at 4 KB.
#[must_use]
pub fn printable(text: &str) -> String {
    const MOST: usize = 4096;
    let mut out = String::new();
    for c in text.trim().chars() {
        if out.len() >= MOST {
            out.push('…');
            break;
        }
        let bidi = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if c.is_control() || bidi {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// Returns the message of an error answer's body, with `: ` before it.
pub(crate) fn server_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        #[serde(default)]
        errors: Vec<Entry>,
        #[serde(default, alias = "details", alias = "error_description")]
        message: String,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    let text = match serde_json::from_slice::<Errors>(body) {
        Ok(Errors { errors, .. }) if !errors.is_empty() => {
            let parts: Vec<_> = errors.iter().take(5).map(|e| [&e.code[..], &e.message].join(" ")).collect();
            parts.join("; ")
        }
        Ok(Errors { message, .. }) => message,
        // A page for people says nothing in a terminal.
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    let text = printable(&text);
    if text.is_empty() { text } else { format!(": {text}") }
}
