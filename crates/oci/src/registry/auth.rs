//! Credentials and the tokens that they buy.

use super::challenge::Challenge;
use super::config::Endpoint;
use super::error::{Problem, server_message};
use super::transport::{Head, Transport, read_limited, read_message, same_origin, shown};
use base64::Engine as _;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::Method;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use url::Url;

/// Longest answer of a token server.
const MAX_TOKEN: usize = 1 << 20;
/// How long a token lives that doesn't say.
const TOKEN_LIFE: Duration = Duration::from_secs(60);
/// A token is not used in its last seconds.
const TOKEN_MARGIN: Duration = Duration::from_secs(5);
/// How we name ourselves to token servers.
const CLIENT_ID: &str = "bud";

/// What a registry knows somebody by.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password.
    Password {
        /// The user.
        user: String,
        /// The password.
        secret: String,
    },
    /// A refresh token, bought with a login in a browser.
    IdentityToken(String),
}

/// Shows no secrets.
impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => f.debug_struct("Password").field("user", user).finish_non_exhaustive(),
            Self::IdentityToken(_) => f.write_str("IdentityToken"),
        }
    }
}

/// A wish for a token, for whoever has the secrets to fulfil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenRequest {
    /// Our name.
    pub client_id: String,
    /// The registry's host; Docker Hub is `registry-1.docker.io`.
    pub host: String,
    /// The token server.
    pub realm: String,
    /// The registry's name there.
    pub service: String,
    /// What the token is to allow.
    pub scopes: Vec<String>,
}

/// A bearer token.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The token.
    pub token: String,
    /// How long it lives, if that is known.
    pub expires_in: Option<Duration>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("expires_in", &self.expires_in).finish_non_exhaustive()
    }
}

/// Where credentials come from: a session's client, or the user's own configuration. Errors are texts for the user.
pub trait Credentials: Send + Sync {
    /// Returns the credential for exactly this host; none for anonymous use.
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Option<Credential>, String>>;

    /// Fetches a token, if this side does that itself; none if the secret is to be asked for instead.
    fn fetch_token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<Option<Token>, String>> {
        let _ = request;
        Box::pin(async { Ok(None) })
    }
}

/// No credentials for anything.
pub struct Anonymous;

impl Credentials for Anonymous {
    fn credentials<'a>(&'a self, _host: &'a str) -> BoxFuture<'a, Result<Option<Credential>, String>> {
        Box::pin(async { Ok(None) })
    }
}

/// Somebody's way into registries: credentials and the tokens bought with them so far.
pub struct Access {
    credentials: Arc<dyn Credentials>,
    tokens: Mutex<HashMap<(String, String), Bought>>,
}

#[derive(Clone)]
struct Bought {
    header: HeaderValue,
    user: Option<String>,
    until: Option<Instant>,
}

/// What to send with a request, and whose it is.
#[derive(Clone)]
pub(super) struct Authorization {
    pub(super) header: HeaderValue,
    pub(super) user: Option<String>,
}

impl Access {
    /// Starts with credentials and no token.
    #[must_use]
    pub fn new(credentials: Arc<dyn Credentials>) -> Arc<Self> {
        Arc::new(Self { credentials, tokens: Mutex::default() })
    }

    /// Starts without credentials.
    #[must_use]
    pub fn anonymous() -> Arc<Self> {
        Self::new(Arc::new(Anonymous))
    }

    /// Returns what was bought before for a host and scopes.
    pub(super) fn remembered(&self, endpoint: &Endpoint, scopes: &[String]) -> Option<Authorization> {
        let mut tokens = self.tokens();
        let key = key(endpoint, scopes);
        let bought = tokens.get(&key)?.clone();
        if bought.until.is_some_and(|until| until <= Instant::now()) {
            tokens.remove(&key);
            return None;
        }
        Some(Authorization { header: bought.header, user: bought.user })
    }

    /// Forgets what was bought, after it was refused.
    pub(super) fn forget(&self, endpoint: &Endpoint, scopes: &[String]) {
        self.tokens().remove(&key(endpoint, scopes));
    }

