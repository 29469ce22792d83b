//! Chains laid together in one directory of hard links: a whole one where the machine refuses overlays, or the lower part of
//! one that is longer than an overlay can be and of which no smaller part can be merged ([`crate::runs`]).

use crate::StoreError;
use crate::fileop::FileOpError;
use crate::lay::{Below, lay};
use crate::layer::LayerError;
use crate::runs::Unit;
use crate::scan::{Node, scan};
use crate::snapshot::{LayerId, Snapshot};
use crate::store::{Store, lock};
use crate::union::timestamps;
use bud_patterns::Filter;
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// The kernel stacks 500 directories; so many are left to overlay at most.
const MOST: usize = 400;
/// A flat directory holds a multiple of so many layers, so that it serves for all chains that go on from there.
const STEP: usize = 200;

/// A directory that stands for several layers of a chain.
#[derive(Clone, Debug)]
pub(crate) struct Flat {
    /// The chain that ends with the last of them.
    pub chain: Snapshot,
    /// The place of the first of them in the chain.
    pub start: usize,
    /// The number of the directory.
    pub id: LayerId,
}

impl Flat {
    /// Writes the chain, with a slash where the directory's part of it begins.
    fn to_text(&self) -> String {
        if self.start == 0 {
            return self.chain.to_text();
        }
        let part = |layers: &[LayerId]| Snapshot::from_layers(layers.to_vec()).to_text();
        let (below, own) = self.chain.layers().split_at(self.start);
        format!("{}/{}", part(below), part(own))
    }

    fn from_text(text: &str, id: LayerId) -> Result<Self, StoreError> {
        let (below, own) = text.split_once('/').unwrap_or(("", text));
        let below = Snapshot::from_text(below)?;
        let layers = below.layers().iter().chain(Snapshot::from_text(own)?.layers()).copied().collect();
        Ok(Self { start: below.layers().len(), chain: Snapshot::from_layers(layers), id })
    }
}

/// The flat directories that there are.
#[derive(Default)]
pub(crate) struct Flats {
    known: Mutex<Option<Vec<Flat>>>,
    /// How many entries layers have, and up to how many they were counted.
    pub(crate) entries: Mutex<HashMap<LayerId, (usize, usize)>>,
    /// One is made at a time.
    pub(crate) making: Mutex<()>,
}

impl Store {
    /// Returns the directories of a snapshot for an overlay mount, top first.
    #[must_use]
    pub fn lowers(&self, snapshot: &Snapshot) -> Vec<PathBuf> {
        self.units(snapshot).iter().rev().map(|unit| self.layer_fs(unit.id)).collect()
    }

    /// Returns the directories that a chain is mounted with, bottom first: the largest that there are.
    pub(crate) fn units(&self, snapshot: &Snapshot) -> Vec<Unit> {
        let layers = snapshot.layers();
        let flats = if layers.len() > self.stacking().0 { self.flats_of(snapshot) } else { Vec::new() };
        let mut units = Vec::new();
        let mut end = layers.len();
        while end > 0 {
            let flat = flats.iter().filter(|f| f.chain.layers().len() == end).min_by_key(|f| f.start);
            let (id, start) = flat.map_or((layers[end - 1], end - 1), |f| (f.id, f.start));
            units.push(Unit { id, start, end });
            end = start;
        }
        units.reverse();
        units
    }

    /// Returns the flat directories of parts of a chain.
    fn flats_of(&self, snapshot: &Snapshot) -> Vec<Flat> {
        let mut known = lock(&self.flats.known);
        if known.is_none() {
            *known = self.load_flats().map_err(|e| tracing::warn!("flat layers: {e}")).ok();
        }
        let fits = |flat: &&Flat| snapshot.layers().starts_with(flat.chain.layers());
        known.iter().flatten().filter(fits).cloned().collect()
    }

    /// Returns the flat directory that holds most of a chain's lower layers.
    fn longest_flat(&self, snapshot: &Snapshot) -> Option<Flat> {
        let whole = self.flats_of(snapshot).into_iter().filter(|flat| flat.start == 0);
        whole.max_by_key(|flat| flat.chain.layers().len())
    }

