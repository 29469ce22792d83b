//! The daemon's registry client, with the credentials of builds' sessions.

use crate::config::Config;
use crate::sessions::SessionGroup;
use bud_oci::registry::{
    Access, Client, Credential, Credentials, HostConfig, KeyPair, RegistryConfig, Token, TokenRequest,
};
use futures_util::future::BoxFuture;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

/// Makes the client on first use: a build that asks no registry pays nothing.
#[derive(Default)]
pub struct Registries {
    client: OnceLock<Arc<Client>>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

impl Registries {
    /// Returns the client.
    pub fn client(&self, config: &Config) -> &Arc<Client> {
        self.client.get_or_init(|| Client::new(registry_config(config)))
    }
}

fn registry_config(config: &Config) -> RegistryConfig {
    let mut registries = RegistryConfig::default();
    for (name, host) in &config.registry {
        let settings = HostConfig {
            mirrors: host.mirrors.clone(),
            http: host.http,
            insecure: host.insecure,
            ca: host.ca.clone(),
            keypair: host.keypair.iter().map(|k| KeyPair { key: k.key.clone(), cert: k.cert.clone() }).collect(),
            tlsconfigdir: host.tlsconfigdir.clone(),
        };
        registries.set(name, settings);
    }
    registries
}

/// Returns the way into registries that a group of sessions opens.
#[must_use]
pub fn access(sessions: &SessionGroup) -> Arc<Access> {
    Access::new(Arc::new(Clients { sessions: sessions.clone() }))
}

/// Asks the clients of a build: for a token if they fetch tokens themselves, so that no password leaves them, else for the
/// password.
struct Clients {
    sessions: SessionGroup,
}

/// What a client signs with, to prove that it may use a cached token, depends on it. Nothing is cached across sessions here.
fn salt() -> &'static [u8] {
    static SALT: OnceLock<[u8; 32]> = OnceLock::new();
    SALT.get_or_init(|| {
        let mut salt = [0; 32];
        // Without randomness the salt is fixed, which harms nothing: see above.
        let _filled = rustix::rand::getrandom(&mut salt, rustix::rand::GetRandomFlags::empty());
        salt
    })
}

impl Credentials for Clients {
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Option<Credential>, String>> {
        Box::pin(async move {
            let found = self.sessions.any(|session| async move { session.credentials(host).await }).await;
            match found {
                Ok(None) => Ok(None),
                Ok(Some(login)) if login.username.is_empty() => Ok(Some(Credential::IdentityToken(login.secret))),
                Ok(Some(login)) => Ok(Some(Credential::Password { user: login.username, secret: login.secret })),
                // A client without credentials at all is as good as one without this host's.
                Err(bud_session::SessionError::Missing(_)) => Ok(None),
                Err(error) => Err(error.to_string()),
            }
        })
    }

    fn fetch_token<'a>(&'a self, request: &'a TokenRequest) -> BoxFuture<'a, Result<Option<Token>, String>> {
        Box::pin(async move {
            let host = request.host.as_str();
            let found = self
                .sessions
                .any(|session| async move {
                    if session.token_authority(host, salt()).await?.is_none() {
                        return Ok(None);
                    }
                    let token = session
                        .fetch_token(host, &request.realm, &request.service, &request.client_id, &request.scopes)
                        .await?;
                    Ok(Some(token))
                })
                .await;
            match found {
                Ok(None) | Err(bud_session::SessionError::Missing(_)) => Ok(None),
                Ok(Some(token)) => {
                    let life = u64::try_from(token.expires_in).ok().filter(|s| *s > 0).map(Duration::from_secs);
                    Ok(Some(Token { token: token.token, expires_in: life }))
                }
                Err(error) => Err(error.to_string()),
            }
        })
    }
}
