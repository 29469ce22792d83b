//! The commands that look at and tidy what the daemon holds.

use super::ConnectArgs;
use clap::Args;
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
    /// Which records, such as type==exec.cachemount or inuse (repeatable: any of them)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
    /// Print JSON
    #[arg(long, conflicts_with = "verbose")]
    pub json: bool,
    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
}

/// `bud prune`.
#[derive(Debug, Clone, Args)]
pub struct PruneArgs {
    /// Also what is internal or shared with images
    #[arg(short, long)]
    pub all: bool,
    /// Only what was not used for this long, such as 48h
    #[arg(long, value_name = "DURATION")]
    pub keep_duration: Option<String>,
    /// Keep this much, such as 10GB
    #[arg(long, value_name = "BYTES", alias = "keep-storage")]
    pub reserved_space: Option<String>,
    /// Which records, such as type==exec.cachemount (repeatable: any of them)
    #[arg(long, value_name = "FILTER")]
    pub filter: Vec<String>,
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

/// `bud completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The folder
    #[arg(value_name = "FOLDER")]
    pub folder: PathBuf,
}
