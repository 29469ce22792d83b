//! What a build is asked to make, and where it goes on this side.

use crate::output::load::{self, Loader, Loading};
use crate::output::spec::{Dest, Output};
use crate::request::BuildRequest;
use anyhow::{Context as _, Result, ensure};
use bud_protocol::control::Exporter;
use bud_session::client::{ExportTarget, FileTarget, Stdout, TarFile};
use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Tells our daemon that nobody needs the digests of an image now.
const LAZY: (&str, &str) = ("bud.digests", "lazy");

/// The exports of a build.
#[derive(Default)]
pub struct Exports {
    /// For the daemon.
    pub exporters: Vec<Exporter>,
    /// For the session, by index.
    pub targets: BTreeMap<u32, ExportTarget>,
    /// The directory that becomes an image layout.
    pub layout: Option<PathBuf>,
    /// Images on their way into Docker or Podman.
    pub loading: Option<Loading>,
    /// The daemon's image is to be loaded afterwards.
    pub load_after: Option<Loader>,
    /// Who gets an image that is exported for loading.
    pub loader: Option<Loader>,
    /// The image is kept by the daemon, under its names.
    pub kept: bool,
    /// What was asked for, to be told at the end.
    pub outputs: Vec<Output>,
}

/// Decides what is exported. `ours`: the daemon keeps images and hands them over.
///
/// # Errors
/// What was asked for can't be: a terminal would get a tar, there is nothing to load into.
pub async fn plan(request: &BuildRequest, ours: bool) -> Result<Exports> {
    let mut outputs = request.outputs.clone();
    let explicit = request.load == Some(true) || outputs.iter().any(|o| o.dest == Dest::Load);
    let wanted = explicit || (request.load.is_none() && outputs.is_empty());
    let loader = if wanted { load::find().await? } else { None };
    ensure!(
        !explicit || loader.is_some(),
        "there is no Docker or Podman to load the image into; leave --load out, or write it to a file: -o type=docker,dest=image.tar"
    );
    let needs_digest = request.quiet || request.iidfile.is_some() || request.metadata_file.is_some();
    let mut load_after = None;
    let mut kept = false;
    let named = BTreeMap::from([("name".to_owned(), request.tags.join(","))]);
    let names = if request.tags.is_empty() { BTreeMap::new() } else { named };
    let docker =
        |names: &BTreeMap<String, String>| Output { kind: "docker".into(), attrs: names.clone(), dest: Dest::Load };
    if outputs.is_empty() {
        match loader.clone() {
            Some(loader) if ours && !request.tags.is_empty() => load_after = Some(loader),
            Some(_) => outputs.push(docker(&names)),
            None => {}
        }
        if ours || outputs.is_empty() {
            let mut attrs = names;
            if ours && !needs_digest && load_after.is_none() {
                attrs.insert(LAZY.0.into(), LAZY.1.into());
            }
            kept = ours;
            outputs.insert(0, Output { kind: "image".into(), attrs, dest: Dest::Daemon });
        }
    } else if request.load == Some(true) && !outputs.iter().any(|o| o.dest == Dest::Load) {
        outputs.push(docker(&names));
    }

    let mut targets = BTreeMap::new();
    let mut loading = None;
    let mut layout = None;
    for (index, output) in outputs.iter().enumerate() {
        let index = u32::try_from(index).context("too many outputs")?;
        let file = |target: Arc<dyn FileTarget>| ExportTarget::File(target);
        let target = match &output.dest {
            Dest::Daemon => continue,
            Dest::Stdout => {
                ensure!(
                    !std::io::stdout().is_terminal(),
                    "a tar is not for a terminal: send it to a file (… > out.tar) or name one with dest=…"
                );
                file(Arc::new(Stdout))
            }
            Dest::File(path) => {
                let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
                if let Some(parent) = parent {
                    ensure!(parent.is_dir(), "--output: the folder {} does not exist", parent.display());
                }
                ensure!(!path.is_dir(), "--output: {} is a folder; a {} output is a file", path.display(), output.kind);
                file(Arc::new(TarFile(path.clone())))
            }
            Dest::Dir { path, mirror } => {
                ensure!(
                    path.is_dir() || !path.exists(),
                    "--output: {} is not a folder, which the result is",
                    path.display()
                );
                ExportTarget::Directory { path: path.clone(), delete: *mirror }
            }
            Dest::Layout(path) => {
                ensure!(
                    path.is_dir() || !path.exists(),
                    "--output: {} is not a folder, which a layout is",
                    path.display()
                );
                std::fs::create_dir_all(path)
                    .with_context(|| format!("--output: cannot make the folder {}", path.display()))?;
                layout = Some(path.clone());
                continue;
            }
            Dest::Load => {
                let loader = loader.clone().context("there is nothing to load into")?;
                let (target, waiting) = load::target(loader);
                ensure!(loading.is_none(), "only one output can be loaded");
                loading = Some(waiting);
                file(target)
            }
        };
        targets.insert(index, target);
    }
    let exporters = outputs.iter().map(|o| Exporter { r#type: o.kind.clone(), attrs: o.attrs.clone() }).collect();
    let loader = loader.filter(|_| loading.is_some());
    Ok(Exports { exporters, targets, layout, loading, load_after, loader, kept, outputs })
}
