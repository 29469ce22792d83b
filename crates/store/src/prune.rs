//! What uses the disk, and taking it back.

use crate::StoreError;
use crate::disk::{disk_usage, remove_later};
use crate::record::RecordType;
use crate::snapshot::{LayerId, Snapshot};
use crate::store::{Store, from_ms, lock, now_ms};
use bud_image::Digest;
use rusqlite::{Connection, params};
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Bytes kept aside on the disk, so that a prune can write its records when there is no other space left.
const BALLAST: u64 = 1 << 20;

/// How long a prune waits for what it removed to be gone: the space is wanted by who asked for it.
const REMOVAL_WAIT: Duration = Duration::from_secs(10);

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

/// What to remove.
#[derive(Clone, Debug, Default)]
pub struct PrunePolicy {
    /// Only these kinds; empty for all.
    pub record_types: Vec<RecordType>,
    /// Only what wasn't used for so long.
    pub keep_duration: Option<Duration>,
    /// So many bytes are left in any case.
    pub reserved: u64,
    /// Goes on until no more than this is used.
    pub max_used: Option<u64>,
    /// Goes on until so much is free.
    pub min_free: Option<u64>,
    /// Removes internal records and front ends as well.
    pub all: bool,
}

/// What a prune removed.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// The things.
    pub removed: Vec<Usage>,
    /// Their bytes.
    pub bytes: u64,
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

    fn cache_mount_usage(&self) -> Result<Vec<Usage>, StoreError> {
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
            usage.push(Usage {
                id: format!("cache:{dir}"),
                parents: Vec::new(),
                size,
                description: format!("cached mount {id}"),
                record_type: RecordType::CacheMount,
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
            let layers = of_layers.get(&digest).map(Vec::as_slice).unwrap_or_default();
            let held = |by: &HashSet<LayerId>| layers.iter().any(|l| by.contains(&LayerId(*l)));
            Ok(Usage {
                id: format!("blob:{digest}"),
                parents: layers.iter().map(|l| format!("layer:{l}")).collect(),
                size: r.get::<_, i64>(1)?.unsigned_abs(),
                description: if layers.is_empty() { "blob".into() } else { "layer as a blob".into() },
                record_type: RecordType::Internal,
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

    /// Removes what a policy names, least recently used first, children before parents; never what a running build or a
    /// named image holds.
    ///
    /// # Errors
    /// The database fails.
    pub fn prune(self: &Arc<Self>, policy: &PrunePolicy) -> Result<Pruned, StoreError> {
        self.prune_where(policy, &|_| true)
    }

    /// As [`Self::prune`], but only what the caller accepts.
    ///
    /// # Errors
    /// The database fails.
    pub fn prune_where(
        self: &Arc<Self>,
        policy: &PrunePolicy,
        accepts: &dyn Fn(&Usage) -> bool,
    ) -> Result<Pruned, StoreError> {
        // On a full disk the records of what goes can't be written without it.
        self.drop_ballast();
        let pruned = self.prune_steps(policy, accepts);
        crate::disk::wait_for_removals(REMOVAL_WAIT);
        self.make_ballast();
        pruned
    }

    fn prune_steps(
        self: &Arc<Self>,
        policy: &PrunePolicy,
        accepts: &dyn Fn(&Usage) -> bool,
    ) -> Result<Pruned, StoreError> {
        let mut usage = self.usage()?;
        let mut used: u64 = usage.iter().map(|u| u.size).sum();
        let free = || rustix::fs::statvfs(self.root()).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        let mut free_now = free();
        let now = SystemTime::now();
        let limited = policy.max_used.is_some() || policy.min_free.is_some();
        let mut pruned = Pruned::default();
        // Layers keep what they stand on: each round removes the oldest of what nothing stands on.
        usage.sort_by_key(|u| (u.last_used, std::cmp::Reverse(u.created)));
        let chains = self.layer_chains()?;
        let mut stood_on: HashMap<LayerId, usize> = HashMap::new();
        for id in chains.values().flat_map(Snapshot::layers) {
            *stood_on.entry(*id).or_default() += 1;
        }
        let layer_of = |id: &str| id.strip_prefix("layer:").and_then(|n| n.parse().ok()).map(LayerId);
        loop {
            let chosen = usage.iter().position(|u| {
                let over =
                    policy.max_used.is_some_and(|max| used > max) || policy.min_free.is_some_and(|min| free_now < min);
                let kept_by_age =
                    policy.keep_duration.is_some_and(|keep| now.duration_since(u.last_used).unwrap_or_default() < keep);
                !u.in_use
                    && !u.shared
                    && accepts(u)
                    && layer_of(&u.id).is_none_or(|id| !stood_on.contains_key(&id))
                    && (policy.record_types.is_empty() || policy.record_types.contains(&u.record_type))
                    && !kept_by_age
                    && used.saturating_sub(u.size) >= policy.reserved.min(used)
                    && (!limited || over)
            });
            let Some(chosen) = chosen else { break };
            let gone = usage.remove(chosen);
            if self.remove_usage(&gone.id)? {
                for id in layer_of(&gone.id).and_then(|id| chains.get(&id)).map(Snapshot::layers).unwrap_or_default() {
                    if let Some(count) = stood_on.get_mut(id) {
                        *count -= 1;
                        if *count == 0 {
                            stood_on.remove(id);
                        }
                    }
                }
                used = used.saturating_sub(gone.size);
                free_now = free_now.saturating_add(gone.size);
                pruned.bytes += gone.size;
                pruned.removed.push(gone);
            }
        }
        Ok(pruned)
    }

    fn ballast(&self) -> std::path::PathBuf {
        self.root().join("ballast")
    }

    /// Sets space aside for the next prune, if there is some.
    pub(crate) fn make_ballast(&self) {
        let path = self.ballast();
        let file = std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path);
        let made = file.and_then(|file| {
            let none = rustix::fs::FallocateFlags::empty();
            rustix::fs::fallocate(file, none, 0, BALLAST).map_err(std::io::Error::from)
        });
        if made.is_err() {
            // Half of it helps nobody, and a prune that finds none tries without.
            self.drop_ballast();
        }
    }

    fn drop_ballast(&self) {
        // It may not be there.
        std::fs::remove_file(self.ballast()).ok();
    }

    /// Returns what each layer stands on.
    fn layer_chains(&self) -> Result<HashMap<LayerId, Snapshot>, StoreError> {
        let db = self.database();
        let mut statement = db.prepare_cached("SELECT id, parent FROM layers")?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get::<_, String>(1)?)))?;
        rows.map(|row| {
            row.map_err(StoreError::from).and_then(|(id, parent)| Ok((LayerId(id), Snapshot::from_text(&parent)?)))
        })
        .collect()
    }

    /// Removes one thing, if nobody took hold of it meanwhile.
    fn remove_usage(self: &Arc<Self>, id: &str) -> Result<bool, StoreError> {
        if let Some(layer) = id.strip_prefix("layer:").and_then(|n| n.parse().ok()) {
            return self.remove_layer(LayerId(layer));
        }
        if let Some(dir) = id.strip_prefix("cache:") {
            return self.remove_cache_mount(dir);
        }
        if let Some(digest) = id.strip_prefix("blob:").and_then(|d| d.parse().ok()) {
            let pins = lock(&self.blob_pins);
            if pins.contains_key(&digest) {
                return Ok(false);
            }
            self.blobs().forget(&digest)?;
            return Ok(true);
        }
        Ok(false)
    }

    /// Removes a layer with the records that need it. The row goes first: what has no row is rubbish.
    fn remove_layer(&self, id: LayerId) -> Result<bool, StoreError> {
        let pins = lock(&self.pins);
        if pins.contains_key(&id) {
            return Ok(false);
        }
        {
            let db = self.database();
            let transaction = db.unchecked_transaction()?;
            transaction.prepare_cached("DELETE FROM layers WHERE id = ?")?.execute([id.0])?;
            drop_records_of(&transaction, id)?;
            for table in ["layer_owners WHERE layer", "layer_blobs WHERE layer", "content WHERE top"] {
                transaction.prepare_cached(&format!("DELETE FROM {table} = ?"))?.execute([id.0])?;
            }
            transaction.commit()?;
        }
        self.drop_flats_of(id)?;
        drop(pins);
        remove_later(&self.layers_dir().join(id.0.to_string()));
        Ok(true)
    }
}

