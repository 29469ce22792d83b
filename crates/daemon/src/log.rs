//! The log: standard error, and where that is a file of our own, of bounded size with one old file.

use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use tracing_subscriber::fmt::MakeWriter;

/// The extension of the old file.
pub const OLD_LOG: &str = "log.old";

/// A log file that our standard error is.
#[derive(Clone, Debug)]
pub struct LogFile {
    /// Its path.
    pub path: PathBuf,
    /// It is put aside when it is longer.
    pub limit: u64,
}

/// Starts logging to standard error.
pub fn start(debug: bool, file: Option<LogFile>) {
    let default = if debug { "debug,h2=info,hyper=info,tower=info" } else { "warn,bud_daemon::start=info" };
    let filter = tracing_subscriber::EnvFilter::try_from_env("BUD_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(default));
    let log = Log { file, written: Mutex::new(0) };
    log.measure();
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(log).with_ansi(false);
    // A log that can't be written (a full disk) must not end the daemon.
    let subscriber = subscriber.log_internal_errors(false);
    // A test in the same process may have set one.
    let _set_already = subscriber.try_init();
}

/// Writes to standard error, and counts.
struct Log {
    file: Option<LogFile>,
    /// The file's length, as far as we know: others (a panic, a child) write to it as well.
    written: Mutex<u64>,
}

impl Log {
    fn measure(&self) {
        let Some(file) = &self.file else { return };
        let length = std::fs::metadata(&file.path).map_or(0, |found| found.len());
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = length;
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Writer<'a> {
        Writer(self)
    }
}

struct Writer<'a>(&'a Log);

impl std::io::Write for Writer<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let Some(file) = &self.0.file else { return std::io::stderr().write(bytes) };
        let mut written = self.0.written.lock().unwrap_or_else(PoisonError::into_inner);
        if *written >= file.limit {
            // Where it can't be put aside it goes on, and is tried again after as much.
            *written = 0;
            if let Ok(new) = put_aside(&file.path) {
                // Standard output is the log as well.
                rustix::stdio::dup2_stderr(&new)?;
                rustix::stdio::dup2_stdout(&new)?;
            }
        }
        let length = std::io::stderr().write(bytes)?;
        *written += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

/// Makes the file the old one, in place of an older, and opens a new one.
fn put_aside(path: &Path) -> std::io::Result<std::fs::File> {
    std::fs::rename(path, path.with_extension(OLD_LOG))?;
    std::fs::OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
