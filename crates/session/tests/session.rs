//! Both ends of a session against each other: its life, and the short calls.

mod support;

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::Duration;

use bud_session::client::{ContentStore, CredentialProvider, SecretSource, SshAgent, UploadSource};
use bud_session::{Attachables, Credentials, SessionError, SessionHandle, SessionRegistry, methods};
use bytes::Bytes;
use futures_util::StreamExt;
use sha2::{Digest, Sha256};
use support::{connect, pair};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn a_session_is_there_until_the_client_closes_it() {
    let registry = SessionRegistry::new();
    let channel = connect(&registry).await;
    let waiting = {
        let registry = registry.clone();
        tokio::spawn(async move { registry.get("prefix:s1", Duration::from_secs(5)).await })
    };
    let handle = SessionHandle::open_as(channel, Attachables::default(), "ctx:1", "s1").await.unwrap();
    let session = waiting.await.unwrap().unwrap();
    assert_eq!((session.id(), session.shared_key()), ("s1", "ctx:1"));
    assert!(session.supports("/GRPC.health.v1.Health/check"));
    assert!(!session.supports(methods::FILE_SYNC));
    assert!(!session.has_ended());
    drop(handle);
    tokio::time::timeout(Duration::from_secs(5), session.ended()).await.unwrap();
    let error = registry.get("s1", Duration::from_millis(300)).await.unwrap_err();
    assert!(matches!(error, SessionError::Missing(_)), "{error}");
    assert_eq!(registry.count(), 0);
    assert!(session.secret("x").await.unwrap().is_none());
}

#[tokio::test]
async fn an_id_in_use_is_refused_and_its_owner_not_disturbed() {
    let registry = SessionRegistry::new();
    let (one, two) = (connect(&registry).await, connect(&registry).await);
    let secrets = |value: &str| Attachables {
        secrets: BTreeMap::from([("s".to_owned(), SecretSource::Value(value.into()))]),
        ..Attachables::default()
    };
    let _first = SessionHandle::open_as(one, secrets("first"), "", "same").await.unwrap();
    let session = registry.get("same", Duration::from_secs(5)).await.unwrap();
    let second = SessionHandle::open_as(two, secrets("second"), "", "same").await;
    let Err(SessionError::Answer { status, .. }) = second else { panic!("a second session with the same id") };
    assert_eq!(status.code(), tonic::Code::AlreadyExists);
    assert_eq!(session.secret("s").await.unwrap().unwrap(), b"first");
}

#[tokio::test]
async fn a_session_without_an_id_is_refused() {
    let registry = SessionRegistry::new();
    let channel = connect(&registry).await;
    let refused = SessionHandle::open_as(channel, Attachables::default(), "", "").await;
    assert!(matches!(refused, Err(SessionError::Answer { .. })));
}

#[tokio::test]
async fn a_daemon_that_ends_the_session_is_noticed() {
    let pair = pair(Attachables::default()).await;
    pair.session.end();
    tokio::time::timeout(Duration::from_secs(5), pair.handle.ended()).await.unwrap();
    assert!(pair.handle.has_ended());
}

#[tokio::test]
async fn secrets_come_from_where_the_user_said_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    std::fs::write(&file, b"from a file\n").unwrap();
    let large = dir.path().join("large");
    std::fs::write(&large, vec![0; (500 << 10) + 1]).unwrap();
    let source = |id: &str, source| (id.to_owned(), source);
    let pair = pair(Attachables {
        secrets: BTreeMap::from([
            source("file", SecretSource::File(file)),
            source("large", SecretSource::File(large)),
            source("gone", SecretSource::File(dir.path().join("gone"))),
            source("endless", SecretSource::File("/dev/zero".into())),
            source("env", SecretSource::Env("CARGO_PKG_NAME".to_owned())),
            source("value", SecretSource::Value(vec![0, 255])),
        ]),
        ..Attachables::default()
    })
    .await;
    let secret = async |id: &str| pair.session.secret(id).await;
    assert_eq!(secret("file").await.unwrap().unwrap(), b"from a file\n");
    assert_eq!(secret("env").await.unwrap().unwrap(), b"bud-session");
    assert_eq!(secret("value").await.unwrap().unwrap(), [0, 255]);
    assert_eq!(secret("undeclared").await.unwrap(), None);
    assert_eq!(secret("gone").await.unwrap(), None);
    assert!(secret("large").await.unwrap_err().to_string().contains("larger than"));
    assert!(secret("endless").await.unwrap_err().to_string().contains("larger than"));
}

struct OneHost;

#[tonic::async_trait]
impl CredentialProvider for OneHost {
    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, String> {
        match host {
            "registry.test" => Ok(Some(Credentials { username: "u".to_owned(), secret: "p".to_owned() })),
            "broken.test" => Err("the helper failed".to_owned()),
            _ => Ok(None),
        }
    }
}

