//! Names for images: a snapshot and a text that is the caller's.

use crate::StoreError;
use crate::snapshot::{Pin, Snapshot};
use crate::store::{Store, from_ms, lock, now_ms};
use bud_image::Digest;
use rusqlite::{OptionalExtension, params};
use std::sync::Arc;
use std::time::SystemTime;

/// A named image.
#[derive(Clone, Debug)]
pub struct StoredImage {
    /// Its name.
    pub name: String,
    /// The caller's record of it (config, digests that are known), as text.
    pub data: String,
    /// Its file tree.
    pub snapshot: Snapshot,
    /// Blobs that are kept for it.
    pub blobs: Vec<Digest>,
    /// When the name was given last.
    pub updated: SystemTime,
}

impl Store {
    /// Gives a name to an image; what had the name before loses it.
    ///
    /// # Errors
    /// A layer is gone, or the database fails.
    pub fn put_image(
        self: &Arc<Self>,
        name: &str,
        data: &str,
        snapshot: &Snapshot,
        blobs: &[Digest],
    ) -> Result<(), StoreError> {
        let pins = lock(&self.pins);
        if let Some(gone) = self.missing_layer(snapshot, &pins)? {
            return Err(StoreError::LayerGone(gone.0));
        }
        let blobs: Vec<u8> = blobs.iter().flat_map(|d| *d.as_bytes()).collect();
        self.database()
            .prepare_cached("INSERT OR REPLACE INTO images VALUES(?1, ?2, ?3, ?4, ?5)")?
            .execute(params![name, data, snapshot.to_text(), blobs, now_ms()])?;
        drop(pins);
        Ok(())
    }

    /// Returns the image of a name, with a guard that keeps its layers.
    ///
    /// # Errors
    /// The database fails.
    pub fn image(self: &Arc<Self>, name: &str) -> Result<Option<(StoredImage, Pin)>, StoreError> {
        let mut pins = lock(&self.pins);
        let image = self
            .database()
            .prepare_cached("SELECT name, data, snapshot, blobs, updated FROM images WHERE name = ?")?
            .query_row([name], read_image)
            .optional()?
            .transpose()?;
        let Some(image) = image else { return Ok(None) };
        if self.missing_layer(&image.snapshot, &pins)?.is_some() || !self.has_directories(&image.snapshot, &pins) {
            self.database().execute("DELETE FROM images WHERE name = ?", [name])?;
            return Ok(None);
        }
        self.touch(image.snapshot.layers());
        let pin = Pin::locked(self, &mut pins, image.snapshot.layers().to_vec());
        Ok(Some((image, pin)))
    }

    /// Returns all named images, by name.
    ///
    /// # Errors
    /// The database fails.
    pub fn images(&self) -> Result<Vec<StoredImage>, StoreError> {
        let db = self.database();
        let mut statement =
            db.prepare_cached("SELECT name, data, snapshot, blobs, updated FROM images ORDER BY name")?;
        statement.query_map([], read_image)?.map(|row| row?).collect()
    }

    /// Takes a name away; tells whether it was there. The layers go with the next prune, if nothing else needs them.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove_image(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.database().prepare_cached("DELETE FROM images WHERE name = ?")?.execute([name])? > 0)
    }
}

fn read_image(row: &rusqlite::Row<'_>) -> Result<Result<StoredImage, StoreError>, rusqlite::Error> {
    let (name, data, snapshot, blobs): (String, String, String, Vec<u8>) =
        (row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?);
    let updated = from_ms(row.get(4)?);
    Ok(Snapshot::from_text(&snapshot).map(|snapshot| StoredImage {
        name,
        data,
        snapshot,
        blobs: blobs.as_chunks::<32>().0.iter().map(|bytes| Digest::from_bytes(*bytes)).collect(),
        updated,
    }))
}