/// Removes the records whose outputs need a layer, and their aliases.
fn drop_records_of(db: &Connection, id: LayerId) -> Result<(), StoreError> {
    // Outputs are texts like "1,2,7;-;1,9": with separators made equal, a layer is found as ",7,".
    let pattern = format!("%,{},%", id.0);
    db.prepare_cached("DELETE FROM records WHERE ',' || replace(outputs, ';', ',') || ',' LIKE ?")?
        .execute([pattern])?;
    db.prepare_cached("DELETE FROM aliases WHERE record NOT IN (SELECT id FROM records)")?.execute([])?;
    Ok(())
}

/// Removes rows that speak of layers that the database doesn't have.
pub(crate) fn drop_dangling(db: &Connection) -> Result<(), StoreError> {
    let known: HashSet<i64> =
        db.prepare("SELECT id FROM layers")?.query_map([], |r| r.get(0))?.collect::<Result<_, _>>()?;
    let whole = |snapshot: &Snapshot| snapshot.layers().iter().all(|id| known.contains(&id.0));
    let layers: Vec<(i64, String)> = db
        .prepare("SELECT id, parent FROM layers")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (id, parent) in layers {
        if !Snapshot::from_text(&parent).is_ok_and(|p| whole(&p)) {
            db.execute("DELETE FROM layers WHERE id = ?", [id])?;
        }
    }
    let records: Vec<(i64, String)> = db
        .prepare("SELECT id, outputs FROM records")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (id, outputs) in records {
        let outputs = crate::record::outputs_from_text(&outputs);
        if !outputs.is_ok_and(|o| o.iter().flatten().all(&whole)) {
            db.execute("DELETE FROM records WHERE id = ?", [id])?;
        }
    }
    let images: Vec<(String, String)> = db
        .prepare("SELECT name, snapshot FROM images")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?)))?
        .collect::<Result<_, _>>()?;
    for (name, snapshot) in images {
        if !Snapshot::from_text(&snapshot).is_ok_and(|s| whole(&s)) {
            db.execute("DELETE FROM images WHERE name = ?", [name])?;
        }
    }
    db.execute_batch(
        "DELETE FROM aliases WHERE record NOT IN (SELECT id FROM records);
         DELETE FROM layer_owners WHERE layer NOT IN (SELECT id FROM layers);
         DELETE FROM layer_blobs WHERE layer NOT IN (SELECT id FROM layers);
         DELETE FROM flats;
         DELETE FROM content WHERE top NOT IN (SELECT id FROM layers);",
    )?;
    Ok(())
}

