//! The commands that look at and tidy what the daemon holds.

use super::ConnectArgs;
use clap::{Args, Subcommand, ValueEnum, ValueHint};
use std::path::PathBuf;

/// `bud images`.
#[derive(Debug, Clone, Args)]
pub struct ImagesArgs {
    /// Print names alone, one a line
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud rmi`.
#[derive(Debug, Clone, Args)]
pub struct RmiArgs {
    /// Names of images
    #[arg(required = true, value_name = "IMAGE")]
    pub images: Vec<String>,
    /// Don't mind names that are not there
    #[arg(short, long)]
    pub force: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud du`.
#[derive(Debug, Clone, Args)]
pub struct DuArgs {
    /// Show all facts of each record
    #[arg(short, long)]
    pub verbose: bool,
    /// Which records, such as type=exec.cachemount, description~=apt or inuse (repeatable: any of them)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// table or json
    #[arg(long, value_name = "FORMAT", hide_possible_values = true)]
    pub format: Option<Format>,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// How a listing is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// `bud prune`.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Also what is internal, and front ends
    #[arg(short, long)]
    pub all: bool,
    /// Only what was not used for this long, such as 48h (as --filter until=48h)
    #[arg(long, value_name = "DURATION", alias = "until")]
    pub keep_duration: Option<String>,
    /// Always keep this much, such as 10GB
    #[arg(long, value_name = "BYTES", visible_alias = "keep-storage")]
    pub reserved_space: Option<String>,
    /// Remove, longest unused first, until the cache takes no more than this
    #[arg(long, value_name = "BYTES")]
    pub max_used_space: Option<String>,
    /// Remove, longest unused first, until this much of the disk is free
    #[arg(long, value_name = "BYTES", alias = "free-storage")]
    pub min_free_space: Option<String>,
    /// Which records, such as type=exec.cachemount or id~=layer:4 (repeatable: any of them)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Show what would be freed, and remove nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Don't ask
    #[arg(short, long)]
    pub force: bool,
    /// Show each record that is removed
    #[arg(short, long)]
    pub verbose: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud cache`.
#[derive(Debug, Clone, Subcommand)]
pub enum CacheCommand {
    /// List cache mounts with their sizes
    #[command(visible_alias = "list")]
    Ls(CacheLsArgs),
    /// Remove cache mounts by ID
    Rm(CacheRmArgs),
    /// Write a cache mount as a tar, with owners
    Export(CacheExportArgs),
    /// Make a cache mount hold what a tar holds (what it held before goes)
    Import(CacheImportArgs),
}

/// `bud cache ls`.
#[derive(Debug, Clone, Args)]
pub struct CacheLsArgs {
    /// Print IDs alone, one a line
    #[arg(short, long)]
    pub quiet: bool,
    /// Print JSON
    #[arg(long, conflicts_with = "quiet")]
    pub json: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud cache rm`.
#[derive(Debug, Clone, Args)]
pub struct CacheRmArgs {
    /// IDs as in RUN --mount=type=cache,id=…, or the target if it has none
    #[arg(required = true, value_name = "ID")]
    pub ids: Vec<String>,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud cache export`.
#[derive(Debug, Clone, Args)]
pub struct CacheExportArgs {
    /// ID as in RUN --mount=type=cache,id=…, or the target if it has none
    #[arg(value_name = "ID")]
    pub id: String,
    /// File to write [default: stdout]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub output: Option<PathBuf>,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud cache import`.
#[derive(Debug, Clone, Args)]
pub struct CacheImportArgs {
    /// ID as in RUN --mount=type=cache,id=…, or the target if it has none
    #[arg(value_name = "ID")]
    pub id: String,
    /// The tar, maybe compressed [default: stdin]
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud doctor`.
#[derive(Debug, Clone, Args)]
pub struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// Directory of the state that is looked at [default: $XDG_DATA_HOME/bud]
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    pub root: Option<std::path::PathBuf>,
    /// Which user IDs there shall be inside builds: auto, subids, single or root
    #[arg(
        long,
        value_name = "MODE",
        env = "BUD_USERNS",
        hide_env_values = true,
        default_value = "auto",
        hide_default_value = true,
        hide_possible_values = true
    )]
    pub userns: super::daemon::Userns,
}
