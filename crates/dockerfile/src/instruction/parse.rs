//! From words to instructions.

use super::flags::{FlagKind, Flags};
use super::mount::{check_mount, parse_device};
use super::{
    Add, ArgPair, CommandLine, Content, Copy, GlobalArg, InlineFile, Instruction, Kind, Origin, Pair, Paths, Program,
    Run, Stage,
};
use crate::fault::Fault;
use crate::frontend::Span;
use crate::lint::{Linter, rules, rules::say};
use crate::parser::{Dockerfile, Node, heredoc};
use crate::text::duration;
use crate::text::number::parse_int;
use crate::text::quote::quote;
use crate::text::suggest::{by_likeness, with_nearest};
use bud_image::config::Healthcheck;

/// All keywords.
pub(crate) const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// An instruction, or the beginning of a stage.
enum Parsed {
    Stage(Stage),
    Instruction(Instruction),
}

/// Parses a text's instructions.
pub(crate) fn parse_all(file: &Dockerfile, lint: &Linter) -> Result<Program, Fault> {
    let mut program = Program::default();
    for node in &file.nodes {
        add_node(&mut program, node, lint)?;
    }
    Ok(program)
}

/// Parses as many of a text's instructions as can be parsed, and says all that is wrong with the others.
pub(crate) fn parse_lenient(file: &Dockerfile) -> (Program, Vec<Fault>) {
    let mut program = Program::default();
    let add = |node| add_node(&mut program, node, &Linter::silent()).err();
    let faults = file.nodes.iter().filter_map(add).collect();
    (program, faults)
}

fn add_node(program: &mut Program, node: &Node, lint: &Linter) -> Result<(), Fault> {
    let parsed = parse(node, lint).map_err(|fault| {
        fault.at(&node.location()).during(format!("dockerfile parse error on line {}", node.lines.start))
    })?;
    match parsed {
        Parsed::Stage(stage) => program.stages.push(stage),
        Parsed::Instruction(instruction) => match (program.stages.last_mut(), instruction.kind) {
            (None, Kind::Arg(args)) => program.globals.push(GlobalArg { origin: instruction.origin, args }),
            (None, _) => {
                let fault = Fault::new("no build stage in current context").at(&node.location());
                return Err(fault.on(Some(node.keyword.bytes.clone())));
            }
            (Some(stage), kind) => {
                stage.instructions.push(Instruction { origin: instruction.origin, kind });
            }
        },
    }
    Ok(())
}

/// Parses the instruction of an `ONBUILD`, as if it stood at the place of the stage that it is run for.
pub(crate) fn parse_trigger(text: &str, place: &[Span]) -> Result<Instruction, Fault> {
    let file = crate::parser::parse(text)?;
    let [node] = file.nodes.as_slice() else {
        return Err(Fault::new("onbuild trigger should be a single expression"));
    };
    let mut node = node.clone();
    node.lines = Span {
        start: place.iter().map(|span| span.start).min().unwrap_or(0),
        end: place.iter().map(|span| span.end).max().unwrap_or(0),
    };
    match parse(&node, &Linter::silent()).map_err(|fault| fault.at(&node.location()))? {
        Parsed::Instruction(mut instruction) => {
            // The bytes are those of the trigger's own text.
            instruction.origin.keyword_bytes = 0..0;
            instruction.origin.word_bytes.clear();
            instruction.origin.flags.clear();
            Ok(instruction)
        }
        Parsed::Stage(_) => Err(Fault::new("*instructions.Stage is not a command type").at(&node.location())),
    }
}

