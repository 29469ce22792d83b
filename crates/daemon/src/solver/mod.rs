//! The solver: which results are there already, and which must be made, in what order.
//!
//! Each vertex that is needed has a *key*, found out by a task of its own, and if somebody needs its files, a *value*, made
//! by another. A key never needs the vertex to run: if nothing is stored under it, it is the definition key. A vertex
//! whose key finds a record takes the key under which that record was first made, so that what stands on it is found too.

pub mod flight;
pub mod graph;
mod keys;
pub mod slot;

use crate::build::Build;
use crate::ops::{self, OpCx, Outputs};
use crate::progress::Reporter;
use crate::source::{self, Pin, PinKey, SourceCx};
use crate::value::{Value, blocking, store_error};
use bud_image::Digest;
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use bud_store::{Record, Snapshot, Store};
use flight::{FlightCx, FlightResult, Member};
use futures_util::StreamExt as _;
use futures_util::future::try_join_all;
use futures_util::stream::FuturesUnordered;
use graph::{Edge, Graph, Kind, Vertex};
use slot::Slot;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin as Pinned;
use std::sync::{Arc, Mutex, PoisonError};

/// A build's vertices, by digest.
#[derive(Debug, Default)]
pub struct Solver {
    nodes: Mutex<HashMap<(String, bool), Arc<Node>>>,
    lookups: Mutex<Vec<Lookup>>,
}

/// Why a vertex was found or not; kept in the build's record.
#[derive(Clone, Debug, serde::Serialize)]
pub struct Lookup {
    /// The vertex.
    pub vertex: String,
    /// Its name.
    pub name: String,
    /// `hit`, `hit by content`, `miss`, `not asked`.
    pub outcome: &'static str,
    /// The key that was looked up last.
    pub key: String,
    /// The keys of the inputs, to compare with those of another build.
    pub inputs: Vec<String>,
}

/// A vertex of a build.
#[derive(Debug)]
pub(crate) struct Node {
    graph: Arc<Graph>,
    number: usize,
    key: Slot<Resolved>,
    value: Slot<Arc<Outputs>>,
}

impl Node {
    fn vertex(&self) -> &Vertex {
        &self.graph.vertices[self.number]
    }
}

/// How a vertex is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum VertexKey {
    /// By this key.
    Fixed(Digest),
    /// By what is in it.
    Content,
}

/// What the look-up of a vertex came to.
#[derive(Clone, Debug)]
pub(crate) struct Resolved {
    pub(crate) key: VertexKey,
    found: Option<Arc<Outputs>>,
    /// Other keys that shall lead to what is made.
    also: Vec<Digest>,
    pin: Option<Pin>,
}

/// A result that is wanted: made when somebody needs it.
#[derive(Clone, Debug)]
pub struct Target {
    graph: Arc<Graph>,
    edge: Edge,
}

type Boxed<T> = Pinned<Box<dyn Future<Output = Result<T, BuildError>> + Send>>;

impl Build {
    /// Checks a definition and announces its vertices. Nothing is made yet. `None`: the definition is empty, its result is scratch.
    ///
    /// # Errors
    /// The definition is not sound, or asks for what the build may not do.
    pub fn load(self: &Arc<Self>, definition: &pb::Definition) -> Result<Option<Target>, BuildError> {
        let Some(graph) = graph::load(definition)? else { return Ok(None) };
        for vertex in &graph.vertices {
            if let Kind::Exec(op) = &vertex.kind {
                self.entitlements.check_exec(op).map_err(|e| vertex.blame(e))?;
            }
        }
        self.progress.announce(graph.vertices.iter().map(|v| v.to_control(&graph)).collect());
        let edge = graph.target;
        Ok(Some(Target { graph, edge }))
    }

    /// Makes a result.
    ///
    /// # Errors
    /// A step fails, or the build is given up.
    pub async fn evaluate(self: &Arc<Self>, target: &Target) -> Result<Value, BuildError> {
        let value = self.value_of(&target.graph, target.edge).await?;
        self.settle(&target.graph);
        Ok(value)
    }

    /// Returns the key of a result: equal keys are equal files. `None` for what is known by its content alone.
    ///
    /// # Errors
    /// A source can't be asked.
    pub async fn key(self: &Arc<Self>, target: &Target) -> Result<Option<Digest>, BuildError> {
        let node = self.node(&target.graph, target.edge.vertex);
        let resolved = self.resolve(&node).wait().await?;
        Ok(match resolved.key {
            VertexKey::Fixed(key) => Some(keys::of_output(&key, target.edge.output)),
            VertexKey::Content => None,
        })
    }

