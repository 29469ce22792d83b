//! The gateway: what a front end asks of the daemon while a build runs, over `LLBBridge` or from inside.

pub mod files;
pub mod meta;
pub mod server;

use crate::build::Build;
use crate::solver::Target;
use crate::value::Value;
use bud_protocol::errors::BuildError;
use bud_protocol::gateway as wire;
use bud_protocol::pb;
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// At most so many references has a build.
const MAX_REFS: usize = 20_000;

/// A lazy result: made when somebody needs its files.
#[derive(Clone, Debug, Default)]
pub struct Ref {
    /// What to make; none: scratch.
    pub target: Option<Target>,
    /// The definition, for clients that ask for it.
    pub definition: pb::Definition,
}

/// A result with its metadata.
#[derive(Clone, Debug, Default)]
pub struct BuildResult {
    /// References by platform id; a single one has no id. None: no result at all.
    pub refs: Vec<(String, Ref)>,
    /// True if it is a map of platforms.
    pub multi: bool,
    /// Metadata.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

impl BuildResult {
    /// Makes a result of one reference.
    #[must_use]
    pub fn single(reference: Ref) -> Self {
        Self { refs: vec![(String::new(), reference)], ..Self::default() }
    }
}

/// What a front end has asked so far.
#[derive(Default)]
pub struct Bridge {
    refs: Mutex<HashMap<String, Ref>>,
    next: AtomicU64,
    /// Where `Return` goes; there while a front end outside is awaited.
    returned: Mutex<Option<oneshot::Sender<Result<BuildResult, BuildError>>>>,
    /// A front end outside has called.
    called: AtomicBool,
    /// The definitions given as inputs.
    pub inputs: Mutex<BTreeMap<String, pb::Definition>>,
    /// How many front ends in containers stand one on another here; 0 for one at the client.
    pub depth: usize,
}

impl std::fmt::Debug for Bridge {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bridge").finish_non_exhaustive()
    }
}

impl Bridge {
    /// Makes the bridge of a front end in a container.
    #[must_use]
    pub fn inner(inputs: BTreeMap<String, pb::Definition>, depth: usize) -> Self {
        Self { inputs: Mutex::new(inputs), depth, ..Self::default() }
    }

    /// Awaits a front end outside.
    pub fn open(&self) -> oneshot::Receiver<Result<BuildResult, BuildError>> {
        let (sender, receiver) = oneshot::channel();
        *self.returned.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        receiver
    }

    /// Tells whether a front end outside is awaited.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.returned.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// Notes that the front end outside is there.
    pub fn call(&self) {
        self.called.store(true, Ordering::Relaxed);
    }

    /// Ends if no front end came within the time; goes on for ever if one did.
    pub async fn nobody_calls(&self, wait: std::time::Duration) {
        tokio::time::sleep(wait).await;
        if self.called.load(Ordering::Relaxed) {
            std::future::pending().await
        }
    }

    /// Takes the front end's result. Once.
    ///
    /// # Errors
    /// None is awaited any more.
    pub fn finish(&self, result: Result<BuildResult, BuildError>) -> Result<(), BuildError> {
        let sender = self.returned.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(sender) = sender else {
            return Err(BuildError::new(tonic::Code::FailedPrecondition, "a result was returned already"));
        };
        // If nobody waits, the build was given up meanwhile.
        let _given_up = sender.send(result);
        Ok(())
    }

    /// Gives a reference an id. The ids are ours, clients only repeat them.
    ///
    /// # Errors
    /// There are too many.
    pub fn add(&self, build: &str, reference: Ref) -> Result<String, BuildError> {
        let mut refs = self.refs.lock().unwrap_or_else(PoisonError::into_inner);
        if refs.len() >= MAX_REFS {
            return Err(BuildError::new(
                tonic::Code::ResourceExhausted,
                format!("a build has at most {MAX_REFS} references"),
            ));
        }
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let id = bud_image::Digest::of(format!("{build}:{number}")).hex()[..25].to_owned();
        refs.insert(id.clone(), reference);
        Ok(id)
    }