fn parse(node: &Node, lint: &Linter) -> Result<Parsed, Fault> {
    let lint = lint.under(&node.comments);
    let request = Request { node, args: node.words.iter().map(|word| word.text.as_str()).collect() };
    let kind = match node.name().as_str() {
        "add" => request.add()?,
        "arg" => {
            let args = request.arg()?;
            let keys: Vec<&str> = args.iter().map(|arg| arg.key.as_str()).collect();
            check_description("ARG", &keys, node, &lint);
            Kind::Arg(args)
        }
        "cmd" => Kind::Cmd(request.command_line()?),
        "copy" => request.copy()?,
        "entrypoint" => Kind::Entrypoint(request.command_line()?),
        "env" => Kind::Env(request.pairs("ENV")?),
        "expose" => {
            let mut ports: Vec<String> = request.at_least_one("EXPOSE")?;
            request.no_flags()?;
            ports.sort();
            Kind::Expose(ports)
        }
        "from" => {
            check_from_casing(&request, &lint);
            let stage = request.from()?;
            if !stage.name.is_empty() {
                check_description("FROM", &[&stage.name], node, &lint);
            }
            return Ok(Parsed::Stage(stage));
        }
        "healthcheck" => request.healthcheck()?,
        "label" => Kind::Label(request.pairs("LABEL")?),
        "maintainer" => {
            let message = "Maintainer instruction is deprecated in favor of using label";
            lint.report(&rules::MAINTAINER_DEPRECATED, &node.location(), message.into());
            Kind::Maintainer(request.exactly_one("MAINTAINER")?)
        }
        "onbuild" => request.onbuild()?,
        "run" => request.run()?,
        "shell" => request.shell()?,
        // Flags aren't looked at.
        "stopsignal" => Kind::Stopsignal(request.one("STOPSIGNAL")?),
        "user" => Kind::User(request.exactly_one("USER")?),
        "volume" => request.volume()?,
        "workdir" => Kind::Workdir(request.exactly_one("WORKDIR")?),
        _ => {
            let keyword = &node.keyword.text;
            let message = with_nearest(
                format!("unknown instruction: {keyword}"),
                keyword,
                &by_likeness(keyword, &KEYWORDS),
                false,
            );
            return Err(Fault::new(message).on(Some(node.keyword.bytes.clone())));
        }
    };
    Ok(Parsed::Instruction(Instruction { origin: request.origin(), kind }))
}

struct Request<'a> {
    node: &'a Node,
    args: Vec<&'a str>,
}

