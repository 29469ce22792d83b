//! Steps where the machine refuses overlays: a step works in a copy of its own, and what it changed there becomes the layer.
//!
//! The copy's files are no links to the layers' files: a step may write to them. Where the file system can, they share blocks.
//! Hard links are taken apart, as an overlay does with those that a step changes one name of. After the step, entries
//! are compared with what they were by inode number, times and looks; what differs is moved into the layer, so nothing
//! is copied a second time, and the layer is the one that an overlay would have kept.

use crate::fileop::{Copy, FileOpError, copy_apart, copy_to_directory};
use crate::flatten::set_looks;
use crate::scan::{Kind, Meta, Node, look, names_of, open_subdir, scan};
use crate::snapshot::{LayerDraft, Snapshot};
use crate::store::{Store, lock};
use crate::tree::{Source, Tree};
use crate::union::{copy_xattrs, make_whiteout, make_whiteout_device, set_opaque, xattr_names, xattr_value};
use crate::{Observer, StoreError};
use bud_patterns::Filter;
use bud_sandbox::overlay::{MountApi, Overlay};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Times of changes are as coarse as the kernel's tick; a step must not start within the one in which its files were copied.
const TICK: std::time::Duration = std::time::Duration::from_millis(10);

/// Where a step sees a tree.
#[derive(Clone, Debug)]
pub enum View {
    /// An overlay to be mounted.
    Overlay(Overlay),
    /// A directory as it is. Unless it was made for this step, it must not be written to.
    Directory(PathBuf),
}

/// A step's own copy of a tree.
pub(crate) struct Private {
    /// What was in it when the step began.
    before: Node,
    /// The parent's tree, which the copy was made of.
    like: Tree,
}

impl Store {
    /// Tries whether overlays can be mounted and do what layers need of them: a directory that replaces another hides it.
    ///
    /// What worked is remembered until the machine starts again.
    ///
    /// # Errors
    /// What the kernel said, if overlays are required; else copies are made from now on.
    pub fn try_overlay(self: &Arc<Self>) -> Result<(), StoreError> {
        if self.remembers_overlay() && !self.is_native() {
            return Ok(());
        }
        let dir = self.layers_dir().join(self.new_layer_id()?.0.to_string());
        let tried = self.try_in(&dir);
        crate::disk::remove_later(&dir);
        match tried {
            _ if self.is_native() => Ok(()),
            Ok(()) => self.remember_overlay(),
            Err(error) if self.requires_overlay() => Err(StoreError::Overlay(format!(
                "{error}; {}, or start the daemon with --oci-worker-snapshotter=native, which copies",
                remedy()
            ))),
            Err(error) => {
                self.refuse_overlay(&error);
                Ok(())
            }
        }
    }

    fn try_in(&self, dir: &Path) -> Result<(), String> {
        let said = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
        for sub in ["lower/d", "fs", "work"] {
            std::fs::create_dir_all(dir.join(sub)).map_err(said("make directories to try with"))?;
        }
        // Layers whose whiteouts are links are for copies alone, also if overlays come to work one day.
        let marked = || self.has_links_for_whiteouts().map_err(|e| e.to_string());
        let lower = std::fs::File::open(dir.join("lower")).map_err(said("open a directory to try with"))?;
        if !marked()? && make_whiteout_device(&lower, b"whiteout").is_err() {
            self.note_links_for_whiteouts().map_err(|e| e.to_string())?;
        }
        if self.is_native() {
            return Ok(());
        }
        try_overlay_in(dir)?;
        match marked()? {
            true => Err("the layers in this state directory were made without them".into()),
            false => Ok(()),
        }
    }

    /// Returns where a tree can be seen read-only.
    ///
    /// # Errors
    /// The tree can't be laid together where there are no overlays.
    pub fn view(self: &Arc<Self>, snapshot: &Snapshot) -> Result<View, StoreError> {
        if self.is_native() {
            return Ok(View::Directory(self.flat_tree(snapshot)?));
        }
        Ok(View::Overlay(self.overlay(snapshot)))
    }
}

/// Says what lets overlays be mounted.
pub(crate) fn remedy() -> &'static str {
    "a state directory (--root) on ext4, xfs or btrfs and a kernel of 5.11 or later allow them"
}

