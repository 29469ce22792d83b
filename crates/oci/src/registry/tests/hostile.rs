//! Where credentials and connections may go.

use super::server::*;
use crate::registry::{Access, HostConfig, Problem};
use std::sync::Arc;

const BLOB: &[u8] = b"the blob";

/// A registry that wants a token, which it sells itself, and sends blobs on to another address.
fn sending_on(ip: &str, to: impl Fn() -> String + Send + Sync + 'static) -> Server {
    let own = Arc::new(std::sync::OnceLock::<String>::new());
    let realm = Arc::clone(&own);
    let server = Server::start_at(ip, None, move |request| {
        if request.path.starts_with("/token") {
            return reply(200).body("{\"token\":\"bought\"}");
        }
        if request.header("authorization") != Some("Bearer bought") {
            let challenge = format!("Bearer realm=\"{}/token\",service=\"s\"", realm.get().unwrap());
            return reply(401).with("WWW-Authenticate", challenge);
        }
        reply(307).with("Location", to())
    });
    own.set(format!("http://{}", server.host())).unwrap();
    server
}

fn login(server: &Server) -> Arc<Access> {
    Access::new(Arc::new(Passwords(vec![server.host()])))
}

#[test]
fn a_redirect_to_another_host_takes_no_credentials_along() {
    runtime(async {
        let storage = Server::start(|_| reply(200).body(BLOB));
        let to = storage.url("/data");
        let registry = sending_on("127.0.0.1", move || to.clone());
        let repository = registry.repository_with(&login(&registry));
        assert_eq!(read_blob(&repository, &descriptor("x", BLOB)).await.unwrap(), BLOB);
        assert_eq!(storage.seen().len(), 1);
        assert_eq!(storage.seen()[0].header("authorization"), None);
        // What the other host sends is checked all the same.
        let other = read_blob(&repository, &descriptor("x", b"the blub")).await.unwrap_err();
        assert!(other.contains("content has digest"), "{other}");
    });
}

#[test]
fn redirects_end() {
    runtime(async {
        let registry = Server::start(|request| {
            let n: usize = request.path.rsplit('/').next().unwrap().parse().unwrap_or_default();
            reply(307).with("Location", format!("/hop/{}", n + 1))
        });
        let error = read_blob(&registry.repository(), &descriptor("x", BLOB)).await.unwrap_err();
        assert!(error.contains("more than 10 redirects"), "{error}");
        assert_eq!(registry.seen().len(), 11);
    });
}

#[test]
fn nobody_outside_can_send_us_to_this_machine() {
    runtime(async {
        let inside = Server::start(|_| reply(200).body(BLOB));
        let port = inside.address.port();
        for to in [
            format!("http://127.0.0.1:{port}/x"),
            format!("http://localhost:{port}/x"),
            format!("http://[::ffff:127.0.0.1]:{port}/x"),
        ] {
            let registry = sending_on("127.0.0.2", move || to.clone());
            let repository = registry.repository_outside(&login(&registry));
            let error = read_blob(&repository, &descriptor("x", BLOB)).await.unwrap_err();
            assert!(error.contains("of this machine"), "{error}");
        }
        assert!(inside.seen().is_empty());
        // Between addresses of this machine it is fine: that is how local registries work.
        let to = inside.url("/x");
        let registry = sending_on("127.0.0.1", move || to.clone());
        assert_eq!(
            read_blob(&registry.repository_outside(&login(&registry)), &descriptor("x", BLOB)).await.unwrap(),
            BLOB
        );
    });
}

#[test]
fn no_token_server_inside_is_asked_for_a_registry_outside() {
    runtime(async {
        let inside = Server::start(|_| reply(200).body("{\"token\":\"t\"}"));
        let realm = inside.url("/token");
        let registry = Server::start_at("127.0.0.2", None, move |_| {
            reply(401).with("WWW-Authenticate", format!("Bearer realm=\"{realm}\""))
        });
        let error = registry.repository_outside(&login(&registry)).resolve().await.unwrap_err();
        assert!(matches!(error.problem, Problem::Address(_)), "{error}");
        assert!(inside.seen().is_empty());
    });
}

