//! A build that runs: who wants it, what it may do, what it has found so far.

use crate::daemon::Daemon;
use crate::gateway::Bridge;
use crate::progress::Progress;
use crate::sessions::SessionGroup;
use crate::solver::Solver;
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What a build may do beyond the sandbox.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entitlements(BTreeSet<String>);

const NETWORK_HOST: &str = "network.host";
const SECURITY_INSECURE: &str = "security.insecure";

impl Entitlements {
    /// Takes what a build asks for; the daemon must allow each.
    ///
    /// # Errors
    /// It doesn't.
    pub fn grant(asked: &[String], allowed: &[String]) -> Result<Self, BuildError> {
        let mut granted = BTreeSet::new();
        for entitlement in asked {
            // `device=…` and the like are refused by name too.
            if !matches!(entitlement.as_str(), NETWORK_HOST | SECURITY_INSECURE) {
                return Err(BuildError::invalid(format!("unknown entitlement {entitlement:?}")));
            }
            if !allowed.contains(entitlement) {
                return Err(BuildError::new(
                    tonic::Code::PermissionDenied,
                    format!(
                        "granting entitlement {entitlement} is not allowed by build daemon configuration \
                         (start it with --allow-insecure-entitlement {entitlement})"
                    ),
                ));
            }
            granted.insert(entitlement.clone());
        }
        Ok(Self(granted))
    }

    /// Tells whether one is granted.
    #[must_use]
    pub fn has(&self, entitlement: &str) -> bool {
        self.0.contains(entitlement)
    }

    /// Checks what a step asks for.
    ///
    /// # Errors
    /// It is not granted.
    pub fn check_exec(&self, op: &pb::ExecOp) -> Result<(), BuildError> {
        self.check(op.network == pb::NetMode::Host as i32, op.security == pb::SecurityMode::Insecure as i32)
    }

    /// Checks what a process asks for.
    ///
    /// # Errors
    /// It is not granted.
    pub fn check(&self, host_network: bool, insecure: bool) -> Result<(), BuildError> {
        let wanted = [(host_network, NETWORK_HOST), (insecure, SECURITY_INSECURE)];
        match wanted.iter().find(|(wanted, name)| *wanted && !self.has(name)) {
            Some((_, name)) => Err(BuildError::new(
                tonic::Code::PermissionDenied,
                format!("{name} is not allowed: the build has to ask for it (--allow {name})"),
            )),
            None => Ok(()),
        }
    }
}

/// A build that runs.
pub struct Build {
    /// The client's name for it.
    pub id: String,
    /// Tells builds apart where they share something.
    pub member: u64,
    /// The daemon.
    pub daemon: Arc<Daemon>,
    /// The client's session; empty: none.
    pub session: String,
    /// What it shows.
    pub progress: Arc<Progress>,
    /// Cancelled when nobody wants it any more.
    pub cancel: CancellationToken,
    /// What it may do.
    pub entitlements: Entitlements,
    /// Its vertices.
    pub solver: Solver,
    /// What a front end outside asks of it.
    pub bridge: Bridge,
    /// A question for capabilities or the like, of which nothing is kept.
    pub internal: bool,
    /// When it began.
    pub created: SystemTime,
    /// The front end asked for, and its options; for the record.
    pub request: Request,
    /// What was said already.
    pub said: Mutex<BTreeSet<String>>,
}

/// What was asked for, for the record.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// The front end.
    pub frontend: String,
    /// Its options.
    pub attrs: BTreeMap<String, String>,
    /// Exporters: type and attributes.
    pub exporters: Vec<(String, BTreeMap<String, String>)>,
}

impl std::fmt::Debug for Build {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Build").field("id", &self.id).field("session", &self.session).finish_non_exhaustive()
    }
}

impl Build {
    /// Tells the user something, once a build.
    pub fn say_once(&self, text: &str) {
        if self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(text.to_owned()) {
            let note = self.progress.virtual_vertex(&format!("note:{text}"), &format!("[internal] {text}"));
            note.started();
            note.completed();
        }
    }

