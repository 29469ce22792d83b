//! `image`: names the result in our own store; `push` (type `registry`) sends it to a registry.

use super::commit::{Image, Maker, metadata_of};
use super::options::{self, ImageOptions, flag};
use super::push::{PushOptions, push};
use super::{ExportCx, Exportable, Response, config};
use crate::images::{ImageData, PlatformImage};
use crate::value::{blocking, store_error};
use base64::Engine as _;
use bud_image::{Descriptor, ImageRef};
use bud_protocol::errors::BuildError;
use bud_store::Snapshot;
use std::collections::BTreeMap;
use std::sync::Arc;

/// The `image` exporter.
///
/// Attributes: `name` (comma list; `*`: from metadata `image.name`), `push`, `push-by-digest`, `registry.insecure`, `store`, `unpack`,
/// `dangling-name-prefix`, `name-canonical`, and those common to images (`oci-mediatypes`, `compression`, `force-compression`,
/// `compression-level`, `rewrite-timestamp`, `source-date-epoch`, `annotation*`, …). `bud.digests=lazy`: digests are not computed
/// unless something else needs them, and are then absent from the response.
#[derive(Clone, Debug)]
pub struct ImageExporter {
    image: ImageOptions,
    name: String,
    push: bool,
    to_registry: PushOptions,
    store: bool,
    is_lazy: bool,
    dangling_prefix: String,
    dangling_empty_only: bool,
    name_canonical: bool,
}

impl ImageExporter {
    /// Parses the attributes. `unpack` asks for what is always so here.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let is_set = |name: &str, default: bool| Ok::<_, BuildError>(flag(attrs, name)?.unwrap_or(default));
        let text = |name: &str| attrs.get(name).cloned().unwrap_or_default();
        is_set("unpack", false)?;
        let exporter = Self {
            image: ImageOptions::parse(attrs)?,
            name: text("name"),
            push: is_set("push", kind == "registry")?,
            to_registry: PushOptions {
                by_digest: is_set("push-by-digest", false)?,
                insecure: is_set("registry.insecure", false)?,
            },
            store: is_set("store", true)?,
            is_lazy: attrs.get("bud.digests").is_some_and(|mode| mode == "lazy"),
            dangling_prefix: text("dangling-name-prefix"),
            dangling_empty_only: is_set("danging-name-empty-only", false)?,
            name_canonical: is_set("name-canonical", false)?,
        };
        if exporter.name != "*" {
            options::names(&exporter.name, &BTreeMap::new())?;
        }
        Ok(exporter)
    }

    /// Tells if nobody but the store gets the image, and nobody asked for digests.
    fn needs_no_digest(&self) -> bool {
        self.is_lazy && !self.push && self.dangling_prefix.is_empty() && !self.name_canonical
    }

    /// Names, and pushes if asked to. Answers `image.name`, `containerimage.digest`, `containerimage.config.digest`,
    /// `containerimage.descriptor`.
    ///
    /// # Errors
    /// A name is bad, the registry refuses, the disk is full.
    pub async fn export(&self, cx: &ExportCx, result: &Exportable) -> Result<Response, BuildError> {
        let mut names = options::names(&self.name, &result.metadata)?;
        if self.push && names.is_empty() {
            return Err(BuildError::invalid("a push needs a name: where to?"));
        }
        let mut response = Response::new();
        let image = if self.needs_no_digest() {
            None
        } else {
            let mut maker = Maker::of(cx, self.image.clone());
            let image = maker.image(result).await?;
            response.extend(digests(&image)?);
            if !self.dangling_prefix.is_empty() && (!self.dangling_empty_only || names.is_empty()) {
                let dangling = format!("{}@{}", self.dangling_prefix, image.top.digest);
                names.extend(options::names(&dangling, &BTreeMap::new())?);
            }
            Some(image)
        };
        if self.store {
            for name in &names {
                self.store_as(cx, result, image.as_ref(), name).await?;
            }
        }
        if !names.is_empty() {
            let list: Vec<_> = names.iter().map(ToString::to_string).collect();
            response.insert("image.name".into(), list.join(","));
        }
        if let Some(image) = image.filter(|_| self.push) {
            for name in &names {
                push(cx, &image, name, self.to_registry).await?;
            }
        }
        Ok(response)
    }

    async fn store_as(
        &self,
        cx: &ExportCx,
        result: &Exportable,
        image: Option<&Image>,
        name: &ImageRef,
    ) -> Result<(), BuildError> {
        let _naming = cx.progress.status(format!("naming to {name}"));
        let data = match image {
            Some(image) => ImageData { digest: image.top.digest.to_string(), platforms: image.remembered() },
            None => ImageData { digest: String::new(), platforms: unfinished(result) },
        };
        let documents = image.map(Image::documents).unwrap_or_default();
        let mut all = vec![name.to_string()];
        if let Some(image) = image.filter(|_| self.name_canonical && name.digest.is_none()) {
            all.push(format!("{name}@{}", image.top.digest));
        }
        let snapshot = result.trees.first().map_or_else(Snapshot::scratch, |tree| tree.snapshot.clone());
        let store = Arc::clone(&cx.daemon.store);
        blocking(move || {
            let data = serde_json::to_string(&data).map_err(|e| BuildError::other(e.to_string()))?;
            for name in all {
                store.put_image(&name, &data, &snapshot, &documents).map_err(store_error)?;
            }
            Ok(())
        })
        .await
    }
}

/// Describes the platforms of a result whose digests nobody needs yet.
fn unfinished(result: &Exportable) -> Vec<PlatformImage> {
    let of = |tree: &super::ExportTree| PlatformImage {
        platform: tree.platform.to_string(),
        config: match metadata_of(result, "containerimage.config", tree) {
            Some(given) => String::from_utf8_lossy(given).into_owned(),
            None => String::from_utf8_lossy(&config::default_config(&tree.platform)).into_owned(),
        },
        layers: tree.snapshot.layers().iter().map(|id| id.0).collect(),
        manifest: String::new(),
        id: String::new(),
    };
    result.trees.iter().map(of).collect()
}

/// Answers what an image's digests are.
///
/// # Errors
/// None in practice: descriptors have a JSON form.
pub fn digests(image: &Image) -> Result<Response, BuildError> {
    let mut response = Response::new();
    response.insert("containerimage.digest".into(), image.top.digest.to_string());
    if let [only] = &image.platforms[..]
        && !image.is_index
    {
        response.insert("containerimage.config.digest".into(), only.config.digest.to_string());
    }
    response.insert("containerimage.descriptor".into(), encoded(&image.top)?);
    Ok(response)
}

/// Writes a descriptor as clients expect it: JSON in base64.
fn encoded(descriptor: &Descriptor) -> Result<String, BuildError> {
    let json = serde_json::to_vec(descriptor).map_err(|e| BuildError::other(e.to_string()))?;
    Ok(base64::engine::general_purpose::STANDARD.encode(json))
}
