//! Downloading blobs: streamed, resumed after a cut, verified.

use super::config::Endpoint;
use super::error::{Problem, RegistryError};
use super::request::{TRIES, backoff, is_refusal};
use super::transport::{IDLE, network};
use super::{Repository, error};
use bud_image::{Descriptor, Digest};
use bytes::Bytes;
use http::header::{CONTENT_RANGE, HeaderMap, HeaderValue, RANGE};
use reqwest::Method;
use sha2::Digest as _;
use std::time::{Duration, Instant};
use tokio::sync::OwnedSemaphorePermit;

/// In this time, this many bytes at least: slower is as good as silent.
const SLOW_TIME: Duration = Duration::from_secs(45);
const SLOW_BYTES: u64 = 4096;
/// Bytes that prove a connection to work: the count of tries starts anew.
const PROGRESS: u64 = 1 << 20;
/// Resumptions of one blob, however much came in between.
const MAX_RESUMES: u32 = 50;

/// A blob on its way. Its chunks are the blob's bytes from first to last, whatever happens to connections meanwhile; the last
/// is given out only if all were right.
pub struct Blob {
    repository: Repository,
    wanted: Descriptor,
    endpoints: Vec<Endpoint>,
    endpoint: usize,
    body: Option<Body>,
    received: u64,
    hash: Option<sha2::Sha256>,
    tries: u32,
    resumes: u32,
    since_try: u64,
    window: (Instant, u64),
    permit: Option<OwnedSemaphorePermit>,
    failed: bool,
}

struct Body {
    response: reqwest::Response,
    /// Bytes to drop: the server began anew where we already were.
    skip: u64,
}

impl Repository {
    /// Starts to download a blob. Nothing is sent before the first chunk is asked for.
    #[must_use]
    pub fn blob(&self, wanted: &Descriptor) -> Blob {
        Blob {
            repository: self.clone(),
            wanted: wanted.clone(),
            endpoints: self.client.config.pull_endpoints(&self.image.domain, self.insecure),
            endpoint: 0,
            body: None,
            received: 0,
            hash: Some(sha2::Sha256::new()),
            tries: 0,
            resumes: 0,
            since_try: 0,
            window: (Instant::now(), 0),
            permit: None,
            failed: false,
        }
    }
}

impl Blob {
    /// Leaves the digest to be checked by the caller, who hashes the bytes anyway. The size is still checked.
    #[must_use]
    pub fn unhashed(mut self) -> Self {
        self.hash = None;
        self
    }

