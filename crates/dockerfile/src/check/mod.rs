//! What a command line says of a Dockerfile before anything is started.
//!
//! Only what is certain without asking the world is an error here; what is probably a slip is a warning.

mod render;
mod rules;

use crate::advice::advise;
use crate::lint::lint;
use crate::parser::{self, directive};
use crate::text::quote::decode;
use crate::{instruction, lower};
use std::ops::Range;

/// What is known of the build that is to be checked.
#[derive(Clone, Debug, Default)]
pub struct CheckOptions {
    /// The file's name in messages.
    pub filename: String,
    /// `--target`, if given.
    pub target: Option<String>,
    /// Names of the `--build-arg`s given.
    pub build_args: Vec<String>,
    /// Names of the `--build-context`s given: they may stand for images and stages.
    pub contexts: Vec<String>,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// The build can't succeed.
    Error,
    /// The build may not do what was meant.
    Warning,
    /// The build could be faster, smaller or safer.
    Advice,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The rule that found it, if one did (`StageNameCasing`, `BudAptLists`).
    pub rule: Option<String>,
    /// What is wrong.
    pub message: String,
    /// Bytes of the text to underline; none for what isn't in the text (`--target`).
    pub span: Option<Range<usize>>,
    /// The line of it, from 1; 0 without a span.
    pub line: usize,
    /// What was probably meant, or what to do.
    pub help: Option<String>,
}

/// All that is wrong with a text.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// In order of the text.
    pub diagnostics: Vec<Diagnostic>,
    filename: String,
    text: String,
}

impl Report {
    /// Tells whether the build can't succeed.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Error)
    }

    /// Tells whether a rule of the reference's found something. Advice doesn't count.
    #[must_use]
    pub fn has_warnings(&self) -> bool {
        self.diagnostics.iter().any(|d| d.severity == Severity::Warning)
    }

    /// Adds what was found outside of the text, or by others.
    pub fn push(&mut self, diagnostic: Diagnostic) {
        self.diagnostics.push(diagnostic);
    }

    /// Writes it for people: file, line, the line's text with the place underlined, and what was meant.
    #[must_use]
    pub fn render(&self, color: bool) -> String {
        render::render(&self.diagnostics, &self.filename, &self.text, color)
    }
}

/// Checks a text: syntax, instructions, flags, stages, the target and the build arguments.
///
/// A text for another front end (`# syntax=`) is not looked at.
///
/// ```
/// let report = bud_dockerfile::check(b"FROM alpine\nRNU make\n", &Default::default());
/// assert!(report.has_errors());
/// assert!(report.render(false).contains("did you mean RUN?"));
/// ```
#[must_use]
pub fn check(text: &[u8], options: &CheckOptions) -> Report {
    let text = decode(text).into_owned();
    let mut report = Report { diagnostics: Vec::new(), filename: options.filename.clone(), text };
    if is_foreign(&report.text, options) {
        return report;
    }
    let diagnostics = rules::all(&report.text, options);
    report.take(diagnostics);
    report
}

/// Checks a text as [`check`](check()) does, and looks at it with the reference's rules and our own.
///
/// ```
/// let report = bud_dockerfile::inspect(b"FROM alpine as Build\n", &Default::default());
/// let rules: Vec<_> = report.diagnostics.iter().filter_map(|d| d.rule.as_deref()).collect();
/// assert_eq!(rules, ["StageNameCasing", "FromAsCasing"]);
/// assert!(report.has_warnings() && !report.has_errors());
/// ```
#[must_use]
pub fn inspect(text: &[u8], options: &CheckOptions) -> Report {
    let mut report = check(text, options);
    if report.text.is_empty() || is_foreign(&report.text, options) {
        return report;
    }
    let mut opts = std::collections::BTreeMap::new();
    opts.extend(options.target.iter().map(|target| ("target".to_owned(), target.clone())));
    // A text that can't be built is told of already.
    let found = lint(report.text.as_bytes(), &opts).unwrap_or_default();
    let lines: Vec<usize> = std::iter::once(0).chain(report.text.match_indices('\n').map(|(at, _)| at + 1)).collect();
    let line_range = |line: u32| {
        let index = usize::try_from(line).ok()?.checked_sub(1)?;
        let start = *lines.get(index)?;
        let line = report.text[start..].split('\n').next()?;
        let indent = line.len() - line.trim_start().len();
        Some(start + indent..start + line.trim_end().len()).filter(|span| span.start < span.end)
    };
    let mut diagnostics = std::mem::take(&mut report.diagnostics);
    diagnostics.extend(found.into_iter().map(|warning| Diagnostic {
        severity: Severity::Warning,
        span: warning.lines.first().and_then(|line| line_range(*line)),
        line: 0,
        help: (!warning.url.is_empty()).then(|| format!("see {}", warning.url)),
        rule: Some(warning.rule),
        message: warning.message,
    }));
    diagnostics.extend(advise(report.text.as_bytes()).into_iter().map(|advice| Diagnostic {
        severity: Severity::Advice,
        rule: Some(advice.rule.to_owned()),
        message: advice.message,
        span: advice.span,
        line: 0,
        help: Some(advice.help),
    }));
    report.take(diagnostics);
    report
}

/// Tells whether a text is for another front end.
fn is_foreign(text: &str, options: &CheckOptions) -> bool {
    directive::find_syntax(text)
        .is_some_and(|d| !lower::is_builtin_syntax(d.value.split(' ').next().unwrap_or_default()))
        || options.build_args.iter().any(|name| name == "BUILDKIT_SYNTAX")
}