impl Request<'_> {
    fn origin(&self) -> Origin {
        let node = self.node;
        Origin {
            keyword: node.keyword.text.clone(),
            code: node.original.trim().to_owned(),
            place: node.location(),
            comments: node.comments.clone(),
            keyword_bytes: node.keyword.bytes.clone(),
            word_bytes: node.words.iter().map(|word| word.bytes.clone()).collect(),
            flags: node.flags.clone(),
        }
    }

    fn owned_args(&self) -> Vec<String> {
        self.args.iter().map(|arg| (*arg).to_owned()).collect()
    }

    fn no_flags(&self) -> Result<(), Fault> {
        Flags::parse(&self.node.flags, &[]).map(|_| ())
    }

    fn at_least_one(&self, name: &str) -> Result<Vec<String>, Fault> {
        if self.args.is_empty() {
            return Err(self.whole(format!("{name} requires at least one argument")));
        }
        Ok(self.owned_args())
    }

    fn one(&self, name: &str) -> Result<String, Fault> {
        match self.args.as_slice() {
            [arg] => Ok((*arg).to_owned()),
            _ => Err(self.whole(format!("{name} requires exactly one argument"))),
        }
    }

    fn exactly_one(&self, name: &str) -> Result<String, Fault> {
        let arg = self.one(name)?;
        self.no_flags()?;
        Ok(arg)
    }

    /// An error that is about the keyword.
    fn whole(&self, message: impl Into<String>) -> Fault {
        Fault::new(message).on(Some(self.node.keyword.bytes.clone()))
    }

    /// An error that is about one word.
    fn word(&self, index: usize, message: impl Into<String>) -> Fault {
        Fault::new(message).on(self.node.words.get(index).map(|word| word.bytes.clone()))
    }

    fn pairs(&self, name: &str) -> Result<Vec<Pair>, Fault> {
        self.no_flags()?;
        self.at_least_one(name)?;
        let mut pairs = Vec::with_capacity(self.args.len() / 3);
        for (i, triple) in self.args.chunks(3).enumerate() {
            let [key, value, separator] = triple else {
                return Err(self.whole(format!("Bad input to {name}, too many arguments")));
            };
            if key.is_empty() {
                return Err(self.word(3 * i + 2, format!("{name} names can not be blank")));
            }
            pairs.push(Pair { key: (*key).to_owned(), value: (*value).to_owned(), is_legacy: separator.is_empty() });
        }
        Ok(pairs)
    }

    fn arg(&self) -> Result<Vec<ArgPair>, Fault> {
        self.at_least_one("ARG")?;
        let mut pairs = Vec::with_capacity(self.args.len());
        for (i, arg) in self.args.iter().enumerate() {
            let (key, value) = match arg.split_once('=') {
                Some(("", _)) => return Err(self.word(i, "ARG names can not be blank")),
                Some((key, value)) => (key, Some(value.to_owned())),
                None => (*arg, None),
            };
            let description = description(&self.node.comments, key);
            pairs.push(ArgPair { key: key.to_owned(), value, description });
        }
        Ok(pairs)
    }

    fn paths(&self, name: &str) -> Result<Paths, Fault> {
        let (dest, sources) = match self.args.as_slice() {
            [sources @ .., dest] => (*dest, sources),
            [] => ("", [].as_slice()),
        };
        let is_heredoc = |word: &str| heredoc::parse(word).ok().flatten();
        if is_heredoc(dest).is_some() {
            let last = self.args.len() - 1;
            return Err(self.word(last, format!("{name} cannot accept a heredoc as a destination")));
        }
        let mut paths = Paths { dest: dest.to_owned(), ..Paths::default() };
        for source in sources {
            match is_heredoc(source) {
                Some(doc) => {
                    let written = self.node.heredocs.iter().rev().find(|h| h.name == doc.name);
                    let content = written.map(|h| h.content.as_str()).unwrap_or_default();
                    let data = if doc.chomp { heredoc::chomp(content) } else { content.to_owned() };
                    paths.contents.push(Content { path: doc.name, data, expand: doc.expand });
                }
                None => paths.sources.push((*source).to_owned()),
            }
        }
        Ok(paths)
    }

    fn enough_paths(&self, name: &str) -> Result<(), Fault> {
        if self.args.len() < 2 {
            return Err(self.whole(format!(
                "{name} requires at least two arguments, but only one was provided. Destination could not be determined"
            )));
        }
        Ok(())
    }

    fn add(&self) -> Result<Kind, Fault> {
        self.enough_paths("ADD")?;
        let flags = Flags::parse(
            &self.node.flags,
            &[
                ("chown", FlagKind::Text),
                ("chmod", FlagKind::Text),
                ("link", FlagKind::Bool),
                ("keep-git-dir", FlagKind::Bool),
                ("checksum", FlagKind::Text),
                ("unpack", FlagKind::Bool),
                ("exclude", FlagKind::List),
            ],
        )?;
        Ok(Kind::Add(Add {
            paths: self.paths("ADD")?,
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.bool("link"),
            excludes: flags.list("exclude"),
            keep_git_dir: flags.given_bool("keep-git-dir"),
            checksum: flags.text("checksum"),
            unpack: flags.given_bool("unpack"),
        }))
    }

    fn copy(&self) -> Result<Kind, Fault> {
        self.enough_paths("COPY")?;
        let flags = Flags::parse(
            &self.node.flags,
            &[
                ("chown", FlagKind::Text),
                ("from", FlagKind::Text),
                ("chmod", FlagKind::Text),
                ("link", FlagKind::Bool),
                ("exclude", FlagKind::List),
                ("parents", FlagKind::Bool),
            ],
        )?;
        Ok(Kind::Copy(Copy {
            paths: self.paths("COPY")?,
            from: flags.text("from"),
            chown: flags.text("chown"),
            chmod: flags.text("chmod"),
            link: flags.bool("link"),
            parents: flags.bool("parents"),
            excludes: flags.list("exclude"),
        }))
    }

    fn from(&self) -> Result<Stage, Fault> {
        let name = match self.args.as_slice() {
            [_] => String::new(),
            [_, word, name] if word.eq_ignore_ascii_case("as") => {
                let lower = name.to_lowercase();
                if !is_stage_name(&lower) {
                    return Err(self.word(
                        2,
                        format!(
                            "invalid name for build stage: {}, name can't start with a number or contain symbols",
                            quote(name)
                        ),
                    ));
                }
                lower
            }
            _ => return Err(self.whole("FROM requires either one or three arguments")),
        };
        let flags = Flags::parse(&self.node.flags, &[("platform", FlagKind::Text)])?;
        Ok(Stage {
            origin: self.origin(),
            description: description(&self.node.comments, &name),
            name,
            base: self.args[0].to_owned(),
            platform: flags.text("platform"),
            instructions: Vec::new(),
            base_bytes: self.node.words.first().map(|word| word.bytes.clone()).unwrap_or_default(),
        })
    }

    fn onbuild(&self) -> Result<Kind, Fault> {
        let Some(trigger) = self.node.triggers.first() else {
            return Err(self.whole("ONBUILD requires at least one argument"));
        };
        self.no_flags()?;
        let refused = |message: String| Fault::new(message).on(Some(trigger.keyword.bytes.clone()));
        match trigger.keyword.text.trim().to_uppercase().as_str() {
            "ONBUILD" => return Err(refused("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed".into())),
            name @ ("MAINTAINER" | "FROM") => {
                return Err(refused(format!("{name} isn't allowed as an ONBUILD trigger")));
            }
            _ => {}
        }
        let space = |c: char| matches!(c, '\t' | '\n' | '\x0c' | '\r' | ' ');
        let original = &self.node.original;
        let written = original.trim_start_matches(space);
        let mut text = match written.get(..7) {
            Some(keyword) if keyword.eq_ignore_ascii_case("onbuild") => {
                written[7..].trim_start_matches(space).to_owned()
            }
            _ => original.clone(),
        };
        for doc in &self.node.heredocs {
            text.push('\n');
            text.push_str(&doc.content);
            text.push_str(&doc.name);
        }
        Ok(Kind::Onbuild(text))
    }

    /// The arguments in exec form, or all as one in shell form.
    fn exec_args(&self, args: &[&str]) -> Vec<String> {
        if args.is_empty() || self.node.is_json {
            return args.iter().map(|arg| (*arg).to_owned()).collect();
        }
        vec![args.join(" ")]
    }

    fn command(&self) -> CommandLine {
        CommandLine {
            args: self.exec_args(&self.args),
            is_shell: !self.node.is_json,
            files: self
                .node
                .heredocs
                .iter()
                .map(|h| InlineFile { name: h.name.clone(), data: h.content.clone(), chomp: h.chomp })
                .collect(),
        }
    }

    fn command_line(&self) -> Result<CommandLine, Fault> {
        self.no_flags()?;
        Ok(self.command())
    }

    fn run(&self) -> Result<Kind, Fault> {
        let flags = Flags::parse(
            &self.node.flags,
            &[
                ("device", FlagKind::List),
                ("mount", FlagKind::List),
                ("network", FlagKind::Text),
                ("security", FlagKind::Text),
            ],
        )?;
        let flag_word = |name: &str| {
            let start = format!("--{name}=");
            self.node.flags.iter().find(|word| word.text.starts_with(&start)).map(|word| word.bytes.clone())
        };
        let devices = flags.list("device").iter().map(|text| parse_device(text)).collect::<Result<_, _>>();
        let devices = devices.map_err(|fault| fault.on(flag_word("device")))?;
        let mounts = flags.list("mount");
        let sources = mounts.iter().map(|text| check_mount(text)).collect::<Result<_, _>>();
        let mount_sources = sources.map_err(|fault| fault.on(flag_word("mount")))?;
        let or = |name: &str, default: &str| {
            if flags.names().iter().any(|given| given == name) { flags.text(name) } else { default.to_owned() }
        };
        let network = or("network", "default");
        if !matches!(network.as_str(), "default" | "none" | "host") {
            return Err(Fault::new(format!("invalid network mode {}", quote(&network))).on(flag_word("network")));
        }
        let security = or("security", "sandbox");
        if !matches!(security.as_str(), "sandbox" | "insecure") {
            return Err(Fault::new(format!("security {} is not valid", quote(&security))).on(flag_word("security")));
        }
        let flags = flags.names();
        Ok(Kind::Run(Run { command: self.command(), flags, mounts, mount_sources, network, security, devices }))
    }

    fn healthcheck(&self) -> Result<Kind, Fault> {
        let Some((kind, args)) = self.args.split_first() else {
            return Err(self.whole("HEALTHCHECK requires at least one argument"));
        };
        let kind = kind.to_uppercase();
        if kind == "NONE" {
            if !args.is_empty() {
                return Err(self.word(1, "HEALTHCHECK NONE takes no arguments"));
            }
            return Ok(Kind::Healthcheck(Healthcheck { test: Some(vec![kind]), ..Healthcheck::default() }));
        }
        let flags = Flags::parse(
            &self.node.flags,
            &[
                ("interval", FlagKind::Text),
                ("timeout", FlagKind::Text),
                ("start-period", FlagKind::Text),
                ("start-interval", FlagKind::Text),
                ("retries", FlagKind::Text),
            ],
        )?;
        if kind != "CMD" {
            return Err(self.word(0, format!("Unknown type {} in HEALTHCHECK (try CMD)", quote(&kind))));
        }
        let command = self.exec_args(args);
        if command.is_empty() {
            return Err(self.whole("Missing command after HEALTHCHECK CMD"));
        }
        let mut test = vec![if self.node.is_json { kind } else { "CMD-SHELL".into() }];
        test.extend(command);
        let interval = |name: &str| -> Result<i64, String> {
            let text = flags.text(name);
            if text.is_empty() {
                return Ok(0);
            }
            match duration::parse(&text)? {
                0 => Ok(0),
                nanos if nanos < 1_000_000 => Err(format!("Interval {} cannot be less than 1ms", quote(name))),
                nanos => Ok(nanos),
            }
        };
        let mut check = Healthcheck {
            test: Some(test),
            interval: interval("interval")?,
            timeout: interval("timeout")?,
            start_period: interval("start-period")?,
            start_interval: interval("start-interval")?,
            retries: 0,
        };
        let retries = flags.text("retries");
        if !retries.is_empty() {
            check.retries = parse_int(&retries, 32).map_err(|e| e.describe("ParseInt", &retries))?;
            if check.retries < 0 {
                return Err(Fault::new(format!("--retries cannot be negative ({})", check.retries)));
            }
        }
        Ok(Kind::Healthcheck(check))
    }

    fn shell(&self) -> Result<Kind, Fault> {
        self.no_flags()?;
        let shell = self.exec_args(&self.args);
        if shell.is_empty() {
            return Err(self.whole("SHELL requires at least one argument"));
        }
        if !self.node.is_json {
            return Err(self.word(0, "SHELL requires the arguments to be in JSON form"));
        }
        Ok(Kind::Shell(shell))
    }

    fn volume(&self) -> Result<Kind, Fault> {
        self.at_least_one("VOLUME")?;
        self.no_flags()?;
        let volumes: Vec<String> = self.args.iter().map(|arg| arg.trim().to_owned()).collect();
        if let Some(empty) = volumes.iter().position(String::is_empty) {
            return Err(self.word(empty, "VOLUME specified can not be an empty string"));
        }
        Ok(Kind::Volume(volumes))
    }
}