#[tokio::test]
async fn credentials_are_given_for_their_host_alone() {
    let pair = pair(Attachables { credentials: Some(Arc::new(OneHost)), ..Attachables::default() }).await;
    let found = pair.session.credentials("registry.test").await.unwrap().unwrap();
    assert_eq!((found.username.as_str(), found.secret.as_str()), ("u", "p"));
    assert!(!format!("{found:?}").contains('p') || !format!("{found:?}").contains("secret"));
    assert_eq!(pair.session.credentials("other.test").await.unwrap(), None);
    let error = pair.session.credentials("broken.test").await.unwrap_err();
    assert!(error.to_string().contains("the helper failed"), "{error}");
    assert_eq!(pair.session.token_authority("registry.test", &[0; 32]).await.unwrap(), None);
}

/// An agent that answers each message with its type, and records what came.
async fn fake_agent(path: &std::path::Path) -> Arc<std::sync::Mutex<Vec<u8>>> {
    let listener = tokio::net::UnixListener::bind(path).unwrap();
    let seen = Arc::new(std::sync::Mutex::new(Vec::new()));
    let record = seen.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let record = record.clone();
            tokio::spawn(async move {
                while let Ok(length) = stream.read_u32().await {
                    let mut body = vec![0; length as usize];
                    stream.read_exact(&mut body).await.unwrap();
                    record.lock().unwrap().push(body[0]);
                    stream.write_all(&[0, 0, 0, 2, 100, body[0]]).await.unwrap();
                }
            });
        }
    });
    seen
}

#[tokio::test]
async fn agents_sign_but_are_not_changed() {
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("agent");
    let seen = fake_agent(&agent).await;
    let pair = pair(Attachables {
        ssh: BTreeMap::from([("default".to_owned(), SshAgent { socket: agent })]),
        ..Attachables::default()
    })
    .await;
    pair.session.check_ssh("").await.unwrap();
    pair.session.check_ssh("default").await.unwrap();
    assert!(pair.session.check_ssh("other").await.unwrap_err().is_not_found());

    let socket = dir.path().join("forwarded");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let forward = pair.session.forward_ssh("", listener).unwrap();
    let mut stream = tokio::net::UnixStream::connect(&socket).await.unwrap();
    let mut answers = Vec::new();
    // List, remove all, sign, lock, add.
    for kind in [11u8, 19, 13, 22, 17] {
        stream.write_all(&[0, 0, 0, 3, kind, 1, 2]).await.unwrap();
        let mut answer = vec![0; stream.read_u32().await.unwrap() as usize];
        stream.read_exact(&mut answer).await.unwrap();
        answers.push(answer);
    }
    assert_eq!(answers, [vec![100, 11], vec![5], vec![100, 13], vec![5], vec![5]]);
    assert_eq!(*seen.lock().unwrap(), [11, 13]);
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);

    let mut open = tokio::net::UnixStream::connect(&socket).await.unwrap();
    open.write_all(&[0, 0, 0, 1, 11]).await.unwrap();
    open.read_exact(&mut [0; 6]).await.unwrap();
    drop(forward);
    assert_eq!(open.read(&mut [0]).await.unwrap_or(0), 0);
}

fn digest(data: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(data)))
}

