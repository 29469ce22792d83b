//! Sources against real servers on loopback and a real client: what is asked, what is kept, what is refused.

mod support;

use bud_daemon::control::ControlService;
use bud_daemon::daemon::Daemon;
use bud_daemon::progress::Reporter;
use bud_daemon::sessions::SessionGroup;
use bud_daemon::source::{self, Pin, PinKey, Source, SourceCx};
use bud_daemon::value::Value;
use bud_image::Platform;
use bud_protocol::control::control_server::ControlServer;
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use bud_session::client::{LocalDir, SecretSource};
use bud_session::{Attachables, SessionHandle};
use hyper_util::rt::TokioIo;
use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::sync::{Arc, Mutex};
use support::daemon;
use tokio_util::sync::CancellationToken;
use tonic::transport::{Endpoint, Server};

/// An HTTP server that answers every request with what `answer` makes of it, and keeps all requests.
struct Web {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
}

impl Web {
    fn new(answer: impl Fn(&str) -> String + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let kept = Arc::clone(&requests);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut request = Vec::new();
                let mut byte = [0];
                while !request.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|read| read == 1) {
                    request.push(byte[0]);
                }
                let request = String::from_utf8(request).unwrap();
                let answer = answer(&request);
                kept.lock().unwrap().push(request);
                _ = stream.write_all(answer.as_bytes());
            }
        });
        Self { port, requests }
    }

    fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.port)
    }

    fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

fn ok(headers: &str, body: &str) -> String {
    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len())
}

fn cx(daemon: &Arc<Daemon>, session: &str) -> SourceCx {
    SourceCx {
        daemon: Arc::clone(daemon),
        sessions: SessionGroup::of(&daemon.sessions, session),
        progress: Reporter::silent(),
        cancel: CancellationToken::new(),
        platform: Platform::host(),
    }
}

fn parse(identifier: &str, attrs: &[(&str, &str)]) -> Result<Source, BuildError> {
    let attrs = attrs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    source::parse(&pb::SourceOp { identifier: identifier.into(), attrs }, None)
}

async fn fetch(source: &Source, cx: &SourceCx) -> Result<(Pin, Value), BuildError> {
    let pin = source.pin(cx).await?;
    let value = source.fetch(&pin, cx).await?;
    Ok((pin, value))
}

fn read(daemon: &Daemon, value: &Value, path: &str) -> String {
    let opened = value.open(&daemon.store).unwrap();
    String::from_utf8(opened.read_file(path.as_bytes(), 1 << 20).unwrap()).unwrap()
}

/// Opens a session of a client with the daemon.
async fn client(daemon: &Arc<Daemon>, attachables: Attachables) -> SessionHandle {
    let (near, far) = tokio::io::duplex(1 << 20);
    let service = ControlServer::new(ControlService { daemon: Arc::clone(daemon) });
    let incoming = tokio_stream::once(Ok::<_, std::io::Error>(far));
    tokio::spawn(Server::builder().serve_with_incoming(service, incoming));
    let near = Mutex::new(Some(TokioIo::new(near)));
    let endpoint = Endpoint::from_static("http://localhost");
    let channel = endpoint.connect_with_connector(tower::service_fn(move |_| {
        let near = near.lock().unwrap().take();
        async move { near.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotConnected)) }
    }));
    SessionHandle::open(channel.await.unwrap(), attachables, "key").await.unwrap()
}

