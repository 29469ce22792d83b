//! The sessions that are open, by id.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bud_protocol::control::BytesMessage;
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::{Status, Streaming};

use super::{Session, health};
use crate::SessionError;
use crate::tunnel::Tunnel;

/// How long one waits for a session that may still come.
pub const WAIT: Duration = Duration::from_secs(5);
/// Longest id and shared key, in bytes.
const MAX_ID: usize = 1024;
/// Most methods a client may offer.
const MAX_METHODS: usize = 1000;

/// The response stream of `Control/Session`.
pub type SessionStream = Pin<Box<dyn Stream<Item = Result<BytesMessage, Status>> + Send>>;

/// The open sessions of a daemon.
#[derive(Clone, Default)]
pub struct SessionRegistry {
    inner: Arc<Inner>,
}

#[derive(Default)]
struct Inner {
    sessions: Mutex<HashMap<String, Option<Session>>>,
    changed: watch::Sender<()>,
}

impl Inner {
    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Option<Session>>> {
        // Nothing panics while it holds the lock, and each change is one call.
        self.sessions.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

/// Takes the id out of the registry again, whatever ends the session.
struct Entry {
    inner: Arc<Inner>,
    id: String,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.inner.sessions().remove(&self.id);
        self.inner.changed.send_replace(());
    }
}

impl SessionRegistry {
    /// Makes a registry without sessions.
    pub fn new() -> SessionRegistry {
        SessionRegistry::default()
    }

    /// Serves one call of `Control/Session`: makes the tunnelled connection and registers the session until the stream
    /// ends. An id that is in use is refused.
    pub async fn serve(
        &self,
        metadata: &MetadataMap,
        inbound: Streaming<BytesMessage>,
    ) -> Result<SessionStream, SessionError> {
        let opening = Opening::read(metadata)?;
        {
            let mut sessions = self.inner.sessions();
            if sessions.contains_key(&opening.id) {
                return Err(SessionError::Exists(opening.id));
            }
            sessions.insert(opening.id.clone(), None);
        }
        let entry = Entry { inner: self.inner.clone(), id: opening.id.clone() };
        let (outbound, messages) = mpsc::channel(16);
        let (tunnel, ended) = Tunnel::new(inbound, outbound);
        let this = self.clone();
        let closing = CancellationToken::new();
        let close = closing.clone().drop_guard();
        let closed = closing.clone().cancelled_owned();
        // The HTTP/2 handshake needs the response stream to flow, so the connection is made beside it.
        tokio::spawn(async move {
            let id = opening.id.clone();
            let session = match Session::connect(opening, tunnel, ended.clone(), closing).await {
                Ok(session) => session,
                Err(error) => {
                    tracing::debug!(%error, session = id, "the session could not be opened");
                    drop(entry);
                    return;
                }
            };
            this.inner.sessions().insert(id.clone(), Some(session.clone()));
            this.inner.changed.send_replace(());
            health::watch(&session).await;
            drop(close);
            drop(entry);
        });
        let messages = ReceiverStream::new(messages).map(Ok);
        Ok(Box::pin(futures_util::StreamExt::take_until(messages, closed)))
    }

    /// Returns the session `id`, waiting up to `wait` for it to appear. An id `prefix:id` is looked up as `id`.
    pub async fn get(&self, id: &str, wait: Duration) -> Result<Session, SessionError> {
        let name = id.rsplit_once(':').map_or(id, |(_, id)| id);
        let mut changed = self.inner.changed.subscribe();
        let found = async {
            loop {
                if let Some(Some(session)) = self.inner.sessions().get(name) {
                    return session.clone();
                }
                if changed.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::time::timeout(wait, found).await.map_err(|_| SessionError::Missing(id.to_owned()))
    }

    /// Returns the session `id` if it is there now.
    pub fn find(&self, id: &str) -> Option<Session> {
        let name = id.rsplit_once(':').map_or(id, |(_, id)| id);
        self.inner.sessions().get(name).cloned().flatten()
    }

    /// Returns how many sessions are open.
    pub fn count(&self) -> usize {
        self.inner.sessions().len()
    }
}

/// What the request metadata of `Control/Session` says.
pub(super) struct Opening {
    pub(super) id: String,
    pub(super) shared_key: String,
    /// In lower case.
    pub(super) methods: Vec<String>,
    pub(super) health_timeout: Option<Duration>,
}

impl Opening {
    fn read(metadata: &MetadataMap) -> Result<Opening, SessionError> {
        let bad = |what: &str| SessionError::BadRequest(what.to_owned());
        let text = |key: &str| -> Result<String, SessionError> {
            let value = metadata.get(key).map(|value| value.to_str()).transpose();
            let value = value.map_err(|_| bad(&format!("{key} is not ASCII")))?.unwrap_or("");
            if value.len() > MAX_ID {
                return Err(bad(&format!("{key} is longer than {MAX_ID} bytes")));
            }
            Ok(value.to_owned())
        };
        let id = text(crate::methods::ID)?;
        if id.is_empty() {
            return Err(bad("it has no id"));
        }
        let methods: Vec<String> = metadata
            .get_all(crate::methods::METHOD)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .map(str::to_ascii_lowercase)
            .collect();
        if methods.len() > MAX_METHODS {
            return Err(bad("it offers more than 1000 methods"));
        }
        let health_timeout = match text(crate::methods::HEALTH_TIMEOUT)?.parse::<u64>() {
            Ok(milliseconds) if milliseconds > 0 => Some(Duration::from_millis(milliseconds.min(3_600_000))),
            _ => None,
        };
        Ok(Opening { id, shared_key: text(crate::methods::SHARED_KEY)?, methods, health_timeout })
    }
}
