//! The Dockerfile language: text to LLB and image config. No I/O.
//!
//! * [`lower`] is the front end: it takes the options of a build as they go over the gateway and gives the definitions to
//!   solve. What it must know of the world (a file of the context, an image's config, a commit's time) it asks for by
//!   returning [`Step::Need`]; the caller adds the answers to [`Request::answers`] and calls it again.
//! * [`check`](check()) is the instant answer of a command line: what is wrong with a text, with the place underlined.
//! * [`stages`] and [`args`] give names for shell completion.

#![forbid(unsafe_code)]

pub mod check;
pub mod frontend;

pub use check::{CheckOptions, Diagnostic, Report, Severity, args, check, stages};
pub use frontend::{
    Answers, Build, Caps, Error, ErrorKind, FilesAnswer, FilesQuery, Forward, ImageAnswer, ImageQuery, Need, OciStore,
    PlatformBuild, Request, SourceAnswer, SourceQuery, SourceText, Span, Step, Subresult, Warning, lower,
};
