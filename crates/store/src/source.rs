//! Finding paths in what files are taken from.

use crate::fileop::FileOpError;
use crate::scan::{Kind, Node, filtered, look, names_of, scan};
use crate::snapshot::Owners;
use crate::tree::{Source, open_beneath};
use crate::union::{components, open_deep};
use bud_patterns::{Filter, has_wildcards};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::OFlags;
use rustix::io::Errno;
use std::borrow::Cow;

const MAX_LINKS: usize = 40;
/// So many paths one wildcard stands for at most.
const MAX_MATCHES: usize = 1_000_000;

/// A path that was found, without links and without a leading slash.
pub(crate) struct Found<'a> {
    pub path: Vec<u8>,
    /// Of a directory of a tree, the entries are not loaded yet.
    pub node: Cow<'a, Node>,
}

impl<'a> Source<'a> {
    pub(crate) fn root_fd(&self) -> BorrowedFd<'a> {
        match *self {
            Source::Tree(tree) => tree.as_fd(),
            Source::Context(context) => context.root_fd(),
        }
    }

    /// Looks at a path that has no links in it.
    fn lookup(&self, path: &[u8]) -> Result<Option<Cow<'a, Node>>, Errno> {
        match *self {
            Source::Tree(tree) => {
                let flags = OFlags::PATH | OFlags::NOFOLLOW;
                match open_beneath(tree.as_fd(), path, flags) {
                    Ok(fd) => {
                        let mut node = look(fd.as_fd(), b"")?;
                        own(&mut node, path, tree.owners());
                        Ok(Some(Cow::Owned(node)))
                    }
                    Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
                    Err(e) => Err(e),
                }
            }
            Source::Context(context) => {
                let mut node = context.top();
                for name in path.split(|c| *c == b'/').filter(|c| !c.is_empty()) {
                    match node.child(name) {
                        Some(child) => node = child,
                        None => return Ok(None),
                    }
                }
                Ok(Some(Cow::Borrowed(node)))
            }
        }
    }

    /// Resolves a path inside the source; links lead nowhere else. `None` if there is nothing.
    pub(crate) fn resolve(&self, path: &[u8], follow_last: bool) -> Result<Option<Found<'a>>, FileOpError> {
        let mut done: Vec<u8> = Vec::new();
        let mut pending = components(path);
        let mut links = 0;
        let mut node = self.lookup(b"").map_err(|e| FileOpError::io("look at", b"/", e))?;
        while let Some(name) = pending.pop() {
            if name == b".." {
                let cut = done.iter().rposition(|c| *c == b'/').unwrap_or(0);
                done.truncate(cut);
                node = self.lookup(&done).map_err(|e| FileOpError::io("look at", &done, e))?;
                continue;
            }
            let mut next = done.clone();
            if !next.is_empty() {
                next.push(b'/');
            }
            next.extend_from_slice(&name);
            let found = self.lookup(&next).map_err(|e| FileOpError::io("look at", &next, e))?;
            match found.as_deref().map(|n| &n.kind) {
                None => return Ok(None),
                Some(Kind::Link(target)) if !pending.is_empty() || follow_last => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(FileOpError::io("resolve", &next, Errno::LOOP));
                    }
                    if target.first() == Some(&b'/') {
                        done.clear();
                    }
                    pending.extend(components(target));
                    if pending.len() > 10_000 {
                        return Err(FileOpError::io("resolve", &next, Errno::NAMETOOLONG));
                    }
                    node = self.lookup(&done).map_err(|e| FileOpError::io("look at", &done, e))?;
                }
                Some(_) => {
                    done = next;
                    node = found;
                }
            }
        }
        Ok(node.map(|node| Found { path: done, node }))
    }

    /// Loads a directory that was found, with all that the filter takes of it.
    pub(crate) fn load(&self, found: Found<'a>, filter: &Filter) -> Result<Found<'a>, FileOpError> {
        if !found.node.is_dir() {
            return Ok(found);
        }
        let node = match self {
            Source::Tree(tree) => {
                let dir = self.open_dir(&found.path)?;
                let mut node = scan(dir, split(&found.path).1, filter)?;
                own_all(&mut node, &found.path, tree.owners());
                Cow::Owned(node)
            }
            Source::Context(_) if filter.takes_all() => found.node,
            Source::Context(_) => Cow::Owned(filtered(&found.node, filter)),
        };
        Ok(Found { path: found.path, node })
    }

    /// Opens a directory by a path without links.
    pub(crate) fn open_dir(&self, path: &[u8]) -> Result<OwnedFd, FileOpError> {
        open_deep(self.root_fd(), path).map_err(|e| FileOpError::io("open", path, e))
    }

    /// Returns the names in a directory.
    fn names(&self, path: &[u8], node: &Node) -> Result<Vec<Box<[u8]>>, FileOpError> {
        match (self, &node.kind) {
            (Source::Context(_), Kind::Dir(children)) => Ok(children.iter().map(|c| c.name.clone()).collect()),
            (Source::Tree(_), Kind::Dir(_)) => {
                names_of(&self.open_dir(path)?).map_err(|e| FileOpError::io("read", path, e))
            }
            _ => Ok(Vec::new()),
        }
    }

    /// Returns the paths that a path with patterns in its components stands for, in order. Without patterns, it is the path
    /// itself, there or not.
    ///
    /// Links are followed before the first pattern only.
    pub(crate) fn expand(&self, path: &str, follow_links: bool) -> Result<Vec<Vec<u8>>, FileOpError> {
        let clean = bud_patterns::clean::clean_in_root(path);
        let parts: Vec<&str> = clean.split('/').filter(|p| !p.is_empty()).collect();
        let Some(first) = parts.iter().position(|p| has_wildcards(p)) else {
            return Ok(vec![clean.into_bytes()]);
        };
        let globs = parts[first..].iter().map(|p| bud_patterns::glob::Glob::new(p)).collect::<Result<Vec<_>, _>>()?;
        let prefix = parts[..first].join("/");
        let Some(start) = self.resolve(prefix.as_bytes(), follow_links)? else { return Ok(Vec::new()) };
        let mut matches: Vec<Vec<u8>> = Vec::new();
        // The last pushed is the next in order.
        let mut waiting = vec![(start.path, 0_usize)];
        while let Some((dir, depth)) = waiting.pop() {
            if depth == globs.len() {
                matches.push(dir);
                if matches.len() > MAX_MATCHES {
                    return Err(FileOpError::Invalid(format!("{path} stands for more than {MAX_MATCHES} files")));
                }
                continue;
            }
            let Some(node) = self.lookup(&dir).map_err(|e| FileOpError::io("look at", &dir, e))? else { continue };
            let names = self.names(&dir, &node)?;
            for name in names.iter().rev().filter(|n| globs[depth].matches(n)) {
                let mut path = dir.clone();
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name);
                waiting.push((path, depth + 1));
            }
        }
        Ok(matches)
    }
}

/// Gives an entry the owner that it should have.
fn own(node: &mut Node, path: &[u8], owners: &Owners) {
    if let Some((uid, gid)) = owners.get(path) {
        node.meta.uid = *uid;
        node.meta.gid = *gid;
    }
}

fn own_all(top: &mut Node, path: &[u8], owners: &Owners) {
    if owners.is_empty() {
        return;
    }
    let mut waiting = vec![(path.to_vec(), top)];
    while let Some((path, node)) = waiting.pop() {
        own(node, &path, owners);
        if let Kind::Dir(children) = &mut node.kind {
            for child in children {
                let below =
                    if path.is_empty() { child.name.to_vec() } else { [&path, &b"/"[..], &child.name].concat() };
                waiting.push((below, child));
            }
        }
    }
}

/// Splits a path into its directory and its last component.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|c| *c == b'/') {
        Some(i) => (&path[..i], &path[i + 1..]),
        None => (b"", path),
    }
}
