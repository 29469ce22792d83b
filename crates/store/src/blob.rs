//! Content-addressed files.

use crate::StoreError;
use crate::snapshot::LayerId;
use crate::store::{Store, lock, now_ms};
use bud_image::Digest;
use rusqlite::{OptionalExtension, params};
use sha2::Digest as _;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

/// The blobs of a store.
pub struct BlobStore {
    dir: PathBuf,
    new_dir: PathBuf,
    counter: AtomicU64,
    store: OnceLock<Weak<Store>>,
    /// Blobs whose bytes were checked by this process: the file's inode number and time of change.
    sound: Mutex<HashMap<Digest, (u64, i64, i64)>>,
}

impl BlobStore {
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            dir: root.join("blobs/sha256"),
            new_dir: root.join("blobs/new"),
            counter: AtomicU64::new(0),
            store: OnceLock::new(),
            sound: Mutex::default(),
        }
    }

    pub(crate) fn attach(&self, store: &Arc<Store>) {
        // A store attaches its own blobs once.
        let _already = self.store.set(Arc::downgrade(store));
    }

    /// The blobs live in the store that they refer to.
    fn store(&self) -> Result<Arc<Store>, StoreError> {
        self.store.get().and_then(Weak::upgrade).ok_or(StoreError::Cancelled)
    }

    /// Returns where a blob is, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.dir.join(digest.hex())
    }

    /// Starts a new blob.
    ///
    /// # Errors
    /// The file can't be made, or the disk is nearly full.
    pub fn writer(&self) -> Result<BlobWriter, StoreError> {
        let store = self.store()?;
        store.check_space()?;
        let name = format!("{}-{}", std::process::id(), self.counter.fetch_add(1, Ordering::Relaxed));
        let path = self.new_dir.join(name);
        let file = File::options()
            .write(true)
            .read(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .map_err(StoreError::io("create", &path))?;
        Ok(BlobWriter { store, file, path, hash: sha2::Sha256::new(), size: 0, done: false })
    }

    /// Stores bytes as a blob.
    ///
    /// # Errors
    /// The disk or the database fails.
    pub fn put(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let digest = Digest::of(bytes);
        if self.contains(&digest)? {
            return Ok(digest);
        }
        let mut writer = self.writer()?;
        writer.write_all(bytes).map_err(StoreError::io("write", &writer.path))?;
        writer.commit(Some(&digest), Some(bytes.len() as u64)).map(|(digest, _)| digest)
    }

    /// Returns the size of a blob that is there, whole.
    ///
    /// A file of the wrong size is no blob: it is dropped.
    ///
    /// # Errors
    /// The database fails.
    pub fn size(&self, digest: &Digest) -> Result<Option<u64>, StoreError> {
        let store = self.store()?;
        let Some(size) = store
            .database()
            .prepare_cached("SELECT size FROM blobs WHERE digest = ?")?
            .query_row([digest.as_bytes()], |row| row.get::<_, i64>(0))
            .optional()?
        else {
            return Ok(None);
        };
        let size = u64::try_from(size).map_err(|_| StoreError::Damaged("size of a blob"))?;
        match std::fs::metadata(self.path(digest)) {
            Ok(meta) if meta.len() == size => Ok(Some(size)),
            _ => {
                self.forget(digest)?;
                Ok(None)
            }
        }
    }

    /// Tells whether a blob is there, whole.
    ///
    /// # Errors
    /// The database fails.
    pub fn contains(&self, digest: &Digest) -> Result<bool, StoreError> {
        Ok(self.size(digest)?.is_some())
    }

    /// Tells whether a blob is there with the right bytes. They are read once for as long as the store is open and the file stays as it is; a
    /// damaged one is dropped.
    ///
    /// # Errors
    /// The database fails, or the file can't be read.
    pub fn is_sound(&self, digest: &Digest) -> Result<bool, StoreError> {
        if !self.contains(digest)? {
            return Ok(false);
        }
        let path = self.path(digest);
        let mark = mark_of(&path);
        if mark.is_some() && lock(&self.sound).get(digest).copied() == mark {
            return Ok(true);
        }
        let mut file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let mut hash = sha2::Sha256::new();
        let mut piece = vec![0; 256 << 10];
        loop {
            match file.read(&mut piece).map_err(StoreError::io("read", &path))? {
                0 => break,
                n => hash.update(&piece[..n]),
            }
        }
        if Digest::from_bytes(hash.finalize().into()) != *digest {
            tracing::warn!("blob {digest} is damaged on disk");
            self.forget(digest)?;
            return Ok(false);
        }
        self.note_sound(digest, mark);
        Ok(true)
    }

    fn note_sound(&self, digest: &Digest, mark: Option<(u64, i64, i64)>) {
        if let Some(mark) = mark {
            lock(&self.sound).insert(*digest, mark);
        }
    }

    /// Opens a blob for reading. What is read is hashed on the way, and a read to the end fails if the bytes are wrong.
    ///
    /// # Errors
    /// The blob is missing, or can't be opened.
    pub fn open(&self, digest: &Digest) -> Result<BlobReader, StoreError> {
        let size = self.size(digest)?.ok_or(StoreError::BlobMissing(*digest))?;
        let path = self.path(digest);
        let file = File::open(&path).map_err(StoreError::io("open", &path))?;
        let store = self.store()?;
        store
            .database()
            .prepare_cached("UPDATE blobs SET last_used = ?2 WHERE digest = ?1")?
            .execute(params![digest.as_bytes(), now_ms()])?;
        Ok(BlobReader {
            file,
            digest: *digest,
            size,
            read: 0,
            hash: Some(sha2::Sha256::new()),
            store: Arc::downgrade(&store),
        })
    }

    /// Reads a small blob whole, checked against its digest.
    ///
    /// # Errors
    /// The blob is missing, too large or damaged.
    pub fn read(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, StoreError> {
        let mut reader = self.open(digest)?;
        if reader.size > limit {
            return Err(StoreError::SizeMismatch {
                name: format!("blob {digest}"),
                actual: reader.size,
                expected: limit,
            });
        }
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map_err(StoreError::io("read", self.path(digest)))?;
        Ok(bytes)
    }

    /// Removes a blob. Which blob a layer had stays known: it can be fetched or made again.
    ///
    /// # Errors
    /// The database fails.
    pub fn forget(&self, digest: &Digest) -> Result<(), StoreError> {
        let store = self.store()?;
        let db = store.database();
        db.execute("DELETE FROM blobs WHERE digest = ?", [digest.as_bytes()])?;
        lock(&self.sound).remove(digest);
        // It may be missing: that is why it is forgotten.
        let _gone = std::fs::remove_file(self.path(digest));
        Ok(())
    }

    /// Keeps a blob from being pruned while the guard lives.
    ///
    /// # Errors
    /// The database fails.
    pub fn pin(&self, digest: &Digest) -> Result<BlobPin, StoreError> {
        let store = self.store()?;
        *lock(&store.blob_pins).entry(*digest).or_insert(0) += 1;
        Ok(BlobPin { store, digest: *digest })
    }
}

/// Keeps a blob from being pruned while it lives.
pub struct BlobPin {
    store: Arc<Store>,
    digest: Digest,
}

impl Drop for BlobPin {
    fn drop(&mut self) {
        let mut pins = lock(&self.store.blob_pins);
        if let Some(count) = pins.get_mut(&self.digest) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.digest);
            }
        }
    }
}

