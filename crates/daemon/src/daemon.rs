//! What all parts of the running daemon share.

use crate::build::Builds;
use crate::config::Config;
use crate::descriptors::Descriptors;
use crate::history::History;
use crate::life::Life;
use crate::program::Program;
use crate::solver::flight::Flights;
use bud_image::Platform;
use bud_sandbox::server::ForkServer;
use bud_session::SessionRegistry;
use bud_store::Store;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

/// The running daemon.
pub struct Daemon {
    /// What it was started with.
    pub settings: Settings,
    /// `buildkitd.toml`.
    pub config: Config,
    /// State on disk.
    pub store: Arc<Store>,
    /// Where containers come from.
    pub fork: ForkServer,
    /// Connected clients.
    pub sessions: Arc<SessionRegistry>,
    /// Directories that clients handed over.
    pub descriptors: Descriptors,
    /// Builds that run.
    pub builds: Builds,
    /// Steps that run, for all builds.
    pub flights: Flights,
    /// Builds that ran.
    pub history: History,
    /// What keeps it alive and what ends it.
    pub life: Arc<Life>,
    /// Shared state of the sources, such as connections to registries.
    pub shared: crate::source::Shared,
}

impl std::fmt::Debug for Daemon {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Daemon").field("settings", &self.settings).finish_non_exhaustive()
    }
}

/// What the daemon was started with, as the parts need it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The state directory.
    pub root: PathBuf,
    /// A directory for sockets, of our own; emptied at start.
    pub runtime_dir: PathBuf,
    /// Where it listens first.
    pub address: String,
    /// This program's version.
    pub version: String,
    /// The program's file.
    pub program: Program,
    /// Whether a service manager handed the sockets over.
    pub activated: bool,
    /// The worker's platforms, its own first; never empty.
    pub platforms: Vec<Platform>,
    /// Labels given by the operator.
    pub labels: Vec<(String, String)>,
    /// What builds may ask for.
    pub entitlements: Vec<String>,
    /// `auto`, `host` or `none`.
    pub network: String,
    /// The outer `/proc` is used.
    pub no_process_sandbox: bool,
    /// How the user's IDs are mapped, for people.
    pub mode: String,
    /// How layers are put on one another, for people.
    pub snapshotter: String,
    /// What is missing on this machine, one line each.
    pub notices: Vec<String>,
    /// When it started.
    pub started: SystemTime,
    /// An id of this worker.
    pub worker_id: String,
    /// What is removed from the cache by itself, in this order; empty: nothing.
    pub gc_policies: Vec<crate::gc::policy::Policy>,
}

impl Settings {
    /// Returns the platform that is meant when none is given.
    #[must_use]
    pub fn platform(&self) -> Platform {
        self.platforms.first().cloned().unwrap_or_else(Platform::host)
    }
}
