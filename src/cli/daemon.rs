//! `bud daemon`: the daemon in the foreground with buildkitd's flags, and the commands for the one in the background.

use super::ConnectArgs;
use bud_sandbox::userns::{Mode, Policy};
use clap::{ArgAction, Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// `bud daemon`.
#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    override_usage = "bud daemon [OPTIONS]\n       bud daemon start|stop|status|logs [OPTIONS]"
)]
pub struct DaemonArgs {
    /// Flags of the foreground daemon.
    #[command(flatten)]
    pub run: RunArgs,
    /// What to do instead.
    #[command(subcommand)]
    pub command: Option<DaemonCommand>,
}

/// What to do with the daemon in the background.
#[derive(Debug, Subcommand)]
pub enum DaemonCommand {
    /// Start it, if it doesn't run
    Start(StartArgs),
    /// Stop it, unless builds run
    Stop(StopArgs),
    /// Show where it is, what it does, what it holds
    Status(StatusArgs),
    /// Show its log
    Logs(LogsArgs),
}

/// `bud daemon start`.
#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// Let it exit after this long with nothing to do, such as 30m; 0: never
    #[arg(long, value_name = "DURATION", env = "BUD_IDLE_TIMEOUT", hide_env_values = true)]
    pub idle_timeout: Option<String>,
    /// Which user IDs there are inside builds: auto, subids, single or root
    #[arg(
        long,
        value_name = "MODE",
        env = "BUD_USERNS",
        hide_env_values = true,
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub userns: Userns,
}

/// `bud daemon stop`.
#[derive(Debug, Clone, Args)]
pub struct StopArgs {
    /// End running builds
    #[arg(short, long)]
    pub force: bool,
    /// Wait for running builds to end, then stop
    #[arg(short, long, conflicts_with = "force")]
    pub wait: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud daemon status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud daemon logs`.
#[derive(Debug, Clone, Args)]
pub struct LogsArgs {
    /// Go on as it grows
    #[arg(short, long)]
    pub follow: bool,
    /// How many of the last lines
    #[arg(short = 'n', long, value_name = "LINES", default_value_t = 200)]
    pub tail: usize,
}

/// How files of snapshots are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum SnapshotterChoice {
    /// Overlay where the kernel allows it.
    #[default]
    Auto,
    /// Overlay mounts.
    Overlayfs,
    /// Plain copies.
    Native,
}

/// Heading of the flags about TCP.
const TCP: &str = "TCP";
/// Heading of the flags about steps.
const WORKER: &str = "Worker";

/// Flags of the foreground daemon; buildkitd's names.
#[derive(Debug, Clone, Default, Args)]
pub struct RunArgs {
    /// Address to listen on: unix:///path or tcp://host:port, or fd:// for the sockets of a service manager (repeatable)
    #[arg(long, value_name = "ADDRESS")]
    pub addr: Vec<String>,
    /// Directory of the state [default: $XDG_DATA_HOME/bud]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub root: Option<PathBuf>,
    /// buildkitd.toml [default: ~/.config/buildkit/buildkitd.toml, for root /etc/buildkit/buildkitd.toml]
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub config: Option<PathBuf>,
    /// More in the log
    #[arg(long, action = ArgAction::SetTrue)]
    pub debug: bool,
    /// Exit after this long with nothing to do, such as 30m; 0: never [default: 0, started by a build 30m]
    #[arg(long, value_name = "DURATION")]
    pub idle_timeout: Option<String>,
    /// Entitlement that builds may be granted: network.host, security.insecure (repeatable)
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',')]
    pub allow_insecure_entitlement: Vec<String>,

    /// Certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = TCP, requires = "tlskey")]
    pub tlscert: Option<PathBuf>,
    /// Key of the certificate
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = TCP, requires = "tlscert")]
    pub tlskey: Option<PathBuf>,
    /// CA that clients' certificates must be signed by
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = TCP)]
    pub tlscacert: Option<PathBuf>,
    /// Listen on TCP without client certificates: whoever reaches the port can build and read this user's builds
    #[arg(long, help_heading = TCP)]
    pub insecure_tcp: bool,

    /// Which user IDs there are inside builds: sub-IDs through newuidmap (subids), the own ID alone (single), no user
    /// namespace (root), or the best of these that this machine allows
    #[arg(long, alias = "identity", value_name = "MODE", env = "BUD_USERNS", hide_env_values = true, help_heading = WORKER, default_value = "auto", hide_default_value = true)]
    pub userns: Userns,
    /// How snapshots are put together: auto, overlayfs or native
    #[arg(long, value_name = "NAME", help_heading = WORKER, default_value = "auto", hide_default_value = true, hide_possible_values = true)]
    pub oci_worker_snapshotter: SnapshotterChoice,
    /// Leave RUN steps the /proc around the daemon; for containers that can't mount their own
    #[arg(long, help_heading = WORKER, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, hide_possible_values = true, value_name = "BOOL")]
    pub oci_worker_no_process_sandbox: bool,
    /// Network of RUN steps: auto, host or none
    #[arg(long, value_name = "MODE", help_heading = WORKER)]
    pub oci_worker_net: Option<String>,
    /// Platform to offer (repeatable)
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',', help_heading = WORKER)]
    pub oci_worker_platform: Vec<String>,
    /// Label of the worker (repeatable)
    #[arg(long, value_name = "KEY=VALUE", help_heading = WORKER)]
    pub oci_worker_labels: Vec<String>,
    /// Remove old cache by itself [default: true]
    #[arg(long, help_heading = WORKER, num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, value_name = "BOOL")]
    pub oci_worker_gc: Option<bool>,
    /// Cache that is kept, disk that is to be free, cache at most: MB, or such as 10GB,20%,100GB
    #[arg(long, value_name = "RESERVED[,FREE[,MAXIMUM]]", help_heading = WORKER)]
    pub oci_worker_gc_keepstorage: Option<String>,

    /// Accepted for buildkitd's sake: it is always so.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub rootless: bool,
    /// Accepted for buildkitd's sake.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub oci_worker: bool,
    /// Accepted for buildkitd's sake.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "true", default_missing_value = "true")]
    pub oci_worker_rootless: bool,
    /// Accepted for buildkitd's sake: there is no containerd worker.
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true")]
    pub containerd_worker: bool,
    /// Accepted for buildkitd's sake.
    #[arg(long, hide = true)]
    pub log_format: Option<String>,

    /// Set by a client that starts the daemon: readiness goes to stdout, the log to stderr.
    #[arg(long, hide = true)]
    pub spawned: bool,
}

/// How IDs are mapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Userns {
    /// The best that this machine allows.
    #[default]
    Auto,
    /// The own ID and sub-IDs.
    Subids,
    /// The own ID alone.
    Single,
    /// Real root, no user namespace.
    Root,
}

impl Userns {
    /// Returns the word on the command line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Subids => "subids",
            Self::Single => "single",
            Self::Root => "root",
        }
    }

    /// Returns what the sandbox is told.
    #[must_use]
    pub fn policy(self) -> Policy {
        match self {
            Self::Auto => Policy::Auto,
            Self::Subids => Policy::Subids,
            Self::Single => Policy::Single,
            Self::Root => Policy::Root,
        }
    }

    /// Tells whether a daemon that says this of its users is what was asked for.
    #[must_use]
    pub fn is_met_by(self, mode: &str) -> bool {
        let is = |of: Mode| mode == of.shown();
        match self {
            Self::Auto => true,
            Self::Subids => is(Mode::Subids),
            Self::Single => is(Mode::Single),
            Self::Root => is(Mode::Root),
        }
    }
}
