//! Writes the Rust types of every `.proto` in `crates/protocol/proto` to `crates/protocol/src/gen`
//! (or to the folder given as the only argument). No protoc is needed.

use std::path::{Path, PathBuf};

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let out = std::env::args_os().nth(1).map_or_else(|| protocol().join("src/gen"), PathBuf::from);
    std::fs::create_dir_all(&out)?;
    generate(&out)
}

fn protocol() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

fn generate(out: &Path) -> Result<(), Failure> {
    let proto = protocol().join("proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&proto)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    let set = protox::compile(&files, [&proto])?;
    tonic_prost_build::configure()
        .out_dir(out)
        .btree_map(".")
        // Streams of bytes are passed on without copying.
        .bytes(".moby.buildkit.v1.BytesMessage")
        .bytes(".moby.filesync.v1.BytesMessage")
        .bytes(".moby.sshforward.v1.BytesMessage")
        .bytes(".moby.upload.v1.BytesMessage")
        .bytes(".fsutil.types.Packet.data")
        .bytes(".containerd.services.content.v1.ReadContentResponse.data")
        .bytes(".containerd.services.content.v1.WriteContentRequest.data")
        .bytes(".moby.buildkit.v1.VertexLog.msg")
        .bytes(".bud.v1.SaveImageResponse.data")
        .bytes(".bud.v1.ExportCacheMountResponse.data")
        .bytes(".bud.v1.ImportCacheMountRequest.data")
        .build_transport(true)
        .compile_fds(set)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    fn files(folder: &Path) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        let name = |path: &Path| path.file_name().unwrap().to_string_lossy().into_owned();
        entries.map(|path| (name(&path), std::fs::read_to_string(&path).unwrap())).collect()
    }

    #[test]
    fn the_generated_code_is_that_of_its_sources() {
        let out = tempfile::tempdir().unwrap();
        super::generate(out.path()).unwrap();
        let (made, kept) = (files(out.path()), files(&super::protocol().join("src/gen")));
        let differ = |name: &&String| made.get(*name) != kept.get(*name);
        let stale: Vec<_> = made.keys().chain(kept.keys()).filter(differ).collect();
        assert!(stale.is_empty(), "not current: {stale:?}; run `cargo run -p bud-protocol-codegen`");
    }
}
