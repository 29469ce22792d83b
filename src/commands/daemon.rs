//! `bud daemon`: in the foreground, or start, stop, status and logs of the one in the background.

mod lifetime;

use super::{block_on, table, told};
use crate::cli::ConnectArgs;
use crate::cli::daemon::{
    DaemonArgs, DaemonCommand, LogsArgs, RunArgs, SnapshotterChoice, StartArgs, StatusArgs, StopArgs,
};
use crate::connect::places::Surroundings;
use crate::connect::spawn::{self, Readiness};
use crate::connect::{self, Connection, NotRunning, Spawn, Start};
use crate::progress::{bytes_text, filter, seconds_text};
use crate::request::values;
use crate::terminal;
use anyhow::{Context as _, Result, bail, ensure};
use bud_daemon::{LogFile, Options, Snapshotter, Tls};
use bud_protocol::bud::{StatusRequest, StatusResponse, StopRequest};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// The address that means the sockets that a service manager handed over, as buildkitd writes it.
const INHERITED: &str = "fd://";

/// Runs `bud daemon`.
pub fn run(args: DaemonArgs) -> Result<ExitCode> {
    match args.command {
        None => foreground(args.run),
        Some(DaemonCommand::Start(args)) => block_on(start(args)),
        Some(DaemonCommand::Stop(args)) => block_on(stop(args)),
        Some(DaemonCommand::Status(args)) => block_on(status(args)),
        Some(DaemonCommand::Logs(args)) => logs(&args),
    }
}

/// Runs the daemon in this process.
fn foreground(args: RunArgs) -> Result<ExitCode> {
    let readiness = args.spawned.then(Readiness::take).transpose().context("cannot leave the client's session")?;
    let result = options(args).and_then(|mut options| {
        if let Some(readiness) = &readiness {
            options.ready = readiness.fd().context("cannot use the pipe to the client")?;
        }
        bud_daemon::run(options).map_err(anyhow::Error::from)
    });
    match (result, readiness) {
        (Ok(()), _) => Ok(ExitCode::SUCCESS),
        (Err(error), Some(readiness)) => {
            terminal::note(&format!("error: {error:#}"));
            readiness.fail(&error);
            Ok(ExitCode::FAILURE)
        }
        (Err(error), None) => Err(error),
    }
}

fn options(args: RunArgs) -> Result<Options> {
    let around = Surroundings::current();
    ensure!(!args.containerd_worker, "there is no containerd worker: leave --containerd-worker out");
    let root = match args.root {
        Some(root) => std::path::absolute(root).context("--root")?,
        None => around.state_root()?,
    };
    let inherited = bud_sandbox::activation::take().context("the sockets of the service manager can't be used")?;
    let mut addresses = args.addr;
    let is_default = addresses.is_empty() && inherited.is_empty();
    let named = addresses.iter().any(|address| address.starts_with(INHERITED));
    ensure!(
        !named || !inherited.is_empty(),
        "{INHERITED}: no service manager handed a socket over (LISTEN_FDS, LISTEN_PID)"
    );
    addresses.retain(|address| !address.starts_with(INHERITED));
    let addresses = match is_default {
        false => addresses,
        true => {
            connect::places::check_socket_dir(&around.socket_dir(), around.uid)?;
            vec![format!("unix://{}", around.socket().display())]
        }
    };
    let labels = args
        .oci_worker_labels
        .iter()
        .map(|label| values::key_value(label).map(|(k, v)| (k.to_owned(), v.to_owned())).context("--oci-worker-labels"))
        .collect::<Result<_>>()?;
    let idle = args.idle_timeout.as_deref().map(values::duration).transpose().context("--idle-timeout")?;
    Ok(Options {
        log: args.spawned.then(|| LogFile { path: root.join(spawn::LOG), limit: spawn::log_limit() }),
        addresses,
        inherited,
        root,
        config: args.config.or_else(|| around.config()),
        identity: args.userns.policy(),
        no_process_sandbox: args.oci_worker_no_process_sandbox,
        snapshotter: match args.oci_worker_snapshotter {
            SnapshotterChoice::Auto => Snapshotter::Auto,
            SnapshotterChoice::Overlayfs => Snapshotter::Overlayfs,
            SnapshotterChoice::Native => Snapshotter::Native,
        },
        network: args.oci_worker_net.unwrap_or_else(|| "auto".into()),
        platforms: args.oci_worker_platform,
        labels,
        gc: args.oci_worker_gc,
        gc_limits: args
            .oci_worker_gc_keepstorage
            .as_deref()
            .map(bud_daemon::gc::policy::Limits::from_flag)
            .transpose()
            .map_err(anyhow::Error::msg)
            .context("--oci-worker-gc-keepstorage")?,
        entitlements: args.allow_insecure_entitlement,
        tls: match (args.tlscert, args.tlskey) {
            (Some(cert), Some(key)) => Some(Tls { ca: args.tlscacert, cert, key }),
            _ => None,
        },
        insecure_tcp: args.insecure_tcp || std::env::var_os("BUD_INSECURE_TCP").is_some_and(|value| value == "1"),
        idle_timeout: idle.filter(|idle| !idle.is_zero()),
        debug: args.debug,
        version: env!("CARGO_PKG_VERSION").into(),
        ..Default::default()
    })
}

