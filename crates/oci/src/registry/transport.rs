//! HTTP with our own rules for redirects: ten at most, never from HTTPS to HTTP, never from outside to this machine, and no
//! credentials along with one to another host.

use super::config::{HostConfig, is_loopback};
use super::error::Problem;
use super::{guard, tls};
use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, COOKIE, HeaderMap, LOCATION, PROXY_AUTHORIZATION};
use reqwest::Method;
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use url::Url;

/// Redirects that are followed.
const MAX_HOPS: usize = 10;
/// Time for resolving a name and connecting, TLS included.
const CONNECT: Duration = Duration::from_secs(20);
/// Time without a byte after which an answer is given up.
pub(super) const IDLE: Duration = Duration::from_secs(45);

/// An HTTP client that keeps its connections, a set for each way of trusting hosts.
pub struct Transport {
    clients: Mutex<HashMap<ClientKey, reqwest::Client>>,
    inward: guard::Inward,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct ClientKey {
    /// None for plain HTTP; else the settings, printed.
    tls: Option<String>,
    /// Refuses to connect to this machine.
    outward_only: bool,
    /// Doesn't use the proxies of the environment.
    direct: bool,
}

/// An answer, and the address that gave it after redirects.
pub struct Fetched {
    /// The answer; a redirect never.
    pub response: reqwest::Response,
    /// Its address.
    pub url: Url,
}

/// A request without its body.
#[derive(Clone)]
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) url: Url,
    pub(super) headers: HeaderMap,
}

impl Default for Transport {
    fn default() -> Self {
        Self::new()
    }
}

impl Transport {
    /// Makes a client that has no connections yet.
    #[must_use]
    pub fn new() -> Self {
        Self::with_inward(guard::is_inward)
    }

    pub(super) fn with_inward(inward: guard::Inward) -> Self {
        Self { clients: Mutex::default(), inward }
    }

    /// Gets an address, following redirects. Headers with credentials stay with the first host.
    ///
    /// # Errors
    /// No connection, or a redirect that is not followed. Any status is an answer.
    pub async fn get(&self, url: &Url, headers: &HeaderMap) -> Result<Fetched, Problem> {
        let head = Head { method: Method::GET, url: url.clone(), headers: headers.clone() };
        self.fetch(head, &HostConfig::default()).await
    }

