//! From a request to definitions: what the front end does, in order.
//!
//! Everything is computed anew each time a request comes back with more answers; a text of a few hundred lines takes less
//! than a millisecond.

mod bases;
mod context;
mod copy;
mod declare;
mod dispatch;
mod encode;
mod env;
mod epoch;
mod expose;
mod git;
mod graph;
mod options;
mod outline;
mod platform;
mod run;
mod sbom;
mod stage;
mod state;
mod step_name;
mod subrequest;
mod syntax;
mod url;
mod world;

use crate::fault::Fault;
use crate::frontend::{Build, Error, ErrorKind, Forward, PlatformBuild, Request, SourceText, Span, Step, Warning};
use crate::instruction::{Program, parse_all};
use crate::lint::{Finding, Linter, Settings, rules, rules::say};
use crate::parser::{self, Dockerfile, directive};
use crate::text::quote::decode;
use bud_image::Platform;
use context::Context;
use options::Options;
use platform::{Lowered, Task};
use sbom::Scanner;
use std::collections::BTreeSet;
use world::{Stop, World};

/// Capabilities of front ends that this one has.
const FRONTEND_CAPS: [&str; 4] = [
    "moby.buildkit.frontend.inputs",
    "moby.buildkit.frontend.subrequests",
    "moby.buildkit.frontend.contexts",
    "moby.buildkit.frontend.gitquerystring",
];

/// Makes of a request a build, or says what it needs to know for that.
pub(crate) fn lower(request: &Request) -> Result<Step, Error> {
    let world = World::new(request);
    let mut text = None;
    let linter = std::cell::RefCell::new(None);
    match run(&world, &mut text, &linter) {
        Ok(step) => Ok(step),
        Err(Refusal::Stop(Stop::Need)) => Ok(Step::Need(world.into_needs())),
        Err(Refusal::Stop(Stop::Fail(fault))) => Err(Error {
            warnings: warnings(&linter.borrow().as_ref().map(Linter::findings).unwrap_or_default(), text.as_ref()),
            text: text.map(Box::new),
            ..fault.into_error()
        }),
        Err(Refusal::Error(error)) => Err(*error),
    }
}

/// Why there is no step yet.
enum Refusal {
    Stop(Stop),
    Error(Box<Error>),
}

impl<T: Into<Stop>> From<T> for Refusal {
    fn from(stop: T) -> Self {
        Self::Stop(stop.into())
    }
}

fn run(
    world: &World<'_>,
    text: &mut Option<SourceText>,
    found: &std::cell::RefCell<Option<Linter>>,
) -> Result<Step, Refusal> {
    let options = Options::read(world.request)?;
    let missing_cap = missing_cap(world.opt("frontend.caps").unwrap_or_default());
    if let Some((error, false)) = &missing_cap {
        return Err(Refusal::Error(Box::new(error.clone())));
    }
    let mut context = Context::find(world)?;
    let source = text.insert(context.read_dockerfile(world)?);
    if world.opt("cmdline").is_none()
        && let Some(forward) = forward(world, source)
    {
        return Ok(Step::Forward(forward));
    }
    if let Some((error, _)) = missing_cap {
        return Err(Refusal::Error(Box::new(error)));
    }
    if let Some(id) = world.opt("requestid") {
        return subrequest::answer(id, world, &options, &context, source, found);
    }
    let settings = lint_settings(&options, source)?;
    let linter = Linter::new(settings);
    *found.borrow_mut() = Some(linter.clone());
    let mut build = Build {
        multi_platform: options.multi_platform,
        cache_imports: options.cache_imports.clone(),
        builtin_syntax: directive::find_syntax(&decode(&source.data))
            .map(|d| d.value)
            .filter(|value| is_builtin_syntax(value.split(' ').next().unwrap_or_default())),
        ..Build::default()
    };
    let targets: Vec<Option<Platform>> = match options.target_platforms.as_slice() {
        [] => vec![None],
        list => list.iter().cloned().map(Some).collect(),
    };
    let mut missing = false;
    let scanner = match Scanner::find(world, &options) {
        Err(Stop::Need) => {
            missing = true;
            None
        }
        found => found?,
    };
    for (i, target) in targets.iter().enumerate() {
        // What is wrong is the same for every platform: it is said once.
        let lint = if i == 0 { linter.clone() } else { Linter::silent() };
        match build_platform(world, &options, &context, source, target.clone(), &lint, scanner.as_ref()) {
            Ok(platform) => build.platforms.push(platform),
            Err(Stop::Need) => missing = true,
            Err(stop) => return Err(stop.into()),
        }
    }
    if missing {
        return Err(Stop::Need.into());
    }
    build.warnings = warnings(&linter.findings(), Some(source));
    Ok(Step::Build(Box::new(build)))
}

