//! What uses the disk: layers, blobs and cache mounts with their real sizes.

use crate::StoreError;
use crate::disk::disk_usage;
use crate::record::RecordType;
use crate::snapshot::{LayerId, Snapshot};
use crate::store::{Store, from_ms, lock};
use bud_image::Digest;
use rusqlite::params;
use std::collections::{HashMap, HashSet};
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::time::SystemTime;

/// One thing that takes space.
#[derive(Clone, Debug)]
pub struct Usage {
    /// Its name: `layer:7`, `cache:…`, `blob:sha256:…`.
    pub id: String,
    /// What it stands on.
    pub parents: Vec<String>,
    /// Real bytes on disk.
    pub size: u64,
    /// For people.
    pub description: String,
    /// Its kind.
    pub record_type: RecordType,
    /// A running build holds it.
    pub in_use: bool,
    /// A named image holds it; it isn't pruned.
    pub shared: bool,
    /// It changes (cache mounts).
    pub mutable: bool,
    /// When it was made.
    pub created: SystemTime,
    /// When it was used last.
    pub last_used: SystemTime,
    /// How often.
    pub usage_count: u64,
}

impl Store {
    /// Lists what takes space. Sizes that aren't known yet are found out now.
    ///
    /// # Errors
    /// The database fails.
    pub fn usage(self: &Arc<Self>) -> Result<Vec<Usage>, StoreError> {
        self.flush_touched()?;
        let images = self.images()?;
        let shared: HashSet<LayerId> = images.iter().flat_map(|i| i.snapshot.layers().iter().copied()).collect();
        let shared_blobs: HashSet<Digest> = images.iter().flat_map(|i| i.blobs.iter().copied()).collect();
        let pinned: HashSet<LayerId> = lock(&self.pins).keys().copied().collect();
        let pinned_blobs: HashSet<Digest> = lock(&self.blob_pins).keys().copied().collect();
        let mut usage = Vec::new();
        usage.extend(self.layer_usage(&shared, &pinned)?);
        usage.extend(self.cache_mount_usage()?);
        usage.extend(self.blob_usage(&shared, &pinned, &shared_blobs, &pinned_blobs)?);
        Ok(usage)
    }

    fn layer_usage(&self, shared: &HashSet<LayerId>, pinned: &HashSet<LayerId>) -> Result<Vec<Usage>, StoreError> {
        type Row = (i64, String, i64, i64, i64, Option<i64>, String, String);
        let rows: Vec<Row> = {
            let db = self.database();
            let mut statement = db.prepare_cached(
                "SELECT id, parent, created, last_used, usage_count, size, description, record_type FROM layers ORDER BY seq",
            )?;
            let rows = statement.query_map([], |r| {
                Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?, r.get(6)?, r.get(7)?))
            })?;
            rows.collect::<Result<_, _>>()?
        };
        let mut measured = Vec::new();
        let mut usage = Vec::with_capacity(rows.len());
        for (id, parent, created, last_used, count, size, description, record_type) in rows {
            let size = match size {
                Some(size) => size.unsigned_abs(),
                None => {
                    let size = disk_usage(&self.layer_fs(LayerId(id)));
                    measured.push((id, size));
                    size
                }
            };
            let parent = Snapshot::from_text(&parent)?.top();
            usage.push(Usage {
                id: format!("layer:{id}"),
                parents: parent.map(|p| format!("layer:{}", p.0)).into_iter().collect(),
                size,
                description,
                record_type: RecordType::from_name(&record_type).unwrap_or_default(),
                in_use: pinned.contains(&LayerId(id)),
                shared: shared.contains(&LayerId(id)),
                mutable: false,
                created: from_ms(created),
                last_used: from_ms(last_used),
                usage_count: count.unsigned_abs(),
            });
        }
        if !measured.is_empty() {
            let db = self.database();
            let transaction = db.unchecked_transaction()?;
            for (id, size) in measured {
                let size = i64::try_from(size).unwrap_or(i64::MAX);
                transaction.prepare_cached("UPDATE layers SET size = ?2 WHERE id = ?1")?.execute([id, size])?;
            }
            transaction.commit()?;
        }
        Ok(usage)
    }

    pub(crate) fn cache_mount_usage(&self) -> Result<Vec<Usage>, StoreError> {
        type Row = (String, String, i64, i64, i64, Option<i64>);
        let rows: Vec<Row> = {
            let db = self.database();
            let mut statement = db.prepare_cached(
                "SELECT dir, id, created, last_used, usage_count, size FROM cache_mounts ORDER BY dir",
            )?;
            let rows =
                statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?, r.get(3)?, r.get(4)?, r.get(5)?)))?;
            rows.collect::<Result<_, _>>()?
        };
        let mut usage = Vec::with_capacity(rows.len());
        for (dir, id, created, last_used, count, size) in rows {
            let in_use = self.mounts.in_use(&dir);
            let size = match size {
                Some(size) => size.unsigned_abs(),
                None => {
                    let size = disk_usage(&self.cache_dir().join(&dir));
                    if !in_use {
                        let known = i64::try_from(size).unwrap_or(i64::MAX);
                        self.database()
                            .prepare_cached("UPDATE cache_mounts SET size = ?2 WHERE dir = ?1")?
                            .execute(params![dir, known])?;
                    }
                    size
                }
            };
            let (description, record_type) = crate::cachemount::describe(&id);
            usage.push(Usage {
                id: format!("cache:{dir}"),
                parents: Vec::new(),
                size,
                description,
                record_type,
                in_use,
                shared: false,
                mutable: true,
                created: from_ms(created),
                last_used: from_ms(last_used),
                usage_count: count.unsigned_abs(),
            });
        }
        Ok(usage)
    }

    fn blob_usage(
        &self,
        shared: &HashSet<LayerId>,
        pinned: &HashSet<LayerId>,
        shared_blobs: &HashSet<Digest>,
        pinned_blobs: &HashSet<Digest>,
    ) -> Result<Vec<Usage>, StoreError> {
        let db = self.database();
        let mut of_layers: HashMap<Digest, Vec<i64>> = HashMap::new();
        let mut statement = db.prepare_cached("SELECT digest, layer FROM layer_blobs")?;
        for row in statement.query_map([], |r| Ok((Digest::from_bytes(r.get(0)?), r.get(1)?)))? {
            let (digest, layer) = row?;
            of_layers.entry(digest).or_default().push(layer);
        }
        let mut statement = db.prepare_cached("SELECT digest, size, created, last_used FROM blobs ORDER BY seq")?;
        let rows = statement.query_map([], |r| {
            let digest = Digest::from_bytes(r.get(0)?);
            let said = r.get::<_, i64>(1)?.unsigned_abs();
            let size = std::fs::symlink_metadata(self.blobs().path(&digest)).map_or(said, |meta| meta.blocks() * 512);
            let layers = of_layers.get(&digest).map(Vec::as_slice).unwrap_or_default();
            let held = |by: &HashSet<LayerId>| layers.iter().any(|l| by.contains(&LayerId(*l)));
            Ok(Usage {
                id: format!("blob:{digest}"),
                parents: layers.iter().map(|l| format!("layer:{l}")).collect(),
                size,
                description: if layers.is_empty() { "blob".into() } else { "layer as a blob".into() },
                // A layer in another form, or what an image consists of: data of the cache as the layers are.
                record_type: RecordType::Regular,
                in_use: pinned_blobs.contains(&digest) || held(pinned),
                shared: shared_blobs.contains(&digest) || held(shared),
                mutable: false,
                created: from_ms(r.get(2)?),
                last_used: from_ms(r.get(3)?),
                usage_count: 1,
            })
        })?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}
