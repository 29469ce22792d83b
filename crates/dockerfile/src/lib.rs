//! The Dockerfile language: text to LLB and image config. No I/O.
//!
//! * [`lower`] is the front end: it takes the options of a build as they go over the gateway and gives the definitions to
//!   solve. What it must know of the world (a file of the context, an image's config, a commit's time) it asks for by
//!   returning [`Step::Need`]; the caller adds the answers to [`Request::answers`] and calls it again.
//! * [`check`](check()) is the instant answer of a command line: what is wrong with a text, with the place underlined.
//! * [`stages`] and [`args`] give names for shell completion.
//! * [`lint`](lint::lint()) looks at a text with the reference's rules, and [`fix`](fix::fix()) mends what they find.
//!   [`inspect`] says all of it at once, with rules of our own beside ([`advice`]).
//! * [`parse`] and [`program`] give the text's instructions, as written and with their types; [`edit`] changes a text
//!   and keeps every other byte.
//!
//! ```
//! use bud_dockerfile::{ImageAnswer, Need, Request, Step, lower};
//!
//! let mut request = Request { session: "s1".into(), ..Request::default() };
//! request.opts.insert("target".into(), "app".into());
//! let build = loop {
//!     match lower(&request)? {
//!         Step::Need(needs) => {
//!             for need in needs {
//!                 match need {
//!                     // Solve the definition and read the paths; here there is just a Dockerfile.
//!                     Need::Files(query) => {
//!                         let read = |path: &String| match path.as_str() {
//!                             "Dockerfile" => Ok(b"FROM scratch AS app\nCOPY a /a\n".to_vec()),
//!                             other => Err(format!("{other}: no such file")),
//!                         };
//!                         let files = query.paths.iter().map(read).collect();
//!                         request.answers.files(query, Ok(files));
//!                     }
//!                     Need::Image(query) => request.answers.image(query, Err("no registry here".into())),
//!                     Need::Source(query) => request.answers.source(query, Ok(Default::default())),
//!                 }
//!             }
//!         }
//!         Step::Build(build) => break build,
//!         other => panic!("{other:?}"),
//!     }
//! };
//! // The context, the copy, and the mark of the result.
//! assert_eq!(build.platforms[0].definition.def.len(), 3);
//! # Ok::<(), bud_dockerfile::Error>(())
//! ```
//!
//! How exact it is, is measured against records of what the reference makes of real files:
//! `cargo run --release -p bud-dockerfile --example conformance -- FILE.jsonl…`.
//!
//! # What differs
//!
//! Measured on 1,621 recorded texts, 3,832 words and 537 references nothing differs. Compared with the reference's own code on some
//! 38,000 further real files, 7,000 texts with random edits and 50,000 random words and references, this was left:
//!
//! * Where the reference takes any of several (it walks over Go maps and looks at base images in parallel), this crate always
//!   takes one: of equally near words the first of the list, variables in the order of their names, and of several bad base
//!   names the last.
//! * `.dockerignore`: the reference makes regular expressions of patterns with wildcards and forgets to escape `|`, `{`, `}`, `^`
//!   and what follows a backslash. Here these stand for themselves, as the rules say; only patterns with them differ.
//!
//! # Bounds
//!
//! Any bytes give a result or an error, without recursion over the depth of the input: a text may have 16 MiB
//! ([`parser::MAX_SIZE`]) and a line 64 KiB, a word may expand to 1 MiB ([`shell::MAX_EXPANSION`]) and nest 100 deep, all
//! that variables and stages multiply may come to 128 MiB, and a definition to 64 MiB.

#![forbid(unsafe_code)]

pub mod advice;
pub mod check;
pub mod edit;
mod fault;
pub mod fix;
pub mod frontend;
pub mod instruction;
pub mod lint;
mod lower;
mod offline;
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

pub use check::{CheckOptions, Diagnostic, Report, Severity, args, check, inspect, stages};
pub use frontend::{
    Answers, Attestation, Build, Caps, Error, ErrorKind, FilesAnswer, FilesQuery, Forward, ImageAnswer, ImageQuery,
    Need, OciStore, PlatformBuild, Request, SourceAnswer, SourceQuery, SourceText, Span, Step, Subresult, Warning,
    lower,
};
pub use lower::is_builtin_syntax;
