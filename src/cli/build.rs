//! The flags of a build, with `docker build`'s meaning.

use super::ConnectArgs;
use clap::{Args, ValueEnum, ValueHint};
use std::path::PathBuf;

/// Heading of the flags that say what is built.
const WHAT: &str = "What to build";
/// Heading of the flags that say where the result goes.
const RESULT: &str = "Where the result goes";
/// Heading of the flags about the cache.
const CACHE: &str = "Cache";
/// Heading of the flags about the steps' surroundings.
const STEPS: &str = "What steps can see and use";
/// Heading of the flags about what is shown.
const SHOWN: &str = "What is shown";
/// Heading of the flags about the daemon.
const DAEMON: &str = "Daemon";

/// How progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum ProgressMode {
    /// A live display on a terminal, plain lines elsewhere.
    #[default]
    Auto,
    /// A live display.
    Tty,
    /// One line for each event; for CI.
    Plain,
    /// Nothing but errors.
    Quiet,
    /// One JSON object for each event, as BuildKit writes them.
    Rawjson,
}

/// The flags of a build.
#[derive(Debug, Clone, Default, Args)]
pub struct BuildArgs {
    /// The build context: a directory, `-` for a Dockerfile or a tar on stdin, or a Git or HTTP URL
    #[arg(value_name = "PATH|URL|-", value_hint = ValueHint::DirPath)]
    pub context: Option<String>,

    /// Name for the image, as name:tag (repeatable)
    #[arg(short, long, value_name = "NAME", help_heading = RESULT)]
    pub tag: Vec<String>,
    /// The Dockerfile; `-` reads it from stdin [default: PATH/Dockerfile]
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, allow_hyphen_values = true, help_heading = WHAT)]
    pub file: Option<String>,
    /// The stage to build [default: the last]
    #[arg(long, value_name = "STAGE", help_heading = WHAT)]
    pub target: Option<String>,
    /// Value for an ARG; without `=`, this environment's (repeatable)
    #[arg(long, value_name = "KEY[=VALUE]", help_heading = WHAT)]
    pub build_arg: Vec<String>,
    /// Another context by name: a directory, docker-image://, oci-layout://, a URL, or target:STAGE (repeatable)
    #[arg(long, value_name = "NAME=SOURCE", help_heading = WHAT)]
    pub build_context: Vec<String>,
    /// Platform to build for [default: this machine's]
    #[arg(long, value_name = "OS/ARCH", value_delimiter = ',', help_heading = WHAT)]
    pub platform: Vec<String>,
    /// Label for the image (repeatable)
    #[arg(long, value_name = "KEY=VALUE", help_heading = WHAT)]
    pub label: Vec<String>,

    /// Where the result goes: a directory, `-` (a tar on stdout), or type=TYPE[,dest=…][,…] with image, registry,
    /// docker, oci, local or tar (repeatable)
    #[arg(short, long, value_name = "DEST", allow_hyphen_values = true, help_heading = RESULT)]
    pub output: Vec<String>,
    /// Load the image into Docker or Podman [default: if one is there and no output is given]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true", hide_possible_values = true, help_heading = RESULT)]
    pub load: Option<bool>,
    /// Push the image to the registry its name says (short for -o type=registry)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = RESULT)]
    pub push: bool,
    /// Write the image's ID to a file
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = RESULT)]
    pub iidfile: Option<PathBuf>,
    /// Write what was made (digests, names) to a file as JSON
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = RESULT)]
    pub metadata_file: Option<PathBuf>,

    /// Run every step anew
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = CACHE)]
    pub no_cache: bool,
    /// Run the steps of these stages anew (repeatable)
    #[arg(long, value_name = "STAGE", value_delimiter = ',', help_heading = CACHE)]
    pub no_cache_filter: Vec<String>,
    /// Ask the registries for newer base images
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = CACHE)]
    pub pull: bool,
    /// Cache to use beside the daemon's own: NAME, or type=registry|gha|s3,… (repeatable)
    #[arg(long, value_name = "SOURCE", help_heading = CACHE)]
    pub cache_from: Vec<String>,
    /// Where to write the cache: inline, or type=registry|gha|s3,… (repeatable)
    #[arg(long, value_name = "DEST", help_heading = CACHE)]
    pub cache_to: Vec<String>,

    /// Secret for steps that mount it: id=ID[,src=FILE|,env=VARIABLE] (repeatable)
    #[arg(long, value_name = "SECRET", help_heading = STEPS)]
    pub secret: Vec<String>,
    /// SSH agent or keys for steps that mount them: default, or ID[=SOCKET|KEY[,KEY]] (repeatable)
    #[arg(long, value_name = "SSH", help_heading = STEPS)]
    pub ssh: Vec<String>,
    /// Network of RUN steps: default, host or none
    #[arg(long, value_name = "MODE", help_heading = STEPS)]
    pub network: Option<String>,
    /// Line for /etc/hosts of RUN steps (repeatable)
    #[arg(long, value_name = "HOST:IP", help_heading = STEPS)]
    pub add_host: Vec<String>,
    /// Size of /dev/shm, such as 128m
    #[arg(long, value_name = "BYTES", help_heading = STEPS)]
    pub shm_size: Option<String>,
    /// Resource limit, such as nofile=1024:2048 (repeatable)
    #[arg(long, value_name = "NAME=SOFT[:HARD]", help_heading = STEPS)]
    pub ulimit: Vec<String>,
    /// Grant what a Dockerfile may only use with your word: network.host, security.insecure (repeatable)
    #[arg(long, value_name = "ENTITLEMENT", value_delimiter = ',', help_heading = STEPS)]
    pub allow: Vec<String>,

    /// Ask about the Dockerfile instead of building it: check, outline, targets, subrequests.describe; with
    /// `,format=json` for JSON, with `,ignorestatus` for exit code 0
    #[arg(long, value_name = "METHOD", help_heading = WHAT, conflicts_with_all = ["check", "output", "push", "load", "iidfile", "metadata_file"])]
    pub call: Option<String>,
    /// Look for mistakes instead of building (short for --call check)
    #[arg(long, help_heading = WHAT, conflicts_with_all = ["output", "push", "load", "iidfile", "metadata_file"])]
    pub check: bool,

    /// How progress is shown
    #[arg(long, value_enum, default_value_t, value_name = "MODE", env = "BUILDKIT_PROGRESS", hide_env_values = true, help_heading = SHOWN)]
    pub progress: ProgressMode,
    /// Print the image's ID alone
    #[arg(short, long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = SHOWN)]
    pub quiet: bool,

    /// How to reach the daemon.
    #[command(flatten)]
    pub connect: ConnectArgs,
    /// Which user IDs there are inside builds: auto, subids, single or root; for the daemon that bud starts
    #[arg(long, value_name = "MODE", env = "BUD_USERNS", hide_env_values = true, help_heading = DAEMON, default_value = "auto", hide_default_value = true, hide_possible_values = true)]
    pub userns: super::daemon::Userns,
    /// Translate the Dockerfile here instead of in the daemon (works with any BuildKit)
    #[arg(long, num_args = 0..=1, require_equals = true, default_value = "false", default_missing_value = "true", hide_default_value = true, hide_possible_values = true, value_name = "BOOL", help_heading = DAEMON)]
    pub clientside_frontend: bool,

    /// Attestations; a later version writes them.
    #[arg(long, hide = true, value_name = "BOOL|ATTRS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub provenance: Option<String>,
    /// Attestations; a later version writes them.
    #[arg(long, hide = true, value_name = "BOOL|ATTRS", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub sbom: Option<String>,
}
