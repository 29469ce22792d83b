//! `gateway.v0`: front ends in images. Each runs in a container of its own whose stdin and stdout are a connection of the gateway,
//! with the front end as the client. It has no network unless the build was granted the host's.

use super::Request;
use crate::build::Build;
use crate::control::health::HealthService;
use crate::control::workers;
use crate::gateway::server::Gateway;
use crate::gateway::{Bridge, BuildResult};
use crate::ops::exec::output;
use crate::progress::Reporter;
use crate::routes::MAX_MESSAGE;
use crate::value::{Stop, Value, blocking, file_error, store_error};
use bud_image::ImageConfig;
use bud_protocol::errors::{BuildError, Detail};
use bud_protocol::gateway::llb_bridge_server::LlbBridgeServer;
use bud_protocol::health::health_server::HealthServer;
use bud_protocol::llb::{encode_op, op_digest};
use bud_protocol::pb;
use bud_sandbox::server::{EVENT_MAX, Event};
use bud_sandbox::{ContainerSpec, Mount, MountKind, Network, Rootfs, Security};
use bud_store::{LayerDraft, View};
use futures_util::StreamExt as _;
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};
use tonic::Status;
use tonic::body::Body;
use tonic::transport::Server;
use tonic::transport::server::Connected;

/// Front ends that stand one on another; each is a container that waits for the next.
const MAX_DEPTH: usize = 8;
/// Calls at a time of a front end.
const MAX_CALLS: u32 = 512;
/// How long a front end may go on after it returned its result, and its output after its end.
const REST: Duration = Duration::from_secs(5);
/// Options and environment together.
const MAX_STRINGS: usize = 8 << 20;
/// What an image without an entry point runs.
const DEFAULT_PROGRAM: &str = "/run";
/// Where a front end finds the definition that it came from.
const METADATA: &str = "/run/config/buildkit/metadata/frontend.bin";
const LABEL_NO_NETWORK: &str = "moby.buildkit.frontend.network.none";
const LABEL_CAPS: &str = "moby.buildkit.frontend.caps";
const CAP_INPUTS: &str = "moby.buildkit.frontend.inputs";

/// Runs a front end's image and returns what it returns.
///
/// # Errors
/// The image isn't there or lacks what is asked of it; the front end fails, or says that the build does.
pub async fn solve(build: &Arc<Build>, request: &Request, source: &str) -> Result<BuildResult, BuildError> {
    if request.depth >= MAX_DEPTH {
        return Err(BuildError::new(
            tonic::Code::ResourceExhausted,
            format!("front end image {source:?}: more than {MAX_DEPTH} front ends stand one on another"),
        ));
    }
    let image = find(build, request, source).await?;
    check_caps(&image.config, request)?;
    let reference = build.lazy(&image.definition)?;
    let value = build.files(&reference).await?;
    let root = Root::of(build, value).await?;
    let bridge = Arc::new(Bridge::inner(request.inputs.clone(), request.depth + 1));
    let spec = spec(build, request, &image, &root)?;
    let vertex = format!("frontend:{}", build.daemon.builds.next_member());
    let progress = build.progress.virtual_vertex(&vertex, &format!("[internal] run {source}"));
    progress.started();
    let ran = run(build, &bridge, spec, &vertex, &progress).await;
    root.discard();
    progress.ended(&ran);
    ran.map_err(|e| if e.details.is_empty() { e.context(format!("front end {source}")) } else { e })
}

/// A front end's image.
struct Image {
    config: ImageConfig,
    definition: pb::Definition,
}