    /// Returns how each vertex was looked up.
    #[must_use]
    pub fn lookups(&self) -> Vec<Lookup> {
        self.solver.lookups.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Vertices that were not needed, because what stands on them was there, are shown as cached.
    fn settle(&self, graph: &Graph) {
        for vertex in &graph.vertices {
            if !self.progress.is_completed(&vertex.digest) {
                Reporter::single(&self.progress, &vertex.digest).cached();
            }
        }
    }

    fn node(&self, graph: &Arc<Graph>, number: usize) -> Arc<Node> {
        let vertex = &graph.vertices[number];
        let mut nodes = self.solver.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        let node = nodes.entry((vertex.digest.clone(), vertex.ignore_cache)).or_insert_with(|| {
            Arc::new(Node { graph: Arc::clone(graph), number, key: Slot::default(), value: Slot::default() })
        });
        Arc::clone(node)
    }

    fn inputs(&self, node: &Node) -> Vec<(Arc<Node>, usize)> {
        node.vertex().inputs.iter().map(|e| (self.node(&node.graph, e.vertex), e.output)).collect()
    }

    pub(crate) fn resolve(self: &Arc<Self>, node: &Arc<Node>) -> slot::Waiting<Resolved> {
        node.key.get(|| self.guarded(Box::pin(resolve(Arc::clone(self), Arc::clone(node)))))
    }

    fn make(self: &Arc<Self>, node: &Arc<Node>) -> slot::Waiting<Arc<Outputs>> {
        node.value.get(|| self.guarded(Box::pin(make(Arc::clone(self), Arc::clone(node)))))
    }

    /// Drops the work when the build is given up.
    fn guarded<T: Send + 'static>(
        self: &Arc<Self>,
        work: Boxed<T>,
    ) -> impl Future<Output = Result<T, BuildError>> + Send + 'static {
        let cancel = self.cancel.clone();
        async move {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(BuildError::canceled()),
                result = work => result,
            }
        }
    }

    pub(crate) async fn value_of(self: &Arc<Self>, graph: &Arc<Graph>, edge: Edge) -> Result<Value, BuildError> {
        let node = self.node(graph, edge.vertex);
        self.output_of(&node, edge.output).await
    }

    async fn output_of(self: &Arc<Self>, node: &Arc<Node>, output: usize) -> Result<Value, BuildError> {
        let outputs = self.make(node).wait().await?;
        let value = outputs.get(output).cloned().flatten();
        value.ok_or_else(|| {
            node.vertex().blame(BuildError::other(format!("output {output} of {} is not there", node.vertex().name)))
        })
    }

    fn source_cx(self: &Arc<Self>, vertex: &Vertex, cx: Option<&FlightCx>) -> SourceCx {
        SourceCx {
            daemon: Arc::clone(&self.daemon),
            sessions: cx.map_or_else(|| self.sessions(), |cx| cx.sessions.clone()),
            progress: cx.map_or_else(|| self.reporter(vertex), |cx| cx.progress.clone()),
            cancel: cx.map_or_else(|| self.cancel.clone(), |cx| cx.cancel.clone()),
            platform: vertex.platform.clone().unwrap_or_else(|| self.daemon.settings.platform()),
        }
    }

    fn reporter(&self, vertex: &Vertex) -> Reporter {
        Reporter::single(&self.progress, &vertex.digest)
    }

    fn member(&self, vertex: &Vertex) -> Member {
        Member {
            id: self.member,
            progress: Arc::clone(&self.progress),
            vertex: vertex.digest.clone(),
            session: self.session.clone(),
        }
    }

    fn note(&self, vertex: &Vertex, outcome: &'static str, key: Option<&Digest>, inputs: &[Option<Digest>]) {
        let text = |d: Option<&Digest>| d.map(ToString::to_string).unwrap_or_default();
        let lookup = Lookup {
            vertex: vertex.digest.clone(),
            name: vertex.name.clone(),
            outcome,
            key: text(key),
            inputs: inputs.iter().map(|d| text(d.as_ref())).collect(),
        };
        tracing::debug!(?lookup, "looked up");
        self.solver.lookups.lock().unwrap_or_else(PoisonError::into_inner).push(lookup);
    }
}

fn look_up(store: &Arc<Store>, key: &Digest) -> Result<Option<Record>, BuildError> {
    store.record(key).map_err(store_error)
}

fn outputs_of(record: Record) -> Arc<Outputs> {
    let pin = Arc::new(record.pin);
    let value = |s: Snapshot| Value::Stored(s, Some(Arc::clone(&pin)));
    Arc::new(record.outputs.into_iter().map(|o| o.map(value)).collect())
}

