//! The control API: builds, their progress, sessions, disk usage, history.

pub mod caps;
pub mod content;
pub mod health;
pub mod solve;
pub mod trace;
pub mod workers;

use crate::daemon::Daemon;
use crate::history;
use crate::progress::EventLog;
use bud_protocol::control::control_server::Control;
use bud_protocol::control::*;
use bud_protocol::errors::BuildError;
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// How long `Status` waits for its build to appear.
const STATUS_WAIT: Duration = Duration::from_secs(6);
/// Messages that wait for a reader.
const QUEUE: usize = 4;
/// Initial metadata of streams: our clock.
const CLOCK: &str = "buildkit-current-timestamp";

/// The service.
#[derive(Clone, Debug)]
pub struct ControlService {
    /// The daemon.
    pub daemon: Arc<Daemon>,
}

type Messages<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Answers with a stream that is fed by a task, which ends when the client goes.
fn stream<T: Send + 'static, F>(feed: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> F) -> Response<Messages<T>>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (sender, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(feed(sender));
    respond(ReceiverStream::new(receiver))
}

/// Answers with a stream, and our clock.
fn respond<T: Send + 'static>(
    messages: impl Stream<Item = Result<T, Status>> + Send + 'static,
) -> Response<Messages<T>> {
    let mut response = Response::new(Box::pin(messages) as Messages<T>);
    let now = jiff::Timestamp::try_from(SystemTime::now()).unwrap_or_default().to_string();
    if let Ok(now) = now.parse() {
        response.metadata_mut().insert(CLOCK, now);
    }
    response
}

