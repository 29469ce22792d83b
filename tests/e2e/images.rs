//! Point 9: pulls, pushes, and names of the own store.

use crate::harness::{Home, read, run, scratch};
use crate::registry::{self, registry};
use std::process::Command;

#[test]
fn images_are_pulled_by_tag_and_digest_and_found_again() {
    let home = Home::sub();
    let out = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", "--format", "{{.Digest}}"])
        .arg(format!("docker://127.0.0.1:{}/library/busybox:latest", registry().port))
        .output()
        .unwrap();
    let digest = String::from_utf8(out.stdout).unwrap().trim().to_owned();
    let context = home.dockerfile(&format!("FROM busybox@{digest}\nRUN echo by digest > /d\n"));
    assert_eq!(read(home.tree(&[], &context).join("d")), "by digest\n");
    // FROM finds what was built before, with no registry in between.
    home.build(&["-t", "mine:1"], &home.dockerfile("FROM busybox\nRUN echo mine > /m\n")).ok();
    assert_eq!(read(home.tree(&[], &home.dockerfile("FROM mine:1\nRUN cat /m\n")).join("m")), "mine\n");
    home.bud(["images"]).ok().says(&["mine", "1"]);
    home.bud(["rmi", "mine:1"]).ok();
    let ran = home.bud(["images"]).ok();
    assert!(!ran.stdout.contains("mine"), "{ran}");
    home.build(&[], &home.dockerfile("FROM mine:1\n")).fails_with(&["mine:1"]);
}

#[test]
fn a_tag_resolved_a_moment_ago_needs_no_registry_and_pull_asks_again() {
    let own = registry::start();
    own.push_tree(&small_tree("one"), "team/base:latest", &[]);
    let home = Home::sub();
    let name = format!("127.0.0.1:{}/team/base", own.port);
    home.write_config(&format!("[registry.\"127.0.0.1:{}\"]\n  http = true\n", own.port));
    let context = home.dockerfile(&format!("FROM {name}\nLABEL a=b\n"));
    assert_eq!(read(home.tree(&[], &context).join("f")), "one");
    own.push_tree(&small_tree("two"), "team/base:latest", &[]);
    assert_eq!(read(home.tree(&[], &context).join("f")), "one", "remembered");
    assert_eq!(read(home.tree(&["--pull"], &context).join("f")), "two", "asked again");
}

fn small_tree(text: &str) -> std::path::PathBuf {
    let dir = scratch("tree");
    std::fs::write(dir.join("f"), text).unwrap();
    dir
}

#[test]
fn push_sends_what_is_missing_and_others_can_read_it() {
    let own = registry::start();
    let home = Home::sub();
    home.write_config(&format!(
        "{}\n[registry.\"127.0.0.1:{}\"]\n  http = true\n",
        registry::buildkitd_toml(),
        own.port
    ));
    let context = home.dockerfile("FROM busybox\nRUN echo pushed > /p\n");
    for (name, compression) in [("gz", "gzip"), ("zs", "zstd")] {
        let target = format!("127.0.0.1:{}/team/{name}:v1", own.port);
        home.build(&["--output", &format!("type=image,name={target},push=true,compression={compression},force-compression=true,oci-mediatypes=true")], &context).ok();
        let dir = scratch("pulled");
        let layout = dir.join("l");
        let copy = Command::new("skopeo")
            .args(["copy", "-q", "--src-tls-verify=false"])
            .arg(format!("docker://{target}"))
            .arg(format!("oci:{}:x", layout.display()))
            .output()
            .unwrap();
        assert!(copy.status.success(), "{}", String::from_utf8_lossy(&copy.stderr));
        let manifest = String::from_utf8_lossy(
            &Command::new("skopeo")
                .args(["inspect", "--raw", "--tls-verify=false", &format!("docker://{target}")])
                .output()
                .unwrap()
                .stdout,
        )
        .into_owned();
        assert!(manifest.contains(compression), "{manifest}");
        if compression == "gzip" {
            let bundle = dir.join("b");
            let unpack = Command::new("umoci")
                .args(["unpack", "--image"])
                .arg(format!("{}:x", layout.display()))
                .arg(&bundle)
                .output()
                .unwrap();
            assert!(unpack.status.success(), "{}", String::from_utf8_lossy(&unpack.stderr));
            assert_eq!(read(bundle.join("rootfs/p")), "pushed\n");
        }
    }
    let again = format!("127.0.0.1:{}/other/gz:v1", own.port);
    home.bud(["--progress", "plain", "--push", "-t", &again, context.to_str().unwrap()]).ok();
}

#[test]
fn podman_reads_what_was_built() {
    let home = Home::sub();
    let context = home.dockerfile("FROM busybox\nRUN echo for podman > /p\nCMD [\"cat\", \"/p\"]\n");
    let tar = home.path("podman.tar");
    home.build(&["-t", "forpodman:1", "-o", &format!("type=docker,dest={}", tar.display())], &context).ok();
    let store = scratch("podman");
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command
            .args(["--root", store.join("s").to_str().unwrap(), "--runroot", store.join("r").to_str().unwrap()])
            .args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"])
            .args(args)
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped());
        run(command)
    };
    podman(&["load", "-q", "-i", tar.to_str().unwrap()]).ok().says(&["forpodman:1"]);
    podman(&["image", "inspect", "forpodman:1"]).ok().says(&["\"Layers\""]);
    podman(&["rmi", "-a", "-f"]).ok();
}