    /// Answers a challenge: with a token for the scopes, or the credential itself.
    pub(super) async fn authorize(
        &self,
        transport: &Transport,
        endpoint: &Endpoint,
        registry: &Url,
        outside: bool,
        challenges: &[Challenge],
        scopes: &[String],
    ) -> Result<Option<Authorization>, Problem> {
        let bought = if let Some(bearer) = challenges.iter().find(|c| c.scheme == "bearer") {
            let buyer = Buyer { access: self, transport, endpoint, registry, outside };
            buyer.token(bearer, scopes).await?
        } else if challenges.iter().any(|c| c.scheme == "basic") {
            match self.credential(endpoint).await? {
                Some(Credential::Password { user, secret }) => {
                    Bought { header: basic(&user, &secret)?, user: Some(user), until: None }
                }
                Some(Credential::IdentityToken(_)) | None => return Ok(None),
            }
        } else {
            return Ok(None);
        };
        self.tokens().insert(key(endpoint, scopes), bought.clone());
        Ok(Some(Authorization { header: bought.header, user: bought.user }))
    }

    async fn credential(&self, endpoint: &Endpoint) -> Result<Option<Credential>, Problem> {
        let found = self.credentials.credentials(&endpoint.host).await;
        found.map_err(|message| Problem::Credentials {
            host: endpoint.host.clone(),
            message: super::printable(&message),
        })
    }

    fn tokens(&self) -> std::sync::MutexGuard<'_, HashMap<(String, String), Bought>> {
        self.tokens.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

fn key(endpoint: &Endpoint, scopes: &[String]) -> (String, String) {
    (format!("{}{}", if endpoint.plain { "http:" } else { "https:" }, endpoint.host), scopes.join(" "))
}

/// Buys a token.
struct Buyer<'a> {
    access: &'a Access,
    transport: &'a Transport,
    endpoint: &'a Endpoint,
    registry: &'a Url,
    /// The registry is another machine.
    outside: bool,
}

