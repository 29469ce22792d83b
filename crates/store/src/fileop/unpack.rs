//! Extracting an archive into a directory.

use crate::fileop::FileOpError;
use crate::fileop::copy::Job;
use crate::layer::{Extract, LayerError};
use crate::scan::Kind;
use crate::tree::{Source, open_beneath};
use crate::union::{NewDirs, current, timespec_of_ns};
use bud_oci::codec::decompress;
use bud_oci::tar::Reader;
use bud_patterns::clean::clean_in_root;
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Seek;

/// Extracts a file into the destination directory if it is a tar, compressed or not. Tells whether it is.
pub(crate) fn unpack(job: &Job<'_>, path: &[u8], dest: &str) -> Result<bool, FileOpError> {
    let Some(found) = job.source.resolve(path, true)? else { return Ok(false) };
    if !matches!(found.node.kind, Kind::File) {
        return Ok(false);
    }
    let fail = |what, e: std::io::Error| FileOpError::std(what, &found.path, e);
    let fd = open_beneath(job.source.root_fd(), &found.path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW)
        .map_err(|e| fail("open", e.into()))?;
    let mut file = File::from(fd);
    if matches!(job.source, Source::Context(_)) {
        let stat = rustix::fs::fstat(&file).map_err(|e| fail("look at", e.into()))?;
        if !crate::scan::Meta::of(&stat).same_content(&found.node.meta) {
            return Err(FileOpError::Changed { path: super::shown(&found.path) });
        }
    }
    if !is_archive(&mut file) {
        return Ok(false);
    }
    file.rewind().map_err(|e| fail("read", e))?;
    let new = NewDirs { mode: 0o755, ..job.new_dirs() };
    let mut dirs = job.make_dirs(clean_in_root(dest).as_bytes(), &new)?;
    job.union.copy_up(&mut dirs)?;
    // The archive's root is the destination: its links lead nowhere else.
    let root = current(&dirs)?.clone();
    let (_, stream) = decompress(file).map_err(|e| fail("read", e))?;
    let extract = Extract::new(job.union, job.store, job.observer, root.clone(), false, job.copy.owner);
    let done = extract.run(&mut Reader::new(stream)).map_err(|e| match e {
        LayerError::Cancelled => FileOpError::Cancelled,
        LayerError::File(e) => e,
        e => FileOpError::Invalid(format!("unpack {}: {e}", super::shown(&found.path))),
    })?;
    if let (Some(time), Some(upper)) = (job.copy.timestamp, &root.upper) {
        rustix::fs::futimens(upper, &crate::union::timestamps(timespec_of_ns(time)))
            .map_err(|e| fail("set the time of", e.into()))?;
    }
    job.stats.add(&(), done.entries, done.bytes);
    Ok(true)
}

/// Tells whether a file is a tar with at least one entry that can be read.
fn is_archive(file: &mut File) -> bool {
    let Ok((_, stream)) = decompress(&mut *file) else { return false };
    matches!(Reader::new(stream).next_entry(), Ok(Some(_)))
}
