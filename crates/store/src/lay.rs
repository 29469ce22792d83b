//! A layer laid over a directory of hard links: for flat trees ([`crate::flatten`]) and for runs of layers ([`crate::runs`]).

use crate::fileop::FileOpError;
use crate::flatten::set_looks;
use crate::scan::{Kind, Node, look, open_subdir};
use crate::union::{copy_xattrs, is_opaque, is_whiteout, make_whiteout, set_opaque};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;

/// What the directory is seen over.
pub(crate) enum Below<'a> {
    /// Nothing: what is deleted is simply gone.
    Nothing,
    /// Further layers: what is deleted stays hidden. Where, is noted.
    Layers(&'a mut Vec<Vec<u8>>),
}

struct Level<'n> {
    node: &'n Node,
    path: Vec<u8>,
    from: OwnedFd,
    to: OwnedFd,
    next: usize,
}

/// Lays a layer over a directory.
pub(crate) fn lay(top: &Node, layer: OwnedFd, over: &OwnedFd, mut below: Below<'_>) -> Result<(), FileOpError> {
    let over = over.try_clone().map_err(|e| FileOpError::std("open", b"/", e))?;
    let mut stack = vec![Level { node: top, path: Vec::new(), from: layer, to: over, next: 0 }];
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
            if let Below::Layers(hidden) = &mut below {
                make_whiteout(to, name).map_err(fail("hide"))?;
                hidden.push(join(&level.path, name));
            }
        } else if child.is_dir() {
            let from = open_subdir(level.from.as_fd(), name).map_err(fail("open"))?;
            let there = match look(to.as_fd(), name) {
                Ok(node) => Some(node),
                Err(Errno::NOENT) => None,
                Err(e) => return Err(fail("look at")(e)),
            };
            let goes_on = there.as_ref().is_some_and(Node::is_dir) && !is_opaque(&from);
            if !goes_on {
                remove()?;
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(fail("create"))?;
            }
            let to = open_subdir(to.as_fd(), name).map_err(fail("open"))?;
            // What was below a directory that replaces something doesn't show through.
            if matches!(below, Below::Layers(_)) && !goes_on && (there.is_some() || is_opaque(&from)) {
                set_opaque(&to).map_err(fail("hide what is below"))?;
            }
            copy_xattrs(&from, &to).map_err(fail("copy the attributes of"))?;
            let path = join(&level.path, name);
            stack.push(Level { node: child, path, from, to, next: 0 });
        } else {
            remove()?;
            rustix::fs::linkat(&level.from, name, to, name, AtFlags::empty()).map_err(fail("link"))?;
        }
    }
    Ok(())
}

/// Appends a name to a path without a slash at its beginning.
pub(crate) fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() }
}
