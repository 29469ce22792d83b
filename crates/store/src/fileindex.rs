//! Digests of files that were read before, so that an unchanged one is never read again.
//!
//! A file is known by (inode, size, mtime, ctime) below a device. One index belongs to one directory that is used as a context,
//! or to the layers; it is one blob of the database, which loads in a millisecond or two however many files there are.

use crate::StoreError;
use crate::scan::Meta;
use crate::store::{Store, lock, now_ms};
use rusqlite::{OptionalExtension, params};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Bytes of an entry: inode, size, mtime, ctime, digest.
const ENTRY: usize = 8 + 8 + 12 + 12 + 32;
/// An index with more entries than this starts anew.
const MAX_ENTRIES: usize = 4_000_000;
/// So many indexes are kept in memory.
const IN_MEMORY: usize = 8;

type Key = (u64, u64, (i64, u32), (i64, u32));

/// What is known of the files below one directory.
#[derive(Default)]
pub(crate) struct FileIndex {
    known: Mutex<HashMap<Key, [u8; 32], IndexHash>>,
}

/// Inode and times are spread well enough for a multiplicative hash, and nobody gains from collisions in an own index.
#[derive(Clone, Default)]
pub(crate) struct IndexHash;

impl std::hash::BuildHasher for IndexHash {
    type Hasher = IndexHasher;
    fn build_hasher(&self) -> IndexHasher {
        IndexHasher(0)
    }
}

pub(crate) struct IndexHasher(u64);

impl std::hash::Hasher for IndexHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }
    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }
    fn write_u32(&mut self, n: u32) {
        self.write_u64(u64::from(n));
    }
    fn write_i64(&mut self, n: i64) {
        self.write_u64(n.cast_unsigned());
    }
}

/// The indexes that were used lately.
#[derive(Default)]
pub(crate) struct Indexes(Mutex<Vec<(String, Arc<FileIndex>)>>);

fn key(meta: &Meta) -> Key {
    (meta.ino, meta.size, meta.mtime, meta.ctime)
}

impl FileIndex {
    pub(crate) fn get_all<'m>(&self, metas: impl Iterator<Item = &'m Meta>) -> Vec<Option<[u8; 32]>> {
        let known = lock(&self.known);
        metas.map(|meta| known.get(&key(meta)).copied()).collect()
    }

    fn to_bytes(&self) -> Vec<u8> {
        let known = lock(&self.known);
        let mut bytes = Vec::with_capacity(known.len() * ENTRY);
        for ((ino, size, mtime, ctime), digest) in known.iter() {
            bytes.extend_from_slice(&ino.to_le_bytes());
            bytes.extend_from_slice(&size.to_le_bytes());
            for (sec, nsec) in [mtime, ctime] {
                bytes.extend_from_slice(&sec.to_le_bytes());
                bytes.extend_from_slice(&nsec.to_le_bytes());
            }
            bytes.extend_from_slice(digest);
        }
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> Self {
        let (entries, _) = bytes.as_chunks::<ENTRY>();
        let mut known = HashMap::with_capacity_and_hasher(entries.len(), IndexHash);
        for entry in entries {
            let u64_at = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
            let u32_at = |at: usize| u32::from_le_bytes(std::array::from_fn(|i| entry[at + i]));
            let time_at = |at: usize| (u64_at(at).cast_signed(), u32_at(at + 8));
            known.insert((u64_at(0), u64_at(8), time_at(16), time_at(28)), std::array::from_fn(|i| entry[40 + i]));
        }
        Self { known: Mutex::new(known) }
    }
}

impl Store {
    /// Returns the index of a directory, by a name for it.
    pub(crate) fn file_index(&self, root: &str) -> Result<Arc<FileIndex>, StoreError> {
        let mut indexes = lock(&self.indexes.0);
        if let Some(at) = indexes.iter().position(|(name, _)| name == root) {
            let found = indexes.remove(at);
            indexes.insert(0, found);
            return Ok(Arc::clone(&indexes[0].1));
        }
        let index: Option<FileIndex> = self
            .database()
            .prepare_cached("SELECT data FROM file_index WHERE root = ?")?
            .query_row([root], |row| Ok(FileIndex::from_bytes(row.get_ref(0)?.as_blob()?)))
            .optional()?;
        let index = Arc::new(index.unwrap_or_default());
        indexes.insert(0, (root.to_owned(), Arc::clone(&index)));
        indexes.truncate(IN_MEMORY);
        Ok(index)
    }

    /// Adds files to an index and writes it.
    pub(crate) fn remember_files(
        &self,
        root: &str,
        index: &FileIndex,
        new: &[(Meta, [u8; 32])],
        seen: Option<&std::collections::HashSet<u64>>,
    ) -> Result<(), StoreError> {
        if new.is_empty() {
            return Ok(());
        }
        {
            let mut known = lock(&index.known);
            if known.len() + new.len() > MAX_ENTRIES {
                known.clear();
            }
            // Entries of files that changed, or went away, make the index grow: they go when a whole tree was looked at.
            if let Some(seen) = seen
                && known.len() > 2 * seen.len() + 1000
            {
                known.retain(|(ino, ..), _| seen.contains(ino));
            }
            let changed: std::collections::HashSet<u64> = new.iter().map(|(meta, _)| meta.ino).collect();
            if new.len() <= 64 {
                known.retain(|(ino, ..), _| !changed.contains(ino));
            }
            for (meta, digest) in new {
                known.insert(key(meta), *digest);
            }
        }
        self.database().prepare_cached("INSERT OR REPLACE INTO file_index VALUES(?1, ?2, ?3)")?.execute(params![
            root,
            index.to_bytes(),
            now_ms()
        ])?;
        self.database()
            .prepare_cached(
                "DELETE FROM file_index WHERE root NOT IN (SELECT root FROM file_index ORDER BY last_used DESC LIMIT 64)",
            )?
            .execute([])?;
        Ok(())
    }
}
