//! Which call goes to what.

use std::convert::Infallible;
use std::sync::Arc;

use bud_protocol::content::content_server::ContentServer;
use bud_protocol::filesync::auth_server::AuthServer;
use bud_protocol::filesync::file_sync_server::FileSyncServer;
use bud_protocol::health::health_server::HealthServer;
use bud_protocol::secrets::secrets_server::SecretsServer;
use bud_protocol::sshforward::ssh_server::SshServer;
use bud_protocol::upload::upload_server::UploadServer;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

use super::{Attachables, auth, content, exports, files, health, secrets, ssh, upload};
use crate::MAX_MESSAGE;
use crate::tunnel::Tunnel;

/// Window of a stream: how much may be under way unread.
const WINDOW: u32 = 4 << 20;
/// Calls at a time.
const MAX_CALLS: u32 = 1000;

/// Serves the attachables over the tunnel until it ends.
pub(super) async fn serve(attachables: Attachables, tunnel: Tunnel) {
    let attachables = Arc::new(attachables);
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let attachables = attachables.clone();
        async move { Ok::<_, Infallible>(route(attachables, request.map(Body::new)).await) }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(WINDOW * 4)
        .max_concurrent_streams(MAX_CALLS)
        .serve_connection(TokioIo::new(tunnel), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "the session's connection broke");
    }
}

async fn route(attachables: Arc<Attachables>, request: http::Request<Body>) -> http::Response<Body> {
    let path = request.uri().path();
    let service = path.trim_start_matches('/').split('/').next().unwrap_or("");
    let answer = match service {
        "grpc.health.v1.Health" => HealthServer::new(health::Alive).call(request).await,
        "moby.filesync.v1.FileSync" => {
            let server = FileSyncServer::new(files::Files(attachables));
            server.max_decoding_message_size(MAX_MESSAGE).call(request).await
        }
        "moby.filesync.v1.FileSend" => Ok(exports::serve(&attachables, request).await),
        "moby.filesync.v1.Auth" if attachables.credentials.is_some() => {
            AuthServer::new(auth::Auth(attachables)).call(request).await
        }
        "moby.buildkit.secrets.v1.Secrets" => SecretsServer::new(secrets::Secrets(attachables)).call(request).await,
        "moby.sshforward.v1.SSH" => SshServer::new(ssh::Agents(attachables)).call(request).await,
        "moby.upload.v1.Upload" => UploadServer::new(upload::Uploads(attachables)).call(request).await,
        "containerd.services.content.v1.Content" => {
            let server = ContentServer::new(content::Stores(attachables));
            server.max_decoding_message_size(MAX_MESSAGE).call(request).await
        }
        _ => Ok(Status::unimplemented(format!("this client offers no {service}")).into_http()),
    };
    match answer {
        Ok(response) => response,
    }
}
