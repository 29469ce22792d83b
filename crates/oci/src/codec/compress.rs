//! Writing compressed streams, with the digests of both sides.

use super::{Compression, gzip, threads};
use bud_image::Digest;
use sha2::Digest as _;
use std::io::{Error, ErrorKind, Write};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

/// Bytes in a block: what one thread compresses at a time, and what a gzip member holds.
const BLOCK: usize = 1 << 20;

/// libdeflate's level 4 compresses as well as zlib's 6, at twice its speed.
const GZIP_LEVEL: i32 = 4;
const ZSTD_LEVEL: i32 = 3;

/// What was written.
#[derive(Debug)]
pub struct Compressed<W> {
    /// The stream, with everything in it.
    pub output: W,
    /// Digest of the uncompressed bytes: a layer's diff ID.
    pub diff_id: Digest,
    /// How many uncompressed bytes.
    pub uncompressed_size: u64,
    /// Digest of what was written.
    pub digest: Digest,
    /// How many bytes were written.
    pub size: u64,
}

/// Compresses what is written to it.
///
/// The result depends on the bytes, the compression and the level alone: not on the number of cores, nor on how the bytes were
/// cut. Up to one MiB everything happens in the calling thread. Memory is bounded by a few MiB a core.
pub struct Compressor<W: Write> {
    compression: Compression,
    level: i32,
    block: Vec<u8>,
    stage: Stage<W>,
}

enum Stage<W: Write> {
    /// Nothing left the block yet.
    Small(W),
    Large(Pipeline<W>),
    Failed,
}

impl<W: Write + Send + 'static> Compressor<W> {
    /// Starts a stream. No level is the default; levels out of the codec's range are taken to its ends.
    ///
    /// # Errors
    /// Only gzip, zstd and no compression are written.
    pub fn new(output: W, compression: Compression, level: Option<i32>) -> std::io::Result<Self> {
        let level = match (compression, level.filter(|level| *level >= 0)) {
            (Compression::Uncompressed, _) => 0,
            (Compression::Gzip, level) => level.unwrap_or(GZIP_LEVEL).clamp(0, 12),
            (Compression::Zstd, level) => level.unwrap_or(ZSTD_LEVEL).clamp(1, 22),
            (Compression::Bzip2 | Compression::Xz, _) => {
                let message = format!("layers can't be compressed with {}", compression.name());
                return Err(Error::new(ErrorKind::Unsupported, message));
            }
        };
        Ok(Self { compression, level, block: Vec::new(), stage: Stage::Small(output) })
    }

    /// Writes the rest and returns the digests.
    ///
    /// # Errors
    /// The stream below fails.
    pub fn finish(mut self) -> std::io::Result<Compressed<W>> {
        match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Small(output) => compress_small(output, &self.block, self.compression, self.level),
            Stage::Large(mut pipeline) => {
                // An error of the threads is more telling than that of the last push.
                let pushed = if self.block.is_empty() { Ok(()) } else { pipeline.push(self.block) };
                let done = pipeline.finish()?;
                pushed.map(|()| done)
            }
            Stage::Failed => Err(Error::other("compression failed before")),
        }
    }

    /// Sends a full block on its way.
    fn push_block(&mut self) -> std::io::Result<()> {
        let block = std::mem::replace(&mut self.block, Vec::with_capacity(BLOCK));
        let mut pipeline = match std::mem::replace(&mut self.stage, Stage::Failed) {
            Stage::Small(output) => Pipeline::start(output, self.compression, self.level)?,
            Stage::Large(pipeline) => pipeline,
            Stage::Failed => return Err(Error::other("compression failed before")),
        };
        match pipeline.push(block) {
            Ok(()) => {
                self.stage = Stage::Large(pipeline);
                Ok(())
            }
            Err(stopped) => Err(pipeline.finish().err().unwrap_or(stopped)),
        }
    }
}

impl<W: Write + Send + 'static> Write for Compressor<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // A full block waits for a byte more: one of exactly its size may be the whole stream.
        if self.block.len() == BLOCK && !bytes.is_empty() {
            self.push_block()?;
        }
        let n = bytes.len().min(BLOCK - self.block.len());
        self.block.extend_from_slice(&bytes[..n]);
        Ok(n)
    }

    /// Does nothing: cutting the stream where a caller flushes would change its bytes.
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn compress_small<W: Write>(
    mut output: W,
    bytes: &[u8],
    compression: Compression,
    level: i32,
) -> std::io::Result<Compressed<W>> {
    let mut packed = Vec::new();
    let written = match compression {
        Compression::Gzip => {
            gzip::member(&mut gzip::compressor(level), bytes, &mut packed)?;
            &packed
        }
        Compression::Zstd => {
            packed = zstd_encoder(packed, level, 1).and_then(|mut encoder| {
                encoder.write_all(bytes)?;
                encoder.finish()
            })?;
            &packed
        }
        _ => bytes,
    };
    output.write_all(written)?;
    output.flush()?;
    Ok(Compressed {
        output,
        diff_id: Digest::of(bytes),
        uncompressed_size: bytes.len() as u64,
        digest: Digest::of(written),
        size: written.len() as u64,
    })
}