/// Writes a new blob under a temporary name. Dropped without a commit, it is removed.
pub struct BlobWriter {
    store: Arc<Store>,
    file: File,
    path: PathBuf,
    hash: sha2::Sha256,
    size: u64,
    done: bool,
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

impl BlobWriter {
    /// Returns how many bytes were written.
    #[must_use]
    pub fn written(&self) -> u64 {
        self.size
    }

    /// Starts again from nothing, as when a server doesn't resume.
    ///
    /// # Errors
    /// The disk fails.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        self.file.set_len(0).map_err(StoreError::io("cut", &self.path))?;
        self.file.seek(SeekFrom::Start(0)).map_err(StoreError::io("cut", &self.path))?;
        self.hash = sha2::Sha256::new();
        self.size = 0;
        Ok(())
    }

    /// Opens the file for reading what was written so far.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn reader(&self) -> Result<File, StoreError> {
        File::open(&self.path).map_err(StoreError::io("open", &self.path))
    }

    /// Checks the bytes against what was promised, and makes them a blob.
    ///
    /// # Errors
    /// Digest or size differ, or the disk or database fails.
    pub fn commit(mut self, digest: Option<&Digest>, size: Option<u64>) -> Result<(Digest, u64), StoreError> {
        let actual = Digest::from_bytes(std::mem::take(&mut self.hash).finalize().into());
        if let Some(expected) = size
            && expected != self.size
        {
            return Err(StoreError::SizeMismatch { name: "blob".into(), actual: self.size, expected });
        }
        if let Some(expected) = digest
            && *expected != actual
        {
            return Err(StoreError::DigestMismatch { name: "blob".into(), actual, expected: *expected });
        }
        let blobs = self.store.blobs();
        let path = blobs.path(&actual);
        std::fs::rename(&self.path, &path).map_err(StoreError::io("rename to", &path))?;
        self.done = true;
        blobs.note_sound(&actual, mark_of(&path));
        let now = now_ms();
        let size = i64::try_from(self.size).map_err(|_| StoreError::Damaged("size of a blob"))?;
        self.store
            .database()
            .prepare_cached("INSERT OR REPLACE INTO blobs(digest, size, created, last_used) VALUES(?1, ?2, ?3, ?3)")?
            .execute(params![actual.as_bytes(), size, now])?;
        Ok((actual, self.size))
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if !self.done {
            // Left for the next start if it can't be removed now.
            let _left = std::fs::remove_file(&self.path);
        }
    }
}

