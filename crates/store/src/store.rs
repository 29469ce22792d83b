//! The store itself: opening it, its database, its background work.

use crate::StoreError;
use crate::blob::BlobStore;
use crate::snapshot::LayerId;
use rusqlite::{Connection, OptionalExtension, params};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The format of the database that this program writes and reads.
const FORMAT: i64 = 2;
/// So many layer numbers are reserved at once, so that numbers of drafts that a killed daemon left are never used again.
const RESERVED_IDS: i64 = 1000;

const SCHEMA: &str = "
CREATE TABLE meta(key TEXT PRIMARY KEY, value) WITHOUT ROWID;
CREATE TABLE layers(
    seq INTEGER PRIMARY KEY AUTOINCREMENT, id INTEGER NOT NULL UNIQUE, parent BLOB NOT NULL, continues INTEGER NOT NULL,
    created INTEGER NOT NULL, last_used INTEGER NOT NULL, usage_count INTEGER NOT NULL, size INTEGER,
    description TEXT NOT NULL, record_type TEXT NOT NULL);
CREATE TABLE layer_owners(layer INTEGER NOT NULL, path BLOB NOT NULL, uid INTEGER NOT NULL, gid INTEGER NOT NULL,
    PRIMARY KEY(layer, path)) WITHOUT ROWID;
CREATE TABLE layer_blobs(layer INTEGER NOT NULL, compression TEXT NOT NULL, media_type TEXT NOT NULL, digest BLOB NOT NULL,
    size INTEGER NOT NULL, diff_id BLOB NOT NULL, PRIMARY KEY(layer, compression)) WITHOUT ROWID;
CREATE TABLE blobs(seq INTEGER PRIMARY KEY AUTOINCREMENT, digest BLOB NOT NULL UNIQUE, size INTEGER NOT NULL,
    created INTEGER NOT NULL, last_used INTEGER NOT NULL);
CREATE TABLE records(id INTEGER PRIMARY KEY AUTOINCREMENT, key BLOB NOT NULL UNIQUE, outputs TEXT NOT NULL, meta TEXT NOT NULL,
    created INTEGER NOT NULL);
CREATE TABLE aliases(key BLOB PRIMARY KEY, record INTEGER NOT NULL) WITHOUT ROWID;
CREATE INDEX aliases_by_record ON aliases(record);
CREATE TABLE file_index(root TEXT PRIMARY KEY, data BLOB NOT NULL, last_used INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE content(key BLOB PRIMARY KEY, top INTEGER NOT NULL, digest BLOB NOT NULL) WITHOUT ROWID;
CREATE INDEX content_by_layer ON content(top);
CREATE TABLE images(name TEXT PRIMARY KEY, data TEXT NOT NULL, snapshot TEXT NOT NULL, blobs BLOB NOT NULL,
    updated INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE tags(name TEXT PRIMARY KEY, value TEXT NOT NULL, time INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE cache_mounts(dir TEXT PRIMARY KEY, id TEXT NOT NULL, created INTEGER NOT NULL, last_used INTEGER NOT NULL,
    usage_count INTEGER NOT NULL, size INTEGER) WITHOUT ROWID;
CREATE TABLE flats(chain TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE builds(ref TEXT PRIMARY KEY, data TEXT NOT NULL, created INTEGER NOT NULL) WITHOUT ROWID;
";

/// What a database of an older format lacks.
const UPGRADE: &str = "CREATE TABLE IF NOT EXISTS flats(chain TEXT PRIMARY KEY, id INTEGER NOT NULL) WITHOUT ROWID;";

/// Says how a store is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// So many bytes stay free on the file system of the state directory.
    pub reserve: u64,
    /// Removes leftovers in the background at the start, and syncs now and then.
    pub upkeep: bool,
    /// Mounts no overlays, as on a machine that refuses them: trees are directories of hard links, and a step that runs a
    /// command gets a copy, which takes time for each step.
    pub native: bool,
    /// Copies nothing where overlays are refused: that is an error then.
    pub require_overlay: bool,
    /// So many directories are mounted one over another before runs of small layers are merged.
    pub direct: usize,
    /// So many layers are merged to one, if they are small.
    pub window: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { reserve: 64 << 20, upkeep: true, native: false, require_overlay: false, direct: 32, window: 16 }
    }
}

/// The state directory with all that is in it.
///
/// One process has it open at a time; the lock is its owner's.
pub struct Store {
    root: PathBuf,
    options: Options,
    database: Mutex<Connection>,
    warnings: Vec<String>,
    next_id: Mutex<IdRange>,
    blobs: BlobStore,
    /// How many guards hold each layer. Taken before the database's lock where both are.
    pub(crate) pins: Mutex<HashMap<LayerId, usize>>,
    pub(crate) blob_pins: Mutex<HashMap<bud_image::Digest, usize>>,
    pub(crate) mounts: crate::cachemount::Mounts,
    pub(crate) trees: crate::tree::TreeCache,
    pub(crate) flats: crate::flatten::Flats,
    pub(crate) indexes: crate::fileindex::Indexes,
    touched: Mutex<HashMap<LayerId, u32>>,
    synced_changes: AtomicI64,
    overlay_refused: AtomicBool,
    refusal: Mutex<Option<String>>,
}

struct IdRange {
    next: i64,
    end: i64,
}

impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("root", &self.root).finish_non_exhaustive()
    }
}

