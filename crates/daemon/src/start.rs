//! The daemon's start, in the order that matters: state directory and lock, user namespace, fork server, and only then threads.

use crate::build::Builds;
use crate::config::{self, Config, ConfigError};
use crate::daemon::{Daemon, Settings};
use crate::descriptors::Descriptors;
use crate::history::History;
use crate::life::Life;
use crate::limits;
use crate::lock::{Lock, LockError};
use crate::options::{Options, Snapshotter};
use crate::program::Program;
use crate::serve;
use crate::socket::{self, ListenError};
use crate::solver::flight::Flights;
use bud_image::{Digest, Platform};
use bud_sandbox::server::{ForkServer, ServerError};
use bud_sandbox::userns::{self, EnterError, HostRoot};
use bud_session::SessionRegistry;
use bud_store::{Store, StoreError};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

/// The directory, below the state directory, with the mount points that nearly every step needs.
pub const BASE_LAYER: &str = "mountpoints";

/// What `--oci-worker-no-process-sandbox` costs.
const OUTER_PROC: &str = "--oci-worker-no-process-sandbox: RUN steps see the /proc around the daemon, read-only: the names, command lines, mounts \
    and sockets of all processes in it. Their memory, environment and files stay closed, and no step can signal what isn't its own";

/// Threads of the runtime. They wait for others, mostly: what takes time is done in blocking threads.
const WORKERS: std::ops::RangeInclusive<usize> = 2..=8;
/// Blocking threads with nothing to do end after so long.
const KEEP_THREADS: std::time::Duration = std::time::Duration::from_secs(2);

/// Why the daemon did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The options contradict the machine or one another.
    #[error("{0}")]
    Options(String),
    /// The state directory is not safe.
    #[error("state directory {}: {why}", root.display())]
    Root {
        /// The directory.
        root: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// Another daemon has the state directory.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// The user namespace can't be entered.
    #[error(transparent)]
    Namespace(#[from] EnterError),
    /// The fork server can't be started.
    #[error(transparent)]
    ForkServer(#[from] ServerError),
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The state can't be opened.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A socket can't be listened on.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// The system refuses something.
    #[error("{doing}: {source}")]
    Io {
        /// What.
        doing: &'static str,
        /// Why.
        source: std::io::Error,
    },
}

fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> StartError {
    move |source| StartError::Io { doing, source }
}

/// Runs the daemon until it is told to stop or has been idle for its time.
///
/// To be called while the process has one thread. Readiness is told through [`Options::ready`].
///
/// # Errors
/// It can't start.
pub fn run(mut options: Options) -> Result<(), StartError> {
    crate::log::start(options.debug, options.log.take());
    let program = Program::running().map_err(io("look at the program's own file"))?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    if options.addresses.is_empty() && options.inherited.is_empty() {
        return Err(StartError::Options("no address to listen on".into()));
    }
    let root = prepare_root(&options.root)?;
    let mut lock = Lock::take(&root)?;
    let config = match &options.config {
        Some(path) => config::read(path)?,
        None => Config::default(),
    };
    let identity = userns::enter(options.identity, &HostRoot("/".into()))?;
    tracing::info!("runs {}", identity.mode.shown());
    for notice in &identity.notices {
        tracing::warn!("{notice}");
    }
    let ready = options.ready.take();
    let fork = ForkServer::start()?;
    limits::raise();
    let cores = std::thread::available_parallelism().map_or(*WORKERS.start(), usize::from);
    let workers = cores.clamp(*WORKERS.start(), *WORKERS.end());
    limits::check_threads(workers).map_err(StartError::Options)?;
    let store_options = bud_store::Options {
        native: options.snapshotter == Snapshotter::Native,
        require_overlay: options.snapshotter == Snapshotter::Overlayfs,
        ..bud_store::Options::default()
    };
    let store = Store::open(&root, store_options)?;
    store.try_overlay()?;
    bud_sandbox::overlay::make_base_layer(&root.join(BASE_LAYER)).map_err(io("make the layer of mount points"))?;
    for warning in store.warnings() {
        tracing::warn!("{warning}");
    }
    let outer_proc = options.no_process_sandbox.then(|| OUTER_PROC.to_owned());
    if let Some(warning) = &outer_proc {
        tracing::warn!("{warning}");
    }
    let notices: Vec<String> =
        identity.notices.iter().cloned().chain(store.overlay_refusal()).chain(outer_proc).collect();
    let snapshotter = if store.is_native() { "native" } else { "overlayfs" };
    let mut settings = settings(&options, &config, &root, program, identity.mode.shown(), snapshotter, notices)?;
    let history = History::new(&store).map_err(io("make the directory of build records"))?;
    // Sockets are bound before the runtime exists: the umask is the process's.
    let sockets = serve::bind(&mut options)?;
    settings.activated = sockets.is_inherited();
    settings.address = sockets.address();
    let running = crate::lock::Running {
        address: settings.address.clone(),
        pid: std::process::id(),
        version: options.version.clone(),
    };
    lock.announce(&running).map_err(io("write the lock file"))?;
    let daemon = Arc::new(Daemon {
        settings,
        config,
        store,
        fork,
        sessions: Arc::new(SessionRegistry::new()),
        descriptors: Descriptors::default(),
        builds: Builds::default(),
        flights: Flights::default(),
        history,
        life: Arc::new(Life::new(options.idle_timeout)),
        shared: crate::source::Shared::default(),
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("bud")
        .worker_threads(workers)
        .thread_keep_alive(KEEP_THREADS)
        .build()
        .map_err(io("start the runtime"))?;
    let served = runtime.block_on(serve::serve(Arc::clone(&daemon), sockets, ready));
    // What still runs in the background is abandoned; the state on disk is consistent at every moment.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    drop(lock);
    served.map_err(io("serve"))
}

/// Makes the state directory, or checks the one that is there: ours, no link, closed to others.
fn prepare_root(root: &Path) -> Result<PathBuf, StartError> {
    let fail = |why: String| StartError::Root { root: root.to_owned(), why };
    if !root.is_absolute() {
        return Err(fail("must be an absolute path".into()));
    }
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(root).map_err(|e| fail(e.to_string()))?;
    let found = std::fs::symlink_metadata(root).map_err(|e| fail(e.to_string()))?;
    if !found.is_dir() {
        return Err(fail("is a link; name the directory itself".into()));
    }
    let own = rustix::process::geteuid().as_raw();
    if found.uid() != own {
        return Err(fail(format!("belongs to user {}, not to us (user {own}); use another --root", found.uid())));
    }
    if found.mode() & 0o022 != 0 {
        return Err(fail(format!(
            "can be written by others (mode {:o}); what is in it can't be trusted: chmod 700 it if you know it is clean, or use another --root",
            found.mode() & 0o7777
        )));
    }
    if found.mode() & 0o077 != 0 {
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700)).map_err(|e| fail(e.to_string()))?;
    }
    Ok(root.to_owned())
}

fn settings(
    options: &Options,
    config: &Config,
    root: &Path,
    program: Program,
    mode: &str,
    snapshotter: &str,
    notices: Vec<String>,
) -> Result<Settings, StartError> {
    let runtime_dir = root.join("run");
    if let Err(error) = std::fs::remove_dir_all(&runtime_dir)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(StartError::Io { doing: "empty the directory of sockets", source: error });
    }
    std::fs::create_dir(&runtime_dir).map_err(io("make the directory of sockets"))?;
    // The host's network is what steps have anyway; that a build names it is no more.
    let mut entitlements = vec!["network.host".to_owned()];
    entitlements.extend(options.entitlements.iter().chain(&config.insecure_entitlements).cloned());
    let mut labels: Vec<(String, String)> = config.worker.oci.labels.clone().into_iter().collect();
    labels.extend(options.labels.iter().cloned());
    let collects = options.gc.or(config.worker.oci.gc).unwrap_or(true);
    let disk = rustix::fs::statvfs(root).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize));
    let gc_policies = crate::gc::policy::policies(options.gc_limits, &config.worker.oci, disk)
        .map_err(|e| StartError::Options(format!("garbage collection: {e}")))?;
    let names = if options.platforms.is_empty() { &config.worker.oci.platforms } else { &options.platforms };
    Ok(Settings {
        root: root.to_owned(),
        runtime_dir,
        address: String::new(),
        version: options.version.clone(),
        program,
        activated: false,
        platforms: platforms(names)?,
        labels,
        entitlements,
        network: options.network.clone(),
        no_process_sandbox: options.no_process_sandbox,
        mode: mode.to_owned(),
        snapshotter: snapshotter.to_owned(),
        notices,
        started: SystemTime::now(),
        worker_id: Digest::of(format!("worker:{}", root.display())).hex()[..25].to_owned(),
        gc_policies: if collects { gc_policies } else { Vec::new() },
    })
}

