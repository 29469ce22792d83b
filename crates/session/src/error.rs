//! What can go wrong in a session.

use tonic::{Code, Status};

/// Why something asked over a session didn't work.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// No session of that id showed up in time.
    #[error("no session {0:?}: the client is gone or has not connected")]
    Missing(String),
    /// The id is in use by another connection.
    #[error("session {0:?} exists already")]
    Exists(String),
    /// The session's request lacks something or has it wrongly.
    #[error("not a session: {0}")]
    BadRequest(String),
    /// The session ended while it was asked.
    #[error("session {0:?} has ended")]
    Ended(String),
    /// The client doesn't offer this.
    #[error("the client offers no {0}")]
    Unsupported(&'static str),
    /// The other end answered with an error.
    #[error("{doing}: {}", .status.message())]
    Answer {
        /// What was asked.
        doing: String,
        /// The answer.
        status: Box<Status>,
    },
    /// The other end broke the protocol.
    #[error("{0}")]
    Protocol(String),
    /// Something of this machine failed.
    #[error("{doing}: {source}")]
    Io {
        /// What was being done, with its path.
        doing: String,
        /// The reason.
        source: std::io::Error,
    },
    /// Transfer cancelled from this end.
    #[error("the transfer was cancelled")]
    Cancelled,
}

impl SessionError {
    pub(crate) fn io(doing: impl Into<String>, source: impl Into<std::io::Error>) -> SessionError {
        SessionError::Io { doing: doing.into(), source: source.into() }
    }

    pub(crate) fn answer(doing: impl Into<String>, status: Status) -> SessionError {
        SessionError::Answer { doing: doing.into(), status: Box::new(status) }
    }

    /// Tells whether the other end doesn't have what was asked for (another session may).
    pub fn is_not_found(&self) -> bool {
        match self {
            SessionError::Answer { status, .. } => {
                matches!(status.code(), Code::NotFound | Code::Unimplemented)
            }
            SessionError::Missing(_) | SessionError::Unsupported(_) => true,
            _ => false,
        }
    }

    /// Tells whether the other end has it already.
    pub fn is_already_exists(&self) -> bool {
        matches!(self, SessionError::Answer { status, .. } if status.code() == Code::AlreadyExists)
    }
}

impl From<SessionError> for Status {
    fn from(error: SessionError) -> Status {
        let code = match &error {
            SessionError::Missing(_) => Code::NotFound,
            SessionError::Exists(_) => Code::AlreadyExists,
            SessionError::BadRequest(_) | SessionError::Protocol(_) => Code::InvalidArgument,
            SessionError::Ended(_) => Code::Unavailable,
            SessionError::Unsupported(_) => Code::Unimplemented,
            SessionError::Answer { status, .. } => status.code(),
            SessionError::Io { .. } => Code::Internal,
            SessionError::Cancelled => Code::Cancelled,
        };
        Status::new(code, error.to_string())
    }
}
