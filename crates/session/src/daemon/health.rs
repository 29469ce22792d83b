//! Asking a client whether it is still there.

use std::time::{Duration, Instant};

use bud_protocol::health::HealthCheckRequest;
use bud_protocol::health::health_client::HealthClient;

use super::Session;

const INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(15);

/// Returns when the session has ended: its stream, or two health checks one after the other without an answer (one, if the client
/// named an interval itself).
pub(super) async fn watch(session: &Session) {
    let custom = session.health_timeout();
    let interval = custom.unwrap_or(INTERVAL);
    let allowed_failures = if custom.is_some() { 0 } else { 1 };
    let mut timeout = custom.unwrap_or(TIMEOUT);
    let mut failures = 0;
    loop {
        tokio::select! {
            () = session.ended() => return,
            () = tokio::time::sleep(interval) => {}
        }
        let started = Instant::now();
        let mut client = HealthClient::new(session.channel());
        let check = tokio::time::timeout(timeout, client.check(HealthCheckRequest::default()));
        let answered = tokio::select! {
            () = session.ended() => return,
            answer = check => answer,
        };
        match answered {
            Ok(Ok(_)) => failures = 0,
            Ok(Err(status)) if status.code() == tonic::Code::Unimplemented => return session.ended().await,
            _ => failures += 1,
        }
        if failures > allowed_failures {
            tracing::debug!(session = session.id(), "the client does not answer: its session is closed");
            return;
        }
        if custom.is_none() {
            timeout = TIMEOUT.max(started.elapsed() * 3 / 2);
        }
    }
}
