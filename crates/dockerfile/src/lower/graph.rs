//! The build graph: vertices in an arena, and its encoding as an LLB definition.
//!
//! A vertex is encoded when its digest is needed, inputs first, without recursion: a graph may be as deep as a Dockerfile
//! is long. Its bytes are its identity; how they come about follows the client library of the reference.

use super::encode::{Inputs, encode_exec, encode_files, sorted_mounts};
use crate::fault::Fault;
use crate::frontend::{SourceText, Span};
use bud_image::Platform;
use bud_protocol::{llb, pb};
use prost::Message as _;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

/// A definition larger than this is refused: no daemon takes it, and variables could make it grow without end.
pub(crate) const MAX_DEFINITION: usize = 64 << 20;

/// An output of a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Output {
    pub(crate) vertex: usize,
    pub(crate) index: i64,
}

/// What is known of a vertex beside its op; not a part of its identity.
#[derive(Clone, Debug, Default)]
pub(crate) struct Meta {
    pub(crate) ignore_cache: bool,
    pub(crate) description: BTreeMap<String, String>,
    pub(crate) progress_group: Option<pb::ProgressGroup>,
    pub(crate) linux_resources: Option<pb::LinuxResources>,
    /// Where in the Dockerfile it is from.
    pub(crate) place: Option<Vec<Span>>,
    /// Where in other texts it is from: their numbers in the graph, and the ranges.
    given_places: Vec<(usize, Vec<pb::Range>)>,
}

impl Meta {
    pub(crate) fn named(name: impl Into<String>) -> Self {
        Self::default().with("llb.customname", name)
    }

    pub(crate) fn with(mut self, key: &str, value: impl Into<String>) -> Self {
        self.description.insert(key.to_owned(), value.into());
        self
    }

    pub(crate) fn at(mut self, place: &[Span]) -> Self {
        self.place = Some(place.to_vec());
        self
    }
}

/// An image, directory or file from elsewhere.
#[derive(Clone, Debug, Default)]
pub(crate) struct Source {
    pub(crate) id: String,
    pub(crate) attrs: BTreeMap<String, String>,
    pub(crate) caps: BTreeSet<&'static str>,
    pub(crate) platform: Option<Platform>,
}

/// A process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exec {
    pub(crate) root: Option<Output>,
    /// The op without mounts.
    pub(crate) op: pb::ExecOp,
    pub(crate) mounts: Vec<ExecMount>,
    pub(crate) secrets: Vec<pb::Mount>,
    pub(crate) agents: Vec<pb::Mount>,
    pub(crate) platform: Option<Platform>,
    pub(crate) caps: BTreeSet<&'static str>,
    /// `PATH` is not to be seen to.
    pub(crate) has_own_path: bool,
}

/// A mount of a process, but for secrets and agents.
#[derive(Clone, Debug, Default)]
pub(crate) struct ExecMount {
    pub(crate) source: Option<Output>,
    pub(crate) dest: String,
    pub(crate) selector: String,
    pub(crate) readonly: bool,
    pub(crate) no_output: bool,
    pub(crate) cache: Option<pb::CacheOpt>,
    pub(crate) tmpfs_size: Option<i64>,
}

/// File actions, one after the other, on one file system.
#[derive(Clone, Debug, Default)]
pub(crate) struct Files {
    pub(crate) base: Option<Output>,
    /// The directory that relative paths are below.
    pub(crate) dir: String,
    pub(crate) actions: Vec<Action>,
}

/// Who is to own files.
#[derive(Clone, Debug)]
pub(crate) struct Owner {
    pub(crate) user: Option<Id>,
    pub(crate) group: Option<Id>,
}

/// A user or group.
#[derive(Clone, Debug)]
pub(crate) enum Id {
    Number(u32),
    Name(String),
}

/// A file action.
#[derive(Clone, Debug)]
pub(crate) enum Action {
    Mkdir { path: String, mode: i32, make_parents: bool, owner: Option<Owner>, timestamp: i64 },
    Mkfile { path: String, mode: i32, data: Vec<u8> },
    Copy { from: Option<Output>, from_dir: String, copy: Box<pb::FileActionCopy>, owner: Option<Owner> },
}

#[derive(Clone, Debug)]
enum Kind {
    Source(Source),
    Exec(Box<Exec>),
    Files(Files),
    Merge(Vec<Output>),
    /// An op of a definition that was given.
    Given {
        bytes: Vec<u8>,
        inputs: Vec<Output>,
        caps: BTreeMap<String, bool>,
        export_cache: Option<pb::ExportCache>,
    },
    /// Stands for an output that is not known yet.
    Later(Option<Output>),
}

