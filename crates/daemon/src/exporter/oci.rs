//! `oci` and `docker`: an image archive for the client, as a tar stream or into its content store.

use super::commit::{Image, Maker};
use super::image::digests;
use super::options::{self, ImageOptions, flag};
use super::{ExportCx, ExportTree, Exportable, Response};
use crate::daemon::Daemon;
use crate::images::{ImageData, Saved};
use crate::progress::Reporter;
use crate::sessions::SessionGroup;
use crate::sessions::session_error;
use crate::source::pull::chain_ids;
use crate::value::{blocking, store_error};
use bud_image::{Descriptor, Digest, ImageRef, Platform};
use bud_oci::layout::{self, DockerImage};
use bud_protocol::errors::BuildError;
use bud_session::Session;
use bud_store::{LayerId, Snapshot, Store};
use bytes::Bytes;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

/// When the archive's image was made, on its descriptor.
const CREATED: &str = "org.opencontainers.image.created";
/// Bytes that are read or sent at a time.
const PIECE: usize = 1 << 20;

/// The `oci` and `docker` exporters.
#[derive(Clone, Debug)]
pub struct OciExporter {
    /// With `manifest.json`, for Docker.
    docker: bool,
    image: ImageOptions,
    name: String,
    tar: bool,
}

impl OciExporter {
    /// Parses the attributes.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let exporter = Self {
            docker: kind == "docker",
            image: ImageOptions::parse(attrs)?,
            name: attrs.get("name").cloned().unwrap_or_default(),
            tar: flag(attrs, "tar")?.unwrap_or(true),
        };
        if exporter.name != "*" {
            options::names(&exporter.name, &BTreeMap::new())?;
        }
        Ok(exporter)
    }

    /// Returns the vertex's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.docker { "exporting to docker image format" } else { "exporting to oci image format" }
    }

    /// Streams the archive to the client.
    ///
    /// # Errors
    /// The result doesn't fit (`docker` takes no index), or the client fails.
    pub async fn export(&self, cx: &ExportCx, result: &Exportable) -> Result<Response, BuildError> {
        if self.docker && result.multi_platform {
            return Err(BuildError::invalid("docker exporter does not currently support exporting manifest lists"));
        }
        let names = options::names(&self.name, &result.metadata)?;
        let mut maker = Maker::of(cx, self.image.clone());
        let mut image = maker.image(result).await?;
        let epoch = self.image.epoch.flatten().and_then(|e| u64::try_from(e).ok());
        let created = epoch.map_or(cx.now, |e| std::time::UNIX_EPOCH + std::time::Duration::from_secs(e));
        let created = super::config::format_time(created);
        // Whole seconds: Go's RFC3339.
        let created = created.split_once('.').map_or(created.clone(), |(seconds, _)| format!("{seconds}Z"));
        image.top.annotations.entry(CREATED.into()).or_insert(created);
        let mut response = digests(&image)?;
        if !names.is_empty() {
            let list: Vec<_> = names.iter().map(ToString::to_string).collect();
            response.insert("image.name".into(), list.join(","));
        }
        let session = cx.sessions.get(&cx.session).await?;
        if self.tar {
            self.send_tar(cx, &session, &image, names, &response).await?;
        } else {
            send_content(cx, &session, &image).await?;
        }
        Ok(response)
    }

    async fn send_tar(
        &self,
        cx: &ExportCx,
        session: &Session,
        image: &Image,
        names: Vec<ImageRef>,
        response: &Response,
    ) -> Result<(), BuildError> {
        let sending = cx.progress.status("sending tarball");
        let archive = archive(image, names, self.docker, &BTreeSet::new());
        let upload = session.send_file(cx.index, response).map_err(session_error)?;
        let store = Arc::clone(&cx.daemon.store);
        let cancel = cx.cancel.clone();
        let sent = blocking(move || {
            let mut output = upload.into_blocking();
            // What the client says of a failed transfer is more telling than that the pipe broke.
            let written = write_archive(&store, &archive, &mut output, &cancel);
            match written {
                Ok(()) => match output.finish() {
                    Err(error) if error.is_already_exists() => Ok(()),
                    result => result.map_err(session_error),
                },
                // Not finished: the client must not take a part for the whole.
                Err(_) if output.declined() => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await;
        drop(sending);
        sent
    }
}

/// Describes an image as an archive, without the layers that the receiver has.
fn archive(image: &Image, names: Vec<ImageRef>, docker: bool, skip: &BTreeSet<Digest>) -> layout::Archive {
    let only = image.platforms.first().filter(|_| docker && !image.is_index);
    let mut blobs = image.blobs();
    if let Some(made) = only {
        let chains = chain_ids(&made.diff_ids);
        let (there, sent): (Vec<_>, Vec<_>) =
            made.layers.iter().zip(&chains).partition(|(_, chain)| skip.contains(chain));
        // The same bytes may stand on another layer as well (empty ones often do), where the receiver lacks them.
        let sent: BTreeSet<&Digest> = sent.into_iter().map(|(layer, _)| &layer.digest).collect();
        for (layer, _) in there {
            if !sent.contains(&layer.digest) {
                blobs.remove(&layer.digest);
            }
        }
    }
    layout::Archive {
        top: image.top.clone(),
        names,
        docker: only.map(|made| DockerImage {
            config: made.config.digest,
            layers: made.layers.iter().map(|l| l.digest).collect(),
        }),
        blobs,
    }
}

fn write_archive(
    store: &Store,
    archive: &layout::Archive,
    output: &mut impl Write,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let mut open = |digest: &Digest| {
        if cancel.is_cancelled() {
            return Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "cancelled"));
        }
        let reader = store.blobs().open(digest).map_err(std::io::Error::other)?;
        Ok(Box::new(std::io::BufReader::with_capacity(PIECE, reader)) as Box<dyn Read>)
    };
    archive.write(output, &mut open).map_err(|e| BuildError::other(format!("write the archive: {e}")))?;
    Ok(())
}

