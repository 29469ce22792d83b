//! Layers and the chains of them that are snapshots.

use crate::StoreError;
use crate::record::Info;
use crate::store::{Store, lock, now_ms};
use crate::tree::Tree;
use bud_sandbox::overlay::Overlay;
use rusqlite::{OptionalExtension, params};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// The number of a layer: the name of its directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerId(pub i64);

/// A file tree: a chain of layers, bottom first. The empty chain is `scratch`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Snapshot(Arc<[LayerId]>);

impl std::fmt::Debug for Snapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.iter().map(|id| id.0)).finish()
    }
}

impl Snapshot {
    /// Returns the empty tree.
    #[must_use]
    pub fn scratch() -> Self {
        Self(Arc::new([]))
    }

    /// Makes a snapshot of layers that are known to exist, bottom first.
    #[must_use]
    pub fn from_layers(layers: Vec<LayerId>) -> Self {
        Self(layers.into())
    }

    /// Returns the layers, bottom first.
    #[must_use]
    pub fn layers(&self) -> &[LayerId] {
        &self.0
    }

    /// Returns the topmost layer.
    #[must_use]
    pub fn top(&self) -> Option<LayerId> {
        self.0.last().copied()
    }

    /// Returns true for the empty chain.
    #[must_use]
    pub fn is_scratch(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns this chain with a layer more on top.
    #[must_use]
    pub fn with(&self, layer: LayerId) -> Self {
        Self(self.0.iter().copied().chain([layer]).collect())
    }

    /// Stacks snapshots, later ones winning: a merge. A layer that is in the chain already is not stacked twice in a row.
    #[must_use]
    pub fn stacked(parts: &[Snapshot]) -> Self {
        let mut layers: Vec<LayerId> = Vec::new();
        for part in parts {
            let common = if layers.iter().zip(part.0.iter()).take_while(|(a, b)| a == b).count() == layers.len() {
                layers.len()
            } else {
                0
            };
            layers.extend(&part.0[common..]);
        }
        Self(layers.into())
    }

    /// Writes the chain as text, for the database and for keys.
    pub(crate) fn to_text(&self) -> String {
        let mut text = String::with_capacity(self.0.len() * 4);
        for id in self.0.iter() {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&id.0.to_string());
        }
        text
    }

    pub(crate) fn from_text(text: &str) -> Result<Self, StoreError> {
        if text.is_empty() {
            return Ok(Self::scratch());
        }
        let ids = text.split(',').map(|id| id.parse().map(LayerId));
        ids.collect::<Result<Vec<_>, _>>().map(Self::from_layers).map_err(|_| StoreError::Damaged("chain of layers"))
    }
}

/// Keeps layers from being pruned while it lives.
pub struct Pin {
    store: Arc<Store>,
    layers: Vec<LayerId>,
}

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Pin").field(&self.layers).finish()
    }
}

impl Clone for Pin {
    fn clone(&self) -> Self {
        let mut pins = lock(&self.store.pins);
        Self::locked(&self.store, &mut pins, self.layers.clone())
    }
}

impl Pin {
    pub(crate) fn locked(
        store: &Arc<Store>,
        pins: &mut std::collections::HashMap<LayerId, usize>,
        layers: Vec<LayerId>,
    ) -> Self {
        for id in &layers {
            *pins.entry(*id).or_insert(0) += 1;
        }
        Self { store: Arc::clone(store), layers }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = lock(&self.store.pins);
        for id in &self.layers {
            if let Some(count) = pins.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    pins.remove(id);
                }
            }
        }
    }
}

impl Store {
    /// Makes a new layer on top of a snapshot, to be filled and then committed.
    ///
    /// # Errors
    /// A layer of the parent is gone, or the directory can't be made.
    pub fn draft(self: &Arc<Self>, parent: &Snapshot) -> Result<LayerDraft, StoreError> {
        let pin = self.pin(parent)?;
        self.ensure_mountable(parent)?;
        let id = self.new_layer_id()?;
        let draft = LayerDraft {
            dir: self.layers_dir().join(id.0.to_string()),
            store: Arc::clone(self),
            id,
            parent: parent.clone(),
            continues: false,
            has_work: AtomicBool::new(false),
            has_root_looks: false,
            notes: Mutex::default(),
            private: Mutex::default(),
            pin,
            kept: false,
        };
        draft.make_dirs()?;
        Ok(draft)
    }

    /// Keeps the layers of a snapshot from being pruned until the guard is dropped.
    ///
    /// # Errors
    /// A layer is gone already.
    pub fn pin(self: &Arc<Self>, snapshot: &Snapshot) -> Result<Pin, StoreError> {
        let mut pins = lock(&self.pins);
        if let Some(gone) = self.missing_layer(snapshot, &pins)? {
            return Err(StoreError::LayerGone(gone.0));
        }
        Ok(Pin::locked(self, &mut pins, snapshot.layers().to_vec()))
    }

