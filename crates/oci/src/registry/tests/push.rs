//! Uploading to registries that don't behave.

use super::server::*;
use crate::registry::{Access, BlobSource, Problem, Pushed};
use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::BoxStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

const BLOB: &[u8] = b"some bytes of a layer";

fn quiet() -> Arc<dyn Fn(u64) + Send + Sync> {
    Arc::new(|_| ())
}

#[test]
fn an_upload_to_another_host_takes_no_credentials_along() {
    runtime(async {
        let storage = Server::start(|_| reply(201));
        let to = storage.url("/put?x=1");
        let registry = Server::start(move |request| match (&request.method[..], request.header("authorization")) {
            (_, None) => reply(401).with("WWW-Authenticate", "Basic realm=\"x\""),
            ("HEAD", _) => reply(404),
            _ => reply(202).with("Location", &to),
        });
        let access = Access::new(Arc::new(Passwords(vec![registry.host()])));
        let source = Bytes::from_static(BLOB);
        let pushed = registry.repository_with(&access).push_blob(&descriptor("x", BLOB), &source, &[], quiet()).await;
        assert_eq!(pushed.unwrap(), Pushed::Uploaded);
        let put = &storage.seen()[0];
        assert_eq!((&put.method[..], &put.body[..], put.header("authorization")), ("PUT", BLOB, None));
        assert!(put.path.starts_with("/put?x=1&digest=sha256%3A"), "{}", put.path);
        assert!(registry.seen().iter().any(|s| s.header("authorization").is_some()));
    });
}

#[test]
fn an_upload_is_not_taken_inside_from_outside() {
    runtime(async {
        let inside = Server::start(|_| reply(201));
        let to = inside.url("/put");
        let registry = Server::start_at("127.0.0.2", None, move |request| match &request.method[..] {
            "HEAD" => reply(404),
            _ => reply(202).with("Location", &to),
        });
        let repository = registry.repository_outside(&Access::anonymous());
        let error =
            repository.push_blob(&descriptor("x", BLOB), &Bytes::from_static(BLOB), &[], quiet()).await.unwrap_err();
        assert!(matches!(error.problem, Problem::Address(_)), "{error}");
        assert!(inside.seen().is_empty());
    });
}

#[test]
fn a_mount_that_is_answered_with_an_upload_is_one() {
    runtime(async {
        for status in [201, 202, 404] {
            let registry = Server::start(move |request| match (&request.method[..], request.path.contains("mount=")) {
                ("HEAD", _) => reply(404),
                ("POST", true) => reply(status).with("Location", "/up/1"),
                ("POST", false) => reply(202).with("Location", "/up/2"),
                _ => reply(201),
            });
            let lenders = ["some/image".to_owned(), "library/base".to_owned()];
            let pushed = registry
                .repository()
                .push_blob(&descriptor("x", BLOB), &Bytes::from_static(BLOB), &lenders, quiet())
                .await
                .unwrap();
            assert_eq!(pushed, if status == 201 { Pushed::Mounted } else { Pushed::Uploaded });
            assert_eq!(registry.count("POST", "from=library%2Fbase"), 1);
            assert_eq!(registry.count("POST", "from=some%2Fimage"), 0);
            assert_eq!(
                registry.count("PUT", if status == 202 { "/up/1" } else { "/up/2" }),
                usize::from(status != 201)
            );
        }
    });
}

#[test]
fn a_blob_that_is_there_is_not_sent() {
    runtime(async {
        let registry = Server::start(|_| reply(200));
        let pushed =
            registry.repository().push_blob(&descriptor("x", BLOB), &Bytes::from_static(BLOB), &[], quiet()).await;
        assert_eq!(pushed.unwrap(), Pushed::Existed);
        assert_eq!(registry.seen().len(), 1);
    });
}

#[test]
fn a_failed_upload_starts_anew_and_a_refused_one_ends() {
    runtime(async {
        for (status, tries) in [(503, 2), (500, 2), (413, 1), (403, 1)] {
            let puts = AtomicUsize::new(0);
            let registry = Server::start(move |request| match &request.method[..] {
                "HEAD" => reply(404),
                "POST" => reply(202).with("Location", "/up"),
                _ if puts.fetch_add(1, Ordering::SeqCst) == 0 => reply(status).body("{\"message\":\"too much\"}"),
                _ => reply(201),
            });
            let progress = Arc::new(Mutex::new(Vec::new()));
            let seen = Arc::clone(&progress);
            let result = registry
                .repository()
                .push_blob(
                    &descriptor("x", BLOB),
                    &Bytes::from_static(BLOB),
                    &[],
                    Arc::new(move |n| seen.lock().unwrap().push(n)),
                )
                .await;
            assert_eq!(registry.count("PUT", "/up"), tries, "{status}");
            match result {
                Ok(pushed) => assert_eq!((pushed, tries), (Pushed::Uploaded, 2)),
                Err(error) => assert!(tries == 1 && error.to_string().contains("too much"), "{error}"),
            }
            assert_eq!(progress.lock().unwrap().iter().filter(|n| **n == 0).count(), tries);
        }
    });
}

#[test]
fn a_token_that_dies_during_an_upload_is_renewed_once() {
    runtime(async {
        for lives in [true, false] {
            let (sold, base) = (AtomicUsize::new(0), Arc::new(OnceLock::<String>::new()));
            let realm = Arc::clone(&base);
            let registry = Server::start(move |request| {
                let challenge =
                    || reply(401).with("WWW-Authenticate", format!("Bearer realm=\"{}\"", realm.get().unwrap()));
                if request.route() == "/token" {
                    return reply(200).body(format!("{{\"token\":\"t{}\"}}", sold.fetch_add(1, Ordering::SeqCst)));
                }
                match (&request.method[..], request.header("authorization")) {
                    (_, None) => challenge(),
                    ("HEAD", _) => reply(404),
                    ("POST", _) => reply(202).with("Location", "/up"),
                    (_, Some("Bearer t1")) if lives => reply(201),
                    _ => challenge(),
                }
            });
            base.set(registry.url("/token")).unwrap();
            let result =
                registry.repository().push_blob(&descriptor("x", BLOB), &Bytes::from_static(BLOB), &[], quiet()).await;
            assert_eq!(result.is_ok(), lives, "{result:?}");
            assert_eq!(registry.count("PUT", "/up"), 2);
        }
    });
}

struct Broken;

impl BlobSource for Broken {
    fn open(&self) -> BoxStream<'static, std::io::Result<Bytes>> {
        let parts = [Ok(Bytes::from_static(b"some")), Err(std::io::Error::other("disk on fire"))];
        futures_util::stream::iter(parts).boxed()
    }
}

#[test]
fn a_source_that_fails_is_told_as_such() {
    runtime(async {
        let registry = Server::start(|request| match &request.method[..] {
            "HEAD" => reply(404),
            _ => reply(202).with("Location", "/up"),
        });
        let error = registry.repository().push_blob(&descriptor("x", BLOB), &Broken, &[], quiet()).await.unwrap_err();
        assert!(error.to_string().contains("disk on fire"), "{error}");
    });
}
