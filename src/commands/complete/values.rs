//! The values of flags and arguments: of the Dockerfile at hand, of the file system, of a running daemon.

use super::line::Line;
use super::{Answer, Candidate};
use crate::cli::ConnectArgs;
use crate::connect::{self, Start};
use crate::request::dockerfile::Source;
use bud_protocol::bud::ListImagesRequest;
use clap::{Arg, ValueHint};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Files are offered if no candidate fits.
pub const FILES_IF_NONE: &str = ":files-if-none";
/// A daemon that doesn't answer this soon isn't waited for.
const PATIENCE: Duration = Duration::from_millis(150);
/// At most so many entries of a folder are looked at.
const ENTRIES: usize = 5000;

/// Returns what fits for an argument; `typed` is what is there of it.
pub fn of(arg: &Arg, line: &Line<'_>, typed: &str) -> Answer {
    let only = |candidates| Answer { candidates, paths: None };
    let fixed = |values: &[&str]| only(values.iter().map(|&value| Candidate::new(value, "")).collect());
    match (line.command.get_name(), arg.get_id().as_str()) {
        (_, "target") => only(stages(line)),
        (_, "no_cache_filter") => {
            // The last of a list.
            let done = typed.rfind(',').map_or("", |comma| &typed[..=comma]);
            let stages = stages(line).into_iter();
            only(stages.map(|stage| Candidate::new(format!("{done}{}", stage.text), stage.help)).collect())
        }
        (_, "build_arg") => only(build_args(line, typed)),
        ("bud" | "build", "file") => Answer { candidates: dockerfiles(line, typed), paths: Some(FILES_IF_NONE) },
        ("rmi", "images") => only(images(line)),
        (_, "output") if typed.is_empty() || typed.starts_with("type=") => {
            let kinds = ["image", "registry", "docker", "oci", "local", "tar"];
            let kinds = kinds.iter().map(|kind| Candidate::new(format!("type={kind}"), "")).collect();
            Answer { candidates: kinds, paths: typed.is_empty().then_some(":dirs") }
        }
        (_, "output") => Answer { candidates: Vec::new(), paths: Some(":dirs") },
        (_, "build_context") if typed.contains('=') => Answer { candidates: Vec::new(), paths: Some(":dirs") },
        (_, "allow") => fixed(&["network.host", "security.insecure"]),
        (_, "ssh") => fixed(&["default"]),
        (_, "secret") => fixed(&["id="]),
        _ => hinted(arg),
    }
}

/// What the definition of the argument itself says.
fn hinted(arg: &Arg) -> Answer {
    let possible = arg.get_possible_values();
    if !possible.is_empty() {
        let shown = possible.iter().filter(|value| !value.is_hide_set());
        let candidates = shown.map(|value| {
            let help = value.get_help().map(ToString::to_string).unwrap_or_default();
            Candidate::new(value.get_name(), help)
        });
        return Answer { candidates: candidates.collect(), paths: None };
    }
    let paths = match arg.get_value_hint() {
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::ExecutablePath => Some(":files"),
        ValueHint::DirPath => Some(":dirs"),
        _ => None,
    };
    Answer { candidates: Vec::new(), paths }
}

/// Returns the text of the Dockerfile that the line names, if it is a file of this machine.
fn dockerfile(line: &Line<'_>) -> Option<Vec<u8>> {
    let context = home(line.positionals.last().map_or(".", String::as_str));
    let file = line.value("file").map(home);
    match Source::find(&context, file.as_ref().map(|path| path.to_string_lossy()).as_deref()).ok()? {
        Source::File { text, .. } => Some(text),
        _ => None,
    }
}

/// Follows a leading `~/`, which the shell hasn't done yet.
fn home(path: &str) -> PathBuf {
    match (path.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => Path::new(&home).join(rest),
        _ => path.into(),
    }
}

fn stages(line: &Line<'_>) -> Vec<Candidate> {
    let Some(text) = dockerfile(line) else { return Vec::new() };
    bud_dockerfile::stages(&text).into_iter().map(|name| Candidate::new(name, "")).collect()
}

fn build_args(line: &Line<'_>, typed: &str) -> Vec<Candidate> {
    let Some(text) = dockerfile(line) else { return Vec::new() };
    let args = bud_dockerfile::args(&text).into_iter();
    match typed.split_once('=') {
        None => args.map(|(name, default)| Candidate::new(format!("{name}="), default.unwrap_or_default())).collect(),
        Some((key, _)) => {
            let default = args.filter(|(name, _)| name == key).find_map(|(_, default)| default);
            default.map(|value| Candidate::new(format!("{key}={value}"), "the default")).into_iter().collect()
        }
    }
}

/// Lists the Dockerfiles of the folder that is typed, or of this one and the context, and the folders to go on in.
fn dockerfiles(line: &Line<'_>, typed: &str) -> Vec<Candidate> {
    let folder = typed.rfind('/').map_or("", |slash| &typed[..=slash]);
    let mut found = in_folder(folder);
    if let Some(context) = line.positionals.last().filter(|_| typed.is_empty())
        && !matches!(context.as_str(), "." | "./" | "-")
        && !context.contains("://")
    {
        found.extend(in_folder(&format!("{}/", context.trim_end_matches('/'))));
    }
    found.sort();
    found
}

fn in_folder(folder: &str) -> Vec<Candidate> {
    let path = if folder.is_empty() { PathBuf::from(".") } else { home(folder) };
    let Ok(entries) = std::fs::read_dir(path) else { return Vec::new() };
    let names = entries.take(ENTRIES).flatten().filter(|entry| entry.path().is_file());
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let fitting = names.filter(|name| crate::request::dockerfile::is_dockerfile_name(name));
    fitting.map(|name| Candidate::new(format!("{folder}{name}"), "")).collect()
}

/// Lists the images of a daemon that runs; none is started.
fn images(line: &Line<'_>) -> Vec<Candidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return Vec::new() };
    let given = line.value("buildkit_addr").map(str::to_owned).or_else(|| std::env::var("BUILDKIT_HOST").ok());
    // Other kinds of address run programs.
    if given.as_ref().is_some_and(|given| !given.is_empty() && !given.starts_with("unix:")) {
        return Vec::new();
    }
    let args = ConnectArgs { buildkit_addr: given, ..ConnectArgs::default() };
    let asking = async {
        let connection = connect::connect(&args, &Start::Never).await.ok()?;
        Some(connection.bud().list_images(ListImagesRequest {}).await.ok()?.into_inner().images)
    };
    let found = runtime.block_on(async { tokio::time::timeout(PATIENCE, asking).await });
    runtime.shutdown_background();
    let images = found.ok().flatten().unwrap_or_default().into_iter().map(|image| image.familiar_name);
    images.filter(|name| !line.positionals.contains(name)).map(|name| Candidate::new(name, "")).collect()
}
