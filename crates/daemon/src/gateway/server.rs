//! `LLBBridge`: on the control socket, for front ends that run at the client, where the metadata `buildkit-controlapi-buildid` says
//! for which build; and on the pipes of a front end in a container, where it is known.

use super::meta::Metadata;
use super::{Bridge, BuildResult, files};
use crate::build::Build;
use crate::control::{caps, workers};
use crate::daemon::Daemon;
use crate::frontend;
use crate::progress::Reporter;
use crate::solver::graph::{platform_from_pb, platform_to_pb};
use bud_protocol::control::VertexWarning;
use bud_protocol::errors::BuildError;
use bud_protocol::gateway::llb_bridge_server::LlbBridge;
use bud_protocol::gateway::{
    EvaluateRequest, EvaluateResponse, ExecMessage, InputsRequest, InputsResponse, NewContainerRequest,
    NewContainerResponse, PingRequest, PongResponse, ReadDirRequest, ReadDirResponse, ReadFileRequest,
    ReadFileResponse, ReleaseContainerRequest, ReleaseContainerResponse, ResolveImageConfigRequest,
    ResolveImageConfigResponse, ResolveSourceGitResponse, ResolveSourceHttpResponse, ResolveSourceImageResponse,
    ResolveSourceMetaRequest, ResolveSourceMetaResponse, ReturnRequest, ReturnResponse, SolveRequest, SolveResponse,
    StatFileRequest, StatFileResponse, WarnRequest, WarnResponse,
};
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tonic::metadata::MetadataMap;
use tonic::{Request, Response, Status};

/// How long a call waits for its build to appear.
const WAIT: Duration = Duration::from_secs(3);
const BUILD_ID: &str = "buildkit-controlapi-buildid";

/// The service.
#[derive(Clone, Debug)]
pub enum Gateway {
    /// On the daemon's socket.
    Socket(Arc<Daemon>),
    /// For one front end, which runs in a container.
    Container(Arc<Build>, Arc<Bridge>),
}

/// The build that a call is for.
struct Caller {
    build: Arc<Build>,
    /// That of a front end in a container; none: the build's own.
    inner: Option<Arc<Bridge>>,
}

impl Caller {
    fn bridge(&self) -> &Bridge {
        self.inner.as_deref().unwrap_or(&self.build.bridge)
    }
}

impl std::ops::Deref for Caller {
    type Target = Arc<Build>;

    fn deref(&self) -> &Arc<Build> {
        &self.build
    }
}

impl Gateway {
    async fn build(&self, metadata: &MetadataMap) -> Result<Caller, BuildError> {
        let daemon = match self {
            Self::Container(build, bridge) => {
                return Ok(Caller { build: Arc::clone(build), inner: Some(Arc::clone(bridge)) });
            }
            Self::Socket(daemon) => daemon,
        };
        let id = metadata
            .get(BUILD_ID)
            .and_then(|v| v.to_str().ok())
            .ok_or_else(|| BuildError::invalid(format!("no {BUILD_ID} in the request")))?;
        let build = daemon.builds.wait(id, WAIT).await;
        build
            .filter(|b| b.bridge.is_open())
            .inspect(|b| b.bridge.call())
            .map(|build| Caller { build, inner: None })
            .ok_or_else(|| BuildError::not_found(format!("no active gateway build {id:?}")))
    }
}

/// Ends with the build: a call of a build that was given up does not go on.
async fn within<T>(build: &Build, work: impl Future<Output = Result<T, BuildError>>) -> Result<T, Status> {
    tokio::select! {
        result = work => result.map_err(Status::from),
        () = build.cancel.cancelled() => Err(BuildError::canceled().into()),
    }
}

