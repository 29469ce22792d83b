//! Point 6: BuildKit's API, spoken with clients that nobody here wrote.

use crate::debian;
use crate::harness::{Home, Ran, read, run, scratch};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// `docker-buildx` of Debian's next release, where every user may run it.
fn buildx() -> &'static Path {
    static BUILDX: OnceLock<PathBuf> = OnceLock::new();
    BUILDX.get_or_init(|| {
        let shared = scratch("buildx").join("docker-buildx");
        let unpacked = debian::trixie("docker-buildx").join("usr/libexec/docker/cli-plugins/docker-buildx");
        std::fs::copy(unpacked, &shared).unwrap();
        shared
    })
}

fn run_buildx(home: &Home, args: &[&str]) -> Ran {
    let mut command = home.command(buildx());
    command.env("BUILDX_CONFIG", home.path(".buildx")).args(args);
    run(command)
}

#[test]
fn docker_buildx_builds_with_the_remote_driver() {
    let home = Home::sub();
    home.bud(["daemon", "start"]).ok();
    let address = format!("unix://{}", home.socket().display());
    run_buildx(&home, &["create", "--name", "bud", "--driver", "remote", &address]).ok();
    run_buildx(&home, &["inspect", "bud"]).ok().says(&["running", "linux/"]);
    let context = home.context(&[
        ("Dockerfile", "FROM busybox\nARG V\nRUN --mount=type=secret,id=s cat /run/secrets/s > /secret; echo $V > /v\nCOPY a dir /c/\n"),
        ("a", "A"),
        ("dir/b", "B"),
    ]);
    home.write(&home.path("s"), "shh");
    let out = home.path("out");
    let tar = home.path("x.tar");
    for output in [format!("type=local,dest={}", out.display()), format!("type=oci,dest={}", tar.display())] {
        run_buildx(
            &home,
            &[
                "build",
                "--builder",
                "bud",
                "--progress",
                "plain",
                "--build-arg",
                "V=9",
                "--secret",
                "id=s,src=s",
                "-o",
                &output,
                context.to_str().unwrap(),
            ],
        )
        .ok();
    }
    assert_eq!(read(out.join("v")), "9\n");
    assert_eq!(read(out.join("secret")), "shh");
    assert_eq!(read(out.join("c/b")), "B");
    assert!(crate::harness::Image::read(&tar).config["rootfs"]["diff_ids"].is_array());
    let failing = home.dockerfile("FROM busybox\nRUN exit 5\n");
    run_buildx(&home, &["build", "--builder", "bud", "--progress", "plain", failing.to_str().unwrap()])
        .fails_with(&["exit code: 5", "Dockerfile:2"]);
    run_buildx(&home, &["du", "--builder", "bud"]).ok().says(&["Total"]);
    run_buildx(&home, &["prune", "--builder", "bud", "-f", "-a"]).ok();
}

#[test]
fn garbage_on_the_socket_harms_nobody() {
    use std::io::Write as _;
    use std::os::unix::net::UnixStream;
    let home = Home::sub();
    home.bud(["daemon", "start"]).ok();
    let pid = home.daemon_pid();
    let mut command = home.command("python3");
    command.arg("-c").arg(format!(
        "import socket,os\nfor i in range(200):\n s=socket.socket(socket.AF_UNIX);s.connect({:?})\n s.send([b'GET / HTTP/1.1\\r\\n\\r\\n',os.urandom(5000),b'PRI * HTTP/2.0\\r\\n\\r\\nSM\\r\\n\\r\\n'+os.urandom(300)][i%3])\n s.close()\n",
        home.socket().to_str().unwrap()
    ));
    run(command).ok();
    // Root is not the daemon's user: refused, since the peer's uid is checked.
    if let Ok(mut stream) = UnixStream::connect(home.socket()) {
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").ok();
        stream.set_read_timeout(Some(std::time::Duration::from_secs(5))).unwrap();
        let mut byte = [0];
        let read = std::io::Read::read(&mut stream, &mut byte);
        assert!(
            matches!(read, Ok(0)) || read.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::ConnectionReset),
            "{read:?}"
        );
    }
    home.build(&["-t", "foo"], &home.dockerfile("FROM scratch\nLABEL a=b\n")).ok();
    assert_eq!(home.daemon_pid(), pid);
}

#[test]
fn the_clientside_frontend_builds_the_same_image() {
    let home = Home::sub();
    let context = home.context(&[
        ("Dockerfile", "FROM busybox AS b\nRUN echo x > /x\nFROM scratch\nCOPY --from=b /x /\nCOPY a /\nENV E=1\n"),
        ("a", "A"),
    ]);
    let server = home.image(&["--build-arg", "SOURCE_DATE_EPOCH=1700000000"], &context);
    let client = home.image(&["--clientside-frontend", "--build-arg", "SOURCE_DATE_EPOCH=1700000000"], &context);
    assert_eq!(server.config["config"], client.config["config"]);
    assert_eq!(server.config["history"], client.config["history"]);
    assert_eq!(server.config["rootfs"], client.config["rootfs"]);
}
