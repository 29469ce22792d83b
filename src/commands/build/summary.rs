//! What is said at a build's end: what was made, and what to type next.

use crate::commands::table;
use crate::output::load::Loader;
use crate::output::spec::{Dest, Output};
use crate::progress::{Progress, Style, now, seconds_text};
use crate::request::BuildRequest;
use crate::solve::exports::Exports;

/// Says what was built, how long it took and how much of it was cached.
pub fn built_line(progress: &Progress, request: &BuildRequest) -> String {
    let (all, _, cached) = progress.model.counts();
    let time = seconds_text(now().saturating_sub(progress.began));
    let steps = match (all, cached) {
        (0, _) => String::new(),
        (1, 1) => ", 1 step, cached".into(),
        (all, cached) if all == cached => format!(", all {all} steps cached"),
        (1, _) => ", 1 step".into(),
        (all, 0) => format!(", {all} steps"),
        (all, cached) => format!(", {all} steps, {cached} cached"),
    };
    let what = match request.tags.first() {
        Some(tag) => format!("built {}", familiar(tag)),
        None => "built".into(),
    };
    format!(" {} {what} in {time}{steps}", progress.style.done())
}

/// Returns a name as people type it: without the default registry, and without the default tag.
pub fn familiar(name: &str) -> String {
    let familiar = bud_image::ImageRef::parse(name).map_or_else(|_| name.to_owned(), |reference| reference.familiar());
    familiar.strip_suffix(":latest").map_or(familiar.clone(), str::to_owned)
}

/// Says what was made and what to type next. `unnamed`: the ID of an image that was loaded without a name.
pub fn what_next(
    plan: &Exports,
    request: &BuildRequest,
    loaded: Option<Loader>,
    unnamed: Option<&str>,
    style: Style,
) -> String {
    let mut out = String::new();
    let mut say = |line: String| {
        out.push_str("   ");
        out.push_str(&line);
        out.push('\n');
    };
    let name = request.tags.first().map(|tag| familiar(tag));
    for output in &plan.outputs {
        match (&output.dest, output) {
            (Dest::Dir { path, .. }, _) => say(format!("files are in {}", path.display())),
            (Dest::Layout(path), _) => say(format!("image layout: {}", path.display())),
            (Dest::File(path), Output { kind, .. }) => say(format!("{kind} archive: {}", path.display())),
            (Dest::Daemon, Output { attrs, .. }) if attrs.get("push").is_some_and(|push| push == "true") => {
                for name in attrs.get("name").map(|names| names.split(',')).into_iter().flatten() {
                    say(format!("pushed {}", familiar(name)));
                }
            }
            _ => {}
        }
    }
    let loader = loaded.or_else(|| plan.loader.clone());
    match (loader, name) {
        (Some(loader), Some(name)) => say(format!("run it:  {} run --rm {name}", loader.command())),
        (Some(loader), None) => {
            say(format!("it is in {}, without a name (-t gives it one)", loader.shown()));
            if let Some(id) = unnamed {
                let short: String = id.trim_start_matches("sha256:").chars().take(12).collect();
                say(format!("run it:  {} run --rm {short}", loader.command()));
            }
        }
        (None, Some(name)) if plan.kept => {
            say("the image is in bud's store; from here:".into());
            let rows = [
                [format!("FROM {name}"), "in a Dockerfile builds on it".into()],
                [format!("bud -t {name} -o type=docker,dest=image.tar …"), "saves it for docker load".into()],
                [format!("bud -t REGISTRY/{name} --push …"), "pushes it".into()],
            ];
            for line in table(&rows.map(|row| row.to_vec())).lines() {
                say(style.faint(&format!("  {line}")));
            }
        }
        (None, _) if !plan.kept && request.outputs.is_empty() => {
            say("this BuildKit keeps no images; take it out with --push, or -o type=docker,dest=image.tar".into());
        }
        (None, None) if plan.kept => say(style.faint("it has no name: -t NAME keeps it, -o FOLDER writes its files")),
        _ => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_people_type_them() {
        assert_eq!(familiar("docker.io/library/foo:latest"), "foo");
        assert_eq!(familiar("ghcr.io/me/foo:1"), "ghcr.io/me/foo:1");
        assert_eq!(familiar("localhost:5000/foo:latest"), "localhost:5000/foo");
    }
}
