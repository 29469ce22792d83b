//! Merging: layers that were made on one tree, laid on another.
//!
//! A layer may hide all that was in a directory below it (overlay's opaque directories, which the kernel also makes when it
//! merely can). On another tree it must hide only what it was made to delete, by name; and names that aren't there must not be
//! hidden, since overlay would list them. Layers for which that makes a difference are made again from hard links.

use crate::fileop::FileOpError;
use crate::layer::LayerError;
use crate::record::Info;
use crate::scan::{Kind, Node, look, names_of, open_subdir, scan};
use crate::snapshot::{LayerId, Pin, Snapshot};
use crate::store::{Store, lock};
use crate::tree::open_beneath;
use crate::union::{copy_xattrs, is_opaque, is_whiteout, make_whiteout};
use crate::{Observer, StoreError};
use bud_patterns::Filter;
use rusqlite::OptionalExtension;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use std::sync::Arc;

/// A file beside a layer that stands on nothing but deletes names all the same.
pub(crate) const DELETES: &str = "deletes";

impl Store {
    /// Stacks snapshots, later ones winning, their deletions included.
    ///
    /// # Errors
    /// A layer is gone, or the disk fails.
    pub fn merge(self: &Arc<Self>, parts: &[Snapshot], observer: &dyn Observer) -> Result<(Snapshot, Pin), StoreError> {
        let mut merged = Snapshot::scratch();
        let mut pins = vec![self.pin(&merged)?];
        for part in parts {
            // A part that goes on from what is there stands where it was made.
            let moved = if part.layers().starts_with(merged.layers()) { merged.layers().len() } else { 0 };
            let stays = moved > 0 || merged.is_scratch();
            for id in &part.layers()[moved..] {
                let (next, pin) =
                    if stays { (merged.with(*id), None) } else { self.move_layer(*id, &merged, observer)? };
                pins.extend(pin);
                merged = next;
            }
        }
        let pin = self.pin(&merged)?;
        drop(pins);
        Ok((merged, pin))
    }

    /// Puts a layer on a tree that it wasn't made on.
    fn move_layer(
        self: &Arc<Self>,
        id: LayerId,
        target: &Snapshot,
        observer: &dyn Observer,
    ) -> Result<(Snapshot, Option<Pin>), StoreError> {
        let (parent, description): (String, String) = self
            .database()
            .prepare_cached("SELECT parent, description FROM layers WHERE id = ?")?
            .query_row([id.0], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?
            .ok_or(StoreError::LayerGone(id.0))?;
        let made_on = Snapshot::from_text(&parent)?;
        let fs = self.layer_fs(id);
        let may_delete = !made_on.is_scratch() || fs.with_file_name(DELETES).exists();
        let wrap = |e| StoreError::Layer(Box::new(LayerError::File(e)));
        let open = || -> Result<OwnedFd, FileOpError> {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::open(&fs, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))
        };
        if !may_delete {
            return Ok((target.with(id), None));
        }
        let node = open().and_then(|dir| scan(dir, b"", &Filter::all())).map_err(wrap)?;
        if !open().and_then(|dir| hides_something(&node, dir)).map_err(wrap)? {
            return Ok((target.with(id), None));
        }
        let draft = self.draft(target)?;
        let upper =
            rustix::fs::open(draft.upper(), OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
                .map_err(StoreError::io("open", draft.upper()))?;
        let (own, below) = (self.tree(&made_on)?, self.tree(target)?);
        let root = |tree: &crate::Tree| {
            open_beneath(tree.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| FileOpError::io("open", b"/", e))
        };
        let level = || -> Result<Level<'_>, FileOpError> {
            let (own, below) = (Some(root(&own)?), Some(root(&below)?));
            Ok(Level { node: &node, from: open()?, to: upper, own, below, hides: false, deleted: false, next: 0 })
        };
        level().and_then(|level| relay(level, observer)).map_err(wrap)?;
        lock(&draft.notes).owners = self.layer_owners(id)?;
        let (snapshot, pin) = draft.commit(&Info { description, ..Info::default() })?;
        if let Some(new) = snapshot.top() {
            // As an image layer it is the one that it was made from.
            self.database().execute(
                "INSERT INTO layer_blobs SELECT ?2, compression, media_type, digest, size, diff_id FROM layer_blobs WHERE layer = ?1",
                [id.0, new.0],
            )?;
        }
        Ok((snapshot, Some(pin)))
    }
}

