//! The command line's grammar: each flag is defined once, here and in the modules below; help and completions follow.

pub mod build;
pub mod check;
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
  curl -sL https://… | bud -t foo -     a Dockerfile or a context's tar on stdin

No daemon runs yet? bud starts one by itself; `bud daemon status` shows it.";

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Build an image (what `bud` does without a command)
    #[command(override_usage = "bud [build] [OPTIONS] PATH|URL|-", after_help = EXAMPLES)]
    Build(Box<build::BuildArgs>),
    /// Look at a Dockerfile without building it: mistakes, lint, advice; and mend it with --fix
    Check(check::CheckArgs),
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
        // `bud help build` is `bud build -h`: a line for a flag, where there is room.
        if args.get(1).is_some_and(|word| word == "help") {
            args.remove(1);
            args.push("-h".into());
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
    fn help_is_a_command() {
        let said = |line: &str| parse(line).unwrap_err().to_string();
        assert_eq!(said("bud help"), said("bud -h"));
        assert_eq!(said("bud help build"), said("bud build -h"));
        assert_eq!(said("bud help daemon stop"), said("bud daemon stop -h"));
        assert!(said("bud help nothing").contains("Usage"));
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

#[cfg(test)]
mod man {
    use super::*;
    use std::path::Path;

    const PLACES: &str = r"
.SH ENVIRONMENT
.TP
BUILDKIT_HOST
The daemon's address, as \-\-buildkit\-addr
.TP
BUD_LOAD
never: load no image into Docker or Podman unless \-\-load says so
.TP
BUD_USERNS
As \-\-userns
.TP
BUD_IDLE_TIMEOUT
How long a daemon that bud starts stays without work, such as 2h [default: 30m]
.TP
DOCKER_HOST, DOCKER_CONTEXT
The Docker that images are loaded into
.SH FILES
.TP
$XDG_RUNTIME_DIR/buildkit/buildkitd.sock
The daemon's socket
.TP
~/.local/share/bud
The daemon's state: images, cache, daemon.log
.TP
~/.config/buildkit/buildkitd.toml
Registries, mirrors, garbage collection, in BuildKit's format
.TP
~/.docker/config.json
Credentials for registries
.SH EXIT STATUS
0: done. 1: the build or command failed. 2: the command line is wrong. 128 and the signal's number: stopped by a signal.
";

    /// The pages: one for `bud`, one for each command below it.
    fn pages() -> Vec<(String, Vec<u8>)> {
        let mut root = command("bud");
        root.build();
        let mut pages = Vec::new();
        add(&root, "bud", &mut pages);
        pages
    }

    fn add(command: &clap::Command, name: &str, pages: &mut Vec<(String, Vec<u8>)>) {
        pages.push((format!("{name}.1"), page(command.clone().display_name(name))));
        for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set()) {
            add(sub, &format!("{name}-{}", sub.get_name()), pages);
        }
    }

    fn page(command: clap::Command) -> Vec<u8> {
        let has_examples = command.get_after_help().is_some();
        let (is_root, commands) = (command.get_name() == "bud", command.has_subcommands());
        let man = clap_mangen::Man::new(command).source("bud").manual("bud");
        let mut text = Vec::new();
        man.render_title(&mut text).unwrap();
        man.render_name_section(&mut text).unwrap();
        man.render_synopsis_section(&mut text).unwrap();
        man.render_description_section(&mut text).unwrap();
        man.render_options_section(&mut text).unwrap();
        if commands {
            man.render_subcommands_section(&mut text).unwrap();
        }
        if has_examples {
            let examples = EXAMPLES.trim_start_matches("Examples:\n").replace('\\', r"\e").replace('-', r"\-");
            text.extend(format!(".SH EXAMPLES\n.nf\n{examples}\n.fi\n").as_bytes());
        }
        if is_root {
            text.extend(PLACES.trim_start().as_bytes());
        }
        text
    }

    #[test]
    fn the_pages_in_the_repository_are_current() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("man");
        let pages = pages();
        let is_page = |name: &std::ffi::OsStr| pages.iter().any(|(file, _)| name == file.as_str());
        for entry in std::fs::read_dir(&folder).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(is_page(&name), "man/{} belongs to no command", name.display());
        }
        for (file, text) in pages {
            if std::env::var_os("BUD_UPDATE").is_some() {
                std::fs::write(folder.join(&file), &text).unwrap();
            }
            let found = std::fs::read(folder.join(&file)).unwrap_or_default();
            assert!(
                found == text,
                "man/{file} is not current: run `BUD_UPDATE=1 cargo test -p build-using-dockerfile --lib man`"
            );
        }
    }
}