    /// Returns a layer of a snapshot that the database doesn't know.
    pub(crate) fn missing_layer(
        &self,
        snapshot: &Snapshot,
        pins: &std::collections::HashMap<LayerId, usize>,
    ) -> Result<Option<LayerId>, StoreError> {
        let db = self.database();
        let mut known = db.prepare_cached("SELECT 1 FROM layers WHERE id = ?")?;
        for id in snapshot.layers() {
            if !pins.contains_key(id) && !known.exists([id.0])? {
                return Ok(Some(*id));
            }
        }
        Ok(None)
    }

    /// Returns the directory of a layer's files, as overlay has it.
    pub(crate) fn layer_fs(&self, id: LayerId) -> PathBuf {
        self.layers_dir().join(id.0.to_string()).join("fs")
    }

    /// Returns a read-only overlay of a snapshot.
    ///
    /// Overlay wants two directories where there is no upper one, so an empty one is put below.
    #[must_use]
    pub fn overlay(&self, snapshot: &Snapshot) -> Overlay {
        let mut lowers = self.lowers(snapshot);
        while lowers.len() < 2 {
            lowers.push(self.empty_dir());
        }
        Overlay { lowers, upper: None, work: None, volatile: false }
    }

    /// Splits a snapshot into the layers that an image of it has: for each, the chain that ends with it.
    ///
    /// An image layer may be made of several layer directories; then only the last one's chain is returned.
    ///
    /// # Errors
    /// The database fails.
    pub fn logical_layers(&self, snapshot: &Snapshot) -> Result<Vec<Snapshot>, StoreError> {
        let mut chains: Vec<Snapshot> = Vec::new();
        let layers = snapshot.layers();
        for (i, id) in layers.iter().enumerate() {
            let chain = Snapshot::from_layers(layers[..=i].to_vec());
            if self.continues(*id)? && !chains.is_empty() {
                chains.pop();
            }
            chains.push(chain);
        }
        Ok(chains)
    }

    /// Returns when a layer was made, and what by.
    ///
    /// # Errors
    /// The layer is gone, or the database fails.
    pub fn layer_notes(&self, id: LayerId) -> Result<(std::time::SystemTime, String), StoreError> {
        self.database()
            .prepare_cached("SELECT created, description FROM layers WHERE id = ?")?
            .query_row([id.0], |row| Ok((crate::store::from_ms(row.get(0)?), row.get(1)?)))
            .optional()?
            .ok_or(StoreError::LayerGone(id.0))
    }

    pub(crate) fn continues(&self, id: LayerId) -> Result<bool, StoreError> {
        self.database()
            .prepare_cached("SELECT continues FROM layers WHERE id = ?")?
            .query_row([id.0], |row| row.get(0))
            .optional()?
            .ok_or(StoreError::LayerGone(id.0))
    }

    /// Returns the owners that files of a layer should have but can't on this machine (only the user's own ID is mapped).
    pub(crate) fn layer_owners(&self, id: LayerId) -> Result<Owners, StoreError> {
        let db = self.database();
        let mut statement = db.prepare_cached("SELECT path, uid, gid FROM layer_owners WHERE layer = ?")?;
        let rows = statement.query_map([id.0], |row| Ok((row.get(0)?, (row.get(1)?, row.get(2)?))))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }
}

impl Store {
    /// Returns the wanted owners that show in the union of a snapshot's layers.
    pub(crate) fn owners(&self, snapshot: &Snapshot) -> Result<Owners, StoreError> {
        let mut shown = Owners::new();
        if !self.database().prepare_cached("SELECT 1 FROM layer_owners")?.exists([])? {
            return Ok(shown);
        }
        for id in snapshot.layers() {
            lay_over(&mut shown, self.layer_owners(*id)?, &self.layer_fs(*id))?;
        }
        Ok(shown)
    }
}

/// Puts a layer's owners over those of the layers below: what the layer has itself hides what was said before.
fn lay_over(shown: &mut Owners, owners: Owners, dir: &std::path::Path) -> Result<(), StoreError> {
    if !shown.is_empty() {
        let root = std::fs::File::open(dir).map_err(StoreError::io("open", dir))?;
        let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::NOFOLLOW;
        shown.retain(|path, _| crate::tree::open_beneath(rustix::fd::AsFd::as_fd(&root), path, flags).is_err());
    }
    shown.extend(owners);
    Ok(())
}

/// Wanted owners by path within the layer.
pub(crate) type Owners = BTreeMap<Vec<u8>, (u32, u32)>;

