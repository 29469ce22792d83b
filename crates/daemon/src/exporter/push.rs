//! Sending an image to a registry: blobs first, several at once, then manifests, the tag last.

use super::ExportCx;
use super::commit::Image;
use crate::source::pull::registry_error;
use crate::source::registry;
use crate::value::{blocking, store_error};
use bud_image::{Descriptor, Digest, ImageRef};
use bud_oci::registry::{BlobSource, Pushed, Repository};
use bud_protocol::errors::BuildError;
use bud_store::Store;
use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt as _, TryStreamExt as _};
use std::io::Read as _;
use std::sync::Arc;

/// Blobs that are sent at the same time.
const BLOBS: usize = 4;
/// Bytes that are read of a blob at a time.
const PIECE: usize = 1 << 20;

/// How an image is pushed.
#[derive(Clone, Copy, Debug, Default)]
pub struct PushOptions {
    /// Without a tag.
    pub by_digest: bool,
    /// Over plain HTTP too, and to unknown certificates.
    pub insecure: bool,
}

/// A blob of the store, read from its file; its bytes are checked while they are read.
struct StoredBlob {
    store: Arc<Store>,
    digest: Digest,
}

impl BlobSource for StoredBlob {
    fn open(&self) -> BoxStream<'static, std::io::Result<Bytes>> {
        let (store, digest) = (Arc::clone(&self.store), self.digest);
        let opened = async move {
            let opening = tokio::task::spawn_blocking(move || store.blobs().open(&digest));
            opening.await.map_err(std::io::Error::other)?.map_err(std::io::Error::other)
        };
        stream::once(opened)
            .map_ok(|reader| {
                stream::try_unfold(reader, |mut reader| async move {
                    let reading = tokio::task::spawn_blocking(move || {
                        let mut piece = vec![0; PIECE];
                        let n = reader.read(&mut piece)?;
                        piece.truncate(n);
                        Ok::<_, std::io::Error>((Bytes::from(piece), reader))
                    });
                    let (piece, reader) = reading.await.map_err(std::io::Error::other)??;
                    Ok((!piece.is_empty()).then_some((piece, reader)))
                })
            })
            .try_flatten()
            .boxed()
    }
}

/// Names the place where it is remembered which repositories of a registry have a blob.
fn lenders_key(domain: &str, digest: &Digest) -> String {
    format!("blob|{domain}|{digest}")
}

/// Remembers that a repository has blobs, so that other repositories of its registry can borrow them.
///
/// # Errors
/// The database fails.
pub fn remember_lender(store: &Store, image: &ImageRef, digests: &[Digest]) -> Result<(), BuildError> {
    for digest in digests {
        store.remember_tag(&lenders_key(&image.domain, digest), &image.path).map_err(store_error)?;
    }
    Ok(())
}

/// Pushes an image under a name.
///
/// # Errors
/// The registry refuses, or a blob can't be read.
pub async fn push(cx: &ExportCx, image: &Image, name: &ImageRef, options: PushOptions) -> Result<(), BuildError> {
    let client = cx.daemon.shared.registries.client(&cx.daemon.config);
    let repository = client.repository(name, &registry::access(&cx.sessions)).insecure(options.insecure);
    let failed = |e: BuildError| e.context(format!("failed to push {name}"));
    let pushing = cx.progress.status("pushing layers");
    let mut blobs: Vec<Descriptor> =
        image.platforms.iter().flat_map(|m| m.layers.iter().chain([&m.config])).cloned().collect();
    blobs.sort_by_key(|d| d.digest);
    blobs.dedup_by_key(|d| d.digest);
    let sent: Vec<Digest> = stream::iter(blobs)
        .map(|blob| {
            let repository = &repository;
            async move { push_blob(cx, repository, &blob).await.map(|()| blob.digest) }
        })
        .buffer_unordered(BLOBS)
        .try_collect()
        .await
        .map_err(failed)?;
    drop(pushing);
    let _pushing = cx.progress.status(format!("pushing manifest for {name}@{}", image.top.digest));
    if image.is_index {
        for made in &image.platforms {
            let digest = made.manifest.digest.to_string();
            put(&repository, &made.manifest, &made.manifest_bytes, &digest).await.map_err(failed)?;
        }
    }
    let top_name = match &name.tag {
        Some(tag) if !options.by_digest => tag.clone(),
        _ => image.top.digest.to_string(),
    };
    put(&repository, &image.top, &image.top_bytes, &top_name).await.map_err(failed)?;
    let (store, name) = (Arc::clone(&cx.daemon.store), name.clone());
    blocking(move || remember_lender(&store, &name, &sent)).await
}

async fn put(repository: &Repository, descriptor: &Descriptor, bytes: &Bytes, name: &str) -> Result<(), BuildError> {
    let pushed = repository.push_manifest(&descriptor.media_type, bytes, name).await;
    pushed.map(|_| ()).map_err(|e| registry_error(&e))
}

async fn push_blob(cx: &ExportCx, repository: &Repository, blob: &Descriptor) -> Result<(), BuildError> {
    let (store, digest, domain) = (Arc::clone(&cx.daemon.store), blob.digest, repository.image().domain.clone());
    let lender = blocking(move || store.remembered_tag(&lenders_key(&domain, &digest)).map_err(store_error)).await?;
    let lenders: Vec<String> = lender.map(|(path, _)| path).into_iter().collect();
    let status = Arc::new(cx.progress.status_of(blob.digest.to_string(), "pushing", blob.size));
    let counter = {
        let status = Arc::clone(&status);
        Arc::new(move |bytes| status.set(bytes))
    };
    let source = StoredBlob { store: Arc::clone(&cx.daemon.store), digest };
    let pushed = repository.push_blob(blob, &source, &lenders, counter).await.map_err(|e| registry_error(&e))?;
    if pushed != Pushed::Uploaded {
        status.set(blob.size);
    }
    Ok(())
}
