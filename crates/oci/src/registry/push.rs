//! Uploading: blobs first, the manifest when all are there.

use super::config::Endpoint;
use super::error::{Problem, RegistryError};
use super::request::{TRIES, backoff, with};
use super::transport::{Head, same_origin, shown};
use super::{Repository, printable};
use bud_image::{Descriptor, Digest};
use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use futures_util::{FutureExt as _, StreamExt as _};
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, LOCATION};
use reqwest::Method;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use url::Url;

/// Time in which an upload must go on, and in which the registry must answer after it.
const STALL: Duration = Duration::from_secs(120);
/// Repositories of the same registry that are asked to lend a blob.
const MAX_LENDERS: usize = 3;

/// Bytes to upload, from the start each time.
pub trait BlobSource: Send + Sync {
    /// Opens the stream. It must yield exactly the descriptor's bytes.
    fn open(&self) -> BoxStream<'static, std::io::Result<Bytes>>;
}

impl BlobSource for Bytes {
    fn open(&self) -> BoxStream<'static, std::io::Result<Bytes>> {
        let bytes = self.clone();
        futures_util::stream::once(async move { Ok(bytes) }).boxed()
    }
}

/// How a blob came to be in the registry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// Another repository of the registry lent it.
    Mounted,
    /// It was sent.
    Uploaded,
}

/// An upload that a registry agreed to.
struct Upload {
    url: Url,
    outward_only: bool,
}

impl Repository {
    /// Tells if a blob is in the repository.
    ///
    /// # Errors
    /// The registry doesn't say.
    pub async fn has_blob(&self, digest: &Digest) -> Result<bool, RegistryError> {
        self.at_registry(|endpoint| async move { self.has_blob_at(&endpoint, digest).await }.boxed()).await
    }

    async fn has_blob_at(&self, endpoint: &Endpoint, digest: &Digest) -> Result<bool, Problem> {
        let url = self.url(endpoint, &format!("blobs/{digest}"))?;
        match self.call(endpoint, Method::HEAD, &url, &HeaderMap::new(), &self.scopes("pull,push")).await {
            Ok(_) => Ok(true),
            Err(Problem::NotFound(_)) => Ok(false),
            Err(problem) => Err(problem),
        }
    }

    /// Brings a blob into the repository: nothing is sent if it is there, or if one of the repositories `lenders` of the same
    /// registry has it. `progress` is called with the bytes sent so far, which go back to 0 when a try failed.
    ///
    /// # Errors
    /// The registry refuses, or the source fails.
    pub async fn push_blob(
        &self,
        blob: &Descriptor,
        source: &dyn BlobSource,
        lenders: &[String],
        progress: Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Pushed, RegistryError> {
        let progress = &progress;
        self.at_registry(|endpoint| {
            async move { self.push_blob_at(&endpoint, blob, source, lenders, progress).await }.boxed()
        })
        .await
    }

    async fn push_blob_at(
        &self,
        endpoint: &Endpoint,
        blob: &Descriptor,
        source: &dyn BlobSource,
        lenders: &[String],
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
    ) -> Result<Pushed, Problem> {
        if self.has_blob_at(endpoint, &blob.digest).await? {
            return Ok(Pushed::Existed);
        }
        let _permit = self.client.transfers(&endpoint.host).acquire_owned().await;
        let mut started = None;
        for lender in lenders.iter().filter(|name| **name != self.image.path).take(MAX_LENDERS) {
            match self.mount(endpoint, &blob.digest, lender).await {
                Ok(None) => return Ok(Pushed::Mounted),
                Ok(Some(upload)) => started = Some(upload),
                // That nothing is lent is no reason not to upload.
                Err(problem) => tracing::debug!("mount {} from {lender}: {problem}", blob.digest),
            }
        }
        let (mut tries, mut renewed) = (0, false);
        loop {
            let upload = match started.take() {
                Some(upload) => Ok(upload),
                None => self.start_upload(endpoint).await,
            };
            let result = match upload {
                Ok(upload) => self.upload(endpoint, upload, blob, source, progress, &mut renewed).await,
                Err(problem) => Err(problem),
            };
            match result {
                Ok(()) => return Ok(Pushed::Uploaded),
                Err(problem) if problem.is_transient() && tries + 1 < TRIES && !problem.is_unconnected() => {
                    tracing::debug!("upload {} again after: {problem}", blob.digest);
                    tokio::time::sleep(backoff(tries)).await;
                    tries += 1;
                }
                Err(problem) => return Err(problem),
            }
        }
    }

    /// Asks for a blob of another repository; none if it is lent, else where to upload to.
    async fn mount(&self, endpoint: &Endpoint, digest: &Digest, lender: &str) -> Result<Option<Upload>, Problem> {
        let mut url = self.url(endpoint, "blobs/uploads/")?;
        url.query_pairs_mut().append_pair("mount", &digest.to_string()).append_pair("from", lender);
        let mut scopes = self.scopes("pull,push");
        scopes.push(format!("repository:{lender}:pull"));
        let response = self.post(endpoint, &url, &scopes).await?;
        match response.status().as_u16() {
            201 => Ok(None),
            202 => self.location(&url, &response).map(Some),
            status => Err(Problem::Status { status, message: String::new() }),
        }
    }

    async fn start_upload(&self, endpoint: &Endpoint) -> Result<Upload, Problem> {
        let url = self.url(endpoint, "blobs/uploads/")?;
        let response = self.post(endpoint, &url, &self.scopes("pull,push")).await?;
        match response.status().as_u16() {
            202 => self.location(&url, &response),
            status => Err(Problem::Status { status, message: ": expected 202 for a new upload".into() }),
        }
    }

    async fn post(&self, endpoint: &Endpoint, url: &Url, scopes: &[String]) -> Result<reqwest::Response, Problem> {
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_LENGTH, HeaderValue::from_static("0"));
        Ok(self.call(endpoint, Method::POST, url, &headers, scopes).await?.response)
    }

