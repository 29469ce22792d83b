//! Writing a layer as a tar, with what the reference's differ lists: changed entries with their parent directories, in order.

use crate::fileop::FileOpError;
use crate::layer::{LayerError, WriteOptions};
use crate::scan::{Kind, Meta, Node, look, names_of, scan};
use crate::snapshot::{Owners, Snapshot};
use crate::store::Store;
use crate::tree::open_beneath;
use crate::union::{is_opaque, is_whiteout, xattr_value};
use crate::{Observer, StoreError};
use bud_oci::tar::{Header, Kind as TarKind, Time, Writer};
use bud_patterns::Filter;
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Write};
use std::sync::Arc;

/// The one extended attribute that layers carry.
pub(crate) const CAPABILITY: &str = "security.capability";

/// Writes the topmost image layer of a snapshot as a reproducible tar. The scratch snapshot makes an empty one.
///
/// # Errors
/// See [`LayerError`].
pub fn write_tar(
    store: &Arc<Store>,
    snapshot: &Snapshot,
    out: impl Write,
    options: &WriteOptions,
    observer: &dyn Observer,
) -> Result<(), LayerError> {
    let writer = Writer::new(std::io::BufWriter::with_capacity(256 << 10, out));
    let Some((top, below)) = snapshot.layers().split_last() else {
        return finish(writer);
    };
    let pin = store.pin(snapshot)?;
    let owners = store.layer_owners(*top)?;
    let tree = store.tree(&Snapshot::from_layers(below.to_vec()))?;
    let path = store.layer_fs(*top);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let upper = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| match e {
        Errno::NOENT => StoreError::LayerGone(top.0),
        e => StoreError::Io { what: "open", path: path.clone(), source: e.into() },
    })?;
    let walked = upper.try_clone().map_err(|e| FileOpError::std("open", b"/", e))?;
    let node = scan(walked, b"", &Filter::all())?;
    let base = if below.is_empty() {
        None
    } else {
        Some(
            open_beneath(tree.as_fd(), b"", OFlags::RDONLY | OFlags::DIRECTORY)
                .map_err(|e| FileOpError::io("open", b"/", e))?,
        )
    };
    let mut tar = LayerTar {
        writer,
        owners,
        base_owners: tree.owners().clone(),
        options,
        observer,
        links: HashMap::new(),
        written: HashSet::new(),
    };
    tar.walk(&node, upper, base)?;
    drop(pin);
    finish(tar.writer)
}

fn finish<W: Write>(writer: Writer<std::io::BufWriter<W>>) -> Result<(), LayerError> {
    writer.finish().and_then(|mut out| out.flush()).map_err(LayerError::Write)
}

struct LayerTar<'a, W> {
    writer: Writer<W>,
    owners: Owners,
    /// Of what is below the layer.
    base_owners: Owners,
    options: &'a WriteOptions,
    observer: &'a dyn Observer,
    /// The first name of each file with several.
    links: HashMap<u64, Vec<u8>>,
    /// Directories that have their entry.
    written: HashSet<Vec<u8>>,
}

/// A directory on the way.
struct Level<'n> {
    node: &'n Node,
    dir: Arc<OwnedFd>,
    /// The same directory below the layer, if it is one there.
    base: Option<Arc<OwnedFd>>,
    /// It doesn't show what is below: what isn't in the layer has to be deleted by name.
    hides: bool,
    path: Vec<u8>,
    /// Names to go through, the last first.
    names: Vec<Name<'n>>,
}

enum Name<'n> {
    Upper(&'n Node),
    /// Only below.
    Hidden(Box<[u8]>),
}

