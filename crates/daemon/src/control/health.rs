//! `grpc.health.v1.Health`: it answers, so it serves.

use bud_protocol::health::health_check_response::ServingStatus;
use bud_protocol::health::health_server::Health;
use bud_protocol::health::{HealthCheckRequest, HealthCheckResponse};
use futures_util::Stream;
use std::pin::Pin;
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct HealthService;

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, _: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        Ok(Response::new(HealthCheckResponse { status: ServingStatus::Serving as i32 }))
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    async fn watch(&self, _: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        use futures_util::StreamExt as _;
        let serving = HealthCheckResponse { status: ServingStatus::Serving as i32 };
        let first = tokio_stream::iter([Ok(serving)]);
        Ok(Response::new(Box::pin(first.chain(tokio_stream::pending()))))
    }
}