fn try_overlay_in(dir: &Path) -> Result<(), String> {
    let said = |what: &'static str| move |e: std::io::Error| format!("{what}: {e}");
    std::fs::write(dir.join("lower/d/f"), "").map_err(said("make a file to try with"))?;
    let overlay = Overlay {
        lowers: vec![dir.join("lower")],
        upper: Some(dir.join("fs")),
        work: Some(dir.join("work")),
        volatile: true,
    };
    let root = overlay.mount(MountApi::from_environment()).map_err(|e| e.to_string())?;
    let io = |what: &'static str| move |e: Errno| format!("{what}: {}", std::io::Error::from(e));
    crate::disk::remove_at(&root, b"d").map_err(said("remove a directory in an overlay"))?;
    rustix::fs::mkdirat(&root, "d", Mode::RWXU).map_err(io("make a directory in an overlay"))?;
    let made = open_subdir(root.as_fd(), b"d").map_err(io("open a directory in an overlay"))?;
    match names_of(&made).map_err(io("read a directory in an overlay"))?.is_empty() {
        true => Ok(()),
        false => Err("a directory that was made anew still shows what it hides".into()),
    }
}

impl LayerDraft {
    /// Returns the directory of the step's own copy.
    pub(crate) fn private_dir(&self) -> PathBuf {
        self.upper().with_file_name("private")
    }

    /// Returns where a step can write: an overlay with this layer on top, or a copy of its own, in which the entries of
    /// `base` are too where the tree has none of that name.
    ///
    /// # Errors
    /// The copy can't be made.
    pub fn writable(&self, base: Option<&Path>, observer: &dyn Observer) -> Result<View, FileOpError> {
        if !self.store().is_native() {
            return Ok(View::Overlay(self.overlay()));
        }
        let dir = self.private_dir();
        std::fs::create_dir(&dir).map_err(|e| FileOpError::std("create", b"/", e))?;
        let like = self.store().tree(self.parent())?;
        let copy = Copy {
            src: "/".into(),
            dest: "/".into(),
            dir_copy_contents: true,
            always_replace_existing_dest_paths: true,
            ..Copy::default()
        };
        if let Some(base) = base.filter(|base| base.is_dir()) {
            let base = Tree::of_directory(base)?;
            copy_to_directory(self.store(), &dir, Source::Tree(&base), &copy, observer)?;
        }
        copy_apart(self.store(), &dir, &like, observer)?;
        let root = open(&dir)?;
        let fail = |what| move |e: Errno| FileOpError::io(what, b"/", e);
        let looks = if self.parent().is_scratch() { open(&self.upper())? } else { dup(&like)? };
        copy_xattrs(&looks, &root).map_err(fail("copy the attributes of"))?;
        set_looks(&root, &look(looks.as_fd(), b"").map_err(fail("look at"))?)?;
        let before = scan(root, b"", &Filter::all())?;
        *lock(&self.private) = Some(Private { before, like });
        std::thread::sleep(TICK);
        Ok(View::Directory(dir))
    }

    /// Moves what a step changed in its copy into the layer.
    pub(crate) fn gather(&self) -> Result<(), FileOpError> {
        let Some(private) = lock(&self.private).take() else { return Ok(()) };
        gather(&open(&self.private_dir())?, &private.before, &dup(&private.like)?, &open(&self.upper())?)?;
        crate::disk::remove_later(&self.private_dir());
        Ok(())
    }
}

fn open(dir: &Path) -> Result<OwnedFd, FileOpError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))
}

fn dup(fd: impl AsFd) -> Result<OwnedFd, FileOpError> {
    fd.as_fd().try_clone_to_owned().map_err(|e| FileOpError::std("open", b"/", e))
}

/// A directory that was there before the step and still is.
struct Level<'n> {
    before: &'n Node,
    now: Node,
    from: OwnedFd,
    /// The same directory in the parent's tree.
    like: Option<OwnedFd>,
    /// The same directory in the layer, once there is something to put in it.
    upper: Option<OwnedFd>,
    names: Vec<Box<[u8]>>,
    next: usize,
}

impl<'n> Level<'n> {
    fn new(before: &'n Node, from: OwnedFd, like: Option<OwnedFd>, upper: Option<OwnedFd>) -> Result<Self, Errno> {
        let mut now = look(from.as_fd(), b"")?;
        now.name = before.name.clone();
        let names = names_of(&from)?;
        Ok(Self { before, now, from, like, upper, names, next: 0 })
    }

    /// Tells whether the directory itself was changed, or lost a name.
    fn has_changed(&self) -> Result<bool, Errno> {
        let looks = |m: &Meta| (m.mode, m.uid, m.gid, m.mtime);
        if looks(&self.before.meta) != looks(&self.now.meta) {
            return Ok(true);
        }
        // Mount points that came and went change this time alone; attributes do so too.
        match &self.like {
            Some(like) if self.before.meta.ctime != self.now.meta.ctime => {
                Ok(attributes(like)? != attributes(&self.from)?)
            }
            _ => Ok(false),
        }
    }

