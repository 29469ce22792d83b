//! The byte streams under a gRPC channel: a unix socket, TCP with or without TLS, a program's stdin and stdout.

use super::address::Address;
use crate::cli::ConnectArgs;
use anyhow::{Context as _, Result, bail};
use hyper_util::rt::TokioIo;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

/// The header list may hold error details with the text of a Dockerfile.
const HEADERS_LIMIT: u32 = 1 << 20;

/// Connects to a socket of this machine.
///
/// # Errors
/// As connect(2); the caller tells them apart.
pub async fn unix(path: &Path) -> io::Result<UnixStream> {
    UnixStream::connect(path).await
}

/// Puts a channel on a stream that is connected already. It doesn't reconnect: a daemon that is gone is an error.
pub async fn channel<S>(stream: S, authority: &str) -> Result<Channel>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let endpoint = Endpoint::try_from(format!("http://{authority}"))
        .context("the address can't be a URL's authority")?
        .http2_max_header_list_size(HEADERS_LIMIT)
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20);
    let mut stream = Some(stream);
    let channel = endpoint
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let stream = stream.take().ok_or_else(|| io::Error::other("the connection to the daemon was lost"));
            std::future::ready(stream.map(TokioIo::new))
        }))
        .await?;
    Ok(channel)
}

/// Connects to an address that isn't a unix socket.
pub async fn dial(address: &Address, tls: &ConnectArgs) -> Result<Channel> {
    match address {
        Address::Unix(path) => channel(unix(path).await?, "localhost").await,
        Address::Tcp(host) => {
            let stream = TcpStream::connect(host.as_str()).await?;
            stream.set_nodelay(true)?;
            let name = tls.tlsservername.clone().unwrap_or_else(|| host_name(host).to_owned());
            match tls_config(tls)? {
                None => channel(stream, host).await,
                Some(config) => {
                    let server = rustls::pki_types::ServerName::try_from(name.clone())
                        .with_context(|| format!("{name} is not a name that a certificate can carry"))?;
                    let stream = tokio_rustls::TlsConnector::from(Arc::new(config))
                        .connect(server, stream)
                        .await
                        .with_context(|| format!("TLS with {host}"))?;
                    channel(stream, &name).await
                }
            }
        }
        Address::Command { argv, .. } => channel(Piped::start(argv)?, "localhost").await,
    }
}

fn host_name(host: &str) -> &str {
    let host = host.rsplit_once(':').map_or(host, |(name, _)| name);
    host.trim_start_matches('[').trim_end_matches(']')
}

fn tls_config(args: &ConnectArgs) -> Result<Option<rustls::ClientConfig>> {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};

    let Some(ca) = &args.tlscacert else {
        if args.tlscert.is_some() {
            bail!("--tlscert needs --tlscacert, the CA of the daemon's certificate");
        }
        return Ok(None);
    };
    let certificates = |path: &Path| -> Result<Vec<CertificateDer<'static>>> {
        let list = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .with_context(|| format!("cannot read certificates from {}", path.display()))?;
        if list.is_empty() {
            bail!("{} holds no certificate", path.display());
        }
        Ok(list)
    };
    let mut roots = rustls::RootCertStore::empty();
    for certificate in certificates(ca)? {
        roots.add(certificate).with_context(|| format!("{} is not a CA certificate", ca.display()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let mut config = match (&args.tlscert, &args.tlskey) {
        (Some(cert), Some(key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key)
                .with_context(|| format!("cannot read a private key from {}", key.display()))?;
            builder
                .with_client_auth_cert(certificates(cert)?, key_der)
                .with_context(|| format!("{} and {} don't belong together", cert.display(), key.display()))?
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(config))
}

/// A program's stdin and stdout as one stream; the program ends with it.
struct Piped {
    stdin: tokio::process::ChildStdin,
    stdout: tokio::process::ChildStdout,
    _child: tokio::process::Child,
}

impl Piped {
    fn start(argv: &[String]) -> Result<Self> {
        let (program, args) = argv.split_first().context("no program to connect through")?;
        let mut child = tokio::process::Command::new(program)
            .args(args)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start `{program}`, which the address needs"))?;
        let stdin = child.stdin.take().context("no stdin")?;
        let stdout = child.stdout.take().context("no stdout")?;
        Ok(Self { stdin, stdout, _child: child })
    }
}

impl AsyncRead for Piped {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdout).poll_read(cx, buf)
    }
}

impl AsyncWrite for Piped {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stdin).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stdin).poll_shutdown(cx)
    }
}
