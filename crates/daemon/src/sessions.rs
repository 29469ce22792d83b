//! The sessions that may answer for a step: those of all builds that share it.

use bud_protocol::errors::BuildError;
use bud_session::{Session, SessionError, SessionRegistry};
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// How long a session is waited for.
pub const WAIT: Duration = Duration::from_secs(5);

/// A changing list of sessions. Whoever needs something from "the client" asks one after the other; the last error counts.
#[derive(Clone)]
pub struct SessionGroup {
    registry: Arc<SessionRegistry>,
    members: Arc<Mutex<Vec<(u64, String)>>>,
}

impl fmt::Debug for SessionGroup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SessionGroup").field(&self.ids()).finish()
    }
}

impl SessionGroup {
    /// Makes a group without members.
    #[must_use]
    pub fn new(registry: &Arc<SessionRegistry>) -> Self {
        Self { registry: Arc::clone(registry), members: Arc::default() }
    }

    /// Makes a group of one build's session.
    #[must_use]
    pub fn of(registry: &Arc<SessionRegistry>, session: &str) -> Self {
        let group = Self::new(registry);
        group.join(0, session);
        group
    }

    /// Adds a build's session. An empty id is left out.
    pub fn join(&self, member: u64, session: &str) {
        if !session.is_empty() {
            self.lock().push((member, session.to_owned()));
        }
    }

    /// Removes a build's session.
    pub fn leave(&self, member: u64) {
        self.lock().retain(|(id, _)| *id != member);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(u64, String)>> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the sessions' ids.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.lock().iter().map(|(_, id)| id.clone()).collect()
    }

    /// Tells whether a session id that a request names is one of the group's: another build's client is never asked.
    #[must_use]
    pub fn contains(&self, id: &str) -> bool {
        self.lock().iter().any(|(_, member)| member == id)
    }

    /// Returns one of the sessions by id, waiting a little for it to appear.
    ///
    /// # Errors
    /// It is not of this group, or does not appear.
    pub async fn get(&self, id: &str) -> Result<Session, BuildError> {
        if !self.contains(id) {
            return Err(BuildError::invalid(format!("session {id:?} is not of this build")));
        }
        self.registry.get(id, WAIT).await.map_err(session_error)
    }

    /// Asks one session after the other until one has what is wanted.
    ///
    /// # Errors
    /// The last session's answer; `no active session` if there is none.
    pub async fn any<T, F, A>(&self, mut ask: F) -> Result<T, SessionError>
    where
        F: FnMut(Session) -> A + Send,
        A: Future<Output = Result<T, SessionError>> + Send,
    {
        let mut last = SessionError::Missing(String::new());
        for id in self.ids() {
            let session = match self.registry.get(&id, WAIT).await {
                Ok(session) => session,
                Err(error) => {
                    last = error;
                    continue;
                }
            };
            match ask(session).await {
                Ok(answer) => return Ok(answer),
                Err(error) => last = error,
            }
        }
        Err(last)
    }
}

/// Converts a session's error.
#[must_use]
pub fn session_error(error: SessionError) -> BuildError {
    if matches!(&error, SessionError::Missing(id) if id.is_empty()) {
        return BuildError::not_found("no active session: the client of this build is gone");
    }
    let message = error.to_string();
    let status: tonic::Status = error.into();
    BuildError::new(status.code(), message)
}