#[derive(Clone, Debug)]
struct Vertex {
    kind: Kind,
    meta: Meta,
}

/// All vertices of a build.
#[derive(Debug, Default)]
pub(crate) struct Graph {
    vertices: Vec<Vertex>,
    /// Texts of definitions that were given.
    texts: Vec<pb::SourceInfo>,
}

/// What holds for all ops of a definition.
#[derive(Clone, Debug, Default)]
pub(crate) struct Defaults {
    pub(crate) platform: Option<Platform>,
    /// The solver puts `PATH` where a step has none.
    pub(crate) sets_default_path: bool,
}

pub(super) struct Encoded {
    pub(super) digest: String,
    bytes: Vec<u8>,
    caps: BTreeMap<String, bool>,
}

impl Graph {
    fn add(&mut self, kind: Kind, meta: Meta) -> Output {
        self.vertices.push(Vertex { kind, meta });
        Output { vertex: self.vertices.len() - 1, index: 0 }
    }

    pub(crate) fn source(&mut self, source: Source, meta: Meta) -> Output {
        self.add(Kind::Source(source), meta)
    }

    pub(crate) fn exec(&mut self, exec: Exec, meta: Meta) -> Output {
        self.add(Kind::Exec(Box::new(exec)), meta)
    }

    pub(crate) fn files(&mut self, files: Files, meta: Meta) -> Output {
        self.add(Kind::Files(files), meta)
    }

    pub(crate) fn merge(&mut self, inputs: Vec<Output>, meta: Meta) -> Output {
        self.add(Kind::Merge(inputs), meta)
    }

    pub(crate) fn later(&mut self) -> Output {
        self.add(Kind::Later(None), Meta::default())
    }

    /// Says what an output that was left open is.
    pub(crate) fn resolve(&mut self, open: Output, output: Option<Output>) {
        if let Kind::Later(target) = &mut self.vertices[open.vertex].kind {
            *target = output;
        }
    }

    /// Takes over a definition; returns its output and the platform of the op, none if it is empty.
    pub(crate) fn import(&mut self, definition: &pb::Definition) -> Result<Option<(Output, Option<Platform>)>, Fault> {
        let mut known: HashMap<String, usize> = HashMap::new();
        let mut last: Option<(Output, Option<Platform>)> = None;
        let mut platforms: HashMap<usize, Option<Platform>> = HashMap::new();
        let texts = self.texts.len();
        self.texts.extend(definition.source.iter().flat_map(|source| source.infos.iter().cloned()));
        for bytes in &definition.def {
            let op = pb::Op::decode(bytes.as_slice()).map_err(|e| format!("failed to parse llb proto op: {e}"))?;
            let mut inputs = Vec::with_capacity(op.inputs.len());
            for input in &op.inputs {
                let vertex = *known
                    .get(&input.digest)
                    .ok_or_else(|| format!("invalid definition op with unknown op {:?}", input.digest))?;
                inputs.push(Output { vertex, index: input.index });
            }
            let Some(_) = op.op else {
                // The last op has just an input: the result.
                last = inputs.first().map(|output| (*output, platforms.get(&output.vertex).cloned().flatten()));
                continue;
            };
            let digest = llb::op_digest(bytes);
            let md = definition.metadata.get(&digest).cloned().unwrap_or_default();
            let meta = Meta {
                ignore_cache: md.ignore_cache,
                description: md.description,
                progress_group: md.progress_group,
                linux_resources: md.linux_resources,
                place: None,
                given_places: self.places(definition, &digest, texts)?,
            };
            let kind = Kind::Given { bytes: bytes.clone(), inputs, caps: md.caps, export_cache: md.export_cache };
            let output = self.add(kind, meta);
            platforms.insert(output.vertex, op.platform.as_ref().map(from_pb));
            known.insert(digest, output.vertex);
        }
        Ok(last)
    }

    /// Where a vertex of a given definition is from.
    fn places(
        &self,
        definition: &pb::Definition,
        digest: &str,
        first_text: usize,
    ) -> Result<Vec<(usize, Vec<pb::Range>)>, Fault> {
        let known = definition.source.as_ref().and_then(|source| source.locations.get(digest));
        let mut places = Vec::new();
        for location in known.iter().flat_map(|known| &known.locations) {
            let index = usize::try_from(location.source_index).ok().map(|index| first_text + index);
            let index = index
                .filter(|index| *index < self.texts.len())
                .ok_or_else(|| Fault::new(format!("failed to find source map with index {}", location.source_index)))?;
            places.push((index, location.ranges.clone()));
        }
        Ok(places)
    }

