//! Cache mounts: directories that steps share.

use crate::fileop::{Copy, FileOpError, copy_to_directory};
use crate::store::{Store, lock, now_ms};
use crate::tree::Source;
use crate::{Observer, StoreError};
use bud_image::Digest;
use rusqlite::params;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

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
            Ok(()) => mount.fresh = true,
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(StoreError::Io { what: "create", path, source: e }),
        }
        self.database()
            .prepare_cached(
                "INSERT INTO cache_mounts VALUES(?1, ?2, ?3, ?3, 1, NULL)
                 ON CONFLICT(dir) DO UPDATE SET last_used = ?3, usage_count = usage_count + 1, size = NULL",
            )?
            .execute(params![mount.dir, id.chars().take(500).collect::<String>(), now_ms()])?;
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
        let path = self.cache_dir().join(dir);
        let away = self.cache_dir().join(format!("removed-{}", self.new_layer_id()?.0));
        self.database().execute("DELETE FROM cache_mounts WHERE dir = ?", [dir])?;
        match std::fs::rename(&path, &away) {
            Ok(()) => crate::disk::remove_later(&away),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(StoreError::Io { what: "rename", path, source: e }),
        }
        drop(users);
        Ok(true)
    }
}
