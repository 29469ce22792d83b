use super::*;

fn parse(url: &str, attrs: &[(&str, &str)]) -> Result<HttpSource, BuildError> {
    HttpSource::parse(url, &attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

#[test]
fn attributes_are_read_and_bad_ones_refused() {
    let source = parse("https://h/f", &[("http.perm", "755"), ("http.uid", "3"), ("http.header.accept", "x")]).unwrap();
    assert_eq!((source.mode, source.uid, source.gid), (Some(0o755), 3, 0));
    assert_eq!(source.headers.len(), 1);
    for (key, value) in [
        ("http.perm", "8"),
        ("http.perm", "177777"),
        ("http.uid", "-1"),
        ("http.uid", "4294967295"),
        ("http.checksum", "sha256:12"),
        ("http.filename", "../x"),
        ("http.filename", "a/b"),
    ] {
        assert!(parse("https://h/f", &[(key, value)]).is_err(), "{key}={value}");
    }
    assert!(parse("ftp://h/f", &[]).is_err());
}

#[test]
fn times_of_http_are_read() {
    assert_eq!(http_date("Sun, 06 Nov 1994 08:49:37 GMT"), Some(784_111_777));
    assert_eq!(http_date(""), None);
    assert_eq!(http_date("soon"), None);
}

#[test]
fn nothing_secret_of_a_url_is_shown() {
    let url = Url::parse("https://user:hunter2@h:8443/a?token=hunter2#x").unwrap();
    assert_eq!(shown(&url), "https://h:8443/a");
}

#[tokio::test]
async fn content_is_kept_under_its_digest_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), bud_store::Options::default()).unwrap();
    let digest = Digest::of("hello");
    let feed = async |pieces: &mpsc::Sender<Bytes>| {
        pieces.send(Bytes::from_static(b"hel")).await.unwrap();
        pieces.send(Bytes::from_static(b"lo")).await.unwrap();
        Ok(true)
    };
    let other = Digest::of("other");
    assert!(matches!(keep(&store, Some(other), feed).await, Err(KeepError::Store(StoreError::DigestMismatch { .. }))));
    assert!(!store.blobs().contains(&digest).unwrap());
    let cut = async |pieces: &mpsc::Sender<Bytes>| {
        pieces.send(Bytes::from_static(b"hello")).await.unwrap();
        Ok(false)
    };
    assert!(matches!(keep(&store, None, cut).await, Err(KeepError::Short)));
    assert!(!store.blobs().contains(&digest).unwrap());
    assert!(keep(&store, Some(digest), feed).await.is_ok_and(|kept| kept == digest));

    let source = parse("http://h/f", &[("http.perm", "4755")]).unwrap();
    let value = source.layer(&store, &digest, "f", Some(1000)).unwrap();
    let Value::Stored(snapshot, _) = &value else { panic!("not stored") };
    let tree = store.tree(snapshot).unwrap();
    assert_eq!(tree.read_file(b"/f", 100).unwrap(), b"hello");
    let fd = tree.open(b"/f", rustix::fs::OFlags::RDONLY).unwrap();
    let stat = rustix::fs::fstat(&fd).unwrap();
    assert_eq!((stat.st_mode & 0o7777, stat.st_mtime), (0o4755, 1000));
}
