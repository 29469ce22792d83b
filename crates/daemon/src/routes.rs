//! Which call goes to which service.

use crate::control::ControlService;
use crate::control::content::ContentService;
use crate::control::health::HealthService;
use crate::control::trace::Traces;
use crate::daemon::Daemon;
use crate::gateway::server::Gateway;
use crate::service::BudService;
use bud_protocol::bud::bud_server::BudServer;
use bud_protocol::content::content_server::ContentServer;
use bud_protocol::control::control_server::ControlServer;
use bud_protocol::gateway::llb_bridge_server::LlbBridgeServer;
use bud_protocol::health::health_server::HealthServer;
use bud_protocol::trace::trace_service_server::TraceServiceServer;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower::Service;

/// Messages of the control and gateway APIs.
pub(crate) const MAX_MESSAGE: usize = 16 << 20;

/// All services of the socket.
#[derive(Clone, Debug)]
pub struct Routes {
    /// The daemon.
    pub daemon: Arc<Daemon>,
}

impl Service<http::Request<Body>> for Routes {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let daemon = Arc::clone(&self.daemon);
        let service = request.uri().path().trim_start_matches('/').split('/').next().unwrap_or("");
        match service {
            "moby.buildkit.v1.Control" => ControlServer::new(ControlService { daemon })
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
                .call(request),
            "moby.buildkit.v1.frontend.LLBBridge" => LlbBridgeServer::new(Gateway::Socket(daemon))
                .max_decoding_message_size(MAX_MESSAGE)
                .max_encoding_message_size(MAX_MESSAGE)
                .call(request),
            "containerd.services.content.v1.Content" => ContentServer::new(ContentService { daemon }).call(request),
            "opentelemetry.proto.collector.trace.v1.TraceService" => {
                TraceServiceServer::new(Traces).max_decoding_message_size(MAX_MESSAGE).call(request)
            }
            "grpc.health.v1.Health" => HealthServer::new(HealthService).call(request),
            "bud.v1.Bud" => BudServer::new(BudService { daemon }).call(request),
            _ => {
                let name: String = service.chars().take(100).collect();
                let answer = Status::unimplemented(format!("unknown service {name}")).into_http();
                Box::pin(std::future::ready(Ok(answer)))
            }
        }
    }
}