#[tokio::test]
async fn layouts_are_read_and_exports_written() {
    let dir = tempfile::tempdir().unwrap();
    let (layout, export) = (dir.path().join("layout"), dir.path().join("export"));
    let data: Vec<u8> = (0..5_000_000u32).map(|i| (i % 251) as u8).collect();
    let name = digest(&data);
    std::fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    std::fs::write(layout.join("blobs/sha256").join(&name[7..]), &data).unwrap();
    let store = |root: &std::path::Path, writable| ContentStore { root: root.to_owned(), writable };
    let pair = pair(Attachables {
        stores: BTreeMap::from([
            ("oci:base".to_owned(), store(&layout, false)),
            ("export".to_owned(), store(&export, true)),
        ]),
        ..Attachables::default()
    })
    .await;
    let session = &pair.session;
    assert_eq!(session.blob_info("oci:base", &name).await.unwrap().unwrap().size, 5_000_000);
    assert!(session.blob_info("oci:base", &digest(b"other")).await.unwrap().is_none());
    assert!(session.blob_info("oci:other", &name).await.unwrap().is_none());
    assert!(session.blob_info("oci:base", "sha256:../../../etc/passwd").await.is_err());
    let mut read = Vec::new();
    let mut stream = session.read_blob("oci:base", &name, 1000).await.unwrap();
    while let Some(piece) = stream.next().await {
        read.extend_from_slice(&piece.unwrap());
    }
    assert!(read == data[1000..]);

    let mut writer = session.write_blob("export", "r1", &name, data.len() as u64).await.unwrap().unwrap();
    writer.write(Bytes::from(data.clone())).await.unwrap();
    writer.commit().await.unwrap();
    assert!(std::fs::read(export.join("blobs/sha256").join(&name[7..])).unwrap() == data);
    assert!(session.write_blob("export", "r2", &name, data.len() as u64).await.unwrap().is_none());

    let mut wrong = session.write_blob("export", "r3", &digest(b"x"), 1).await.unwrap().unwrap();
    wrong.write(Bytes::from_static(b"y")).await.unwrap();
    assert!(wrong.commit().await.unwrap_err().to_string().contains("digest"));
    assert!(session.write_blob("oci:base", "r4", &digest(b"x"), 1).await.is_err());
    drop(session.write_blob("export", "r5", &digest(b"z"), 1).await.unwrap());
    // Nothing half-written stays.
    for _ in 0..50 {
        if std::fs::read_dir(export.join("blobs/sha256")).unwrap().count() == 1 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("half-written blobs are left");
}

#[tokio::test]
async fn an_upload_is_read_once() {
    let pair = pair(Attachables {
        uploads: BTreeMap::from([("abc".to_owned(), UploadSource::new(std::io::repeat(7).take(1_000_000)))]),
        ..Attachables::default()
    })
    .await;
    let stream = pair.session.upload("buildkit-session", "/abc").await.unwrap();
    let sizes: Vec<usize> = stream.map(|piece| piece.unwrap().len()).collect().await;
    assert_eq!(sizes.iter().sum::<usize>(), 1_000_000);
    assert!(pair.session.upload("buildkit-session", "/abc").await.is_err());
    assert!(pair.session.upload("buildkit-session", "/other").await.err().unwrap().is_not_found());
}

/// A client that stops answering is given up; one that is only busy is not.
#[tokio::test]
async fn what_is_asked_fails_when_the_session_ends() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let pair = pair(Attachables {
        uploads: BTreeMap::from([("abc".to_owned(), UploadSource::new(reader))]),
        ..Attachables::default()
    })
    .await;
    writer.write_all(b"x").unwrap();
    let mut stream = Box::pin(pair.session.upload("buildkit-session", "/abc").await.unwrap());
    assert_eq!(stream.next().await.unwrap().unwrap(), "x");
    drop(pair.handle);
    let rest = tokio::time::timeout(Duration::from_secs(5), stream.next()).await.unwrap();
    assert!(rest.is_none_or(|piece| piece.is_err()));
}

/// Opens a session and never says a word in it.
async fn silent(
    registry: &SessionRegistry,
    id: &str,
    health: &str,
) -> tonic::Streaming<bud_protocol::control::BytesMessage> {
    let mut client = bud_protocol::control::control_client::ControlClient::new(connect(registry).await);
    let mut request = tonic::Request::new(tokio_stream::pending());
    request.metadata_mut().insert(methods::ID, id.parse().unwrap());
    request.metadata_mut().append(methods::METHOD, methods::SECRET.parse().unwrap());
    request.metadata_mut().insert(methods::HEALTH_TIMEOUT, health.parse().unwrap());
    client.session(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_client_that_does_not_answer_is_given_up() {
    let registry = SessionRegistry::new();
    let mut stream = silent(&registry, "mute", "200").await;
    let session = registry.get("mute", Duration::from_secs(5)).await.unwrap();
    let asked = tokio::time::timeout(Duration::from_secs(5), session.secret("x")).await.unwrap();
    assert!(matches!(asked, Err(SessionError::Ended(_))), "{asked:?}");
    // Its stream is ended, too, so that a client that is only broken notices.
    let rest = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(Duration::from_secs(5), rest).await.unwrap();
    assert_eq!(registry.count(), 0);
}

#[tokio::test]
async fn what_is_no_http_ends_the_session_alone() {
    let registry = SessionRegistry::new();
    let channel = connect(&registry).await;
    let mut client = bud_protocol::control::control_client::ControlClient::new(channel.clone());
    let garbage = bud_protocol::control::BytesMessage { data: Bytes::from(vec![b'x'; 100_000]) };
    let mut request = tonic::Request::new(tokio_stream::iter(vec![garbage; 20]).chain(tokio_stream::pending()));
    request.metadata_mut().insert(methods::ID, "noise".parse().unwrap());
    let mut stream = client.session(request).await.unwrap().into_inner();
    let rest = async { while let Ok(Some(_)) = stream.message().await {} };
    tokio::time::timeout(Duration::from_secs(10), rest).await.unwrap();
    let handle = SessionHandle::open_as(channel, Attachables::default(), "", "good").await.unwrap();
    assert!(registry.get(handle.id(), Duration::from_secs(5)).await.is_ok());
    assert!(registry.find("noise").is_none());
}
