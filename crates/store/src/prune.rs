//! Taking disk space back.

use crate::StoreError;
use crate::disk::remove_later;
use crate::record::RecordType;
use crate::snapshot::{LayerId, Snapshot};
use crate::store::{Store, from_ms, lock, now_ms};
use crate::usage::Usage;
use bud_image::Digest;
use rusqlite::Connection;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// Bytes kept aside on the disk, so that a prune can write its records when there is no other space left.
const BALLAST: u64 = 1 << 20;

/// How long a prune waits for what it removed to be gone: the space is wanted by who asked for it.
const REMOVAL_WAIT: Duration = Duration::from_secs(10);

/// What to remove. With one of the three limits, things go one after the other until it is kept; without, all that may go does.
#[derive(Clone, Debug, Default)]
pub struct PrunePolicy {
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

impl PrunePolicy {
    /// Returns down to how many bytes it removes; none: everything that may go.
    fn goal(&self, used: u64, free: u64) -> Option<u64> {
        if self.max_used.is_none() && self.min_free.is_none() && self.reserved == 0 {
            return None;
        }
        let missing = self.min_free.unwrap_or(0).saturating_sub(free);
        let for_free = match self.min_free {
            Some(_) if missing > 0 => Some(used.saturating_sub(missing)),
            // Enough is free: nothing has to go if that is all that is asked for.
            Some(_) if self.max_used.is_none() => Some(used),
            _ => None,
        };
        let goal = self.max_used.into_iter().chain(for_free).min().unwrap_or(0);
        Some(goal.max(self.reserved))
    }

    /// Tells whether something may go, all limits aside.
    fn takes(&self, usage: &Usage, now: SystemTime) -> bool {
        let old_enough = |keep: Duration| now.duration_since(usage.last_used).unwrap_or_default() >= keep;
        !usage.in_use
            && !usage.shared
            && (self.all || !matches!(usage.record_type, RecordType::Internal | RecordType::Frontend))
            && self.keep_duration.is_none_or(old_enough)
    }
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
        let pruned = self.prune_steps(policy, accepts, false);
        crate::disk::wait_for_removals(REMOVAL_WAIT);
        self.make_ballast();
        pruned
    }

    /// Returns what [`Self::prune_where`] would remove now, and removes nothing.
    ///
    /// # Errors
    /// The database fails.
    pub fn plan_prune(
        self: &Arc<Self>,
        policy: &PrunePolicy,
        accepts: &dyn Fn(&Usage) -> bool,
    ) -> Result<Pruned, StoreError> {
        self.prune_steps(policy, accepts, true)
    }

    fn prune_steps(
        self: &Arc<Self>,
        policy: &PrunePolicy,
        accepts: &dyn Fn(&Usage) -> bool,
        only_plan: bool,
    ) -> Result<Pruned, StoreError> {
        let usage = self.usage()?;
        // What named images hold is theirs, not the cache's.
        let mut used: u64 = usage.iter().filter(|u| !u.shared).map(|u| u.size).sum();
        let free = rustix::fs::statvfs(self.root()).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
        let goal = policy.goal(used, free);
        let now = SystemTime::now();
        let mut candidates: Vec<Option<Usage>> =
            usage.into_iter().filter(|u| policy.takes(u, now) && accepts(u)).map(Some).collect();
        let order = order_of(&candidates);
        // Layers keep what they stand on: what nothing stands on any more becomes ready.
        let chains = self.layer_chains()?;
        let mut stood_on: HashMap<LayerId, usize> = HashMap::new();
        for id in chains.values().flat_map(Snapshot::layers) {
            *stood_on.entry(*id).or_default() += 1;
        }
        let layer_of = |id: &str| id.strip_prefix("layer:").and_then(|n| n.parse().ok()).map(LayerId);
        let mut ready = BinaryHeap::new();
        let mut waiting: HashMap<LayerId, usize> = HashMap::new();
        for (n, candidate) in candidates.iter().enumerate() {
            match candidate.as_ref().and_then(|u| layer_of(&u.id)) {
                Some(id) if stood_on.contains_key(&id) => drop(waiting.insert(id, n)),
                _ => ready.push(std::cmp::Reverse((order[n], n))),
            }
        }
        let mut pruned = Pruned::default();
        while goal.is_none_or(|goal| used > goal) {
            let Some(std::cmp::Reverse((_, n))) = ready.pop() else { break };
            let Some(gone) = candidates[n].take() else { continue };
            if !only_plan && !self.remove_usage(&gone.id)? {
                continue;
            }
            for id in layer_of(&gone.id).and_then(|id| chains.get(&id)).map(Snapshot::layers).unwrap_or_default() {
                let Some(count) = stood_on.get_mut(id) else { continue };
                *count -= 1;
                if *count == 0 {
                    stood_on.remove(id);
                    ready.extend(waiting.remove(id).map(|n| std::cmp::Reverse((order[n], n))));
                }
            }
            used = used.saturating_sub(gone.size);
            pruned.bytes += gone.size;
            pruned.removed.push(gone);
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

/// Returns in which order things go: seldom and long not used ones first, both counting the same, each by its place among all.
fn order_of(candidates: &[Option<Usage>]) -> Vec<u64> {
    /// Places are scaled to this.
    const SCALE: u64 = 1 << 32;
    let places = |value: &dyn Fn(&Usage) -> u128| {
        let values: Vec<u128> = candidates.iter().map(|u| u.as_ref().map_or(0, value)).collect();
        let mut distinct = values.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let step = SCALE / (distinct.len() as u64).max(1);
        values.iter().map(|v| distinct.partition_point(|d| d < v) as u64 * step).collect::<Vec<_>>()
    };
    let since = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_nanos();
    let by_time = places(&|u| since(u.last_used));
    let by_count = places(&|u| u128::from(u.usage_count));
    by_time.into_iter().zip(by_count).map(|(a, b)| a + b).collect()
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
