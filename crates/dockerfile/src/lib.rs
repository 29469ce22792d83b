//! The Dockerfile language: text to LLB and image config. No I/O.
//!
//! * [`lower`] is the front end: it takes the options of a build as they go over the gateway and gives the definitions to
//!   solve. What it must know of the world (a file of the context, an image's config, a commit's time) it asks for by
//!   returning [`Step::Need`]; the caller adds the answers to [`Request::answers`] and calls it again.
//! * [`check`](check()) is the instant answer of a command line: what is wrong with a text, with the place underlined.
//! * [`stages`] and [`args`] give names for shell completion.

#![forbid(unsafe_code)]

pub mod check;
pub mod edit;
mod fault;
pub mod frontend;
pub mod instruction;
pub mod lint;
mod lower;
pub mod parser;
pub mod shell;
mod text;

use fault::Fault;

/// Parses a text into instructions as they are written.
///
/// # Errors
///
/// The first thing that can't be parsed, with its lines.
pub fn parse(text: &[u8]) -> Result<parser::Dockerfile, Error> {
    parser::parse(&text::quote::decode(text)).map_err(Fault::into_error)
}

/// Parses a text into stages with typed instructions.
///
/// # Errors
///
/// The first thing that can't be parsed, with its lines.
pub fn program(text: &[u8]) -> Result<instruction::Program, Error> {
    let file = parser::parse(&text::quote::decode(text)).map_err(Fault::into_error)?;
    instruction::parse_all(&file, &lint::Linter::silent()).map_err(Fault::into_error)
}

pub use check::{CheckOptions, Diagnostic, Report, Severity, args, check, stages};
pub use frontend::{
    Answers, Attestation, Build, Caps, Error, ErrorKind, FilesAnswer, FilesQuery, Forward, ImageAnswer, ImageQuery,
    Need, OciStore, PlatformBuild, Request, SourceAnswer, SourceQuery, SourceText, Span, Step, Subresult, Warning,
    lower,
};
