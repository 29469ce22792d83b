//! What a daemon is started with.

use crate::log::LogFile;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// The daemon's flags, with `buildkitd`'s names where it has them.
#[derive(Debug)]
pub struct Options {
    /// Where to listen: `unix:///abs/path` or `tcp://host:port`; not empty unless sockets are inherited.
    pub addresses: Vec<String>,
    /// Sockets that listen already, handed over by a service manager.
    pub inherited: Vec<OwnedFd>,
    /// The state directory; made with mode 0700 when missing.
    pub root: PathBuf,
    /// `buildkitd.toml`; none: none is read.
    pub config: Option<PathBuf>,
    /// How the user's IDs are mapped.
    pub identity: bud_sandbox::userns::Policy,
    /// Binds the outer `/proc` into steps, for containers that can't mount a fresh one.
    pub no_process_sandbox: bool,
    /// How layers are put on one another.
    pub snapshotter: Snapshotter,
    /// `auto`, `host` or `none`.
    pub network: String,
    /// The platforms to offer, the default one first; empty: this machine's.
    pub platforms: Vec<String>,
    /// Labels of the worker.
    pub labels: Vec<(String, String)>,
    /// Whether rubbish is collected by itself; none: as the configuration says.
    pub gc: Option<bool>,
    /// How much of the cache is kept, if not as the configuration says.
    pub gc_limits: Option<crate::gc::policy::Limits>,
    /// `network.host`, `security.insecure`: what a build may ask for.
    pub entitlements: Vec<String>,
    /// Certificates of a TCP address.
    pub tls: Option<Tls>,
    /// Allows TCP without mutual TLS.
    pub insecure_tcp: bool,
    /// Leaves after so long with nothing to do; none: stays.
    pub idle_timeout: Option<Duration>,
    /// Logs more.
    pub debug: bool,
    /// The file that standard error is, if it is a log of our own.
    pub log: Option<LogFile>,
    /// The write end of a pipe: gets `ready\n` when the sockets accept, and is closed.
    pub ready: Option<OwnedFd>,
    /// This program's version.
    pub version: String,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            addresses: Vec::new(),
            inherited: Vec::new(),
            root: PathBuf::new(),
            config: None,
            identity: bud_sandbox::userns::Policy::Auto,
            no_process_sandbox: false,
            snapshotter: Snapshotter::Auto,
            network: "auto".into(),
            platforms: Vec::new(),
            labels: Vec::new(),
            gc: None,
            gc_limits: None,
            entitlements: Vec::new(),
            tls: None,
            insecure_tcp: false,
            idle_timeout: None,
            debug: false,
            log: None,
            ready: None,
            version: env!("CARGO_PKG_VERSION").into(),
        }
    }
}

/// How layers are put on one another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Snapshotter {
    /// Overlayfs if the kernel lets us, else copies.
    #[default]
    Auto,
    /// Overlayfs or nothing.
    Overlayfs,
    /// Copies.
    Native,
}

/// Files of a TLS server.
#[derive(Clone, Debug)]
pub struct Tls {
    /// Certificate authority that clients' certificates must be of; without it clients are not checked.
    pub ca: Option<PathBuf>,
    /// Our certificate chain.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
}