/// Writes the image into the client's content store: layers and configs, then what names them.
async fn send_content(cx: &ExportCx, session: &Session, image: &Image) -> Result<(), BuildError> {
    let _sending = cx.progress.status("sending content");
    let mut parts: Vec<&Descriptor> = image.platforms.iter().flat_map(|m| m.layers.iter().chain([&m.config])).collect();
    parts.extend(image.platforms.iter().map(|m| &m.manifest));
    parts.push(&image.top);
    let mut sent = BTreeSet::new();
    for part in parts {
        if !sent.insert(part.digest) {
            continue;
        }
        let digest = part.digest.to_string();
        let writer = session.write_blob("export", &digest, &digest, part.size).await.map_err(session_error)?;
        let Some(mut writer) = writer else { continue };
        let mut left = part.size;
        let (store, id) = (Arc::clone(&cx.daemon.store), part.digest);
        let mut reader = blocking(move || store.blobs().open(&id).map_err(store_error)).await?;
        while left > 0 {
            let (piece, back) = blocking(move || {
                let mut piece = vec![0; PIECE];
                let n = reader.read(&mut piece).map_err(|e| BuildError::other(e.to_string()))?;
                piece.truncate(n);
                Ok((Bytes::from(piece), reader))
            })
            .await?;
            reader = back;
            left = left.saturating_sub(piece.len() as u64);
            writer.write(piece).await.map_err(session_error)?;
        }
        writer.commit().await.map_err(session_error)?;
    }
    Ok(())
}

