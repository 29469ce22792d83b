//! Writes the Rust types of every `.proto` in `crates/protocol/proto` to `crates/protocol/src/gen`
//! (or to the folder given as the only argument). No protoc is needed.

use std::path::{Path, PathBuf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let protocol = Path::new(env!("CARGO_MANIFEST_DIR")).parent().ok_or("no parent folder")?.to_owned();
    let out = std::env::args_os().nth(1).map_or_else(|| protocol.join("src/gen"), PathBuf::from);
    std::fs::create_dir_all(&out)?;
    let proto = protocol.join("proto");
    let mut files: Vec<PathBuf> = std::fs::read_dir(&proto)?.map(|e| e.map(|e| e.path())).collect::<Result<_, _>>()?;
    files.sort();
    let set = protox::compile(&files, [&proto])?;
    tonic_prost_build::configure()
        .out_dir(&out)
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