#[test]
fn encryption_is_never_left() {
    let dir = tempfile::tempdir().unwrap();
    let tls = self_signed(dir.path());
    runtime(async {
        let plain = Server::start(|_| reply(200).body("{\"token\":\"t\"}"));
        let trusting = || HostConfig { insecure: Some(true), ..HostConfig::default() };
        let to = plain.url("/x");
        let registry = Server::start_at("127.0.0.1", Some(Arc::clone(&tls)), move |_| reply(307).with("Location", &to));
        let repository = https_repository(&registry, trusting(), &Access::anonymous());
        let error = read_blob(&repository, &descriptor("x", BLOB)).await.unwrap_err();
        assert!(error.contains("leaves encryption"), "{error}");
        // Neither for the password.
        for realm in
            [plain.url("/token"), "file:///etc/passwd".into(), "nonsense".into(), "https://u:p@localhost/".into()]
        {
            let challenge = format!("Bearer realm=\"{realm}\"");
            let registry = Server::start_at("127.0.0.1", Some(Arc::clone(&tls)), move |_| {
                reply(401).with("WWW-Authenticate", &challenge)
            });
            let access = Access::new(Arc::new(Passwords(vec![format!("localhost:{}", registry.address.port())])));
            let error = https_repository(&registry, trusting(), &access).resolve().await.unwrap_err();
            assert!(matches!(error.problem, Problem::Address(_)), "{realm}: {error}");
        }
        assert!(plain.seen().is_empty());
    });
}

#[test]
fn unknown_certificates_are_refused_and_configured_ones_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let tls = self_signed(dir.path());
    runtime(async {
        let registry = Server::start_at("127.0.0.1", Some(tls), |_| reply(200).body(BLOB));
        let anonymous = Access::anonymous();
        let error = https_repository(&registry, HostConfig::default(), &anonymous).resolve().await.unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
        assert!(registry.seen().is_empty());
        let settings = HostConfig { ca: vec![dir.path().join("cert.pem")], ..HostConfig::default() };
        let repository = https_repository(&registry, settings, &anonymous);
        assert_eq!(read_blob(&repository, &descriptor("x", BLOB)).await.unwrap(), BLOB);
        let missing = HostConfig { ca: vec![dir.path().join("no.pem")], ..HostConfig::default() };
        let error = https_repository(&registry, missing, &anonymous).resolve().await.unwrap_err();
        assert!(error.to_string().contains("no.pem"), "{error}");
    });
}

#[test]
fn challenges_that_make_no_sense_end_the_matter() {
    runtime(async {
        for challenge in ["Bearer realm=\"open".into(), format!("Bearer realm=\"http://x/{}\"", "a".repeat(100_000))] {
            let registry = Server::start(move |_| reply(401).with("WWW-Authenticate", &challenge));
            let error = registry.repository_with(&login(&registry)).resolve().await.unwrap_err();
            assert!(matches!(error.problem, Problem::Protocol(_) | Problem::Network(_)), "{error}");
        }
        // No challenge that we know: no credentials.
        let registry = Server::start(|_| reply(401).with("WWW-Authenticate", "Negotiate"));
        let error = registry.repository_with(&login(&registry)).resolve().await.unwrap_err();
        assert!(matches!(error.problem, Problem::NotFoundOrPrivate { .. }), "{error}");
        assert!(registry.seen().iter().all(|s| s.header("authorization").is_none()));
    });
}

#[test]
fn a_password_goes_to_its_host_alone() {
    runtime(async {
        let registry = Server::start(|request| match request.header("authorization") {
            Some("Basic bWU6Z2VoZWlt") => reply(404),
            _ => reply(401).with("WWW-Authenticate", "Basic realm=\"x\""),
        });
        let error = registry.repository_with(&login(&registry)).resolve().await.unwrap_err();
        assert!(matches!(error.problem, Problem::NotFound(_)), "{error}");
        let elsewhere = Access::new(Arc::new(Passwords(vec!["evil.test".into()])));
        let error = registry.repository_with(&elsewhere).resolve().await.unwrap_err();
        assert!(error.to_string().contains("docker login"), "{error}");
    });
}

#[test]
fn what_a_server_says_cannot_reach_the_terminal_raw() {
    runtime(async {
        let message = "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"\\u001b]52;c;aGk=\\u0007 \\u202e no\\n\\rx\"}]}";
        let registry = Server::start(move |_| reply(400).body(message));
        let error = registry.repository().resolve().await.unwrap_err().to_string();
        assert!(error.contains("DENIED") && error.contains("400"), "{error}");
        assert!(!error.chars().any(|c| c.is_control() || c == '\u{202e}'), "{error:?}");
        let registry = Server::start(|_| reply(400).body("x".repeat(1 << 20)));
        assert!(registry.repository().resolve().await.unwrap_err().to_string().len() < 5000);
    });
}
