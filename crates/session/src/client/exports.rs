//! Taking exports: a file or a directory, where the user said.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bud_protocol::filesync::BytesMessage;
use bud_protocol::fsutil::Packet;
use rustix::fs::{Mode, OFlags};
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::server::Grpc;
use tonic::{Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use super::Attachables;
use crate::fsutil::{self, Owner, ReceiveOptions};
use crate::{MAX_MESSAGE, SessionError, methods};

/// Where an export goes.
#[derive(Clone)]
pub enum ExportTarget {
    /// A stream of bytes, as a tar.
    File(Arc<dyn FileTarget>),
    /// A directory, made if it isn't there. What comes replaces what is there; `delete` also removes what doesn't come.
    Directory {
        /// The directory.
        path: PathBuf,
        /// Make it the same as the export.
        delete: bool,
    },
}

/// Takes one file.
pub trait FileTarget: Send + Sync + 'static {
    /// Opens the target; `metadata` is what the export's response says so far. `None` says that the file isn't wanted.
    fn open(&self, metadata: &BTreeMap<String, String>) -> io::Result<Option<Box<dyn FileSink>>>;
}

/// A file that is being taken. Dropped before it is complete, nothing should be left of it.
pub trait FileSink: Write + Send {
    /// Called when all has been written.
    fn complete(self: Box<Self>) -> io::Result<()>;
}

/// A file that appears under its name when it is complete.
pub struct TarFile(pub PathBuf);

struct OpenFile {
    path: PathBuf,
    /// Taken when it has its name.
    temporary: Option<PathBuf>,
    file: std::fs::File,
}

/// An error that names the file.
fn named(path: &std::path::Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

impl FileTarget for TarFile {
    fn open(&self, _: &BTreeMap<String, String>) -> io::Result<Option<Box<dyn FileSink>>> {
        self.create().map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.0.display())))
    }
}

impl TarFile {
    fn create(&self) -> io::Result<Option<Box<dyn FileSink>>> {
        // Something that is no file, as /dev/null or a pipe, is written to as it is.
        if let Ok(found) = std::fs::metadata(&self.0)
            && !found.is_file()
        {
            let file = std::fs::OpenOptions::new().write(true).open(&self.0).map_err(|error| named(&self.0, &error))?;
            return Ok(Some(Box::new(OpenFile { path: self.0.clone(), temporary: None, file })));
        }
        let name = self.0.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::IsADirectory))?;
        let id = super::new_id().map_err(io::Error::other)?;
        let mut temporary = std::ffi::OsString::from(".");
        temporary.push(name);
        temporary.push(format!(".{id}"));
        let temporary = self.0.with_file_name(temporary);
        let file = std::fs::OpenOptions::new().write(true).create_new(true).open(&temporary);
        let file = file.map_err(|error| named(&self.0, &error))?;
        Ok(Some(Box::new(OpenFile { path: self.0.clone(), temporary: Some(temporary), file })))
    }
}

impl Write for OpenFile {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.file.write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl FileSink for OpenFile {
    fn complete(mut self: Box<Self>) -> io::Result<()> {
        self.file.flush()?;
        if let Some(temporary) = &self.temporary {
            std::fs::rename(temporary, &self.path)?;
            self.temporary = None;
        }
        Ok(())
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nothing can be done if this fails.
            let _ = std::fs::remove_file(temporary);
        }
    }
}

/// This process's standard output.
pub struct Stdout;

impl FileTarget for Stdout {
    fn open(&self, _: &BTreeMap<String, String>) -> io::Result<Option<Box<dyn FileSink>>> {
        Ok(Some(Box::new(Stdout)))
    }
}

impl Write for Stdout {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        io::stdout().write(data)
    }
    fn flush(&mut self) -> io::Result<()> {
        io::stdout().flush()
    }
}

impl FileSink for Stdout {
    fn complete(mut self: Box<Self>) -> io::Result<()> {
        self.flush()
    }
}