/// Finds out a vertex's key, and what is stored under it.
async fn resolve(build: Arc<Build>, node: Arc<Node>) -> Result<Resolved, BuildError> {
    let vertex = node.vertex();
    if let Kind::Source(op) = &vertex.kind {
        return resolve_source(&build, vertex, op).await;
    }
    let inputs = build.inputs(&node);
    let found = async {
        let resolved = try_join_all(inputs.iter().map(|(input, _)| build.resolve(input).wait())).await?;
        keys::look_up(&build, vertex, &inputs, &resolved).await
    };
    let found = tokio::select! {
        biased;
        found = found => found,
        error = make_what_is_missing(&build, &inputs) => Err(error),
    };
    match found {
        Ok(found) => Ok(found),
        // The failure of an input is not this vertex's.
        Err(error) if error.has_vertex() => Err(error),
        Err(error) => {
            build.reporter(vertex).started();
            build.reporter(vertex).failed(&error.message);
            Err(vertex.blame(error))
        }
    }
}

/// Starts to make inputs that are not stored, without waiting for the others' keys; returns when one of them fails.
///
/// A vertex one of whose inputs is not stored is not stored either, so the input will be needed: either this vertex is made from
/// it, or it counts by content and has to be looked into. That is what lets stages run side by side.
async fn make_what_is_missing(build: &Arc<Build>, inputs: &[(Arc<Node>, usize)]) -> BuildError {
    let mut waiting: FuturesUnordered<_> = inputs
        .iter()
        .map(|(input, _)| async move {
            let resolved = build.resolve(input).wait().await?;
            if resolved.found.is_none() {
                build.make(input).wait().await?;
            }
            Ok(())
        })
        .collect();
    while let Some(made) = waiting.next().await {
        if let Err(error) = made {
            return error;
        }
    }
    std::future::pending().await
}

async fn resolve_source(build: &Arc<Build>, vertex: &Vertex, op: &pb::SourceOp) -> Result<Resolved, BuildError> {
    let source = source::parse(op, vertex.platform.as_ref()).map_err(|e| vertex.blame(e))?;
    let reporter = build.reporter(vertex);
    let is_local = matches!(source, source::Source::Local(_));
    if !is_local {
        reporter.started();
    }
    let pin = match source.pin(&build.source_cx(vertex, None)).await {
        Ok(pin) => pin,
        Err(error) => {
            if is_local {
                reporter.started();
            }
            reporter.failed(&error.message);
            return Err(vertex.blame(error.context(format!("failed to resolve source metadata for {}", op.identifier))));
        }
    };
    if !is_local {
        reporter.completed();
    }
    let PinKey::Fixed(key) = pin.key else {
        return Ok(Resolved { key: VertexKey::Content, found: None, also: Vec::new(), pin: Some(pin) });
    };
    let record = if vertex.ignore_cache { None } else { look_up(&build.daemon.store, &key)? };
    if record.is_some() {
        reporter.cached_again();
    }
    build.note(vertex, if record.is_some() { "hit" } else { "miss" }, Some(&key), &[]);
    Ok(Resolved { key: VertexKey::Fixed(key), found: record.map(outputs_of), also: Vec::new(), pin: Some(pin) })
}

/// Makes a vertex's outputs, if they are not there.
async fn make(build: Arc<Build>, node: Arc<Node>) -> Result<Arc<Outputs>, BuildError> {
    let resolved = build.resolve(&node).wait().await?;
    if let Some(found) = resolved.found {
        return Ok(found);
    }
    let vertex = node.vertex();
    match &vertex.kind {
        Kind::Source(op) => make_source(&build, &node, op, resolved).await,
        Kind::Build(op) => make_nested(&build, &node, op, resolved).await,
        _ => make_op(&build, &node, resolved).await,
    }
    .map_err(|e| vertex.blame(e))
}

async fn make_source(
    build: &Arc<Build>,
    node: &Arc<Node>,
    op: &pb::SourceOp,
    resolved: Resolved,
) -> Result<Arc<Outputs>, BuildError> {
    let vertex = node.vertex();
    let source = source::parse(op, vertex.platform.as_ref())?;
    // A source that was looked up was also pinned.
    let pin = resolved.pin.ok_or_else(|| BuildError::new(tonic::Code::Internal, "a source without a pin"))?;
    let VertexKey::Fixed(key) = resolved.key else {
        let reporter = build.reporter(vertex);
        reporter.started();
        let fetched = source.fetch(&pin, &build.source_cx(vertex, None)).await;
        reporter.ended(&fetched);
        return Ok(Arc::new(vec![Some(fetched?)]));
    };
    let (this, node) = (Arc::clone(build), Arc::clone(node));
    let work = move |cx: FlightCx| async move {
        let cx = this.source_cx(node.vertex(), Some(&cx));
        cx.progress.started();
        let fetched = tokio::select! {
            fetched = source.fetch(&pin, &cx) => fetched,
            () = cx.cancel.cancelled() => Err(BuildError::canceled()),
        };
        let kept = match fetched {
            Ok(value) => keep(&this.daemon.store, node.vertex(), key, &[], vec![Some(value)]).await,
            Err(error) => Err(error),
        };
        cx.progress.ended(&kept);
        kept
    };
    build.daemon.flights.run(&build.daemon.sessions, key, build.member(vertex), work).await
}