fn is_stage_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_' | b'.'))
}

/// Returns the comment that begins with a name, without the name.
fn description(comments: &[String], name: &str) -> String {
    if name.is_empty() {
        return String::new();
    }
    let after = |line: &String| line.strip_prefix(name)?.strip_prefix(' ').map(str::to_owned);
    comments.iter().find_map(after).unwrap_or_default()
}

fn check_from_casing(request: &Request<'_>, lint: &Linter) {
    let place = request.node.location();
    let [_, as_word, rest @ ..] = request.args.as_slice() else { return };
    if let [name] = rest
        && name.to_lowercase() != *name
    {
        lint.report(&rules::STAGE_NAME_CASING, &place, say::stage_name_casing(name));
    }
    if rest.is_empty() {
        return;
    }
    let keyword = &request.node.keyword.text;
    let fits = if *keyword == keyword.to_lowercase() {
        *as_word == as_word.to_lowercase()
    } else {
        *keyword != keyword.to_uppercase() || *as_word == as_word.to_uppercase()
    };
    if !fits {
        lint.report(&rules::FROM_AS_CASING, &place, say::from_as_casing(keyword, as_word));
    }
}

fn check_description(instruction: &str, names: &[&str], node: &Node, lint: &Linter) {
    let (Some(comment), Some(first)) = (node.comments.last(), names.first()) else { return };
    let described = comment.split(' ').next().unwrap_or_default();
    if names.contains(&described) {
        return;
    }
    let example = if names.len() > 1 { "<arg_key>" } else { first };
    let message = say::bad_description(instruction, example);
    lint.report(&rules::INVALID_DEFINITION_DESCRIPTION, &node.location(), message);
}