/// Tells whether a layer has whiteouts or opaque directories.
fn hides_something(top: &Node, dir: OwnedFd) -> Result<bool, FileOpError> {
    let mut waiting = vec![(top, Arc::new(dir), None::<&[u8]>)];
    while let Some((node, dir, name)) = waiting.pop() {
        let dir = match name {
            None => dir,
            Some(name) => Arc::new(open_subdir(dir.as_fd(), name).map_err(|e| FileOpError::io("open", name, e))?),
        };
        let Kind::Dir(children) = &node.kind else { continue };
        if is_opaque(&dir) || children.iter().any(is_whiteout) {
            return Ok(true);
        }
        waiting.extend(children.iter().filter(|c| c.is_dir()).map(|c| (c, Arc::clone(&dir), Some(&*c.name))));
    }
    Ok(false)
}

/// A directory that is being made again on another tree.
struct Level<'n> {
    node: &'n Node,
    from: OwnedFd,
    to: OwnedFd,
    /// The directory on the tree that the layer was made on.
    own: Option<OwnedFd>,
    /// The directory on the tree that it is moved to.
    below: Option<OwnedFd>,
    /// It shows nothing of `own`.
    hides: bool,
    /// What it hid there is deleted here.
    deleted: bool,
    next: usize,
}

fn relay(top: Level<'_>, observer: &dyn Observer) -> Result<(), FileOpError> {
    let mut stack = vec![top];
    while let Some(level) = stack.last_mut() {
        let Kind::Dir(children) = &level.node.kind else { break };
        if level.hides && !level.deleted {
            level.deleted = true;
            delete_hidden(level)?;
        }
        let Some(child) = children.get(level.next) else {
            if let Some(done) = stack.pop() {
                crate::flatten::set_looks(&done.to, done.node)?;
            }
            continue;
        };
        if observer.is_cancelled() {
            return Err(FileOpError::Cancelled);
        }
        level.next += 1;
        let name = &*child.name;
        let fail = |what| move |e: Errno| FileOpError::io(what, name, e);
        if is_whiteout(child) {
            if has(level.below.as_ref(), name)? {
                make_whiteout(&level.to, name).map_err(fail("hide"))?;
            }
        } else if child.is_dir() {
            let from = open_subdir(level.from.as_fd(), name).map_err(fail("open"))?;
            rustix::fs::mkdirat(&level.to, name, Mode::RWXU).map_err(fail("create"))?;
            let to = open_subdir(level.to.as_fd(), name).map_err(fail("open"))?;
            copy_xattrs(&from, &to).map_err(fail("copy the attributes of"))?;
            let inner = |dir: &Option<OwnedFd>| match dir.as_ref().map(|dir| open_subdir(dir.as_fd(), name)) {
                None | Some(Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)) => Ok(None),
                Some(Ok(fd)) => Ok(Some(fd)),
                Some(Err(e)) => Err(FileOpError::io("open", name, e)),
            };
            let hides = level.hides || is_opaque(&from);
            let next = Level {
                node: child,
                own: inner(&level.own)?,
                below: inner(&level.below)?,
                from,
                to,
                hides,
                deleted: false,
                next: 0,
            };
            stack.push(next);
        } else {
            rustix::fs::linkat(&level.from, name, &level.to, name, AtFlags::empty()).map_err(fail("link"))?;
        }
    }
    Ok(())
}

/// Deletes by name what a directory hid where it was made.
fn delete_hidden(level: &Level<'_>) -> Result<(), FileOpError> {
    let Some(own) = &level.own else { return Ok(()) };
    for name in names_of(own).map_err(|e| FileOpError::io("read", &level.node.name, e))? {
        if level.node.child(&name).is_none() && has(level.below.as_ref(), &name)? {
            make_whiteout(&level.to, &name).map_err(|e| FileOpError::io("hide", &name, e))?;
        }
    }
    Ok(())
}

fn has(dir: Option<&OwnedFd>, name: &[u8]) -> Result<bool, FileOpError> {
    let Some(dir) = dir else { return Ok(false) };
    match look(dir.as_fd(), name) {
        Ok(_) => Ok(true),
        Err(Errno::NOENT) => Ok(false),
        Err(e) => Err(FileOpError::io("look at", name, e)),
    }
}
