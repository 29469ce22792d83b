//! Spans that clients send at their end: taken and dropped, this daemon keeps no traces.

use bud_protocol::trace::trace_service_server::TraceService;
use bud_protocol::trace::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use tonic::{Request, Response, Status};

/// The service.
#[derive(Clone, Copy, Debug)]
pub struct Traces;

#[tonic::async_trait]
impl TraceService for Traces {
    async fn export(
        &self,
        _: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}