async fn start(args: StartArgs) -> Result<ExitCode> {
    let mut spawn = Spawn { userns: args.userns, ..Spawn::default() };
    if let Some(timeout) = args.idle_timeout {
        values::duration(&timeout).context("--idle-timeout")?;
        spawn.idle_timeout = timeout;
    }
    let args = ConnectArgs::default();
    let connection = match connect::connect(&args, &Start::Never).await {
        Ok(connection) => {
            if let Some(status) = connection.status().await? {
                ensure!(
                    spawn.userns.is_met_by(&status.mode),
                    "a daemon runs already, but {}, not as --userns={} asks; `bud daemon stop` ends it",
                    status.mode,
                    spawn.userns.word()
                );
            }
            terminal::print(&format!("the daemon runs already at {}\n", connection.address))?;
            return Ok(ExitCode::SUCCESS);
        }
        Err(error) if error.is::<NotRunning>() => connect::connect(&args, &Start::IfNeeded(spawn)).await?,
        Err(error) => return Err(error),
    };
    terminal::print(&format!("the daemon runs at {}\n", connection.address))?;
    if let Some(status) = connection.status().await? {
        terminal::note(&super::mode_line(&status));
        if let Some(logout) = lifetime::at_logout(&Surroundings::current(), status.activated) {
            terminal::note(&format!("note: at logout {logout}"));
        }
        for notice in &status.notices {
            terminal::note(&format!("note: {}", filter::plain_text(notice)));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn stop(args: StopArgs) -> Result<ExitCode> {
    let connection = match connect::connect(&args.connect, &Start::Never).await {
        Err(error) if error.is::<NotRunning>() => {
            terminal::print("no daemon runs\n")?;
            return Ok(ExitCode::SUCCESS);
        }
        other => other?,
    };
    let pid = connection.bud().status(StatusRequest { brief: true }).await.map_err(told)?.into_inner().pid;
    let answer = connection
        .bud()
        .stop(StopRequest { force: args.force, wait: args.wait, hand_over: false })
        .await
        .map_err(told)?
        .into_inner();
    if !answer.stopping {
        bail!(
            "{} running; `bud daemon stop --force` ends {}, --wait waits",
            if answer.active_builds == 1 {
                "1 build is".into()
            } else {
                format!("{} builds are", answer.active_builds)
            },
            if answer.active_builds == 1 { "it" } else { "them" }
        );
    }
    const LIMIT: Duration = Duration::from_secs(30);
    if !connect::wait_until_gone(&connection, tokio::time::Instant::now() + LIMIT).await {
        bail!("the daemon (process {pid}) was told to stop, but still answers after {} seconds", LIMIT.as_secs());
    }
    terminal::print("the daemon has stopped\n")?;
    Ok(ExitCode::SUCCESS)
}

async fn status(args: StatusArgs) -> Result<ExitCode> {
    let connection = match connect::connect(&args.connect, &Start::Never).await {
        Err(error) if error.is::<NotRunning>() => {
            terminal::print(if args.json { "{\"running\":false}\n" } else { "no daemon runs; a build starts one\n" })?;
            return Ok(ExitCode::from(3));
        }
        other => other?,
    };
    let text = match connection.measured_status().await? {
        Some(status) if args.json => format!("{}\n", status_json(&status)),
        Some(status) => status_text(&connection, &status),
        None if args.json => format!("{}\n", serde_json::json!({"running": true, "address": connection.address})),
        None => format!("a BuildKit that isn't bud's own listens at {}\n", connection.address),
    };
    terminal::print(&text)?;
    Ok(ExitCode::SUCCESS)
}

fn status_text(connection: &Connection, status: &StatusResponse) -> String {
    let duration = |seconds: i64| seconds_text(seconds.saturating_mul(1_000_000_000));
    let mut rows = vec![
        vec!["Address:".to_owned(), connection.address.clone()],
        vec!["Version:".into(), filter::name(&status.version)],
        vec!["Process:".into(), status.pid.to_string()],
        vec!["Runs since:".into(), duration(status.uptime_seconds)],
        vec!["Users:".into(), filter::name(&status.mode)],
        vec!["Snapshots:".into(), filter::name(&status.snapshotter)],
        vec!["Builds:".into(), format!("{} running, {} ended", status.active_builds, status.finished_builds)],
        vec!["Memory:".into(), format!("{} in {} processes", bytes_text(status.memory_bytes), status.processes)],
        vec!["Disk:".into(), bytes_text(status.disk_bytes)],
        vec!["State:".into(), filter::name(&status.root)],
    ];
    if let Some(log) = &connection.log {
        rows.push(vec!["Log:".into(), log.display().to_string()]);
    }
    if status.idle_timeout_seconds > 0 {
        rows.push(vec!["Exits after:".into(), format!("{} with nothing to do", duration(status.idle_timeout_seconds))]);
    }
    if let Some(logout) = lifetime::at_logout(&Surroundings::current(), status.activated) {
        rows.push(vec!["At logout:".into(), logout]);
    }
    if connect::is_older(status) {
        rows.push(vec![
            "Older:".into(),
            "this bud is newer; the daemon makes way for the next build when nobody uses it".into(),
        ]);
    }
    let notices: String =
        status.notices.iter().map(|notice| format!("\nnote: {}\n", filter::plain_text(notice))).collect();
    table(&rows) + &notices
}

fn status_json(status: &StatusResponse) -> serde_json::Value {
    serde_json::json!({
        "running": true,
        "version": status.version,
        "address": status.address,
        "pid": status.pid,
        "mode": status.mode,
        "snapshotter": status.snapshotter,
        "uptimeSeconds": status.uptime_seconds,
        "activeBuilds": status.active_builds,
        "finishedBuilds": status.finished_builds,
        "memoryBytes": status.memory_bytes,
        "diskBytes": status.disk_bytes,
        "root": status.root,
        "idleTimeoutSeconds": status.idle_timeout_seconds,
        "processes": status.processes,
        "build": status.build,
        "activated": status.activated,
        "replaced": status.replaced,
        "notices": status.notices,
    })
}

/// So much of a log's end is read at once.
const WINDOW: u64 = 4 << 20;

fn logs(args: &LogsArgs) -> Result<ExitCode> {
    let path = Surroundings::current().state_root()?.join(spawn::LOG);
    let file = match std::fs::File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("there is no log at {}: no daemon was started by a build yet", path.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let text = terminal::tail(&path, WINDOW).with_context(|| format!("cannot read {}", path.display()))?;
    let lines: Vec<&str> = text.lines().collect();
    let last = &lines[lines.len().saturating_sub(args.tail)..];
    terminal::print(&last.iter().map(|line| format!("{}\n", filter::plain_text(line))).collect::<String>())?;
    if args.follow {
        follow(&path, file)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Shows what a log gets, without an end.
fn follow(path: &Path, mut file: std::fs::File) -> Result<std::convert::Infallible> {
    use std::os::unix::fs::MetadataExt as _;
    let inode = |file: &std::fs::File| file.metadata().map(|meta| meta.ino()).ok();
    let old = path.with_extension(bud_daemon::OLD_LOG);
    file.seek(SeekFrom::End(0))?;
    loop {
        std::thread::sleep(Duration::from_millis(200));
        // Opened before the file is read to its end: what comes into it until it is put aside is shown.
        let current = std::fs::File::open(path);
        show_rest(&file)?;
        let Ok(current) = current else { continue };
        if inode(&current) == inode(&file) {
            continue;
        }
        // Put aside twice since the last look: what came between is in the old file. (What came before that is gone.)
        if let Ok(between) = std::fs::File::open(&old)
            && inode(&between) != inode(&file)
            && inode(&between) != inode(&current)
        {
            show_rest(&between)?;
        }
        file = current;
    }
}

/// Shows what a log has from where it is read.
fn show_rest(file: &std::fs::File) -> Result<()> {
    loop {
        let mut new = Vec::new();
        if file.take(WINDOW).read_to_end(&mut new)? == 0 {
            return Ok(());
        }
        terminal::print(&filter::plain_text(&String::from_utf8_lossy(&new)))?;
    }
}