impl Buyer<'_> {
    async fn token(&self, challenge: &Challenge, wanted: &[String]) -> Result<Bought, Problem> {
        let realm = self.realm(challenge)?;
        let service = challenge.parameter("service").unwrap_or_default();
        let mut scopes = wanted.to_vec();
        if scopes.is_empty() {
            scopes.extend(challenge.parameter("scope").map(str::to_owned));
        }
        let request = TokenRequest {
            client_id: CLIENT_ID.into(),
            host: self.endpoint.host.clone(),
            realm: realm.to_string(),
            service: service.into(),
            scopes: scopes.clone(),
        };
        let host = || self.endpoint.host.clone();
        let fetched = self.access.credentials.fetch_token(&request).await;
        if let Some(token) =
            fetched.map_err(|m| Problem::Credentials { host: host(), message: super::printable(&m) })?
        {
            return bought(&token.token, token.expires_in, None);
        }
        let credential = self.access.credential(self.endpoint).await?;
        let user = match &credential {
            Some(Credential::Password { user, .. }) => Some(user.clone()),
            Some(Credential::IdentityToken(_)) => Some("(token)".into()),
            None => None,
        };
        let response = match &credential {
            Some(Credential::IdentityToken(token)) => self.refresh(&realm, service, &scopes, token).await?,
            Some(Credential::Password { user, secret }) => {
                self.get(&realm, service, &scopes, Some((user, basic(user, secret)?))).await?
            }
            None => self.get(&realm, service, &scopes, None).await?,
        };
        let status = response.status().as_u16();
        if status != 200 {
            let message = read_message(response).await;
            return Err(match (status, user) {
                (401 | 403, Some(user)) => Problem::Refused { user, host: host(), status, message },
                (401 | 403, None) => Problem::NotFoundOrPrivate { host: host(), status, message },
                (429, _) => Problem::RateLimited { tries: 1, message },
                _ => Problem::Status { status, message: format!("{message} (token server {})", shown(&realm)) },
            });
        }
        let body = read_limited(response, MAX_TOKEN).await?;
        let answer: Answer = serde_json::from_slice(&body).map_err(|_| {
            Problem::Protocol(format!(
                "the token server {} answered without a token{}",
                shown(&realm),
                server_message(&[])
            ))
        })?;
        let token = Some(answer.token).filter(|t| !t.is_empty()).unwrap_or(answer.access_token);
        if token.is_empty() {
            return Err(Problem::Protocol(format!("the token server {} answered without a token", shown(&realm))));
        }
        bought(&token, answer.expires_in.map(Duration::from_secs), user)
    }

    /// Checks where the password would go: never in clear, unless all the registry's traffic is.
    fn realm(&self, challenge: &Challenge) -> Result<Url, Problem> {
        let text = challenge.parameter("realm").unwrap_or_default();
        let realm = Url::parse(text)
            .map_err(|e| Problem::Address(format!("token server {:?} is no address: {e}", super::printable(text))))?;
        self.transport.check_hop(self.registry, &realm, self.outside).map_err(|problem| match problem {
            Problem::Address(text) => Problem::Address(text.replacen("redirect from", "token server named by", 1)),
            other => other,
        })?;
        if realm.host().is_none() {
            return Err(Problem::Address(format!("token server {} has no host", shown(&realm))));
        }
        Ok(realm)
    }

    async fn get(
        &self,
        realm: &Url,
        service: &str,
        scopes: &[String],
        login: Option<(&str, HeaderValue)>,
    ) -> Result<reqwest::Response, Problem> {
        let mut url = realm.clone();
        {
            let mut query = url.query_pairs_mut();
            if !service.is_empty() {
                query.append_pair("service", service);
            }
            for scope in scopes {
                query.append_pair("scope", scope);
            }
            if let Some((user, _)) = &login {
                query.append_pair("account", user);
            }
        }
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        if let Some((_, basic)) = login {
            headers.insert(AUTHORIZATION, basic);
        }
        let head = Head { method: Method::GET, url, headers };
        Ok(self.transport.fetch(head, &self.settings_for(realm)).await?.response)
    }

    /// Buys a token with a refresh token (<https://distribution.github.io/distribution/spec/auth/oauth/>).
    async fn refresh(
        &self,
        realm: &Url,
        service: &str,
        scopes: &[String],
        token: &str,
    ) -> Result<reqwest::Response, Problem> {
        let body = url::form_urlencoded::Serializer::new(String::new())
            .append_pair("grant_type", "refresh_token")
            .append_pair("refresh_token", token)
            .append_pair("service", service)
            .append_pair("client_id", CLIENT_ID)
            .append_pair("scope", &scopes.join(" "))
            .finish();
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"));
        headers.insert(ACCEPT, HeaderValue::from_static("application/json"));
        let head = Head { method: Method::POST, url: realm.clone(), headers };
        self.transport.send(head, body.into(), &self.settings_for(realm), self.outside).await
    }

    /// The registry's own certificates count for its token server too: companies sign both.
    fn settings_for(&self, realm: &Url) -> super::HostConfig {
        let mut settings = self.endpoint.settings.clone();
        if !same_origin(realm, self.registry) {
            // Trust without a certificate is for the one host that was named.
            settings.insecure = None;
            settings.keypair.clear();
        }
        settings
    }
}

#[derive(serde::Deserialize)]
struct Answer {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
    #[serde(default)]
    expires_in: Option<u64>,
}

fn bought(token: &str, life: Option<Duration>, user: Option<String>) -> Result<Bought, Problem> {
    let life = life.filter(|life| !life.is_zero()).unwrap_or(TOKEN_LIFE).min(Duration::from_secs(24 * 3600));
    let mut header = HeaderValue::from_str(&format!("Bearer {token}"))
        .map_err(|_| Problem::Protocol("the token server's token is not printable".into()))?;
    header.set_sensitive(true);
    Ok(Bought { header, user, until: Some(Instant::now() + life.saturating_sub(TOKEN_MARGIN)) })
}

fn basic(user: &str, secret: &str) -> Result<HeaderValue, Problem> {
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{secret}"));
    let mut header = HeaderValue::from_str(&format!("Basic {encoded}"))
        .map_err(|_| Problem::Protocol("credentials can't be sent".into()))?;
    header.set_sensitive(true);
    Ok(header)
}
