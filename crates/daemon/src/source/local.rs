//! `local://`: a directory of the client.
//!
//! If the client handed over a descriptor of it ([`crate::descriptors`]), it is read in place. Otherwise its files are
//! received over the session (DiffCopy), incrementally into what was received last time under the same shared key.

use super::{Pin, PinKey, SourceCx};
use crate::sessions::session_error;
use crate::value::{Value, blocking, file_error, store_error};
use bud_protocol::errors::BuildError;
use bud_session::SessionError;
use bud_session::daemon::DirRequest;
use bud_session::fsutil::ReceiveOptions;
use bud_store::context::ContextOptions;
use bud_store::{ContextTree, Info, RecordType, Snapshot};
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

    /// Receives the files into a layer of their own.
    async fn receive(&self, cx: &SourceCx) -> Result<Value, BuildError> {
        let store = &cx.daemon.store;
        let draft = store.draft(&Snapshot::scratch()).map_err(store_error)?;
        let request = DirRequest {
            name: self.name.clone(),
            include: self.options.include.clone(),
            exclude: self.options.exclude.clone(),
            follow: self.options.follow.clone(),
        };
        let status = cx.progress.status(format!("transferring {}:", self.name));
        let sessions = cx.sessions.clone();
        let (upper, wanted, request) = (draft.upper(), &self.session, &request);
        let received = sessions.any(|session| {
            let dest = std::fs::File::open(&upper)
                .map_err(|source| SessionError::Io { doing: format!("open {}", upper.display()), source });
            async move {
                if !wanted.is_empty() && session.id() != wanted {
                    return Err(SessionError::Missing(wanted.clone()));
                }
                session.diff_copy(request, dest?.into(), ReceiveOptions::default()).await
            }
        });
        let received = received
            .await
            .map_err(|e| session_error(e).context(format!("failed to read the client's directory {:?}", self.name)))?;
        status.set(received.bytes);
        drop(status);
        let description = format!("local source for {}", self.name);
        blocking(move || {
            let info = Info { description, record_type: RecordType::LocalSource };
            draft.commit(&info).map(Value::kept).map_err(store_error)
        })
        .await
    }
}
