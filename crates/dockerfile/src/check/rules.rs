//! What can be said of a text without asking the world.

use super::{CheckOptions, Diagnostic, Severity};
use crate::fault::Fault;
use crate::instruction::{self, ArgPair, Instruction, Kind, Program, mount};
use crate::parser;
use crate::shell::{Lexer, NoVars, Vars};
use crate::text::number::parse_int;
use crate::text::quote::quote;
use crate::text::suggest::nearest;
use bud_image::ImageRef;
use std::collections::HashMap;
use std::ops::Range;

/// Arguments that are there without being declared.
const PREDEFINED: [&str; 22] = [
    "HTTP_PROXY",
    "http_proxy",
    "HTTPS_PROXY",
    "https_proxy",
    "FTP_PROXY",
    "ftp_proxy",
    "NO_PROXY",
    "no_proxy",
    "ALL_PROXY",
    "all_proxy",
    "SOURCE_DATE_EPOCH",
    "TARGETPLATFORM",
    "TARGETOS",
    "TARGETOSVERSION",
    "TARGETARCH",
    "TARGETVARIANT",
    "TARGETSTAGE",
    "BUILDPLATFORM",
    "BUILDOS",
    "BUILDOSVERSION",
    "BUILDARCH",
    "BUILDVARIANT",
];

pub(super) fn all(text: &str, options: &CheckOptions) -> Vec<Diagnostic> {
    if text.is_empty() {
        return vec![diagnostic(Severity::Error, "the Dockerfile cannot be empty".into(), None, None)];
    }
    let (file, mut faults) = parser::parse_all(text);
    let (program, more) = instruction::parse_lenient(&file);
    faults.extend(more);
    let syntax_ok = faults.is_empty();
    let mut out: Vec<Diagnostic> = Vec::new();
    for fault in faults {
        let found = of_fault(text, fault);
        // The first instruction without a stage says it for all.
        let is_repeated = |d: &Diagnostic| d.message == found.message && d.message.contains("no build stage");
        if !out.iter().any(is_repeated) {
            out.push(found);
        }
    }
    if syntax_ok && program.stages.is_empty() {
        let help = Some("begin a stage with FROM".into());
        out.push(diagnostic(Severity::Error, "dockerfile contains no stages to build".into(), None, help));
    }
    let lexer = Lexer::new(file.escape);
    check_target(&program, options, syntax_ok, &mut out);
    check_build_args(&program, options, &mut out);
    check_bases(&program, options, lexer, &mut out);
    for (index, stage) in program.stages.iter().enumerate() {
        for instruction in &stage.instructions {
            check_words(instruction, lexer, &mut out);
            check_mounts(text, instruction, &mut out);
            check_copy_source(&program, index, instruction, options, &mut out);
        }
    }
    out
}

fn diagnostic(severity: Severity, message: String, span: Option<Range<usize>>, help: Option<String>) -> Diagnostic {
    Diagnostic { severity, rule: None, message, span: span.filter(|s| !s.is_empty()), line: 0, help }
}

fn did_you_mean(word: Option<String>) -> Option<String> {
    word.map(|word| format!("did you mean {word}?"))
}

/// Shows a fault where it is: its suggestion as help, its line by the excerpt.
fn of_fault(text: &str, fault: Fault) -> Diagnostic {
    let mut message = fault.message.as_str();
    if let Some(rest) = message.strip_prefix("dockerfile parse error on line ") {
        message = rest.split_once(": ").map_or(rest, |(_, rest)| rest);
    }
    let (message, help) = match message.rsplit_once(" (did you mean ") {
        Some((message, word)) => (message, did_you_mean(word.strip_suffix("?)").map(str::to_owned))),
        None => (message, None),
    };
    let help = match (help, message.starts_with("unknown flag: ")) {
        (Some(help), true) => Some(help.replacen("mean ", "mean --", 1)),
        (help, _) => help,
    };
    let line = fault.places.iter().flatten().map(|span| span.start).next();
    let span = fault.bytes.filter(|s| !s.is_empty()).or_else(|| line_span(text, line?));
    let span = span.map(|span| narrow(text, span, message));
    diagnostic(Severity::Error, message.to_owned(), span, help)
}

/// Narrows a place to the word that the message names.
fn narrow(text: &str, span: Range<usize>, message: &str) -> Range<usize> {
    let quoted = |mark: char| message.split(mark).nth(1).filter(|word| !word.is_empty());
    let named = message.strip_prefix("unknown flag: ").or_else(|| quoted('"')).or_else(|| quoted('\''));
    let (Some(word), Some(within)) = (named, text.get(span.clone())) else { return span };
    match within.rfind(word) {
        Some(at) => span.start + at..span.start + at + word.len(),
        None => span,
    }
}