async fn make_op(build: &Arc<Build>, node: &Arc<Node>, resolved: Resolved) -> Result<Arc<Outputs>, BuildError> {
    let vertex = node.vertex();
    let VertexKey::Fixed(key) = resolved.key else {
        return Err(BuildError::new(tonic::Code::Internal, "an op without a key"));
    };
    let inputs = build.inputs(node);
    let inputs = try_join_all(inputs.iter().map(|(input, output)| build.output_of(input, *output))).await?;
    let (this, node, also) = (Arc::clone(build), Arc::clone(node), resolved.also);
    let work = move |cx: FlightCx| async move { run_op(&this, &node, inputs, key, also, cx).await };
    build.daemon.flights.run(&build.daemon.sessions, key, build.member(vertex), work).await
}

async fn run_op(
    build: &Arc<Build>,
    node: &Arc<Node>,
    inputs: Vec<Value>,
    key: Digest,
    also: Vec<Digest>,
    cx: FlightCx,
) -> FlightResult {
    let vertex = node.vertex();
    // Another build may have ended the same step between our look-up and now.
    if !vertex.ignore_cache
        && let Some(record) = look_up(&build.daemon.store, &key)?
    {
        cx.progress.cached();
        return Ok(outputs_of(record));
    }
    let op = OpCx {
        daemon: Arc::clone(&build.daemon),
        sessions: cx.sessions,
        progress: cx.progress.clone(),
        cancel: cx.cancel,
        platform: vertex.platform.clone().unwrap_or_else(|| build.daemon.settings.platform()),
        entitlements: build.entitlements.clone(),
        log_file: build.daemon.history.step_log(&build.id, &vertex.digest),
    };
    cx.progress.started();
    let made = match ops::execute(&op, vertex, inputs).await {
        Ok(outputs) => keep(&build.daemon.store, vertex, key, &also, outputs).await,
        Err(error) => Err(error),
    };
    cx.progress.ended(&made);
    made
}

/// Stores what was made under its key.
async fn keep(store: &Arc<Store>, vertex: &Vertex, key: Digest, also: &[Digest], outputs: Outputs) -> FlightResult {
    let (store, also) = (Arc::clone(store), also.to_vec());
    let meta = serde_json::json!({ "name": vertex.name }).to_string();
    let anew = vertex.ignore_cache;
    blocking(move || {
        let mut snapshots = Vec::with_capacity(outputs.len());
        for output in &outputs {
            snapshots.push(match output {
                None => None,
                Some(Value::Stored(snapshot, _)) => Some(snapshot.clone()),
                // Known by its content alone: not to be found again by a key.
                Some(Value::Context(_)) => return Ok(Arc::new(outputs)),
            });
        }
        let record = store.put_record(&key, &snapshots, &meta).map_err(store_error)?;
        for other in also {
            // What was made although the cache was not to be asked, is newer than what is there.
            if anew { store.redirect(&other, record.id) } else { store.alias(&other, record.id) }
                .map_err(store_error)?;
        }
        Ok(outputs_of(record))
    })
    .await
}

async fn make_nested(
    build: &Arc<Build>,
    node: &Arc<Node>,
    op: &pb::BuildOp,
    resolved: Resolved,
) -> Result<Arc<Outputs>, BuildError> {
    let vertex = node.vertex();
    let (input, file) = ops::build::file(op)?;
    let inputs = build.inputs(node);
    let (input, output) = inputs.get(input).ok_or_else(|| BuildError::invalid("build: no such input"))?;
    let value = build.output_of(input, *output).await?;
    let reporter = build.reporter(vertex);
    reporter.started();
    let store = Arc::clone(&build.daemon.store);
    let made = async {
        let bytes = blocking(move || {
            let opened = value.open(&store).map_err(store_error)?;
            opened
                .read_file(file.as_bytes(), ops::build::MAX_FILE)
                .map_err(|e| BuildError::other(format!("build: {file}: {e}")))
        })
        .await?;
        let definition = ops::build::definition(&bytes)?;
        match build.load(&definition)? {
            Some(target) => {
                let nested: Boxed<Value> = {
                    let build = Arc::clone(build);
                    Box::pin(async move { build.evaluate(&target).await })
                };
                nested.await
            }
            None => Ok(Value::scratch()),
        }
    }
    .await;
    reporter.ended(&made);
    let outputs = vec![Some(made?)];
    match resolved.key {
        VertexKey::Fixed(key) => keep(&build.daemon.store, vertex, key, &resolved.also, outputs).await,
        VertexKey::Content => Ok(Arc::new(outputs)),
    }
}
