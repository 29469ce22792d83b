//! The command line's grammar: each flag is defined once, here and in the modules below; help and completions follow.

pub mod build;
pub mod daemon;
pub mod manage;

use clap::{CommandFactory as _, Parser, Subcommand};
use std::ffi::OsString;

/// Builds container images from Dockerfiles: rootless, with no set-up, at once.
#[derive(Debug, Parser)]
#[command(
    name = "bud",
    version,
    about = "Builds container images from Dockerfiles: rootless, with no set-up, at once",
    override_usage = "bud [build] [OPTIONS] PATH|URL|-\n       bud COMMAND [OPTIONS]",
    after_help = EXAMPLES,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    max_term_width = 110,
)]
pub struct Cli {
    /// What `bud` does without a command: build.
    #[command(flatten)]
    pub build: build::BuildArgs,
    /// Another thing to do.
    #[command(subcommand)]
    pub command: Option<Command>,
}

const EXAMPLES: &str = "\
Examples:
  bud -t foo .                          build ./Dockerfile, name the image foo
  bud -f web.Dockerfile --target dev .  another Dockerfile, one of its stages
  bud -o out .                          write the result's files to ./out
  bud --push -t ghcr.io/me/app:1 .      build and push
  curl -sL https://… | bud -t foo -     a Dockerfile or a tar of the context from stdin

No daemon runs yet? bud starts one by itself; `bud daemon status` shows it.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image (what `bud` does without a command)
    #[command(override_usage = "bud [build] [OPTIONS] PATH|URL|-", after_help = EXAMPLES)]
    Build(Box<build::BuildArgs>),
    /// List the images that were built
    #[command(visible_alias = "ls")]
    Images(manage::ImagesArgs),
    /// Remove images by name
    Rmi(manage::RmiArgs),
    /// Show what the build cache holds and how much disk it takes
    Du(manage::DuArgs),
    /// Remove build cache that is not in use
    Prune(manage::PruneArgs),
    /// List, remove, export and import the cache mounts of RUN steps
    #[command(subcommand)]
    Cache(manage::CacheCommand),
    /// Run the daemon in the foreground, or start, stop and look at the one in the background
    Daemon(Box<daemon::DaemonArgs>),
    /// Check whether this machine can build, by trying, and say what mends it
    Doctor(manage::DoctorArgs),
    /// Write the shell completions into a folder
    #[command(hide = true)]
    Completions(manage::CompletionsArgs),
}

/// Where the daemon is; for every command that speaks with it.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct ConnectArgs {
    /// The daemon's address: unix:///path, tcp://host:port, docker-container://name, podman-container://name,
    /// kube-pod://name, ssh://user@host [default: this user's own daemon, started when it doesn't run]
    #[arg(
        long,
        alias = "addr",
        value_name = "ADDRESS",
        env = "BUILDKIT_HOST",
        hide_env_values = true,
        help_heading = "Daemon",
        global = false
    )]
    pub buildkit_addr: Option<String>,
    /// CA certificate that the daemon's must be signed by (tcp://)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "Daemon")]
    pub tlscacert: Option<std::path::PathBuf>,
    /// Client certificate (tcp://)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "Daemon", requires = "tlskey")]
    pub tlscert: Option<std::path::PathBuf>,
    /// Client key (tcp://)
    #[arg(long, value_name = "FILE", value_hint = clap::ValueHint::FilePath, help_heading = "Daemon", requires = "tlscert")]
    pub tlskey: Option<std::path::PathBuf>,
    /// Name that the daemon's certificate must carry, if it isn't the address's host (tcp://)
    #[arg(long, value_name = "NAME", help_heading = "Daemon")]
    pub tlsservername: Option<String>,
}

impl Cli {
    /// Parses the arguments of this process. When called as `buildkitd`, they are those of `bud daemon`.
    ///
    /// # Errors
    /// Help, version and wrong arguments, as clap's own error.
    pub fn from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let mut args: Vec<OsString> = args.into_iter().collect();
        let called_as = args
            .first()
            .and_then(|name| std::path::Path::new(name).file_name().map(OsString::from))
            .unwrap_or_default();
        if called_as == "buildkitd" {
            args.insert(1, "daemon".into());
        }
        Self::try_parse_from(args)
    }
}

/// Returns the clap command under the name it is installed as.
#[must_use]
pub fn command(name: &'static str) -> clap::Command {
    Cli::command().name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::from_args(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn build_is_the_default_command() {
        let plain = parse("bud -t foo --build-arg A=1 .").unwrap();
        assert!(plain.command.is_none());
        assert_eq!(plain.build.tag, ["foo"]);
        let named = parse("bud build -t foo --build-arg A=1 .").unwrap();
        let Some(Command::Build(args)) = named.command else { panic!("not a build") };
        assert_eq!(args.tag, plain.build.tag);
        assert_eq!(args.context, plain.build.context);
        assert_eq!(args.build_arg, ["A=1"]);
    }

    #[test]
    fn a_dash_is_a_context_and_a_file() {
        assert_eq!(parse("bud -").unwrap().build.context.unwrap(), "-");
        assert_eq!(parse("bud -f - .").unwrap().build.file.unwrap(), "-");
        assert_eq!(parse("bud -f- .").unwrap().build.file.unwrap(), "-");
    }

    #[test]
    fn booleans_take_a_value_or_none() {
        assert_eq!(parse("bud --load .").unwrap().build.load, Some(true));
        assert_eq!(parse("bud --load=false .").unwrap().build.load, Some(false));
        assert_eq!(parse("bud .").unwrap().build.load, None);
        assert!(parse("bud --no-cache=true .").unwrap().build.no_cache);
        assert!(!parse("bud --no-cache=false .").unwrap().build.no_cache);
        assert!(parse("bud --pull .").unwrap().build.pull);
    }

    #[test]
    fn buildkitd_is_the_daemon() {
        let cli =
            parse("/usr/bin/buildkitd --addr unix:///a --addr tcp://b:1 --oci-worker-no-process-sandbox --rootless")
                .unwrap();
        let Some(Command::Daemon(args)) = cli.command else { panic!("not the daemon") };
        assert_eq!(args.run.addr, ["unix:///a", "tcp://b:1"]);
        assert!(args.run.oci_worker_no_process_sandbox);
        assert!(args.command.is_none());
    }

    #[test]
    fn daemon_has_commands() {
        let cli = parse("bud daemon stop --force").unwrap();
        let Some(Command::Daemon(args)) = cli.command else { panic!("not the daemon") };
        assert!(matches!(args.command, Some(daemon::DaemonCommand::Stop(_))));
    }
}

#[cfg(test)]
mod help {
    use super::*;

    fn text(args: &[&str]) -> String {
        command("bud").term_width(100).try_get_matches_from(args).unwrap_err().to_string()
    }

    #[test]
    fn help_of_a_build() {
        insta::assert_snapshot!(text(&["bud", "--help"]));
    }

    #[test]
    fn help_of_the_daemon() {
        insta::assert_snapshot!(text(&["bud", "daemon", "--help"]));
    }

    #[test]
    fn a_wrong_flag_names_the_right_one() {
        insta::assert_snapshot!(text(&["bud", "--traget", "x", "."]));
    }
}
