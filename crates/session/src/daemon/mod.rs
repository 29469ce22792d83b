//! The daemon's end: it asks the client.

mod content;
mod exports;
mod files;
mod health;
mod registry;
mod session;
mod ssh;

pub use content::{BlobInfo, ContentWriter};
pub use exports::{BlockingWriter, FileUpload};
pub use files::DirRequest;
pub use registry::{SessionRegistry, SessionStream, WAIT};
pub use session::{Session, Token};
pub use ssh::SshForward;
