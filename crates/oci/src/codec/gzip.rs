//! gzip as concatenated members, one for each MiB, compressed on all cores.
//!
//! A member depends on its own bytes alone, so the whole is the same for any number of threads. Every gzip reader must take
//! several members as one stream (RFC 1952, section 2.2).

use super::threads;
use std::collections::BTreeMap;
use std::io::{Error, Write};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// Compresses one block as a gzip member.
pub(super) fn member(compressor: &mut libdeflater::Compressor, block: &[u8], out: &mut Vec<u8>) -> std::io::Result<()> {
    out.resize(compressor.gzip_compress_bound(block.len()), 0);
    let n = compressor.gzip_compress(block, out).map_err(|e| Error::other(format!("compress: {e}")))?;
    out.truncate(n);
    Ok(())
}

/// Returns a compressor for a level from 0 to 12.
pub(super) fn compressor(level: i32) -> libdeflater::Compressor {
    // In range after the clamp, so the default is never taken.
    let level = libdeflater::CompressionLvl::new(level.clamp(0, 12)).unwrap_or_default();
    libdeflater::Compressor::new(level)
}

type Block = Arc<Vec<u8>>;
type Member = std::io::Result<Vec<u8>>;

/// Compresses blocks in several threads and writes the members in order.
pub(super) struct Parallel<W> {
    jobs: Option<mpsc::SyncSender<(u64, Block)>>,
    next: u64,
    workers: Vec<JoinHandle<()>>,
    writer: JoinHandle<std::io::Result<W>>,
}

impl<W: Write + Send + 'static> Parallel<W> {
    pub(super) fn start(output: W, level: i32) -> std::io::Result<Self> {
        let count = threads();
        let (jobs, queue) = mpsc::sync_channel::<(u64, Block)>(count);
        let queue = Arc::new(Mutex::new(queue));
        let (done, members) = mpsc::sync_channel::<(u64, Member)>(count);
        let mut workers = Vec::new();
        for _ in 0..count {
            let (queue, done) = (Arc::clone(&queue), done.clone());
            workers.push(std::thread::Builder::new().name("gzip".into()).spawn(move || work(&queue, &done, level))?);
        }
        let writer = std::thread::Builder::new().name("gzip-write".into()).spawn(move || write(&members, output))?;
        Ok(Self { jobs: Some(jobs), next: 0, workers, writer })
    }

    /// Takes the next block; waits while the threads are busy.
    pub(super) fn push(&mut self, block: Block) -> std::io::Result<()> {
        let sent = self.jobs.as_ref().is_some_and(|jobs| jobs.send((self.next, block)).is_ok());
        self.next += 1;
        // The threads end early only after an error, which `finish` returns.
        if sent { Ok(()) } else { Err(Error::other("compression stopped")) }
    }

    pub(super) fn finish(mut self) -> std::io::Result<W> {
        self.jobs = None;
        for worker in self.workers {
            worker.join().map_err(|_| Error::other("a compressing thread panicked"))?;
        }
        self.writer.join().map_err(|_| Error::other("the writing thread panicked"))?
    }
}

fn work(queue: &Mutex<mpsc::Receiver<(u64, Block)>>, done: &mpsc::SyncSender<(u64, Member)>, level: i32) {
    let mut compressor = compressor(level);
    loop {
        let job = queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner).recv();
        let Ok((index, block)) = job else { return };
        let mut out = Vec::new();
        let result = member(&mut compressor, &block, &mut out).map(|()| out);
        if done.send((index, result)).is_err() {
            return;
        }
    }
}

/// Writes members in the order of their blocks. No more wait here than there are workers and places in the queues.
fn write<W: Write>(members: &mpsc::Receiver<(u64, Member)>, mut output: W) -> std::io::Result<W> {
    let mut waiting = BTreeMap::new();
    let mut next = 0;
    while let Ok((index, member)) = members.recv() {
        waiting.insert(index, member?);
        while let Some(member) = waiting.remove(&next) {
            output.write_all(&member)?;
            next += 1;
        }
    }
    Ok(output)
}
