//! A BuildKit session's two ends.
//!
//! A session is an HTTP/2 connection inside the bidirectional stream `Control/Session`, in which the daemon is the
//! client: it asks the one who started a build for files, credentials, secrets and ssh agents, and hands results back.
//!
//! - [`daemon`] is the end that asks: [`SessionRegistry`] and [`Session`].
//! - [`client`] is the end that answers: [`Attachables`] and [`SessionHandle`].
//! - [`fsutil`] moves file trees between them, in either direction.
//! - [`descriptors`] hands over directories instead, where both ends are on one machine.

#![forbid(unsafe_code)]

pub mod client;
pub mod daemon;
pub mod descriptors;
mod error;
pub mod fsutil;
pub mod methods;
mod tunnel;

pub use client::{Attachables, SessionHandle};
pub use daemon::{Session, SessionRegistry};
pub use error::SessionError;

/// A user name and a password, or an identity token (with an empty user name).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// The user name; empty with an identity token.
    pub username: String,
    /// The password or token.
    pub secret: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials").field("username", &self.username).finish_non_exhaustive()
    }
}

/// Largest message taken over a session, in bytes.
pub const MAX_MESSAGE: usize = 16 << 20;
/// Largest piece of data sent in one message, in bytes.
pub const MAX_CHUNK: usize = 3 << 20;