/// Locks, going on after another thread's panic: what the locks guard is valid between any two statements.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns now in milliseconds since 1970; a clock before that counts as 1970.
pub(crate) fn now_ms() -> i64 {
    to_ms(SystemTime::now())
}

pub(crate) fn to_ms(time: SystemTime) -> i64 {
    time.duration_since(UNIX_EPOCH).map_or(0, |d| i64::try_from(d.as_millis()).unwrap_or(i64::MAX))
}

pub(crate) fn from_ms(ms: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_millis(u64::try_from(ms).unwrap_or(0).min(1 << 53))
}

impl Store {
    /// Opens the state in a directory, making what is missing.
    ///
    /// A damaged database is set aside and a fresh one made ([`Store::warnings`] tells).
    ///
    /// # Errors
    /// The directory can't be used, or its database is of a newer version.
    pub fn open(root: &Path, options: Options) -> Result<Arc<Self>, StoreError> {
        use std::os::unix::fs::DirBuilderExt;
        for dir in ["", "blobs/sha256", "blobs/new", "layers", "cache", "empty"] {
            let path = root.join(dir);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(if dir == "empty" { 0o755 } else { 0o700 })
                .create(&path)
                .map_err(StoreError::io("create", path))?;
        }
        check_root(root)?;
        let (connection, warnings) = open_database(&root.join("state.db"))?;
        let reserved: i64 = match meta(&connection, "reserved_ids")? {
            Some(reserved) => reserved,
            // A fresh database beside layers of one that was set aside.
            None => largest_layer(&root.join("layers")),
        };
        let store = Arc::new(Self {
            root: root.to_owned(),
            database: Mutex::new(connection),
            warnings,
            next_id: Mutex::new(IdRange { next: reserved + 1, end: reserved }),
            blobs: BlobStore::new(root),
            pins: Mutex::default(),
            blob_pins: Mutex::default(),
            mounts: crate::cachemount::Mounts::default(),
            trees: crate::tree::TreeCache::default(),
            flats: crate::flatten::Flats::default(),
            indexes: crate::fileindex::Indexes::default(),
            touched: Mutex::default(),
            synced_changes: AtomicI64::new(0),
            overlay_refused: AtomicBool::new(false),
            refusal: Mutex::default(),
            options,
        });
        store.blobs.attach(&store);
        store.distrust_unsynced()?;
        if store.options.upkeep {
            upkeep_in_background(&store, reserved);
        }
        Ok(store)
    }

    /// Returns the state directory.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns what the user should hear about the state that was found, one line each.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// Returns the blobs.
    #[must_use]
    pub fn blobs(&self) -> &BlobStore {
        &self.blobs
    }

    /// Tells whether trees are made without overlays.
    #[must_use]
    pub fn is_native(&self) -> bool {
        self.options.native || self.overlay_refused.load(Ordering::Relaxed)
    }

    /// Returns how many directories are mounted as they are, and how many layers are merged to one.
    pub(crate) fn stacking(&self) -> (usize, usize) {
        (self.options.direct, self.options.window)
    }

    pub(crate) fn requires_overlay(&self) -> bool {
        self.options.require_overlay
    }

    /// Notes that this machine refuses overlays.
    pub(crate) fn refuse_overlay(&self, error: &str) {
        if !self.overlay_refused.swap(true, Ordering::Relaxed) {
            let said = format!(
                "overlays can't be mounted here ({error}): layers are copied instead, so each RUN takes the time and the \
                 space of a copy of its image; {}",
                crate::native::remedy()
            );
            tracing::warn!("{said}");
            lock(&self.refusal).get_or_insert(said);
        }
    }

    /// Returns what to tell the user about refused overlays, if they were.
    #[must_use]
    pub fn overlay_refusal(&self) -> Option<String> {
        lock(&self.refusal).clone()
    }

