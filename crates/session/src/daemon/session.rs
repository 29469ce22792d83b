//! One client's session: what it offers, and the short calls.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bud_protocol::filesync::auth_client::AuthClient;
use bud_protocol::filesync::{
    CredentialsRequest, FetchTokenRequest, GetTokenAuthorityRequest, VerifyTokenAuthorityRequest,
};
use bud_protocol::secrets::GetSecretRequest;
use bud_protocol::secrets::secrets_client::SecretsClient;
use bud_protocol::upload::upload_client::UploadClient;
use bytes::Bytes;
use futures_util::Stream;
use hyper_util::rt::TokioIo;
use tokio::sync::watch;
use tokio_stream::StreamExt;
use tokio_util::sync::CancellationToken;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tower::service_fn;

use super::registry::Opening;
use crate::tunnel::Tunnel;
use crate::{Credentials, MAX_MESSAGE, SessionError, methods};

/// How long a client may take for credentials.
const AUTH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the tunnelled connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// Window of a stream: how much may be under way unread.
const WINDOW: u32 = 4 << 20;

/// A client's session. Cheap to clone; over when the client's stream is.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    id: String,
    shared_key: String,
    methods: Vec<String>,
    health_timeout: Option<Duration>,
    channel: Channel,
    stream_ended: watch::Receiver<bool>,
    closing: CancellationToken,
}

/// A registry token that the client fetched.
#[derive(Clone, Default)]
pub struct Token {
    /// The token.
    pub token: String,
    /// How long it holds, in seconds; 0 if not told.
    pub expires_in: i64,
    /// When it was issued, as Unix time; 0 if not told.
    pub issued_at: i64,
}

impl std::fmt::Debug for Session {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Session").field("id", &self.inner.id).finish_non_exhaustive()
    }
}

