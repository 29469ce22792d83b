//! The client's ssh agents, as sockets of this machine.

use bud_protocol::sshforward::ssh_client::SshClient;
use bud_protocol::sshforward::{BytesMessage, CheckAgentRequest};
use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::Request;

use super::Session;
use super::session::ascii;
use crate::{SessionError, methods};

/// Most connections to one forwarded socket at a time.
const MAX_CONNECTIONS: usize = 64;

/// An agent's socket that is being served; dropped, it and its connections are closed.
pub struct SshForward {
    _cancel: DropGuard,
}

impl Session {
    /// Asks whether the client has the agent `id` (empty: `default`).
    pub async fn check_ssh(&self, id: &str) -> Result<(), SessionError> {
        self.require(methods::CHECK_AGENT, "ssh agent")?;
        let mut client = SshClient::new(self.channel());
        let request = CheckAgentRequest { id: id.to_owned() };
        self.ask(format!("ssh agent {id}"), client.check_agent(request)).await?;
        Ok(())
    }

    /// Bridges every connection to `listener` to the client's agent `id`, until what is returned is dropped.
    pub fn forward_ssh(&self, id: &str, listener: UnixListener) -> Result<SshForward, SessionError> {
        self.require(methods::FORWARD_AGENT, "ssh agent")?;
        let id = ascii(if id.is_empty() { "default" } else { id })?;
        let cancel = CancellationToken::new();
        let session = self.clone();
        let serve = async move {
            let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(MAX_CONNECTIONS));
            let mut connections = tokio::task::JoinSet::new();
            loop {
                while connections.try_join_next().is_some() {}
                let Ok(slot) = slots.clone().acquire_owned().await else { return };
                let Ok((connection, _)) = listener.accept().await else { return };
                let (session, id) = (session.clone(), id.clone());
                connections.spawn(async move {
                    let mut request = Request::new(());
                    request.metadata_mut().insert(methods::SSH_ID, id);
                    if let Err(error) = bridge(&session, request, connection).await {
                        tracing::debug!(%error, "an ssh agent's connection broke");
                    }
                    drop(slot);
                });
            }
        };
        let stop = cancel.clone();
        tokio::spawn(async move { stop.run_until_cancelled(serve).await });
        Ok(SshForward { _cancel: cancel.drop_guard() })
    }
}

async fn bridge(session: &Session, request: Request<()>, connection: UnixStream) -> Result<(), SessionError> {
    let (mut from, mut to) = connection.into_split();
    let (outbound, messages) = mpsc::channel(4);
    let request = request.map(|()| ReceiverStream::new(messages));
    let sending = async move {
        let mut buffer = vec![0; 32 << 10];
        loop {
            match from.read(&mut buffer).await {
                // Half-close: the stream ends when its sender is dropped.
                Ok(0) | Err(_) => return,
                Ok(read) => {
                    let data = Bytes::copy_from_slice(&buffer[..read]);
                    if outbound.send(BytesMessage { data }).await.is_err() {
                        return;
                    }
                }
            }
        }
    };
    let receiving = async {
        let mut client = SshClient::new(session.channel());
        let answer = session.ask("ssh agent", client.forward_agent(request)).await?;
        let mut inbound = answer.into_inner();
        while let Some(message) = session.ask("ssh agent", inbound.message()).await? {
            if to.write_all(&message.data).await.is_err() {
                break;
            }
        }
        // The peer may have closed already.
        let _ = to.shutdown().await;
        Ok(())
    };
    let mut sending = std::pin::pin!(sending);
    let mut receiving = std::pin::pin!(receiving);
    tokio::select! {
        () = &mut sending => receiving.await,
        result = &mut receiving => result,
    }
}