/// Reads a blob and checks it: reading past its last byte fails if they are not those of its digest.
pub struct BlobReader {
    file: File,
    digest: Digest,
    size: u64,
    read: u64,
    hash: Option<sha2::Sha256>,
    store: Weak<Store>,
}

impl BlobReader {
    /// Returns the size.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Goes to a place. Only reads that start at 0 and go to the end are checked.
    ///
    /// # Errors
    /// The file can't seek.
    pub fn seek_to(&mut self, offset: u64) -> std::io::Result<()> {
        self.file.seek(SeekFrom::Start(offset))?;
        self.read = offset;
        self.hash = (offset == 0).then(sha2::Sha256::new);
        Ok(())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        let n = self.file.read(buffer)?;
        self.read += n as u64;
        let damaged = if n > 0 {
            if let Some(hash) = &mut self.hash {
                hash.update(&buffer[..n]);
            }
            // The last bytes are not given out before all are checked.
            self.read >= self.size
                && self.hash.as_ref().is_some_and(|h| Digest::from_bytes(h.clone().finalize().into()) != self.digest)
        } else {
            self.read != self.size
        };
        if damaged || self.read > self.size {
            if let Some(store) = self.store.upgrade() {
                // The error says it already; forgetting lets the next build fetch or make it again.
                let _logged = store.blobs().forget(&self.digest);
            }
            return Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("blob {} is damaged on disk; it was removed: build again to make it anew", self.digest),
            ));
        }
        Ok(n)
    }
}

/// A layer as a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerBlob {
    /// What the blob is.
    pub media_type: String,
    /// Which bytes.
    pub digest: Digest,
    /// How many.
    pub size: u64,
    /// The digest of the uncompressed tar.
    pub diff_id: Digest,
}

impl Store {
    /// Returns what is known of a layer's blob in a form of compression (a name of the caller's choice). The blob itself may
    /// be missing.
    ///
    /// # Errors
    /// The database fails.
    pub fn layer_blob(&self, layer: LayerId, compression: &str) -> Result<Option<LayerBlob>, StoreError> {
        Ok(self
            .database()
            .prepare_cached(
                "SELECT media_type, digest, size, diff_id FROM layer_blobs WHERE layer = ?1 AND compression = ?2",
            )?
            .query_row(params![layer.0, compression], read_layer_blob)
            .optional()?)
    }

    /// Returns all known blobs of a layer, with the names of their compressions.
    ///
    /// # Errors
    /// The database fails.
    pub fn layer_blobs(&self, layer: LayerId) -> Result<Vec<(String, LayerBlob)>, StoreError> {
        let db = self.database();
        let mut statement = db.prepare_cached(
            "SELECT media_type, digest, size, diff_id, compression FROM layer_blobs WHERE layer = ? ORDER BY compression",
        )?;
        let rows = statement.query_map([layer.0], |row| Ok((row.get(4)?, read_layer_blob(row)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Remembers the blob of a layer.
    ///
    /// # Errors
    /// The database fails.
    pub fn set_layer_blob(&self, layer: LayerId, compression: &str, blob: &LayerBlob) -> Result<(), StoreError> {
        let size = i64::try_from(blob.size).map_err(|_| StoreError::Damaged("size of a blob"))?;
        self.database().prepare_cached("INSERT OR REPLACE INTO layer_blobs VALUES(?1, ?2, ?3, ?4, ?5, ?6)")?.execute(
            params![layer.0, compression, blob.media_type, blob.digest.as_bytes(), size, blob.diff_id.as_bytes()],
        )?;
        Ok(())
    }
}

/// Tells a file from one that was put in its place or written to since.
fn mark_of(path: &Path) -> Option<(u64, i64, i64)> {
    use std::os::unix::fs::MetadataExt;
    std::fs::symlink_metadata(path).ok().map(|meta| (meta.ino(), meta.ctime(), meta.ctime_nsec()))
}

fn read_layer_blob(row: &rusqlite::Row<'_>) -> Result<LayerBlob, rusqlite::Error> {
    Ok(LayerBlob {
        media_type: row.get(0)?,
        digest: Digest::from_bytes(row.get(1)?),
        size: row.get::<_, i64>(2)?.unsigned_abs(),
        diff_id: Digest::from_bytes(row.get(3)?),
    })
}
