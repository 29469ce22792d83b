//! Loading the image that the daemon keeps into Docker or Podman.

use super::summary::familiar;
use crate::commands::told;
use crate::connect::Connection;
use crate::output::load::Loader;
use crate::progress::{Progress, bytes_text, now, seconds_text};
use crate::request::BuildRequest;
use crate::terminal;
use anyhow::{Context as _, Result, ensure};
use bud_image::ImageRef;
use bud_protocol::bud::SaveImageRequest;
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// What was sent of an image.
struct Sent {
    bytes: i64,
    layers: u32,
    left_out: u32,
}

/// Returns what an image may be called where it is loaded.
pub fn ids(response: &BTreeMap<String, String>) -> Vec<&str> {
    let keys = ["containerimage.config.digest", "containerimage.digest"];
    keys.iter().filter_map(|key| response.get(*key).map(String::as_str)).collect()
}

/// Loads the daemon's image into Docker or Podman, unless it is there.
pub async fn load(
    connection: &Connection,
    loader: Loader,
    request: &BuildRequest,
    response: &BTreeMap<String, String>,
    progress: &Progress,
) -> Result<Loader> {
    let shown = loader.shown();
    let ids = ids(response);
    let say = |what: &str| {
        if progress.has_reader() {
            terminal::note(&format!(" {} {what}", progress.style.done()));
        }
    };
    let mut present = Vec::new();
    for text in &request.tags {
        let began = now();
        let name = ImageRef::parse(text).with_context(|| format!("the name {text:?}"))?.or_latest();
        if loader.has(&name, &ids).await {
            present.push(familiar(text));
            continue;
        }
        if loader.tag(&ids, &name).await {
            say(&format!("named {} in {shown}, which has the image", familiar(text)));
            continue;
        }
        let sent = send(connection, &loader, &name, &ids)
            .await
            .with_context(|| format!("the image is built and kept, but not loaded into {shown}"))?;
        let time = seconds_text(now().saturating_sub(began));
        let there = match (sent.left_out, sent.layers) {
            (0, _) => String::new(),
            (left_out, layers) if left_out == layers => " (it has all the layers)".to_owned(),
            (left_out, layers) => {
                format!(" ({} of {layers} layers; it has the rest)", layers.saturating_sub(left_out))
            }
        };
        say(&format!("loaded into {shown} in {time}, {}{there}", bytes_text(sent.bytes)));
    }
    if !present.is_empty() {
        say(&format!("{shown} has {} as it is", present.join(", ")));
    }
    Ok(loader)
}

/// Sends what is missing, and all of it if that wasn't enough: between the question and the answer a layer may be removed there.
async fn send(connection: &Connection, loader: &Loader, name: &ImageRef, ids: &[&str]) -> Result<Sent> {
    let shown = loader.shown();
    let skip = loader.chains().await;
    let parts = !skip.is_empty();
    let first = send_once(connection, loader, name, skip).await;
    let sent = match first {
        Ok(sent) if sent.left_out == 0 || loader.has(name, ids).await => sent,
        Err(error) if !parts => return Err(error),
        Ok(_) | Err(_) => send_once(connection, loader, name, Vec::new()).await?,
    };
    ensure!(
        loader.has(name, ids).await,
        "{shown} took the image, but has none with its ID under the name {}; is it removed or replaced there by somebody else?",
        name.familiar()
    );
    Ok(sent)
}

async fn send_once(connection: &Connection, loader: &Loader, name: &ImageRef, skip: Vec<String>) -> Result<Sent> {
    let request = SaveImageRequest { name: name.to_string(), skip_layers: skip };
    let mut archive = connection
        .bud()
        .save_image(request)
        .await
        .map_err(told)
        .with_context(|| format!("reading the image for {}", loader.shown()))?
        .into_inner();
    let (pieces, queue) = mpsc::channel(8);
    let feeding = async move {
        let mut sent = Sent { bytes: 0, layers: 0, left_out: 0 };
        while let Some(piece) = archive.message().await.map_err(told)? {
            sent.layers = sent.layers.max(piece.layers);
            sent.left_out = sent.left_out.max(piece.left_out);
            sent.bytes = sent.bytes.saturating_add(i64::try_from(piece.data.len()).unwrap_or(i64::MAX));
            if !piece.data.is_empty() && pieces.send(piece.data).await.is_err() {
                break;
            }
        }
        anyhow::Ok(sent)
    };
    let (sent, loaded) = tokio::join!(feeding, loader.load(queue));
    let sent = sent?;
    loaded?;
    Ok(sent)
}