/// A text parsed into stages.
pub(crate) struct Parsed {
    pub(crate) file: Dockerfile,
    pub(crate) program: Program,
}

/// Parses a text and looks at it as a whole.
fn parse(data: &[u8], lint: &Linter) -> Result<Parsed, Fault> {
    if data.is_empty() {
        return Err(Fault::new("the Dockerfile cannot be empty"));
    }
    let file = parser::parse(&decode(data))?;
    for empty in &file.empty_continuations {
        let place = [Span { start: empty.line, end: empty.line }];
        lint.report(&rules::NO_EMPTY_CONTINUATION, &place, "Empty continuation line".into());
    }
    let program = parse_all(&file, lint)?;
    if program.stages.is_empty() {
        return Err(Fault::new("dockerfile contains no stages to build"));
    }
    check_stage_names(&program, lint);
    check_casing(&program, lint);
    Ok(Parsed { file, program })
}

fn check_stage_names(program: &Program, lint: &Linter) {
    let mut names = BTreeSet::new();
    for stage in program.stages.iter().filter(|stage| !stage.name.is_empty()) {
        let (name, place) = (stage.name.as_str(), &stage.origin.place);
        if matches!(name, "context" | "scratch") {
            lint.report(&rules::RESERVED_STAGE_NAME, place, say::reserved_stage(name));
        }
        if !names.insert(name) {
            lint.report(&rules::DUPLICATE_STAGE_NAME, place, say::duplicate_stage(name));
        }
    }
}

/// Warns of keywords which are not in the case in which most are.
fn check_casing(program: &Program, lint: &Linter) {
    let origins = || {
        program.stages.iter().flat_map(|stage| {
            std::iter::once(&stage.origin).chain(stage.instructions.iter().map(|instruction| &instruction.origin))
        })
    };
    let lower = origins().filter(|o| o.keyword == o.keyword.to_lowercase()).count();
    let upper =
        origins().filter(|o| o.keyword != o.keyword.to_lowercase() && o.keyword == o.keyword.to_uppercase()).count();
    for origin in origins() {
        let (right, casing) = if lower > upper {
            (origin.keyword.to_lowercase(), "lowercase")
        } else {
            (origin.keyword.to_uppercase(), "uppercase")
        };
        if origin.keyword != right {
            let message = say::instruction_casing(&origin.keyword, casing);
            lint.report(&rules::CONSISTENT_INSTRUCTION_CASING, &origin.place, message);
        }
    }
}

fn lint_settings(options: &Options, text: &SourceText) -> Result<Settings, Fault> {
    if let Some(settings) = &options.lint {
        return Ok(settings.clone());
    }
    let written = directive::find(&decode(&text.data), "check").map(|d| d.value).unwrap_or_default();
    // What follows a space is a remark.
    let value = written.split(' ').next().unwrap_or_default();
    Settings::parse(value).map_err(|e| Fault::new(format!("failed to parse check options: {e}")))
}

fn build_platform(
    world: &World<'_>,
    options: &Options,
    context: &Context,
    text: &SourceText,
    target: Option<Platform>,
    lint: &Linter,
    scanner: Option<&Scanner>,
) -> Result<PlatformBuild, Stop> {
    let parsed = parse(&text.data, lint)?;
    let task = task(world, options, context, text, &parsed, target.clone(), false);
    let mut lowered = platform::lower(&task, lint)?;
    let Lowered { lowering, target: index } = &lowered;
    let stage = &lowering.stages.list[*index];
    let (id, platform) = export_platform(target.unwrap_or_else(Platform::host), &stage.image);
    let mut build = PlatformBuild {
        id,
        platform,
        definition: lowering.encode(stage.state.output)?,
        config: stage.image.clone(),
        base_config: stage.base_image.clone(),
        epoch: lowering.epoch,
        attestations: Vec::new(),
    };
    if let Some(scanner) = scanner {
        build.attestations.push(scanner.scan(&mut lowered, options, &build.id)?);
    }
    Ok(build)
}

