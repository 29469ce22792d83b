//! Cache mounts: directories that steps share.

use crate::fileop::{Copy, FileOpError, copy_to_directory};
use crate::record::RecordType;
use crate::store::{Store, from_ms, lock, now_ms};
use crate::tree::Source;
use crate::{Observer, StoreError};
use bud_image::Digest;
use rusqlite::params;
use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, SystemTime};

/// So much of an ID is kept for listings.
const MAX_ID: usize = 500;

/// How steps that run at the same time use one cache mount.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All use the same directory at once.
    Shared,
    /// Each gets a directory of its own.
    Private,
    /// One after the other.
    Locked,
}

/// A cache mount as people name it: by its ID, with all its directories.
#[derive(Clone, Debug)]
pub struct CacheObject {
    /// As steps name it.
    pub id: String,
    /// Real bytes on disk.
    pub size: u64,
    /// How many directories it has: more than one if it is private and steps used it at the same time.
    pub directories: u32,
    /// When its first directory was made.
    pub created: SystemTime,
    /// When it was used last.
    pub last_used: SystemTime,
    /// How often.
    pub usage_count: u64,
    /// Something uses one of its directories now.
    pub in_use: bool,
}

/// The daemon's own directories, which no step can name: `local` and `git` with a hash.
fn own_kind(id: &str) -> Option<&str> {
    let (kind, hash) = id.split_once(' ')?;
    let is_own = matches!(kind, "local" | "git") && hash.len() == 64 && hash.bytes().all(|c| c.is_ascii_hexdigit());
    is_own.then_some(kind)
}

/// Says what a directory is, by its ID.
pub(crate) fn describe(id: &str) -> (String, RecordType) {
    match own_kind(id) {
        Some("local") => ("local source: files received from a client".into(), RecordType::LocalSource),
        Some(_) => ("shared git repository".into(), RecordType::GitCheckout),
        None => (format!("cached mount {id}"), RecordType::CacheMount),
    }
}

/// Who uses which directory now.
#[derive(Default)]
pub(crate) struct Mounts {
    users: Mutex<HashMap<String, Use>>,
    freed: Condvar,
}

#[derive(Default)]
struct Use {
    count: usize,
    exclusive: bool,
}

impl Mounts {
    pub(crate) fn in_use(&self, dir: &str) -> bool {
        lock(&self.users).contains_key(dir)
    }
}

/// A cache mount's directory, taken until this is dropped.
pub struct CacheMount {
    store: Arc<Store>,
    dir: String,
    /// True when the directory was made just now, and is empty.
    pub fresh: bool,
}

impl CacheMount {
    /// Returns the directory.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.store.cache_dir().join(&self.dir)
    }

    /// Copies what is in a directory of a tree into the mount: what a fresh one starts with.
    ///
    /// # Errors
    /// The directory isn't there, or can't be copied.
    pub fn seed(&self, source: Source<'_>, path: &str, observer: &dyn Observer) -> Result<(), FileOpError> {
        let copy = Copy {
            src: path.into(),
            dest: "/".into(),
            follow_symlink: true,
            dir_copy_contents: true,
            ..Copy::default()
        };
        copy_to_directory(&self.store, &self.path(), source, &copy, observer)?;
        Ok(())
    }
}

impl Drop for CacheMount {
    fn drop(&mut self) {
        let mut users = lock(&self.store.mounts.users);
        if let Some(mut used) = users.remove(&self.dir) {
            used.count -= 1;
            if used.count > 0 {
                users.insert(self.dir.clone(), used);
            }
        }
        self.store.mounts.freed.notify_all();
    }
}

impl Store {
    pub(crate) fn cache_dir(&self) -> PathBuf {
        self.root().join("cache")
    }