/// Finds the image, or what a named context puts in its place.
async fn find(build: &Arc<Build>, request: &Request, source: &str) -> Result<Image, BuildError> {
    let platform = build.daemon.settings.platform();
    let replaced = request.opts.get(&format!("context:{source}")).map(String::as_str);
    let mut attrs = BTreeMap::from([("image.recordtype".to_owned(), "frontend".to_owned())]);
    let log_name = format!("[internal] load metadata for front end {source}");
    let (scheme, found) = match replaced {
        Some(address) if address.starts_with("oci-layout://") => {
            let bad = |e: &dyn std::fmt::Display| BuildError::invalid(format!("front end {source:?}: {address}: {e}"));
            let layout = bud_image::ImageRef::parse_exact(&address["oci-layout://".len()..]).map_err(|e| bad(&e))?;
            let mut shown = bud_image::ImageRef::parse(source).map_err(|e| bad(&e))?;
            shown.digest = Some(layout.digest.clone().ok_or_else(|| bad(&"it has no digest"))?);
            let (session, store) = (build.session.clone(), layout.name());
            let found = build.layout_image(&shown.to_string(), Some(&platform), &session, &store, &log_name).await?;
            attrs.extend([("oci.session".into(), session), ("oci.store".into(), store)]);
            ("oci-layout", found)
        }
        Some(address) if !address.starts_with("docker-image://") => {
            return Err(BuildError::invalid(format!(
                "front end {source:?}: the named context {address:?} can't stand for it: only docker-image:// and oci-layout:// can"
            )));
        }
        replaced => {
            let name = replaced.and_then(|r| r.strip_prefix("docker-image://")).unwrap_or(source);
            bud_image::ImageRef::parse(name)
                .map_err(|e| BuildError::invalid(format!("front end {name:?} is no image reference: {e}")))?;
            ("docker-image", build.image(name, Some(&platform), "default", &log_name).await?)
        }
    };
    let config: ImageConfig = serde_json::from_slice(&found.config)
        .map_err(|e| BuildError::invalid(format!("front end image {source:?}: its config: {e}")))?;
    let op = pb::Op {
        op: Some(pb::op::Op::Source(pb::SourceOp { identifier: format!("{scheme}://{}", found.reference), attrs })),
        platform: Some(crate::solver::graph::platform_to_pb(&platform)),
        constraints: Some(pb::WorkerConstraints::default()),
        ..pb::Op::default()
    };
    let op = encode_op(&op);
    let digest = op_digest(&op);
    let end = pb::Op { inputs: vec![pb::Input { digest: digest.clone(), index: 0 }], ..pb::Op::default() };
    let description = BTreeMap::from([("llb.customname".to_owned(), format!("[internal] load front end {source}"))]);
    let metadata = pb::OpMetadata { description: description.into_iter().collect(), ..pb::OpMetadata::default() };
    let definition = pb::Definition {
        def: vec![op, encode_op(&end)],
        metadata: [(digest, metadata)].into_iter().collect(),
        source: None,
    };
    Ok(Image { config, definition })
}

/// A front end says in a label of its image what it can do beyond building.
fn check_caps(config: &ImageConfig, request: &Request) -> Result<(), BuildError> {
    let has = caps(label(config, LABEL_CAPS).unwrap_or_default());
    let mut needs = caps(request.opts.get("frontend.caps").map(String::as_str).unwrap_or_default());
    if !request.inputs.is_empty() {
        needs.insert(CAP_INPUTS.into());
    }
    match needs.into_iter().find(|need| !has.contains(need)) {
        Some(missing) => {
            Err(BuildError::new(tonic::Code::Unimplemented, format!("unsupported frontend capability {missing}"))
                .with(Detail::FrontendCap(missing)))
        }
        None => Ok(()),
    }
}

fn caps(list: &str) -> BTreeSet<String> {
    let names = list.split(',').map(|cap| cap.split('+').next().unwrap_or_default());
    names.filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

fn label<'a>(config: &'a ImageConfig, name: &str) -> Option<&'a str> {
    config.config.labels.as_ref()?.get(name).map(String::as_str)
}

/// A front end's root file system; what is written there is thrown away.
struct Root {
    draft: Option<LayerDraft>,
    rootfs: Rootfs,
    _kept: Value,
}

impl Root {
    async fn of(build: &Arc<Build>, value: Value) -> Result<Self, BuildError> {
        let (store, cancel) = (Arc::clone(&build.daemon.store), build.cancel.clone());
        let base = build.daemon.settings.root.join(crate::start::BASE_LAYER);
        blocking(move || {
            let stop = Stop(&cancel);
            let (snapshot, pin) = value.snapshot(&store, &stop).map_err(file_error)?;
            let draft = store.draft(&snapshot).map_err(store_error)?;
            let rootfs = match draft.writable(Some(&base), &stop).map_err(file_error)? {
                View::Overlay(overlay) => Rootfs::Overlay(overlay),
                View::Directory(path) => Rootfs::Dir(path),
            };
            Ok(Self { draft: Some(draft), rootfs, _kept: Value::Stored(snapshot, pin) })
        })
        .await
    }

    fn discard(mut self) {
        self.clear();
    }

    /// The removal of many files is nothing for this thread; nobody waits for it.
    fn clear(&mut self) {
        if let Some(draft) = self.draft.take() {
            tokio::task::spawn_blocking(move || drop(draft));
        }
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        self.clear();
    }
}

