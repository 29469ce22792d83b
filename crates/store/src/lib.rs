//! State on disk: the database, blobs, layers, snapshots, file operations on them, and content digests.
//!
//! Everything is synchronous and may be called from any thread. What the database does not refer to is rubbish
//! and is removed in the background; what it refers to was written before it was referred to.

#![forbid(unsafe_code)]

pub mod blob;
pub mod cachemount;
pub mod cachetar;
pub mod content;
pub mod context;
mod disk;
pub mod error;
mod filecopy;
mod fileindex;
pub mod fileop;
mod flatten;
#[cfg(test)]
mod gc_tests;
pub mod image;
mod lay;
pub mod layer;
mod merge;
pub mod native;
#[cfg(test)]
mod native_tests;
mod owners;
#[cfg(test)]
mod properties;
pub mod prune;
pub mod record;
mod runs;
mod scan;
pub mod snapshot;
mod source;
pub mod store;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
pub mod tree;
mod union;
pub mod usage;

pub use blob::{BlobReader, BlobStore, BlobWriter};
pub use cachemount::{CacheMount, CacheObject, Sharing};
pub use context::ContextTree;
pub use error::StoreError;
pub use image::StoredImage;
pub use native::View;
pub use prune::{PrunePolicy, Pruned};
pub use record::{CacheKey, Info, Record, RecordId, RecordType};
pub use snapshot::{LayerDraft, LayerId, Pin, Snapshot};
pub use store::{Options, Store};
pub use tree::{Source, Tree};
pub use usage::Usage;

/// Watches a long operation: told of progress, asked whether to go on. `()` watches nothing.
pub trait Observer: Sync {
    /// Is told of files and bytes done since the last call.
    fn advance(&self, _files: u64, _bytes: u64) {}
    /// Returns true when the operation is to stop; it then ends with an error.
    fn is_cancelled(&self) -> bool {
        false
    }
}

impl Observer for () {}
