//! Damage, cuts, limits and waits while pulling.

use super::server::*;
use crate::registry::{Access, Client, Problem, RegistryConfig};
use bud_image::manifest::media_type;
use bud_image::{Digest, ImageRef};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn blob() -> Vec<u8> {
    (0..100_000u32).flat_map(u32::to_le_bytes).collect()
}

/// Serves a blob of which each answer ends after some bytes.
fn cutting(bytes: usize, ranged: impl Fn(usize, usize) -> Reply + Send + Sync + 'static) -> Server {
    Server::start(move |request| {
        let blob = blob();
        match request.header("range") {
            None => Reply { length: Some(blob.len()), ..reply(200).body(&blob[..bytes]) },
            Some(range) => {
                let start: usize = range.trim_start_matches("bytes=").trim_end_matches('-').parse().unwrap();
                ranged(start, blob.len())
            }
        }
    })
}

#[test]
fn a_cut_blob_is_resumed_where_it_ended() {
    runtime(async {
        let server = cutting(150_000, |start, total| {
            let blob = blob();
            let end = (start + 100_000).min(total);
            let answer = reply(206).with("Content-Range", format!("bytes {start}-{}/{total}", total - 1));
            Reply { length: Some(total - start), ..answer.body(&blob[start..end]) }
        });
        assert_eq!(read_blob(&server.repository(), &descriptor("x", &blob())).await.unwrap(), blob());
        assert_eq!(server.seen().len(), 4);
    });
}

#[test]
fn a_server_that_ignores_ranges_is_read_from_the_start() {
    runtime(async {
        let server = cutting(150_000, |_, _| reply(200).body(blob()));
        assert_eq!(read_blob(&server.repository(), &descriptor("x", &blob())).await.unwrap(), blob());
        let other = cutting(150_000, |_, _| {
            let mut other = blob();
            other[160_000] ^= 1;
            reply(200).body(other)
        });
        let error = read_blob(&other.repository(), &descriptor("x", &blob())).await.unwrap_err();
        assert!(error.contains("content has digest"), "{error}");
    });
}

#[test]
fn wrong_parts_and_surplus_are_errors() {
    runtime(async {
        let wrong = cutting(150_000, |_, total| {
            reply(206).with("Content-Range", format!("bytes 5-{}/{total}", total - 1)).body(&blob()[5..])
        });
        let error = read_blob(&wrong.repository(), &descriptor("x", &blob())).await.unwrap_err();
        assert!(error.contains("another part"), "{error}");
        // Bounded: five tries in a row that bring nothing.
        assert!(wrong.seen().len() <= 6, "{}", wrong.seen().len());
        let surplus = Server::start(|_| reply(200).body([blob(), vec![1]].concat()));
        let error = read_blob(&surplus.repository(), &descriptor("x", &blob())).await.unwrap_err();
        assert!(error.contains("bytes where"), "{error}");
        let short = Server::start(|_| reply(200).body(&blob()[1..]));
        assert!(read_blob(&short.repository(), &descriptor("x", &blob())).await.is_err());
    });
}