/// Serves `FileSend/DiffCopy`. What streams in depends on the exporter, not on the method: bytes, or packets of a tree.
pub(super) async fn serve(attachables: &Attachables, request: http::Request<Body>) -> http::Response<Body> {
    if request.uri().path() != methods::FILE_SEND {
        return Status::unimplemented("no such method").into_http();
    }
    let (id, all_platforms) = {
        let header = |key: &str| request.headers().get(key).and_then(|value| value.to_str().ok());
        let id = header(methods::EXPORTER_ID).and_then(|id| id.parse().ok()).unwrap_or(0);
        (id, header(methods::EXPORTER_MULTI_PLATFORM) == Some("1"))
    };
    match attachables.exports.get(&id).cloned() {
        None => Status::not_found(format!("exporter {id} not found")).into_http(),
        Some(ExportTarget::Directory { path, delete }) => {
            if delete && !all_platforms {
                let what = "this daemon sends each platform by itself: mode=delete would remove what came before";
                return Status::failed_precondition(what).into_http();
            }
            let service = service_fn(move |request| take_tree(path.clone(), delete, request));
            let mut grpc = Grpc::new(ProstCodec::<Packet, Packet>::default())
                .apply_max_message_size_config(Some(MAX_MESSAGE), None);
            grpc.streaming(service, request).await
        }
        Some(ExportTarget::File(target)) => {
            let service = service_fn(move |request| take_file(target.clone(), request));
            let mut grpc = Grpc::new(ProstCodec::<BytesMessage, BytesMessage>::default())
                .apply_max_message_size_config(Some(MAX_MESSAGE), None);
            grpc.streaming(service, request).await
        }
    }
}

type Packets = futures_util::stream::BoxStream<'static, Result<Packet, Status>>;

async fn take_tree(
    path: PathBuf,
    delete: bool,
    request: Request<Streaming<Packet>>,
) -> Result<Response<Packets>, Status> {
    let dest = open_destination(&path)
        .map_err(|error| Status::failed_precondition(format!("opening {}: {error}", path.display())))?;
    let options = ReceiveOptions { merge: !delete, owner: Owner::Writer, ..ReceiveOptions::default() };
    let (outbound, mut packets) = mpsc::channel(fsutil::QUEUE);
    tokio::spawn(async move {
        let failed = outbound.clone();
        if let Err(error) = fsutil::receive(dest, request.into_inner(), outbound, options).await {
            // The other end may be gone.
            let _ = failed.send(Err(Status::from(error))).await;
        }
    });
    // Headers come with the first packet, as from Go's clients: a daemon must not wait for them before it sends its list.
    let first = tokio_stream::iter(packets.recv().await);
    Ok(Response::new(futures_util::StreamExt::boxed(first.chain(ReceiverStream::new(packets)))))
}

/// Opens the destination, which the user named and which may be a link; made for the user alone if it isn't there.
fn open_destination(path: &Path) -> io::Result<OwnedFd> {
    if !path.is_dir() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    }
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

async fn take_file(
    target: Arc<dyn FileTarget>,
    request: Request<Streaming<BytesMessage>>,
) -> Result<Response<ReceiverStream<Result<BytesMessage, Status>>>, Status> {
    let mut metadata = BTreeMap::new();
    for entry in request.metadata().iter() {
        if let tonic::metadata::KeyAndValueRef::Ascii(key, value) = entry
            && let Some(key) = key.as_str().strip_prefix(methods::EXPORTER_METADATA)
            && let Ok(value) = value.to_str()
        {
            metadata.insert(key.to_owned(), value.to_owned());
        }
    }
    let failed = |doing: &str, error: io::Error| Status::from(SessionError::io(doing, error));
    let opened = tokio::task::spawn_blocking(move || target.open(&metadata))
        .await
        .map_err(|panic| Status::internal(panic.to_string()))?;
    let Some(mut sink) = opened.map_err(|error| failed("opening the output", error))? else {
        return Err(Status::already_exists("the output is there already"));
    };
    let mut inbound = request.into_inner();
    let (outbound, messages) = mpsc::channel(1);
    let (pieces, mut queue) = mpsc::channel::<bytes::Bytes>(4);
    let writing = tokio::task::spawn_blocking(move || -> io::Result<Box<dyn FileSink>> {
        while let Some(piece) = queue.blocking_recv() {
            sink.write_all(&piece)?;
        }
        Ok(sink)
    });
    tokio::spawn(async move {
        let end = loop {
            match inbound.message().await {
                Ok(Some(message)) => {
                    if pieces.send(message.data).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(None) => break Ok(()),
                Err(status) => break Err(status),
            }
        };
        drop(pieces);
        let written = writing.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        let written = written.map_err(|error| failed("writing the output", error));
        // Only a stream that ended well makes a complete file.
        let result = match (end, written) {
            (Ok(()), Ok(sink)) => tokio::task::spawn_blocking(move || sink.complete())
                .await
                .unwrap_or_else(|panic| Err(io::Error::other(panic)))
                .map_err(|error| failed("writing the output", error)),
            (Err(status), _) | (_, Err(status)) => Err(status),
        };
        if let Err(status) = result {
            // The other end may be gone.
            let _ = outbound.send(Err(status)).await;
        }
    });
    Ok(Response::new(ReceiverStream::new(messages)))
}
