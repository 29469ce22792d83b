//! Unpacking a layer.

use crate::Observer;
use crate::layer::{Applied, Extract, LayerError, settle};
use crate::snapshot::LayerDraft;
use crate::union::Union;
use bud_oci::tar::Reader;
use std::io::Read;

/// Unpacks an uncompressed layer tar into a draft.
///
/// The layer is unpacked by itself, so that layers of an image can be unpacked at the same time; where a path leads through
/// a link of a layer below, it is moved there when the parents are known: here if the draft has some, else by
/// [`LayerDraft::set_parent`]. The stream is left behind the archive's end mark: what follows belongs to the diff ID, so pass
/// `&mut` and read on.
///
/// # Errors
/// See [`LayerError`].
pub fn apply(tar: impl Read, draft: &mut LayerDraft, observer: &dyn Observer) -> Result<Applied, LayerError> {
    let mut reader = Reader::new(tar);
    let done = {
        let union = Union::standalone(draft)?;
        let root = union.root().clone();
        Extract::new(&union, draft.store(), observer, root, true, None).run(&mut reader)?
    };
    draft.has_root_looks |= done.has_root;
    if !draft.parent().is_scratch() {
        settle(draft)?;
    }
    Ok(Applied { entries: done.entries, bytes: done.bytes, skipped_devices: done.skipped_devices })
}