fn blobs(root: &Path) -> usize {
    std::fs::read_dir(root.join("blobs/sha256")).map_or(0, Iterator::count)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_url_is_asked_again_by_its_etag() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let web = Web::new(|request| {
        if request.to_ascii_lowercase().contains("if-none-match: \"v1\"") {
            return "HTTP/1.1 304 Not Modified\r\nconnection: close\r\n\r\n".into();
        }
        ok("etag: \"v1\"\r\nlast-modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n", "content")
    });
    let source = parse(&web.url("/dir/file.txt"), &[]).unwrap();
    let cx = cx(&daemon, "");
    let (first, value) = fetch(&source, &cx).await.unwrap();
    assert_eq!(read(&daemon, &value, "/file.txt"), "content");
    let (second, _) = fetch(&source, &cx).await.unwrap();
    assert_eq!(first.key, second.key);
    let requests = web.requests();
    assert_eq!(requests.len(), 2, "{requests:?}");
    assert!(!requests[0].to_ascii_lowercase().contains("if-none-match"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_checksum_is_enough_for_the_key_and_guards_the_content() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let web = Web::new(|_| ok("", "content"));
    let right = bud_image::Digest::of("content").to_string();
    let wrong = bud_image::Digest::of("other").to_string();
    let cx = cx(&daemon, "");
    let source = parse(&web.url("/f"), &[("http.checksum", &wrong)]).unwrap();
    let pin = source.pin(&cx).await.unwrap();
    assert!(web.requests().is_empty(), "the key needs no request");
    let error = source.fetch(&pin, &cx).await.unwrap_err().to_string();
    assert!(error.contains("digest mismatch") && error.contains(&right) && error.contains(&wrong), "{error}");
    assert_eq!(blobs(dir.path()), 0);
    let source = parse(&web.url("/f"), &[("http.checksum", &right)]).unwrap();
    let (_, value) = fetch(&source, &cx).await.unwrap();
    assert_eq!(read(&daemon, &value, "/f"), "content");
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_answers_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let cx = cx(&daemon, "");
    let cut = Web::new(|_| "HTTP/1.1 200 OK\r\ncontent-length: 100\r\nconnection: close\r\n\r\nshort".into());
    assert!(parse(&cut.url("/f"), &[]).unwrap().pin(&cx).await.is_err());
    let gone = Web::new(|_| "HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".into());
    let error = parse(&gone.url("/f?token=hunter2"), &[]).unwrap().pin(&cx).await.unwrap_err().to_string();
    assert!(error.contains("/f: invalid response status 404") && !error.contains("hunter2"), "{error}");
    let web = Web::new(|_| ok("", "x"));
    let long = parse(&web.url(&format!("/{}", "c".repeat(5000))), &[]).unwrap();
    assert!(long.pin(&cx).await.unwrap_err().to_string().contains("file name"));
    assert_eq!(blobs(dir.path()), 0);

    let outside = Web::new(|_| ok("content-disposition: attachment; filename=\"../../c\"\r\n", "x"));
    let (_, value) = fetch(&parse(&outside.url("/a"), &[]).unwrap(), &cx).await.unwrap();
    assert_eq!(read(&daemon, &value, "/c"), "x");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_secret_goes_to_its_own_host_alone() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let other = Web::new(|_| ok("", "moved"));
    let there = other.url("/moved");
    let web = Web::new(move |_| {
        format!("HTTP/1.1 302 Found\r\nlocation: {there}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    });
    let secrets = BTreeMap::from([
        ("HEADER".to_owned(), SecretSource::Value(b"Bearer hunter2\n".to_vec())),
        ("GIT_AUTH_TOKEN".to_owned(), SecretSource::Value(b"hunter2".to_vec())),
    ]);
    let handle = client(&daemon, Attachables { secrets, ..Attachables::default() }).await;
    let cx = cx(&daemon, handle.id());
    let source = parse(&web.url("/f"), &[("http.authheadersecret", "HEADER")]).unwrap();
    source.pin(&cx).await.unwrap();
    assert!(web.requests()[0].to_ascii_lowercase().contains("authorization: bearer hunter2"));
    assert!(!other.requests()[0].contains("hunter2"));

    // Git with a token doesn't even follow.
    let url = web.url("/repository");
    let attrs = [("git.fullurl", url.as_str()), ("git.authtokensecret", "GIT_AUTH_TOKEN")];
    let error = parse("git://x/y#main", &attrs).unwrap().pin(&cx).await.unwrap_err().to_string();
    assert!(error.contains("failed to ask remote") && !error.contains("hunter2"), "{error}");
    let asked = web.requests();
    let git = asked.iter().find(|request| request.contains("git-upload-pack")).expect("git asked");
    // x-access-token:hunter2
    assert!(git.contains("Authorization: basic eC1hY2Nlc3MtdG9rZW46aHVudGVyMg=="), "{git}");
    assert_eq!(other.requests().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_client_uploads_is_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let upload = bud_session::client::UploadSource::new(std::io::Cursor::new(b"a tar".to_vec()));
    let uploads = BTreeMap::from([("abc".to_owned(), upload)]);
    let handle = client(&daemon, Attachables { uploads, ..Attachables::default() }).await;
    let source = parse("http://buildkit-session/abc", &[("http.filename", "context")]).unwrap();
    let (pin, value) = fetch(&source, &cx(&daemon, handle.id())).await.unwrap();
    assert!(matches!(pin.key, PinKey::Fixed(_)));
    assert_eq!(read(&daemon, &value, "/context"), "a tar");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_over_the_wire_is_received_into_what_came_before() {
    let (state, context) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path());
    std::fs::write(context.path().join("same"), "same").unwrap();
    std::fs::write(context.path().join("changes"), "1").unwrap();
    let locals = BTreeMap::from([("context".to_owned(), LocalDir::open(context.path()).unwrap())]);
    let handle = client(&daemon, Attachables { locals, ..Attachables::default() }).await;
    let cx = cx(&daemon, handle.id());
    let source = parse("local://context", &[("local.excludepatterns", "[\"*.log\"]")]).unwrap();
    let received = || {
        let mut found = Vec::new();
        for mount in std::fs::read_dir(state.path().join("cache")).unwrap() {
            if let Ok(meta) = std::fs::metadata(mount.unwrap().path().join("same")) {
                found.push(std::os::unix::fs::MetadataExt::ino(&meta));
            }
        }
        found
    };
    let (pin, first) = fetch(&source, &cx).await.unwrap();
    assert_eq!(pin.key, PinKey::Content);
    assert_eq!(read(&daemon, &first, "/same"), "same");
    let inode = received();

    // The first is still in use: a second one gets a directory of its own, and doesn't change the first.
    std::fs::write(context.path().join("changes"), "22").unwrap();
    std::fs::write(context.path().join("x.log"), "").unwrap();
    let (_, second) = fetch(&source, &cx).await.unwrap();
    assert_eq!(read(&daemon, &second, "/changes"), "22");
    assert_eq!(read(&daemon, &first, "/changes"), "1");
    drop((first, second));
    assert_eq!(received().len(), 2);

    std::fs::write(context.path().join("changes"), "333").unwrap();
    let (_, third) = fetch(&source, &cx).await.unwrap();
    assert_eq!(read(&daemon, &third, "/changes"), "333");
    assert!(received().contains(&inode[0]), "an unchanged file is not written again");
    let opened = third.open(&daemon.store).unwrap();
    assert!(opened.read_file(b"/x.log", 10).is_err());

    let missing = fetch(&parse("local://other", &[]).unwrap(), &cx).await.unwrap_err().to_string();
    assert!(missing.contains("no access allowed to dir \"other\""), "{missing}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_that_was_handed_over_is_read_in_place() {
    let (state, context) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let daemon = daemon(state.path());
    bud_daemon::descriptors::listen(&daemon, &state.path().join("run/api.sock"));
    let socket = daemon.descriptors.socket().expect("a socket for descriptors");
    std::fs::write(context.path().join("f"), "in place").unwrap();
    // Nothing is shared over the wire.
    let handle = client(&daemon, Attachables::default()).await;
    let id = handle.id().to_owned();
    let dir = LocalDir::open(context.path()).unwrap();
    let hand_over = |id: String| {
        let (socket, dir) = (socket.clone(), dir.clone());
        tokio::task::spawn_blocking(move || {
            bud_session::descriptors::hand_over(&socket, &id, &[("context", dir.as_fd())])
        })
    };
    hand_over(id.clone()).await.unwrap().unwrap();
    let source = parse("local://context", &[]).unwrap();
    let (_, value) = fetch(&source, &cx(&daemon, &id)).await.unwrap();
    assert_eq!(read(&daemon, &value, "/f"), "in place");
    assert!(std::fs::read_dir(state.path().join("cache")).is_ok_and(|mounts| mounts.count() == 0));
    assert!(hand_over(id.clone()).await.unwrap().unwrap_err().to_string().contains("before"));

    // Another build's session doesn't reach it, and it is forgotten with its own.
    let other = client(&daemon, Attachables::default()).await;
    assert!(fetch(&source, &cx(&daemon, other.id())).await.is_err());
    drop(handle);
    for _ in 0..200 {
        if daemon.descriptors.directory(&id, "context").is_none() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    panic!("a directory outlives its session");
}