    /// Reads where to upload to, and checks that we may go there.
    fn location(&self, from: &Url, response: &reqwest::Response) -> Result<Upload, Problem> {
        let text = response.headers().get(LOCATION).and_then(|v| v.to_str().ok());
        let text = text.ok_or_else(|| Problem::Protocol("the registry doesn't say where to upload to".into()))?;
        let mut url = from
            .join(text)
            .map_err(|e| Problem::Address(format!("the registry gave an invalid address for the upload: {e}")))?;
        // Behind a proxy that ends TLS, registries name themselves with http.
        if url.scheme() == "http" && from.scheme() == "https" && url.host() == from.host() {
            let _unchanged_if_it_fails = url.set_scheme("https").and_then(|()| url.set_port(from.port()));
        }
        let outward_only = self.client.transport.is_outside(from, response.remote_addr());
        self.client.transport.check_hop(from, &url, outward_only)?;
        let outward_only = outward_only && !same_origin(from, &url);
        Ok(Upload { url, outward_only })
    }

    /// Sends the blob in one request.
    async fn upload(
        &self,
        endpoint: &Endpoint,
        upload: Upload,
        blob: &Descriptor,
        source: &dyn BlobSource,
        progress: &Arc<dyn Fn(u64) + Send + Sync>,
        renewed: &mut bool,
    ) -> Result<(), Problem> {
        let mut url = upload.url;
        url.query_pairs_mut().append_pair("digest", &blob.digest.to_string());
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        headers.insert(CONTENT_LENGTH, HeaderValue::from(blob.size));
        let registry = self.url(endpoint, "")?;
        let own = same_origin(&registry, &url);
        let authorization = if own { self.access.remembered(endpoint, &self.scopes("pull,push")) } else { None };
        let body = Arc::new(Sending::default());
        progress(0);
        let stream = body.count(source, progress);
        let head = Head { method: Method::PUT, url: url.clone(), headers: with(&headers, authorization.as_ref()) };
        let other = super::HostConfig::default();
        let settings = if own { &endpoint.settings } else { &other };
        let request = self.client.transport.send(head, stream, settings, upload.outward_only);
        let response = match watched(request, &body.sent).await {
            Ok(response) => response,
            Err(problem) => return Err(body.failure().map_or(problem, Problem::Source)),
        };
        match response.status().as_u16() {
            200..=299 => {}
            // The token died while the blob was on its way: another one, and again from the start.
            401 if own && !*renewed => {
                *renewed = true;
                let scopes = self.scopes("pull,push");
                self.access.forget(endpoint, &scopes);
                if self.answer(endpoint, &url, &response, &scopes).await?.is_some() {
                    return Err(Problem::Network("the token expired during the upload".into()));
                }
                return Err(self.refusal(endpoint, response, authorization.and_then(|a| a.user), 1).await);
            }
            _ => {
                let user = authorization.and_then(|a| a.user);
                return Err(self.refusal(endpoint, response, user, 1).await);
            }
        }
        let said = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
        if let Some(said) = said.filter(|said| **said != blob.digest.to_string()) {
            let message = format!("the registry stored {} instead of {}", printable(said), blob.digest);
            return Err(Problem::Protocol(message));
        }
        Ok(())
    }

    /// Puts a manifest or index under the reference's tag and, without one, under its digest. All blobs must be there.
    ///
    /// # Errors
    /// The registry refuses it.
    pub async fn push_manifest(
        &self,
        media_type: &str,
        bytes: &Bytes,
        name: &str,
    ) -> Result<Descriptor, RegistryError> {
        self.at_registry(|endpoint| {
            async move { self.push_manifest_at(&endpoint, media_type, bytes, name).await }.boxed()
        })
        .await
    }

