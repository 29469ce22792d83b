//! Loading the image that the daemon keeps into Docker or Podman.

use super::summary::familiar;
use crate::commands::told;
use crate::connect::Connection;
use crate::output::load::Loader;
use crate::progress::{Progress, bytes_text, now, seconds_text};
use crate::request::BuildRequest;
use crate::terminal;
use anyhow::{Context as _, Result};
use bud_protocol::bud::SaveImageRequest;
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// Loads the daemon's image into Docker or Podman, unless it is there.
pub async fn load(
    connection: &Connection,
    loader: Loader,
    request: &BuildRequest,
    response: &BTreeMap<String, String>,
    progress: &Progress,
) -> Result<Loader> {
    let began = now();
    let shown = loader.shown();
    let ids: Vec<&str> = ["containerimage.config.digest", "containerimage.digest"]
        .iter()
        .filter_map(|key| response.get(*key).map(String::as_str))
        .collect();
    for name in &request.tags {
        if loader.has(&familiar(name), &ids).await {
            continue;
        }
        let request = SaveImageRequest { name: name.clone(), skip_layers: loader.chains().await };
        let mut archive = connection
            .bud()
            .save_image(request)
            .await
            .map_err(told)
            .with_context(|| format!("reading the image for {shown}"))?
            .into_inner();
        let (pieces, queue) = mpsc::channel(8);
        let feeding = async move {
            let mut size = 0_i64;
            while let Some(piece) = archive.message().await.map_err(told)? {
                size = size.saturating_add(i64::try_from(piece.data.len()).unwrap_or(i64::MAX));
                if pieces.send(piece.data).await.is_err() {
                    break;
                }
            }
            anyhow::Ok(size)
        };
        let (fed, loaded) = tokio::join!(feeding, loader.load(queue));
        let failed = || format!("the image is built and kept, but not loaded into {shown}");
        let size = fed.with_context(failed)?;
        loaded.with_context(failed)?;
        if progress.has_reader() {
            let time = seconds_text(now().saturating_sub(began));
            terminal::note(&format!(" {} loaded into {shown} in {time}, {}", progress.style.done(), bytes_text(size)));
        }
    }
    Ok(loader)
}