fn zstd_encoder<'a, W: Write>(
    output: W,
    level: i32,
    workers: usize,
) -> std::io::Result<zstd::stream::write::Encoder<'a, W>> {
    let mut encoder = zstd::stream::write::Encoder::new(output, level)?;
    // Even one worker: the frames of the single-threaded encoder differ from those of any number of workers.
    encoder.multithread(u32::try_from(workers).unwrap_or(1))?;
    encoder.include_checksum(true)?;
    Ok(encoder)
}

/// The threads of a stream that is longer than a block.
struct Pipeline<W: Write> {
    hasher: Hasher,
    size: u64,
    encoder: Encoder<W>,
}

enum Encoder<W: Write> {
    Plain(W),
    Gzip(gzip::Parallel<Hashed<W>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Hashed<W>>>),
}

impl<W: Write + Send + 'static> Pipeline<W> {
    fn start(output: W, compression: Compression, level: i32) -> std::io::Result<Self> {
        let encoder = match compression {
            Compression::Gzip => Encoder::Gzip(gzip::Parallel::start(Hashed::new(output), level)?),
            Compression::Zstd => Encoder::Zstd(Box::new(zstd_encoder(Hashed::new(output), level, threads())?)),
            _ => Encoder::Plain(output),
        };
        Ok(Self { hasher: Hasher::start()?, size: 0, encoder })
    }

    fn push(&mut self, block: Vec<u8>) -> std::io::Result<()> {
        let block = Arc::new(block);
        self.size += block.len() as u64;
        self.hasher.push(&block)?;
        match &mut self.encoder {
            Encoder::Plain(output) => output.write_all(&block),
            Encoder::Gzip(parallel) => parallel.push(block),
            Encoder::Zstd(encoder) => encoder.write_all(&block),
        }
    }

    fn finish(self) -> std::io::Result<Compressed<W>> {
        let hashed = match self.encoder {
            Encoder::Plain(mut output) => {
                output.flush()?;
                let diff_id = self.hasher.finish()?;
                let size = self.size;
                return Ok(Compressed { output, diff_id, uncompressed_size: size, digest: diff_id, size });
            }
            Encoder::Gzip(parallel) => parallel.finish()?,
            Encoder::Zstd(encoder) => encoder.finish()?,
        };
        let Hashed { mut output, hash, size } = hashed;
        output.flush()?;
        Ok(Compressed {
            output,
            diff_id: self.hasher.finish()?,
            uncompressed_size: self.size,
            digest: Digest::from_bytes(hash.finalize().into()),
            size,
        })
    }
}

/// Hashes blocks in a thread of its own.
struct Hasher {
    blocks: mpsc::SyncSender<Arc<Vec<u8>>>,
    thread: JoinHandle<Digest>,
}

impl Hasher {
    fn start() -> std::io::Result<Self> {
        let (blocks, queue) = mpsc::sync_channel::<Arc<Vec<u8>>>(4);
        let thread = std::thread::Builder::new().name("hash".into()).spawn(move || {
            let mut hash = sha2::Sha256::new();
            for block in queue {
                hash.update(block.as_slice());
            }
            Digest::from_bytes(hash.finalize().into())
        })?;
        Ok(Self { blocks, thread })
    }

    fn push(&self, block: &Arc<Vec<u8>>) -> std::io::Result<()> {
        self.blocks.send(Arc::clone(block)).map_err(|_| Error::other("the hashing thread panicked"))
    }

    fn finish(self) -> std::io::Result<Digest> {
        drop(self.blocks);
        self.thread.join().map_err(|_| Error::other("the hashing thread panicked"))
    }
}

/// Hashes and counts what is written through it.
struct Hashed<W> {
    output: W,
    hash: sha2::Sha256,
    size: u64,
}

impl<W> Hashed<W> {
    fn new(output: W) -> Self {
        Self { output, hash: sha2::Sha256::new(), size: 0 }
    }
}

impl<W: Write> Write for Hashed<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.output.write(bytes)?;
        self.hash.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.output.flush()
    }
}