/// Streams a named image of our store as a Docker archive. Layers whose chain IDs are in `skip` are named in it, but their tars are left out.
///
/// What is computed for it (digests, blobs) is remembered with the image.
///
/// # Errors
/// There is no such image, or a layer can't be read.
pub async fn save(daemon: &Arc<Daemon>, name: &str, skip: &[String]) -> Result<Saved, BuildError> {
    let skip: BTreeSet<Digest> = skip.iter().filter_map(|text| text.parse().ok()).collect();
    let name = ImageRef::parse(name).map_err(|e| BuildError::invalid(format!("{name:?}: {e}")))?.or_latest();
    let image = finished(daemon, &name).await?;
    let archive = archive(&image, vec![name], true, &skip);
    let all: Vec<Digest> = archive.docker.iter().flat_map(|docker| docker.layers.iter().copied()).collect();
    let left_out = all.iter().filter(|layer| !archive.blobs.contains_key(layer)).count();
    let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
    let (layers, left_out) = (count(all.len()), count(left_out));
    let (send, receive) = mpsc::channel(4);
    let store = Arc::clone(&daemon.store);
    tokio::task::spawn_blocking(move || {
        let mut output = Pieces { send, buffer: Vec::with_capacity(PIECE) };
        // A receiver that is gone cancels by not taking more.
        let written = write_archive(&store, &archive, &mut output, &CancellationToken::new());
        let written = written.and_then(|()| output.flush().map_err(|e| BuildError::other(e.to_string())));
        if let Err(error) = written {
            let _gone = output.send.blocking_send(Err(error));
        }
        // The image's blobs stay until all is written.
        drop(image);
    });
    Ok(Saved { archive: Box::pin(ReceiverStream::new(receive)), layers, left_out })
}

/// Returns a named image with all digests, computed now if nobody needed them before.
///
/// # Errors
/// There is no such image, or a layer can't be read.
pub async fn finished(daemon: &Arc<Daemon>, name: &ImageRef) -> Result<Image, BuildError> {
    let (store, text) = (Arc::clone(&daemon.store), name.to_string());
    let found = blocking(move || store.image(&text).map_err(store_error)).await?;
    let (stored, pin) =
        found.ok_or_else(|| BuildError::not_found(format!("no image {:?} in the store", name.familiar())))?;
    let data: ImageData = serde_json::from_str(&stored.data)
        .map_err(|e| BuildError::other(format!("{}: its record is damaged: {e}", name.familiar())))?;
    let pin = Arc::new(pin);
    let multi_platform = data.platforms.len() > 1;
    let mut result = Exportable { multi_platform, ..Exportable::default() };
    for image in &data.platforms {
        let platform = image.platform.parse::<Platform>().unwrap_or_else(|_| daemon.settings.platform());
        let id = if multi_platform { platform.to_string() } else { String::new() };
        let key = if multi_platform { format!("containerimage.config/{id}") } else { "containerimage.config".into() };
        result.metadata.insert(key, image.config.clone().into_bytes());
        result.trees.push(ExportTree {
            id,
            platform,
            snapshot: Snapshot::from_layers(image.layers.iter().copied().map(LayerId).collect()),
            pin: Some(Arc::clone(&pin)),
            config: serde_json::from_str(&image.config).ok(),
            base_config: None,
        });
    }
    let (progress, cancel) = (Reporter::silent(), CancellationToken::new());
    let options = ImageOptions::parse(&BTreeMap::new())?;
    // Nobody is there to ask for credentials.
    let sessions = SessionGroup::new(&daemon.sessions);
    let maker = Maker { daemon, sessions: &sessions, options, progress: &progress, cancel: &cancel };
    let image = { maker }.image(&result).await?;
    let known = ImageData { digest: image.top.digest.to_string(), platforms: image.remembered() };
    if known != data {
        let (store, documents) = (Arc::clone(&daemon.store), image.documents());
        blocking(move || {
            let text = serde_json::to_string(&known).map_err(|e| BuildError::other(e.to_string()))?;
            store.put_image(&stored.name, &text, &stored.snapshot, &documents).map_err(store_error)
        })
        .await?;
    }
    Ok(image)
}

/// Sends what is written in pieces.
struct Pieces {
    send: mpsc::Sender<Result<Bytes, BuildError>>,
    buffer: Vec<u8>,
}

impl Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = bytes.len().min(PIECE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..n]);
        if self.buffer.len() >= PIECE {
            self.flush()?;
        }
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.buffer, Vec::with_capacity(PIECE));
        self.send.blocking_send(Ok(piece.into())).map_err(|_| std::io::ErrorKind::BrokenPipe.into())
    }
}
