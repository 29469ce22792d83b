//! The changes from one tree to another, as a layer.

use crate::fileop::copy::Job;
use crate::fileop::{Copy, FileOpError, Stats};
use crate::scan::{Kind, Node, scan};
use crate::snapshot::{LayerDraft, Snapshot};
use crate::source::Found;
use crate::tree::{Source, Tree, open_beneath};
use crate::union::{Union, make_whiteout};
use crate::{Observer, layer};
use bud_patterns::Filter;
use rustix::fd::AsFd;
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::borrow::Cow;

/// Fills an empty draft with what turns one snapshot into another: entries that were added or changed, with the directories
/// they are in, and a whiteout for each name that went away.
///
/// # Errors
/// See [`FileOpError`].
pub fn diff(
    draft: &LayerDraft,
    lower: &Snapshot,
    upper: &Snapshot,
    observer: &dyn Observer,
) -> Result<Stats, FileOpError> {
    let store = draft.store();
    let (below, above) = (store.tree(lower)?, store.tree(upper)?);
    let list = |tree: &Tree| -> Result<Node, FileOpError> {
        let root = open_beneath(tree.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|e| FileOpError::io("open", b"", e))?;
        scan(root, b"", &Filter::all())
    };
    let (old, new) = (list(&below)?, list(&above)?);
    let mut gone: Vec<Vec<u8>> = Vec::new();
    let changed = changes(&below, &old, &above, &new, &mut gone, observer)?;
    let union = Union::of(draft)?;
    let copy = Copy { src: "/".into(), dest: "/".into(), dir_copy_contents: true, ..Copy::default() };
    let job = Job::new(&union, store, Source::Tree(&above), &copy, observer)?;
    if let Some(node) = changed {
        job.copy_loaded(&Found { path: Vec::new(), node: Cow::Owned(node) })?;
    }
    if !gone.is_empty() {
        let marker = draft.upper().with_file_name(crate::merge::DELETES);
        std::fs::write(marker, "").map_err(|e| FileOpError::std("note the deletions of", b"", e))?;
    }
    for path in gone {
        let spot = union.resolve(&path, false, None);
        // The directory it was in is among the changes, since it changed.
        let spot = spot?;
        let dir = spot.dir()?;
        let fd = dir.upper_fd().map_err(|e| FileOpError::io("open", &dir.path, e))?;
        match make_whiteout(fd, &spot.name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(FileOpError::io("hide", &path, e)),
        }
    }
    Ok(job.stats.get())
}

/// A pair of directories that is being compared.
struct Level<'n> {
    old: Option<&'n Node>,
    new: &'n Node,
    path: Vec<u8>,
    next: usize,
    kept: Vec<Node>,
    /// The directory itself changed, or something went away in it.
    changed: bool,
}

/// Returns what is new or different in a tree; names that are only in the old one are added to `gone`.
fn changes(
    below: &Tree,
    old: &Node,
    above: &Tree,
    new: &Node,
    gone: &mut Vec<Vec<u8>>,
    observer: &dyn Observer,
) -> Result<Option<Node>, FileOpError> {
    let open = |old: Option<&'_ Node>, new: &'_ Node, path: &[u8], gone: &mut Vec<Vec<u8>>| -> bool {
        let Some(Kind::Dir(before)) = old.map(|n| &n.kind) else { return true };
        let lost: Vec<_> = before.iter().filter(|n| new.child(&n.name).is_none()).collect();
        gone.extend(
            lost.iter().map(|n| if path.is_empty() { n.name.to_vec() } else { [path, b"/", &n.name].concat() }),
        );
        let same_looks =
            old.is_some_and(|o| (o.meta.mode, o.meta.uid, o.meta.gid) == (new.meta.mode, new.meta.uid, new.meta.gid));
        !lost.is_empty() || !same_looks
    };
    let changed = open(Some(old), new, b"", gone);
    let mut stack = vec![Level { old: Some(old), new, path: Vec::new(), next: 0, kept: Vec::new(), changed }];
    while let Some(level) = stack.last_mut() {
        let Kind::Dir(children) = &level.new.kind else { break };
        if let Some(child) = children.get(level.next) {
            level.next += 1;
            let path = if level.path.is_empty() {
                child.name.to_vec()
            } else {
                [&level.path, &b"/"[..], &child.name].concat()
            };
            let before = level.old.and_then(|o| o.child(&child.name));
            if child.is_dir() {
                let before = before.filter(|n| n.is_dir());
                let changed = open(before, child, &path, gone);
                stack.push(Level { old: before, new: child, path, next: 0, kept: Vec::new(), changed });
            } else if !is_same(below, before, above, child, &path)? {
                level.kept.push(child.clone());
            }
            continue;
        }
        if observer.is_cancelled() {
            return Err(FileOpError::Cancelled);
        }
        let Some(level) = stack.pop() else { break };
        let keep = level.changed || !level.kept.is_empty();
        let node = Node { name: level.new.name.clone(), meta: level.new.meta, kind: Kind::Dir(level.kept) };
        match stack.last_mut() {
            Some(parent) if keep => parent.kept.push(node),
            Some(_) => {}
            None => return Ok(keep.then_some(node)),
        }
    }
    Ok(None)
}

fn is_same(below: &Tree, old: Option<&Node>, above: &Tree, new: &Node, path: &[u8]) -> Result<bool, FileOpError> {
    let Some(old) = old else { return Ok(false) };
    let (a, b) = (&old.meta, &new.meta);
    if std::mem::discriminant(&old.kind) != std::mem::discriminant(&new.kind)
        || (a.mode, a.uid, a.gid, a.rdev, a.size) != (b.mode, b.uid, b.gid, b.rdev, b.size)
    {
        return Ok(false);
    }
    if (a.ino, a.ctime) == (b.ino, b.ctime) {
        // The same file of a layer that both have.
        return Ok(true);
    }
    match (&old.kind, &new.kind) {
        (Kind::Link(one), Kind::Link(two)) => Ok(one == two && a.mtime == b.mtime),
        (Kind::File, Kind::File) => {
            if a.mtime != b.mtime {
                return Ok(false);
            }
            let open = |tree: &Tree| {
                open_beneath(tree.as_fd(), path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)
                    .map_err(|e| FileOpError::io("open", path, e))
            };
            layer::same_bytes(open(below)?, open(above)?).map_err(|e| FileOpError::std("read", path, e))
        }
        _ => Ok(true),
    }
}