/// Removes what a killed daemon left: directories and files that the database doesn't know, made before this start.
pub(crate) fn clean(store: &Arc<Store>, reserved: i64) -> Result<(), StoreError> {
    let names = |dir: &Path| -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
        entries.flatten().filter_map(|e| e.file_name().into_string().ok()).collect()
    };
    let known = |query: &str, name: &dyn rusqlite::ToSql| -> Result<bool, StoreError> {
        Ok(store.database().prepare_cached(query)?.exists([name])?)
    };
    for name in names(&store.layers_dir()) {
        // Numbers above are drafts of this process.
        if let Ok(id) = name.parse::<i64>()
            && (id > reserved
                || known("SELECT 1 FROM layers WHERE id = ?1 UNION ALL SELECT 1 FROM flats WHERE id = ?1", &id)?)
        {
            let work = store.layers_dir().join(&name).join("work");
            if id <= reserved && work.exists() {
                remove_later(&work);
            }
            continue;
        }
        remove_later(&store.layers_dir().join(name));
    }
    for name in names(&store.cache_dir()) {
        if name.starts_with("removed-") {
            remove_later(&store.cache_dir().join(name));
        }
    }
    let own = format!("{}-", std::process::id());
    let new_blobs = store.root().join("blobs/new");
    for name in names(&new_blobs) {
        let path = new_blobs.join(&name);
        let old = std::fs::metadata(&path).and_then(|m| m.modified()).is_ok_and(|t| t < store_start());
        if !name.starts_with(&own) || old {
            // It may be gone already.
            let _gone = std::fs::remove_file(path);
        }
    }
    let blobs = store.root().join("blobs/sha256");
    for name in names(&blobs) {
        let Ok(digest) = format!("sha256:{name}").parse::<Digest>() else {
            remove_later(&blobs.join(name));
            continue;
        };
        let path = blobs.join(&name);
        let old = std::fs::metadata(&path).and_then(|m| m.modified()).is_ok_and(|t| t < store_start());
        if old && !known("SELECT 1 FROM blobs WHERE digest = ?", digest.as_bytes())? {
            let _gone = std::fs::remove_file(path);
        }
    }
    Ok(())
}

/// When this process first asked: files that are younger are its own.
fn store_start() -> SystemTime {
    static START: OnceLock<SystemTime> = OnceLock::new();
    *START.get_or_init(|| from_ms(now_ms()) - Duration::from_secs(60))
}