    /// Returns the group of this build's session.
    #[must_use]
    pub fn sessions(&self) -> SessionGroup {
        SessionGroup::of(&self.daemon.sessions, &self.session)
    }
}

/// So many builds that ended are remembered for clients that come late.
const REMEMBERED: usize = 8;

/// The builds that run, by id.
#[derive(Debug, Default)]
pub struct Builds {
    running: Mutex<HashMap<String, Arc<Build>>>,
    ended: Mutex<VecDeque<(String, Arc<Progress>)>>,
    changed: watch::Sender<()>,
    next: AtomicU64,
}

impl Builds {
    /// Returns a number that no other build has.
    pub fn next_member(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed) + 1
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<Build>>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a build.
    ///
    /// # Errors
    /// One of that id runs.
    pub fn add(&self, build: &Arc<Build>) -> Result<(), BuildError> {
        let mut running = self.lock();
        if running.contains_key(&build.id) {
            return Err(BuildError::new(tonic::Code::AlreadyExists, format!("job ID {} exists", build.id)));
        }
        running.insert(build.id.clone(), Arc::clone(build));
        drop(running);
        self.changed.send_replace(());
        Ok(())
    }

    /// Removes a build. What it showed is remembered for a moment: its client may not have asked yet.
    pub fn remove(&self, id: &str) {
        let removed = self.lock().remove(id);
        if let Some(build) = removed {
            let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
            ended.retain(|(other, _)| other != id);
            ended.push_front((id.to_owned(), Arc::clone(&build.progress)));
            ended.truncate(REMEMBERED);
        }
        self.changed.send_replace(());
    }

    /// Returns what a build shows that runs or ended just now, waiting for it to appear.
    pub async fn progress(&self, id: &str, wait: Duration) -> Option<Arc<Progress>> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(build) = self.get(id) {
                    return Some(Arc::clone(&build.progress));
                }
                if let Some(progress) = self.ended(id) {
                    return Some(progress);
                }
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(wait, found).await.ok().flatten()
    }

    /// Returns a build.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Arc<Build>> {
        self.lock().get(id).cloned()
    }

    fn ended(&self, id: &str) -> Option<Arc<Progress>> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        ended.iter().find(|(other, _)| other == id).map(|(_, progress)| Arc::clone(progress))
    }

    /// Returns a build, waiting for it to appear.
    pub async fn wait(&self, id: &str, wait: Duration) -> Option<Arc<Build>> {
        let mut changed = self.changed.subscribe();
        let found = async {
            loop {
                if let Some(build) = self.get(id) {
                    return Some(build);
                }
                // The sender lives as long as we.
                changed.changed().await.ok()?;
            }
        };
        tokio::time::timeout(wait, found).await.ok().flatten()
    }

    /// Returns all builds.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Build>> {
        self.lock().values().cloned().collect()
    }

    /// Returns how many builds run, but for internal ones.
    #[must_use]
    pub fn count(&self) -> usize {
        self.lock().values().filter(|b| !b.internal).count()
    }

    /// Is told of every change.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn daemon_and_build_must_both_allow() {
        let insecure = pb::ExecOp { security: pb::SecurityMode::Insecure as i32, ..Default::default() };
        assert!(Entitlements::grant(&names(&[SECURITY_INSECURE]), &[]).is_err());
        assert!(Entitlements::grant(&names(&["x"]), &names(&["x"])).is_err());
        let none = Entitlements::grant(&[], &names(&[SECURITY_INSECURE])).unwrap();
        assert!(none.check_exec(&insecure).is_err());
        let both = Entitlements::grant(&names(&[SECURITY_INSECURE]), &names(&[SECURITY_INSECURE])).unwrap();
        assert!(both.check_exec(&insecure).is_ok());
        let host = pb::ExecOp { network: pb::NetMode::Host as i32, ..Default::default() };
        assert!(both.check_exec(&host).is_err());
    }
}
