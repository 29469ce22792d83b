//! Build: a definition that is read from a file of an input, and solved in its place.

use super::check_input;
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use prost::Message as _;

/// The file, if the op names none.
const FILE: &str = "buildkit.llb.definition";
/// At most so many bytes are read.
pub const MAX_FILE: u64 = 16 << 20;
/// At most so deep.
pub const MAX_DEPTH: usize = 8;

/// Checks the op.
///
/// # Errors
/// What is wrong.
pub fn validate(op: &pb::BuildOp, inputs: usize) -> Result<(), String> {
    check_input("build", op.builder, inputs, true)?;
    if op.builder == -1 && op.def.is_none() && op.inputs.is_empty() {
        return Err("build has neither builder nor definition".into());
    }
    op.inputs.iter().try_for_each(|(name, i)| check_input(&format!("build input {name}"), i.input, inputs, false))
}

/// Returns which input holds the definition, and in which file.
///
/// # Errors
/// There is none.
pub fn file(op: &pb::BuildOp) -> Result<(usize, String), BuildError> {
    let input = op.inputs.get("buildkit.llb.definition").map_or(op.builder, |i| i.input);
    let input = usize::try_from(input).map_err(|_| BuildError::invalid("build: no input holds a definition"))?;
    let file = op.attrs.get("llbbuild.filename").map_or(FILE, String::as_str);
    Ok((input, file.to_owned()))
}

/// Reads the definition.
///
/// # Errors
/// It is not one.
pub fn definition(bytes: &[u8]) -> Result<pb::Definition, BuildError> {
    pb::Definition::decode(bytes).map_err(|e| BuildError::invalid(format!("build: the file is no definition: {e}")))
}
