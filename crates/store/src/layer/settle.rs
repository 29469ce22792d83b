//! Putting a layer that was unpacked by itself on its parents.

use crate::fileop::FileOpError;
use crate::layer::LayerError;
use crate::layer::extract::link;
use crate::scan::{Kind, Node, look};
use crate::snapshot::LayerDraft;
use crate::store::lock;
use crate::union::{
    NewDirs, Spot, Union, UnionDir, copy_xattrs, current, is_opaque, is_whiteout, make_whiteout, set_opaque,
};
use rustix::fd::AsFd;
use rustix::fs::AtFlags;
use rustix::io::Errno;

/// Says that a hard link's file is neither in the layer nor below it.
fn missing_link(path: &[u8], target: &[u8]) -> LayerError {
    LayerError::entry(path, format!("a hard link to {:?}, which is not there", String::from_utf8_lossy(target)))
}

/// Settles a layer on the draft's parents.
///
/// A directory that the archive itself didn't have gets the looks of the one below; if there is a link below, what the layer has
/// in it belongs where the link points. Hard links to files below are made now.
pub(crate) fn settle(draft: &LayerDraft) -> Result<(), LayerError> {
    if !lock(&draft.notes).is_unsettled() {
        return Ok(());
    }
    let union = Union::of(draft)?;
    if std::mem::take(&mut lock(&draft.notes).opaque_root) {
        hide_root(&union)?;
    }
    // Parents come before what is in them; a move changes the paths that are still to come.
    while let Some(path) = { lock(&draft.notes).implied.pop_first() } {
        settle_dir(&union, &path)?;
    }
    let links = std::mem::take(&mut lock(&draft.notes).links);
    for (path, target) in links {
        let from = match union.resolve(&target, false, None) {
            Ok(from) => Some(from),
            Err(FileOpError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => None,
            Err(e) => return Err(e.into()),
        };
        let Some(mut from) = from.filter(|f| f.found.is_some() && !f.name.is_empty()) else {
            return Err(missing_link(&path, &target));
        };
        if from.found.as_ref().is_some_and(Node::is_dir) {
            return Err(LayerError::entry(&path, "a hard link to a directory"));
        }
        let mut to = union.resolve(&path, false, Some(&NewDirs { mode: 0o755, owner: None, time: None }))?;
        if from.path() == to.path() {
            continue;
        }
        union.copy_up(&mut to.dirs)?;
        union.clear_upper(to.dir()?, &to.name)?;
        link(&union, &mut from, &to)?;
    }
    let whiteouts = std::mem::take(&mut lock(&draft.notes).whiteouts);
    for path in whiteouts {
        remove_idle_whiteout(&union, &path)?;
    }
    Ok(())
}

/// Removes a whiteout that has nothing to hide.
fn remove_idle_whiteout(union: &Union<'_>, path: &[u8]) -> Result<(), LayerError> {
    let spot = match union.resolve(path, false, None) {
        Ok(spot) => spot,
        Err(FileOpError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let dir = spot.dir()?;
    let Some(upper) = &dir.upper else { return Ok(()) };
    let fail = |what, e: Errno| FileOpError::io(what, path, e);
    if !look(upper.as_fd(), &spot.name).is_ok_and(|node| is_whiteout(&node)) {
        return Ok(());
    }
    let hides = match &dir.lower {
        Some(lower) => match look(lower.as_fd(), &spot.name) {
            Ok(_) => true,
            Err(Errno::NOENT) => false,
            Err(e) => return Err(fail("look at", e).into()),
        },
        None => false,
    };
    if !hides {
        rustix::fs::unlinkat(upper.as_fd(), spot.name.as_slice(), AtFlags::empty()).map_err(|e| fail("remove", e))?;
    }
    Ok(())
}

/// Hides all that is below the root, which overlay can't do by an attribute.
fn hide_root(union: &Union<'_>) -> Result<(), LayerError> {
    let root = union.root();
    let upper = root.upper_fd().map_err(|e| FileOpError::io("open", b"/", e))?;
    let Some(lower) = &root.lower else { return Ok(()) };
    for name in crate::scan::names_of(lower).map_err(|e| FileOpError::io("read", b"/", e))? {
        match look(upper.as_fd(), &name) {
            Err(Errno::NOENT) => make_whiteout(upper, &name).map_err(|e| FileOpError::io("hide", &name, e))?,
            Ok(node) if node.is_dir() => {
                let dir = root.enter(&name).map_err(|e| FileOpError::io("open", &name, e))?;
                let fd = dir.upper_fd().map_err(|e| FileOpError::io("open", &name, e))?;
                set_opaque(fd).map_err(|e| FileOpError::io("hide what is below", &name, e))?;
            }
            Ok(_) => {}
            Err(e) => return Err(FileOpError::io("look at", &name, e).into()),
        }
    }
    Ok(())
}

fn settle_dir(union: &Union<'_>, path: &[u8]) -> Result<(), LayerError> {
    let spot = match union.resolve(path, false, None) {
        Ok(spot) => spot,
        // It went with a directory that was moved.
        Err(FileOpError::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(e.into()),
    };
    let dir = spot.dir()?;
    let fail = |what, e: Errno| FileOpError::io(what, path, e);
    let Some(lower) = &dir.lower else { return Ok(()) };
    let below = match look(lower.as_fd(), &spot.name) {
        Err(Errno::NOENT) => return Ok(()),
        other => other.map_err(|e| fail("look at", e))?,
    };
    match &below.kind {
        Kind::Dir(_) => {
            let entered = dir.enter(&spot.name).map_err(|e| fail("open", e))?;
            let (Some(upper), Some(like)) = (&entered.upper, &entered.lower) else { return Ok(()) };
            let owner = union.owner_below(path, &below);
            copy_xattrs(like, upper).map_err(|e| fail("copy the attributes of", e))?;
            union.set_looks(upper, path, Some(owner), Some(below.meta.mode), Some(below.meta.mtime))?;
            Ok(())
        }
        Kind::Link(_) => move_through_link(union, spot, path),
        // The directory hides a file.
        _ => Ok(()),
    }
}

/// Moves what a directory of the layer holds to where a link of the layers below leads.
fn move_through_link(union: &Union<'_>, spot: Spot, path: &[u8]) -> Result<(), LayerError> {
    let fail = |what, e: Errno| FileOpError::io(what, path, e);
    let root = union.root().upper_fd().map_err(|e| fail("open", e))?.clone();
    let upper = spot.dir()?.upper_fd().map_err(|e| fail("open", e))?.clone();
    let away: &[u8] = b".bud-moved";
    rustix::fs::renameat(upper.as_fd(), spot.name.as_slice(), root.as_fd(), away).map_err(|e| fail("move", e))?;
    // The link shows through now.
    let new = NewDirs { mode: 0o755, owner: None, time: None };
    let mut target = union.resolve(path, true, Some(&new))?;
    let mut dirs = match &target.found {
        Some(node) if node.is_dir() => target.enter()?,
        Some(_) => return Err(LayerError::entry(path, "something is in a path that is no directory")),
        None => {
            let name = std::mem::take(&mut target.name);
            union.make_dir(&mut target.dirs, &name, &new)?;
            target.dirs
        }
    };
    union.copy_up(&mut dirs)?;
    let to = current(&dirs)?.clone();
    lock(union.notes()).rename(path, &to.path);
    let from = UnionDir { upper: union.root().upper.clone(), lower: None, path: Vec::new() };
    let from = from.enter(away).map_err(|e| fail("open", e))?;
    merge(from, to)?;
    crate::disk::remove_at(&root, away).map_err(|e| FileOpError::std("remove", path, e))?;
    Ok(())
}

/// Moves the entries of a directory into another one; directories that both have are merged.
fn merge(from: UnionDir, to: UnionDir) -> Result<(), LayerError> {
    let mut waiting = vec![(from, to)];
    while let Some((from, to)) = waiting.pop() {
        let fail = |what, e: Errno| FileOpError::io(what, &to.path, e);
        let (Some(source), Some(target)) = (&from.upper, &to.upper) else { continue };
        if is_opaque(source) {
            set_opaque(target).map_err(|e| fail("hide what is below", e))?;
        }
        for name in crate::scan::names_of(source).map_err(|e| fail("read", e))? {
            let node = look(source.as_fd(), &name).map_err(|e| fail("look at", e))?;
            let there = match look(target.as_fd(), &name) {
                Err(Errno::NOENT) => None,
                other => Some(other.map_err(|e| fail("look at", e))?),
            };
            if node.is_dir() && there.as_ref().is_some_and(Node::is_dir) {
                let from = from.enter(&name).map_err(|e| fail("open", e))?;
                let to = to.enter(&name).map_err(|e| fail("open", e))?;
                waiting.push((from, to));
                continue;
            }
            if there.is_some() {
                crate::disk::remove_at(target, &name).map_err(|e| FileOpError::std("replace", &to.join(&name), e))?;
            }
            rustix::fs::renameat(source.as_fd(), &*name, target.as_fd(), &*name).map_err(|e| fail("move", e))?;
        }
    }
    Ok(())
}