#[tonic::async_trait]
impl LlbBridge for Gateway {
    async fn ping(&self, request: Request<PingRequest>) -> Result<Response<PongResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        Ok(Response::new(PongResponse {
            frontend_api_caps: caps::frontend(),
            llb_caps: caps::llb(),
            workers: vec![workers::record(&build.daemon)],
        }))
    }

    async fn solve(&self, request: Request<SolveRequest>) -> Result<Response<SolveResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        if request.source_policies.iter().any(|p| !p.rules.is_empty()) {
            return Err(Status::unimplemented("source policies are not supported by this daemon"));
        }
        let work = async {
            let result = frontend::solve(
                &build,
                &frontend::Request {
                    definition: request.definition,
                    frontend: request.frontend,
                    opts: request.frontend_opt.into_iter().collect(),
                    inputs: request.frontend_inputs.into_iter().collect(),
                    depth: build.bridge().depth,
                },
            )
            .await?;
            if request.evaluate {
                for (_, reference) in &result.refs {
                    build.files(reference).await?;
                }
            }
            build.to_wire(build.bridge(), result)
        };
        let result = within(&build, work).await?;
        Ok(Response::new(SolveResponse { r#ref: String::new(), result: Some(result) }))
    }

    async fn r#return(&self, request: Request<ReturnRequest>) -> Result<Response<ReturnResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let result = match request.error.filter(|e| e.code != 0) {
            Some(error) => Err(BuildError::from_rpc(&error)),
            None => request.result.map_or_else(|| Ok(BuildResult::default()), |r| Build::from_wire(build.bridge(), r)),
        };
        build.bridge().finish(result)?;
        Ok(Response::new(ReturnResponse {}))
    }

    async fn inputs(&self, request: Request<InputsRequest>) -> Result<Response<InputsResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let inputs = build.bridge().inputs.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        Ok(Response::new(InputsResponse { definitions: inputs.into_iter().collect() }))
    }

    async fn evaluate(&self, request: Request<EvaluateRequest>) -> Result<Response<EvaluateResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let reference = build.bridge().get(&request.into_inner().r#ref)?;
        within(&build, build.files(&reference)).await?;
        Ok(Response::new(EvaluateResponse {}))
    }

    async fn resolve_image_config(
        &self,
        request: Request<ResolveImageConfigRequest>,
    ) -> Result<Response<ResolveImageConfigResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let platform = request.platform.as_ref().map(platform_from_pb);
        let work = async {
            // 1 is the OCI layout of a client.
            if request.resolver_type == 1 {
                build
                    .layout_image(
                        &request.r#ref,
                        platform.as_ref(),
                        &request.session_id,
                        &request.store_id,
                        &request.log_name,
                    )
                    .await
            } else {
                build.image(&request.r#ref, platform.as_ref(), &request.resolve_mode, &request.log_name).await
            }
        };
        let image = within(&build, work).await?;
        Ok(Response::new(ResolveImageConfigResponse {
            digest: image.digest,
            config: image.config,
            r#ref: request.r#ref,
        }))
    }

    async fn resolve_source_meta(
        &self,
        request: Request<ResolveSourceMetaRequest>,
    ) -> Result<Response<ResolveSourceMetaResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let mut op = request.source.ok_or_else(|| Status::invalid_argument("no source"))?;
        if !request.resolve_mode.is_empty() && op.identifier.starts_with("docker-image://") {
            op.attrs.insert("image.resolvemode".into(), request.resolve_mode.clone());
        }
        let platform = request.platform.as_ref().map(platform_from_pb);
        let found = within(&build, build.metadata(&op, platform.as_ref(), &request.log_name)).await?;
        let mut response = ResolveSourceMetaResponse { source: Some(op), ..Default::default() };
        match found {
            Metadata::Image(image) => {
                response.image = Some(ResolveSourceImageResponse {
                    digest: image.digest,
                    config: image.config,
                    ..Default::default()
                });
            }
            Metadata::Git(git) => {
                response.git = Some(ResolveSourceGitResponse {
                    checksum: git.checksum,
                    r#ref: git.reference,
                    ..Default::default()
                });
            }
            Metadata::Http(http) => {
                response.http = Some(ResolveSourceHttpResponse {
                    checksum: http.checksum,
                    filename: http.filename,
                    last_modified: http.modified.map(|seconds| prost_types::Timestamp { seconds, nanos: 0 }),
                    ..Default::default()
                });
            }
            Metadata::None => {}
        }
        Ok(Response::new(response))
    }

    async fn read_file(&self, request: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let reference = build.bridge().get(&request.r#ref)?;
        let range = request.range.unwrap_or_default();
        let number = |n: i64| u64::try_from(n).map_err(|_| Status::invalid_argument("negative range"));
        let (offset, length) = (number(range.offset)?, number(range.length)?);
        let work = async {
            let value = build.files(&reference).await?;
            files::read(&build.daemon.store, value, request.file_path, offset, length).await
        };
        let data = within(&build, work).await?;
        Ok(Response::new(ReadFileResponse { data }))
    }

    async fn read_dir(&self, request: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let reference = build.bridge().get(&request.r#ref)?;
        let work = async {
            let value = build.files(&reference).await?;
            files::list(&build.daemon.store, value, request.dir_path, request.include_pattern).await
        };
        let entries = within(&build, work).await?;
        Ok(Response::new(ReadDirResponse { entries }))
    }

    async fn stat_file(&self, request: Request<StatFileRequest>) -> Result<Response<StatFileResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        let reference = build.bridge().get(&request.r#ref)?;
        let work = async {
            let value = build.files(&reference).await?;
            files::stat(&build.daemon.store, value, request.path).await
        };
        let stat = within(&build, work).await?;
        Ok(Response::new(StatFileResponse { stat: Some(stat) }))
    }

    async fn warn(&self, request: Request<WarnRequest>) -> Result<Response<WarnResponse>, Status> {
        let build = self.build(request.metadata()).await?;
        let request = request.into_inner();
        Reporter::single(&build.progress, request.digest).warning(VertexWarning {
            level: request.level,
            short: request.short,
            detail: request.detail,
            url: request.url,
            info: request.info,
            ranges: request.ranges,
            ..VertexWarning::default()
        });
        Ok(Response::new(WarnResponse {}))
    }

    async fn new_container(&self, _: Request<NewContainerRequest>) -> Result<Response<NewContainerResponse>, Status> {
        Err(no_containers())
    }

    async fn release_container(
        &self,
        _: Request<ReleaseContainerRequest>,
    ) -> Result<Response<ReleaseContainerResponse>, Status> {
        Err(no_containers())
    }

    type ExecProcessStream = Pin<Box<dyn futures_util::Stream<Item = Result<ExecMessage, Status>> + Send>>;

    async fn exec_process(
        &self,
        _: Request<tonic::Streaming<ExecMessage>>,
    ) -> Result<Response<Self::ExecProcessStream>, Status> {
        Err(no_containers())
    }

    async fn read_file_container(&self, _: Request<ReadFileRequest>) -> Result<Response<ReadFileResponse>, Status> {
        Err(no_containers())
    }

    async fn read_dir_container(&self, _: Request<ReadDirRequest>) -> Result<Response<ReadDirResponse>, Status> {
        Err(no_containers())
    }

    async fn stat_file_container(&self, _: Request<StatFileRequest>) -> Result<Response<StatFileResponse>, Status> {
        Err(no_containers())
    }
}

fn no_containers() -> Status {
    // The capability `gateway.exec` is not advertised.
    Status::unimplemented("interactive containers are not supported by this daemon")
}

/// Returns the platforms as the wire has them.
#[must_use]
pub fn platforms(daemon: &Daemon) -> Vec<bud_protocol::pb::Platform> {
    daemon.settings.platforms.iter().map(platform_to_pb).collect()
}

/// Options as a front end takes them.
pub type Opts = BTreeMap<String, String>;
