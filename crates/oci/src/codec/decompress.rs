//! Reading compressed streams of unknown origin.

use super::Compression;
use bud_image::Digest;
use sha2::Digest as _;
use std::io::{BufReader, Chain, Cursor, Error, ErrorKind, Read};
use std::sync::mpsc;

/// Largest window of a zstd frame: what decoding one may take of memory (2^26 = 64 MiB).
const ZSTD_WINDOW_LOG: u32 = 26;

/// Most memory of an xz decoder; `xz -9` asks for 65 MiB.
const XZ_MEMORY: u64 = 80 << 20;

const INPUT: usize = 128 << 10;
const CHUNK: usize = 256 << 10;
/// Chunks on their way from the decoding thread.
const QUEUE: usize = 4;

/// A stream with its first bytes put back.
pub type Whole<R> = Chain<Cursor<Vec<u8>>, R>;

/// Tells a stream's compression, and returns it whole again.
///
/// # Errors
/// The stream fails.
pub fn detect_start<R: Read>(mut input: R) -> std::io::Result<(Compression, Whole<R>)> {
    let mut head = Vec::new();
    (&mut input).take(512).read_to_end(&mut head)?;
    Ok((Compression::detect(&head), Cursor::new(head).chain(input)))
}

/// Returns the uncompressed bytes of a stream, whatever its compression. They are decoded in the reading thread.
///
/// Several gzip members, bzip2 and xz streams or zstd frames one after the other are read as one. A frame that asks for more
/// memory than a fixed limit is an error.
///
/// # Errors
/// The stream fails. Damage shows while reading.
pub fn decompress<'a>(input: impl Read + Send + 'a) -> std::io::Result<(Compression, Box<dyn Read + Send + 'a>)> {
    let (compression, input) = detect_start(input)?;
    let input = BufReader::with_capacity(INPUT, input);
    let output: Box<dyn Read + Send + 'a> = match compression {
        Compression::Uncompressed => Box::new(input),
        Compression::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(input)),
        Compression::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(input)),
        Compression::Xz => {
            const CONCATENATED: u32 = 0x08;
            let stream = liblzma::stream::Stream::new_stream_decoder(XZ_MEMORY, CONCATENATED).map_err(Error::other)?;
            Box::new(liblzma::bufread::XzDecoder::new_stream(input, stream))
        }
        Compression::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(input)?;
            decoder.window_log_max(ZSTD_WINDOW_LOG)?;
            Box::new(decoder)
        }
    };
    Ok((compression, output))
}

/// Decodes in a thread of its own, and hashes what is read from it.
///
/// Dropped early, it stops the thread at the next chunk.
pub struct Digested {
    chunks: Option<mpsc::Receiver<std::io::Result<Vec<u8>>>>,
    spare: mpsc::SyncSender<Vec<u8>>,
    current: Cursor<Vec<u8>>,
    hash: sha2::Sha256,
    size: u64,
}

impl Digested {
    /// Starts to decode a stream of any compression.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn new(input: impl Read + Send + 'static) -> std::io::Result<Self> {
        let (send, chunks) = mpsc::sync_channel(QUEUE);
        let (spare, spares) = mpsc::sync_channel::<Vec<u8>>(QUEUE + 2);
        std::thread::Builder::new().name("decompress".into()).spawn(move || {
            let mut output = match decompress(input) {
                Ok((_, output)) => output,
                Err(error) => {
                    // Nobody reads any more if this fails.
                    let _unread = send.send(Err(error));
                    return;
                }
            };
            loop {
                let mut chunk = spares.try_recv().unwrap_or_default();
                chunk.clear();
                chunk.reserve(CHUNK);
                let message = match (&mut output).take(CHUNK as u64).read_to_end(&mut chunk) {
                    Ok(0) => return,
                    Ok(_) => Ok(chunk),
                    Err(error) => Err(error),
                };
                let is_end = message.is_err();
                if send.send(message).is_err() || is_end {
                    return;
                }
            }
        })?;
        Ok(Self { chunks: Some(chunks), spare, current: Cursor::default(), hash: sha2::Sha256::new(), size: 0 })
    }

    /// Reads what is left, and returns the digest and size of all uncompressed bytes: a layer's diff ID covers what follows
    /// the tar's end mark too.
    ///
    /// # Errors
    /// The stream is damaged, or longer than the limit.
    pub fn finish(mut self, limit: u64) -> std::io::Result<(Digest, u64)> {
        while self.fill()? {
            self.size += self.current.get_ref().len() as u64;
            if self.size > limit {
                return Err(Error::new(ErrorKind::InvalidData, format!("layer has over {limit} bytes")));
            }
            let rest = self.current.get_ref().len() as u64;
            self.current.set_position(rest);
        }
        Ok((Digest::from_bytes(self.hash.finalize().into()), self.size))
    }

    /// Gets the next chunk and hashes it; false at the end. The chunk before must be used up.
    fn fill(&mut self) -> std::io::Result<bool> {
        let used = std::mem::take(&mut self.current).into_inner();
        if used.capacity() > 0 {
            // A full queue or a finished thread has no use for it.
            let _dropped = self.spare.try_send(used);
        }
        let Some(chunks) = &self.chunks else { return Ok(false) };
        match chunks.recv() {
            Ok(Ok(chunk)) => {
                self.hash.update(&chunk);
                self.current = Cursor::new(chunk);
                Ok(true)
            }
            Ok(Err(error)) => {
                self.chunks = None;
                Err(error)
            }
            // The thread ended: so did the stream.
            Err(_) => Ok(false),
        }
    }
}

impl Read for Digested {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = self.current.read(buffer)?;
            if n > 0 || buffer.is_empty() {
                return Ok(n);
            }
            if !self.fill()? {
                return Ok(0);
            }
            self.size += self.current.get_ref().len() as u64;
        }
    }
}
