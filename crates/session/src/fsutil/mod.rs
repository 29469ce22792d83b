//! File trees in motion: fsutil's protocol, in which one end lists a tree and the other asks for the files it lacks.
//!
//! The sender ([`send`]) walks a tree and sends a stat for each entry, in order; the receiver ([`receive`]) compares them
//! with the directory it has, asks for files by their number in the list, and writes.

mod mode;
mod order;
mod receive;
mod send;
mod walk;
mod writer;
mod xattr;

use std::sync::Arc;

use bud_protocol::fsutil::Packet;
use tokio::sync::mpsc;
use tonic::Status;

pub use mode::{FileKind, from_go_mode, to_go_mode};
pub use receive::receive;
pub use send::send;
pub use walk::{Part, TreeSource, WalkError};
pub use writer::{Differ, Owner, ReceiveOptions, Received};

/// Told how many bytes of file contents went over so far.
pub type Progress = Arc<dyn Fn(u64) + Send + Sync>;

/// Packets that may wait for the other end.
pub(crate) const QUEUE: usize = 32;

/// Where packets for the other end go. An error ends the stream with that status, where this end can set one.
pub(crate) type Outbound = mpsc::Sender<Result<Packet, Status>>;

/// The links of the tree at `root`, for finding what a path leads to.
pub fn root_links(root: std::os::fd::BorrowedFd<'_>) -> impl bud_patterns::Links {
    walk::RootLinks(root)
}
