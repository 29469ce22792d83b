//! The client with Debian's registry.

use super::server::*;
use crate::registry::{Access, Client, Pushed, RegistryConfig};
use bud_image::manifest::media_type;
use bud_image::{Digest, ImageRef};
use bytes::Bytes;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

struct Registry {
    child: Child,
    host: String,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = dir.path().join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}/data}}}}\nhttp: {{addr: 127.0.0.1:{port}}}\n",
            dir.path().display()
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
        Self { child, host, _dir: dir }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn an_image_goes_to_a_real_registry_and_comes_back() {
    let registry = Registry::start();
    runtime(async {
        let client = Client::new(RegistryConfig::default());
        let access = Access::anonymous();
        let open =
            |name: &str| client.repository(&ImageRef::parse(&format!("{}/{name}", registry.host)).unwrap(), &access);
        let quiet: Arc<dyn Fn(u64) + Send + Sync> = Arc::new(|_| ());
        let first = open("one/image:v1");
        assert!(first.resolve().await.unwrap_err().problem.is_not_found());

        let layer = Bytes::from(vec![7u8; 3_000_000]);
        let config = Bytes::from(format!(
            "{{\"architecture\":\"amd64\",\"os\":\"linux\",\"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{}\"]}}}}",
            Digest::of(&layer)
        ));
        let blobs =
            [(descriptor(media_type::OCI_CONFIG, &config), config), (descriptor(media_type::OCI_LAYER, &layer), layer)];
        for expected in [Pushed::Uploaded, Pushed::Existed] {
            for (descriptor, bytes) in &blobs {
                let pushed = first.push_blob(descriptor, bytes, &[], Arc::clone(&quiet)).await.unwrap();
                assert_eq!(pushed, expected);
            }
        }
        let text = |i: usize| serde_json::to_string(&blobs[i].0).unwrap();
        let manifest = Bytes::from(format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"config\":{},\"layers\":[{}]}}",
            media_type::OCI_MANIFEST,
            text(0),
            text(1)
        ));
        let pushed = first.push_manifest(media_type::OCI_MANIFEST, &manifest, "v1").await.unwrap();

        let resolved = first.resolve().await.unwrap();
        assert_eq!(resolved.descriptor, pushed);
        let image = first.image_for(&resolved, &"linux/amd64".parse().unwrap()).await.unwrap();
        assert_eq!(image.manifest_bytes, manifest);
        assert_eq!(read_blob(&first, &image.manifest.layers[0]).await.unwrap(), blobs[1].1);
        let by_digest = open(&format!("one/image@{}", pushed.digest));
        assert_eq!(by_digest.resolve().await.unwrap().descriptor, pushed);
        let index = Bytes::from(format!(
            "{{\"schemaVersion\":2,\"mediaType\":\"{}\",\"manifests\":[{}]}}",
            media_type::OCI_INDEX,
            serde_json::to_string(&pushed).unwrap()
        ));
        first.push_manifest(media_type::OCI_INDEX, &index, "all").await.unwrap();
        let all = open("one/image:all");
        let image = all.image_for(&all.resolve().await.unwrap(), &"linux/amd64".parse().unwrap()).await.unwrap();
        assert_eq!(image.descriptor.digest, pushed.digest);

        // Another repository of the same registry borrows the layer.
        let second = open("two/image:v1");
        let lenders = ["one/image".to_owned()];
        let mounted = second.push_blob(&blobs[1].0, &blobs[1].1, &lenders, Arc::clone(&quiet)).await.unwrap();
        assert_eq!(mounted, Pushed::Mounted);
        // The manifest is refused while a blob is missing.
        let error = second.push_manifest(media_type::OCI_MANIFEST, &manifest, "v1").await.unwrap_err();
        assert!(error.to_string().contains("MANIFEST_BLOB_UNKNOWN"), "{error}");
    });
}
