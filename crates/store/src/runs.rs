//! Long chains: runs of small layers are laid together once, so that the cost of a step doesn't grow with its depth.
//!
//! An overlay looks for a name in each of its layers, and the kernel stacks 500. Once a chain has more than
//! [`Options::direct`](crate::Options::direct) layers, its small ones are merged in runs that lie within windows of a fixed
//! size, and such runs again in windows of a multiple: a file is linked once for each size, however long the chain
//! becomes, and all chains that go on from there use the same runs. Large layers stay what they are: links to all their files would cost
//! more than they save. A run keeps the whiteouts and opaque marks of what is below it, and no others.

use crate::StoreError;
use crate::fileop::FileOpError;
use crate::flatten::{Flat, open_layer, set_looks};
use crate::lay::{Below, join, lay};
use crate::layer::LayerError;
use crate::scan::{Kind, look, names_of, open_subdir, scan};
use crate::snapshot::{LayerId, Snapshot};
use crate::store::{Store, lock};
use crate::tree::open_beneath;
use crate::union::{copy_xattrs, is_opaque, is_whiteout};
use bud_patterns::Filter;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use std::sync::Arc;

/// A layer of a run has at most so many entries for each layer of its window.
const ENTRIES: usize = 64;
/// Windows become larger by their own size so many times.
const SIZES: u32 = 3;

/// A directory of a mount: a layer, or what stands for several.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unit {
    /// Whose directory it is.
    pub id: LayerId,
    /// The first layer in it, by its place in the chain.
    pub start: usize,
    /// The place after the last one.
    pub end: usize,
}

impl Store {
    /// Sees to it that a chain can be mounted, and at little cost.
    pub(crate) fn ensure_mountable(self: &Arc<Self>, snapshot: &Snapshot) -> Result<(), StoreError> {
        let (direct, window) = self.stacking();
        let fits = || self.units(snapshot).len() <= direct;
        if snapshot.layers().len() <= direct || self.is_native() || fits() {
            return Ok(());
        }
        let _one_at_a_time = lock(&self.flats.making);
        for size in (1..=SIZES).map(|power| window.saturating_pow(power)) {
            if fits() {
                return Ok(());
            }
            self.merge_windows(snapshot, size)?;
        }
        self.flatten_bottom(snapshot)
    }

    /// Merges what is small in all windows of a size that the chain fills.
    fn merge_windows(&self, snapshot: &Snapshot, size: usize) -> Result<(), StoreError> {
        let units = self.units(snapshot);
        let window = |unit: &Unit| (unit.start / size == (unit.end - 1) / size).then_some(unit.start / size);
        let is_free = |unit: &Unit| {
            window(unit).is_some_and(|n| (n + 1) * size <= snapshot.layers().len())
                && self.is_small(unit.id, ENTRIES * size)
        };
        let free: Vec<(Unit, bool)> = units.iter().map(|unit| (*unit, is_free(unit))).collect();
        for run in free.chunk_by(|(a, a_free), (b, b_free)| *a_free && *b_free && window(a) == window(b)) {
            if let [(first, true), .., (last, _)] = run {
                let units: Vec<LayerId> = run.iter().map(|(unit, _)| unit.id).collect();
                self.merge_run(snapshot, first.start, last.end, &units)?;
            }
        }
        Ok(())
    }

    /// Tells whether a layer's directory has no more entries than that.
    fn is_small(&self, id: LayerId, limit: usize) -> bool {
        let known = lock(&self.flats.entries).get(&id).copied();
        let count = known.filter(|(_, counted)| *counted >= limit).map(|(count, _)| count).unwrap_or_else(|| {
            // What can't be read says so when it is mounted.
            let count = open_layer(&self.layer_fs(id)).ok().and_then(|dir| count_entries(dir, limit).ok());
            let count = count.unwrap_or(usize::MAX);
            lock(&self.flats.entries).insert(id, (count, limit));
            count
        });
        count <= limit
    }

    fn merge_run(&self, snapshot: &Snapshot, start: usize, end: usize, units: &[LayerId]) -> Result<(), StoreError> {
        let chain = Snapshot::from_layers(snapshot.layers()[..end].to_vec());
        let below = Snapshot::from_layers(snapshot.layers()[..start].to_vec());
        let below = self.mounted(&below)?;
        let id = self.new_layer_id()?;
        self.fill_run(id, units, below.as_ref().map(|(root, _)| root)).map_err(|error| {
            crate::disk::remove_later(&self.layers_dir().join(id.0.to_string()));
            StoreError::Layer(Box::new(LayerError::File(error)))
        })?;
        self.add_flat(Flat { chain, start, id })
    }