#[test]
fn one_flipped_byte_anywhere_is_refused() {
    let layer = blob();
    let config = format!(
        "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
        Digest::of(&layer)
    );
    let describe = |kind: &str, bytes: &[u8]| serde_json::to_string(&descriptor(kind, bytes)).unwrap();
    let manifest = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{},\"layers\":[{}]}}",
        media_type::OCI_MANIFEST,
        describe(media_type::OCI_CONFIG, config.as_bytes()),
        describe(media_type::OCI_LAYER, &layer)
    );
    for flipped in ["manifests", "config", "layer", "nothing"] {
        let parts = (manifest.clone().into_bytes(), config.clone().into_bytes(), layer.clone());
        let server = Server::start(move |request| {
            let (manifest, config, layer) = &parts;
            let (name, bytes) = if request.path.contains("manifests") {
                ("manifests", manifest)
            } else if request.path.contains(&Digest::of(config).hex()) {
                ("config", config)
            } else {
                ("layer", layer)
            };
            let mut bytes = bytes.clone();
            if name == flipped {
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
            }
            let answer = reply(200).with("Content-Type", media_type::OCI_MANIFEST);
            answer.with("Docker-Content-Digest", Digest::of(manifest)).body(bytes)
        });
        runtime(async {
            let repository = server.repository();
            let resolved = repository.resolve().await.unwrap();
            let image = repository.image_for(&resolved, &"linux/amd64".parse().unwrap()).await;
            match flipped {
                "manifests" | "config" => assert!(matches!(image.unwrap_err().problem, Problem::Digest { .. })),
                _ => {
                    let image = image.unwrap();
                    assert_eq!(image.config.architecture, "amd64");
                    let read = read_blob(&repository, &image.manifest.layers[0]).await;
                    assert_eq!(read.is_err(), flipped == "layer", "{read:?}");
                }
            }
        });
    }
}

#[test]
fn an_index_that_names_itself_ends() {
    runtime(async {
        // By digest it can't; by a tag's answers without digests it could go on for ever.
        let deep: Vec<String> =
            (0..10).fold(vec!["{\"schemaVersion\":2,\"manifests\":[]}".to_owned()], |mut all, _| {
                let inner = descriptor(media_type::OCI_INDEX, all.last().unwrap().as_bytes());
                let inner = serde_json::to_string(&inner).unwrap();
                all.push(format!("{{\"schemaVersion\":2,\"manifests\":[{inner}]}}"));
                all
            });
        let server = Server::start(move |request| {
            let found = deep.iter().find(|text| request.path.contains(&Digest::of(text).hex()));
            let text = found.unwrap_or(deep.last().unwrap());
            reply(200).with("Content-Type", media_type::OCI_INDEX).body(text.as_bytes())
        });
        let repository = server.repository();
        let resolved = repository.resolve().await.unwrap();
        let error = repository.image_for(&resolved, &"linux/amd64".parse().unwrap()).await.unwrap_err();
        assert!(error.to_string().contains("deep"), "{error}");
    });
}

#[test]
fn a_manifest_without_end_is_not_read() {
    runtime(async {
        for length in [None, Some(1 << 30)] {
            let server = Server::start(move |request| match &request.method[..] {
                "HEAD" => reply(405),
                _ => Reply { length: length.or(Some(5 << 20)), ..reply(200).body(vec![b' '; 5 << 20]) },
            });
            let error = server.repository().resolve().await.unwrap_err();
            assert!(error.to_string().contains("at most 4194304"), "{error}");
        }
    });
}

#[test]
fn tries_are_bounded_and_some_errors_are_final() {
    runtime(async {
        for (status, most) in [(503, 5), (429, 5), (413, 2), (403, 1), (401, 1)] {
            let server = Server::start(move |_| reply(status).with("Retry-After", "0"));
            let error = server.repository().resolve().await.unwrap_err();
            assert!(error.to_string().contains(&server.host()), "{error}");
            assert!(error.to_string().contains("some/image:tag"), "{error}");
            assert_eq!(server.seen().len(), most, "{status}: {error}");
            assert_eq!(error.problem.is_unavailable(), status != 413, "{status}: {error}");
        }
        // One failure in between is not seen by anybody.
        let count = AtomicUsize::new(0);
        let server = Server::start(move |_| match count.fetch_add(1, Ordering::SeqCst) {
            0 => reply(503),
            _ => reply(200)
                .with("Content-Type", media_type::OCI_MANIFEST)
                .with("Docker-Content-Digest", Digest::of("x"))
                .body("x"),
        });
        assert_eq!(server.repository().resolve().await.unwrap().descriptor.digest, Digest::of("x"));
    });
}

