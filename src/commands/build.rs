//! `bud build`: from the flags to the image.

mod call;
mod load;
mod signals;
mod summary;

use super::runtime;
use crate::cli::ConnectArgs;
use crate::cli::build::{BuildArgs, ProgressMode};
use crate::cli::daemon::Userns;
use crate::connect::{self, Connection, Spawn, Start, spawn};
use crate::failure;
use crate::output::files;
use crate::progress::{Progress, filter};
use crate::request::BuildRequest;
use crate::solve::exports;
use crate::solve::{self, Failure, attach};
use crate::terminal;
use anyhow::{Context as _, Result, bail};
use bud_protocol::bud::StatusResponse;
use bud_session::{SessionHandle, client, descriptors};
use signals::Signals;
use std::collections::BTreeMap;
use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

/// What is left to do when a signal came is given up after this long.
const FAREWELL: Duration = Duration::from_millis(500);

/// Runs `bud build`.
pub fn run(args: BuildArgs) -> Result<ExitCode> {
    let (connect, userns) = (args.connect.clone(), args.userns);
    if std::env::args_os().len() == 1 {
        use clap::CommandFactory as _;
        terminal::print(&crate::cli::Cli::command().render_help().to_string())?;
        return Ok(ExitCode::SUCCESS);
    }
    let request = BuildRequest::from_args(args)?;
    // A question about the Dockerfile is answered with what is wrong with it.
    if request.call.is_none()
        && let Some(report) = request.dockerfile.check(&request)
        && (report.has_errors() || !request.quiet)
    {
        let colors = terminal::stderr_has_colors();
        for line in report.render(colors).trim_end().lines() {
            // The lines of a Dockerfile are somebody else's text.
            terminal::note(&filter::log_line(line.as_bytes(), colors));
        }
        if report.has_errors() {
            return Ok(ExitCode::FAILURE);
        }
    }
    let runtime = runtime()?;
    let result = runtime.block_on(async {
        let mut signals = Signals::new()?;
        tokio::select! {
            biased;
            code = signals.any() => {
                terminal::note("canceled");
                Ok(ExitCode::from(code))
            }
            result = build(request, connect, userns) => result,
        }
    });
    // Threads that write an output clean it up; one that waits for stdin is left behind.
    runtime.shutdown_timeout(FAREWELL);
    result
}

