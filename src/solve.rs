//! One build against a daemon: the session that serves it, the request, its progress, its answer.

pub mod attach;
mod bridge;
pub mod exports;

use crate::connect::{Connection, MESSAGE_LIMIT};
use crate::progress::Progress;
use crate::request::{BuildRequest, CacheEntry};
use bud_protocol::control::{CacheOptions, CacheOptionsEntry, Exporter, SolveRequest, StatusRequest, StatusResponse};
use bud_protocol::errors::BuildError;
use bud_protocol::gateway::llb_bridge_client::LlbBridgeClient;
use std::collections::BTreeMap;
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::Status;

/// After the build's answer, its progress is waited for this long.
const STATUS_GRACE: Duration = Duration::from_secs(3);
/// After an error, which may have come before there was any progress, it is waited for this long.
const ERROR_GRACE: Duration = Duration::from_millis(500);
/// Elapsed times move this often.
const TICK: Duration = Duration::from_millis(100);

/// Why a build has no result.
#[derive(Debug)]
pub enum Failure {
    /// It failed.
    Build(Box<BuildError>),
    /// The connection to the daemon broke.
    Lost(String),
    /// Its progress can't be written.
    Unseen(std::io::Error),
}

/// Runs a build and shows it.
///
/// # Errors
/// It failed, or the daemon is gone.
pub async fn run(
    connection: &Connection,
    session: &str,
    request: &BuildRequest,
    exporters: Vec<Exporter>,
    attrs: BTreeMap<String, String>,
    build_ref: &str,
    progress: &mut Progress,
) -> Result<BTreeMap<String, String>, Failure> {
    let (events, mut inbox) = mpsc::channel(64);
    let watching = tokio::spawn(watch(connection.clone(), build_ref.to_owned(), events));
    // Asked for first, the progress can't miss a build that is done at once.
    tokio::task::yield_now().await;
    let solving = solve(connection, session, request, exporters, attrs, build_ref);
    tokio::pin!(solving);
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let live = progress.is_live();
    let mut answer = None;
    let mut watched = false;
    let grace = tokio::time::sleep(Duration::MAX);
    tokio::pin!(grace);
    while answer.is_none() || !watched {
        tokio::select! {
            result = &mut solving, if answer.is_none() => {
                let patience = if result.is_ok() { STATUS_GRACE } else { ERROR_GRACE };
                answer = Some(result);
                grace.as_mut().reset(tokio::time::Instant::now() + patience);
            }
            event = inbox.recv(), if !watched => match event {
                Some(event) => progress.update(&event).map_err(Failure::Unseen)?,
                None => watched = true,
            },
            _ = ticks.tick(), if live => progress.tick(),
            () = &mut grace, if answer.is_some() => break,
        }
    }
    watching.abort();
    progress.finish();
    // The loop ends with an answer only.
    let answer = answer.unwrap_or_else(|| Err(Status::internal("the build ended without an answer")));
    answer.map_err(|status| failure(&status))
}

/// Tells a lost connection from a build that failed.
pub fn failure(status: &Status) -> Failure {
    // What the daemon answers has no cause on this side; what broke on the way has.
    let broken = std::error::Error::source(status).is_some();
    if broken || status.code() == tonic::Code::Unavailable {
        Failure::Lost(status.message().to_owned())
    } else {
        Failure::Build(Box::new(BuildError::from_status(status)))
    }
}

/// Follows a build's progress. Its end, of whatever kind, is the end of the channel: the build's answer tells errors.
async fn watch(connection: Connection, build_ref: String, events: mpsc::Sender<StatusResponse>) {
    let Ok(answer) = connection.control().status(StatusRequest { r#ref: build_ref }).await else { return };
    let mut stream = answer.into_inner();
    while let Ok(Some(event)) = stream.message().await {
        if events.send(event).await.is_err() {
            return;
        }
    }
}

async fn solve(
    connection: &Connection,
    session: &str,
    request: &BuildRequest,
    exporters: Vec<Exporter>,
    attrs: BTreeMap<String, String>,
    build_ref: &str,
) -> Result<BTreeMap<String, String>, Status> {
    let first = exporters.first().cloned().unwrap_or_default();
    let mut solve = SolveRequest {
        r#ref: build_ref.to_owned(),
        exporter_deprecated: first.r#type,
        exporter_attrs_deprecated: first.attrs,
        exporters,
        session: session.to_owned(),
        cache: Some(CacheOptions {
            exports: request.cache_exports.iter().map(cache_entry).collect(),
            imports: request.cache_imports.iter().map(cache_entry).collect(),
            ..Default::default()
        }),
        entitlements: request.entitlements.clone(),
        ..Default::default()
    };
    if !request.clientside_frontend {
        solve.frontend = "dockerfile.v0".into();
        solve.frontend_attrs = attrs;
        return Ok(connection.control().solve(solve).await?.into_inner().exporter_response);
    }
    // The epoch is the exporters' as well; a daemon that doesn't see the front end's options can't know it.
    if let Some(epoch) = attrs.get("build-arg:SOURCE_DATE_EPOCH") {
        for exporter in &mut solve.exporters {
            exporter.attrs.entry("source-date-epoch".into()).or_insert_with(|| epoch.clone());
        }
        solve.exporter_attrs_deprecated.entry("source-date-epoch".into()).or_insert_with(|| epoch.clone());
    }
    let client = LlbBridgeClient::new(connection.channel.clone())
        .max_decoding_message_size(MESSAGE_LIMIT)
        .max_encoding_message_size(MESSAGE_LIMIT);
    let bridge = bridge::Bridge::new(client, build_ref)?;
    let mut control = connection.control();
    let solving = control.solve(solve);
    let front = bridge::run(bridge, session, attrs);
    tokio::pin!(solving);
    tokio::pin!(front);
    let (answer, told) = tokio::select! {
        answer = &mut solving => {
            let answer = answer?;
            // The build is done as soon as the daemon has the front end's result; a question's answer is in that alone.
            let told = if request.call.is_some() { front.await? } else { BTreeMap::new() };
            (answer, told)
        }
        front = &mut front => {
            // What the front end returned, an error too, is the build's answer.
            let returned = front;
            let answer = solving.await?;
            (answer, returned?)
        }
    };
    let mut response: BTreeMap<String, String> = answer.into_inner().exporter_response.into_iter().collect();
    if request.call.is_some() {
        response.extend(told.into_iter().map(|(key, value)| (key, String::from_utf8_lossy(&value).into_owned())));
    }
    Ok(response)
}

fn cache_entry(entry: &CacheEntry) -> CacheOptionsEntry {
    CacheOptionsEntry { r#type: entry.kind.clone(), attrs: entry.attrs.clone() }
}