fn fail(what: &'static str, path: &[u8]) -> impl FnOnce(Errno) -> FileOpError {
    let path = path.to_vec();
    move |e| FileOpError::io(what, &path, e)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

impl<W: Write> LayerTar<'_, W> {
    fn walk(&mut self, top: &Node, dir: OwnedFd, base: Option<OwnedFd>) -> Result<(), LayerError> {
        let mut stack = vec![level(top, Arc::new(dir), base.map(Arc::new), false, Vec::new())?];
        while let Some(current) = stack.last_mut() {
            let Some(name) = current.names.pop() else {
                stack.pop();
                continue;
            };
            if self.observer.is_cancelled() {
                return Err(LayerError::Cancelled);
            }
            match name {
                Name::Hidden(name) => {
                    let path = current.path.clone();
                    self.whiteout(&stack, &path, &name)?;
                }
                Name::Upper(node) => {
                    let path = join(&current.path, &node.name);
                    let below = match &current.base {
                        Some(base) => match look(base.as_fd(), &node.name) {
                            Err(Errno::NOENT) => None,
                            other => Some(other.map_err(fail("look at", &path))?),
                        },
                        None => None,
                    };
                    if is_whiteout(node) {
                        if below.is_some() {
                            let dir = current.path.clone();
                            self.whiteout(&stack, &dir, &node.name)?;
                        }
                        continue;
                    }
                    if matches!(node.kind, Kind::Socket) {
                        continue;
                    }
                    let (dir, base, hides) = (Arc::clone(&current.dir), current.base.clone(), current.hides);
                    let same = match (&below, &base) {
                        (Some(below), Some(base)) => self.is_same(&path, node, &dir, below, base)?,
                        _ => false,
                    };
                    if !same {
                        self.parents(&stack)?;
                        self.entry(&path, node, &dir)?;
                    }
                    if node.is_dir() {
                        let inner = crate::scan::open_subdir(dir.as_fd(), &node.name).map_err(fail("open", &path))?;
                        let hides = hides || is_opaque(&inner);
                        let base = match (&base, below.is_some_and(|b| b.is_dir())) {
                            (Some(base), true) => Some(Arc::new(
                                crate::scan::open_subdir(base.as_fd(), &node.name).map_err(fail("open", &path))?,
                            )),
                            _ => None,
                        };
                        let next = level(node, Arc::new(inner), base, hides, path)?;
                        stack.push(next);
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the directories that an entry is in, if they have no entry yet.
    fn parents(&mut self, stack: &[Level<'_>]) -> Result<(), LayerError> {
        for pair in stack.windows(2) {
            if !self.written.contains(&pair[1].path) {
                let dir = Arc::clone(&pair[0].dir);
                self.entry(&pair[1].path.clone(), pair[1].node, &dir)?;
            }
        }
        Ok(())
    }

    fn whiteout(&mut self, stack: &[Level<'_>], dir: &[u8], name: &[u8]) -> Result<(), LayerError> {
        self.parents(stack)?;
        let path = join(dir, &[b".wh.", name].concat());
        let header = Header { mode: 0, ..Header::new(path, TarKind::File) };
        self.writer.start(&header).map_err(LayerError::Write)
    }

    fn entry(&mut self, path: &[u8], node: &Node, dir: &OwnedFd) -> Result<(), LayerError> {
        let (kind, link) = match &node.kind {
            Kind::Dir(_) => (TarKind::Directory, Vec::new()),
            Kind::Link(target) => (TarKind::Symlink, target.to_vec()),
            Kind::Fifo => (TarKind::Fifo, Vec::new()),
            Kind::Device { block: true } => (TarKind::BlockDevice, Vec::new()),
            Kind::Device { block: false } => (TarKind::CharDevice, Vec::new()),
            Kind::File | Kind::Socket => (TarKind::File, Vec::new()),
        };
        let mut name = path.to_vec();
        if node.is_dir() {
            self.written.insert(path.to_vec());
            name.push(b'/');
        }
        let (uid, gid) = self.owners.get(path).copied().unwrap_or((node.meta.uid, node.meta.gid));
        let mut header = Header {
            mode: if kind == TarKind::Symlink { 0o777 } else { node.meta.mode },
            uid,
            gid,
            mtime: Time { seconds: self.time(&node.meta), nanos: 0 },
            link,
            ..Header::new(name, kind)
        };
        if let Kind::Device { .. } = node.kind {
            header.device = (rustix::fs::major(node.meta.rdev), rustix::fs::minor(node.meta.rdev));
        }
        if !node.is_dir() && node.meta.nlink > 1 {
            if let Some(first) = self.links.get(&node.meta.ino) {
                header.kind = TarKind::HardLink;
                header.link.clone_from(first);
                return self.writer.start(&header).map_err(LayerError::Write);
            }
            self.links.insert(node.meta.ino, path.to_vec());
        }
        if kind != TarKind::File {
            return self.writer.start(&header).map_err(LayerError::Write);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(dir, &*node.name, flags, Mode::empty()).map_err(fail("open", path))?;
        header.size = node.meta.size;
        if let Some(value) = capability(&file).map_err(fail("read the attributes of", path))? {
            header.xattrs.push((CAPABILITY.as_bytes().to_vec(), value));
        }
        self.writer.append(&header, std::fs::File::from(file)).map_err(LayerError::Write)?;
        self.observer.advance(1, node.meta.size);
        Ok(())
    }

    /// Whole seconds, as the reference writes them.
    fn time(&self, meta: &Meta) -> i64 {
        match self.options.source_date_epoch {
            Some(epoch) if self.options.rewrite_timestamp => meta.mtime.0.min(epoch),
            _ => meta.mtime.0,
        }
    }

    /// Tells whether an entry is the one that is below: a directory on the way to a change, a file that was only touched.
    fn is_same(
        &self,
        path: &[u8],
        node: &Node,
        dir: &OwnedFd,
        below: &Node,
        base: &OwnedFd,
    ) -> Result<bool, LayerError> {
        let (a, b) = (&node.meta, &below.meta);
        let owner = |owners: &Owners, meta: &Meta| owners.get(path).copied().unwrap_or((meta.uid, meta.gid));
        let same_owner = owner(&self.owners, a) == owner(&self.base_owners, b);
        let same_kind = std::mem::discriminant(&node.kind) == std::mem::discriminant(&below.kind);
        if !same_kind || !same_owner || (a.mode, a.rdev) != (b.mode, b.rdev) {
            return Ok(false);
        }
        if node.is_dir() {
            return Ok(true);
        }
        if a.size != b.size || a.mtime != b.mtime {
            return Ok(false);
        }
        match (&node.kind, &below.kind) {
            (Kind::Link(one), Kind::Link(two)) => Ok(one == two),
            (Kind::File, _) => {
                let open = |dir: &OwnedFd| {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    rustix::fs::openat(dir, &*node.name, flags, Mode::empty())
                };
                let one = open(dir).map_err(fail("open", path))?;
                let two = open(base).map_err(fail("open", path))?;
                let capabilities = |fd: &OwnedFd| capability(fd).map_err(fail("read the attributes of", path));
                if capabilities(&one)? != capabilities(&two)? {
                    return Ok(false);
                }
                // Two versions may share a time: unpacked files have whole seconds, and the kernel's clock ticks in milliseconds.
                let one_file = (a.ino, a.ctime) == (b.ino, b.ctime);
                Ok(one_file || same_bytes(one, two).map_err(|e| FileOpError::std("read", path, e))?)
            }
            _ => Ok(true),
        }
    }
}

fn level<'n>(
    node: &'n Node,
    dir: Arc<OwnedFd>,
    base: Option<Arc<OwnedFd>>,
    hides: bool,
    path: Vec<u8>,
) -> Result<Level<'n>, FileOpError> {
    let Kind::Dir(children) = &node.kind else {
        return Err(FileOpError::io("open", &path, Errno::NOTDIR));
    };
    let mut names: Vec<Name<'n>> = children.iter().map(Name::Upper).collect();
    if let (true, Some(base)) = (hides, &base) {
        for name in names_of(base).map_err(|e| FileOpError::io("read", &path, e))? {
            if node.child(&name).is_none() {
                names.push(Name::Hidden(name));
            }
        }
        names.sort_by(|a, b| name_of(a).cmp(name_of(b)));
    }
    names.reverse();
    Ok(Level { node, dir, base, hides, path, names })
}

fn name_of<'a>(name: &'a Name<'_>) -> &'a [u8] {
    match name {
        Name::Upper(node) => &node.name,
        Name::Hidden(name) => name,
    }
}

/// Reads it of a file.
pub(crate) fn capability(fd: &OwnedFd) -> Result<Option<Vec<u8>>, Errno> {
    match xattr_value(fd, CAPABILITY) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Compares two files.
pub(crate) fn same_bytes(one: OwnedFd, two: OwnedFd) -> std::io::Result<bool> {
    let (mut one, mut two) = (std::fs::File::from(one), std::fs::File::from(two));
    let (mut a, mut b) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    loop {
        let n = read_full(&mut one, &mut a)?;
        let m = read_full(&mut two, &mut b)?;
        if a[..n] != b[..m] {
            return Ok(false);
        }
        if n < a.len() {
            return Ok(true);
        }
    }
}

fn read_full(file: &mut std::fs::File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read(&mut buffer[done..])? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}
