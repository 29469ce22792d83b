//! The flags of `bud check`.

use clap::{Args, ValueHint};

/// `bud check`.
#[derive(Debug, Clone, Default, Args)]
pub struct CheckArgs {
    /// The folder of the Dockerfile, or `-` to read it from stdin
    #[arg(value_name = "PATH|-", value_hint = ValueHint::DirPath, default_value = ".")]
    pub context: String,
    /// The Dockerfile [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub file: Option<String>,
    /// Look at this stage and what it needs alone [default: all]
    #[arg(long, value_name = "STAGE")]
    pub target: Option<String>,
    /// Mend what can be mended in the file, keeping every other byte (from stdin: to stdout)
    #[arg(long)]
    pub fix: bool,
    /// With --fix: show the changes and write nothing; the exit code is 1 if there are some
    #[arg(long, requires = "fix")]
    pub dry_run: bool,
    /// Let advice (rules that begin with Bud) count in the exit code
    #[arg(long)]
    pub strict: bool,
}
