//! Instructions with their meaning: types, flags and arguments checked, variables not yet expanded.

mod flags;
pub mod mount;
mod parse;

use crate::frontend::Span;
use bud_image::config::Healthcheck;
pub use mount::{Device, Mount, MountKind, Sharing};
pub(crate) use parse::{parse_all, parse_lenient, parse_trigger};
use std::ops::Range;

/// A text's instructions, by stage.
#[derive(Clone, Debug, Default)]
pub struct Program {
    /// `ARG`s before the first `FROM`.
    pub globals: Vec<GlobalArg>,
    /// The stages, in order.
    pub stages: Vec<Stage>,
}

/// An `ARG` before the first `FROM`.
#[derive(Clone, Debug)]
pub struct GlobalArg {
    /// Where it is from.
    pub origin: Origin,
    /// The variables.
    pub args: Vec<ArgPair>,
}

/// A stage: a `FROM` and the instructions up to the next.
#[derive(Clone, Debug, Default)]
pub struct Stage {
    /// The `FROM`.
    pub origin: Origin,
    /// Its name in lower case; empty without `AS`.
    pub name: String,
    /// The image or stage that it stands on, as written.
    pub base: String,
    /// `--platform`, as written; empty if not given.
    pub platform: String,
    /// The comment above that describes it.
    pub description: String,
    /// The instructions.
    pub instructions: Vec<Instruction>,
    /// Where the base's name is.
    pub base_bytes: Range<usize>,
}

/// Where an instruction is from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    /// The keyword as written.
    pub keyword: String,
    /// The logical line.
    pub code: String,
    /// Its lines.
    pub place: Vec<Span>,
    /// The comments directly above.
    pub comments: Vec<String>,
    /// Where the keyword is; empty for triggers of images.
    pub keyword_bytes: Range<usize>,
    /// Where each of the words is.
    pub word_bytes: Vec<Range<usize>>,
    /// Where each of the flags is, with its text.
    pub flags: Vec<crate::parser::Word>,
}

/// An instruction of a stage.
#[derive(Clone, Debug)]
pub struct Instruction {
    /// Where it is from.
    pub origin: Origin,
    /// What it does.
    pub kind: Kind,
}

/// What an instruction does.
#[derive(Clone, Debug)]
pub enum Kind {
    /// `ADD`.
    Add(Add),
    /// `ARG`.
    Arg(Vec<ArgPair>),
    /// `CMD`.
    Cmd(CommandLine),
    /// `COPY`.
    Copy(Copy),
    /// `ENTRYPOINT`.
    Entrypoint(CommandLine),
    /// `ENV`.
    Env(Vec<Pair>),
    /// `EXPOSE`, sorted.
    Expose(Vec<String>),
    /// `HEALTHCHECK`.
    Healthcheck(Healthcheck),
    /// `LABEL`.
    Label(Vec<Pair>),
    /// `MAINTAINER`.
    Maintainer(String),
    /// `ONBUILD`, with the other instruction's text.
    Onbuild(String),
    /// `RUN`.
    Run(Run),
    /// `SHELL`.
    Shell(Vec<String>),
    /// `STOPSIGNAL`.
    Stopsignal(String),
    /// `USER`.
    User(String),
    /// `VOLUME`.
    Volume(Vec<String>),
    /// `WORKDIR`.
    Workdir(String),
}

/// A variable of an `ENV` or `LABEL`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Its name.
    pub key: String,
    /// Its value.
    pub value: String,
    /// True for the old form, `KEY value`.
    pub is_legacy: bool,
}

/// A variable of an `ARG`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArgPair {
    /// Its name.
    pub key: String,
    /// Its default.
    pub value: Option<String>,
    /// The comment above that describes it.
    pub description: String,
}

/// A command in exec form or shell form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommandLine {
    /// The arguments; just one in shell form.
    pub args: Vec<String>,
    /// Shell form: the image's shell runs it.
    pub is_shell: bool,
    /// Heredocs.
    pub files: Vec<InlineFile>,
}

/// A heredoc of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InlineFile {
    /// The word that ends it.
    pub name: String,
    /// Its text.
    pub data: String,
    /// Leading tabs are to be cut.
    pub chomp: bool,
}

/// The sources and the destination of a `COPY` or `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// Where to.
    pub dest: String,
    /// What, by path.
    pub sources: Vec<String>,
    /// What, by text.
    pub contents: Vec<Content>,
}

/// A file written as a heredoc.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Content {
    /// Its name.
    pub path: String,
    /// Its text.
    pub data: String,
    /// Variables in it are to be expanded.
    pub expand: bool,
}

/// A `COPY`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copy {
    /// Sources and destination.
    pub paths: Paths,
    /// `--from`, or empty.
    pub from: String,
    /// `--chown`, or empty.
    pub chown: String,
    /// `--chmod`, or empty.
    pub chmod: String,
    /// `--link`.
    pub link: bool,
    /// `--parents`.
    pub parents: bool,
    /// `--exclude`s.
    pub excludes: Vec<String>,
}

/// An `ADD`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Add {
    /// Sources and destination.
    pub paths: Paths,
    /// `--chown`, or empty.
    pub chown: String,
    /// `--chmod`, or empty.
    pub chmod: String,
    /// `--link`.
    pub link: bool,
    /// `--exclude`s.
    pub excludes: Vec<String>,
    /// `--keep-git-dir`, if given.
    pub keep_git_dir: Option<bool>,
    /// `--checksum`, or empty.
    pub checksum: String,
    /// `--unpack`, if given.
    pub unpack: Option<bool>,
}

/// A `RUN`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Run {
    /// The command.
    pub command: CommandLine,
    /// Names of the flags that are given.
    pub flags: Vec<String>,
    /// `--mount`s as written: they may have variables.
    pub mounts: Vec<String>,
    /// The `from` of each mount, known before variables are.
    pub mount_sources: Vec<String>,
    /// `--network`: `default`, `none` or `host`.
    pub network: String,
    /// `--security`: `sandbox` or `insecure`.
    pub security: String,
    /// `--device`s.
    pub devices: Vec<Device>,
}