    /// Tells whether overlays worked since the machine started, for a process with these IDs.
    pub(crate) fn remembers_overlay(&self) -> bool {
        let known: Result<Option<String>, _> = meta(&self.database(), "overlay_worked");
        known.is_ok_and(|known| known.is_some_and(|known| known == overlay_mark()))
    }

    pub(crate) fn remember_overlay(&self) -> Result<(), StoreError> {
        Ok(set_meta(&self.database(), "overlay_worked", overlay_mark())?)
    }

    /// Tells whether layers may have links where overlays have whiteouts.
    pub(crate) fn has_links_for_whiteouts(&self) -> Result<bool, StoreError> {
        Ok(meta(&self.database(), "whiteouts_are_links")?.unwrap_or(false))
    }

    pub(crate) fn note_links_for_whiteouts(&self) -> Result<(), StoreError> {
        Ok(set_meta(&self.database(), "whiteouts_are_links", true)?)
    }

    pub(crate) fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// Returns an empty read-only directory.
    pub(crate) fn empty_dir(&self) -> PathBuf {
        self.root.join("empty")
    }

    pub(crate) fn database(&self) -> MutexGuard<'_, Connection> {
        lock(&self.database)
    }

    /// Gives out a number that no layer directory has or had.
    pub(crate) fn new_layer_id(&self) -> Result<LayerId, StoreError> {
        let mut range = lock(&self.next_id);
        if range.next > range.end {
            let end = range.end + RESERVED_IDS;
            set_meta(&self.database(), "reserved_ids", end)?;
            range.end = end;
        }
        let id = range.next;
        range.next += 1;
        Ok(LayerId(id))
    }

    /// Fails when the file system has less free space than the reserve.
    ///
    /// # Errors
    /// [`StoreError::NoSpace`].
    pub fn check_space(&self) -> Result<(), StoreError> {
        let free_now = || -> Result<u64, StoreError> {
            let stat = rustix::fs::statvfs(&self.root).map_err(StoreError::io("look at", &self.root))?;
            Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
        };
        let mut free = free_now()?;
        if free < self.options.reserve {
            // What failed just before may be on its way out.
            crate::disk::wait_for_removals(Duration::from_secs(5));
            free = free_now()?;
        }
        if free < self.options.reserve {
            return Err(StoreError::NoSpace { path: self.root.clone(), free, wanted: self.options.reserve });
        }
        Ok(())
    }

    /// Writes all that was made so far to the disk, so that it is there after a power cut too.
    ///
    /// Nothing else syncs: after a restart of the machine, what was not covered by a call of this is thrown away.
    ///
    /// # Errors
    /// The disk fails.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.flush_touched()?;
        let (layers, blobs) = {
            let db = self.database();
            let last = |table: &str| -> Result<i64, rusqlite::Error> {
                db.query_row(&format!("SELECT COALESCE(MAX(seq), 0) FROM {table}"), [], |row| row.get(0))
            };
            (last("layers")?, last("blobs")?)
        };
        let dir = std::fs::File::open(&self.root).map_err(StoreError::io("open", &self.root))?;
        rustix::fs::syncfs(&dir).map_err(StoreError::io("sync", &self.root))?;
        let db = self.database();
        set_meta(&db, "synced_layers", layers)?;
        set_meta(&db, "synced_blobs", blobs)?;
        db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))?;
        self.synced_changes.store(changes(&db)?, Ordering::Relaxed);
        Ok(())
    }

    /// Syncs if the database was written since the last time.
    fn sync_changes(&self) -> Result<(), StoreError> {
        let changes = changes(&self.database())?;
        if changes == self.synced_changes.load(Ordering::Relaxed) { Ok(()) } else { self.sync() }
    }

    /// After a restart of the machine, drops what was not yet synced when it went down.
    fn distrust_unsynced(&self) -> Result<(), StoreError> {
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let db = self.database();
        let before: Option<String> = meta(&db, "boot_id")?;
        if before.as_deref() == Some(boot.trim()) {
            return Ok(());
        }
        let transaction = db.unchecked_transaction()?;
        if before.is_some() {
            let synced = |key| meta::<i64>(&db, key).map(|v| v.unwrap_or(0));
            transaction.execute("DELETE FROM layers WHERE seq > ?", [synced("synced_layers")?])?;
            transaction.execute("DELETE FROM blobs WHERE seq > ?", [synced("synced_blobs")?])?;
            transaction.execute("DELETE FROM cache_mounts", [])?;
            crate::prune::drop_dangling(&transaction)?;
        }
        set_meta(&transaction, "boot_id", boot.trim())?;
        transaction.commit()?;
        Ok(())
    }

    /// Notes that layers were used.
    pub(crate) fn touch(&self, layers: &[LayerId]) {
        let mut touched = lock(&self.touched);
        for id in layers {
            *touched.entry(*id).or_insert(0) += 1;
        }
    }

    /// Writes the notes about use to the database.
    pub(crate) fn flush_touched(&self) -> Result<(), StoreError> {
        let touched = std::mem::take(&mut *lock(&self.touched));
        if touched.is_empty() {
            return Ok(());
        }
        let now = now_ms();
        let db = self.database();
        let transaction = db.unchecked_transaction()?;
        {
            let mut update = transaction.prepare_cached(
                "UPDATE layers SET last_used = MAX(last_used, ?2), usage_count = usage_count + ?3 WHERE id = ?1",
            )?;
            for (id, count) in touched {
                update.execute(params![id.0, now, count])?;
            }
        }
        transaction.commit()?;
        Ok(())
    }

    /// Remembers what a tag stood for just now.
    ///
    /// # Errors
    /// The database fails.
    pub fn remember_tag(&self, name: &str, value: &str) -> Result<(), StoreError> {
        self.database().prepare_cached("INSERT OR REPLACE INTO tags VALUES(?1, ?2, ?3)")?.execute(params![
            name,
            value,
            now_ms()
        ])?;
        Ok(())
    }

    /// Returns what a tag stood for when it was last remembered, and when that was.
    ///
    /// # Errors
    /// The database fails.
    pub fn remembered_tag(&self, name: &str) -> Result<Option<(String, SystemTime)>, StoreError> {
        Ok(self
            .database()
            .prepare_cached("SELECT value, time FROM tags WHERE name = ?")?
            .query_row([name], |row| Ok((row.get(0)?, from_ms(row.get(1)?))))
            .optional()?)
    }

    /// Forgets a remembered tag.
    ///
    /// # Errors
    /// The database fails.
    pub fn forget_tag(&self, name: &str) -> Result<(), StoreError> {
        self.database().prepare_cached("DELETE FROM tags WHERE name = ?")?.execute([name])?;
        Ok(())
    }

    /// Stores the record of a build under its reference, replacing an earlier one; the text is the caller's.
    ///
    /// # Errors
    /// The database fails.
    pub fn put_build(&self, reference: &str, data: &str, created: SystemTime) -> Result<(), StoreError> {
        self.database().prepare_cached("INSERT OR REPLACE INTO builds VALUES(?1, ?2, ?3)")?.execute(params![
            reference,
            data,
            to_ms(created)
        ])?;
        Ok(())
    }

    /// Returns the record of a build.
    ///
    /// # Errors
    /// The database fails.
    pub fn build(&self, reference: &str) -> Result<Option<String>, StoreError> {
        Ok(self
            .database()
            .prepare_cached("SELECT data FROM builds WHERE ref = ?")?
            .query_row([reference], |row| row.get(0))
            .optional()?)
    }

    /// Returns all builds' references and records, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn builds(&self) -> Result<Vec<(String, String)>, StoreError> {
        let db = self.database();
        let mut statement = db.prepare_cached("SELECT ref, data FROM builds ORDER BY created DESC, ref")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Removes the record of a build; tells whether there was one.
    ///
    /// # Errors
    /// The database fails.
    pub fn remove_build(&self, reference: &str) -> Result<bool, StoreError> {
        Ok(self.database().prepare_cached("DELETE FROM builds WHERE ref = ?")?.execute([reference])? > 0)
    }
}

