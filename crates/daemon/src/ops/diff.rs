//! Diff: what changed from one tree to another. As a root it shows only that.

use super::{OpCx, Outputs, check_input};
use crate::value::{Stop, Value, blocking, file_error, store_error};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use bud_store::fileop;
use bud_store::{Info, RecordType, Snapshot};

/// Checks the op.
///
/// # Errors
/// What is wrong.
pub fn validate(op: &pb::DiffOp, inputs: usize) -> Result<(), String> {
    let lower = op.lower.as_ref().ok_or("diff has no lower input")?;
    let upper = op.upper.as_ref().ok_or("diff has no upper input")?;
    check_input("diff, lower", lower.input, inputs, true)?;
    check_input("diff, upper", upper.input, inputs, true)
}

/// Takes the layers above the common ones; where the upper tree doesn't stand on the lower one, compares them.
///
/// # Errors
/// A layer is gone, or the trees can't be compared.
pub async fn execute(cx: &OpCx, op: &pb::DiffOp, inputs: Vec<Value>) -> Result<Outputs, BuildError> {
    let value = |n: Option<i64>| {
        n.and_then(|n| usize::try_from(n).ok()).and_then(|n| inputs.get(n)).cloned().unwrap_or_else(Value::scratch)
    };
    let lower = value(op.lower.as_ref().map(|l| l.input));
    let upper = value(op.upper.as_ref().map(|u| u.input));
    let (store, cancel) = (cx.daemon.store.clone(), cx.cancel.clone());
    blocking(move || {
        let stop = Stop(&cancel);
        let (lower, _kept_lower) = lower.snapshot(&store, &stop).map_err(file_error)?;
        let (upper, _kept_upper) = upper.snapshot(&store, &stop).map_err(file_error)?;
        let difference = if let Some(above) = upper.layers().strip_prefix(lower.layers()) {
            Snapshot::from_layers(above.to_vec())
        } else {
            let draft = store.draft(&Snapshot::scratch()).map_err(store_error)?;
            fileop::diff(&draft, &lower, &upper, &stop).map_err(file_error)?;
            let info = Info { description: "diff".into(), record_type: RecordType::Regular };
            return Ok(vec![Some(Value::kept(draft.commit(&info).map_err(store_error)?))]);
        };
        Ok(vec![Some(Value::stored(&store, difference).map_err(store_error)?)])
    })
    .await
}
