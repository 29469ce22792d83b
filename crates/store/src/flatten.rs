//! Chains laid together in one directory of hard links: the lower part of one that is longer than an overlay can be, or a
//! whole one where the machine refuses overlays.

use crate::StoreError;
use crate::fileop::FileOpError;
use crate::layer::LayerError;
use crate::scan::{Kind, Node, look, open_subdir, scan};
use crate::snapshot::{LayerId, Snapshot};
use crate::store::{Store, lock};
use crate::union::{copy_xattrs, is_opaque, is_whiteout, timestamps};
use bud_patterns::Filter;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// The kernel stacks 500 directories; so many are left to overlay at most.
const DIRECT: usize = 400;
/// A flat directory holds a multiple of so many layers, so that it serves for all chains that go on from there.
const STEP: usize = 200;

/// The flat directories that there are: which layers, and the number of the directory.
#[derive(Default)]
pub(crate) struct Flats {
    known: Mutex<Option<Vec<(Snapshot, LayerId)>>>,
    /// One is made at a time.
    making: Mutex<()>,
}

impl Store {
    /// Returns the directories of a snapshot for an overlay mount, top first.
    #[must_use]
    pub fn lowers(&self, snapshot: &Snapshot) -> Vec<PathBuf> {
        let layers = snapshot.layers();
        let flat = if layers.len() > DIRECT { self.longest_flat(snapshot) } else { None };
        let skipped = flat.as_ref().map_or(0, |(chain, _)| chain.layers().len());
        let mut dirs: Vec<PathBuf> = layers[skipped..].iter().rev().map(|id| self.layer_fs(*id)).collect();
        dirs.extend(flat.map(|(_, id)| self.layer_fs(id)));
        dirs
    }

    /// Returns the flat directory that holds most of a chain's lower layers.
    fn longest_flat(&self, snapshot: &Snapshot) -> Option<(Snapshot, LayerId)> {
        let mut known = lock(&self.flats.known);
        if known.is_none() {
            *known = self.load_flats().map_err(|e| tracing::warn!("flat layers: {e}")).ok();
        }
        let fits = |(chain, _): &&(Snapshot, LayerId)| snapshot.layers().starts_with(chain.layers());
        known.iter().flatten().filter(fits).max_by_key(|(chain, _)| chain.layers().len()).cloned()
    }

    fn load_flats(&self) -> Result<Vec<(Snapshot, LayerId)>, StoreError> {
        let db = self.database();
        let mut statement = db.prepare_cached("SELECT chain, id FROM flats")?;
        let rows = statement.query_map([], |r| Ok((r.get::<_, String>(0)?, LayerId(r.get(1)?))))?;
        rows.map(|row| row.map_err(StoreError::from).and_then(|(text, id)| Ok((Snapshot::from_text(&text)?, id))))
            .collect()
    }

    /// Forgets the flat directories that hold a layer.
    pub(crate) fn drop_flats_of(&self, id: LayerId) -> Result<(), StoreError> {
        let mut known = lock(&self.flats.known);
        if known.is_none() {
            *known = Some(self.load_flats()?);
        }
        let Some(known) = known.as_mut() else { return Ok(()) };
        for (_, flat) in known.extract_if(.., |(chain, _)| chain.layers().contains(&id)) {
            self.database().execute("DELETE FROM flats WHERE id = ?", [flat.0])?;
            crate::disk::remove_later(&self.layers_dir().join(flat.0.to_string()));
        }
        Ok(())
    }

    /// Sees to it that a chain can be mounted.
    pub(crate) fn ensure_mountable(self: &Arc<Self>, snapshot: &Snapshot) -> Result<(), StoreError> {
        let count = snapshot.layers().len();
        if count <= DIRECT || self.is_native() || self.lowers(snapshot).len() <= DIRECT {
            return Ok(());
        }
        let _one_at_a_time = lock(&self.flats.making);
        if self.lowers(snapshot).len() <= DIRECT {
            return Ok(());
        }
        self.flatten(&Snapshot::from_layers(snapshot.layers()[..count - count % STEP].to_vec()))?;
        Ok(())
    }

    /// Returns a directory that looks like a whole chain, for machines that refuse overlays.
    pub(crate) fn flat_tree(&self, snapshot: &Snapshot) -> Result<PathBuf, StoreError> {
        if snapshot.is_scratch() {
            return Ok(self.empty_dir());
        }
        let _one_at_a_time = lock(&self.flats.making);
        let id = match self.longest_flat(snapshot) {
            Some((chain, id)) if chain == *snapshot => id,
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
        let skipped = below.as_ref().map_or(0, |(chain, _)| chain.layers().len());
        let id = self.new_layer_id()?;
        self.fill_flat(id, below.map(|(_, id)| id).into_iter().chain(chain.layers()[skipped..].iter().copied()))?;
        self.database()
            .execute("INSERT OR REPLACE INTO flats VALUES(?1, ?2)", rusqlite::params![chain.to_text(), id.0])?;
        lock(&self.flats.known).get_or_insert_default().push((chain.clone(), id));
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
        let open = |path: &PathBuf| {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(path, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))
        };
        let flat = open(&fs)?;
        for layer in layers {
            let layer = open(&self.layer_fs(layer))?;
            let listed = layer.try_clone().map_err(|e| FileOpError::std("open", b"/", e))?;
            lay(&scan(listed, b"", &Filter::all())?, layer, &flat)?;
        }
        Ok(())
    }
}

/// A directory of a layer that is being laid over one of a flat directory.
struct Level<'n> {
    node: &'n Node,
    from: OwnedFd,
    to: OwnedFd,
    next: usize,
}

/// Lays a layer over a flat directory.
fn lay(top: &Node, layer: OwnedFd, flat: &OwnedFd) -> Result<(), FileOpError> {
    let flat = flat.try_clone().map_err(|e| FileOpError::std("open", b"/", e))?;
    let mut stack = vec![Level { node: top, from: layer, to: flat, next: 0 }];
    while let Some(level) = stack.last_mut() {
        let Kind::Dir(children) = &level.node.kind else { break };
        let Some(child) = children.get(level.next) else {
            if let Some(done) = stack.pop() {
                set_looks(&done.to, done.node)?;
            }
            continue;
        };
        level.next += 1;
        let name = &*child.name;
        let fail = |what| move |e: Errno| FileOpError::io(what, name, e);
        let to = &level.to;
        let remove = || crate::disk::remove_at(to, name).map_err(|e| FileOpError::std("remove", name, e));
        if is_whiteout(child) {
            remove()?;
        } else if child.is_dir() {
            let from = open_subdir(level.from.as_fd(), name).map_err(fail("open"))?;
            let there = look(to.as_fd(), name).is_ok_and(|n| n.is_dir());
            if !there || is_opaque(&from) {
                remove()?;
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(fail("create"))?;
            }
            let to = open_subdir(to.as_fd(), name).map_err(fail("open"))?;
            copy_xattrs(&from, &to).map_err(fail("copy the attributes of"))?;
            stack.push(Level { node: child, from, to, next: 0 });
        } else {
            remove()?;
            rustix::fs::linkat(&level.from, name, to, name, AtFlags::empty()).map_err(fail("link"))?;
        }
    }
    Ok(())
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
