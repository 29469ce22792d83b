//! Cache records: what a key's outputs are.

use crate::StoreError;
use crate::snapshot::{LayerId, Pin, Snapshot};
use crate::store::{Store, lock, now_ms};
use bud_image::Digest;
use rusqlite::{OptionalExtension, params};
use std::collections::HashMap;
use std::sync::Arc;

/// A cache key: a digest over an op and its inputs.
pub type CacheKey = Digest;

/// The number of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordId(pub i64);

/// What made a layer, with BuildKit's names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RecordType {
    /// A step or a pulled image.
    #[default]
    Regular,
    /// Things of our own.
    Internal,
    /// A front end.
    Frontend,
    /// A received context.
    LocalSource,
    /// A git check-out.
    GitCheckout,
    /// A cache mount.
    CacheMount,
}

impl RecordType {
    /// Returns BuildKit's name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Regular => "regular",
            Self::Internal => "internal",
            Self::Frontend => "frontend",
            Self::LocalSource => "source.local",
            Self::GitCheckout => "source.git.checkout",
            Self::CacheMount => "exec.cachemount",
        }
    }

    /// Reads BuildKit's name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Regular, Self::Internal, Self::Frontend, Self::LocalSource, Self::GitCheckout, Self::CacheMount]
            .into_iter()
            .find(|t| t.as_str() == name)
    }
}

/// What is said of a layer in listings.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// For people: the step.
    pub description: String,
    /// Its kind.
    pub record_type: RecordType,
}

/// A remembered result. Its layers are kept while it lives.
#[derive(Clone, Debug)]
pub struct Record {
    /// Its number.
    pub id: RecordId,
    /// The key under which it was first made.
    pub key: CacheKey,
    /// One for each output of the op; `None` for an output that is not kept.
    pub outputs: Vec<Option<Snapshot>>,
    /// The caller's notes.
    pub meta: String,
    /// Keeps the outputs.
    pub pin: Pin,
}

impl Store {
    /// Returns the record of a key or alias, if all its layers are there still.
    ///
    /// # Errors
    /// The database fails.
    pub fn record(self: &Arc<Self>, key: &CacheKey) -> Result<Option<Record>, StoreError> {
        let mut pins = lock(&self.pins);
        let row = {
            let db = self.database();
            db.prepare_cached(
                "SELECT id, key, outputs, meta FROM records WHERE key = ?1
                 UNION ALL SELECT r.id, r.key, r.outputs, r.meta FROM aliases a JOIN records r ON r.id = a.record WHERE a.key = ?1
                 LIMIT 1",
            )?
            .query_row([key.as_bytes()], |row| {
                Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?, row.get::<_, String>(2)?, row.get::<_, String>(3)?))
            })
            .optional()?
        };
        let Some((id, first_key, outputs, meta)) = row else { return Ok(None) };
        let outputs = outputs_from_text(&outputs)?;
        let mut layers: Vec<LayerId> = outputs.iter().flatten().flat_map(|s| s.layers().iter().copied()).collect();
        layers.sort_unstable();
        layers.dedup();
        for output in outputs.iter().flatten() {
            if self.missing_layer(output, &pins)?.is_some() || !self.has_directories(output, &pins) {
                self.database().execute("DELETE FROM records WHERE id = ?", [id])?;
                return Ok(None);
            }
        }
        self.touch(&layers);
        let pin = Pin::locked(self, &mut pins, layers);
        Ok(Some(Record { id: RecordId(id), key: Digest::from_bytes(first_key), outputs, meta, pin }))
    }

    /// Tells whether the layers' directories are there (somebody may have deleted one). Those of pinned layers were looked at
    /// when they were pinned.
    pub(crate) fn has_directories(&self, snapshot: &Snapshot, pins: &HashMap<LayerId, usize>) -> bool {
        snapshot.layers().iter().all(|id| pins.contains_key(id) || self.layer_fs(*id).is_dir())
    }

    /// Stores the outputs of a key. A record that the key has already is replaced.
    ///
    /// # Errors
    /// A layer is gone, or the database fails.
    pub fn put_record(
        self: &Arc<Self>,
        key: &CacheKey,
        outputs: &[Option<Snapshot>],
        meta: &str,
    ) -> Result<Record, StoreError> {
        let mut pins = lock(&self.pins);
        let mut layers: Vec<LayerId> = outputs.iter().flatten().flat_map(|s| s.layers().iter().copied()).collect();
        layers.sort_unstable();
        layers.dedup();
        for output in outputs.iter().flatten() {
            if let Some(gone) = self.missing_layer(output, &pins)? {
                return Err(StoreError::LayerGone(gone.0));
            }
        }
        let id = {
            let db = self.database();
            let transaction = db.unchecked_transaction()?;
            let old: Option<i64> = transaction
                .prepare_cached("SELECT id FROM records WHERE key = ?")?
                .query_row([key.as_bytes()], |row| row.get(0))
                .optional()?;
            if let Some(old) = old {
                transaction.prepare_cached("DELETE FROM aliases WHERE record = ?")?.execute([old])?;
                transaction.prepare_cached("DELETE FROM records WHERE id = ?")?.execute([old])?;
            }
            transaction
                .prepare_cached("INSERT INTO records(key, outputs, meta, created) VALUES(?1, ?2, ?3, ?4)")?
                .execute(params![key.as_bytes(), outputs_to_text(outputs), meta, now_ms()])?;
            let id = transaction.last_insert_rowid();
            transaction.commit()?;
            id
        };
        let pin = Pin::locked(self, &mut pins, layers);
        Ok(Record { id: RecordId(id), key: *key, outputs: outputs.to_vec(), meta: meta.to_owned(), pin })
    }

    /// Lets another key lead to a record, unless it leads to one already.
    ///
    /// # Errors
    /// The database fails.
    pub fn alias(&self, key: &CacheKey, record: RecordId) -> Result<(), StoreError> {
        self.database()
            .prepare_cached(
                "INSERT OR REPLACE INTO aliases SELECT ?1, id FROM records
                 WHERE id = ?2 AND NOT EXISTS (SELECT 1 FROM records WHERE key = ?1)",
            )?
            .execute(params![key.as_bytes(), record.0])?;
        Ok(())
    }

    /// Lets another key lead to a record, whatever it led to before: a newer result takes an older one's place.
    ///
    /// # Errors
    /// The database fails.
    pub fn redirect(&self, key: &CacheKey, record: RecordId) -> Result<(), StoreError> {
        {
            let db = self.database();
            let transaction = db.unchecked_transaction()?;
            transaction
                .prepare_cached(
                    "DELETE FROM aliases WHERE record IN (SELECT id FROM records WHERE key = ?1 AND id <> ?2)",
                )?
                .execute(params![key.as_bytes(), record.0])?;
            transaction
                .prepare_cached("DELETE FROM records WHERE key = ?1 AND id <> ?2")?
                .execute(params![key.as_bytes(), record.0])?;
            transaction.commit()?;
        }
        self.alias(key, record)
    }
}

fn outputs_to_text(outputs: &[Option<Snapshot>]) -> String {
    let texts: Vec<String> =
        outputs.iter().map(|o| o.as_ref().map_or_else(|| "-".to_owned(), Snapshot::to_text)).collect();
    texts.join(";")
}

pub(crate) fn outputs_from_text(text: &str) -> Result<Vec<Option<Snapshot>>, StoreError> {
    text.split(';').map(|t| if t == "-" { Ok(None) } else { Snapshot::from_text(t).map(Some) }).collect()
}
