//! `http://` and `https://`: one file.
//!
//! What a URL gave is remembered with its etag, so that a server is only asked whether it still holds. The content is a blob of the
//! store until a layer is made of it.

mod name;

use super::{Pin, PinKey, SourceCx, fixed_key};
use crate::sessions::session_error;
use crate::value::{Value, blocking, file_error, store_error};
use bud_image::Digest;
use bud_oci::registry::{Fetched, Problem};
use bud_protocol::errors::BuildError;
use bud_store::fileop::{self, ModeChange, Owner};
use bud_store::{Info, LayerDraft, RecordType, Snapshot, Store, StoreError, Tree};
use bytes::Bytes;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use url::Url;

/// The host that stands for the client itself: what it uploads.
const CLIENT: &str = "buildkit-session";
/// The mode of a file for which none is given.
const DEFAULT_MODE: u32 = 0o600;

/// A file at a URL. `http://buildkit-session/<id>` is a stream that the client uploads.
#[derive(Clone, Debug)]
pub struct HttpSource {
    url: Url,
    checksum: Option<Digest>,
    filename: Option<String>,
    mode: Option<u32>,
    uid: u32,
    gid: u32,
    auth_secret: Option<String>,
    headers: BTreeMap<String, String>,
}

/// What is known of a URL's file.
#[derive(Clone, Debug, Default)]
pub struct HttpMetadata {
    /// Digest of the content.
    pub checksum: String,
    /// The name it would have.
    pub filename: String,
    /// `Last-Modified`, in seconds since 1970.
    pub modified: Option<i64>,
}

/// What a URL gave, for asking again and for [`Pin::state`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct Found {
    digest: String,
    filename: String,
    modified: Option<i64>,
    #[serde(default)]
    etag: String,
    #[serde(default)]
    last_modified: String,
}