#[test]
fn a_token_that_dies_is_bought_anew_once() {
    runtime(async {
        let sold = AtomicUsize::new(0);
        let base = Arc::new(std::sync::OnceLock::<String>::new());
        let realm = Arc::clone(&base);
        let server = Server::start(move |request| {
            if request.route() == "/token" {
                assert!(request.path.contains("scope=repository%3Asome%2Fimage%3Apull"), "{}", request.path);
                assert_eq!(request.header("authorization"), Some("Basic bWU6Z2VoZWlt"));
                let n = sold.fetch_add(1, Ordering::SeqCst);
                return reply(200).body(format!("{{\"access_token\":\"t{n}\",\"expires_in\":300}}"));
            }
            // The first token works for one request.
            match (request.header("authorization"), sold.load(Ordering::SeqCst)) {
                (Some("Bearer t0"), 1) if request.path.contains("manifests") => reply(404),
                (Some("Bearer t1"), 2) if request.path.contains("blobs") => reply(200).body(blob()),
                _ => reply(401)
                    .with("WWW-Authenticate", format!("Bearer realm=\"{}\",service=\"s\"", realm.get().unwrap())),
            }
        });
        base.set(server.url("/token")).unwrap();
        let access = Access::new(Arc::new(Passwords(vec![server.host()])));
        let repository = server.repository_with(&access);
        assert!(repository.resolve().await.unwrap_err().problem.is_not_found());
        assert_eq!(read_blob(&repository, &descriptor("x", &blob())).await.unwrap(), blob());
        assert_eq!(server.count("GET", "/token"), 2);
        // Always 401 ends after one more token.
        let before = server.seen().len();
        let error = repository.resolve().await.unwrap_err();
        assert!(matches!(&error.problem, Problem::Refused { user, .. } if user == "me"), "{error}");
        assert!(server.seen().len() - before <= 4);
    });
}

#[test]
fn mirrors_are_asked_first_and_failing_ones_passed_over() {
    runtime(async {
        let answer = |digest: &'static str| {
            move |_: &Seen| {
                reply(200)
                    .with("Content-Type", media_type::OCI_MANIFEST)
                    .with("Docker-Content-Digest", Digest::of(digest))
                    .body(digest)
            }
        };
        let (bad, good) = (Server::start(|_| reply(404)), Server::start(answer("m")));
        let origin = Server::start(answer("o"));
        let toml = format!(
            "[registry.\"{}\"]\nmirrors = [\"127.0.0.1:1\", \"{}\", \"{}/proxy\"]",
            origin.host(),
            bad.host(),
            good.host()
        );
        let client = Client::new(RegistryConfig::from_toml(&toml).unwrap());
        let image = ImageRef::parse(&format!("{}/a/b:t", origin.host())).unwrap();
        let resolved = client.repository(&image, &Access::anonymous()).resolve().await.unwrap();
        assert_eq!(resolved.descriptor.digest, Digest::of("m"));
        assert_eq!(good.seen()[0].route(), "/v2/proxy/a/b/manifests/t");
        assert!(good.seen()[0].path.ends_with(&format!("ns={}", origin.host().replace(':', "%3A"))));
        assert_eq!(bad.seen().len(), 2);
        assert!(origin.seen().is_empty());
    });
}

#[test]
fn what_is_not_there_is_told_with_where_and_what_to_do() {
    runtime(async {
        let image = ImageRef::parse("127.0.0.1:1/a/b:t").unwrap();
        let error = Client::new(RegistryConfig::default())
            .repository(&image, &Access::anonymous())
            .resolve()
            .await
            .unwrap_err();
        assert!(error.problem.is_unavailable());
        let text = error.to_string();
        assert!(
            text.starts_with(
                "pull 127.0.0.1:1/a/b:t: 127.0.0.1:1: can't connect to http://127.0.0.1:1/v2/a/b/manifests/t: "
            ),
            "{text}"
        );
        assert!(text.contains("refused"), "{text}");
    });
}
