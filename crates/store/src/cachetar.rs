//! Cache mounts as tars: out of the store and into it.

use crate::cachemount::CacheMount;
use crate::fileop::FileOpError;
use crate::layer::{Applied, CAPABILITY, Extract, LayerError, capability};
use crate::scan::{Kind, Node, look, names_of, open_subdir};
use crate::snapshot::Snapshot;
use crate::store::{Store, lock};
use crate::union::Union;
use crate::{Observer, StoreError};
use bud_image::Digest;
use bud_oci::tar::{Header, Kind as TarKind, Reader, Time, Writer};
use rustix::fd::{AsFd, OwnedFd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::sync::Arc;

/// What an import made.
#[derive(Clone, Copy, Debug, Default)]
pub struct Imported {
    /// Entries and bytes.
    pub done: Applied,
    /// Entries whose owner this machine can't give them.
    pub lost_owners: u64,
}

impl CacheMount {
    /// Writes all that is in the directory as a tar, with owners, modes, times, links; its own looks are the first entry. What
    /// only means something on this machine (sockets, devices) is left out.
    ///
    /// # Errors
    /// See [`LayerError`].
    pub fn export(&self, out: impl Write, observer: &dyn Observer) -> Result<Applied, LayerError> {
        let path = self.path();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| FileOpError::io("open", b"/", e))?;
        let writer = Writer::new(std::io::BufWriter::with_capacity(256 << 10, out));
        let mut export = Export { writer, observer, links: HashMap::new(), done: Applied::default() };
        export.walk(root)?;
        let mut out = export.writer.finish().map_err(LayerError::Write)?;
        out.flush().map_err(LayerError::Write)?;
        Ok(export.done)
    }
}

struct Export<'a, W> {
    writer: Writer<W>,
    observer: &'a dyn Observer,
    /// The first name of each file with several.
    links: HashMap<u64, Vec<u8>>,
    done: Applied,
}

struct Level {
    dir: OwnedFd,
    path: Vec<u8>,
    names: std::vec::IntoIter<Box<[u8]>>,
}

fn level(dir: OwnedFd, path: Vec<u8>) -> Result<Level, FileOpError> {
    let names = names_of(&dir).map_err(|e| FileOpError::io("read", &path, e))?;
    Ok(Level { dir, path, names: names.into_iter() })
}

impl<W: Write> Export<'_, W> {
    fn walk(&mut self, root: OwnedFd) -> Result<(), LayerError> {
        let top = look(root.as_fd(), b"").map_err(|e| FileOpError::io("look at", b"/", e))?;
        self.start(&header(b"./".to_vec(), TarKind::Directory, &top))?;
        let mut levels = vec![level(root, Vec::new())?];
        while let Some(current) = levels.last_mut() {
            if self.observer.is_cancelled() {
                return Err(LayerError::Cancelled);
            }
            let Some(name) = current.names.next() else {
                levels.pop();
                continue;
            };
            let path = if current.path.is_empty() { name.to_vec() } else { [&current.path, &b"/"[..], &name].concat() };
            let fail = |what: &'static str| {
                let path = path.clone();
                move |e: Errno| FileOpError::io(what, &path, e)
            };
            let node = look(current.dir.as_fd(), &name).map_err(fail("look at"))?;
            if node.is_dir() {
                if levels.len() >= crate::scan::MAX_DEPTH {
                    return Err(LayerError::entry(&path, "nested too deeply"));
                }
                let parent = levels.last().map(|level| level.dir.as_fd());
                let Some(parent) = parent else { break };
                let dir = open_subdir(parent, &name).map_err(fail("open"))?;
                self.start(&header([&path, &b"/"[..]].concat(), TarKind::Directory, &node))?;
                levels.push(level(dir, path)?);
            } else {
                let dir = current.dir.as_fd();
                let open = || {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                    rustix::fs::openat(dir, &*name, flags, Mode::empty())
                };
                self.leaf(&path, &node, open)?;
            }
        }
        Ok(())
    }

    fn start(&mut self, header: &Header) -> Result<(), LayerError> {
        self.done.entries += 1;
        self.writer.start(header).map_err(LayerError::Write)
    }

    fn leaf(
        &mut self,
        path: &[u8],
        node: &Node,
        open: impl FnOnce() -> Result<OwnedFd, Errno>,
    ) -> Result<(), LayerError> {
        let mut header = header(path.to_vec(), TarKind::File, node);
        match &node.kind {
            Kind::Device { .. } => {
                self.done.skipped_devices += 1;
                return Ok(());
            }
            Kind::Socket | Kind::Dir(_) => return Ok(()),
            Kind::Fifo => header.kind = TarKind::Fifo,
            Kind::Link(target) => {
                header.kind = TarKind::Symlink;
                header.link = target.to_vec();
            }
            Kind::File => {}
        }
        if node.meta.nlink > 1 {
            if let Some(first) = self.links.get(&node.meta.ino) {
                header.kind = TarKind::HardLink;
                header.link.clone_from(first);
                return self.start(&header);
            }
            self.links.insert(node.meta.ino, path.to_vec());
        }
        if header.kind != TarKind::File {
            return self.start(&header);
        }
        let file = open().map_err(|e| FileOpError::io("open", path, e))?;
        let stat = rustix::fs::fstat(&file).map_err(|e| FileOpError::io("look at", path, e))?;
        header.size = u64::try_from(stat.st_size).unwrap_or(0);
        let value = capability(&file).map_err(|e| FileOpError::io("read the attributes of", path, e))?;
        header.xattrs.extend(value.map(|value| (CAPABILITY.as_bytes().to_vec(), value)));
        self.writer.append(&header, std::fs::File::from(file)).map_err(LayerError::Write)?;
        self.done.entries += 1;
        self.done.bytes += header.size;
        self.observer.advance(1, header.size);
        Ok(())
    }
}

