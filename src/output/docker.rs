//! Docker's API, as much of it as loading an image needs.

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use futures_util::StreamExt as _;
use http::{Method, Request, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Limited, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use std::collections::BTreeSet;
use std::convert::Infallible;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

/// A Docker that doesn't answer this soon isn't used.
const PATIENCE: Duration = Duration::from_secs(2);
/// Answers longer than this aren't read.
const ANSWER_LIMIT: usize = 4 << 20;

/// Docker's daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Docker {
    endpoint: Endpoint,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Endpoint {
    Unix(PathBuf),
    Tcp(String),
}

/// The layers of so many images, the newest first, are asked for.
const IMAGES: usize = 200;
/// So many at a time.
const QUESTIONS: usize = 16;
/// More layers aren't told.
const CHAINS: usize = 10_000;

type Body = BoxBody<Bytes, Infallible>;

impl Docker {
    /// Names a daemon by its address; none if the address needs Docker's own client.
    #[must_use]
    pub fn at(host: &str) -> Option<Self> {
        let endpoint = if let Some(path) = host.strip_prefix("unix://") {
            Endpoint::Unix(path.into())
        } else if let Some(address) = host.strip_prefix("tcp://")
            && std::env::var_os("DOCKER_TLS_VERIFY").is_none_or(|value| value.is_empty())
        {
            let address = address.trim_end_matches('/');
            Endpoint::Tcp(if address.contains(':') { address.to_owned() } else { format!("{address}:2375") })
        } else {
            return None;
        };
        Some(Self { endpoint })
    }

    /// Tells whether it is there and would let us in.
    pub async fn answers(&self) -> bool {
        if let Endpoint::Unix(path) = &self.endpoint
            && !path.exists()
        {
            return false;
        }
        let ping = self.call(Method::GET, "/_ping", None, Empty::new().boxed());
        matches!(tokio::time::timeout(PATIENCE, ping).await, Ok(Ok((StatusCode::OK, _))))
    }

    /// Returns the ID of an image, if it is there.
    pub async fn image_id(&self, name: &str) -> Option<String> {
        // A reference has no character that a path would have to escape.
        self.json(&format!("/images/{name}/json")).await?["Id"].as_str().map(str::to_owned)
    }

    /// Gives an image another name, without its tag as the first part; tells whether that was done.
    pub async fn tag(&self, id: &str, name: &str, tag: &str) -> bool {
        let path = format!("/images/{id}/tag?repo={name}&tag={tag}");
        let tagged = self.call(Method::POST, &path, None, Empty::new().boxed()).await;
        tagged.is_ok_and(|(status, _)| status.is_success())
    }

    /// Returns the chain IDs of the layers that it has, where it takes an archive without them: with its own image store,
    /// not with containerd's, and not if it is Podman that speaks Docker's language.
    pub async fn chains(&self) -> Vec<String> {
        let Some(info) = self.json("/info").await else { return Vec::new() };
        let facts = info["DriverStatus"].as_array().map(Vec::as_slice).unwrap_or_default();
        if facts.iter().any(|fact| fact[1] == "io.containerd.snapshotter.v1") || info["BuildahVersion"].is_string() {
            return Vec::new();
        }
        let Some(images) = self.json("/images/json").await else { return Vec::new() };
        let images = images.as_array().map(Vec::as_slice).unwrap_or_default();
        let ids = images.iter().filter_map(|image| image["Id"].as_str()).take(IMAGES);
        let inspected = ids.map(|id| async move { self.json(&format!("/images/{id}/json")).await });
        let inspected: Vec<_> = futures_util::stream::iter(inspected).buffer_unordered(QUESTIONS).collect().await;
        let mut chains = BTreeSet::new();
        for image in inspected.into_iter().flatten() {
            let layers = image["RootFS"]["Layers"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut chain = String::new();
            for layer in layers.iter().filter_map(Value::as_str) {
                chain = match chain.is_empty() {
                    true => layer.to_owned(),
                    false => bud_image::Digest::of(format!("{chain} {layer}")).to_string(),
                };
                chains.insert(chain.clone());
            }
        }
        chains.into_iter().take(CHAINS).collect()
    }

    async fn json(&self, path: &str) -> Option<Value> {
        let (status, body) = self.call(Method::GET, path, None, Empty::new().boxed()).await.ok()?;
        (status == StatusCode::OK).then(|| serde_json::from_slice(&body).ok()).flatten()
    }

    /// Loads an archive.
    ///
    /// # Errors
    /// Docker refuses it, or ends.
    pub async fn load(&self, archive: mpsc::Receiver<Bytes>) -> Result<()> {
        let stream = ReceiverStream::new(archive).map(|piece| Ok(Frame::data(piece)));
        let body = BodyExt::boxed(StreamBody::new(stream));
        let (status, answer) = self
            .call(Method::POST, "/images/load?quiet=1", Some("application/x-tar"), body)
            .await
            .context("loading into Docker")?;
        let text = String::from_utf8_lossy(&answer);
        // One JSON object a line; an error may come after a good status.
        let error = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok())
            .find_map(|line| ["error", "message"].iter().find_map(|key| line[*key].as_str().map(str::to_owned)));
        match error {
            Some(error) => bail!("Docker can't load the image: {}", error.trim()),
            None if status.is_success() => Ok(()),
            None => bail!("Docker can't load the image: it answers {status}"),
        }
    }

    async fn call(&self, method: Method, path: &str, kind: Option<&str>, body: Body) -> Result<(StatusCode, Bytes)> {
        match &self.endpoint {
            Endpoint::Unix(socket) => {
                let stream =
                    UnixStream::connect(socket).await.with_context(|| format!("connecting to {}", socket.display()))?;
                exchange(stream, method, path, kind, body).await
            }
            Endpoint::Tcp(address) => {
                let stream = TcpStream::connect(address).await.with_context(|| format!("connecting to {address}"))?;
                exchange(stream, method, path, kind, body).await
            }
        }
    }
}

async fn exchange<S>(
    stream: S,
    method: Method,
    path: &str,
    kind: Option<&str>,
    body: Body,
) -> Result<(StatusCode, Bytes)>
where
    S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    // Its end is seen by the request that goes over it.
    let driving = tokio::spawn(connection);
    let mut request = Request::builder().method(method).uri(path).header("host", "docker").header("user-agent", "bud");
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let answer = sender.send_request(request.body(body)?).await?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), ANSWER_LIMIT).collect().await;
    driving.abort();
    let body = body.map_err(|error| anyhow::anyhow!("reading its answer: {error}"))?;
    Ok((status, body.to_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixListener;

    /// A Docker that takes one request and gives a fixed answer; returns what it was sent.
    async fn docker(answer: &'static str) -> (tempfile::TempDir, Docker, tokio::task::JoinHandle<Vec<u8>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let served = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut got = Vec::new();
            let mut buffer = [0; 4096];
            loop {
                let read = stream.read(&mut buffer).await.unwrap();
                got.extend_from_slice(&buffer[..read]);
                let chunked = got.windows(9).any(|w| w == b"chunked\r\n");
                let end: &[u8] = if chunked { b"0\r\n\r\n" } else { b"\r\n\r\n" };
                if got.ends_with(end) || read == 0 {
                    break;
                }
            }
            stream.write_all(answer.as_bytes()).await.unwrap();
            got
        });
        let docker = Docker::at(&format!("unix://{}", path.display())).unwrap();
        (dir, docker, served)
    }

    #[tokio::test]
    async fn an_archive_goes_in_as_it_comes() {
        let (_dir, docker, served) =
            docker("HTTP/1.1 200 OK\r\ncontent-length: 29\r\n\r\n{\"stream\":\"Loaded image: a\"}\n").await;
        let (pieces, archive) = mpsc::channel(1);
        let feeding = tokio::spawn(async move {
            for piece in ["one", "two"] {
                pieces.send(Bytes::from(piece)).await.unwrap();
            }
        });
        docker.load(archive).await.unwrap();
        feeding.await.unwrap();
        let got = String::from_utf8(served.await.unwrap()).unwrap();
        assert!(got.starts_with("POST /images/load?quiet=1 HTTP/1.1\r\n"), "{got}");
        assert!(got.contains("one") && got.contains("two"), "{got}");
    }

    #[tokio::test]
    async fn docker_s_own_error_is_told() {
        let (_dir, docker, _served) =
            docker("HTTP/1.1 200 OK\r\ncontent-length: 27\r\n\r\n{\"error\":\"no space left\"}\r\n").await;
        let (_, archive) = mpsc::channel(1);
        assert_eq!(docker.load(archive).await.unwrap_err().to_string(), "Docker can't load the image: no space left");
    }

    #[tokio::test]
    async fn an_image_is_looked_up() {
        let (_dir, docker, served) =
            docker("HTTP/1.1 200 OK\r\ncontent-length: 19\r\n\r\n{\"Id\":\"sha256:abc\"}").await;
        assert_eq!(docker.image_id("foo:latest").await.as_deref(), Some("sha256:abc"));
        assert!(served.await.unwrap().starts_with(b"GET /images/foo:latest/json "));
    }

    #[tokio::test]
    async fn layers_are_known_by_their_chains() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("docker.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let serving = tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut buffer = [0; 4096];
                let read = stream.read(&mut buffer).await.unwrap();
                let request = String::from_utf8_lossy(&buffer[..read]).into_owned();
                let body = match request.split(' ').nth(1).unwrap() {
                    "/info" => r#"{"Driver":"overlay2","DriverStatus":[["Backing Filesystem","extfs"]]}"#,
                    "/images/json" => r#"[{"Id":"sha256:one"},{"Id":"sha256:two"}]"#,
                    "/images/sha256:one/json" => r#"{"RootFS":{"Layers":["sha256:a","sha256:b"]}}"#,
                    _ => r#"{"RootFS":{"Layers":["sha256:a"]}}"#,
                };
                let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        });
        let chains = Docker::at(&format!("unix://{}", path.display())).unwrap().chains().await;
        serving.abort();
        let both = bud_image::Digest::of("sha256:a sha256:b").to_string();
        let mut expected = vec!["sha256:a".to_owned(), both];
        expected.sort();
        assert_eq!(chains, expected);
    }

    #[test]
    fn addresses() {
        assert!(Docker::at("unix:///x").is_some());
        assert_eq!(Docker::at("tcp://a"), Docker::at("tcp://a:2375/"));
        assert!(Docker::at("ssh://me@host").is_none());
    }
}