/// Returns where the text of a line is.
fn line_span(text: &str, number: u32) -> Option<Range<usize>> {
    let mut start = 0;
    for (i, line) in text.split_inclusive('\n').enumerate() {
        if i + 1 == number as usize {
            return Some(start..start + line.trim_end().len());
        }
        start += line.len();
    }
    None
}

fn check_target(program: &Program, options: &CheckOptions, is_complete: bool, out: &mut Vec<Diagnostic>) {
    let Some(target) = options.target.as_deref().filter(|t| !t.is_empty()) else { return };
    let names: Vec<&str> = program.stages.iter().map(|s| s.name.as_str()).filter(|n| !n.is_empty()).collect();
    if names.iter().any(|name| name.eq_ignore_ascii_case(target)) || !is_complete {
        return;
    }
    let help = did_you_mean(nearest(target, &names, false)).or_else(|| match names.as_slice() {
        [] => Some("no stage has a name: give it one with FROM … AS name".into()),
        names => Some(format!("the stages are {}", names.join(", "))),
    });
    let message = format!("target stage {} could not be found", quote(target));
    out.push(diagnostic(Severity::Error, message, None, help));
}

/// All arguments that a text declares, with where.
pub(super) fn declared_args(program: &Program) -> Vec<(&ArgPair, Option<Range<usize>>)> {
    let globals = program.globals.iter().map(|global| (&global.args, &global.origin));
    let own = program.stages.iter().flat_map(|stage| &stage.instructions).filter_map(|i| match &i.kind {
        Kind::Arg(args) => Some((args, &i.origin)),
        _ => None,
    });
    let all = globals.chain(own);
    all.flat_map(|(args, origin)| args.iter().enumerate().map(|(i, arg)| (arg, origin.word_bytes.get(i).cloned())))
        .collect()
}

fn check_build_args(program: &Program, options: &CheckOptions, out: &mut Vec<Diagnostic>) {
    let declared = declared_args(program);
    let names: Vec<&str> = declared.iter().map(|(arg, _)| arg.key.as_str()).collect();
    for name in &options.build_args {
        let is_known =
            names.contains(&name.as_str()) || PREDEFINED.contains(&name.as_str()) || name.starts_with("BUILDKIT_");
        if is_known {
            continue;
        }
        let near = nearest(name, &names, false);
        let place = near.as_ref().and_then(|near| {
            declared.iter().find(|(arg, _)| arg.key.eq_ignore_ascii_case(near)).and_then(|(_, place)| place.clone())
        });
        let near = near.and_then(|near| names.iter().find(|n| n.eq_ignore_ascii_case(&near)).map(|n| (*n).to_owned()));
        let help = did_you_mean(near).or_else(|| Some(format!("declare it with ARG {name}")));
        let message = format!("build argument {name} is not used");
        out.push(diagnostic(Severity::Warning, message, place, help));
    }
}

/// Variables of the text's own defaults; those that are given aren't known.
struct Defaults(HashMap<String, String>);