    async fn push_manifest_at(
        &self,
        endpoint: &Endpoint,
        media_type: &str,
        bytes: &Bytes,
        name: &str,
    ) -> Result<Descriptor, Problem> {
        let digest = Digest::of(bytes);
        let url = self.url(endpoint, &format!("manifests/{name}"))?;
        let mut headers = HeaderMap::new();
        let kind = HeaderValue::from_str(media_type).map_err(|_| Problem::Protocol("impossible media type".into()))?;
        headers.insert(CONTENT_TYPE, kind);
        let scopes = self.scopes("pull,push");
        let mut tries = 0;
        let mut renewed = false;
        loop {
            let authorization = self.access.remembered(endpoint, &scopes);
            let head = Head { method: Method::PUT, url: url.clone(), headers: with(&headers, authorization.as_ref()) };
            let request = self.client.transport.send(head, bytes.clone().into(), &endpoint.settings, false);
            let result = tokio::time::timeout(STALL, request).await.unwrap_or(Err(Problem::Silent(STALL)));
            let problem = match result {
                Ok(response) if response.status().is_success() => {
                    let said = response.headers().get("docker-content-digest").and_then(|v| v.to_str().ok());
                    if let Some(said) = said.filter(|said| **said != digest.to_string()) {
                        let message = format!("the registry stored {} instead of {digest}", printable(said));
                        return Err(Problem::Protocol(message));
                    }
                    return Ok(super::pull::descriptor(media_type, digest, bytes.len() as u64));
                }
                Ok(response) if response.status().as_u16() == 401 && !renewed => {
                    renewed = true;
                    self.access.forget(endpoint, &scopes);
                    if self.answer(endpoint, &url, &response, &scopes).await?.is_some() {
                        continue;
                    }
                    self.refusal(endpoint, response, None, tries + 1).await
                }
                Ok(response) if response.status().is_redirection() => {
                    return Err(Problem::Address(format!("the registry redirects an upload to {}", shown(&url))));
                }
                Ok(response) => self.refusal(endpoint, response, authorization.and_then(|a| a.user), tries + 1).await,
                Err(problem) => problem,
            };
            let again =
                (problem.is_transient() || matches!(problem, Problem::RateLimited { .. })) && !problem.is_unconnected();
            if !again || tries + 1 >= TRIES {
                return Err(problem);
            }
            tokio::time::sleep(backoff(tries)).await;
            tries += 1;
        }
    }

    /// Asks the registry itself; its second scheme if the first can't be spoken.
    async fn at_registry<'a, T>(
        &self,
        ask: impl Fn(Endpoint) -> BoxFuture<'a, Result<T, Problem>>,
    ) -> Result<T, RegistryError> {
        let endpoints = self.client.config.push_endpoints(&self.image.domain, self.insecure);
        let mut last = None;
        for endpoint in &endpoints {
            match ask(endpoint.clone()).await {
                Ok(done) => return Ok(done),
                Err(problem) if problem.is_unconnected() => last = Some(self.error("push", Some(endpoint), problem)),
                Err(problem) => return Err(self.error("push", Some(endpoint), problem)),
            }
        }
        Err(last.unwrap_or_else(|| self.error("push", None, Problem::Config("no address is configured".into()))))
    }
}

/// A body on its way.
#[derive(Default)]
struct Sending {
    sent: AtomicU64,
    failed: Mutex<Option<std::io::Error>>,
}

impl Sending {
    /// Makes a body that counts what the connection takes of it.
    fn count(self: &Arc<Self>, source: &dyn BlobSource, progress: &Arc<dyn Fn(u64) + Send + Sync>) -> reqwest::Body {
        let (sending, progress) = (Arc::clone(self), Arc::clone(progress));
        reqwest::Body::wrap_stream(source.open().map(move |chunk| {
            let chunk =
                chunk.inspect_err(|error| sending.fail(std::io::Error::new(error.kind(), error.to_string())))?;
            let total = sending.sent.fetch_add(chunk.len() as u64, Ordering::Relaxed) + chunk.len() as u64;
            progress(total);
            Ok::<_, std::io::Error>(chunk)
        }))
    }

    fn fail(&self, error: std::io::Error) {
        *self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(error);
    }

    /// Returns why the source failed, if it did.
    fn failure(&self) -> Option<std::io::Error> {
        self.failed.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take()
    }
}

/// Waits for an upload as long as it goes on.
async fn watched<T>(request: impl Future<Output = Result<T, Problem>>, sent: &AtomicU64) -> Result<T, Problem> {
    let mut request = std::pin::pin!(request);
    let mut before = u64::MAX;
    loop {
        if let Ok(result) = tokio::time::timeout(STALL, &mut request).await {
            return result;
        }
        let now = sent.load(Ordering::Relaxed);
        if now == before {
            return Err(Problem::Silent(STALL));
        }
        before = now;
    }
}