fn task<'a>(
    world: &'a World<'a>,
    options: &'a Options,
    context: &'a Context,
    text: &'a SourceText,
    parsed: &'a Parsed,
    platform: Option<Platform>,
    all_stages: bool,
) -> Task<'a> {
    let (program, escape) = (&parsed.program, parsed.file.escape);
    Task { world, options, context, text, program, escape, platform, all_stages }
}

/// The platform under which a result is exported: a Windows image's own version is taken over.
fn export_platform(platform: Platform, image: &bud_image::ImageConfig) -> (String, Platform) {
    let mut platform = platform.normalize();
    let id = platform.to_string();
    if platform.os == "windows" && image.os == "windows" {
        if platform.os_version.is_empty() {
            platform.os_version.clone_from(&image.os_version);
        }
        if platform.os_features.is_empty() {
            platform.os_features = image.os_features.clone().unwrap_or_default();
        }
        platform = platform.normalize();
    }
    (id, platform)
}

/// Finds a capability that is asked for and isn't there; the flag tells whether forwarding would do.
fn missing_cap(list: &str) -> Option<(Error, bool)> {
    let mut missing = None;
    for cap in list.split(',').filter(|cap| !cap.is_empty()) {
        let (name, flags) = cap.split_once('+').map_or((cap, None), |(name, flags)| (name, Some(flags)));
        if FRONTEND_CAPS.contains(&name) {
            continue;
        }
        let may_forward = flags.is_some_and(|flags| format!("+{flags}").contains("+forward"));
        let error = Error {
            message: format!("unsupported frontend capability {name}"),
            kind: ErrorKind::FrontendCap(name.to_owned()),
            ..Error::default()
        };
        missing = Some((error, may_forward));
        if !may_forward {
            break;
        }
    }
    missing
}

/// Finds the front end that the build is to be handed to, unless this one does for it.
fn forward(world: &World<'_>, text: &SourceText) -> Option<Forward> {
    let (source, cmdline, place) = match world.opt("build-arg:BUILDKIT_SYNTAX") {
        Some(cmdline) => (cmdline.trim().split(' ').next().unwrap_or_default().to_owned(), cmdline.to_owned(), None),
        None => {
            let found = directive::find_syntax(&decode(&text.data))?;
            let place = Span { start: found.line, end: found.line };
            let source = found.value.split(' ').next().unwrap_or_default().to_owned();
            (source, found.value, Some((text.clone(), vec![place])))
        }
    };
    if syntax::is_builtin(&source) {
        return None;
    }
    let mut opts = world.request.opts.clone();
    opts.insert("cmdline".into(), cmdline);
    opts.insert("source".into(), source.clone());
    Some(Forward { source, opts, place })
}

/// Makes warnings of what the linter found.
fn warnings(findings: &[Finding], text: Option<&SourceText>) -> Vec<Warning> {
    let Some(text) = text else { return Vec::new() };
    let vertex = text.definition.as_ref().map(graph::head).unwrap_or_default();
    let warning = |finding: &Finding| {
        let line = finding.place.first().map_or(0, |span| span.start);
        let at = if line > 0 { format!(" (line {line})") } else { String::new() };
        Warning {
            rule: finding.rule.name.into(),
            vertex: vertex.clone(),
            short: format!("{}: {}{at}", finding.rule.name, finding.message),
            detail: vec![finding.rule.description.into()],
            url: finding.rule.url.into(),
            source: text.clone(),
            spans: Some(finding.place.clone()),
        }
    };
    findings.iter().map(warning).collect()
}

/// Tells whether this front end does for the one that `# syntax=` names.
#[must_use]
pub fn is_builtin_syntax(image: &str) -> bool {
    syntax::is_builtin(image)
}