/// Refuses a state directory that others own or can write, and closes one that they can read.
fn check_root(root: &Path) -> Result<(), StoreError> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let meta = std::fs::metadata(root).map_err(StoreError::io("look at", root))?;
    let problem = match () {
        () if meta.uid() != rustix::process::geteuid().as_raw() => "belongs to another user",
        () if meta.mode() & 0o022 != 0 => "can be written by other users",
        () if meta.mode() & 0o077 != 0 => {
            return std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o700))
                .map_err(StoreError::io("set the mode of", root));
        }
        () => return Ok(()),
    };
    Err(StoreError::Unsafe { path: root.to_owned(), problem: problem.into() })
}

/// Counts the rows that were written since the database was opened.
fn changes(db: &Connection) -> Result<i64, rusqlite::Error> {
    db.prepare_cached("SELECT total_changes()")?.query_row([], |row| row.get(0))
}

/// Cleans, and then syncs every half minute while somebody has the store.
fn upkeep_in_background(store: &Arc<Store>, reserved: i64) {
    let weak = Arc::downgrade(store);
    let work = move || {
        let warn = |what: &str, result: Result<(), StoreError>| {
            if let Err(error) = result {
                tracing::warn!("{what} the state directory: {error}");
            }
        };
        if let Some(store) = weak.upgrade() {
            warn("cleaning", crate::prune::clean(&store, reserved));
            store.make_ballast();
        }
        for second in 1_u64.. {
            std::thread::sleep(Duration::from_secs(1));
            let Some(store) = weak.upgrade() else { return };
            // The log of the database is read whole at the next start if it isn't worked in.
            let log = std::fs::metadata(store.root.join("state.db-wal")).map_or(0, |meta| meta.len());
            if second % 30 == 0 || log > 16 << 20 {
                warn("syncing", store.sync_changes());
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("upkeep".into()).spawn(work) {
        tracing::warn!("no thread for the upkeep of the state directory: {error}");
    }
}

/// Returns the largest number that a layer directory has.
fn largest_layer(layers: &Path) -> i64 {
    let Ok(entries) = std::fs::read_dir(layers) else { return 0 };
    entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).max().unwrap_or(0)
}

/// Says since when, and for which mapped IDs, an answer about this machine holds.
fn overlay_mark() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let ids = read("/proc/self/uid_map").split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{} {ids}", read("/proc/sys/kernel/random/boot_id").trim())
}

fn meta<T: rusqlite::types::FromSql>(db: &Connection, key: &str) -> Result<Option<T>, rusqlite::Error> {
    db.query_row("SELECT value FROM meta WHERE key = ?", [key], |row| row.get(0)).optional()
}

fn set_meta<T: rusqlite::ToSql>(db: &Connection, key: &str, value: T) -> Result<(), rusqlite::Error> {
    db.execute("INSERT OR REPLACE INTO meta VALUES(?1, ?2)", params![key, value]).map(|_| ())
}

/// Opens the database, making it when it is missing and setting it aside when it is damaged.
fn open_database(path: &Path) -> Result<(Connection, Vec<String>), StoreError> {
    let damage = match try_open(path) {
        Ok(connection) => return Ok((connection, Vec::new())),
        Err(StoreError::Database(e)) if is_damage(&e) => e,
        Err(e) => return Err(e),
    };
    let aside = path.with_extension(format!("damaged-{}", now_ms()));
    std::fs::rename(path, &aside).map_err(StoreError::io("set aside", path))?;
    for suffix in ["-wal", "-shm"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        // They may be missing; what is left of them belongs to the damaged database.
        let _gone = std::fs::remove_file(PathBuf::from(name));
    }
    let warning = format!(
        "the state database was damaged ({damage}) and was set aside as {}; the cache starts empty",
        aside.display()
    );
    Ok((try_open(path)?, vec![warning]))
}

fn is_damage(error: &rusqlite::Error) -> bool {
    use rusqlite::ErrorCode::{DatabaseCorrupt, NotADatabase};
    match error {
        rusqlite::Error::SqliteFailure(e, text) => {
            matches!(e.code, DatabaseCorrupt | NotADatabase)
                || text.as_deref().is_some_and(|t| t.contains("no such table") || t.contains("no such column"))
        }
        // A missing or wrongly typed format row.
        rusqlite::Error::QueryReturnedNoRows | rusqlite::Error::InvalidColumnType(..) => true,
        _ => false,
    }
}

fn try_open(path: &Path) -> Result<Connection, StoreError> {
    let fresh = !path.exists();
    let connection = Connection::open(path)?;
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.set_prepared_statement_cache_capacity(64);
    if fresh {
        // Nothing to lose yet: no sync is needed to make it.
        connection.execute_batch(&format!(
            "PRAGMA synchronous=OFF; PRAGMA journal_mode=WAL; BEGIN; {SCHEMA} INSERT INTO meta VALUES('format', {FORMAT}); COMMIT;"
        ))?;
    } else {
        let found: i64 = connection.query_row("SELECT value FROM meta WHERE key = 'format'", [], |row| row.get(0))?;
        if found > FORMAT {
            return Err(StoreError::Newer { path: path.to_owned(), found, known: FORMAT });
        }
        if found < FORMAT {
            connection.execute_batch(&format!(
                "BEGIN; {UPGRADE} UPDATE meta SET value = {FORMAT} WHERE key = 'format'; COMMIT;"
            ))?;
        }
    }
    connection.execute_batch(
        "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; PRAGMA temp_store=MEMORY;
         PRAGMA wal_autocheckpoint=0;",
    )?;
    Ok(connection)
}