impl HttpSource {
    /// Parses URL and attributes (`http.checksum`, `http.filename`, `http.perm`, `http.uid`, `http.gid`, `http.authheadersecret`,
    /// `http.header.*`).
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(url: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let invalid = |what: String| BuildError::invalid(format!("http source: {what}"));
        let url = Url::parse(url).map_err(|e| invalid(format!("{url:?} is no URL: {e}")))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
            return Err(invalid(format!("{} is no http or https URL", shown(&url))));
        }
        let attr = |key: &str| attrs.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let number = |key: &str, radix: u32, most: u32| -> Result<Option<u32>, BuildError> {
            let Some(text) = attr(key) else { return Ok(None) };
            let number = u32::from_str_radix(text, radix).ok().filter(|number| *number <= most);
            number.map(Some).ok_or_else(|| invalid(format!("{key}={text:?} is out of range")))
        };
        let checksum = attr("http.checksum")
            .map(|text| text.parse::<Digest>().map_err(|e| invalid(format!("checksum {text:?}: {e}"))))
            .transpose()?;
        let filename = attr("http.filename").map(str::to_owned);
        if let Some(name) = &filename
            && !name::is_name(name)
        {
            return Err(invalid(format!("{name:?} is no file name")));
        }
        let headers = attrs.iter().filter_map(|(key, value)| {
            let name = key.strip_prefix("http.header.")?.to_ascii_lowercase();
            matches!(name.as_str(), "accept" | "user-agent").then(|| (name, value.clone()))
        });
        Ok(Self {
            checksum,
            filename,
            mode: number("http.perm", 8, 0o7777)?,
            uid: number("http.uid", 10, u32::MAX - 1)?.unwrap_or(0),
            gid: number("http.gid", 10, u32::MAX - 1)?.unwrap_or(0),
            auth_secret: attr("http.authheadersecret").map(str::to_owned),
            headers: headers.collect(),
            url,
        })
    }

    /// Finds out what is there; for front ends.
    ///
    /// # Errors
    /// The server can't be asked.
    pub async fn metadata(&self, cx: &SourceCx) -> Result<HttpMetadata, BuildError> {
        let found = self.find(cx).await?;
        Ok(HttpMetadata { checksum: found.digest, filename: found.filename, modified: found.modified })
    }

    /// Pins to the content's checksum, asking with the remembered etag first.
    ///
    /// # Errors
    /// The server can't be asked, or the checksum is not the one demanded.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let found = self.find(cx).await?;
        let modified = found.modified.map(|time| time.to_string()).unwrap_or_default();
        let numbers = format!("{:o} {} {}", self.mode.unwrap_or(DEFAULT_MODE), self.uid, self.gid);
        let key = fixed_key("http", &[&found.digest, &found.filename, &numbers, &modified]);
        let mut state = BTreeMap::from([("digest".to_owned(), found.digest), ("filename".to_owned(), found.filename)]);
        if !modified.is_empty() {
            state.insert("modified".to_owned(), modified);
        }
        Ok(Pin { key: PinKey::Fixed(key), state })
    }

    /// Makes a layer of the file.
    ///
    /// # Errors
    /// The content can't be had.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let state = |key: &str| pin.state.get(key).map(String::as_str).unwrap_or_default();
        let digest: Digest = state("digest").parse().map_err(|e| BuildError::other(format!("pinned content: {e}")))?;
        let filename = state("filename").to_owned();
        let mut modified = state("modified").parse::<i64>().ok();
        let store = Arc::clone(&cx.daemon.store);
        if !store.blobs().contains(&digest).map_err(store_error)? {
            // With a checksum nobody has been asked yet; else the blob was cleaned away since.
            let found = self.ask(cx, None, Some(digest)).await?;
            modified = modified.or(found.and_then(|found| found.modified));
        }
        let source = self.clone();
        blocking(move || source.layer(&store, &digest, &filename, modified)).await
    }

    /// Finds out what the URL stands for.
    async fn find(&self, cx: &SourceCx) -> Result<Found, BuildError> {
        if let Some(checksum) = &self.checksum {
            let filename = self.name("")?;
            return Ok(Found { digest: checksum.to_string(), filename, ..Found::default() });
        }
        let store = &cx.daemon.store;
        let tag = self.tag();
        let remembered = store.remembered_tag(&tag).map_err(store_error)?;
        let remembered = remembered.and_then(|(text, _)| serde_json::from_str::<Found>(&text).ok());
        let remembered = remembered.filter(|found| {
            let digest = found.digest.parse::<Digest>();
            let usable = !found.etag.is_empty() || !found.last_modified.is_empty();
            usable && digest.is_ok_and(|digest| matches!(store.blobs().contains(&digest), Ok(true)))
        });
        match self.ask(cx, remembered.as_ref(), None).await? {
            None => {
                remembered.ok_or_else(|| self.failed("the server says that nothing changed, but nothing was asked"))
            }
            Some(found) => {
                if self.url.host_str() != Some(CLIENT)
                    && let Ok(text) = serde_json::to_string(&found)
                {
                    store.remember_tag(&tag, &text).map_err(store_error)?;
                }
                Ok(found)
            }
        }
    }

    /// Under what the URL's etag is remembered.
    fn tag(&self) -> String {
        let parts = (self.url.as_str(), &self.filename, &self.auth_secret, &self.headers);
        format!("http:{}", Digest::of(format!("{parts:?}")).hex())
    }

    fn name(&self, disposition: &str) -> Result<String, BuildError> {
        if let Some(name) = &self.filename {
            return Ok(name.clone());
        }
        name::of(&self.url, disposition).ok_or_else(|| self.failed("its path gives no file name that can be used"))
    }

    fn failed(&self, why: impl std::fmt::Display) -> BuildError {
        BuildError::other(format!("{}: {why}", shown(&self.url)))
    }

    /// Gets the content into the store's blobs; `None` if it is still what was remembered. With `expected`, content of another digest is not kept.
    async fn ask(
        &self,
        cx: &SourceCx,
        remembered: Option<&Found>,
        expected: Option<Digest>,
    ) -> Result<Option<Found>, BuildError> {
        if self.url.host_str() == Some(CLIENT) {
            return self.upload(cx, expected).await.map(Some);
        }
        let headers = self.request_headers(cx, remembered).await?;
        let transport = cx.daemon.shared.registries.client(&cx.daemon.config).transport();
        let answer = transport.get(&self.url, &headers).await.map_err(|e| self.failed(problem(&e)))?;
        let Fetched { response, .. } = answer;
        let status = response.status();
        if status.as_u16() == 304 && remembered.is_some() {
            return Ok(None);
        }
        if !status.is_success() {
            return Err(self.failed(format!("invalid response status {status}")));
        }
        let header = |name: &str| response.headers().get(name).and_then(|v| v.to_str().ok()).unwrap_or("").to_owned();
        let last_modified = header("last-modified");
        let mut found = Found {
            filename: self.name(&header("content-disposition"))?,
            modified: http_date(&last_modified),
            etag: header("etag"),
            last_modified,
            digest: String::new(),
        };
        let length = response.content_length();
        let status = cx.progress.status_of("download", "downloading", length.unwrap_or(0));
        let mut body = response.bytes_stream();
        let digest = keep(&cx.daemon.store, expected, async |pieces| {
            let mut got = 0u64;
            while let Some(piece) = body.next().await {
                let piece = piece.map_err(|e| self.failed(e.without_url()))?;
                got += piece.len() as u64;
                status.set(got);
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            Ok(length.is_none_or(|length| length == got))
        });
        let digest = digest.await.map_err(|e| self.kept_error(e))?;
        found.digest = digest.to_string();
        Ok(Some(found))
    }

    /// Takes what the client uploads under the URL.
    async fn upload(&self, cx: &SourceCx, expected: Option<Digest>) -> Result<Found, BuildError> {
        let status = cx.progress.status("upload");
        let path = self.url.path().to_owned();
        let stream = cx.sessions.any(|session| {
            let path = path.clone();
            async move { session.upload(CLIENT, &path).await }
        });
        let mut stream = std::pin::pin!(stream.await.map_err(session_error)?);
        let digest = keep(&cx.daemon.store, expected, async |pieces| {
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(session_error)?;
                status.add(piece.len() as u64);
                if pieces.send(piece).await.is_err() {
                    break;
                }
            }
            Ok(true)
        });
        let digest = digest.await.map_err(|e| self.kept_error(e))?;
        Ok(Found { digest: digest.to_string(), filename: self.name("")?, ..Found::default() })
    }

    fn kept_error(&self, error: KeepError) -> BuildError {
        match error {
            KeepError::Store(StoreError::DigestMismatch { actual, expected, .. }) => {
                BuildError::other(format!("digest mismatch for {}: {actual} (expected: {expected})", shown(&self.url)))
            }
            KeepError::Store(error) => store_error(error),
            KeepError::Short => self.failed("the connection was cut before the end of the file"),
            KeepError::Build(error) => error,
        }
    }

    async fn request_headers(
        &self,
        cx: &SourceCx,
        remembered: Option<&Found>,
    ) -> Result<::http::HeaderMap, BuildError> {
        let mut headers = ::http::HeaderMap::new();
        let mut set = |name: &str, value: &[u8]| -> Result<(), BuildError> {
            let name = ::http::HeaderName::from_bytes(name.as_bytes());
            let (Ok(name), Ok(mut value)) = (name, ::http::HeaderValue::from_bytes(value)) else {
                return Err(BuildError::invalid(format!("{}: a header can't be sent", shown(&self.url))));
            };
            value.set_sensitive(name == ::http::header::AUTHORIZATION);
            headers.insert(name, value);
            Ok(())
        };
        for (name, value) in &self.headers {
            set(name, value.as_bytes())?;
        }
        if let Some(found) = remembered {
            if !found.etag.is_empty() {
                set("if-none-match", found.etag.as_bytes())?;
            } else if !found.last_modified.is_empty() {
                set("if-modified-since", found.last_modified.as_bytes())?;
            }
        }
        if let Some(name) = &self.auth_secret {
            let secret = cx.sessions.any(|session| async move { session.secret(name).await }).await;
            if let Some(secret) = secret.map_err(session_error)? {
                set("authorization", secret.trim_ascii())?;
            }
        }
        Ok(headers)
    }

    /// Makes the layer. Blocking.
    fn layer(
        &self,
        store: &Arc<Store>,
        digest: &Digest,
        filename: &str,
        modified: Option<i64>,
    ) -> Result<Value, BuildError> {
        let draft = store.draft(&Snapshot::scratch()).map_err(store_error)?;
        let mode = self.mode.unwrap_or(DEFAULT_MODE);
        let time = SystemTime::UNIX_EPOCH + Duration::from_secs(modified.unwrap_or(0).try_into().unwrap_or(0));
        if (self.uid, self.gid) == (0, 0) {
            write_file(store, digest, &draft.upper().join(filename), mode, time)?;
        } else {
            self.owned_file(store, &draft, digest, filename, mode, time)?;
        }
        let info = Info { description: format!("http url {}", shown(&self.url)), record_type: RecordType::Regular };
        draft.commit(&info).map(Value::kept).map_err(store_error)
    }

    /// Writes the file as somebody else's, which the store may have to note where the system doesn't allow it.
    fn owned_file(
        &self,
        store: &Arc<Store>,
        draft: &LayerDraft,
        digest: &Digest,
        filename: &str,
        mode: u32,
        time: SystemTime,
    ) -> Result<(), BuildError> {
        let dir = draft.work().join("http");
        std::fs::create_dir(&dir).map_err(|e| BuildError::other(format!("create {}: {e}", dir.display())))?;
        write_file(store, digest, &dir.join(filename), mode, time)?;
        let tree = Tree::of_directory(&dir).map_err(store_error)?;
        let copy = fileop::Copy {
            src: filename.to_owned(),
            dest: filename.to_owned(),
            mode: Some(ModeChange::Bits(mode)),
            owner: Some(Owner { uid: self.uid, gid: self.gid }),
            ..fileop::Copy::default()
        };
        fileop::copy(draft, bud_store::Source::Tree(&tree), &copy, &()).map_err(file_error)?;
        Ok(())
    }
}