    /// Follows outputs that were left open.
    pub(super) fn real(&self, output: Output) -> Option<Output> {
        let mut output = output;
        // A chain of open outputs can't be longer than the arena.
        for _ in 0..=self.vertices.len() {
            match &self.vertices[output.vertex].kind {
                Kind::Later(target) => output = (*target)?,
                _ => return Some(output),
            }
        }
        None
    }

    /// The inputs of a vertex in the order in which they are walked.
    fn inputs(&self, vertex: usize) -> Vec<Output> {
        let mut out: Vec<Output> = Vec::new();
        let mut seen = HashSet::new();
        let mut push = |output: Option<Output>| {
            if let Some(output) = output
                && seen.insert(output)
            {
                out.push(output);
            }
        };
        match &self.vertices[vertex].kind {
            Kind::Source(_) | Kind::Later(_) => {}
            Kind::Exec(exec) => sorted_mounts(exec).iter().for_each(|mount| push(mount.source)),
            Kind::Files(files) => {
                // From the last action to the first.
                for action in files.actions.iter().rev() {
                    push(files.base);
                    if let Action::Copy { from, .. } = action {
                        push(*from);
                    }
                }
            }
            Kind::Merge(inputs) | Kind::Given { inputs, .. } => inputs.iter().for_each(|o| push(Some(*o))),
        }
        out.into_iter().filter_map(|output| self.real(output)).collect()
    }

    /// Encodes the graph up to an output.
    pub(crate) fn encode(
        &self,
        output: Option<Output>,
        defaults: &Defaults,
        text: Option<&SourceText>,
    ) -> Result<pb::Definition, Fault> {
        let mut definition = pb::Definition::default();
        let Some(target) = output.and_then(|output| self.real(output)) else { return Ok(definition) };
        let mut encoded: HashMap<usize, Encoded> = HashMap::new();
        let mut digests: HashSet<String> = HashSet::new();
        let mut source = pb::Source::default();
        let mut own_text: Option<i32> = None;
        let has_bad_bytes = text.is_some_and(|text| std::str::from_utf8(&text.data).is_err());
        let mut size = 0;
        let mut stack = vec![(target.vertex, false)];
        while let Some((vertex, inputs_done)) = stack.pop() {
            if encoded.contains_key(&vertex) {
                continue;
            }
            if !inputs_done {
                stack.push((vertex, true));
                stack.extend(self.inputs(vertex).iter().rev().map(|input| (input.vertex, false)));
                continue;
            }
            let item = self.encode_vertex(vertex, defaults, &encoded)?;
            let meta = &self.vertices[vertex].meta;
            let entry = definition.metadata.entry(item.digest.clone()).or_default();
            merge_metadata(entry, meta, &item.caps, &self.vertices[vertex].kind);
            let locations = source.locations.entry(item.digest.clone()).or_default();
            if let (Some(place), Some(text)) = (&meta.place, text) {
                let ranges = place.iter().map(|span| span.to_range()).collect();
                let source_index = *own_text.get_or_insert_with(|| text_index(&mut source.infos, &text.to_info()));
                locations.locations.push(pb::Location { source_index, ranges });
            }
            for (given, ranges) in &meta.given_places {
                let source_index = text_index(&mut source.infos, &self.texts[*given]);
                locations.locations.push(pb::Location { source_index, ranges: ranges.clone() });
            }
            if digests.insert(item.digest.clone()) {
                if has_bad_bytes && is_own(&self.vertices[vertex].kind) && has_replacement(&item.bytes) {
                    // What was replaced when the text was read would be wrong in the build.
                    return Err(Fault::new("string field contains invalid UTF-8"));
                }
                size += item.bytes.len();
                if size > MAX_DEFINITION {
                    let limit = MAX_DEFINITION >> 20;
                    return Err(Fault::new(format!("the build's definition is larger than {limit} MiB")));
                }
                definition.def.push(item.bytes.clone());
            }
            encoded.insert(vertex, Encoded { bytes: Vec::new(), ..item });
        }
        // The target was just encoded.
        let digest = encoded.get(&target.vertex).map(|e| e.digest.clone()).unwrap_or_default();
        let last = pb::Op { inputs: vec![pb::Input { digest, index: target.index }], ..pb::Op::default() };
        let bytes = last.encode_to_vec();
        let mut caps = BTreeMap::from([("constraints".to_owned(), true), ("platform".to_owned(), true)]);
        for md in definition.metadata.values() {
            if md.ignore_cache {
                caps.insert("meta.ignorecache".into(), true);
            }
            if !md.description.is_empty() {
                caps.insert("meta.description".into(), true);
            }
            if md.export_cache.is_some() {
                caps.insert("meta.exportcache".into(), true);
            }
        }
        definition.metadata.entry(llb::op_digest(&bytes)).or_default().caps.extend(caps);
        definition.def.push(bytes);
        definition.source = Some(source);
        Ok(definition)
    }