fn spec(build: &Build, request: &Request, image: &Image, root: &Root) -> Result<ContainerSpec, BuildError> {
    let config = &image.config.config;
    let args =
        config.entrypoint.clone().filter(|args| !args.is_empty()).unwrap_or_else(|| vec![DEFAULT_PROGRAM.into()]);
    let mut env = config.env.clone().unwrap_or_default();
    for (number, (name, value)) in request.opts.iter().enumerate() {
        env.push(format!("BUILDKIT_FRONTEND_OPT_{number}={name}={value}"));
    }
    env.push(format!("BUILDKIT_SESSION_ID={}", build.session));
    env.push(format!("BUILDKIT_WORKERS={}", worker_list(build)));
    env.push("BUILDKIT_EXPORTEDPRODUCT=build-using-dockerfile".into());
    let size: usize = args.iter().chain(&env).map(String::len).sum();
    if size > MAX_STRINGS {
        return Err(BuildError::invalid(format!("the front end's options have {size} bytes, more than {MAX_STRINGS}")));
    }
    if args.iter().chain(&env).any(|s| s.contains('\0')) {
        return Err(BuildError::invalid("an option of the front end holds a zero byte"));
    }
    let without =
        label(&image.config, LABEL_NO_NETWORK).is_some_and(|v| matches!(v, "1" | "t" | "T" | "true" | "True" | "TRUE"));
    let network = if build.entitlements.has("network.host") && !without { Network::Host } else { Network::None };
    let definition = MountKind::File { data: image.definition.encode_to_vec(), uid: 0, gid: 0, mode: 0o400 };
    Ok(ContainerSpec {
        rootfs: root.rootfs.clone(),
        base_layer: Some(build.daemon.settings.root.join(crate::start::BASE_LAYER)),
        mounts: vec![Mount { dest: METADATA.into(), kind: definition }],
        args,
        env,
        cwd: config.working_dir.clone(),
        network,
        security: Security::Sandbox,
        resolv_conf: crate::resolv::content(),
        no_process_sandbox: build.daemon.settings.no_process_sandbox,
        remove_mount_stubs_recursive: true,
        no_new_privileges: true,
        ..ContainerSpec::default()
    })
}

/// Writes the workers as front ends read them.
fn worker_list(build: &Build) -> String {
    let record = workers::record(&build.daemon);
    let worker = serde_json::json!({
        "id": record.id,
        "labels": record.labels.into_iter().collect::<BTreeMap<_, _>>(),
        "platforms": build.daemon.settings.platforms,
    });
    serde_json::Value::Array(vec![worker]).to_string()
}

