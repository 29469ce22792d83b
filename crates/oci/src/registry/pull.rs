//! Finding images: tags to digests, manifests, configs.

use super::config::Endpoint;
use super::document::{self, Image, MAX_DOCUMENT, ManifestDocument};
use super::error::{Problem, RegistryError};
use super::transport::read_limited;
use super::{Repository, choose_platform};
use bud_image::manifest::media_type;
use bud_image::{Descriptor, Digest, Platform};
use bytes::Bytes;
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use http::header::{ACCEPT, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::Method;
use std::time::Duration;

const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
                        application/vnd.docker.distribution.manifest.list.v2+json, \
                        application/vnd.docker.distribution.manifest.v2+json, */*;q=0.1";
const DIGEST: &str = "docker-content-digest";
/// Time for a manifest or config, waits between tries included.
const DEADLINE: Duration = Duration::from_secs(300);
/// Indexes in indexes that are followed.
const MAX_DEPTH: usize = 3;

/// What a tag points to now.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The manifest or index.
    pub descriptor: Descriptor,
    /// Its bytes, if they came along.
    pub bytes: Option<Bytes>,
}

impl Repository {
    /// Asks what the reference points to: its digest, or its tag (`latest` if it has neither).
    ///
    /// # Errors
    /// No endpoint knows it; the error is that of the registry itself.
    pub async fn resolve(&self) -> Result<Resolved, RegistryError> {
        let known = match &self.image.digest {
            None => None,
            Some(digest) => Some(digest.sha256().ok_or_else(|| {
                self.error(
                    "pull",
                    None,
                    Problem::Address(format!("content can't be asked for by {digest}: only sha256 is supported")),
                )
            })?),
        };
        let name = known.map_or_else(|| self.image.tag.clone().unwrap_or_else(|| "latest".into()), |d| d.to_string());
        let name = &name;
        self.at_endpoints(|endpoint| async move { self.resolve_at(&endpoint, name, known).await }.boxed()).await
    }

    async fn resolve_at(&self, endpoint: &Endpoint, name: &str, known: Option<Digest>) -> Result<Resolved, Problem> {
        let url = self.url(endpoint, &format!("manifests/{name}"))?;
        let (scopes, headers) = (self.scopes("pull"), accept());
        let head = self.call(endpoint, Method::HEAD, &url, &headers, &scopes).await;
        match head {
            Ok(fetched) => {
                let headers = fetched.response.headers();
                let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
                let digest = header(DIGEST).and_then(|text| text.parse().ok()).or(known);
                let size = header(CONTENT_LENGTH.as_str()).and_then(|text| text.parse().ok());
                let kind = header(CONTENT_TYPE.as_str()).unwrap_or_default();
                if let (Some(digest), Some(size)) = (digest, size)
                    && kind.starts_with("application/vnd.")
                    && known.is_none_or(|known| known == digest)
                {
                    return Ok(Resolved { descriptor: descriptor(kind, digest, size), bytes: None });
                }
            }
            // Some registries don't answer HEAD properly; what GET says counts.
            Err(Problem::NotFound(_) | Problem::Status { status: 400..=499, .. }) => {}
            Err(problem) => return Err(problem),
        }
        let fetched = self.call(endpoint, Method::GET, &url, &headers, &scopes).await?;
        let kind = content_type(&fetched.response);
        let bytes = read_limited(fetched.response, MAX_DOCUMENT as usize).await?;
        let digest = Digest::of(&bytes);
        if let Some(expected) = known
            && expected != digest
        {
            return Err(Problem::Digest { actual: digest, expected });
        }
        let document = ManifestDocument::parse(&kind, &bytes)?;
        let kind = match (&kind[..], &document) {
            (kind, _) if kind.starts_with("application/vnd.") => kind.to_owned(),
            (_, ManifestDocument::Index(index)) => or_default(&index.media_type, media_type::OCI_INDEX),
            (_, ManifestDocument::Manifest(manifest)) => or_default(&manifest.media_type, media_type::OCI_MANIFEST),
        };
        Ok(Resolved { descriptor: descriptor(&kind, digest, bytes.len() as u64), bytes: Some(bytes) })
    }

    /// Gets a manifest or index by digest.
    ///
    /// # Errors
    /// It can't be had, or isn't what the descriptor says.
    pub async fn manifest(&self, wanted: &Descriptor) -> Result<(ManifestDocument, Bytes), RegistryError> {
        self.document("manifests", wanted, &accept(), |bytes| {
            document::verify(wanted, bytes)?;
            Ok(ManifestDocument::parse(&wanted.media_type, bytes)?)
        })
        .await
    }

    /// Gets the image for a platform: from what a tag resolved to, down to its config.
    ///
    /// # Errors
    /// A part can't be had or is invalid, or nothing runs on the platform.
    pub async fn image_for(&self, resolved: &Resolved, platform: &Platform) -> Result<Image, RegistryError> {
        let mut descriptor = resolved.descriptor.clone();
        let mut bytes = resolved.bytes.clone();
        for _ in 0..=MAX_DEPTH {
            let invalid = |e: document::DocumentError| self.error("pull", None, e.into());
            let (document, body) = match bytes.take() {
                Some(body) => (ManifestDocument::parse(&descriptor.media_type, &body).map_err(invalid)?, body),
                None => self.manifest(&descriptor).await?,
            };
            match document {
                ManifestDocument::Index(index) => {
                    descriptor = choose_platform(&index, platform).map_err(invalid)?.clone();
                }
                ManifestDocument::Manifest(manifest) => {
                    let (config, config_bytes) = self
                        .document("blobs", &manifest.config, &HeaderMap::new(), |bytes| {
                            document::verify(&manifest.config, bytes)?;
                            Ok(document::parse_config(&manifest, bytes)?)
                        })
                        .await?;
                    return Ok(Image { descriptor, manifest: *manifest, manifest_bytes: body, config, config_bytes });
                }
            }
        }
        let problem = Problem::Protocol(format!("indexes in indexes more than {MAX_DEPTH} deep"));
        Err(self.error("pull", None, problem))
    }

    /// Gets a small document from the first endpoint that has a valid one.
    async fn document<T: Send>(
        &self,
        kind: &str,
        wanted: &Descriptor,
        headers: &HeaderMap,
        read: impl Fn(&[u8]) -> Result<T, Problem> + Send + Sync,
    ) -> Result<(T, Bytes), RegistryError> {
        if wanted.size > MAX_DOCUMENT {
            return Err(self.error("pull", None, document::DocumentError::TooLong(wanted.size).into()));
        }
        let read = &read;
        self.at_endpoints(|endpoint| {
            async move {
                let url = self.url(&endpoint, &format!("{kind}/{}", wanted.digest))?;
                let fetched = self.call(&endpoint, Method::GET, &url, headers, &self.scopes("pull")).await?;
                let bytes = read_limited(fetched.response, MAX_DOCUMENT as usize).await?;
                Ok((read(&bytes)?, bytes))
            }
            .boxed()
        })
        .await
    }

    /// Asks the mirrors, then the registry. What a mirror has wrong is a warning if another does better.
    async fn at_endpoints<'a, T>(
        &self,
        ask: impl Fn(Endpoint) -> BoxFuture<'a, Result<T, Problem>>,
    ) -> Result<T, RegistryError> {
        let endpoints = self.client.config.pull_endpoints(&self.image.domain, self.insecure);
        if self.image.domain.is_empty() {
            return Err(self.error(
                "pull",
                None,
                Problem::Address("the name has no registry that can be asked".into()),
            ));
        }
        let mut last: Option<RegistryError> = None;
        for endpoint in &endpoints {
            let problem = match tokio::time::timeout(DEADLINE, ask(endpoint.clone())).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(problem)) => problem,
                Err(_) => Problem::Silent(DEADLINE),
            };
            let error = self.error("pull", Some(endpoint), problem);
            tracing::debug!("{error}");
            // HTTPS and HTTP of one host: that HTTPS couldn't be spoken is no news once HTTP answered.
            let is_news =
                last.as_ref().is_none_or(|last| !error.problem.is_unconnected() || last.problem.is_unconnected());
            if is_news {
                last = Some(match last {
                    Some(before)
                        if before.problem.is_unconnected() == error.problem.is_unconnected()
                            && !error.problem.is_unconnected() =>
                    {
                        error
                    }
                    Some(before) => RegistryError { problem: joined(&before, error.problem), ..error },
                    None => error,
                });
            }
        }
        Err(last.unwrap_or_else(|| self.error("pull", None, Problem::Config("no address is configured".into()))))
    }
}

/// Says of the registry's failure what went wrong before at a mirror, where both couldn't be reached.
fn joined(before: &RegistryError, problem: Problem) -> Problem {
    match (&before.problem, problem) {
        (Problem::Network(first), Problem::Network(second)) => {
            Problem::Network(format!("{second} (before that, {}: {first})", before.registry))
        }
        (_, problem) => problem,
    }
}

pub(super) fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT, HeaderValue::from_static(ACCEPTED));
    headers
}

fn content_type(response: &reqwest::Response) -> String {
    response.headers().get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned()
}

fn or_default(text: &str, default: &str) -> String {
    if text.is_empty() { default.into() } else { text.into() }
}

pub(super) fn descriptor(kind: &str, digest: Digest, size: u64) -> Descriptor {
    let kind = kind.split(';').next().unwrap_or_default().trim();
    Descriptor {
        media_type: kind.to_owned(),
        digest,
        size,
        urls: Vec::new(),
        annotations: Default::default(),
        platform: None,
    }
}