#[tonic::async_trait]
impl Control for ControlService {
    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let response = solve::solve(&self.daemon, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    type StatusStream = Messages<StatusResponse>;

    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<Self::StatusStream>, Status> {
        let id = request.into_inner().r#ref;
        let daemon = Arc::clone(&self.daemon);
        if daemon.builds.get(&id).is_none()
            && let Some(record) = daemon.history.get(&id)?
        {
            return Ok(stream(|sender| replay(daemon, record, sender)));
        }
        let progress = daemon.builds.progress(&id, STATUS_WAIT).await;
        let progress = progress.ok_or_else(|| BuildError::not_found(format!("no such job {id}")))?;
        let follower = progress.follow();
        drop(progress);
        // Read when the client takes it: one that never reads costs nothing.
        Ok(respond(futures_util::stream::unfold(follower, |mut follower| async move {
            let next = follower.next().await?;
            Some((next.map_err(|e| Status::internal(format!("build log: {e}"))), follower))
        })))
    }

    type SessionStream = bud_session::daemon::SessionStream;

    async fn session(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (metadata, _, inbound) = request.into_parts();
        let stream = self.daemon.sessions.serve(&metadata, inbound).await?;
        let id = metadata.get(bud_session::methods::ID).and_then(|id| id.to_str().ok()).unwrap_or_default().to_owned();
        let daemon = Arc::clone(&self.daemon);
        tokio::spawn(async move {
            let _busy = daemon.life.busy();
            if let Ok(session) = daemon.sessions.get(&id, crate::sessions::WAIT).await {
                session.ended().await;
            }
            daemon.descriptors.forget(&id);
        });
        Ok(Response::new(stream))
    }

    async fn list_workers(
        &self,
        request: Request<ListWorkersRequest>,
    ) -> Result<Response<ListWorkersResponse>, Status> {
        let record = workers::record(&self.daemon);
        let filters = crate::gc::filter::parse(&request.into_inner().filter)?;
        let matches = crate::gc::filter::matches(&filters, |field| match field {
            "id" => Some(record.id.clone()),
            other => other.strip_prefix("labels.").and_then(|l| record.labels.get(l.trim_matches('"')).cloned()),
        });
        Ok(Response::new(ListWorkersResponse { record: if matches { vec![record] } else { Vec::new() } }))
    }

    async fn info(&self, _: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        Ok(Response::new(InfoResponse { buildkit_version: Some(workers::version(&self.daemon)) }))
    }

    async fn disk_usage(&self, request: Request<DiskUsageRequest>) -> Result<Response<DiskUsageResponse>, Status> {
        let record = crate::gc::usage(&self.daemon, request.into_inner()).await?;
        Ok(Response::new(DiskUsageResponse { record }))
    }

    type PruneStream = Messages<UsageRecord>;

    async fn prune(&self, request: Request<PruneRequest>) -> Result<Response<Self::PruneStream>, Status> {
        let records = crate::gc::prune(&self.daemon, request.into_inner()).await?;
        Ok(stream(|sender| async move {
            for record in records {
                if sender.send(Ok(record)).await.is_err() {
                    return;
                }
            }
        }))
    }

    type ListenBuildHistoryStream = Messages<BuildHistoryEvent>;

    async fn listen_build_history(
        &self,
        request: Request<BuildHistoryRequest>,
    ) -> Result<Response<Self::ListenBuildHistoryStream>, Status> {
        let request = request.into_inner();
        let filters = crate::gc::filter::parse(&request.filter)?;
        let mut live = self.daemon.history.follow();
        let wanted = |id: &str| request.r#ref.is_empty() || request.r#ref == id;
        let event = |kind, record| BuildHistoryEvent { r#type: kind as i32, record: Some(record) };
        let mut first = Vec::new();
        for build in self.daemon.builds.all().iter().filter(|b| !b.internal && wanted(&b.id)) {
            first.push(event(BuildHistoryEventType::Started, history::active(build)));
        }
        if !request.active_only {
            let mut records = if request.r#ref.is_empty() {
                self.daemon.history.all()?
            } else {
                self.daemon.history.get(&request.r#ref)?.into_iter().collect()
            };
            records.retain(|r| {
                crate::gc::filter::matches(&filters, |field| match field {
                    "ref" => Some(r.id.clone()),
                    "status" => Some(if r.error.is_some() { "error" } else { "completed" }.to_owned()),
                    _ => None,
                })
            });
            if let Ok(limit) = usize::try_from(request.limit)
                && limit > 0
            {
                records.truncate(limit);
            }
            first.extend(
                records.iter().map(|r| event(BuildHistoryEventType::Complete, self.daemon.history.to_control(r))),
            );
        }
        let (id, early_exit, active_only) = (request.r#ref.clone(), request.early_exit, request.active_only);
        Ok(stream(|sender| async move {
            for event in first {
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
            if early_exit {
                return;
            }
            loop {
                let event = tokio::select! {
                    event = live.recv() => event,
                    () = sender.closed() => return,
                };
                let event = match event {
                    Ok(event) => event,
                    // Too slow a reader misses events; it learns of later ones.
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => continue,
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                };
                let fits = event.record.as_ref().is_some_and(|r| id.is_empty() || r.r#ref == id);
                if !fits || active_only && event.r#type != BuildHistoryEventType::Started as i32 {
                    continue;
                }
                if sender.send(Ok(event)).await.is_err() {
                    return;
                }
            }
        }))
    }

    async fn update_build_history(
        &self,
        request: Request<UpdateBuildHistoryRequest>,
    ) -> Result<Response<UpdateBuildHistoryResponse>, Status> {
        self.daemon.history.update(&request.into_inner())?;
        Ok(Response::new(UpdateBuildHistoryResponse {}))
    }
}

/// Tells what a build showed that has ended.
async fn replay(
    daemon: Arc<Daemon>,
    record: history::BuildRecord,
    sender: mpsc::Sender<Result<StatusResponse, Status>>,
) {
    use prost::Message as _;
    let path = daemon.history.log_file(&record.id);
    let mut offset = 0;
    let log = match EventLog::open(path, record.log) {
        Ok(log) => log,
        Err(error) => {
            tracing::debug!(%error, build = record.id, "no log");
            return;
        }
    };
    while offset < log.len() {
        let message = log
            .read(offset, 256 << 10)
            .and_then(|(bytes, next)| {
                offset = next;
                StatusResponse::decode(bytes.as_slice()).map_err(std::io::Error::other)
            })
            .map_err(|e| Status::internal(format!("build log: {e}")));
        let is_last = message.is_err();
        if sender.send(message).await.is_err() || is_last {
            return;
        }
    }
}
