//! `local` and `tar`: the result's files, into a directory or a tar at the client.

use super::commit::metadata_of;
use super::options::{self, flag};
use super::{ExportCx, ExportTree, Exportable, Response};
use crate::sessions::session_error;
use crate::value::{blocking, store_error};
use bud_oci::tar::{Header, Kind, Time, Writer};
use bud_patterns::Filter;
use bud_protocol::errors::BuildError;
use bud_session::fsutil::{Part, TreeSource};
use bud_store::Tree;
use rustix::fs::{FileType, Mode, OFlags};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The `local` and `tar` exporters.
#[derive(Clone, Debug)]
pub struct FilesExporter {
    /// A tar stream instead of files.
    tar: bool,
    /// A directory for each platform; none: if the result is for several.
    split: Option<bool>,
    /// The time of all files; inner none: given as empty.
    epoch: Option<Option<i64>>,
}

impl FilesExporter {
    /// Parses the attributes: `platform-split`, `mode`, `source-date-epoch`; `attestation-prefix` has nothing to name here.
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(kind: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        match attrs.get("mode").map(String::as_str) {
            // What isn't in the result is deleted by the client, which is sent all of it in one tree.
            None | Some("" | "copy" | "delete") => {}
            Some(other) => return Err(BuildError::invalid(format!("invalid local exporter mode {other:?}"))),
        }
        Ok(Self {
            tar: kind == "tar",
            split: flag(attrs, "platform-split")?,
            epoch: attrs.get("source-date-epoch").map(|text| options::epoch(text)).transpose()?,
        })
    }

    /// Returns the vertex's name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        if self.tar { "exporting to client tarball" } else { "exporting to client directory" }
    }

    /// Sends the files.
    ///
    /// # Errors
    /// The client fails.
    pub async fn export(&self, cx: &ExportCx, result: &Exportable) -> Result<Response, BuildError> {
        let split = self.split.unwrap_or(result.multi_platform);
        let session = cx.sessions.get(&cx.session).await?;
        let mut parts = Vec::new();
        let mut time = None;
        for tree in &result.trees {
            time = time.or(self.time(result, tree)?);
            let id = if tree.id.is_empty() { tree.platform.to_string() } else { tree.id.clone() };
            let prefix = if split { id.replace('/', "_") } else { String::new() };
            let (store, snapshot) = (Arc::clone(&cx.daemon.store), tree.snapshot.clone());
            let opened = blocking(move || {
                let tree = store.tree(&snapshot).map_err(store_error)?;
                let root = tree
                    .open(b"/", OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(|e| BuildError::other(format!("open the result's files: {e}")))?;
                Ok((tree, root))
            })
            .await?;
            parts.push((prefix, opened));
        }
        if !split && parts.len() > 1 && !self.tar {
            return Err(BuildError::invalid("files of several platforms need platform-split=true"));
        }
        if self.tar {
            self.send_tar(cx, &session, parts, time).await?;
        } else {
            let _copying = cx.progress.status("copying files");
            let mut kept = Vec::new();
            let mut source = TreeSource { parts: Vec::new(), filter: Filter::all(), owner: None, clamp_time: time };
            for (prefix, (tree, root)) in parts {
                kept.push(tree);
                source.parts.push(Part { prefix, root });
            }
            session.send_tree(cx.index, source, None).await.map_err(session_error)?;
        }
        Ok(Response::new())
    }

    fn time(&self, result: &Exportable, tree: &ExportTree) -> Result<Option<i64>, BuildError> {
        match self.epoch {
            Some(epoch) => Ok(epoch),
            None => match metadata_of(result, "source.date.epoch", tree) {
                Some(text) => options::epoch(&String::from_utf8_lossy(text)),
                None => Ok(None),
            },
        }
    }

    async fn send_tar(
        &self,
        cx: &ExportCx,
        session: &bud_session::Session,
        parts: Vec<(String, (Tree, OwnedFd))>,
        time: Option<i64>,
    ) -> Result<(), BuildError> {
        let _sending = cx.progress.status("sending tarball");
        let upload = session.send_file(cx.index, &Response::new()).map_err(session_error)?;
        let cancel = cx.cancel.clone();
        blocking(move || {
            let mut output = upload.into_blocking();
            let written = write_tar(&parts, time, &mut output, &cancel);
            match written {
                Ok(()) => match output.finish() {
                    Err(error) if error.is_already_exists() => Ok(()),
                    result => result.map_err(session_error),
                },
                // Not finished: the client must not take a part for the whole.
                Err(_) if output.declined() => Ok(()),
                Err(error) => Err(error),
            }
        })
        .await
    }
}