    fn encode_vertex(
        &self,
        vertex: usize,
        defaults: &Defaults,
        encoded: &HashMap<usize, Encoded>,
    ) -> Result<Encoded, Fault> {
        let mut inputs = Inputs { graph: self, encoded, list: Vec::new() };
        let mut caps: BTreeSet<&'static str> = BTreeSet::new();
        let platform = |own: &Option<Platform>| own.as_ref().or(defaults.platform.as_ref()).map(to_pb);
        let (op, platform) = match &self.vertices[vertex].kind {
            Kind::Source(source) => {
                caps.extend(&source.caps);
                let has_platform = ["docker-image://", "oci-layout://"].iter().any(|p| source.id.starts_with(p));
                let op = pb::SourceOp { identifier: source.id.clone(), attrs: source.attrs.clone() };
                (pb::op::Op::Source(op), has_platform.then(|| platform(&source.platform)).flatten())
            }
            Kind::Exec(exec) => {
                let op = encode_exec(exec, defaults, &mut inputs, &mut caps)?;
                (pb::op::Op::Exec(op), platform(&exec.platform))
            }
            Kind::Files(files) => {
                caps.insert("file.base");
                (pb::op::Op::File(encode_files(files, &mut inputs)), None)
            }
            Kind::Merge(outputs) => {
                caps.insert("mergeop");
                let mut op = pb::MergeOp::default();
                for output in outputs {
                    op.inputs.push(pb::MergeInput { input: inputs.push(*output) });
                }
                (pb::op::Op::Merge(op), None)
            }
            Kind::Given { bytes, caps, .. } => {
                return Ok(Encoded { digest: llb::op_digest(bytes), bytes: bytes.clone(), caps: caps.clone() });
            }
            // Open outputs are followed before they are encoded.
            Kind::Later(_) => return Err(Fault::new("a part of the build was left open")),
        };
        let op =
            pb::Op { inputs: inputs.list, platform, constraints: Some(pb::WorkerConstraints::default()), op: Some(op) };
        let bytes = llb::encode_op(&op);
        let caps = caps.iter().map(|cap| ((*cap).to_owned(), true)).collect();
        Ok(Encoded { digest: llb::op_digest(&bytes), bytes, caps })
    }
}

/// Adds what a vertex says to what another vertex of the same digest said.
fn merge_metadata(entry: &mut pb::OpMetadata, meta: &Meta, caps: &BTreeMap<String, bool>, kind: &Kind) {
    entry.ignore_cache |= meta.ignore_cache;
    entry.description.extend(meta.description.clone());
    entry.caps.extend(caps.keys().map(|cap| (cap.clone(), true)));
    if meta.progress_group.is_some() {
        entry.progress_group.clone_from(&meta.progress_group);
    }
    if meta.linux_resources.is_some() {
        entry.linux_resources.clone_from(&meta.linux_resources);
    }
    if let Kind::Given { export_cache: Some(export), .. } = kind {
        entry.export_cache = Some(*export);
    }
}

fn is_own(kind: &Kind) -> bool {
    !matches!(kind, Kind::Given { .. })
}

/// Tells whether there is a character that stands for bytes which are none.
fn has_replacement(bytes: &[u8]) -> bool {
    bytes.windows(3).any(|window| window == "\u{fffd}".as_bytes())
}

/// Returns the index of a text, which is added once.
fn text_index(infos: &mut Vec<pb::SourceInfo>, info: &pb::SourceInfo) -> i32 {
    let known = infos.iter().position(|known| known.filename == info.filename && known.data == info.data);
    let at = known.unwrap_or_else(|| {
        infos.push(info.clone());
        infos.len() - 1
    });
    i32::try_from(at).unwrap_or(i32::MAX)
}

/// Returns the digest of a definition's result.
pub(crate) fn head(definition: &pb::Definition) -> String {
    let last = definition.def.last().and_then(|bytes| pb::Op::decode(bytes.as_slice()).ok());
    last.and_then(|op| op.inputs.into_iter().next()).map(|input| input.digest).unwrap_or_default()
}

fn to_pb(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

fn from_pb(platform: &pb::Platform) -> Platform {
    Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}
