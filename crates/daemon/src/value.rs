//! What goes along an edge of the graph: a file tree, stored or still where the client has it.

use bud_protocol::errors::BuildError;
use bud_store::content::Selection;
use bud_store::fileop::{self, FileOpError};
use bud_store::{ContextTree, Info, Observer, Pin, RecordType, Snapshot, Source, Store, StoreError, Tree};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// A file tree. Cheap to clone; its layers are kept while it lives.
#[derive(Clone, Debug)]
pub enum Value {
    /// Layers in the store.
    Stored(Snapshot, Option<Arc<Pin>>),
    /// A local directory, read in place. Nothing of it is in the store.
    Context(Arc<ContextTree>),
}

impl Value {
    /// Returns the empty tree.
    #[must_use]
    pub fn scratch() -> Self {
        Self::Stored(Snapshot::scratch(), None)
    }

    /// Makes a value of a committed layer.
    #[must_use]
    pub fn kept((snapshot, pin): (Snapshot, Pin)) -> Self {
        Self::Stored(snapshot, Some(Arc::new(pin)))
    }

    /// Makes a value of a snapshot, keeping its layers.
    ///
    /// # Errors
    /// A layer is gone.
    pub fn stored(store: &Arc<Store>, snapshot: Snapshot) -> Result<Self, StoreError> {
        let pin = store.pin(&snapshot)?;
        Ok(Self::Stored(snapshot, Some(Arc::new(pin))))
    }

    /// Opens it for reading. Blocking.
    ///
    /// # Errors
    /// It can't be mounted.
    pub fn open(&self, store: &Arc<Store>) -> Result<Opened, StoreError> {
        Ok(match self {
            Self::Stored(snapshot, _) => Opened::Tree(store.tree(snapshot)?),
            Self::Context(context) => Opened::Context(Arc::clone(context)),
        })
    }

    /// Returns the snapshot and what keeps it, after copying a local directory into the store if it is one. Blocking.
    ///
    /// # Errors
    /// The copy fails.
    pub fn snapshot(
        &self,
        store: &Arc<Store>,
        observer: &dyn Observer,
    ) -> Result<(Snapshot, Option<Arc<Pin>>), FileOpError> {
        match self {
            Self::Stored(snapshot, pin) => Ok((snapshot.clone(), pin.clone())),
            Self::Context(context) => {
                let draft = store.draft(&Snapshot::scratch())?;
                let all = fileop::Copy {
                    src: "/".into(),
                    dest: "/".into(),
                    dir_copy_contents: true,
                    create_dest_path: true,
                    ..fileop::Copy::default()
                };
                fileop::copy(&draft, Source::Context(context), &all, observer)?;
                let info = Info { description: "local source".into(), record_type: RecordType::LocalSource };
                let (snapshot, pin) = draft.commit(&info)?;
                Ok((snapshot, Some(Arc::new(pin))))
            }
        }
    }
}

/// A value that is open for reading.
#[derive(Clone, Debug)]
pub enum Opened {
    /// A mounted snapshot.
    Tree(Tree),
    /// A local directory.
    Context(Arc<ContextTree>),
}

impl Opened {
    /// Returns it as the store's operations want it.
    #[must_use]
    pub fn source(&self) -> Source<'_> {
        match self {
            Self::Tree(tree) => Source::Tree(tree),
            Self::Context(context) => Source::Context(context),
        }
    }

    /// Reads a regular file whole.
    ///
    /// # Errors
    /// It isn't there, isn't a regular file, or is larger than the limit.
    pub fn read_file(&self, path: &[u8], limit: u64) -> std::io::Result<Vec<u8>> {
        match self {
            Self::Tree(tree) => tree.read_file(path, limit),
            Self::Context(context) => context.read_file(path, limit),
        }
    }
}

/// Lets a store's long operation stop when its build is given up.
#[derive(Debug)]
pub struct Stop<'a>(pub &'a CancellationToken);

impl Observer for Stop<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
}

/// Selects a whole tree.
#[must_use]
pub fn everything() -> Selection {
    Selection { path: "/".into(), ..Selection::default() }
}

/// Runs file work on a blocking thread.
///
/// # Errors
/// Those of the work; a panic in it is an error too.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, BuildError> + Send + 'static,
) -> Result<T, BuildError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(BuildError::new(tonic::Code::Internal, format!("a background task failed: {error}"))),
    }
}

/// Converts a store's error.
#[must_use]
pub fn store_error(error: StoreError) -> BuildError {
    match error {
        StoreError::Cancelled => BuildError::canceled(),
        other => BuildError::other(other.to_string()),
    }
}

/// Converts a file operation's error.
#[must_use]
pub fn file_error(error: FileOpError) -> BuildError {
    let message = error.to_string();
    match error {
        FileOpError::NotFound { .. } => BuildError::not_found(message),
        FileOpError::Cancelled => BuildError::canceled(),
        _ => BuildError::other(message),
    }
}