fn header(path: Vec<u8>, kind: TarKind, node: &Node) -> Header {
    let (seconds, nanos) = node.meta.mtime;
    Header {
        mode: node.meta.mode,
        uid: node.meta.uid,
        gid: node.meta.gid,
        mtime: Time { seconds, nanos },
        ..Header::new(path, kind)
    }
}

impl Store {
    /// Makes a cache mount hold exactly what a tar holds, compressed or not. The tar is unpacked beside it, with the care that layers
    /// get, and takes its place when all went well: until then, and after an error, it is as it was.
    ///
    /// # Errors
    /// [`StoreError::CacheBusy`]; see [`LayerError`].
    pub fn import_cache_mount(
        self: &Arc<Self>,
        id: &str,
        tar: impl Read + Send,
        observer: &dyn Observer,
    ) -> Result<Imported, LayerError> {
        let dir = format!("{}-0", Digest::of(id).hex());
        let mount = self.hold_directory(id, dir.clone())?;
        let draft = self.draft(&Snapshot::scratch())?;
        let done = {
            let (_, stream) = bud_oci::codec::decompress(tar).map_err(|e| FileOpError::std("read", b"/", e))?;
            let union = Union::of(&draft)?;
            let root = union.root().clone();
            let extract = Extract::new(&union, self, observer, root, false, None).with_root();
            extract.run(&mut Reader::new(stream))?
        };
        let (new, place) = (draft.upper(), mount.path());
        let failed = |source: std::io::Error| StoreError::Io { what: "put in place", path: place.clone(), source };
        // What was there before goes with the draft.
        let exchange = rustix::fs::RenameFlags::EXCHANGE;
        match rustix::fs::renameat_with(rustix::fs::CWD, &new, rustix::fs::CWD, &place, exchange) {
            Ok(()) => {}
            Err(Errno::NOENT) => std::fs::rename(&new, &place).map_err(failed)?,
            Err(_) => {
                std::fs::rename(&place, new.with_extension("old")).map_err(failed)?;
                std::fs::rename(&new, &place).map_err(failed)?;
            }
        }
        self.note_cache_mount(id, &dir)?;
        drop(mount);
        Ok(Imported {
            done: Applied { entries: done.entries, bytes: done.bytes, skipped_devices: done.skipped_devices },
            lost_owners: lock(&draft.notes).owners.len() as u64,
        })
    }
}
