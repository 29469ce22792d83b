//! `bud images` and `bud rmi`.

use super::{ago, table, told};
use crate::cli::manage::{ImagesArgs, RmiArgs};
use crate::connect::{self, Start};
use crate::progress::{bytes_text, filter};
use crate::terminal;
use anyhow::{Result, bail};
use bud_protocol::bud::{Image, ListImagesRequest, RemoveImageRequest};
use serde_json::json;
use std::process::ExitCode;

/// Lists the images.
pub async fn list(args: ImagesArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let images = connection.bud().list_images(ListImagesRequest {}).await.map_err(told)?.into_inner().images;
    let text = if args.json {
        let list: Vec<_> = images.iter().map(image_json).collect();
        format!("{}\n", serde_json::to_string_pretty(&list)?)
    } else if args.quiet {
        images.iter().map(|image| format!("{}\n", filter::name(&image.familiar_name))).collect()
    } else {
        let mut rows = vec![["NAME", "ID", "SIZE", "CREATED"].map(str::to_owned).to_vec()];
        rows.extend(images.iter().map(row));
        table(&rows)
    };
    terminal::print(&text)?;
    if images.is_empty() && !args.json && !args.quiet {
        terminal::note("no images yet: `bud -t NAME .` makes one");
    }
    Ok(ExitCode::SUCCESS)
}

fn row(image: &Image) -> Vec<String> {
    let id = image.id.strip_prefix("sha256:").unwrap_or(&image.id);
    vec![
        filter::name(&image.familiar_name),
        // Not known until somebody needs it.
        if id.is_empty() { "-".into() } else { id.chars().take(12).filter(char::is_ascii_hexdigit).collect() },
        if image.size_bytes > 0 { bytes_text(image.size_bytes) } else { "-".into() },
        if image.created_unix > 0 { ago(image.created_unix) } else { "-".into() },
    ]
}

fn image_json(image: &Image) -> serde_json::Value {
    json!({
        "name": image.name,
        "id": image.id,
        "digest": image.digest,
        "created": image.created_unix,
        "size": image.size_bytes,
        "platforms": image.platforms,
    })
}

/// Removes images.
pub async fn remove(args: RmiArgs) -> Result<ExitCode> {
    let connection = connect::connect(&args.connect, &Start::usual()).await?;
    let mut client = connection.bud();
    let mut missing = Vec::new();
    for name in &args.images {
        match client.remove_image(RemoveImageRequest { name: name.clone() }).await {
            Ok(answer) => {
                for removed in answer.into_inner().removed {
                    terminal::print(&format!("removed {}\n", filter::name(&removed)))?;
                }
            }
            Err(status) if status.code() == tonic::Code::NotFound => missing.push(name.as_str()),
            Err(status) => return Err(told(status).context(format!("removing {name}"))),
        }
    }
    if !missing.is_empty() && !args.force {
        bail!("no image is named {}; `bud images` lists them", missing.join(", "));
    }
    Ok(ExitCode::SUCCESS)
}