    fn load_flats(&self) -> Result<Vec<Flat>, StoreError> {
        let db = self.database();
        let mut statement = db.prepare_cached("SELECT chain, id FROM flats")?;
        let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, LayerId(r.get(1)?))))?;
        rows.map(|row| row.map_err(StoreError::from).and_then(|(text, id)| Flat::from_text(&text, id))).collect()
    }

    pub(crate) fn add_flat(&self, flat: Flat) -> Result<(), StoreError> {
        self.database()
            .execute("INSERT OR REPLACE INTO flats VALUES(?1, ?2)", rusqlite::params![flat.to_text(), flat.id.0])?;
        lock(&self.flats.known).get_or_insert_default().push(flat);
        Ok(())
    }

    /// Forgets the flat directories that hold a layer, or stand on it.
    pub(crate) fn drop_flats_of(&self, id: LayerId) -> Result<(), StoreError> {
        lock(&self.flats.entries).remove(&id);
        let mut known = lock(&self.flats.known);
        if known.is_none() {
            *known = Some(self.load_flats()?);
        }
        let Some(known) = known.as_mut() else { return Ok(()) };
        for flat in known.extract_if(.., |flat| flat.chain.layers().contains(&id)) {
            lock(&self.flats.entries).remove(&flat.id);
            self.database().execute("DELETE FROM flats WHERE id = ?", [flat.id.0])?;
            crate::disk::remove_later(&self.layers_dir().join(flat.id.0.to_string()));
        }
        Ok(())
    }

    /// Lays the bottom of a chain together that is longer than an overlay can be; the caller holds the lock.
    pub(crate) fn flatten_bottom(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        if self.units(snapshot).len() > MOST {
            let count = snapshot.layers().len();
            self.flatten(&Snapshot::from_layers(snapshot.layers()[..count - count % STEP].to_vec()))?;
        }
        Ok(())
    }

    /// Returns a directory that looks like a whole chain, for machines that refuse overlays.
    pub(crate) fn flat_tree(&self, snapshot: &Snapshot) -> Result<PathBuf, StoreError> {
        if snapshot.is_scratch() {
            return Ok(self.empty_dir());
        }
        let _one_at_a_time = lock(&self.flats.making);
        let id = match self.longest_flat(snapshot) {
            Some(flat) if flat.chain == *snapshot => flat.id,
            _ => self.flatten(snapshot)?,
        };
        Ok(self.layer_fs(id))
    }

    /// Returns a directory that looks like a chain with a draft on top; the caller removes its parent directory.
    pub(crate) fn flat_draft(&self, parent: &Snapshot, draft: LayerId) -> Result<PathBuf, StoreError> {
        let id = self.new_layer_id()?;
        self.fill_flat(id, parent.layers().iter().copied().chain([draft]))?;
        Ok(self.layer_fs(id))
    }

    /// Makes the flat directory of a chain, on the longest one that there is.
    fn flatten(&self, chain: &Snapshot) -> Result<LayerId, StoreError> {
        let below = self.longest_flat(chain);
        let skipped = below.as_ref().map_or(0, |flat| flat.chain.layers().len());
        let id = self.new_layer_id()?;
        self.fill_flat(id, below.map(|flat| flat.id).into_iter().chain(chain.layers()[skipped..].iter().copied()))?;
        self.add_flat(Flat { chain: chain.clone(), start: 0, id })?;
        Ok(id)
    }

    fn fill_flat(&self, id: LayerId, layers: impl Iterator<Item = LayerId>) -> Result<(), StoreError> {
        self.make_flat(id, layers).map_err(|error| {
            crate::disk::remove_later(&self.layers_dir().join(id.0.to_string()));
            StoreError::Layer(Box::new(LayerError::File(error)))
        })
    }

    fn make_flat(&self, id: LayerId, layers: impl Iterator<Item = LayerId>) -> Result<(), FileOpError> {
        let fs = self.layer_fs(id);
        std::fs::create_dir_all(&fs).map_err(|e| FileOpError::std("create", b"/", e))?;
        let flat = open_layer(&fs)?;
        for layer in layers {
            let layer = open_layer(&self.layer_fs(layer))?;
            let listed = layer.try_clone().map_err(|e| FileOpError::std("open", b"/", e))?;
            lay(&scan(listed, b"", &Filter::all())?, layer, &flat, Below::Nothing)?;
        }
        Ok(())
    }
}

/// Opens a layer's directory.
pub(crate) fn open_layer(path: &Path) -> Result<OwnedFd, FileOpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))
}

/// Gives a directory the looks of a listed one.
pub(crate) fn set_looks(dir: &OwnedFd, node: &Node) -> Result<(), FileOpError> {
    let fail = |what| move |e: Errno| FileOpError::io(what, &node.name, e);
    let (uid, gid) =
        (rustix::fs::Uid::from_raw_unchecked(node.meta.uid), rustix::fs::Gid::from_raw_unchecked(node.meta.gid));
    rustix::fs::fchown(dir, Some(uid), Some(gid)).map_err(fail("set the owner of"))?;
    rustix::fs::fchmod(dir, Mode::from_raw_mode(node.meta.mode)).map_err(fail("set the mode of"))?;
    rustix::fs::futimens(dir, &timestamps(node.meta.mtime)).map_err(fail("set the time of"))
}