impl Vars for Defaults {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

fn check_bases(program: &Program, options: &CheckOptions, lexer: Lexer, out: &mut Vec<Diagnostic>) {
    let mut vars = Defaults(HashMap::new());
    let mut unknown: Vec<&str> = options.build_args.iter().map(String::as_str).collect();
    unknown.extend(PREDEFINED);
    for global in &program.globals {
        for arg in &global.args {
            let Some(default) = &arg.value else { continue };
            match lexer.expand(default, &vars) {
                Ok(e) if e.unmatched.iter().any(|name| unknown.contains(&name.as_str())) => unknown.push(&arg.key),
                Ok(e) => {
                    vars.0.insert(arg.key.clone(), e.text);
                }
                Err(_) => unknown.push(&arg.key),
            }
        }
    }
    for stage in &program.stages {
        let span = Some(stage.base_bytes.clone());
        let expanded = match lexer.expand(&stage.base, &vars) {
            Ok(expanded) => expanded,
            Err(e) => {
                out.push(diagnostic(Severity::Error, e.message, span, None));
                continue;
            }
        };
        if expanded.matched.iter().chain(&expanded.unmatched).any(|name| unknown.contains(&name.as_str())) {
            continue;
        }
        let names: Vec<&str> = program.globals.iter().flat_map(|g| &g.args).map(|a| a.key.as_str()).collect();
        let hint = || did_you_mean(expanded.unmatched.iter().find_map(|name| nearest(name, &names, false)));
        if expanded.text.is_empty() {
            let help = hint().or_else(|| Some("declare the variable with ARG before the first FROM".into()));
            let message = format!("base name ({}) should not be blank", stage.base);
            out.push(diagnostic(Severity::Error, message, span, help));
        } else if let Err(e) = ImageRef::parse(&expanded.text) {
            let message = format!("failed to parse stage name {}: {e}", quote(&expanded.text));
            out.push(diagnostic(Severity::Error, message, span, hint()));
        }
    }
}

/// Finds quotes and braces that aren't closed.
fn check_words(instruction: &Instruction, lexer: Lexer, out: &mut Vec<Diagnostic>) {
    let lexer = Lexer { skip_unset: true, ..lexer };
    let words: Vec<&str> = match &instruction.kind {
        Kind::Env(pairs) | Kind::Label(pairs) => {
            pairs.iter().flat_map(|p| [p.key.as_str(), p.value.as_str(), ""]).collect()
        }
        Kind::Workdir(text) | Kind::User(text) | Kind::Stopsignal(text) => vec![text],
        Kind::Volume(list) => list.iter().map(String::as_str).collect(),
        Kind::Add(add) if add.paths.contents.is_empty() => {
            add.paths.sources.iter().chain([&add.paths.dest]).map(String::as_str).collect()
        }
        Kind::Copy(copy) if copy.paths.contents.is_empty() => {
            copy.paths.sources.iter().chain([&copy.paths.dest]).map(String::as_str).collect()
        }
        _ => return,
    };
    for (i, word) in words.into_iter().enumerate() {
        if let Err(e) = lexer.expand(word, &NoVars) {
            let span = instruction.origin.word_bytes.get(i).cloned();
            out.push(diagnostic(Severity::Error, e.message, span, None));
        }
    }
}

fn check_mounts(text: &str, instruction: &Instruction, out: &mut Vec<Diagnostic>) {
    let Kind::Run(run) = &instruction.kind else { return };
    for written in run.mounts.iter().filter(|written| !written.contains('$')) {
        if let Err(message) = mount::parse(written) {
            let flag = format!("--mount={written}");
            let written = instruction.origin.flags.iter().find(|word| word.text == flag);
            let fault = Fault::new(message).on(written.map(|word| word.bytes.clone()));
            out.push(of_fault(text, fault));
        }
    }
}

fn check_copy_source(
    program: &Program,
    index: usize,
    instruction: &Instruction,
    options: &CheckOptions,
    out: &mut Vec<Diagnostic>,
) {
    let Kind::Copy(copy) = &instruction.kind else { return };
    let from = copy.from.as_str();
    let span = instruction.origin.flags.iter().find(|w| w.text.starts_with("--from=")).map(|w| w.bytes.clone());
    if from.is_empty() {
        return;
    }
    if from.contains('$') {
        let help = Some("name a stage with FROM $VARIABLE AS name, and copy from that".into());
        let message = "variable expansion is not supported for --from".to_owned();
        out.push(diagnostic(Severity::Error, message, span, help));
        return;
    }
    if let Ok(number) = parse_int(from, 64) {
        let stages = program.stages.len();
        if usize::try_from(number).is_ok_and(|n| n >= stages) {
            let help = Some(format!("the stages are numbered 0 to {}", stages.saturating_sub(1)));
            out.push(diagnostic(Severity::Error, format!("invalid stage index {number}"), span, help));
        }
        return;
    }
    let is_stage = |name: &str| name.eq_ignore_ascii_case(from);
    if let Some(at) = program.stages.iter().position(|stage| is_stage(&stage.name)) {
        if at == index {
            let message = format!("circular dependency detected on stage: {}", program.stages[at].name);
            out.push(diagnostic(Severity::Error, message, span, None));
        }
        return;
    }
    // What is no stage is an image; a near name of a stage is more likely to be meant.
    let names: Vec<&str> = program.stages.iter().map(|s| s.name.as_str()).filter(|n| !n.is_empty()).collect();
    if options.contexts.iter().any(|name| is_stage(name)) || from.contains(['/', ':', '.', '@']) {
        return;
    }
    if let Some(near) = nearest(from, &names, false) {
        let message = format!("no stage has the name {}: it will be taken for an image", quote(from));
        out.push(diagnostic(Severity::Warning, message, span, did_you_mean(Some(near))));
    }
}