fn platforms(names: &[String]) -> Result<Vec<Platform>, StartError> {
    let parse = |name: &str| Platform::parse(name).map_err(|e| StartError::Options(format!("platform {name:?}: {e}")));
    if !names.is_empty() {
        return names.iter().map(|n| parse(n)).collect();
    }
    let host = Platform::host();
    let mut all = vec![host.clone()];
    if host.architecture == "amd64" {
        for variant in cpu_variants() {
            all.push(Platform { variant: (*variant).into(), ..host.clone() });
        }
        all.push(Platform { architecture: "386".into(), ..host });
    }
    Ok(all)
}

/// Returns the microarchitecture levels of this CPU above the first.
#[cfg(target_arch = "x86_64")]
fn cpu_variants() -> &'static [&'static str] {
    if std::is_x86_feature_detected!("avx512f") && std::is_x86_feature_detected!("avx512bw") {
        &["v2", "v3", "v4"]
    } else if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("bmi2") {
        &["v2", "v3"]
    } else if std::is_x86_feature_detected!("sse4.2") {
        &["v2"]
    } else {
        &[]
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn cpu_variants() -> &'static [&'static str] {
    &[]
}

/// Kept here so that a socket's directory is checked the same way everywhere.
pub(crate) fn unix_path(address: &str) -> Option<PathBuf> {
    address.strip_prefix("unix://").map(PathBuf::from).filter(|p| p.is_absolute())
}

/// Binds one address.
pub(crate) fn bind_path(path: &Path) -> Result<std::os::unix::net::UnixListener, StartError> {
    Ok(socket::bind_unix(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unsafe_state_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let open = dir.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(prepare_root(&open).unwrap_err().to_string().contains("written by others"));
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(dir.path(), &link).unwrap();
        assert!(prepare_root(&link).unwrap_err().to_string().contains("link"));
        assert!(prepare_root(Path::new("relative")).is_err());
        let fresh = prepare_root(&dir.path().join("a/b")).unwrap();
        assert_eq!(std::fs::metadata(fresh).unwrap().mode() & 0o777, 0o700);
    }

    #[test]
    fn the_own_platform_comes_first() {
        assert_eq!(platforms(&[]).unwrap()[0], Platform::host());
        assert_eq!(platforms(&["linux/arm64".into()]).unwrap()[0].architecture, "arm64");
        assert!(platforms(&["!".into()]).is_err());
    }
}
