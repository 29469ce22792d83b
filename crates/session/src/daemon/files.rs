//! Reading a directory of the client.

use std::os::fd::OwnedFd;

use bud_protocol::fsutil::Packet;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Request;
use tonic::metadata::{AsciiMetadataKey, MetadataMap};

use super::Session;
use super::session::ascii;
use crate::fsutil::{QUEUE, ReceiveOptions, Received, receive};
use crate::{MAX_MESSAGE, SessionError, methods};

/// What is asked of a client's directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct DirRequest {
    /// The name under which the client shares it, as `context` or `dockerfile`.
    pub name: String,
    /// Only paths that match these, and the directories that lead to them; all if there are none.
    pub include: Vec<String>,
    /// No paths that match these; `!` takes back.
    pub exclude: Vec<String>,
    /// Only these paths, and what their symlinks lead to.
    pub follow: Vec<String>,
}

impl Session {
    /// Makes the directory `dest` the same as what is asked of the client's, taking over only what differs.
    ///
    /// An error leaves `dest` in between. [`SessionError::is_not_found`] tells that this client doesn't share such a directory.
    pub async fn diff_copy(
        &self,
        request: &DirRequest,
        dest: OwnedFd,
        options: ReceiveOptions,
    ) -> Result<Received, SessionError> {
        self.require(methods::FILE_SYNC, "directories")?;
        let (outbound, packets) = mpsc::channel(QUEUE);
        let packets = ReceiverStream::new(packets).filter_map(Result::ok);
        let mut call = Request::new(packets);
        let metadata = call.metadata_mut();
        metadata.insert(methods::DIR_NAME, ascii(&request.name)?);
        append(metadata, methods::INCLUDE, &request.include)?;
        append(metadata, methods::EXCLUDE, &request.exclude)?;
        append(metadata, methods::FOLLOW, &request.follow)?;
        let doing = format!("local {:?}", request.name);
        let answer = self.ask(doing.clone(), packet_stream(self, methods::FILE_SYNC, call)).await?;
        let transfer = receive(dest, answer.into_inner(), outbound, options);
        let received = tokio::select! {
            () = self.ended() => Err(SessionError::Ended(self.id().to_owned())),
            received = transfer => received,
        };
        received.map_err(|error| match error {
            SessionError::Answer { status, .. } => SessionError::Answer { doing, status },
            SessionError::Protocol(what) => SessionError::Protocol(format!("{doing}: {what}")),
            other => other,
        })
    }
}

/// Starts a call that streams packets both ways; `FileSend` needs it as well, whose definition names another type.
pub(super) async fn packet_stream(
    session: &Session,
    method: &'static str,
    call: Request<impl tokio_stream::Stream<Item = Packet> + Send + 'static>,
) -> Result<tonic::Response<tonic::Streaming<Packet>>, tonic::Status> {
    let mut client = tonic::client::Grpc::new(session.channel()).max_decoding_message_size(MAX_MESSAGE);
    client.ready().await.map_err(|error| tonic::Status::unavailable(error.to_string()))?;
    let codec = tonic_prost::ProstCodec::<Packet, Packet>::default();
    client.streaming(call, http::uri::PathAndQuery::from_static(method), codec).await
}

/// Adds the values of a key; if one is not ASCII, all are query-escaped, and a second key says so.
fn append(metadata: &mut MetadataMap, key: &'static str, values: &[String]) -> Result<(), SessionError> {
    let escaped = values.iter().any(|value| value.bytes().any(|byte| !(0x20..0x7f).contains(&byte)));
    for value in values {
        let value = if escaped { methods::escape(value) } else { value.clone() };
        metadata.append(AsciiMetadataKey::from_static(key), ascii(&value)?);
    }
    if escaped && let Ok(key) = AsciiMetadataKey::from_bytes(format!("{key}-encoded").as_bytes()) {
        metadata.insert(key, ascii("1")?);
    }
    Ok(())
}