impl Session {
    pub(super) async fn connect(
        opening: Opening,
        tunnel: Tunnel,
        stream_ended: watch::Receiver<bool>,
        closing: CancellationToken,
    ) -> Result<Session, SessionError> {
        let io = Mutex::new(Some(TokioIo::new(tunnel)));
        // One connection a session: asked for a second one, there is none.
        let connector = service_fn(move |_| {
            let io = io.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
            async move { io.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://localhost")
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW * 4);
        let connecting = endpoint.connect_with_connector(connector);
        let channel = tokio::time::timeout(CONNECT_TIMEOUT, connecting)
            .await
            .map_err(|_| SessionError::Ended(opening.id.clone()))?
            .map_err(|error| SessionError::Protocol(format!("connecting to session {:?}: {error}", opening.id)))?;
        Ok(Session {
            inner: Arc::new(Inner {
                id: opening.id,
                shared_key: opening.shared_key,
                methods: opening.methods,
                health_timeout: opening.health_timeout,
                channel,
                stream_ended,
                closing,
            }),
        })
    }

    /// The session's id.
    pub fn id(&self) -> &str {
        &self.inner.id
    }

    /// The key that names this client's directories across sessions; may be empty.
    pub fn shared_key(&self) -> &str {
        &self.inner.shared_key
    }

    /// Tells whether the client offers `method` (`/service/Method`, in any case).
    pub fn supports(&self, method: &str) -> bool {
        self.inner.methods.iter().any(|offered| offered.eq_ignore_ascii_case(method))
    }

    /// Returns when the session is over.
    pub async fn ended(&self) {
        let mut stream = self.inner.stream_ended.clone();
        // An error means that the sender is gone, which is an end as well.
        tokio::select! {
            _ = stream.wait_for(|over| *over) => {}
            () = self.inner.closing.cancelled() => {}
        }
    }

    /// Tells whether the session is over.
    pub fn has_ended(&self) -> bool {
        *self.inner.stream_ended.borrow() || self.inner.closing.is_cancelled()
    }

    /// Ends the session: whatever is being asked fails, and the client's stream ends.
    pub fn end(&self) {
        self.inner.closing.cancel();
    }

    pub(super) fn channel(&self) -> Channel {
        self.inner.channel.clone()
    }

    pub(super) fn health_timeout(&self) -> Option<Duration> {
        self.inner.health_timeout
    }

    /// Refuses what the client doesn't offer.
    pub(super) fn require(&self, method: &str, what: &'static str) -> Result<(), SessionError> {
        if self.supports(method) { Ok(()) } else { Err(SessionError::Unsupported(what)) }
    }

    fn end_error(&self) -> SessionError {
        SessionError::Ended(self.inner.id.clone())
    }

    /// Runs `call` until it answers or the session ends.
    pub(super) async fn ask<T>(
        &self,
        doing: impl Into<String>,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, SessionError> {
        tokio::select! {
            () = self.ended() => Err(self.end_error()),
            answer = call => answer.map_err(|status| {
                if self.has_ended() { self.end_error() } else { SessionError::answer(doing, status) }
            }),
        }
    }

    /// Returns the secret `id`; `None` if the client has none of that name.
    pub async fn secret(&self, id: &str) -> Result<Option<Vec<u8>>, SessionError> {
        if !self.supports(methods::SECRET) {
            return Ok(None);
        }
        let mut client = SecretsClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let request = GetSecretRequest { id: id.to_owned(), ..Default::default() };
        let answer = self.ask(format!("secret {id}"), client.get_secret(request)).await;
        absent_as_none(answer.map(|answer| answer.into_inner().data))
    }

    /// Returns the client's credentials for `host` (`registry-1.docker.io` for Docker Hub); `None` if it has none.
    pub async fn credentials(&self, host: &str) -> Result<Option<Credentials>, SessionError> {
        if !self.supports(methods::CREDENTIALS) {
            return Ok(None);
        }
        let mut client = AuthClient::new(self.channel());
        let mut request = Request::new(CredentialsRequest { host: host.to_owned() });
        request.set_timeout(AUTH_TIMEOUT);
        let answer = self.ask(format!("credentials for {host}"), client.credentials(request)).await;
        let credentials = absent_as_none(answer.map(|answer| answer.into_inner()))?;
        Ok(credentials.and_then(|answer| {
            (!answer.username.is_empty() || !answer.secret.is_empty())
                .then_some(Credentials { username: answer.username, secret: answer.secret })
        }))
    }

    /// Returns the public key that stands for the client's right to tokens of `host`; `None` if it fetches no tokens
    /// itself, so that [`Session::credentials`] is the way.
    pub async fn token_authority(&self, host: &str, salt: &[u8]) -> Result<Option<Vec<u8>>, SessionError> {
        if !self.supports(methods::TOKEN_AUTHORITY) {
            return Ok(None);
        }
        let mut client = AuthClient::new(self.channel());
        let mut request = Request::new(GetTokenAuthorityRequest { host: host.to_owned(), salt: salt.to_vec() });
        request.set_timeout(AUTH_TIMEOUT);
        let answer = self.ask(format!("token authority for {host}"), client.get_token_authority(request));
        match answer.await {
            Ok(answer) => Ok(Some(answer.into_inner().public_key).filter(|key| key.len() == 32)),
            Err(SessionError::Answer { status, .. })
                if matches!(status.code(), Code::Unimplemented | Code::Unavailable | Code::NotFound) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Has the client sign `payload` with its key for `host`.
    pub async fn sign_with_authority(&self, host: &str, payload: &[u8], salt: &[u8]) -> Result<Vec<u8>, SessionError> {
        self.require(methods::VERIFY_TOKEN_AUTHORITY, "token authority")?;
        let mut client = AuthClient::new(self.channel());
        let mut request = Request::new(VerifyTokenAuthorityRequest {
            host: host.to_owned(),
            payload: payload.to_vec(),
            salt: salt.to_vec(),
        });
        request.set_timeout(AUTH_TIMEOUT);
        let answer = client.verify_token_authority(request);
        let answer = self.ask(format!("token authority for {host}"), answer).await?;
        Ok(answer.into_inner().signed)
    }

    /// Has the client fetch a token.
    pub async fn fetch_token(
        &self,
        host: &str,
        realm: &str,
        service: &str,
        client_id: &str,
        scopes: &[String],
    ) -> Result<Token, SessionError> {
        self.require(methods::FETCH_TOKEN, "token fetching")?;
        let mut client = AuthClient::new(self.channel());
        let mut request = Request::new(FetchTokenRequest {
            client_id: client_id.to_owned(),
            host: host.to_owned(),
            realm: realm.to_owned(),
            service: service.to_owned(),
            scopes: scopes.to_vec(),
        });
        request.set_timeout(AUTH_TIMEOUT);
        let answer = self.ask(format!("token for {host}"), client.fetch_token(request)).await?;
        let answer = answer.into_inner();
        Ok(Token { token: answer.token, expires_in: answer.expires_in, issued_at: answer.issued_at })
    }

    /// Returns what the client offers for upload under `host` and `path` (`http://buildkit-session/…`), as it comes.
    pub async fn upload(
        &self,
        host: &str,
        path: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, SessionError>> + Send + use<>, SessionError> {
        self.require(methods::UPLOAD, "upload")?;
        let mut client = UploadClient::new(self.channel()).max_decoding_message_size(MAX_MESSAGE);
        let mut request = Request::new(tokio_stream::empty());
        request.metadata_mut().insert("urlhost", ascii(host)?);
        request.metadata_mut().insert("urlpath", ascii(path)?);
        let doing = format!("upload {path}");
        let answer = self.ask(doing.clone(), client.pull(request)).await?;
        Ok(answer.into_inner().map(move |message| match message {
            Ok(message) => Ok(message.data),
            Err(status) => Err(SessionError::answer(doing.clone(), status)),
        }))
    }
}

/// Makes a metadata value.
pub(super) fn ascii(value: &str) -> Result<AsciiMetadataValue, SessionError> {
    AsciiMetadataValue::try_from(value).map_err(|_| SessionError::BadRequest(format!("{value:?} is not ASCII")))
}

fn absent_as_none<T>(answer: Result<T, SessionError>) -> Result<Option<T>, SessionError> {
    match answer {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}