    /// Sends a request without a body, following redirects.
    pub(super) async fn fetch(&self, mut head: Head, settings: &HostConfig) -> Result<Fetched, Problem> {
        let first = head.url.clone();
        let mut outward_only = false;
        for _ in 0..=MAX_HOPS {
            let own = same_origin(&first, &head.url);
            let other = HostConfig::default();
            let client = self.client(&head.url, if own { settings } else { &other }, outward_only).await?;
            let request = client.request(head.method.clone(), head.url.clone()).headers(head.headers.clone());
            let response = request.send().await.map_err(|e| network(e, &head.url))?;
            if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Ok(Fetched { response, url: head.url });
            }
            let next = self.next_hop(&head.url, &response, &mut outward_only)?;
            if !same_origin(&head.url, &next) {
                for name in [AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION] {
                    head.headers.remove(name);
                }
            }
            head.url = next;
        }
        Err(Problem::Address(format!("more than {MAX_HOPS} redirects from {}", shown(&first))))
    }

    /// Sends a request with a body. It is not sent again to where a redirect points.
    pub(super) async fn send(
        &self,
        head: Head,
        body: reqwest::Body,
        settings: &HostConfig,
        outward_only: bool,
    ) -> Result<reqwest::Response, Problem> {
        let client = self.client(&head.url, settings, outward_only).await?;
        let request = client.request(head.method, head.url.clone()).headers(head.headers).body(body);
        request.send().await.map_err(|e| network(e, &head.url))
    }

    /// Returns where a redirect leads, if it may be followed.
    fn next_hop(&self, from: &Url, response: &reqwest::Response, outward_only: &mut bool) -> Result<Url, Problem> {
        let location = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let location = location.ok_or_else(|| Problem::Protocol("redirect without an address".into()))?;
        let next = from.join(location).map_err(|e| Problem::Address(format!("redirect to an invalid address: {e}")))?;
        *outward_only |= self.is_outside(from, response.remote_addr());
        self.check_hop(from, &next, *outward_only)?;
        Ok(next)
    }

    /// Tells if an answer came from another machine. Behind a proxy, the address is the proxy's and says nothing.
    pub(super) fn is_outside(&self, url: &Url, address: Option<std::net::SocketAddr>) -> bool {
        if guard::names_inward(url, self.inward) {
            return false;
        }
        guard::has_proxy() || address.is_none_or(|a| !(self.inward)(a.ip()))
    }

    /// Checks an address that a server gave.
    pub(super) fn check_hop(&self, from: &Url, to: &Url, outward_only: bool) -> Result<(), Problem> {
        let refused =
            |why: &str| Err(Problem::Address(format!("redirect from {} to {} refused: {why}", shown(from), shown(to))));
        match to.scheme() {
            "https" => {}
            "http" if from.scheme() == "http" => {}
            "http" => return refused("it leaves encryption"),
            _ => return refused("it is neither http nor https"),
        }
        if !to.username().is_empty() || to.password().is_some() {
            return refused("it contains credentials");
        }
        if outward_only && guard::names_inward(to, self.inward) {
            return refused("its address is of this machine or its link");
        }
        Ok(())
    }

    async fn client(&self, url: &Url, settings: &HostConfig, outward_only: bool) -> Result<reqwest::Client, Problem> {
        let plain = url.scheme() == "http";
        let key = ClientKey {
            tls: (!plain).then(|| format!("{settings:?}")),
            outward_only,
            direct: url.host_str().is_some_and(is_loopback),
        };
        if let Some(client) = self.clients().get(&key) {
            return Ok(client.clone());
        }
        let config = if plain {
            tls::trust_nobody()
        } else {
            let settings = settings.clone();
            tokio::task::spawn_blocking(move || tls::client_config(&settings))
                .await
                .map_err(|e| Problem::Config(format!("set up TLS: {e}")))?
        };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config.map_err(Problem::Config)?)
            .redirect(reqwest::redirect::Policy::none())
            .http1_only()
            .referer(false)
            .user_agent(concat!("bud/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .read_timeout(IDLE)
            .pool_idle_timeout(Duration::from_secs(90))
            .tcp_nodelay(true);
        if key.direct {
            builder = builder.no_proxy();
        }
        if outward_only {
            builder = builder.dns_resolver(Arc::new(guard::OutwardResolver { inward: self.inward }));
        }
        let client = builder.build().map_err(|e| Problem::Config(format!("set up HTTP: {}", chain(&e))))?;
        Ok(self.clients().entry(key).or_insert(client).clone())
    }

    fn clients(&self) -> std::sync::MutexGuard<'_, HashMap<ClientKey, reqwest::Client>> {
        self.clients.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Compares scheme, host and port.
pub(super) fn same_origin(a: &Url, b: &Url) -> bool {
    a.scheme() == b.scheme() && a.host() == b.host() && a.port_or_known_default() == b.port_or_known_default()
}

/// Returns an address fit for messages: without user, password and query, which may hold secrets.
pub(super) fn shown(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let port = url.port().map(|p| format!(":{p}")).unwrap_or_default();
    super::printable(&format!("{}://{host}{port}{}", url.scheme(), url.path()))
}

/// Says why a request got no answer, without the address's secrets.
pub(super) fn network(error: reqwest::Error, url: &Url) -> Problem {
    if error.is_timeout() && !error.is_connect() {
        return Problem::Silent(IDLE);
    }
    let error = error.without_url();
    let what = if error.is_connect() { "can't connect to" } else { "connection broke:" };
    Problem::Network(format!("{what} {}: {}", shown(url), chain(&error)))
}

/// Joins an error and its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next.filter(|_| parts.len() < 8) {
        let text = error.to_string();
        if parts.last().is_none_or(|last| !last.contains(&text)) {
            parts.push(text);
        }
        next = error.source();
    }
    // What reqwest says first is only that it failed.
    let useful = if parts.len() > 1 { &parts[1..] } else { &parts[..] };
    super::printable(&useful.join(": "))
}

/// Reads a body that must not be longer than the limit.
pub(super) async fn read_limited(mut response: reqwest::Response, limit: usize) -> Result<Bytes, Problem> {
    let too_long =
        |actual| Problem::Protocol(format!("answer of {actual} bytes or more; at most {limit} are accepted"));
    if let Some(length) = response.content_length()
        && length > limit as u64
    {
        return Err(too_long(length));
    }
    let url = response.url().clone();
    let mut body = BytesMut::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| network(e, &url))? {
        if body.len() + chunk.len() > limit {
            return Err(too_long((body.len() + chunk.len()) as u64));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}

/// Reads what an error answer says, as far as it says it soon.
pub(super) async fn read_message(response: reqwest::Response) -> String {
    const MOST: usize = 64 << 10;
    let mut response = response;
    let mut body = Vec::new();
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk[..chunk.len().min(MOST - body.len())]);
            if body.len() >= MOST {
                break;
            }
        }
    };
    // What came until then is all there is to tell.
    let _elapsed = tokio::time::timeout(Duration::from_secs(5), read).await;
    super::error::server_message(&body)
}
