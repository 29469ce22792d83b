//! Passthrough: orders dependencies, and returns inputs as they are.

use super::{Outputs, check_input};
use crate::value::Value;
use bud_protocol::errors::BuildError;
use bud_protocol::pb;

/// Checks the op.
///
/// # Errors
/// What is wrong.
pub fn validate(op: &pb::PassthroughOp, inputs: usize) -> Result<(), String> {
    if op.outputs.is_empty() || op.outputs.len() > crate::solver::graph::MAX_OUTPUTS {
        return Err(format!("passthrough has {} outputs", op.outputs.len()));
    }
    op.outputs.iter().try_for_each(|o| check_input("passthrough output", *o, inputs, false))
}

/// Returns the inputs.
///
/// # Errors
/// None after [`validate`].
pub fn execute(op: &pb::PassthroughOp, inputs: Vec<Value>) -> Result<Outputs, BuildError> {
    let pick = |o: &i64| usize::try_from(*o).ok().and_then(|o| inputs.get(o)).cloned();
    Ok(op.outputs.iter().map(pick).collect())
}