/// Writes trees as one tar, in order of names, without following any link.
fn write_tar(
    parts: &[(String, (Tree, OwnedFd))],
    time: Option<i64>,
    output: impl Write,
    cancel: &CancellationToken,
) -> Result<(), BuildError> {
    let failed = |e: std::io::Error| BuildError::other(format!("write the tar: {e}"));
    let mut writer = TreeTar { tar: Writer::new(output), time, linked: HashMap::new(), cancel };
    for (prefix, (_, root)) in parts {
        let mut path = prefix.clone().into_bytes();
        if !path.is_empty() {
            path.push(b'/');
            writer
                .tar
                .start(&Header { mtime: writer.limited(0, 0), ..Header::new(path.clone(), Kind::Directory) })
                .map_err(failed)?;
        }
        writer.linked.clear();
        writer.directory(root, path).map_err(failed)?;
    }
    writer.tar.finish().map_err(failed)?;
    Ok(())
}

struct TreeTar<'a, W> {
    tar: Writer<W>,
    time: Option<i64>,
    /// First names of files that have several.
    linked: HashMap<(u64, u64), Vec<u8>>,
    cancel: &'a CancellationToken,
}

/// A directory that is being written.
struct Level {
    fd: OwnedFd,
    path: Vec<u8>,
    names: std::vec::IntoIter<Vec<u8>>,
}

impl<W: Write> TreeTar<'_, W> {
    fn limited(&self, seconds: i64, nanos: u32) -> Time {
        match self.time {
            Some(time) => Time { seconds: time, nanos: 0 },
            None => Time { seconds, nanos },
        }
    }

    /// Writes what is in a directory, however deep.
    fn directory(&mut self, root: &OwnedFd, path: Vec<u8>) -> std::io::Result<()> {
        let mut levels = vec![level(root.try_clone()?, path)?];
        while let Some(current) = levels.last_mut() {
            if self.cancel.is_cancelled() {
                return Err(std::io::Error::new(std::io::ErrorKind::Interrupted, "cancelled"));
            }
            let Some(name) = current.names.next() else {
                levels.pop();
                continue;
            };
            let mut path = current.path.clone();
            path.extend_from_slice(&name);
            if let Some(fd) = self.entry(&current.fd, &name, &path)? {
                path.push(b'/');
                levels.push(level(fd, path)?);
            }
        }
        Ok(())
    }

    /// Writes an entry; returns it open if it is a directory.
    fn entry(&mut self, dir: &OwnedFd, name: &[u8], path: &[u8]) -> std::io::Result<Option<OwnedFd>> {
        let stat = rustix::fs::statat(dir, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => Kind::File,
            FileType::Directory => Kind::Directory,
            FileType::Symlink => Kind::Symlink,
            FileType::Fifo => Kind::Fifo,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            // Sockets mean nothing elsewhere.
            _ => return Ok(None),
        };
        let mut header = Header::new(path, kind);
        header.mode = stat.st_mode & 0o7777;
        (header.uid, header.gid) = (stat.st_uid, stat.st_gid);
        #[allow(clippy::unnecessary_cast)]
        {
            header.mtime = self.limited(stat.st_mtime as i64, 0);
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            Kind::Directory => {
                let fd = rustix::fs::openat(dir, name, flags | OFlags::DIRECTORY, Mode::empty())?;
                header.path.push(b'/');
                header.xattrs = xattrs(&fd);
                self.tar.start(&header)?;
                return Ok(Some(fd));
            }
            Kind::File => {
                if stat.st_nlink > 1 {
                    let id = (stat.st_dev, stat.st_ino);
                    if let Some(first) = self.linked.get(&id) {
                        header.kind = Kind::HardLink;
                        header.link.clone_from(first);
                        self.tar.start(&header)?;
                        return Ok(None);
                    }
                    self.linked.insert(id, path.to_vec());
                }
                let fd = rustix::fs::openat(dir, name, flags | OFlags::NONBLOCK, Mode::empty())?;
                header.size = u64::try_from(rustix::fs::fstat(&fd)?.st_size).unwrap_or_default();
                header.xattrs = xattrs(&fd);
                self.tar.append(&header, std::io::BufReader::with_capacity(256 << 10, File::from(fd)))?;
            }
            Kind::Symlink => {
                header.link = rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes();
                self.tar.start(&header)?;
            }
            Kind::CharDevice | Kind::BlockDevice => {
                header.device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
                self.tar.start(&header)?;
            }
            Kind::Fifo | Kind::HardLink => self.tar.start(&header)?,
        }
        Ok(None)
    }
}

fn level(fd: OwnedFd, path: Vec<u8>) -> std::io::Result<Level> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&fd)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(Level { fd, path, names: names.into_iter() })
}

/// Reads the one extended attribute that layers carry.
fn xattrs(fd: &impl AsFd) -> Vec<(Vec<u8>, Vec<u8>)> {
    const CAPABILITY: &str = "security.capability";
    let mut value = vec![0; 256];
    match rustix::fs::fgetxattr(fd, CAPABILITY, &mut value) {
        Ok(n) if n <= value.len() => {
            value.truncate(n);
            vec![(CAPABILITY.into(), value)]
        }
        _ => Vec::new(),
    }
}