/// Runs the container and serves it until it ends.
async fn run(
    build: &Arc<Build>,
    bridge: &Arc<Bridge>,
    spec: ContainerSpec,
    vertex: &str,
    progress: &Reporter,
) -> Result<BuildResult, BuildError> {
    let io = |e: std::io::Error| BuildError::other(format!("a front end's pipes: {e}"));
    let (theirs, ours) = std::io::pipe().map_err(io)?;
    let to_it = Sender::from_owned_fd(OwnedFd::from(ours)).map_err(io)?;
    let (from_it, stdout) = output::pipe().map_err(io)?;
    let (stderr, stderr_end) = output::pipe().map_err(io)?;
    let mut returned = bridge.open();
    let container = build
        .daemon
        .fork
        .run(&spec, Some(OwnedFd::from(theirs)), stdout, stderr_end)
        .map_err(|e| BuildError::from_chain(&e))?;
    let channel = container.into_channel();
    channel.set_nonblocking(true).map_err(io)?;
    let mut channel = tokio::net::UnixStream::from_std(channel).map_err(io)?;

    let log_file = build.daemon.history.step_log(&build.id, vertex);
    let mut pump = std::pin::pin!(output::pump_stderr(progress.clone(), log_file, stderr));
    let connection = tokio_stream::once(Ok::<_, std::io::Error>(Stdio { from_it, to_it }));
    // The connection is its own task; it ends with the pipes, which end with the container.
    let mut server = std::pin::pin!(
        Server::builder()
            .http2_max_pending_accept_reset_streams(Some(100))
            .max_concurrent_streams(Some(MAX_CALLS))
            .serve_with_incoming(
                Routes { build: Arc::clone(build), bridge: Arc::clone(bridge) },
                connection.chain(tokio_stream::pending()),
            )
    );
    let mut buffer = vec![0; EVENT_MAX];
    let mut result = None;
    let mut pumped = false;
    let mut late = std::pin::pin!(tokio::time::sleep(Duration::MAX));
    let code = loop {
        let length = tokio::select! {
            served = &mut server => {
                let why = served.err().map(|e| e.to_string()).unwrap_or_default();
                return Err(BuildError::other(format!("the connection to the front end can't be served: {why}")));
            }
            () = &mut pump, if !pumped => { pumped = true; continue }
            outcome = &mut returned, if result.is_none() => {
                result = outcome.ok();
                late.as_mut().reset(tokio::time::Instant::now() + REST);
                continue
            }
            read = channel.read(&mut buffer) => read.map_err(io)?,
            () = build.cancel.cancelled() => return Err(BuildError::canceled()),
            // It said all it has to say: what it still does is of no use.
            () = &mut late, if result.is_some() => break Ok(0),
        };
        match Event::decode(&buffer[..length]).map_err(io)? {
            Some(Event::Started { .. }) => {}
            Some(Event::Exited(status)) => break Ok(status.code),
            Some(Event::Failed { error, code }) => break Err((error, code)),
            None => return Err(BuildError::other("the sandbox ended unexpectedly: its server is gone")),
        }
    };
    drop(channel);
    if !pumped && tokio::time::timeout(REST, pump).await.is_err() {
        tracing::warn!("the output of a front end stayed open after its end");
    }
    let result = result.or_else(|| returned.try_recv().ok());
    let command = spec.args.join(" ");
    let failed = |how: String, code: i32| {
        BuildError::other(format!("process {command:?} did not complete successfully: {how}"))
            .with(Detail::Exit(u32::try_from(code).unwrap_or(1)))
    };
    match (result, code) {
        // What it says counts before how it ended; but nothing of one that failed is built.
        (Some(Err(error)), _) => Err(error),
        (_, Err((error, code))) => Err(failed(error, code)),
        (_, Ok(code)) if code != 0 => Err(failed(format!("exit code: {code}"), code)),
        (Some(Ok(result)), Ok(_)) => Ok(result),
        (None, Ok(_)) => Err(BuildError::other("it ended without a result")),
    }
}

/// The two pipes as one connection.
struct Stdio {
    from_it: Receiver,
    to_it: Sender,
}

impl Connected for Stdio {
    type ConnectInfo = ();

    fn connect_info(&self) -> Self::ConnectInfo {}
}

impl AsyncRead for Stdio {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().from_it).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stdio {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.get_mut().to_it).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().to_it).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.get_mut().to_it).poll_shutdown(cx)
    }
}

/// What a front end may call: the gateway of its build, and whether anybody is there.
#[derive(Clone)]
struct Routes {
    build: Arc<Build>,
    bridge: Arc<Bridge>,
}

impl tower::Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or("");
        match service {
            "moby.buildkit.v1.frontend.LLBBridge" => {
                let gateway = Gateway::Container(Arc::clone(&self.build), Arc::clone(&self.bridge));
                LlbBridgeServer::new(gateway)
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_MESSAGE)
                    .call(request)
            }
            "grpc.health.v1.Health" => HealthServer::new(HealthService).call(request),
            _ => {
                let answer = Status::unimplemented("a front end may call the gateway alone").into_http();
                Box::pin(std::future::ready(Ok(answer)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_caps(label: &str) -> ImageConfig {
        let mut config = ImageConfig::default();
        config.config.labels = Some([(LABEL_CAPS.to_owned(), label.to_owned())].into_iter().collect());
        config
    }

    #[test]
    fn what_is_asked_of_a_front_end_must_be_in_its_label() {
        let config = with_caps("moby.buildkit.frontend.inputs,moby.buildkit.frontend.contexts+forward");
        let mut request = Request::default();
        assert!(check_caps(&config, &request).is_ok());
        request.opts.insert("frontend.caps".into(), "moby.buildkit.frontend.contexts+forward".into());
        request.inputs.insert("x".into(), pb::Definition::default());
        assert!(check_caps(&config, &request).is_ok());
        assert!(check_caps(&ImageConfig::default(), &request).is_err());
        request.opts.insert("frontend.caps".into(), "moby.buildkit.frontend.subrequests".into());
        let error = check_caps(&config, &request).unwrap_err();
        assert_eq!(error.code, tonic::Code::Unimplemented);
        assert_eq!(error.details, [Detail::FrontendCap("moby.buildkit.frontend.subrequests".into())]);
    }
}