/// What is known of a draft beside its files.
#[derive(Default)]
pub(crate) struct Notes {
    /// Owners that could not be set.
    pub owners: Owners,
    /// Directories that an archive didn't have, but that something in it is in.
    pub implied: BTreeSet<Vec<u8>>,
    /// Hard links to files that are not in the layer, by path; perhaps they are below.
    pub links: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Names that an archive deleted; where there is nothing to delete, overlay would list them.
    pub whiteouts: BTreeSet<Vec<u8>>,
    /// The layer hides all that is below.
    pub opaque_root: bool,
}

impl Notes {
    /// Tells whether the layer has to be settled on its parents.
    pub(crate) fn is_unsettled(&self) -> bool {
        self.opaque_root || !(self.implied.is_empty() && self.links.is_empty() && self.whiteouts.is_empty())
    }

    /// Puts the draft's owners over its parents'.
    pub(crate) fn lay_owners_over(&self, shown: &mut Owners, upper: &std::path::Path) -> Result<(), StoreError> {
        lay_over(shown, self.owners.clone(), upper)
    }

    /// Follows a second name that a file of the draft got.
    pub(crate) fn share_owner(&mut self, from: &[u8], to: &[u8]) {
        match self.owners.get(from).copied() {
            Some(owner) => self.owners.insert(to.to_vec(), owner),
            None => self.owners.remove(to),
        };
    }

    /// Forgets a path and what is below it.
    pub(crate) fn forget(&mut self, path: &[u8]) {
        let is_in = |p: &Vec<u8>| p.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest[0] == b'/');
        if !self.owners.is_empty() {
            self.owners.retain(|p, _| !is_in(p));
        }
        for paths in [&mut self.implied, &mut self.whiteouts] {
            if !paths.is_empty() {
                paths.retain(|p| !is_in(p));
            }
        }
        if !self.links.is_empty() {
            self.links.retain(|p, _| !is_in(p));
        }
    }

    /// Follows a move from one path to another.
    pub(crate) fn rename(&mut self, from: &[u8], to: &[u8]) {
        let moved = |p: &[u8]| -> Option<Vec<u8>> {
            let rest = p.strip_prefix(from)?;
            (rest.is_empty() || rest[0] == b'/').then(|| [to, rest].concat())
        };
        fn all<V>(map: BTreeMap<Vec<u8>, V>, moved: impl Fn(&[u8]) -> Option<Vec<u8>>) -> BTreeMap<Vec<u8>, V> {
            map.into_iter().map(|(path, value)| (moved(&path).unwrap_or(path), value)).collect()
        }
        self.owners = all(std::mem::take(&mut self.owners), moved);
        self.links = all(std::mem::take(&mut self.links), moved);
        for paths in [&mut self.implied, &mut self.whiteouts] {
            *paths = std::mem::take(paths).into_iter().map(|path| moved(&path).unwrap_or(path)).collect();
        }
    }
}

/// A layer being made. Dropped without a commit, it is removed.
pub struct LayerDraft {
    store: Arc<Store>,
    id: LayerId,
    dir: PathBuf,
    parent: Snapshot,
    continues: bool,
    has_work: AtomicBool,
    /// The root's looks came from an archive.
    pub(crate) has_root_looks: bool,
    pub(crate) notes: Mutex<Notes>,
    /// A step's own copy, where there are no overlays.
    pub(crate) private: Mutex<Option<crate::native::Private>>,
    pin: Pin,
    kept: bool,
}

impl std::fmt::Debug for LayerDraft {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerDraft").field("id", &self.id).field("parent", &self.parent).finish_non_exhaustive()
    }
}

impl LayerDraft {
    fn make_dirs(&self) -> Result<(), StoreError> {
        for dir in [self.dir.clone(), self.upper()] {
            std::fs::create_dir(&dir).map_err(StoreError::io("create", &dir))?;
        }
        self.copy_root_attributes()
    }