    /// Returns how many bytes were given out.
    #[must_use]
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Returns the next bytes; none once all came and were right.
    ///
    /// # Errors
    /// It can't be had, even after resuming, or it is not what the descriptor says.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, RegistryError> {
        if self.failed || (self.received == self.wanted.size && self.body.is_none() && self.permit.is_some()) {
            return Ok(None);
        }
        loop {
            let result = self.step().await;
            let problem = match result {
                Ok(chunk) => return Ok(chunk),
                Err(problem) => problem,
            };
            self.body = None;
            if self.recover(&problem).await {
                continue;
            }
            self.failed = true;
            let endpoint = self.endpoints.get(self.endpoint.min(self.endpoints.len().saturating_sub(1)));
            return Err(self.repository.error("pull a layer of", endpoint, problem));
        }
    }

    /// Prepares another try, if one may help.
    async fn recover(&mut self, problem: &Problem) -> bool {
        if self.since_try >= PROGRESS {
            self.tries = 0;
        }
        self.since_try = 0;
        self.tries += 1;
        self.resumes += 1;
        // Where nobody answers, waiting helps less than asking the next: the other scheme, or the registry behind a mirror.
        let is_elsewhere = is_refusal(problem) && self.endpoint + 1 < self.endpoints.len();
        if problem.is_transient() && !is_elsewhere && self.tries < TRIES && self.resumes < MAX_RESUMES {
            tracing::debug!(received = self.received, "resume a blob after: {problem}");
            tokio::time::sleep(backoff(self.tries - 1)).await;
            return true;
        }
        // Bytes that were given out can't be taken back, but another endpoint may have the rest; the digest covers both.
        let is_wrong = matches!(problem, Problem::Digest { .. });
        if !is_wrong && self.endpoint + 1 < self.endpoints.len() {
            self.endpoint += 1;
            self.tries = 0;
            return true;
        }
        false
    }

    async fn step(&mut self) -> Result<Option<Bytes>, Problem> {
        if self.body.is_none() {
            if self.received == self.wanted.size && self.wanted.size > 0 {
                return self.check_end().map(|()| None);
            }
            self.open().await?;
        }
        loop {
            let Some(body) = &mut self.body else { return Ok(None) };
            let url = body.response.url().clone();
            let chunk = tokio::time::timeout(IDLE, body.response.chunk())
                .await
                .map_err(|_| Problem::Silent(IDLE))?
                .map_err(|e| network(e, &url))?;
            let Some(mut chunk) = chunk else {
                if self.received != self.wanted.size {
                    return Err(Problem::Network(format!(
                        "connection ended after {} of {} bytes",
                        self.received, self.wanted.size
                    )));
                }
                self.check_end()?;
                self.body = None;
                return Ok(None);
            };
            let skipped = usize::try_from(body.skip).unwrap_or(usize::MAX).min(chunk.len());
            body.skip -= skipped as u64;
            self.watch_speed(chunk.len() as u64)?;
            chunk = chunk.slice(skipped..);
            if chunk.is_empty() {
                continue;
            }
            let total = self.received + chunk.len() as u64;
            if total > self.wanted.size {
                return Err(Problem::Size { actual: total, expected: self.wanted.size });
            }
            if let Some(hash) = &mut self.hash {
                hash.update(&chunk);
            }
            self.received = total;
            self.since_try += chunk.len() as u64;
            if total == self.wanted.size {
                // Before the last bytes go out, they are checked, and that nothing follows.
                self.check_end()?;
                self.check_surplus().await?;
                self.body = None;
            }
            return Ok(Some(chunk));
        }
    }

    /// Sends the request for what is missing.
    async fn open(&mut self) -> Result<(), Problem> {
        let endpoint = self.endpoints.get(self.endpoint).cloned();
        let endpoint = endpoint.ok_or_else(|| Problem::Config("no address is configured".into()))?;
        let transfers = self.repository.client.transfers(&endpoint.host);
        self.permit = None;
        self.permit = transfers.acquire_owned().await.ok();
        let mut headers = HeaderMap::new();
        if self.received > 0
            && let Ok(range) = HeaderValue::from_str(&format!("bytes={}-", self.received))
        {
            headers.insert(RANGE, range);
        }
        let url = self.repository.url(&endpoint, &format!("blobs/{}", self.wanted.digest))?;
        let scopes = self.repository.scopes("pull");
        let fetched = self.repository.call(&endpoint, Method::GET, &url, &headers, &scopes).await?;
        let response = fetched.response;
        let skip = match response.status().as_u16() {
            206 if self.received > 0 && range_start(response.headers(), self.wanted.size) == Some(self.received) => 0,
            // The whole again, though a part was asked for.
            200 => self.received,
            206 => return Err(Problem::Network("the registry sent another part than was asked for".into())),
            status => return Err(Problem::Status { status, message: String::new() }),
        };
        if let Some(length) = response.content_length()
            && length > 0
            && length != self.wanted.size - self.received + skip
            && !response.headers().contains_key(http::header::CONTENT_ENCODING)
        {
            let actual = length + self.received - skip;
            return Err(Problem::Size { actual, expected: self.wanted.size });
        }
        self.window = (Instant::now(), 0);
        self.body = Some(Body { response, skip });
        Ok(())
    }

    fn check_end(&self) -> Result<(), Problem> {
        let Some(hash) = &self.hash else { return Ok(()) };
        let actual = Digest::from_bytes(hash.clone().finalize().into());
        if actual == self.wanted.digest {
            Ok(())
        } else {
            Err(Problem::Digest { actual, expected: self.wanted.digest })
        }
    }

    async fn check_surplus(&mut self) -> Result<(), Problem> {
        let Some(body) = &mut self.body else { return Ok(()) };
        loop {
            // A connection that breaks now has nothing more to bring.
            match tokio::time::timeout(Duration::from_secs(5), body.response.chunk()).await {
                Ok(Ok(Some(more))) if !more.is_empty() => {
                    let actual = self.received + more.len() as u64;
                    return Err(Problem::Size { actual, expected: self.wanted.size });
                }
                Ok(Ok(Some(_))) => {}
                _ => return Ok(()),
            }
        }
    }

    fn watch_speed(&mut self, bytes: u64) -> Result<(), Problem> {
        self.window.1 += bytes;
        let (start, count) = self.window;
        if start.elapsed() >= SLOW_TIME {
            if count < SLOW_BYTES {
                return Err(Problem::Silent(SLOW_TIME));
            }
            self.window = (Instant::now(), 0);
        }
        Ok(())
    }
}

/// Reads where a part starts, if it is one of the whole: `bytes 5-9/10`.
fn range_start(headers: &HeaderMap, size: u64) -> Option<u64> {
    let text = headers.get(CONTENT_RANGE)?.to_str().ok()?.strip_prefix("bytes ")?;
    let (range, total) = text.split_once('/')?;
    let (start, end) = range.split_once('-')?;
    let whole = total == "*" || total.parse() == Ok(size);
    (whole && end.parse::<u64>().ok()?.checked_add(1)? == size).then(|| start.parse().ok())?
}

impl error::Problem {
    /// Tells if there was not even a connection.
    pub(super) fn is_unconnected(&self) -> bool {
        matches!(self, Self::Network(text) if text.starts_with("can't connect"))
    }
}
