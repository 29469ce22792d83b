//! The bytes of an event log: in memory while short, then in a file.

use std::fs::File;
use std::io::{Error, ErrorKind};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

/// Above this the log is in its file.
const SPILL: usize = 256 << 10;
/// No frame is longer.
const FRAME: usize = 16 << 20;

/// A log of frames, each with its length before it (32 bits, big-endian).
#[derive(Debug)]
pub struct EventLog {
    path: PathBuf,
    memory: Vec<u8>,
    file: Option<File>,
    length: u64,
    saved: bool,
}

impl EventLog {
    /// Makes an empty log.
    #[must_use]
    pub fn new(path: PathBuf) -> Self {
        Self { path, memory: Vec::new(), file: None, length: 0, saved: false }
    }

    /// Opens the log of a build that ended.
    ///
    /// # Errors
    /// The file can't be opened.
    pub fn open(path: PathBuf, length: u64) -> std::io::Result<Self> {
        let file = File::open(&path)?;
        let length = length.min(file.metadata()?.len());
        Ok(Self { path, memory: Vec::new(), file: Some(file), length, saved: true })
    }

    /// Returns the length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Returns true while there is nothing in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds a frame and returns the new length. On a full disk the log stays in memory up to a limit, then loses frames.
    pub fn append(&mut self, frame: &[u8]) -> u64 {
        if frame.len() > FRAME {
            return self.length;
        }
        let header = u32::try_from(frame.len()).unwrap_or(0).to_be_bytes();
        if self.file.is_none() && self.memory.len() + frame.len() > SPILL {
            self.spill();
        }
        if let Some(file) = &self.file {
            let mut bytes = Vec::with_capacity(frame.len() + 4);
            bytes.extend_from_slice(&header);
            bytes.extend_from_slice(frame);
            if let Err(error) = file.write_all_at(&bytes, self.length) {
                tracing::warn!(path = %self.path.display(), %error, "a build's log can't be written");
                return self.length;
            }
            self.length += bytes.len() as u64;
        } else if self.memory.len() + frame.len() <= FRAME {
            self.memory.extend_from_slice(&header);
            self.memory.extend_from_slice(frame);
            self.length = self.memory.len() as u64;
        }
        self.length
    }

    fn create(&self) -> std::io::Result<File> {
        File::options().read(true).write(true).create(true).truncate(true).open(&self.path)
    }

    fn spill(&mut self) {
        let written = self.create().and_then(|file| file.write_all_at(&self.memory, 0).map(|()| file));
        match written {
            Ok(file) => {
                self.file = Some(file);
                self.memory = Vec::new();
            }
            Err(error) => tracing::warn!(path = %self.path.display(), %error, "a build's log can't be written"),
        }
    }

    /// Writes what is in memory to the file and returns the length.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&mut self) -> std::io::Result<u64> {
        if self.file.is_none() && !self.saved {
            self.create()?.write_all_at(&self.memory, 0)?;
            self.saved = true;
        }
        Ok(self.length)
    }

    /// Removes the file.
    pub fn discard(&mut self) {
        if (self.file.is_some() || self.saved)
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a build's log can't be removed");
        }
    }

    /// Returns whole frames from an offset on without their lengths, at least one and about `limit` bytes at most, and the offset after them.
    ///
    /// # Errors
    /// The file can't be read.
    pub fn read(&self, mut offset: u64, limit: usize) -> std::io::Result<(Vec<u8>, u64)> {
        let mut bytes = Vec::new();
        while offset < self.length {
            let mut header = [0; 4];
            self.read_at(&mut header, offset)?;
            let size = u32::from_be_bytes(header) as usize;
            if size > FRAME {
                return Err(Error::new(ErrorKind::InvalidData, "damaged event log"));
            }
            if !bytes.is_empty() && bytes.len() + size > limit {
                break;
            }
            let start = bytes.len();
            bytes.resize(start + size, 0);
            self.read_at(&mut bytes[start..], offset + 4)?;
            offset += 4 + size as u64;
        }
        Ok((bytes, offset))
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
        if let Some(file) = &self.file {
            return file.read_exact_at(buffer, offset);
        }
        let start = usize::try_from(offset).map_err(Error::other)?;
        let from = self.memory.get(start..start + buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(from);
        Ok(())
    }
}