async fn build(mut request: BuildRequest, connect_args: ConnectArgs, userns: Userns) -> Result<ExitCode> {
    let mode = if request.quiet { ProgressMode::Quiet } else { request.progress };
    let start = Start::IfNeeded(Spawn { userns, announce: mode != ProgressMode::Quiet, ..Spawn::default() });
    let (connection, status) = connect::connect_and_ask(&connect_args, &start).await?;
    if let Some(status) = &status
        && mode != ProgressMode::Quiet
    {
        show_notices(&connection, status);
    }
    let mut plan = match &request.call {
        // A question has an answer and no result.
        Some(_) => exports::Exports::default(),
        None => exports::plan(&request, status.is_some()).await?,
    };
    let shared = attach::share(&mut request)?;
    let attach::Shared { mut attachables, attrs: shared_attrs, dirs, shared_key, .. } = shared;
    attachables.exports = std::mem::take(&mut plan.targets);
    if let Some(root) = &plan.layout {
        attachables.stores.insert("export".to_owned(), client::ContentStore { root: root.clone(), writable: true });
    }
    let session = SessionHandle::open(connection.channel.clone(), attachables, &shared_key)
        .await
        .with_context(|| format!("opening a session with the daemon at {}", connection.address))?;
    if let Some(socket) = status.as_ref().map(|s| s.descriptor_socket.as_str()).filter(|socket| !socket.is_empty()) {
        hand_over(socket, session.id(), &dirs).await;
    }

    let mut attrs = request.attrs.clone();
    attrs.extend(shared_attrs);
    let build_ref = client::new_id().context("cannot name the build")?;
    let mut progress = Progress::new(mode);
    let style = progress.style;
    let result =
        solve::run(&connection, session.id(), &request, plan.exporters.clone(), attrs, &build_ref, &mut progress).await;
    let response = match result {
        Ok(response) => response,
        Err(Failure::Build(error)) => {
            let text = failure::render(&error, &progress.model, style, progress.has_reader() || request.quiet);
            note_raw(&text);
            return Ok(ExitCode::FAILURE);
        }
        Err(Failure::Unseen(error)) => bail!("stopped: the progress can't be written: {error}"),
        Err(Failure::Lost(message)) => bail!(lost(&connection, &message)),
    };
    if let Some(call) = &request.call {
        drop(session);
        return call::print(call, &response);
    }
    if let Some(layout) = &plan.layout {
        crate::output::layout::finish(layout, &response)?;
    }
    let mut unnamed = None;
    if let Some(loading) = plan.loading.take() {
        let shown = loading.loader.shown();
        let loader = loading.loader.clone();
        loading.done().await.with_context(|| format!("the image is built, but not in {shown}"))?;
        unnamed = loader.find(&load::ids(&response)).await;
    }
    if progress.has_reader() {
        note_raw(&failure::warnings(&progress.model, style));
        terminal::note(&summary::built_line(&progress, &request));
    }
    let loaded = match plan.load_after.take() {
        Some(loader) => Some(load::load(&connection, loader, &request, &response, &progress).await?),
        None => None,
    };
    if let Some(path) = &request.metadata_file {
        files::write_metadata(path, &response, &build_ref)?;
    }
    let id = files::image_id(&response);
    if let Some(path) = &request.iidfile {
        files::write_iid(path, id.context("--iidfile: the output is not an image, so there is no ID")?)?;
    }
    if request.quiet {
        if let Some(id) = id {
            terminal::print(&format!("{id}\n"))?;
        }
    } else if progress.has_reader() {
        note_raw(&summary::what_next(&plan, &request, loaded, unnamed.as_deref(), style));
    }
    drop(session);
    Ok(ExitCode::SUCCESS)
}

/// Writes text that ends its lines itself.
fn note_raw(text: &str) {
    if !text.is_empty() {
        // As with every note: that it can't be written is no reason to fail.
        _ = std::io::stderr().lock().write_all(text.as_bytes());
    }
}

/// Shows what a daemon has to say about this machine, once for as long as it stays the same.
fn show_notices(connection: &Connection, status: &StatusResponse) {
    let mode = super::mode_line(status);
    let text = [std::slice::from_ref(&mode), &status.notices].concat().join("\n");
    let seen = connection.root.as_ref().map(|root| root.join("notices-shown"));
    if seen.as_ref().is_some_and(|path| std::fs::read_to_string(path).is_ok_and(|before| before == text)) {
        return;
    }
    terminal::note(&mode);
    for notice in &status.notices {
        terminal::note(&format!("note: {}", filter::plain_text(notice)));
    }
    if let Some(path) = seen {
        // Where it can't be remembered, it is shown again.
        _ = std::fs::write(path, text);
    }
}

/// Hands the directories over to a daemon of this machine. Without that, they go over the wire.
async fn hand_over(socket: &str, session: &str, dirs: &BTreeMap<String, client::LocalDir>) {
    use std::os::fd::AsFd as _;
    let (socket, session, dirs) = (std::path::PathBuf::from(socket), session.to_owned(), dirs.clone());
    let handing = tokio::task::spawn_blocking(move || {
        let list: Vec<_> = dirs.iter().map(|(name, dir)| (name.as_str(), dir.as_fd())).collect();
        descriptors::hand_over(&socket, &session, &list)
    });
    if !matches!(handing.await, Ok(Ok(()))) && std::env::var_os("BUD_DEBUG").is_some() {
        terminal::note("directories go over the wire");
    }
}

fn lost(connection: &Connection, message: &str) -> String {
    let mut text = format!("the daemon at {} is gone in the middle of the build", connection.address);
    // Which the library says of every broken connection.
    if message != "transport error" {
        text.push_str(&format!(" ({message})"));
    }
    if let Some(log) = &connection.log {
        text.push_str(&format!("\nits log is {}{}", log.display(), spawn::last_lines(log)));
    }
    text
}