fn write_file(store: &Store, digest: &Digest, path: &Path, mode: u32, time: SystemTime) -> Result<(), BuildError> {
    let failed = |e: std::io::Error| BuildError::other(format!("write {}: {e}", path.display()));
    let mut blob = store.blobs().open(digest).map_err(store_error)?;
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let mut buffer = vec![0; 256 << 10];
    loop {
        // Read to the end, a blob is checked against its digest.
        let read = blob.read(&mut buffer).map_err(failed)?;
        if read == 0 {
            break;
        }
        file.write_all(&buffer[..read]).map_err(failed)?;
    }
    file.set_permissions(std::fs::Permissions::from_mode(mode)).map_err(failed)?;
    file.set_modified(time).map_err(failed)
}

enum KeepError {
    Store(StoreError),
    Build(BuildError),
    Short,
}

/// Writes a stream into a blob on a thread of its own. `feed` tells at its end whether the stream was whole.
async fn keep(
    store: &Arc<Store>,
    expected: Option<Digest>,
    feed: impl AsyncFnOnce(&mpsc::Sender<Bytes>) -> Result<bool, BuildError>,
) -> Result<Digest, KeepError> {
    let (pieces, mut queue) = mpsc::channel::<Bytes>(16);
    let store = Arc::clone(store);
    let writing = tokio::task::spawn_blocking(move || -> Result<bud_store::BlobWriter, StoreError> {
        let mut writer = store.blobs().writer()?;
        while let Some(piece) = queue.blocking_recv() {
            writer.write_all(&piece).map_err(|source| StoreError::Io {
                what: "write",
                path: "a downloaded file".into(),
                source,
            })?;
        }
        Ok(writer)
    });
    let fed = feed(&pieces).await;
    drop(pieces);
    let writer =
        writing.await.map_err(|e| KeepError::Build(BuildError::other(format!("a background task failed: {e}"))))?;
    let writer = writer.map_err(KeepError::Store)?;
    if !fed.map_err(KeepError::Build)? {
        return Err(KeepError::Short);
    }
    let committed = tokio::task::spawn_blocking(move || writer.commit(expected.as_ref(), None)).await;
    let committed =
        committed.map_err(|e| KeepError::Build(BuildError::other(format!("a background task failed: {e}"))))?;
    committed.map(|(digest, _)| digest).map_err(KeepError::Store)
}

/// The URL without user, password and query, which may hold secrets.
fn shown(url: &Url) -> String {
    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

fn problem(problem: &Problem) -> String {
    problem.to_string()
}

/// Reads a time of HTTP, in seconds since 1970.
fn http_date(text: &str) -> Option<i64> {
    let time = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
    Some(time.as_second())
}

#[cfg(test)]
mod tests;