    /// Takes the directory of a cache mount. The id is hashed: whatever it holds, it never becomes a path.
    ///
    /// # Errors
    /// The directory can't be made, or the observer cancelled while a locked one was waited for.
    pub fn cache_mount(
        self: &Arc<Self>,
        id: &str,
        sharing: Sharing,
        observer: &dyn Observer,
    ) -> Result<CacheMount, StoreError> {
        let hash = Digest::of(id).hex();
        let mut users = lock(&self.mounts.users);
        let dir = match sharing {
            Sharing::Private => {
                let mut n = 0_u32;
                loop {
                    let dir = format!("{hash}-{n}");
                    if !users.contains_key(&dir) {
                        break dir;
                    }
                    n += 1;
                }
            }
            Sharing::Shared | Sharing::Locked => {
                let dir = format!("{hash}-0");
                let blocked = |users: &HashMap<String, Use>| {
                    users.get(&dir).is_some_and(|used| used.exclusive || sharing == Sharing::Locked)
                };
                while blocked(&users) {
                    if observer.is_cancelled() {
                        return Err(StoreError::Cancelled);
                    }
                    let waited = self.mounts.freed.wait_timeout(users, Duration::from_millis(100));
                    users = waited.map_or_else(|poisoned| poisoned.into_inner().0, |(guard, _)| guard);
                }
                dir
            }
        };
        let used = users.entry(dir.clone()).or_default();
        used.count += 1;
        used.exclusive = sharing != Sharing::Shared;
        drop(users);
        let mut mount = CacheMount { store: Arc::clone(self), dir, fresh: false };
        let path = mount.path();
        match std::fs::create_dir(&path) {
            Ok(()) => {
                mount.fresh = true;
                // As the reference has it: steps of any user may look in. Only we get to the directory above.
                std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))
                    .map_err(StoreError::io("set the mode of", &path))?;
            }
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(StoreError::Io { what: "create", path, source: e }),
        }
        self.database()
            .prepare_cached(
                "INSERT INTO cache_mounts VALUES(?1, ?2, ?3, ?3, 1, NULL)
                 ON CONFLICT(dir) DO UPDATE SET last_used = ?3, usage_count = usage_count + 1, size = NULL",
            )?
            .execute(params![mount.dir, id.chars().take(MAX_ID).collect::<String>(), now_ms()])?;
        Ok(mount)
    }

    /// Empties all directories of a cache mount that nobody uses now.
    ///
    /// # Errors
    /// The database or a removal fails.
    pub fn clear_cache_mount(self: &Arc<Self>, id: &str) -> Result<(), StoreError> {
        let prefix = format!("{}-", Digest::of(id).hex());
        let dirs: Vec<String> = {
            let db = self.database();
            let mut statement = db.prepare_cached("SELECT dir FROM cache_mounts WHERE substr(dir, 1, 65) = ?")?;
            statement.query_map([&prefix], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        for dir in dirs {
            self.remove_cache_mount(&dir)?;
        }
        Ok(())
    }

    /// Removes a cache mount's directory if nobody uses it; tells whether it did.
    pub(crate) fn remove_cache_mount(self: &Arc<Self>, dir: &str) -> Result<bool, StoreError> {
        let users = lock(&self.mounts.users);
        if users.contains_key(dir) {
            return Ok(false);
        }
        self.discard_directory(dir)?;
        drop(users);
        Ok(true)
    }

    /// Lists the cache mounts by ID, without the daemon's own directories.
    ///
    /// # Errors
    /// The database fails.
    pub fn cache_objects(self: &Arc<Self>) -> Result<Vec<CacheObject>, StoreError> {
        let sizes: HashMap<String, (u64, bool)> = self
            .cache_mount_usage()?
            .into_iter()
            .filter_map(|u| Some((u.id.strip_prefix("cache:")?.to_owned(), (u.size, u.in_use))))
            .collect();
        let mut objects: Vec<CacheObject> = Vec::new();
        let db = self.database();
        let mut statement =
            db.prepare_cached("SELECT dir, id, created, last_used, usage_count FROM cache_mounts ORDER BY id, dir")?;
        let rows = statement.query_map([], |r| {
            Ok((r.get::<_, String>(0)?, r.get::<_, String>(1)?, r.get(2)?, r.get(3)?, r.get::<_, i64>(4)?))
        })?;
        for row in rows {
            let (dir, id, created, last_used, count) = row?;
            if own_kind(&id).is_some() {
                continue;
            }
            let (size, in_use) = sizes.get(&dir).copied().unwrap_or_default();
            let (created, last_used, count) = (from_ms(created), from_ms(last_used), count.unsigned_abs());
            match objects.last_mut().filter(|object| object.id == id) {
                Some(object) => {
                    object.size += size;
                    object.directories += 1;
                    object.created = object.created.min(created);
                    object.last_used = object.last_used.max(last_used);
                    object.usage_count += count;
                    object.in_use |= in_use;
                }
                None => {
                    objects.push(CacheObject {
                        id,
                        size,
                        directories: 1,
                        created,
                        last_used,
                        usage_count: count,
                        in_use,
                    });
                }
            }
        }
        Ok(objects)
    }

    /// Takes the first directory of a cache mount for oneself, without waiting: to read it whole, or to replace it. `None` if
    /// there is no such mount.
    ///
    /// # Errors
    /// [`StoreError::CacheBusy`], or the database fails.
    pub fn hold_cache_mount(self: &Arc<Self>, id: &str) -> Result<Option<CacheMount>, StoreError> {
        let dir = format!("{}-0", Digest::of(id).hex());
        if !self.cache_dir().join(&dir).is_dir() {
            return Ok(None);
        }
        self.hold_directory(id, dir).map(Some)
    }

    /// Takes a directory of a cache mount, whether it is there or not.
    pub(crate) fn hold_directory(self: &Arc<Self>, id: &str, dir: String) -> Result<CacheMount, StoreError> {
        let mut users = lock(&self.mounts.users);
        if users.contains_key(&dir) {
            return Err(StoreError::CacheBusy(id.to_owned()));
        }
        users.insert(dir.clone(), Use { count: 1, exclusive: true });
        Ok(CacheMount { store: Arc::clone(self), dir, fresh: false })
    }

    /// Removes a cache mount with all its directories, and returns its bytes; `None` if there is none. Nothing is removed while
    /// something uses one of them.
    ///
    /// # Errors
    /// [`StoreError::CacheBusy`], or the database or a removal fails.
    pub fn remove_cache_object(self: &Arc<Self>, id: &str) -> Result<Option<u64>, StoreError> {
        let Some(object) = self.cache_objects()?.into_iter().find(|object| object.id == id) else { return Ok(None) };
        let prefix = format!("{}-", Digest::of(id).hex());
        let mut users = lock(&self.mounts.users);
        if users.keys().any(|dir| dir.starts_with(&prefix)) {
            return Err(StoreError::CacheBusy(id.to_owned()));
        }
        let dirs: Vec<String> = {
            let db = self.database();
            let mut statement = db.prepare_cached("SELECT dir FROM cache_mounts WHERE substr(dir, 1, 65) = ?")?;
            statement.query_map([&prefix], |row| row.get(0))?.collect::<Result<_, _>>()?
        };
        // Held until they are gone: who comes now waits, and gets fresh ones.
        let mut held = Vec::new();
        for dir in dirs {
            users.insert(dir.clone(), Use { count: 1, exclusive: true });
            held.push(CacheMount { store: Arc::clone(self), dir, fresh: false });
        }
        drop(users);
        for mount in &held {
            self.discard_directory(&mount.dir)?;
        }
        drop(held);
        crate::disk::wait_for_removals(Duration::from_secs(10));
        Ok(Some(object.size))
    }

    /// Removes a directory that the caller holds, or whose users are locked.
    fn discard_directory(&self, dir: &str) -> Result<(), StoreError> {
        let path = self.cache_dir().join(dir);
        let away = self.cache_dir().join(format!("removed-{}", self.new_layer_id()?.0));
        self.database().execute("DELETE FROM cache_mounts WHERE dir = ?", [dir])?;
        match std::fs::rename(&path, &away) {
            Ok(()) => crate::disk::remove_later(&away),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::Io { what: "rename", path, source: e }),
        }
        Ok(())
    }

    /// Notes that a directory of a cache mount was filled from outside.
    pub(crate) fn note_cache_mount(&self, id: &str, dir: &str) -> Result<(), StoreError> {
        self.database()
            .prepare_cached(
                "INSERT INTO cache_mounts VALUES(?1, ?2, ?3, ?3, 0, NULL)
                 ON CONFLICT(dir) DO UPDATE SET last_used = ?3, size = NULL",
            )?
            .execute(params![dir, id.chars().take(MAX_ID).collect::<String>(), now_ms()])?;
        Ok(())
    }
}