    /// Gives the new root directory the looks of the parent's: overlay shows the topmost one's.
    fn copy_root_attributes(&self) -> Result<(), StoreError> {
        use std::os::unix::fs::{MetadataExt, PermissionsExt};
        let upper = self.upper();
        let like = self.parent.top().map(|top| self.store.layer_fs(top));
        let Some(like) = like else {
            return std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(0o755))
                .map_err(StoreError::io("set the mode of", &upper));
        };
        let meta = std::fs::metadata(&like).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => StoreError::LayerGone(self.parent.top().map_or(0, |id| id.0)),
            _ => StoreError::Io { what: "look at", path: like.clone(), source: e },
        })?;
        if (meta.uid(), meta.gid()) != (0, 0) {
            std::os::unix::fs::chown(&upper, Some(meta.uid()), Some(meta.gid()))
                .map_err(StoreError::io("set the owner of", &upper))?;
        }
        std::fs::set_permissions(&upper, std::fs::Permissions::from_mode(meta.mode() & 0o7777))
            .map_err(StoreError::io("set the mode of", &upper))
    }

    /// Returns the number that the layer will have.
    #[must_use]
    pub fn id(&self) -> LayerId {
        self.id
    }

    /// Returns what the layer stands on.
    #[must_use]
    pub fn parent(&self) -> &Snapshot {
        &self.parent
    }

    /// Returns the store it is made in.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Returns the directory that becomes the layer.
    #[must_use]
    pub fn upper(&self) -> PathBuf {
        self.dir.join("fs")
    }

    /// Returns the directory that holds all of the draft.
    pub(crate) fn dir(&self) -> &std::path::Path {
        &self.dir
    }

    /// Returns overlay's work directory, which is there from the first call of [`LayerDraft::overlay`] on.
    #[must_use]
    pub fn work(&self) -> PathBuf {
        self.dir.join("work")
    }

    /// Returns a writable overlay of the parent and this layer.
    ///
    /// Mount it with no file operation of [`crate::fileop`] going on at the same time: those write beside the mount.
    #[must_use]
    pub fn overlay(&self) -> Overlay {
        let mut lowers = self.store.lowers(&self.parent);
        if lowers.is_empty() {
            lowers.push(self.store.empty_dir());
        }
        if !self.has_work.swap(true, Ordering::Relaxed) {
            // If it can't be made, the mount says so.
            let _made = std::fs::create_dir(self.work());
        }
        Overlay { lowers, upper: Some(self.upper()), work: Some(self.work()), volatile: true }
    }

    /// Returns the tree as it is now, read-only.
    ///
    /// # Errors
    /// The overlay can't be mounted.
    pub fn tree(&self) -> Result<Tree, StoreError> {
        Tree::of_draft(self)
    }

    /// Moves an unfilled or standalone draft onto another parent.
    ///
    /// A layer that was unpacked while its parents were still being fetched is settled on them: paths that lead
    /// through symbolic links of lower layers are moved to where those point, directories that the layer's archive didn't
    /// have get the looks of the lower ones.
    ///
    /// # Errors
    /// A layer of the parent is gone, or the files can't be moved.
    pub fn set_parent(&mut self, parent: &Snapshot) -> Result<(), StoreError> {
        self.pin = self.store.pin(parent)?;
        self.store.ensure_mountable(parent)?;
        self.parent = parent.clone();
        crate::layer::settle(self).map_err(|e| StoreError::Layer(Box::new(e)))?;
        if self.has_root_looks { Ok(()) } else { self.copy_root_attributes() }
    }

    /// Makes the layer one with the image layer that its parent ends with.
    pub fn continue_parent(&mut self) {
        self.continues = !self.parent.is_scratch();
    }

    /// Keeps the layer as it is, with a guard against pruning until a record holds it. The database row is the last thing
    /// that is written.
    ///
    /// # Errors
    /// The disk or the database fails; the layer is removed then.
    pub fn commit(mut self, info: &Info) -> Result<(Snapshot, Pin), StoreError> {
        self.gather().map_err(|e| StoreError::Layer(Box::new(crate::layer::LayerError::File(e))))?;
        crate::layer::settle(&self).map_err(|e| StoreError::Layer(Box::new(e)))?;
        self.take_noted_owners()?;
        if self.has_work.load(Ordering::Relaxed) {
            // Not here: file systems take milliseconds to remove a directory that was made just now.
            crate::disk::remove_later(&self.work());
        }
        let snapshot = self.parent.with(self.id);
        let pin = Pin::locked(&self.store, &mut lock(&self.store.pins), snapshot.layers().to_vec());
        {
            let notes = std::mem::take(self.notes.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner));
            let now = now_ms();
            let db = self.store.database();
            let transaction = db.unchecked_transaction()?;
            transaction
                .prepare_cached(
                    "INSERT INTO layers(id, parent, continues, created, last_used, usage_count, size, description, record_type)
                     VALUES(?1, ?2, ?3, ?4, ?4, 1, NULL, ?5, ?6)",
                )?
                .execute(params![
                    self.id.0,
                    self.parent.to_text(),
                    self.continues,
                    now,
                    info.description,
                    info.record_type.as_str()
                ])?;
            if !notes.owners.is_empty() {
                let mut insert = transaction.prepare_cached("INSERT INTO layer_owners VALUES(?1, ?2, ?3, ?4)")?;
                for (path, (uid, gid)) in &notes.owners {
                    insert.execute(params![self.id.0, path, uid, gid])?;
                }
            }
            transaction.commit()?;
        }
        self.kept = true;
        Ok((snapshot, pin))
    }
}

impl Drop for LayerDraft {
    fn drop(&mut self) {
        if !self.kept {
            crate::disk::remove_later(&self.dir);
        }
    }
}
