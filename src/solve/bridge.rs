//! The Dockerfile front end, run here: the daemon solves, over the gateway API, what is asked of it.

use bud_dockerfile::{
    Answers, Build, Error, ErrorKind, FilesAnswer, FilesQuery, ImageAnswer, ImageQuery, Need, Request, SourceAnswer,
    SourceQuery, Step,
};
use bud_protocol::errors::{BuildError, Detail, SourcePlace};
use bud_protocol::gateway::llb_bridge_client::LlbBridgeClient;
use bud_protocol::gateway::{
    FileRange, PingRequest, PongResponse, ReadFileRequest, Ref, RefMap, ResolveImageConfigRequest,
    ResolveSourceMetaRequest, Result as FrontResult, ReturnRequest, SolveRequest, WarnRequest, result,
};
use bud_protocol::pb;
use futures_util::future;
use std::collections::BTreeMap;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// The build that a call belongs to.
const BUILD_ID: &str = "buildkit-controlapi-buildid";
/// A front end that still asks after so many rounds goes in circles.
const ROUNDS: usize = 100;

/// The gateway of one build.
#[derive(Clone)]
pub struct Bridge {
    client: LlbBridgeClient<Channel>,
    build: MetadataValue<Ascii>,
}

impl Bridge {
    /// Speaks for a build.
    pub fn new(client: LlbBridgeClient<Channel>, build: &str) -> Result<Self, Status> {
        let build = build.parse().map_err(|_| Status::invalid_argument("the build's id is not ASCII"))?;
        Ok(Self { client, build })
    }

    fn request<T>(&self, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        request.metadata_mut().insert(BUILD_ID, self.build.clone());
        request
    }

    async fn ping(&self) -> Result<PongResponse, Status> {
        Ok(self.client.clone().ping(self.request(PingRequest {})).await?.into_inner())
    }

    async fn solve(&self, request: SolveRequest) -> Result<FrontResult, Status> {
        let answer = self.client.clone().solve(self.request(request)).await?.into_inner();
        answer.result.ok_or_else(|| Status::internal("the daemon solved without a result"))
    }

    async fn definition(&self, definition: pb::Definition, imports: &CacheImports) -> Result<Ref, Status> {
        if definition.def.is_empty() {
            return Ok(Ref::default());
        }
        let request = SolveRequest {
            definition: Some(definition),
            allow_result_return: true,
            allow_result_array_ref: true,
            cache_imports: imports.clone(),
            ..Default::default()
        };
        match self.solve(request).await?.result {
            Some(result::Result::Ref(reference)) => Ok(reference),
            Some(result::Result::RefDeprecated(id)) => Ok(Ref { id, def: None }),
            None => Ok(Ref::default()),
            Some(_) => Err(Status::internal("the daemon answered one definition with several results")),
        }
    }

