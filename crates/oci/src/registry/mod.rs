//! A client of registries: the OCI distribution specification, with Docker's token authentication.
//!
//! A registry is hostile: what it sends is limited and checked against digests, and credentials go to the host they are for,
//! never along with a redirect.
//!
//! Source: <https://github.com/opencontainers/distribution-spec/blob/main/spec.md>,
//! <https://distribution.github.io/distribution/spec/auth/token/>.

mod auth;
mod blob;
mod challenge;
mod config;
mod document;
mod error;
mod guard;
mod pull;
mod push;
mod request;
mod tls;
mod transport;

#[cfg(test)]
mod tests;

pub use auth::{Access, Anonymous, Credential, Credentials, Token, TokenRequest};
pub use blob::Blob;
pub use config::{ConfigError, Endpoint, HostConfig, KeyPair, RegistryConfig};
pub use document::{DocumentError, Image, MAX_DOCUMENT, ManifestDocument, choose_platform};
pub use error::{Problem, RegistryError, printable};
pub use pull::Resolved;
pub use push::{BlobSource, Pushed};
pub use transport::{Fetched, Transport};

use bud_image::ImageRef;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::Semaphore;

/// Transfers at a time with one registry.
const TRANSFERS: usize = 6;

/// Talks to registries: keeps connections, knows mirrors and how to trust each host. One serves a whole daemon.
pub struct Client {
    config: RegistryConfig,
    transport: Arc<Transport>,
    transfers: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl Client {
    /// Makes a client. No certificate is loaded before an HTTPS host is asked for something.
    #[must_use]
    pub fn new(config: RegistryConfig) -> Arc<Self> {
        Self::with_transport(config, Transport::new())
    }

    fn with_transport(config: RegistryConfig, transport: Transport) -> Arc<Self> {
        Arc::new(Self { config, transport: Arc::new(transport), transfers: Mutex::default() })
    }

    /// Returns the HTTP client below, for other downloads with the same rules for redirects.
    #[must_use]
    pub fn transport(&self) -> &Arc<Transport> {
        &self.transport
    }

    /// Returns a repository, to be asked with somebody's credentials.
    ///
    /// Tokens are kept in the [`Access`]: give the same one to all repositories of a build.
    #[must_use]
    pub fn repository(self: &Arc<Self>, image: &ImageRef, access: &Arc<Access>) -> Repository {
        Repository { client: Arc::clone(self), access: Arc::clone(access), image: image.clone(), insecure: false }
    }

    /// Returns the permits for transfers with a host.
    fn transfers(&self, host: &str) -> Arc<Semaphore> {
        let mut transfers = self.transfers.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        Arc::clone(transfers.entry(host.to_owned()).or_insert_with(|| Arc::new(Semaphore::new(TRANSFERS))))
    }
}

/// A repository of a registry, with tag or digest if its reference has one.
#[derive(Clone)]
pub struct Repository {
    client: Arc<Client>,
    access: Arc<Access>,
    image: ImageRef,
    insecure: bool,
}

impl Repository {
    /// Allows plain HTTP and unknown certificates, as the exporters' `registry.insecure` does.
    #[must_use]
    pub fn insecure(mut self, insecure: bool) -> Self {
        self.insecure = insecure;
        self
    }

    /// Returns what it was made for.
    #[must_use]
    pub fn image(&self) -> &ImageRef {
        &self.image
    }

    fn error(&self, action: &'static str, endpoint: Option<&Endpoint>, problem: Problem) -> RegistryError {
        RegistryError {
            action,
            reference: self.image.familiar(),
            registry: endpoint.map_or_else(|| self.image.domain.clone(), |e| e.host.clone()),
            problem,
        }
    }
}
