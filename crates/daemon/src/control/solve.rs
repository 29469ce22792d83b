//! A build from its request to its answer.

use crate::build::{Build, Entitlements, Request};
use crate::daemon::Daemon;
use crate::exporter::{self, ExportCx, ExportTree, Exportable, Exporter};
use crate::frontend;
use crate::gateway::{Bridge, BuildResult};
use crate::progress::Progress;
use crate::solver::Solver;
use crate::value::{Stop, Value, blocking, file_error};
use bud_image::{ImageConfig, Platform};
use bud_protocol::control::{SolveRequest, SolveResponse};
use bud_protocol::errors::BuildError;
use futures_util::future::try_join_all;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;
use tokio_util::sync::CancellationToken;

/// How long a front end that runs at the client may take to its first call; they call at once.
const FRONTEND_WAIT: std::time::Duration = std::time::Duration::from_secs(8);
/// At most so many exporters has a request.
const MAX_EXPORTERS: usize = 64;

type Response = BTreeMap<String, String>;

/// An exporter of a request.
struct Asked {
    exporter: Exporter,
    kind: String,
    attrs: BTreeMap<String, String>,
}

/// Runs a build.
///
/// # Errors
/// The request is wrong, a step fails, or the client is gone.
pub async fn solve(daemon: &Arc<Daemon>, request: SolveRequest) -> Result<SolveResponse, BuildError> {
    let exporters = parse_exporters(&request)?;
    check_caches(&request)?;
    if request.source_policy.as_ref().is_some_and(|p| !p.rules.is_empty()) || !request.source_policy_session.is_empty()
    {
        return Err(BuildError::new(tonic::Code::Unimplemented, "source policies are not supported by this daemon"));
    }
    if request.r#ref.is_empty() {
        return Err(BuildError::invalid("a build needs a ref"));
    }
    if request.frontend.is_empty() && request.definition.as_ref().is_some_and(|d| d.def.is_empty()) {
        return Err(BuildError::invalid("invalid LLB with 0 vertexes: the definition is empty"));
    }
    let entitlements = Entitlements::grant(&request.entitlements, &daemon.settings.entitlements)?;
    let build = Arc::new(Build {
        id: request.r#ref.clone(),
        member: daemon.builds.next_member(),
        daemon: Arc::clone(daemon),
        session: request.session.clone(),
        progress: Progress::new(daemon.history.log_file(&request.r#ref)),
        cancel: CancellationToken::new(),
        entitlements,
        solver: Solver::default(),
        bridge: Bridge::default(),
        internal: request.internal,
        created: SystemTime::now(),
        request: Request {
            frontend: request.frontend.clone(),
            attrs: request.frontend_attrs.clone().into_iter().collect(),
            exporters: exporters.iter().map(|e| (e.kind.clone(), e.attrs.clone())).collect(),
        },
        said: std::sync::Mutex::default(),
    });
    let inputs: BTreeMap<_, _> = request.frontend_inputs.clone().into_iter().collect();
    *build.bridge.inputs.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = inputs;
    // Awaited from the moment on in which the build can be seen: a front end's first call may be here already.
    let returned = (request.definition.is_none() && request.frontend.is_empty()).then(|| build.bridge.open());
    daemon.builds.add(&build)?;
    let ending = Ending { build: Arc::clone(&build), outcome: None };
    let _busy = daemon.life.busy();
    if !build.internal {
        daemon.history.started(&build);
    }
    let outcome = run(&build, &request, returned, &exporters).await;
    ending.end(outcome)
}

/// Ends the build whatever happens, also if the client's call is dropped.
struct Ending {
    build: Arc<Build>,
    outcome: Option<Result<Response, BuildError>>,
}

impl Ending {
    fn end(mut self, outcome: Result<Response, BuildError>) -> Result<SolveResponse, BuildError> {
        self.outcome = Some(outcome.clone());
        drop(self);
        Ok(SolveResponse { exporter_response: outcome?.into_iter().collect() })
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let build = &self.build;
        build.cancel.cancel();
        build.progress.close();
        if build.internal {
            build.progress.discard();
        } else {
            let outcome = self.outcome.take().unwrap_or_else(|| Err(BuildError::canceled()));
            build.daemon.history.completed(build, &outcome);
            build.daemon.life.count_finished();
        }
        build.daemon.builds.remove(&build.id);
    }
}

async fn run(
    build: &Arc<Build>,
    request: &SolveRequest,
    returned: Option<tokio::sync::oneshot::Receiver<Result<BuildResult, BuildError>>>,
    exporters: &[Asked],
) -> Result<Response, BuildError> {
    if request.cache.as_ref().is_some_and(|c| !c.imports.is_empty()) {
        build.say_once("cache imports are not supported yet: building without them");
    }
    if request.cache.as_ref().is_some_and(|c| c.exports.iter().any(exports_unmade)) {
        build.say_once("cache exports other than inline are not supported yet: building without them");
    }
    let work = async {
        let result = match returned {
            Some(returned) => {
                let returned = tokio::select! {
                    returned = returned => returned,
                    () = build.bridge.nobody_calls(FRONTEND_WAIT) => {
                        return Err(BuildError::invalid(
                            "neither a definition nor a front end was given, and no front end of the client's has come",
                        ));
                    }
                };
                match returned {
                    Ok(result) => result?,
                    Err(_) => return Err(BuildError::canceled()),
                }
            }
            None => {
                frontend::solve(
                    build,
                    &frontend::Request {
                        definition: request.definition.clone(),
                        frontend: request.frontend.clone(),
                        opts: request.frontend_attrs.clone().into_iter().collect(),
                        inputs: request.frontend_inputs.clone().into_iter().collect(),
                        depth: 0,
                    },
                )
                .await?
            }
        };
        let mut response = export(build, exporters, &result).await?;
        for (key, value) in &result.metadata {
            if key.starts_with("frontend.") {
                response.insert(key.clone(), String::from_utf8_lossy(value).into_owned());
            }
        }
        Ok(response)
    };
    tokio::select! {
        outcome = work => outcome,
        () = gone(build) => Err(BuildError::canceled()),
        () = build.daemon.life.stopped() => Err(BuildError::new(tonic::Code::Unavailable, "the daemon is stopping")),
    }
}

/// Ends when the build's client is gone: its session ended after it was there.
async fn gone(build: &Build) {
    if build.session.is_empty() {
        return std::future::pending().await;
    }
    match build.daemon.sessions.get(&build.session, crate::sessions::WAIT).await {
        Ok(session) => session.ended().await,
        Err(_) => std::future::pending().await,
    }
}

fn parse_exporters(request: &SolveRequest) -> Result<Vec<Asked>, BuildError> {
    let mut asked: Vec<(String, BTreeMap<String, String>)> =
        request.exporters.iter().map(|e| (e.r#type.clone(), e.attrs.clone().into_iter().collect())).collect();
    if asked.is_empty() && !request.exporter_deprecated.is_empty() {
        asked.push((
            request.exporter_deprecated.clone(),
            request.exporter_attrs_deprecated.clone().into_iter().collect(),
        ));
    }
    if asked.len() > MAX_EXPORTERS {
        return Err(BuildError::invalid(format!("{} exporters are more than {MAX_EXPORTERS}", asked.len())));
    }
    if let Some(epoch) = request.frontend_attrs.get("build-arg:SOURCE_DATE_EPOCH") {
        for (_, attrs) in &mut asked {
            attrs.entry("source-date-epoch".into()).or_insert_with(|| epoch.clone());
        }
    }
    asked
        .into_iter()
        .map(|(kind, attrs)| Ok(Asked { exporter: exporter::parse(&kind, &attrs)?, kind, attrs }))
        .collect()
}

fn check_caches(request: &SolveRequest) -> Result<(), BuildError> {
    let Some(cache) = &request.cache else { return Ok(()) };
    for entry in &cache.imports {
        check_cache_type(&entry.r#type)?;
    }
    for entry in &cache.exports {
        check_cache_type(&entry.r#type)?;
        match entry.r#type.as_str() {
            "inline" => {}
            // The client says that its build is worth more to it than the cache.
            _ if exports_unmade(entry) => {}
            "registry" | "local" | "gha" | "s3" | "azblob" => {
                return Err(BuildError::new(
                    tonic::Code::Unimplemented,
                    format!("cache export of type {:?} is not supported by this daemon yet", entry.r#type),
                ));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Tells of a cache export that this daemon can't make and may leave out.
fn exports_unmade(entry: &bud_protocol::control::CacheOptionsEntry) -> bool {
    let may_fail = entry.attrs.get("ignore-error").is_some_and(|v| matches!(v.as_str(), "true" | "1"));
    may_fail && entry.r#type != "inline"
}

fn check_cache_type(kind: &str) -> Result<(), BuildError> {
    match kind {
        "inline" | "registry" | "local" | "gha" | "s3" | "azblob" => Ok(()),
        other => Err(BuildError::invalid(format!("unknown cache type {other:?}"))),
    }
}

/// Makes the files of a result and hands them to the exporters.
async fn export(build: &Arc<Build>, exporters: &[Asked], result: &BuildResult) -> Result<Response, BuildError> {
    // Without an exporter the result is made all the same.
    let values = try_join_all(result.refs.iter().map(|(_, reference)| build.files(reference))).await?;
    if exporters.is_empty() {
        return Ok(Response::new());
    }
    let exportable = Arc::new(exportable(build, result, values).await?);
    let exports = exporters.iter().enumerate().map(|(number, Asked { exporter, .. })| {
        let exportable = Arc::clone(&exportable);
        async move {
            let id = format!("{}-export-{number}", build.session);
            let progress = build.progress.virtual_vertex(&id, exporter.name());
            progress.started();
            let cx = ExportCx {
                daemon: Arc::clone(&build.daemon),
                sessions: build.sessions(),
                session: build.session.clone(),
                index: u32::try_from(number).unwrap_or(0),
                progress: progress.clone(),
                cancel: build.cancel.clone(),
                now: SystemTime::now(),
            };
            let response = exporter.export(&cx, &exportable).await;
            progress.ended(&response);
            response
        }
    });
    let mut response = Response::new();
    for one in try_join_all(exports).await? {
        response.extend(one);
    }
    Ok(response)
}

async fn exportable(build: &Arc<Build>, result: &BuildResult, values: Vec<Value>) -> Result<Exportable, BuildError> {
    let platforms = platforms(&result.metadata)?;
    let mut trees = Vec::with_capacity(values.len());
    for ((id, _), value) in result.refs.iter().zip(values) {
        let config = config(&result.metadata, "containerimage.config", id, result.multi)?;
        let base_config = config_of(&result.metadata, "containerimage.base.config", id, result.multi);
        let platform = platforms
            .get(id)
            .or_else(|| platforms.values().next().filter(|_| platforms.len() == 1))
            .cloned()
            .or_else(|| config.as_ref().map(config_platform))
            .unwrap_or_else(|| build.daemon.settings.platform());
        let (store, cancel) = (Arc::clone(&build.daemon.store), build.cancel.clone());
        let (snapshot, pin) = blocking(move || value.snapshot(&store, &Stop(&cancel)).map_err(file_error)).await?;
        trees.push(ExportTree { id: id.clone(), platform, snapshot, pin, config, base_config });
    }
    Ok(Exportable { trees, multi_platform: result.multi, metadata: result.metadata.clone() })
}

fn config_platform(config: &ImageConfig) -> Platform {
    Platform {
        architecture: config.architecture.clone(),
        os: config.os.clone(),
        variant: config.variant.clone(),
        ..Platform::host()
    }
    .normalize()
}

fn raw<'a>(metadata: &'a BTreeMap<String, Vec<u8>>, key: &str, id: &str, multi: bool) -> Option<&'a Vec<u8>> {
    if multi && let Some(found) = metadata.get(&format!("{key}/{id}")) {
        return Some(found);
    }
    metadata.get(key)
}

fn config(
    metadata: &BTreeMap<String, Vec<u8>>,
    key: &str,
    id: &str,
    multi: bool,
) -> Result<Option<ImageConfig>, BuildError> {
    raw(metadata, key, id, multi)
        .map(|bytes| {
            serde_json::from_slice(bytes).map_err(|e| BuildError::invalid(format!("result metadata {key}: {e}")))
        })
        .transpose()
}

fn config_of(metadata: &BTreeMap<String, Vec<u8>>, key: &str, id: &str, multi: bool) -> Option<ImageConfig> {
    raw(metadata, key, id, multi).and_then(|bytes| serde_json::from_slice(bytes).ok())
}

/// Reads `refs.platforms`.
fn platforms(metadata: &BTreeMap<String, Vec<u8>>) -> Result<BTreeMap<String, Platform>, BuildError> {
    #[derive(serde::Deserialize)]
    struct List {
        #[serde(rename = "Platforms", default)]
        platforms: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(rename = "ID")]
        id: String,
        #[serde(rename = "Platform")]
        platform: Platform,
    }
    let Some(bytes) = metadata.get("refs.platforms") else { return Ok(BTreeMap::new()) };
    let list: List = serde_json::from_slice(bytes)
        .map_err(|e| BuildError::invalid(format!("result metadata refs.platforms: {e}")))?;
    Ok(list.platforms.into_iter().map(|e| (e.id, e.platform)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bud_protocol::control::{CacheOptions, CacheOptionsEntry};

    #[test]
    fn a_cache_export_that_can_not_be_made_is_an_error_unless_it_may_fail() {
        let export = |kind: &str, attrs: &[(&str, &str)]| {
            let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            let exports = vec![CacheOptionsEntry { r#type: kind.into(), attrs }];
            let cache = Some(CacheOptions { exports, ..CacheOptions::default() });
            check_caches(&SolveRequest { cache, ..SolveRequest::default() })
        };
        assert!(export("inline", &[]).is_ok());
        assert_eq!(export("registry", &[]).unwrap_err().code, tonic::Code::Unimplemented);
        assert!(export("registry", &[("ignore-error", "true")]).is_ok());
        assert!(export("local", &[("ignore-error", "false")]).is_err());
        assert!(export("nonsense", &[("ignore-error", "true")]).is_err());
    }
}
