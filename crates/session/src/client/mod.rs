//! The client's end: it serves what it was told to share, and nothing else.

mod auth;
mod content;
mod exports;
mod files;
mod health;
mod secrets;
mod serve;
mod ssh;
mod upload;

use std::collections::BTreeMap;
use std::sync::Arc;

use bud_protocol::control::control_client::ControlClient;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Request;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::Channel;

pub use auth::CredentialProvider;
pub use content::ContentStore;
pub use exports::{ExportTarget, FileSink, FileTarget, Stdout, TarFile};
pub use files::LocalDir;
pub use secrets::SecretSource;
pub use ssh::SshAgent;
pub use upload::UploadSource;

use crate::tunnel::Tunnel;
use crate::{MAX_MESSAGE, SessionError, methods};

/// What a client shares in a session. What isn't here can't be reached through it.
#[derive(Default)]
pub struct Attachables {
    /// Directories, by the name under which a build knows them (`context`, `dockerfile`, …).
    pub locals: BTreeMap<String, LocalDir>,
    /// Secrets, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// ssh agents, by id (`default`, …).
    pub ssh: BTreeMap<String, SshAgent>,
    /// Credentials for registries.
    pub credentials: Option<Arc<dyn CredentialProvider>>,
    /// Where exports go, by the exporter's index in the build request.
    pub exports: BTreeMap<u32, ExportTarget>,
    /// Content stores, by id: `oci:NAME` for an OCI layout, `local:PATH`, `export`.
    pub stores: BTreeMap<String, ContentStore>,
    /// Streams that can be read once, by the path in their URL.
    pub uploads: BTreeMap<String, UploadSource>,
}

impl Attachables {
    /// The methods that serve all this.
    fn methods(&self) -> Vec<&'static str> {
        let mut offered = vec![methods::HEALTH];
        let mut offer = |condition: bool, methods: &[&'static str]| {
            if condition {
                offered.extend(methods);
            }
        };
        offer(!self.locals.is_empty(), &[methods::FILE_SYNC]);
        offer(!self.exports.is_empty(), &[methods::FILE_SEND]);
        offer(self.credentials.is_some(), &[methods::CREDENTIALS]);
        offer(!self.secrets.is_empty(), &[methods::SECRET]);
        offer(!self.ssh.is_empty(), &[methods::CHECK_AGENT, methods::FORWARD_AGENT]);
        offer(!self.uploads.is_empty(), &[methods::UPLOAD]);
        offer(!self.stores.is_empty(), content::METHODS);
        offered
    }
}

/// An open session; closed when this is dropped.
pub struct SessionHandle {
    id: String,
    ended: watch::Receiver<bool>,
    _close: DropGuard,
}

impl SessionHandle {
    /// Opens a session with the daemon behind `channel`. `shared_key` names this client's directories across sessions; it may be empty.
    pub async fn open(
        channel: Channel,
        attachables: Attachables,
        shared_key: &str,
    ) -> Result<SessionHandle, SessionError> {
        SessionHandle::open_as(channel, attachables, shared_key, &new_id()?).await
    }

    /// Opens a session with a given id, which must not be in use.
    pub async fn open_as(
        channel: Channel,
        attachables: Attachables,
        shared_key: &str,
        id: &str,
    ) -> Result<SessionHandle, SessionError> {
        let (outbound, messages) = mpsc::channel(16);
        let mut request = Request::new(ReceiverStream::new(messages));
        let metadata = request.metadata_mut();
        let ascii = |value: &str| {
            AsciiMetadataValue::try_from(value).map_err(|_| SessionError::BadRequest(format!("{value:?} is not ASCII")))
        };
        metadata.insert(methods::ID, ascii(id)?);
        metadata.insert(methods::NAME, ascii("")?);
        metadata.insert(methods::SHARED_KEY, ascii(shared_key)?);
        for method in attachables.methods() {
            metadata.append(methods::METHOD, AsciiMetadataValue::from_static(method));
        }
        let mut client = ControlClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let answer = client.session(request).await;
        let inbound = answer.map_err(|status| SessionError::answer("opening the session", status))?.into_inner();
        let (tunnel, ended) = Tunnel::new(inbound, outbound);
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(serve::serve(attachables, tunnel)).await;
        });
        Ok(SessionHandle { id: id.to_owned(), ended, _close: cancel.drop_guard() })
    }

    /// The session's id, for the build request.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns when the session is over: the daemon is gone or has closed it.
    pub async fn ended(&self) {
        // An error means that the sender is gone, which is an end as well.
        let _ = self.ended.clone().wait_for(|over| *over).await;
    }

    /// Tells whether the session is over.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }
}

/// Makes a random id of 25 letters and digits, as other clients have them.
pub fn new_id() -> Result<String, SessionError> {
    let mut bytes = [0u8; 16];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    got.map_err(|error| SessionError::io("making a session id", error))?;
    let mut number = u128::from_le_bytes(bytes);
    let mut id = String::with_capacity(25);
    for _ in 0..25 {
        // A number below 36 is a digit of that base.
        id.push(char::from_digit((number % 36) as u32, 36).unwrap_or('0'));
        number /= 36;
    }
    Ok(id)
}