    fn fill_run(&self, id: LayerId, units: &[LayerId], below: Option<&OwnedFd>) -> Result<(), FileOpError> {
        let fs = self.layer_fs(id);
        std::fs::create_dir_all(&fs).map_err(|e| FileOpError::std("create", b"/", e))?;
        let run = open_layer(&fs)?;
        let mut hidden = Vec::new();
        for unit in units {
            let layer = open_layer(&self.layer_fs(*unit))?;
            copy_xattrs(&layer, &run).map_err(|e| FileOpError::io("copy the attributes of", b"/", e))?;
            let listed = layer.try_clone().map_err(|e| FileOpError::std("open", b"/", e))?;
            lay(&scan(listed, b"", &Filter::all())?, layer, &run, Below::Layers(&mut hidden))?;
        }
        hidden.sort_unstable();
        hidden.dedup();
        for path in hidden {
            drop_needless(&run, &path, below).map_err(|e| FileOpError::io("look at", &path, e))?;
        }
        // The removal of a whiteout changed the times of its directory.
        self.renew_looks(&run, units)
    }

    /// Gives the directories of a run the looks that they have in the topmost of the layers again.
    fn renew_looks(&self, run: &OwnedFd, units: &[LayerId]) -> Result<(), FileOpError> {
        for unit in units {
            let layer = open_layer(&self.layer_fs(*unit))?;
            let top = scan(layer, b"", &Filter::all())?;
            let mut waiting = vec![(&top, Vec::new())];
            while let Some((node, path)) = waiting.pop() {
                let Kind::Dir(children) = &node.kind else { continue };
                match open_beneath(run.as_fd(), &path, OFlags::RDONLY | OFlags::DIRECTORY) {
                    Ok(dir) => set_looks(&dir, node)?,
                    // A layer above has something else there.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                    Err(e) => return Err(FileOpError::io("open", &path, e)),
                }
                waiting.extend(children.iter().filter(|c| c.is_dir()).map(|c| (c, join(&path, &c.name))));
            }
        }
        Ok(())
    }
}

/// Counts what is in a directory, up to a little more than a limit.
fn count_entries(top: OwnedFd, limit: usize) -> Result<usize, Errno> {
    let mut count = 0;
    let mut stack = vec![(names_of(&top)?.into_iter(), top)];
    loop {
        let depth = stack.len();
        let Some((names, dir)) = stack.last_mut() else { break };
        let Some(name) = names.next() else {
            stack.pop();
            continue;
        };
        count += 1;
        if count > limit || depth > crate::scan::MAX_DEPTH {
            return Ok(usize::MAX);
        }
        if look(dir.as_fd(), &name)?.is_dir() {
            let below = open_subdir(dir.as_fd(), &name)?;
            stack.push((names_of(&below)?.into_iter(), below));
        }
    }
    Ok(count)
}

/// Removes a whiteout that hides nothing: an overlay would list it where its directory is in one layer alone.
fn drop_needless(run: &OwnedFd, path: &[u8], below: Option<&OwnedFd>) -> Result<(), Errno> {
    let (dirs, name) = match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&b""[..], path),
    };
    let mut dir = open_beneath(run.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)?;
    let mut shows = true;
    for part in dirs.split(|b| *b == b'/').filter(|part| !part.is_empty()) {
        dir = match open_subdir(dir.as_fd(), part) {
            Ok(dir) => dir,
            // Something else took the directory's place.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(e) => return Err(e),
        };
        shows &= !is_opaque(&dir);
    }
    if !look(dir.as_fd(), name).is_ok_and(|node| is_whiteout(&node)) {
        return Ok(());
    }
    let hides = match below {
        Some(below) if shows => match open_beneath(below.as_fd(), path, OFlags::PATH | OFlags::NOFOLLOW) {
            Ok(_) => true,
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => false,
            Err(e) => return Err(e),
        },
        _ => false,
    };
    if hides { Ok(()) } else { rustix::fs::unlinkat(&dir, name, AtFlags::empty()) }
}
