//! Ops: what a vertex does. An op's validation, identity and execution are together in its file.

pub mod build;
pub mod diff;
pub mod exec;
pub mod file;
pub mod merge;
pub mod passthrough;

use crate::build::Entitlements;
use crate::daemon::Daemon;
use crate::progress::Reporter;
use crate::sessions::SessionGroup;
use crate::solver::graph::{Kind, Vertex};
use crate::value::Value;
use bud_image::{Digest, Platform};
use bud_protocol::errors::BuildError;
use bud_store::content::Selection;
use std::path::PathBuf;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What an op works with.
#[derive(Clone, Debug)]
pub struct OpCx {
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// The clients that may be asked for secrets and ssh agents.
    pub sessions: SessionGroup,
    /// Where progress and output go.
    pub progress: Reporter,
    /// Cancelled when nobody wants the result any more.
    pub cancel: CancellationToken,
    /// The platform.
    pub platform: Platform,
    /// What the build may do.
    pub entitlements: Entitlements,
    /// Where the whole output goes, if it is too long to be told (without `.1.zst` or `.2.zst`).
    pub log_file: PathBuf,
}

/// An op's outputs by number; `None` for one that it doesn't have.
pub type Outputs = Vec<Option<Value>>;

/// Checks what can be wrong with an op before anything runs.
///
/// # Errors
/// What is wrong.
pub fn validate(vertex: &Vertex) -> Result<(), String> {
    match &vertex.kind {
        Kind::Source(op) => crate::source::parse(op, vertex.platform.as_ref()).map(|_| ()).map_err(|e| e.message),
        Kind::Exec(op) => exec::validate(op, vertex.inputs.len()),
        Kind::File(op) => file::validate(op, vertex.inputs.len()),
        Kind::Merge(op) => merge::validate(op, vertex.inputs.len()),
        Kind::Diff(op) => diff::validate(op, vertex.inputs.len()),
        Kind::Build(op) => build::validate(op, vertex.inputs.len()),
        Kind::Passthrough(op) => passthrough::validate(op, vertex.inputs.len()),
    }
}

/// Returns an op's name for people, if the front end gave none; made of its inputs' names where it only puts them together.
#[must_use]
pub fn name(vertex: &Vertex, inputs: &[&str]) -> String {
    let input = |number: i64| usize::try_from(number).ok().and_then(|n| inputs.get(n)).copied().unwrap_or("scratch");
    match &vertex.kind {
        Kind::Source(op) => op.identifier.clone(),
        Kind::Exec(op) => op.meta.as_ref().map(|m| m.args.join(" ")).unwrap_or_default(),
        Kind::File(op) => file::name(op),
        Kind::Merge(op) => {
            let names: Vec<&str> = op.inputs.iter().map(|i| input(i.input)).collect();
            format!("merge ({})", names.join(", "))
        }
        Kind::Diff(op) => {
            let (lower, upper) = (op.lower.as_ref().map_or(-1, |l| l.input), op.upper.as_ref().map_or(-1, |u| u.input));
            format!("diff ({}) -> ({})", input(lower), input(upper))
        }
        Kind::Build(_) => "build".into(),
        Kind::Passthrough(op) => format!("passthrough {}", op.id),
    }
}

/// Checks that a number is an input's or −1.
pub(crate) fn check_input(what: &str, input: i64, inputs: usize, or_none: bool) -> Result<(), String> {
    if or_none && input == -1 {
        return Ok(());
    }
    match usize::try_from(input) {
        Ok(n) if n < inputs => Ok(()),
        _ => Err(format!("{what}: input {input} does not exist: there are {inputs}")),
    }
}

/// Which parts of an input count, where it counts by content.
#[derive(Clone, Debug, Default)]
pub struct ByContent {
    /// The selections, in the order of the op's uses.
    pub selections: Vec<Selection>,
    /// True if it is also used in ways that nobody can see through: then its key counts as well.
    pub also_by_key: bool,
}

/// Says for each input whether it counts by content.
#[must_use]
pub fn by_content(vertex: &Vertex) -> Vec<Option<ByContent>> {
    match &vertex.kind {
        Kind::Exec(op) => exec::by_content(op, vertex.inputs.len()),
        Kind::File(op) => file::by_content(op, vertex.inputs.len()),
        _ => vec![None; vertex.inputs.len()],
    }
}

/// Returns the digest of all that an op does, without its inputs. With `content`, without what inputs that count by
/// content cover: which of their paths is taken.
#[must_use]
pub fn identity(vertex: &Vertex, content: bool, default: &Platform) -> Digest {
    use prost::Message as _;
    let (kind, bytes) = match &vertex.kind {
        Kind::Source(op) => ("source", op.encode_to_vec()),
        Kind::Exec(op) => ("exec", exec::identity(op, content)),
        Kind::File(op) => ("file", file::identity(op, content)),
        Kind::Merge(op) => ("merge", op.encode_to_vec()),
        Kind::Diff(op) => ("diff", op.encode_to_vec()),
        Kind::Build(op) => ("build", op.encode_to_vec()),
        Kind::Passthrough(op) => ("passthrough", op.encode_to_vec()),
    };
    let platform = vertex.platform.as_ref().unwrap_or(default);
    let mut text = format!("op:1:{kind}:{platform}:{content}:").into_bytes();
    text.extend(bytes);
    Digest::of(text)
}

/// Does what the vertex says.
///
/// # Errors
/// The op fails, or is cancelled.
pub async fn execute(cx: &OpCx, vertex: &Vertex, inputs: Vec<Value>) -> Result<Outputs, BuildError> {
    match &vertex.kind {
        Kind::Exec(op) => exec::execute(cx, vertex, op, inputs).await,
        Kind::File(op) => file::execute(cx, vertex, op, inputs).await,
        Kind::Merge(op) => merge::execute(cx, op, inputs).await,
        Kind::Diff(op) => diff::execute(cx, op, inputs).await,
        Kind::Passthrough(op) => passthrough::execute(op, inputs),
        // The solver does these itself: they are not computed from their inputs alone.
        Kind::Source(_) | Kind::Build(_) => {
            Err(BuildError::new(tonic::Code::Internal, "this op is not one to be executed"))
        }
    }
}
