//! Blobs and cache mounts.

use crate::testing::Fixture;
use crate::*;
use bud_image::Digest;
use std::io::{Read, Write};
use std::time::Duration;

/// F02, and what comes in is checked.
#[test]
fn blobs_are_checked_coming_in_and_going_out() {
    let fixture = Fixture::new();
    let blobs = fixture.store.blobs();
    let mut writer = blobs.writer().unwrap();
    writer.write_all(b"hello").unwrap();
    let error = writer.commit(Some(&Digest::of("other")), None).unwrap_err();
    assert!(matches!(error, StoreError::DigestMismatch { .. }), "{error}");
    let mut writer = blobs.writer().unwrap();
    writer.write_all(b"hello").unwrap();
    assert!(matches!(writer.commit(None, Some(4)).unwrap_err(), StoreError::SizeMismatch { .. }));
    assert_eq!(std::fs::read_dir(fixture.store.root().join("blobs/new")).unwrap().count(), 0);
    assert!(!blobs.contains(&Digest::of("hello")).unwrap());
    let put = || {
        let mut writer = blobs.writer().unwrap();
        writer.write_all(b"wrong").unwrap();
        writer.restart().unwrap();
        writer.write_all(b"hel").unwrap();
        writer.write_all(b"lo").unwrap();
        writer.commit(Some(&Digest::of("hello")), Some(5)).unwrap().0
    };
    let digest = put();
    let path = fixture.store.root().join("blobs/sha256").join(digest.hex());
    for damage in [&b""[..], b"hel", b"hellO"] {
        put();
        assert_eq!(blobs.read(&digest, 5).unwrap(), b"hello");
        std::fs::write(&path, damage).unwrap();
        let mut bytes = Vec::new();
        let result = blobs.open(&digest).map_err(|e| e.to_string()).and_then(|mut reader| {
            let mut small = [0; 2];
            loop {
                match reader.read(&mut small) {
                    Ok(0) => return Ok(()),
                    Ok(n) => bytes.extend_from_slice(&small[..n]),
                    Err(e) => return Err(e.to_string()),
                }
            }
        });
        assert!(result.is_err());
        assert!(bytes.len() < 5, "the last bytes of a damaged blob were given out");
        // Gone, so that it is made or fetched again.
        assert!(!blobs.contains(&digest).unwrap());
    }
    put();
    assert!(blobs.read(&digest, 4).is_err());
}

/// R06, testCachedMounts.
#[test]
fn cache_mounts_are_shared_by_their_rules() {
    let fixture = Fixture::new();
    let take = |id: &str, sharing| fixture.store.cache_mount(id, sharing, &()).unwrap();
    for id in ["../../..", "/", "", &"x".repeat(5000)] {
        let mount = take(id, Sharing::Shared);
        assert!(mount.path().starts_with(fixture.store.root().join("cache")), "{id}");
        assert!(mount.path().is_dir());
    }
    let one = take("a", Sharing::Shared);
    assert!(one.fresh);
    let two = take("a", Sharing::Shared);
    assert_eq!(one.path(), two.path());
    assert!(!two.fresh);
    let private = take("a", Sharing::Private);
    assert_ne!(private.path(), one.path());
    struct Never;
    impl Observer for Never {
        fn is_cancelled(&self) -> bool {
            true
        }
    }
    assert!(matches!(fixture.store.cache_mount("a", Sharing::Locked, &Never), Err(StoreError::Cancelled)));
    let path = one.path();
    std::fs::write(path.join("f"), "1").unwrap();
    drop((one, two, private));
    let locked = take("a", Sharing::Locked);
    assert_eq!(locked.path(), path);
    assert!(matches!(fixture.store.cache_mount("a", Sharing::Shared, &Never), Err(StoreError::Cancelled)));
    fixture.store.clear_cache_mount("a").unwrap();
    assert!(path.join("f").exists(), "in use");
    let waiting = std::thread::scope(|scope| {
        let handle = scope.spawn(|| take("a", Sharing::Locked).path());
        std::thread::sleep(Duration::from_millis(50));
        assert!(!handle.is_finished());
        drop(locked);
        handle.join().unwrap()
    });
    assert_eq!(waiting, path);
    fixture.store.clear_cache_mount("a").unwrap();
    assert!(take("a", Sharing::Shared).fresh);
}
