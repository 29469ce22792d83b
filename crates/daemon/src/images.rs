//! The image store as people see it: names, ids, sizes.

use crate::daemon::Daemon;
use crate::value::{blocking, store_error};
use bud_image::ImageRef;
use bud_protocol::bud::Image;
use bud_protocol::errors::BuildError;
use bytes::Bytes;
use futures_util::Stream;
use serde::{Deserialize, Serialize};
use std::pin::Pin;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

/// What is stored with an image's name, as JSON: the text that the image exporter writes (`Store::put_image`) and the image source reads.
///
/// Several platforms are several entries; the store's snapshot is the first one's.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageData {
    /// Digest of the top manifest or index; empty until computed.
    pub digest: String,
    /// One for each platform.
    pub platforms: Vec<PlatformImage>,
}

/// An image for one platform.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlatformImage {
    /// `linux/amd64`.
    pub platform: String,
    /// The config's JSON. Without diff IDs until `manifest` is known.
    pub config: String,
    /// Layer numbers of its snapshot, bottom first.
    pub layers: Vec<i64>,
    /// Digest of its manifest; empty until computed.
    pub manifest: String,
    /// Digest of its config, the image ID; empty until computed.
    pub id: String,
}

/// Lists the images, sorted by name.
///
/// # Errors
/// The store fails.
pub async fn list(daemon: &Arc<Daemon>) -> Result<Vec<Image>, BuildError> {
    let store = Arc::clone(&daemon.store);
    blocking(move || {
        let sizes: std::collections::HashMap<String, u64> =
            store.usage().map_err(store_error)?.into_iter().map(|u| (u.id, u.size)).collect();
        let images = store.images().map_err(store_error)?;
        let mut list: Vec<Image> = images
            .into_iter()
            .map(|stored| {
                let data: ImageData = serde_json::from_str(&stored.data).unwrap_or_default();
                let layers = stored.snapshot.layers();
                let size: u64 = layers.iter().filter_map(|l| sizes.get(&format!("layer:{}", l.0))).sum();
                let created = stored.updated.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
                Image {
                    familiar_name: ImageRef::parse(&stored.name).map_or_else(|_| stored.name.clone(), |r| r.familiar()),
                    name: stored.name,
                    id: data.platforms.first().map(|p| p.id.clone()).unwrap_or_default(),
                    digest: data.digest,
                    created_unix: i64::try_from(created).unwrap_or(i64::MAX),
                    size_bytes: i64::try_from(size).unwrap_or(i64::MAX),
                    platforms: data.platforms.into_iter().map(|p| p.platform).collect(),
                }
            })
            .collect();
        list.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(list)
    })
    .await
}

/// Removes a name; the layers go with the next prune. Returns the full names removed.
///
/// # Errors
/// There is no such image.
pub async fn remove(daemon: &Arc<Daemon>, name: &str) -> Result<Vec<String>, BuildError> {
    let full = full_name(name)?;
    let store = Arc::clone(&daemon.store);
    let given = name.to_owned();
    blocking(move || {
        if store.remove_image(&full).map_err(store_error)? {
            return Ok(vec![full]);
        }
        let names: Vec<String> = store.images().map_err(store_error)?.into_iter().map(|i| i.name).collect();
        let known =
            names.iter().filter_map(|n| ImageRef::parse(n).ok()).map(|r| r.familiar()).take(20).collect::<Vec<_>>();
        let hint =
            if known.is_empty() { "there are none".to_owned() } else { format!("there are: {}", known.join(", ")) };
        Err(BuildError::not_found(format!("no image {given:?} in the store; {hint}")))
    })
    .await
}

/// Returns the name under which an image is stored.
///
/// # Errors
/// It is no image reference.
pub fn full_name(name: &str) -> Result<String, BuildError> {
    let reference = ImageRef::parse(name).map_err(|e| BuildError::invalid(format!("{name:?}: {e}")))?;
    Ok(reference.or_latest().to_string())
}

/// An archive, piece by piece.
pub type Archive = Pin<Box<dyn Stream<Item = Result<Bytes, BuildError>> + Send>>;

/// An image on its way out.
pub struct Saved {
    /// The archive.
    pub archive: Archive,
    /// How many layers the image has.
    pub layers: u32,
    /// How many of them the receiver has, so that the archive only names them.
    pub left_out: u32,
}

/// Streams an image as a Docker archive, without the layers (by chain ID) that the receiver has.
///
/// # Errors
/// There is no such image.
pub async fn save(daemon: &Arc<Daemon>, name: &str, skip: &[String]) -> Result<Saved, BuildError> {
    let full = full_name(name)?;
    crate::exporter::oci::save(daemon, &full, skip).await
}
