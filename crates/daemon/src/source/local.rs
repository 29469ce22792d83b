//! `local://`: a directory of the client.
//!
//! If the client handed over a descriptor of it ([`crate::descriptors`]), it is read in place. Otherwise its files are
//! received over the session (DiffCopy), incrementally into what was received last time under the same shared key.

use super::{Pin, PinKey, SourceCx, private_cache_id};
use crate::sessions::session_error;
use crate::value::{Value, blocking, file_error};
use bud_protocol::errors::BuildError;
use bud_session::daemon::DirRequest;
use bud_session::fsutil::{Differ, ReceiveOptions};
use bud_session::{Session, SessionError};
use bud_store::context::ContextOptions;
use bud_store::{CacheMount, ContextTree, Sharing};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A directory of the client.
#[derive(Clone, Debug)]
pub struct LocalSource {
    /// The name that the client gave it (`context`, `dockerfile`).
    pub name: String,
    /// Which session; empty: any of the build.
    pub session: String,
    /// What of it.
    pub options: ContextOptions,
    /// Part of the key under which a received directory is kept for next time.
    pub shared_key_hint: String,
    /// False (`local.differ=none`): everything is taken anew.
    pub differ: bool,
}

impl LocalSource {
    /// Parses identifier and attributes: `local.session`, `local.includepattern`, `local.excludepatterns`, `local.followpaths`,
    /// `local.sharedkeyhint`, `local.differ`.
    ///
    /// # Errors
    /// `InvalidArgument`: a list that is not JSON.
    pub fn parse(rest: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let list = |key: &str| -> Result<Vec<String>, BuildError> {
            match attrs.get(key).map(String::as_str) {
                None | Some("") => Ok(Vec::new()),
                Some(text) => serde_json::from_str::<Option<Vec<String>>>(text)
                    .map(Option::unwrap_or_default)
                    .map_err(|e| BuildError::invalid(format!("attribute {key} of local source {rest:?}: {e}"))),
            }
        };
        let attr = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        Ok(Self {
            name: rest.into(),
            session: attr("local.session"),
            options: ContextOptions {
                include: list("local.includepattern")?,
                exclude: list("local.excludepatterns")?,
                follow: list("local.followpaths")?,
            },
            shared_key_hint: attr("local.sharedkeyhint"),
            differ: attr("local.differ") != "none",
        })
    }

    /// A client's directory is known by its content alone.
    ///
    /// # Errors
    /// The session that it names is not of this build.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        if !self.session.is_empty() && !cx.sessions.contains(&self.session) {
            return Err(BuildError::invalid(format!(
                "local source {:?} names a session that is not of this build",
                self.name
            )));
        }
        Ok(Pin { key: PinKey::Content, state: BTreeMap::new() })
    }

    /// Lists the directory in place, or receives it.
    ///
    /// # Errors
    /// No session has it, or its files can't be read.
    pub async fn fetch(&self, _pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let sessions = if self.session.is_empty() { cx.sessions.ids() } else { vec![self.session.clone()] };
        for id in &sessions {
            if let Some(root) = cx.daemon.descriptors.directory(id, &self.name) {
                let options = self.options.clone();
                let name = self.name.clone();
                return blocking(move || {
                    let tree = ContextTree::open(root, &options)
                        .map_err(|e| file_error(e).context(format!("failed to read the local directory {name:?}")))?;
                    Ok(Value::Context(Arc::new(tree)))
                })
                .await;
            }
        }
        self.receive(cx).await
    }

    /// Receives the files into the directory that holds what was received under the same shared key before, so that only what
    /// differs comes over. It is read in place after that, and nobody else's while the tree lives: another transfer under the key meanwhile gets a
    /// directory of its own.
    async fn receive(&self, cx: &SourceCx) -> Result<Value, BuildError> {
        let request = DirRequest {
            name: self.name.clone(),
            include: self.options.include.clone(),
            exclude: self.options.exclude.clone(),
            follow: self.options.follow.clone(),
        };
        let differ = if self.differ { Differ::Metadata } else { Differ::None };
        let status = Arc::new(cx.progress.status(format!("transferring {}:", self.name)));
        let sessions = cx.sessions.clone();
        let (wanted, request) = (&self.session, &request);
        let received = sessions.any(|session| {
            let status = Arc::clone(&status);
            async move {
                if !wanted.is_empty() && session.id() != wanted {
                    return Err(SessionError::Missing(wanted.clone()));
                }
                let dir = Arc::new(self.kept_directory(cx, &session).await?);
                let path = dir.path();
                let dest = std::fs::File::open(&path)
                    .map_err(|source| SessionError::Io { doing: format!("open {}", path.display()), source })?;
                let told = Arc::clone(&status);
                let options = ReceiveOptions {
                    differ,
                    progress: Some(Arc::new(move |bytes| told.set(bytes))),
                    guard: Some(dir.clone()),
                    ..ReceiveOptions::default()
                };
                let received = session.diff_copy(request, dest.into(), options).await?;
                status.set(received.bytes);
                Ok(dir)
            }
        });
        let dir = received
            .await
            .map_err(|e| session_error(e).context(format!("failed to read the client's directory {:?}", self.name)))?;
        drop(status);
        let name = self.name.clone();
        blocking(move || {
            let path = dir.path();
            let root =
                std::fs::File::open(&path).map_err(|e| BuildError::other(format!("open {}: {e}", path.display())))?;
            let tree = ContextTree::open(root.into(), &ContextOptions::default())
                .map_err(|e| file_error(e).context(format!("failed to read the received directory {name:?}")))?;
            Ok(Value::Context(Arc::new(tree.holding(dir))))
        })
        .await
    }

    /// Takes the directory of the client's shared key.
    async fn kept_directory(&self, cx: &SourceCx, session: &Session) -> Result<CacheMount, SessionError> {
        let store = Arc::clone(&cx.daemon.store);
        let key = [self.name.as_str(), self.shared_key_hint.as_str(), session.shared_key()].join("\0");
        let taken = tokio::task::spawn_blocking(move || {
            let id = private_cache_id(&store, "local", &key)?;
            store.cache_mount(&id, Sharing::Private, &())
        });
        let taken = taken.await.map_err(std::io::Error::other);
        let taken = taken.and_then(|taken| taken.map_err(std::io::Error::other));
        taken.map_err(|source| SessionError::Io { doing: "take a directory for received files".into(), source })
    }
}
