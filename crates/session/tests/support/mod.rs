//! A daemon that knows nothing but sessions, and a client's connection to it, in one process.
#![allow(dead_code)]

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use bud_protocol::control::BytesMessage;
use bud_session::daemon::{SessionStream, WAIT};
use bud_session::{Attachables, Session, SessionHandle, SessionRegistry};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tonic::body::Body;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

/// Serves `Control/Session` for the registry on a new connection, and returns the client's end of it.
pub async fn connect(registry: &SessionRegistry) -> Channel {
    let (client, daemon) = tokio::io::duplex(1 << 20);
    let registry = registry.clone();
    let service = hyper::service::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let registry = registry.clone();
        async move {
            let call = tower::service_fn(move |request: Request<Streaming<BytesMessage>>| {
                let registry = registry.clone();
                async move {
                    let (metadata, _, inbound) = request.into_parts();
                    let stream: SessionStream = registry.serve(&metadata, inbound).await?;
                    Ok::<_, Status>(Response::new(stream))
                }
            });
            let codec = ProstCodec::<BytesMessage, BytesMessage>::default();
            let mut grpc = tonic::server::Grpc::new(codec);
            Ok::<_, Infallible>(grpc.streaming(call, request.map(Body::new)).await)
        }
    });
    tokio::spawn(async move {
        let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
            .serve_connection(TokioIo::new(daemon), service);
        let _ = served.await;
    });
    let io = Arc::new(Mutex::new(Some(TokioIo::new(client))));
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_| {
            let io = io.lock().unwrap().take();
            async move { io.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
        }))
        .await
        .unwrap()
}

/// Both ends of one session.
pub struct Pair {
    pub registry: SessionRegistry,
    pub handle: SessionHandle,
    pub session: Session,
}

pub async fn pair(attachables: Attachables) -> Pair {
    let registry = SessionRegistry::new();
    let channel = connect(&registry).await;
    let handle = SessionHandle::open(channel, attachables, "key").await.unwrap();
    let session = registry.get(handle.id(), WAIT).await.unwrap();
    Pair { registry, handle, session }
}

/// Opens a directory.
pub fn open(path: &std::path::Path) -> std::os::fd::OwnedFd {
    std::fs::File::open(path).unwrap().into()
}
