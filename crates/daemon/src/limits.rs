//! The limits that the kernel sets for this process and its user.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// So many threads besides the runtime's own are needed by a build, about.
const BLOCKING: usize = 12;
/// A limit above this isn't tried: that costs time at each start.
const PLENTY: u64 = 4096;

/// Raises the soft limits on open files and processes to the hard ones: many layers, many connections, and the soft limit on open
/// files is for programs that use `select(2)`.
pub fn raise() {
    for resource in [Resource::Nofile, Resource::Nproc] {
        let maximum = getrlimit(resource).maximum;
        if let Err(error) = setrlimit(resource, Rlimit { current: maximum, maximum }) {
            tracing::debug!(%error, ?resource, "a limit stays");
        }
    }
}

/// Tries whether the daemon can have the threads that it needs, where the limit is low. A runtime that can't have them panics.
///
/// # Errors
/// Why not, and what to do.
pub fn check_threads(workers: usize) -> Result<(), String> {
    let Some(limit) = getrlimit(Resource::Nproc).current.filter(|limit| *limit < PLENTY) else { return Ok(()) };
    // All of them wait for it, so that they are there at one time.
    let gate = std::sync::Mutex::new(());
    let closed = gate.lock();
    let outcome: std::io::Result<()> = std::thread::scope(|scope| {
        // Opened at the end of this block, however it ends.
        let _closed = closed;
        for _ in 0..workers + BLOCKING {
            let waits = || drop(gate.lock());
            std::thread::Builder::new().stack_size(64 << 10).spawn_scoped(scope, waits)?;
        }
        Ok(())
    });
    outcome.map_err(|error| {
        format!(
            "this user's limit of {limit} processes and threads is too low for what runs already: {error}; raise it \
             (`ulimit -u`, nproc in /etc/security/limits.conf, TasksMax= of a service) or end other processes"
        )
    })
}
