//! Images pushed to and pulled from a real registry, by daemons without sockets.
//!
//! Needs `docker-registry` (Debian's package) and what overlay mounts need: root, or a user namespace.

mod support;

use bud_daemon::control::solve::solve;
use bud_daemon::daemon::Daemon;
use bud_protocol::control::{Exporter, SolveRequest};
use bud_protocol::errors::BuildError;
use bud_protocol::{llb, pb};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use support::daemon;

struct Registry {
    child: Child,
    host: String,
    data: PathBuf,
}

impl Registry {
    fn start(dir: &Path) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let data = dir.join("registry");
        let config = dir.join("registry.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            data.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry (Debian package of that name) is needed for this test");
        let host = format!("127.0.0.1:{port}");
        for _ in 0..200 {
            if std::net::TcpStream::connect(&host).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        Self { child, host, data }
    }

    /// Changes a byte of a stored blob.
    fn damage(&self, digest: &str) {
        let hex = digest.trim_start_matches("sha256:");
        let path = self.data.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]));
        let mut bytes = std::fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(&path, bytes).unwrap();
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// A file made on a base.
fn definition(base: Option<&str>, mode: &str, path: &str) -> pb::Definition {
    let mut definition = pb::Definition::default();
    let mut add = |op: pb::Op| {
        let bytes = llb::encode_op(&op);
        let digest = llb::op_digest(&bytes);
        definition.def.push(bytes);
        definition.metadata.insert(digest.clone(), pb::OpMetadata::default());
        pb::Input { digest, index: 0 }
    };
    let base = base.map(|reference| {
        let attrs = BTreeMap::from([("image.resolvemode".to_owned(), mode.to_owned())]);
        let source =
            pb::SourceOp { identifier: format!("docker-image://{reference}"), attrs: attrs.into_iter().collect() };
        add(pb::Op { op: Some(pb::op::Op::Source(source)), ..Default::default() })
    });
    let mkfile = pb::FileActionMkFile {
        path: path.into(),
        mode: 0o644,
        data: path.repeat(5000).into_bytes(),
        timestamp: -1,
        ..Default::default()
    };
    let action = pb::FileAction {
        input: if base.is_some() { 0 } else { -1 },
        secondary_input: -1,
        output: 0,
        action: Some(pb::file_action::Action::Mkfile(mkfile)),
    };
    let inputs: Vec<_> = base.into_iter().collect();
    let file =
        add(pb::Op { inputs, op: Some(pb::op::Op::File(pb::FileOp { actions: vec![action] })), ..Default::default() });
    definition.def.push(pb::Op { inputs: vec![file], ..Default::default() }.encode_to_vec());
    definition
}

