//! The user's ssh agents, for signing only: a build can't add, remove or lock keys.

use std::path::PathBuf;
use std::sync::Arc;

use bud_protocol::sshforward::ssh_server::Ssh;
use bud_protocol::sshforward::{BytesMessage, CheckAgentRequest, CheckAgentResponse};
use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::Attachables;
use crate::methods;

/// Longest message of the agent protocol, as in OpenSSH, in bytes.
const MAX_FRAME: usize = 256 << 10;
/// `SSH_AGENTC_REQUEST_IDENTITIES`.
const LIST: u8 = 11;
/// `SSH_AGENTC_SIGN_REQUEST`.
const SIGN: u8 = 13;
/// `SSH_AGENT_FAILURE` as a whole message.
const FAILURE: &[u8] = &[0, 0, 0, 1, 5];

/// An agent that listens on a socket.
#[derive(Clone)]
pub struct SshAgent {
    /// The socket's path.
    pub socket: PathBuf,
}

impl SshAgent {
    async fn connect(&self) -> Result<UnixStream, Status> {
        let connected = UnixStream::connect(&self.socket).await;
        connected.map_err(|error| Status::failed_precondition(format!("ssh agent {}: {error}", self.socket.display())))
    }
}

pub(super) struct Agents(pub(super) Arc<Attachables>);

impl Agents {
    fn find(&self, id: &str) -> Result<&SshAgent, Status> {
        let id = if id.is_empty() { "default" } else { id };
        let agent = self.0.ssh.get(id);
        agent.ok_or_else(|| Status::not_found(format!("unset ssh forward key {id}")))
    }
}

#[tonic::async_trait]
impl Ssh for Agents {
    type ForwardAgentStream = ReceiverStream<Result<BytesMessage, Status>>;

    async fn check_agent(&self, request: Request<CheckAgentRequest>) -> Result<Response<CheckAgentResponse>, Status> {
        self.find(&request.into_inner().id)?;
        Ok(Response::new(CheckAgentResponse {}))
    }

    async fn forward_agent(
        &self,
        request: Request<Streaming<BytesMessage>>,
    ) -> Result<Response<Self::ForwardAgentStream>, Status> {
        let (metadata, _, inbound) = request.into_parts();
        let id = metadata.get(methods::SSH_ID).and_then(|id| id.to_str().ok()).unwrap_or("");
        let agent = self.find(id)?.connect().await?;
        let (outbound, messages) = mpsc::channel(4);
        tokio::spawn(async move {
            if let Err(status) = relay(inbound, agent, &outbound).await {
                // The other end may be gone.
                let _ = outbound.send(Err(status)).await;
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Passes requests on, one after the other as the protocol has them, and answers what is not allowed itself.
async fn relay(
    mut inbound: Streaming<BytesMessage>,
    mut agent: UnixStream,
    outbound: &mpsc::Sender<Result<BytesMessage, Status>>,
) -> Result<(), Status> {
    let broken = |error: std::io::Error| Status::unavailable(format!("ssh agent: {error}"));
    let mut buffer = BytesMut::new();
    loop {
        let Some(request) = frame(&mut inbound, &mut buffer).await? else { return Ok(()) };
        let answer = match request.get(4) {
            Some(&(LIST | SIGN)) => {
                agent.write_all(&request).await.map_err(broken)?;
                let length = agent.read_u32().await.map_err(broken)?;
                if length as usize > MAX_FRAME {
                    return Err(Status::out_of_range("ssh agent: its answer is too long"));
                }
                let mut answer = vec![0; 4 + length as usize];
                answer[..4].copy_from_slice(&length.to_be_bytes());
                agent.read_exact(&mut answer[4..]).await.map_err(broken)?;
                Bytes::from(answer)
            }
            _ => Bytes::from_static(FAILURE),
        };
        if outbound.send(Ok(BytesMessage { data: answer })).await.is_err() {
            return Ok(());
        }
    }
}

/// Returns the next whole message, length included; `None` at the end.
async fn frame(inbound: &mut Streaming<BytesMessage>, buffer: &mut BytesMut) -> Result<Option<Bytes>, Status> {
    loop {
        if let Some(mut length) = buffer.get(..4) {
            let length = length.get_u32() as usize;
            if length > MAX_FRAME {
                return Err(Status::out_of_range("ssh agent: the request is too long"));
            }
            if buffer.len() >= 4 + length {
                return Ok(Some(buffer.split_to(4 + length).freeze()));
            }
        }
        match inbound.message().await? {
            Some(message) => buffer.extend_from_slice(&message.data),
            None => return Ok(None),
        }
    }
}
