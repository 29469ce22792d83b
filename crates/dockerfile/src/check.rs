//! What a command line says of a Dockerfile before anything is started.

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
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
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

    /// Writes it for people: file, line, the line's text with the place underlined, and what was meant.
    #[must_use]
    pub fn render(&self, _color: bool) -> String {
        let _ = (&self.filename, &self.text);
        self.diagnostics.iter().map(|d| format!("{}\n", d.message)).collect()
    }
}

/// Checks a text.
#[must_use]
pub fn check(text: &[u8], options: &CheckOptions) -> Report {
    Report {
        diagnostics: Vec::new(),
        filename: options.filename.clone(),
        text: String::from_utf8_lossy(text).into_owned(),
    }
}

/// Returns the names of the stages, for `--target`.
#[must_use]
pub fn stages(_text: &[u8]) -> Vec<String> {
    Vec::new()
}

/// Returns the names of the build arguments which the text declares, with their defaults.
#[must_use]
pub fn args(_text: &[u8]) -> Vec<(String, Option<String>)> {
    Vec::new()
}