async fn build(
    daemon: &Arc<Daemon>,
    definition: pb::Definition,
    attrs: &[(&str, &str)],
) -> Result<HashMap<String, String>, BuildError> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let attrs = attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let request = SolveRequest {
        r#ref: format!("images-{}", NUMBER.fetch_add(1, Ordering::Relaxed)),
        definition: Some(definition),
        exporters: vec![Exporter { r#type: "image".into(), attrs }],
        ..Default::default()
    };
    Ok(solve(daemon, request).await?.exporter_response.into_iter().collect())
}

fn layers(daemon: &Arc<Daemon>, manifest: &str) -> Vec<String> {
    let bytes = daemon.store.blobs().read(&manifest.parse().unwrap(), 1 << 20).unwrap();
    let manifest: bud_image::Manifest = serde_json::from_slice(&bytes).unwrap();
    manifest.layers.iter().map(|l| l.digest.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_pushed_is_pulled_and_built_upon() {
    let dir = tempfile::tempdir().unwrap();
    let registry = Registry::start(dir.path());
    let root = |name: &str| {
        let root = dir.path().join(name);
        std::fs::create_dir(&root).unwrap();
        root
    };
    let first = daemon(&root("first"));
    let base = format!("{}/one/base:v1", registry.host);
    let pushed = build(&first, definition(None, "", "/a"), &[("name", &base), ("push", "true")]).await.unwrap();
    let base_digest = pushed["containerimage.digest"].clone();
    assert_eq!(pushed["image.name"], base);
    let base_layers = layers(&first, &base_digest);
    assert_eq!(base_layers.len(), 1);

    // Another daemon pulls it, builds on it and pushes elsewhere: the base's layer goes as it came.
    let second = daemon(&root("second"));
    let next = format!("{}/two/next:v1", registry.host);
    let pushed = build(&second, definition(Some(&base), "", "/b"), &[("name", &next), ("push", "true")]).await.unwrap();
    let next_layers = layers(&second, &pushed["containerimage.digest"]);
    assert_eq!((next_layers.len(), &next_layers[0]), (2, &base_layers[0]));
    // By digest as well, and with zstd where it is forced.
    let by_digest = format!("{}/one/base@{base_digest}", registry.host);
    let zstd = [("name", &next[..]), ("push", "true"), ("compression", "zstd"), ("force-compression", "true")];
    let pushed = build(&second, definition(Some(&by_digest), "", "/b"), &zstd).await.unwrap();
    let zstd_layers = layers(&second, &pushed["containerimage.digest"]);
    assert!(zstd_layers.iter().all(|l| !next_layers.contains(l)), "{zstd_layers:?}");

    // A damaged blob is refused, leaves nothing behind, and the daemon goes on.
    registry.damage(&zstd_layers[1]);
    let third = daemon(&root("third"));
    let error = build(&third, definition(Some(&next), "", "/c"), &[]).await.unwrap_err();
    assert!(error.message.contains("two/next") && error.message.contains(&zstd_layers[1]), "{error}");
    assert!(!third.store.blobs().contains(&zstd_layers[1].parse().unwrap()).unwrap());
    build(&third, definition(Some(&base), "", "/c"), &[]).await.unwrap();

    // One of our own that was damaged on the disk is fetched again.
    let fourth = daemon(&root("fourth"));
    let blob: bud_image::Digest = base_layers[0].parse().unwrap();
    fourth.store.blobs().put(&first.store.blobs().read(&blob, 1 << 20).unwrap()).unwrap();
    let path = dir.path().join("fourth/blobs/sha256").join(blob.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    build(&fourth, definition(Some(&base), "", "/c"), &[]).await.unwrap();
    assert!(fourth.store.blobs().read(&blob, 1 << 20).is_ok());

    // A tag of a moment ago is not asked for again; who insists is told where it failed.
    let host = registry.host.clone();
    drop(registry);
    build(&second, definition(Some(&base), "", "/d"), &[]).await.unwrap();
    let error = build(&second, definition(Some(&base), "pull", "/e"), &[]).await.unwrap_err();
    assert!(error.message.contains(&host), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn names_in_our_own_store_win_and_digests_come_only_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let made = build(&daemon, definition(None, "", "/a"), &[("name", "mine"), ("bud.digests", "lazy")]).await.unwrap();
    assert_eq!(made.get("containerimage.digest"), None);
    assert_eq!(made["image.name"], "docker.io/library/mine:latest");
    let blobs = || std::fs::read_dir(dir.path().join("blobs/sha256")).unwrap().count();
    assert_eq!(blobs(), 0);
    let base = "docker.io/library/mine:latest";
    build(&daemon, definition(Some(base), "", "/b"), &[("name", "next"), ("bud.digests", "lazy")]).await.unwrap();
    assert_eq!(blobs(), 0);
    let made = build(&daemon, definition(Some(base), "", "/b"), &[("name", "next")]).await.unwrap();
    assert_eq!(layers(&daemon, &made["containerimage.digest"]).len(), 2);
    // Two layers, config, manifest.
    assert_eq!(blobs(), 4);
    // Asked again, nothing is made again, and the answer is the same.
    let again = build(&daemon, definition(Some(base), "", "/b"), &[("name", "next")]).await.unwrap();
    assert_eq!(again["containerimage.digest"], made["containerimage.digest"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_makes_the_same_image_anywhere() {
    let dir = tempfile::tempdir().unwrap();
    let mut digests = Vec::new();
    for name in ["first", "second"] {
        let root = dir.path().join(name);
        std::fs::create_dir(&root).unwrap();
        let daemon = daemon(&root);
        let attrs = [("name", "x"), ("source-date-epoch", "1000"), ("rewrite-timestamp", "true")];
        digests
            .push(build(&daemon, definition(None, "", "/a"), &attrs).await.unwrap()["containerimage.digest"].clone());
        std::thread::sleep(std::time::Duration::from_millis(1100));
    }
    assert_eq!(digests[0], digests[1]);
}

/// Returns the names in an archive and its `manifest.json`.
async fn saved(daemon: &Arc<Daemon>, name: &str, skip: &[String]) -> (Vec<String>, serde_json::Value) {
    use futures_util::StreamExt as _;
    use std::io::Read as _;
    let mut saved = bud_daemon::images::save(daemon, name, skip).await.unwrap();
    let mut bytes = Vec::new();
    while let Some(piece) = saved.archive.next().await {
        bytes.extend_from_slice(&piece.unwrap());
    }
    let mut reader = bud_oci::tar::Reader::new(&bytes[..]);
    let (mut names, mut manifest) = (Vec::new(), serde_json::Value::Null);
    while let Some(mut entry) = reader.next_entry().unwrap() {
        names.push(entry.header.display_name());
        if entry.header.path == b"manifest.json" {
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            manifest = serde_json::from_str(&text).unwrap();
        }
    }
    (names, manifest[0].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_saved_image_leaves_out_what_the_receiver_has() {
    let dir = tempfile::tempdir().unwrap();
    let daemon = daemon(dir.path());
    let lazy = ("bud.digests", "lazy");
    build(&daemon, definition(None, "", "/a"), &[("name", "mine"), lazy]).await.unwrap();
    let base = "docker.io/library/mine:latest";
    build(&daemon, definition(Some(base), "", "/b"), &[("name", "next"), lazy]).await.unwrap();
    let (names, manifest) = saved(&daemon, "next", &[]).await;
    assert_eq!(manifest["RepoTags"], serde_json::json!(["next:latest"]));
    let layers: Vec<String> = serde_json::from_value(manifest["Layers"].clone()).unwrap();
    assert!(layers.len() == 2 && layers.iter().all(|layer| names.contains(layer)), "{names:?}");
    // The chain ID of the lowest layer is its diff ID.
    let config = manifest["Config"].as_str().unwrap().rsplit('/').next().unwrap();
    let config = daemon.store.blobs().read(&format!("sha256:{config}").parse().unwrap(), 1 << 20).unwrap();
    let config: bud_image::ImageConfig = serde_json::from_slice(&config).unwrap();
    let lowest = config.rootfs.diff_ids.unwrap()[0].to_string();
    let (names, manifest) = saved(&daemon, "next", &[lowest]).await;
    assert_eq!(manifest["Layers"], serde_json::json!(layers));
    assert_eq!(layers.iter().map(|layer| names.contains(layer)).collect::<Vec<_>>(), [false, true]);
    assert!(bud_daemon::images::save(&daemon, "nothing", &[]).await.is_err());
}
