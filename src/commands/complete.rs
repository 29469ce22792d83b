//! `bud __complete SHELL INDEX WORD…`: what could stand at a place of a command line. The shells' own scripts (`completions/`)
//! only ask here and show the answer: a candidate a line, after a tab what it is, and `:files` or `:dirs` where paths fit too.

mod line;
mod values;

use crate::cli::Cli;
use crate::terminal;
use clap::{ArgAction, CommandFactory as _};
use line::{Line, Place};
use std::ffi::OsString;
use std::process::ExitCode;

/// The hidden command's name.
pub const NAME: &str = "__complete";
/// A command line of more words isn't completed.
const WORD_LIMIT: usize = 4096;

/// Something that could stand there, and what it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    text: String,
    help: String,
}

impl Candidate {
    fn new(text: impl Into<String>, help: impl Into<String>) -> Self {
        Self { text: text.into(), help: help.into() }
    }
}

/// What fits: candidates, and the shell's own paths.
#[derive(Debug, Default)]
struct Answer {
    candidates: Vec<Candidate>,
    /// `:files` or `:dirs`.
    paths: Option<&'static str>,
}

/// Answers a shell. Nothing that goes wrong is told: it would be written into the middle of what the user types.
pub fn run(args: impl Iterator<Item = OsString>) -> ExitCode {
    let mut args = args.map(|arg| arg.to_string_lossy().into_owned());
    let shell = args.next().unwrap_or_default();
    let index = args.next().and_then(|index| index.parse().ok());
    let words: Vec<String> = args.take(WORD_LIMIT).collect();
    let Some(index) = index.filter(|index| (1..=words.len()).contains(index)) else { return ExitCode::FAILURE };
    match terminal::print(&answer(&shell, words, index)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn answer(shell: &str, words: Vec<String>, index: usize) -> String {
    let (words, index, cut) = match shell {
        "bash" => line::join_bash(&words, index),
        _ => (words, index, 0),
    };
    let mut command = Cli::command();
    command.build();
    let line = Line::read(&command, &words, index);
    let mut found = candidates(&line);
    found.candidates.retain(|candidate| candidate.text.starts_with(&line.current));
    if found.paths == Some(values::FILES_IF_NONE) {
        found.paths = found.candidates.is_empty().then_some(":files");
    }
    let mut text = String::new();
    for candidate in &found.candidates {
        // bash replaces what stands after the last `=` or `:` alone.
        let Some(rest) = candidate.text.get(cut..) else { continue };
        let clean = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
        text.push_str(&clean(rest));
        if !candidate.help.is_empty() {
            text.push_str(&format!("\t{}", clean(&candidate.help)));
        }
        text.push('\n');
    }
    if let Some(paths) = found.paths {
        text.push_str(&format!("{paths}\n"));
    }
    text
}

fn candidates(line: &Line<'_>) -> Answer {
    match &line.place {
        Place::Value { arg, prefix } => {
            let mut found = values::of(arg, line, &line.current[prefix.len()..]);
            for candidate in &mut found.candidates {
                candidate.text.insert_str(0, prefix);
            }
            found
        }
        Place::Flag => Answer { candidates: flags(line), paths: None },
        Place::Word { commands } => {
            let count = line.positionals.len();
            let positionals: Vec<_> = line.command.get_positionals().collect();
            // The last may take all that follow; after the others, nothing fits (`bud ./other PATH` has one context).
            let last = || positionals.last().filter(|arg| is_repeatable(arg));
            let positional = positionals.get(count).or_else(last);
            let mut found = positional.map(|arg| values::of(arg, line, &line.current)).unwrap_or_default();
            if line.is_help {
                found = Answer::default();
            }
            if *commands {
                found.candidates.extend(subcommands(line));
            }
            found
        }
    }
}

fn is_repeatable(arg: &clap::Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append | ArgAction::Count)
}

fn subcommands(line: &Line<'_>) -> Vec<Candidate> {
    let command = line.command;
    let shown = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    let mut all: Vec<_> = shown.map(|sub| Candidate::new(sub.get_name(), first_line(sub.get_about()))).collect();
    if command.get_name() == "bud" && !line.is_help {
        all.push(Candidate::new("help", "Print help, or that of a command"));
    }
    all
}

fn first_line(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default().lines().next().unwrap_or_default().to_owned()
}

/// The flags that may still be given.
fn flags(line: &Line<'_>) -> Vec<Candidate> {
    let mut all = Vec::new();
    for arg in line.command.get_arguments() {
        let given = line.values.contains_key(arg.get_id().as_str());
        if arg.is_hide_set() || (given && !is_repeatable(arg)) {
            continue;
        }
        let help = first_line(arg.get_help());
        if let Some(long) = arg.get_long() {
            all.push(Candidate::new(format!("--{long}"), &help));
        }
        if let Some(short) = arg.get_short()
            && line.current.len() < 2
        {
            all.push(Candidate::new(format!("-{short}"), help));
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The candidates at the end of a line, without what they are.
    fn at_end(text: &str) -> Vec<String> {
        let words: Vec<String> = text.split(' ').map(str::to_owned).collect();
        let index = words.len() - 1;
        answer("fish", words, index).lines().map(|l| l.split('\t').next().unwrap_or_default().to_owned()).collect()
    }

    fn dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(
            dir.path().join("Dockerfile"),
            "ARG VERSION=1.2\nFROM scratch AS base\nARG TOKEN\nFROM base AS dev\n",
        )
        .unwrap();
        std::fs::write(dir.path().join("web.Dockerfile"), "FROM scratch AS web\n").unwrap();
        dir
    }

    #[test]
    fn commands_flags_and_contexts() {
        let found = at_end("bud ");
        assert!(found.contains(&"images".into()) && found.contains(&":dirs".into()), "{found:?}");
        assert!(!found.iter().any(|word| word.starts_with('-') || word == "completions"), "{found:?}");
        assert_eq!(at_end("bud rm"), ["rmi", ":dirs"]);
        assert_eq!(at_end("bud --targ"), ["--target"]);
        assert!(!at_end("bud -q --q").contains(&"--quiet".into()));
        assert!(at_end("bud -t a --ta").contains(&"--tag".into()));
        assert_eq!(at_end("bud daemon sto"), ["stop"]);
        assert_eq!(at_end("bud help daemon sto"), ["stop"]);
        assert_eq!(at_end("bud help rm"), ["rmi"]);
        assert_eq!(at_end("bud cache import id "), [":files"]);
        assert!(at_end("bud cache import id file ").is_empty());
        assert!(at_end("bud . ").is_empty());
        assert_eq!(at_end("bud --progress r"), ["rawjson"]);
        assert_eq!(at_end("bud --progress=r"), ["--progress=rawjson"]);
        assert_eq!(at_end("bud --iidfile x"), [":files"]);
    }

    #[test]
    fn a_dockerfile_s_stages_and_args() {
        let dir = dir();
        let dir = dir.path().display();
        assert_eq!(at_end(&format!("bud {dir} --target ")), ["base", "dev"]);
        assert_eq!(at_end(&format!("bud build {dir} --target=d")), ["--target=dev"]);
        assert_eq!(at_end(&format!("bud -f {dir}/web.Dockerfile --target ")), ["web"]);
        assert_eq!(at_end(&format!("bud -qf{dir}/web.Dockerfile --target ")), ["web"]);
        assert_eq!(at_end(&format!("bud {dir} --build-arg ")), ["VERSION=", "TOKEN="]);
        assert_eq!(at_end(&format!("bud {dir} --build-arg VERSION=")), ["VERSION=1.2"]);
        assert_eq!(at_end(&format!("bud {dir} --no-cache-filter base,d")), ["base,dev"]);
        assert!(at_end("bud https://example.com/a.git --target ").is_empty());
        // The context after the cursor counts as well.
        let words: Vec<String> = format!("bud --target d {dir}").split(' ').map(str::to_owned).collect();
        assert_eq!(answer("zsh", words, 2), "dev\n");
    }

    #[test]
    fn dockerfiles_and_other_files() {
        let dir = dir();
        let dir = dir.path().display();
        let found = at_end(&format!("bud -f {dir}/"));
        assert_eq!(found, [format!("{dir}/Dockerfile"), format!("{dir}/web.Dockerfile")]);
        assert_eq!(at_end(&format!("bud --file={dir}/w")), [format!("--file={dir}/web.Dockerfile")]);
        assert_eq!(at_end(&format!("bud -f {dir}/nothing")), [":files"]);
    }

    #[test]
    fn words_as_bash_breaks_them() {
        let dir = dir();
        let dir = dir.path().display().to_string();
        let ask = |words: &[&str], index| answer("bash", words.iter().map(|&w| w.to_owned()).collect(), index);
        assert_eq!(ask(&["bud", &dir, "--target", "=", "d"], 4), "dev\n");
        assert_eq!(ask(&["bud", &dir, "--target", "="], 3), "base\ndev\n");
        assert_eq!(ask(&["bud", &dir, "--build-arg", "VERSION", "="], 4), "1.2\tthe default\n");
        assert_eq!(ask(&["bud", &dir, "--target=d"], 2), "--target=dev\n");
        assert_eq!(ask(&["bud", &format!("\"{dir}\""), "--target", ""], 3), "base\ndev\n");
    }
}