impl Report {
    /// Puts diagnostics in order and finds their lines.
    fn take(&mut self, mut diagnostics: Vec<Diagnostic>) {
        for diagnostic in &mut diagnostics {
            // Flags end at bytes that are white space in Latin 1, as in the reference, also inside of a character.
            if let Some(span) = &mut diagnostic.span {
                *span = self.text.floor_char_boundary(span.start)..self.text.ceil_char_boundary(span.end);
            }
            diagnostic.line = diagnostic
                .span
                .as_ref()
                .map_or(0, |span| self.text.as_bytes()[..span.start].iter().filter(|b| **b == b'\n').count() + 1);
        }
        diagnostics.sort_by_key(|d| d.span.as_ref().map_or(usize::MAX, |span| span.start));
        diagnostics.dedup();
        self.diagnostics = diagnostics;
    }
}

/// Returns the names of the stages, for `--target`.
#[must_use]
pub fn stages(text: &[u8]) -> Vec<String> {
    let (file, _) = parser::parse_all(&decode(text));
    let (program, _) = instruction::parse_lenient(&file);
    program.stages.into_iter().map(|stage| stage.name).filter(|name| !name.is_empty()).collect()
}

/// Returns the names of the build arguments which the text declares, with their defaults.
#[must_use]
pub fn args(text: &[u8]) -> Vec<(String, Option<String>)> {
    let (file, _) = parser::parse_all(&decode(text));
    let (program, _) = instruction::parse_lenient(&file);
    let mut out: Vec<(String, Option<String>)> = Vec::new();
    for (arg, _) in rules::declared_args(&program) {
        match out.iter_mut().find(|(name, _)| *name == arg.key) {
            Some((_, default)) => *default = default.take().or_else(|| arg.value.clone()),
            None => out.push((arg.key.clone(), arg.value.clone())),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn messages(text: &str, options: &CheckOptions) -> Vec<String> {
        let report = check(text.as_bytes(), options);
        report.diagnostics.iter().map(|d| format!("{}:{:?} {}", d.line, d.severity, d.message)).collect()
    }

    fn underlined(text: &str) -> Vec<String> {
        let report = check(text.as_bytes(), &CheckOptions::default());
        report.diagnostics.iter().filter_map(|d| d.span.clone()).map(|span| text[span].to_owned()).collect()
    }

    #[test]
    fn several_errors_are_found_at_once() {
        let text = "FROM alpine\nRNU make\nCOPY --form=x a \\\n  b\nRUN --mount=type=chache,target=/c x\nENV A\n";
        let found = messages(text, &CheckOptions::default());
        assert_eq!(found.len(), 4, "{found:?}");
        assert_eq!(underlined(text), ["RNU", "--form", "chache", "A"]);
        assert!(found[0].starts_with("2:Error unknown instruction: RNU"));
    }

    #[test]
    fn a_flag_that_ends_inside_of_a_character_can_be_shown() {
        let report = check("FROM a\nCOPY --fr.\u{420}/x=b /b /c\n".as_bytes(), &CheckOptions::default());
        assert!(report.has_errors());
        assert!(report.render(false).contains("--fr.\u{420}"));
    }

    #[test]
    fn the_target_and_build_args_are_looked_up() {
        let options = CheckOptions {
            target: Some("biuld".into()),
            build_args: vec!["VERSOIN".into(), "HTTP_PROXY".into(), "VERSION".into()],
            ..CheckOptions::default()
        };
        let report = check(b"ARG VERSION=1\nFROM alpine AS build\n", &options);
        let helps: Vec<&str> = report.diagnostics.iter().filter_map(|d| d.help.as_deref()).collect();
        assert_eq!(helps, ["did you mean VERSION?", "did you mean build?"]);
        assert!(report.has_errors());
    }

    #[test]
    fn what_is_right_is_not_complained_of() {
        for text in [
            "ARG B=alpine\nFROM $B AS a\nFROM a\nCOPY --from=a /x /y\nCOPY --from=0 /x /y\nRUN <<E\nx\nE\n",
            "# syntax=other/front-end\nwhatever\n",
            "FROM alpine\nRUN --mount=type=secret,id=$X echo ${Y:-z}\nENV A=${B:?x}\n",
        ] {
            assert_eq!(messages(text, &CheckOptions::default()), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn stages_are_looked_up() {
        let found = messages("FROM alpine AS build\nFROM scratch\nCOPY --from=buidl /a /b\n", &CheckOptions::default());
        assert!(found[0].starts_with("3:Warning"), "{found:?}");
        let found = messages("FROM $BSAE\nCOPY --from=7 a b\nCOPY --from=$X a b\n", &CheckOptions::default());
        assert_eq!(found.len(), 3, "{found:?}");
    }

    #[test]
    fn a_message_shows_the_line_and_no_control_characters() {
        let report =
            check(b"FROM alpine\nRUN\x1b[31m x\n", &CheckOptions { filename: "D".into(), ..Default::default() });
        let shown = report.render(false);
        assert!(shown.contains("--> D:2:1"), "{shown}");
        assert!(!shown.contains('\x1b'), "{shown:?}");
        assert!(report.render(true).contains('\x1b'));
    }

    #[test]
    fn names_for_completion() {
        let text = b"ARG A=1\nFROM alpine AS one\nARG B\nARG A\nFROM one AS two\nBAD\n";
        assert_eq!(stages(text), ["one", "two"]);
        assert_eq!(args(text), [("A".to_owned(), Some("1".to_owned())), ("B".to_owned(), None)]);
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_a_report(text in r#"(FROM|RUN|COPY|ENV|ARG|ONBUILD|HEALTHCHECK|#|[a-z]|[ \t\n\\"'$`{}<=:-]|é|\r){0,60}"#) {
            let report = check(text.as_bytes(), &CheckOptions::default());
            let _ = report.render(false);
        }
    }
}