    async fn files(&self, query: &FilesQuery) -> FilesAnswer {
        let reference = self.definition(query.definition.clone(), &Vec::new()).await.map_err(message)?;
        let reads = query.paths.iter().map(|path| async {
            let range = query.limit.map(|limit| FileRange { offset: 0, length: limit.try_into().unwrap_or(i64::MAX) });
            let request =
                ReadFileRequest { r#ref: reference.id.clone(), file_path: path.clone(), range, ..Default::default() };
            let answer = self.client.clone().read_file(self.request(request)).await.map_err(message)?;
            Ok(answer.into_inner().data)
        });
        Ok(future::join_all(reads).await)
    }

    async fn image(&self, query: &ImageQuery) -> Result<ImageAnswer, String> {
        let store = query.store.as_ref();
        let request = ResolveImageConfigRequest {
            r#ref: query.reference.clone(),
            platform: query.platform.as_ref().map(platform),
            resolve_mode: query.resolve_mode.clone(),
            log_name: query.log_name.clone(),
            resolver_type: i32::from(store.is_some()),
            session_id: store.map(|store| store.session.clone()).unwrap_or_default(),
            store_id: store.map(|store| store.store.clone()).unwrap_or_default(),
            ..Default::default()
        };
        let answer =
            self.client.clone().resolve_image_config(self.request(request)).await.map_err(message)?.into_inner();
        let reference = if answer.r#ref.is_empty() { query.reference.clone() } else { answer.r#ref };
        Ok(ImageAnswer { reference, digest: answer.digest, config: answer.config })
    }

    async fn source(&self, query: &SourceQuery) -> Result<SourceAnswer, String> {
        let request = ResolveSourceMetaRequest {
            source: Some(query.op.clone()),
            platform: query.platform.as_ref().map(platform),
            log_name: query.log_name.clone(),
            git: Some(bud_protocol::gateway::ResolveSourceGitRequest { return_object: true }),
            ..Default::default()
        };
        let answer =
            self.client.clone().resolve_source_meta(self.request(request)).await.map_err(message)?.into_inner();
        let commit = answer.git.as_ref().and_then(|git| committed(&git.commit_object));
        let http = answer.http.as_ref().and_then(|http| http.last_modified.as_ref()).map(|time| time.seconds);
        Ok(SourceAnswer { modified: commit.or(http), config: answer.image.map(|image| image.config) })
    }
}

type CacheImports = Vec<bud_protocol::gateway::CacheOptionsEntry>;

/// Runs the front end and returns its result, or its error, to the daemon.
///
/// What the result says beside its references (an answer to a question is all there) is also told here.
pub async fn run(
    bridge: Bridge,
    session: &str,
    opts: BTreeMap<String, String>,
) -> Result<BTreeMap<String, Vec<u8>>, Status> {
    let outcome = front(&bridge, session, opts).await;
    let told = outcome.as_ref().map(|result| result.metadata.clone().into_iter().collect()).unwrap_or_default();
    let request = match outcome {
        Ok(result) => ReturnRequest { result: Some(result), error: None },
        Err(error) => ReturnRequest { result: None, error: Some(error.to_rpc()) },
    };
    bridge.client.clone().r#return(bridge.request(request)).await?;
    Ok(told)
}

async fn front(bridge: &Bridge, session: &str, opts: BTreeMap<String, String>) -> Result<FrontResult, BuildError> {
    let pong = bridge.ping().await?;
    let caps = pong.llb_caps.iter().filter(|cap| cap.enabled).map(|cap| cap.id.clone()).collect();
    let platforms =
        pong.workers.first().map(|worker| worker.platforms.iter().map(from_platform).collect()).unwrap_or_default();
    let mut request = Request {
        opts,
        session: session.to_owned(),
        platforms,
        caps: bud_dockerfile::Caps::Only(caps),
        inputs: BTreeMap::new(),
        answers: Answers::default(),
    };
    for _ in 0..ROUNDS {
        match bud_dockerfile::lower(&request).map_err(build_error)? {
            Step::Need(needs) => answer(bridge, needs, &mut request.answers).await,
            Step::Forward(forward) => {
                return Ok(bridge
                    .solve(SolveRequest {
                        frontend: "gateway.v0".into(),
                        frontend_opt: forward.opts,
                        allow_result_return: true,
                        allow_result_array_ref: true,
                        ..Default::default()
                    })
                    .await?);
            }
            Step::Build(build) => return finish(bridge, *build).await,
            Step::Answer(answer) => {
                return Ok(FrontResult { metadata: answer.metadata, ..Default::default() });
            }
        }
    }
    Err(BuildError::other("the front end asks without an end"))
}

async fn answer(bridge: &Bridge, needs: Vec<Need>, answers: &mut Answers) {
    enum Answer {
        Files(FilesQuery, FilesAnswer),
        Image(ImageQuery, Result<ImageAnswer, String>),
        Source(SourceQuery, Result<SourceAnswer, String>),
    }
    let asking = needs.into_iter().map(|need| async {
        match need {
            Need::Files(query) => {
                let answer = bridge.files(&query).await;
                Answer::Files(query, answer)
            }
            Need::Image(query) => {
                let answer = bridge.image(&query).await;
                Answer::Image(query, answer)
            }
            Need::Source(query) => {
                let answer = bridge.source(&query).await;
                Answer::Source(query, answer)
            }
        }
    });
    for answer in future::join_all(asking).await {
        match answer {
            Answer::Files(query, answer) => answers.files(query, answer),
            Answer::Image(query, answer) => answers.image(query, answer),
            Answer::Source(query, answer) => answers.source(query, answer),
        }
    }
}

async fn finish(bridge: &Bridge, build: Build) -> Result<FrontResult, BuildError> {
    for warning in &build.warnings {
        let request = WarnRequest {
            digest: warning.vertex.clone(),
            level: 1,
            short: warning.short.clone().into_bytes(),
            detail: warning.detail.iter().map(|line| line.clone().into_bytes()).collect(),
            url: warning.url.clone(),
            info: Some(warning.source.to_info()),
            ranges: warning.spans.iter().flatten().map(|span| span.to_range()).collect(),
        };
        bridge.client.clone().warn(bridge.request(request)).await?;
    }
    let metadata =
        build.metadata().map_err(|error| BuildError::other(format!("the image config can't be written: {error}")))?;
    let imports: CacheImports = build
        .cache_imports
        .iter()
        .map(|(kind, attrs)| bud_protocol::gateway::CacheOptionsEntry { r#type: kind.clone(), attrs: attrs.clone() })
        .collect();
    let solving = build.platforms.iter().map(|p| bridge.definition(p.definition.clone(), &imports));
    let references = future::try_join_all(solving).await?;
    let result = if build.multi_platform {
        let refs = build.platforms.iter().map(|p| p.id.clone()).zip(references).collect();
        result::Result::Refs(RefMap { refs })
    } else {
        result::Result::Ref(references.into_iter().next().unwrap_or_default())
    };
    Ok(FrontResult { result: Some(result), metadata, ..Default::default() })
}

/// Puts an error of the front end into the form of the wire.
fn build_error(error: Error) -> BuildError {
    let mut out = match &error.kind {
        ErrorKind::FrontendCap(name) => {
            BuildError::new(Code::Unimplemented, &error.message).with(Detail::FrontendCap(name.clone()))
        }
        ErrorKind::Subrequest(name) => {
            BuildError::new(Code::Unimplemented, &error.message).with(Detail::Subrequest(name.clone()))
        }
        _ => BuildError::other(&error.message),
    };
    if let Some(text) = &error.text {
        for spans in &error.places {
            out = out.with(Detail::Source(Box::new(SourcePlace {
                info: Some(text.to_info()),
                ranges: spans.iter().map(|span| span.to_range()).collect(),
            })));
        }
    }
    out
}

fn message(status: Status) -> String {
    BuildError::from_status(&status).message
}

fn platform(platform: &bud_image::Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

fn from_platform(platform: &pb::Platform) -> bud_image::Platform {
    bud_image::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

/// Reads the committer's time from a commit object.
fn committed(object: &[u8]) -> Option<i64> {
    let text = std::str::from_utf8(object).ok()?;
    let line = text.lines().take_while(|line| !line.is_empty()).find_map(|line| line.strip_prefix("committer "))?;
    line.rsplit(' ').nth(1)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_commit() {
        let commit = b"tree x\nauthor A <a@b> 1 +0000\ncommitter C D <c@d> 1700000000 +0100\n\ncommitter X 5 +0000\n";
        assert_eq!(committed(commit), Some(1_700_000_000));
        assert_eq!(committed(b"tree x\n\ncommitter X 5 +0000\n"), None);
        assert_eq!(committed(b""), None);
    }
}
