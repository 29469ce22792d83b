//! Merge: puts trees on one another; later ones win, and what they delete is gone.

use super::{OpCx, Outputs, check_input};
use crate::value::{Stop, Value, blocking, file_error, store_error};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use bud_store::Snapshot;
use std::sync::Arc;

/// Checks the op.
///
/// # Errors
/// What is wrong.
pub fn validate(op: &pb::MergeOp, inputs: usize) -> Result<(), String> {
    if op.inputs.is_empty() {
        return Err("merge has no inputs".into());
    }
    op.inputs.iter().try_for_each(|i| check_input("merge", i.input, inputs, false))
}

/// Stacks the layers; one that deletes is made again to delete by name, from hard links.
///
/// # Errors
/// A layer is gone.
pub async fn execute(cx: &OpCx, op: &pb::MergeOp, inputs: Vec<Value>) -> Result<Outputs, BuildError> {
    let numbers: Vec<usize> = op.inputs.iter().filter_map(|i| usize::try_from(i.input).ok()).collect();
    let (store, cancel) = (cx.daemon.store.clone(), cx.cancel.clone());
    blocking(move || {
        let mut parts = Vec::with_capacity(numbers.len());
        for number in numbers {
            let value = inputs.get(number).ok_or_else(|| BuildError::invalid("merge: input does not exist"))?;
            // What keeps a copied directory is kept until the merge is pinned.
            parts.push(value.snapshot(&store, &Stop(&cancel)).map_err(file_error)?);
        }
        let snapshots: Vec<Snapshot> = parts.iter().map(|(snapshot, _)| snapshot.clone()).collect();
        let (merged, pin) = store.merge(&snapshots, &Stop(&cancel)).map_err(store_error)?;
        Ok(vec![Some(Value::Stored(merged, Some(Arc::new(pin))))])
    })
    .await
}
