//! Runs a command in a root file system, as a build does.
//!
//! `run [--single] [--overlay] [--none] [--insecure] [--user U] [--cwd D] [--times N] ROOTFS COMMAND…`
//!
//! With `--times` it says how long one container takes.

use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Instant;

use bud_sandbox::overlay::{Overlay, make_base_layer};
use bud_sandbox::server::{Event, ForkServer};
use bud_sandbox::userns::{HostRoot, Policy, enter};
use bud_sandbox::{ContainerSpec, Network, Rootfs, Security};

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    let started = Instant::now();
    let mut arguments = std::env::args().skip(1).peekable();
    let mut policy = Policy::Auto;
    let (mut overlay, mut times) = (false, 1);
    let mut spec = ContainerSpec {
        hosts: "127.0.0.1\tlocalhost\n".into(),
        resolv_conf: std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
        remove_mount_stubs_recursive: true,
        ..ContainerSpec::default()
    };
    while let Some(flag) = arguments.next_if(|argument| argument.starts_with("--")) {
        let mut value = || arguments.next().ok_or("a value is missing");
        match flag.as_str() {
            "--single" => policy = Policy::Single,
            "--overlay" => overlay = true,
            "--none" => spec.network = Network::None,
            "--insecure" => spec.security = Security::Insecure,
            "--outer-proc" => spec.no_process_sandbox = true,
            "--user" => spec.user = value()?,
            "--cwd" => spec.cwd = value()?,
            "--times" => times = value()?.parse()?,
            other => return Err(format!("unknown flag {other}").into()),
        }
    }
    let rootfs = PathBuf::from(arguments.next().ok_or("a root file system is missing")?).canonicalize()?;
    spec.args = arguments.collect();

    let identity = enter(policy, &HostRoot::default())?;
    for notice in &identity.notices {
        eprintln!("note: {notice}");
    }
    let server = ForkServer::start()?;
    let ready = started.elapsed();

    let scratch = std::env::temp_dir().join(format!("bud-run-{}", std::process::id()));
    std::fs::create_dir(&scratch)?;
    let base = scratch.join("base");
    make_base_layer(&base)?;
    spec.base_layer = Some(base);
    let begun = Instant::now();
    let mut code = 0;
    for round in 0..times {
        spec.rootfs = if overlay {
            let layer = scratch.join(round.to_string());
            let (upper, work) = (layer.join("upper"), layer.join("work"));
            std::fs::create_dir_all(&upper)?;
            std::fs::create_dir_all(&work)?;
            Rootfs::Overlay(Overlay {
                lowers: vec![rootfs.clone()],
                upper: Some(upper),
                work: Some(work),
                volatile: true,
            })
        } else {
            Rootfs::Dir(rootfs.clone())
        };
        code = run(&server, &spec, times > 1)?;
    }
    if times > 1 {
        let each = begun.elapsed() / times;
        eprintln!("{:?}: entered in {ready:?}; {times} containers, {each:?} each", identity.mode);
    }
    std::fs::remove_dir_all(&scratch)?;
    std::process::exit(code)
}

fn run(server: &ForkServer, spec: &ContainerSpec, quiet: bool) -> Result<i32, Error> {
    let (mut output, write) = std::io::pipe()?;
    let errors = OwnedFd::from(write.try_clone()?);
    let mut container = server.run(spec, None, write.into(), errors)?;
    if quiet {
        let mut text = Vec::new();
        output.read_to_end(&mut text)?;
    } else {
        std::io::copy(&mut output, &mut std::io::stdout())?;
    }
    loop {
        match container.next_event()? {
            Some(Event::Started { .. }) => {}
            Some(Event::Exited(status)) => return Ok(status.code),
            Some(Event::Failed { error, code }) => {
                eprintln!("{error}");
                return Ok(code);
            }
            None => return Err("the fork server has died".into()),
        }
    }
}
