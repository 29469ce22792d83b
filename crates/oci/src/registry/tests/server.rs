//! A small HTTP server that answers as a test likes.

use crate::registry::{Access, Client, Credential, Credentials, HostConfig, RegistryConfig, Repository, Transport};
use bud_image::{Descriptor, Digest, ImageRef};
use futures_util::future::BoxFuture;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: String,
    pub path: String,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, v)| v.as_str())
    }

    /// Path without query.
    pub fn route(&self) -> &str {
        self.path.split('?').next().unwrap()
    }
}

/// What to answer.
#[derive(Clone, Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Announced length, if it isn't the body's.
    pub length: Option<usize>,
}

pub fn reply(status: u16) -> Reply {
    Reply { status, headers: vec![], body: vec![], length: None }
}

impl Reply {
    pub fn with(mut self, name: &str, value: impl ToString) -> Self {
        self.headers.push((name.into(), value.to_string()));
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }
}

#[derive(Clone)]
pub struct Server {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
}

type Handler = Arc<dyn Fn(&Seen) -> Reply + Send + Sync>;

impl Server {
    pub fn start(handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::start_at("127.0.0.1", None, handler)
    }

    pub fn start_at(
        ip: &str,
        tls: Option<Arc<rustls::ServerConfig>>,
        handler: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let server = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let (seen, handler): (_, Handler) = (Arc::clone(&server.seen), Arc::new(handler));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (seen, handler, tls) = (Arc::clone(&seen), Arc::clone(&handler), tls.clone());
                std::thread::spawn(move || {
                    let Ok(stream) = stream else { return };
                    let _hung_up = match tls {
                        Some(config) => {
                            let connection = rustls::ServerConnection::new(config).unwrap();
                            serve(rustls::StreamOwned::new(connection, stream), &seen, &handler)
                        }
                        None => serve::<TcpStream>(stream, &seen, &handler),
                    };
                });
            }
        });
        server
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        self.seen().iter().filter(|s| s.method == method && s.path.contains(part)).count()
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub fn repository(&self) -> Repository {
        self.repository_with(&Access::anonymous())
    }

    pub fn repository_with(&self, access: &Arc<Access>) -> Repository {
        let image = ImageRef::parse(&format!("{}/some/image:tag", self.host())).unwrap();
        Client::new(RegistryConfig::default()).repository(&image, access)
    }

    /// A repository of a client that takes only 127.0.0.1 for this machine.
    pub fn repository_outside(&self, access: &Arc<Access>) -> Repository {
        let inward = |ip: IpAddr| ip.to_canonical() == IpAddr::from([127, 0, 0, 1]);
        let image = ImageRef::parse(&format!("{}/some/image:tag", self.host())).unwrap();
        Client::with_transport(RegistryConfig::default(), Transport::with_inward(inward)).repository(&image, access)
    }
}

/// Serves one request of a connection.
fn serve<S: Read + Write>(stream: S, seen: &Mutex<Vec<Seen>>, handler: &Handler) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).ok()?;
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':')?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(n, _)| n == "content-length").map_or(0, |(_, v)| v.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    let request = Seen { method, path, headers, body };
    seen.lock().unwrap().push(request.clone());
    let reply = handler(&request);
    let mut out = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    out += &format!("Content-Length: {}\r\n", reply.length.unwrap_or(reply.body.len()));
    for (name, value) in &reply.headers {
        out += &format!("{name}: {value}\r\n");
    }
    out += "\r\n";
    let mut stream = stream.into_inner();
    stream.write_all(out.as_bytes()).ok()?;
    if request.method != "HEAD" {
        stream.write_all(&reply.body).ok()?;
    }
    stream.flush().ok()
}

pub fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor {
        media_type: media_type.into(),
        digest: Digest::of(bytes),
        size: bytes.len() as u64,
        urls: vec![],
        annotations: Default::default(),
        platform: None,
    }
}

/// Gives one user and password to each host of a list.
pub struct Passwords(pub Vec<String>);

impl Credentials for Passwords {
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Option<Credential>, String>> {
        let known = self.0.iter().any(|h| h == host);
        let login = Credential::Password { user: "me".into(), secret: "geheim".into() };
        Box::pin(async move { Ok(known.then_some(login)) })
    }
}

/// Reads a blob to its end.
pub async fn read_blob(repository: &Repository, wanted: &Descriptor) -> Result<Vec<u8>, String> {
    let mut blob = repository.blob(wanted);
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.chunk().await.map_err(|e| e.to_string())? {
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

pub fn runtime<T>(test: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime
        .block_on(async { tokio::time::timeout(std::time::Duration::from_secs(60), test).await.expect("test hangs") })
}

/// Makes a certificate for `localhost` that nobody signed, and a server's configuration with it.
pub fn self_signed(dir: &std::path::Path) -> Arc<rustls::ServerConfig> {
    use rustls::pki_types::pem::PemObject;
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    let status = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .stderr(std::process::Stdio::null())
        .status()
        .expect("openssl is needed to make a certificate");
    assert!(status.success());
    let certs = rustls::pki_types::CertificateDer::pem_file_iter(&cert).unwrap().collect::<Result<_, _>>().unwrap();
    let key = rustls::pki_types::PrivateKeyDer::from_pem_file(&key).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(certs, key)
        .unwrap();
    Arc::new(config)
}

/// A client for one HTTPS host on `localhost`.
pub fn https_repository(server: &Server, settings: HostConfig, access: &Arc<Access>) -> Repository {
    let host = format!("localhost:{}", server.address.port());
    let mut config = RegistryConfig::default();
    config.set(&host, HostConfig { http: settings.http.or(Some(false)), ..settings });
    Client::new(config).repository(&ImageRef::parse(&format!("{host}/some/image:tag")).unwrap(), access)
}