    fn lost(&self) -> Vec<&'n [u8]> {
        let Kind::Dir(before) = &self.before.kind else { return Vec::new() };
        before
            .iter()
            .map(|n| &*n.name)
            .filter(|n| self.names.binary_search_by(|name| (**name).cmp(n)).is_err())
            .collect()
    }
}

fn attributes(dir: &OwnedFd) -> Result<Vec<(String, Vec<u8>)>, Errno> {
    xattr_names(dir)?.into_iter().map(|name| xattr_value(dir, &name).map(|value| (name, value))).collect()
}

/// Tells whether an entry that isn't a directory is as it was.
fn is_same(before: &Node, now: &Node) -> bool {
    let (a, b) = (&before.meta, &now.meta);
    std::mem::discriminant(&before.kind) == std::mem::discriminant(&now.kind)
        && a.same_content(b)
        && (a.mode, a.uid, a.gid, a.rdev) == (b.mode, b.uid, b.gid, b.rdev)
}

fn gather(from: &OwnedFd, before: &Node, like: &OwnedFd, upper: &OwnedFd) -> Result<(), FileOpError> {
    let fail = |what| move |e: Errno| FileOpError::io(what, b"/", e);
    let top = Level::new(before, dup(from)?, Some(dup(like)?), Some(dup(upper)?)).map_err(fail("read"))?;
    let mut stack = vec![top];
    while let Some(level) = stack.last_mut() {
        let Some(name) = level.names.get(level.next).cloned() else {
            finish(&mut stack)?;
            continue;
        };
        level.next += 1;
        let fail = |what| {
            let name = name.clone();
            move |e: Errno| FileOpError::io(what, &name, e)
        };
        let now = look(level.from.as_fd(), &name).map_err(fail("look at"))?;
        let before = level.before.child(&name);
        match before {
            Some(before) if before.is_dir() && now.is_dir() && before.meta.ino == now.meta.ino => {
                let from = open_subdir(level.from.as_fd(), &name).map_err(fail("open"))?;
                let like = level.like.as_ref().and_then(|like| open_subdir(like.as_fd(), &name).ok());
                stack.push(Level::new(before, from, like, None).map_err(fail("read"))?);
            }
            Some(before) if !before.is_dir() && is_same(before, &now) => {}
            before => {
                ensure(&mut stack)?;
                let Some(Level { from, upper: Some(upper), .. }) = stack.last() else { continue };
                rustix::fs::renameat(from, &*name, upper, &*name).map_err(fail("move"))?;
                if now.is_dir() && before.is_some() {
                    let dir = open_subdir(upper.as_fd(), &name).map_err(fail("open"))?;
                    set_opaque(&dir).map_err(fail("hide what was below"))?;
                }
            }
        }
    }
    Ok(())
}

/// Ends a directory: hides what went away in it, and gives the layer's directory its looks.
fn finish(stack: &mut Vec<Level<'_>>) -> Result<(), FileOpError> {
    let Some(level) = stack.last() else { return Ok(()) };
    let fail = |what, name: &[u8]| {
        let name = name.to_vec();
        move |e: Errno| FileOpError::io(what, &name, e)
    };
    let lost = level.lost();
    if !lost.is_empty() || level.has_changed().map_err(fail("look at", &level.before.name))? {
        ensure(stack)?;
    }
    let Some(Level { from, upper: Some(upper), now, .. }) = stack.pop() else { return Ok(()) };
    for name in lost {
        make_whiteout(&upper, name).map_err(fail("hide", name))?;
    }
    copy_xattrs(&from, &upper).map_err(fail("copy the attributes of", &now.name))?;
    set_looks(&upper, &now)
}

/// Makes the directories that lead to the last one in the layer.
fn ensure(stack: &mut [Level<'_>]) -> Result<(), FileOpError> {
    for n in 1..stack.len() {
        let (above, below) = stack.split_at_mut(n);
        let (Some(Level { upper: Some(parent), .. }), Some(level)) = (above.last(), below.first_mut()) else {
            continue;
        };
        if level.upper.is_none() {
            let name = &*level.before.name;
            let made = rustix::fs::mkdirat(parent, name, Mode::RWXU).and_then(|()| open_subdir(parent.as_fd(), name));
            level.upper = Some(made.map_err(|e| FileOpError::io("create", name, e))?);
        }
    }
    Ok(())
}