    /// Returns a reference; the empty id is scratch.
    ///
    /// # Errors
    /// There is none of that id.
    pub fn get(&self, id: &str) -> Result<Ref, BuildError> {
        if id.is_empty() {
            return Ok(Ref::default());
        }
        let refs = self.refs.lock().unwrap_or_else(PoisonError::into_inner);
        refs.get(id)
            .cloned()
            .ok_or_else(|| BuildError::invalid(format!("no such ref: {:?}", id.chars().take(100).collect::<String>())))
    }
}

impl Build {
    /// Makes the files of a reference.
    ///
    /// # Errors
    /// A step fails.
    pub async fn files(self: &Arc<Self>, reference: &Ref) -> Result<Value, BuildError> {
        match &reference.target {
            Some(target) => self.evaluate(target).await,
            None => Ok(Value::scratch()),
        }
    }

    /// Takes a definition as a lazy reference.
    ///
    /// # Errors
    /// It is not sound.
    pub fn lazy(self: &Arc<Self>, definition: &pb::Definition) -> Result<Ref, BuildError> {
        Ok(Ref { target: self.load(definition)?, definition: definition.clone() })
    }

    /// Writes a result for a client.
    ///
    /// # Errors
    /// There are too many references.
    pub fn to_wire(&self, bridge: &Bridge, result: BuildResult) -> Result<wire::Result, BuildError> {
        let mut refs = BTreeMap::new();
        for (id, reference) in result.refs {
            let is_scratch = reference.target.is_none();
            let definition = reference.definition.clone();
            let number = if is_scratch { String::new() } else { bridge.add(&self.id, reference)? };
            refs.insert(id, wire::Ref { id: number, def: (!is_scratch).then_some(definition) });
        }
        let references = if result.multi {
            Some(wire::result::Result::Refs(wire::RefMap { refs: refs.into_iter().collect() }))
        } else {
            refs.into_values().next().map(wire::result::Result::Ref)
        };
        Ok(wire::Result {
            result: references,
            metadata: result.metadata.into_iter().collect(),
            ..wire::Result::default()
        })
    }

    /// Reads a result that a client returns.
    ///
    /// # Errors
    /// It names a reference that isn't there.
    pub fn from_wire(bridge: &Bridge, result: wire::Result) -> Result<BuildResult, BuildError> {
        use wire::result::Result as R;
        let get = |id: &str| bridge.get(id);
        let (refs, multi) = match result.result {
            None => (Vec::new(), false),
            Some(R::RefDeprecated(id)) => (vec![(String::new(), get(&id)?)], false),
            Some(R::Ref(reference)) => (vec![(String::new(), get(&reference.id)?)], false),
            Some(R::RefsDeprecated(map)) => {
                let refs: Result<Vec<_>, BuildError> = map.refs.into_iter().map(|(k, id)| Ok((k, get(&id)?))).collect();
                (refs?, true)
            }
            Some(R::Refs(map)) => {
                let refs: Result<Vec<_>, BuildError> =
                    map.refs.into_iter().map(|(k, r)| Ok((k, get(&r.id)?))).collect();
                (refs?, true)
            }
        };
        Ok(BuildResult { refs, multi, metadata: result.metadata.into_iter().collect() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_ours_and_unknown_ones_are_refused() {
        let bridge = Bridge::default();
        let id = bridge.add("b", Ref::default()).unwrap();
        assert!(bridge.get(&id).is_ok());
        assert!(bridge.get("").unwrap().target.is_none());
        for bad in ["../x", "/", "nope"] {
            assert_eq!(bridge.get(bad).unwrap_err().code, tonic::Code::InvalidArgument);
        }
    }

    #[tokio::test]
    async fn a_result_is_returned_once() {
        let bridge = Bridge::default();
        assert!(bridge.finish(Ok(BuildResult::default())).is_err());
        let receiver = bridge.open();
        assert!(bridge.is_open());
        bridge.finish(Ok(BuildResult::default())).unwrap();
        assert!(bridge.finish(Ok(BuildResult::default())).is_err());
        assert!(receiver.await.unwrap().is_ok());
    }
}
