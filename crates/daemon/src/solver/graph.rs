//! A definition as it was sent becomes a graph that is known to be sound: every input exists, nothing is its own ancestor.

use bud_image::Platform;
use bud_protocol::errors::{BuildError, Detail, SourcePlace};
use bud_protocol::{control, llb, pb};
use prost::Message as _;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// At most so many ops are in a definition.
pub const MAX_OPS: usize = 50_000;
/// At most so many inputs has an op.
pub const MAX_INPUTS: usize = 10_000;
/// An op's outputs are numbered below this.
pub const MAX_OUTPUTS: usize = 1_000;

/// A place in a graph: a vertex and which of its outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Edge {
    /// The vertex's number in the graph.
    pub vertex: usize,
    /// The output's number.
    pub output: usize,
}

/// What a vertex does.
#[derive(Clone, Debug)]
pub enum Kind {
    /// Brings files from outside.
    Source(pb::SourceOp),
    /// Runs a process.
    Exec(Box<pb::ExecOp>),
    /// Changes files.
    File(pb::FileOp),
    /// Puts trees on one another.
    Merge(pb::MergeOp),
    /// Takes what differs.
    Diff(pb::DiffOp),
    /// Builds a definition that is read from a file.
    Build(pb::BuildOp),
    /// Passes its inputs on.
    Passthrough(pb::PassthroughOp),
}

/// An op in a graph.
#[derive(Clone, Debug)]
pub struct Vertex {
    /// The digest of the op's bytes as they were sent.
    pub digest: String,
    /// What it does.
    pub kind: Kind,
    /// From what.
    pub inputs: Vec<Edge>,
    /// For which platform; none: the worker's.
    pub platform: Option<Platform>,
    /// How it is called in the progress.
    pub name: String,
    /// The cache is not asked.
    pub ignore_cache: bool,
    /// The line that it is shown in.
    pub group: Option<pb::ProgressGroup>,
    /// Limits on its processes; not part of its key.
    pub resources: Option<pb::LinuxResources>,
    /// Where it was written.
    pub places: Vec<SourcePlace>,
}

/// A sound definition.
#[derive(Debug)]
pub struct Graph {
    /// The vertices; inputs come before their users.
    pub vertices: Vec<Vertex>,
    /// The result.
    pub target: Edge,
}

/// Checks a definition and makes a graph of the part that its result needs.
///
/// Returns `None` for an empty definition: the result is scratch.
///
/// # Errors
/// `InvalidArgument`, naming the vertex.
pub fn load(definition: &pb::Definition) -> Result<Option<Arc<Graph>>, BuildError> {
    if definition.def.is_empty() {
        return Ok(None);
    }
    if definition.def.len() > MAX_OPS {
        return Err(BuildError::invalid(format!(
            "the definition has {} ops, more than {MAX_OPS}",
            definition.def.len()
        )));
    }
    let mut ops: HashMap<String, pb::Op> = HashMap::with_capacity(definition.def.len());
    let mut last = String::new();
    for (number, bytes) in definition.def.iter().enumerate() {
        let digest = llb::op_digest(bytes);
        let op = pb::Op::decode(bytes.as_slice())
            .map_err(|e| BuildError::invalid(format!("op {number} of the definition can't be read: {e}")))?;
        last.clone_from(&digest);
        ops.insert(digest, op);
    }
    let count = definition.def.len();
    let terminal = ops.get(&last).filter(|_| count >= 2 && ops.len() >= 2);
    let Some(terminal) = terminal.filter(|op| op.op.is_none() && op.inputs.len() == 1) else {
        return Err(BuildError::invalid(format!(
            "invalid LLB with {count} vertexes: the last op must have one input and do nothing"
        )));
    };
    let target = terminal.inputs[0].clone();
    let order = order(&ops, &target.digest)?;
    let mut numbers: HashMap<&str, usize> = HashMap::with_capacity(order.len());
    let mut vertices: Vec<Vertex> = Vec::with_capacity(order.len());
    for digest in &order {
        let op = &ops[digest];
        let mut inputs = Vec::with_capacity(op.inputs.len());
        for input in &op.inputs {
            // `order` puts inputs first.
            let Some(number) = numbers.get(input.digest.as_str()) else {
                return Err(at(digest, format!("input {} comes after its user", input.digest)));
            };
            inputs.push(edge(digest, *number, input.index, &vertices[*number])?);
        }
        let names: Vec<&str> = inputs.iter().map(|e| vertices[e.vertex].name.as_str()).collect();
        let vertex = vertex(digest, op, inputs.clone(), &names, definition)?;
        numbers.insert(digest, vertices.len());
        vertices.push(vertex);
    }
    let number = vertices.len() - 1;
    let target = edge(&target.digest, number, target.index, &vertices[number])?;
    Ok(Some(Arc::new(Graph { vertices, target })))
}

fn at(digest: &str, message: impl std::fmt::Display) -> BuildError {
    BuildError::invalid(format!("invalid LLB: vertex {digest}: {message}")).with(Detail::Vertex(digest.to_owned()))
}

fn edge(user: &str, number: usize, index: i64, vertex: &Vertex) -> Result<Edge, BuildError> {
    let outputs = vertex.outputs();
    match usize::try_from(index) {
        Ok(output) if output < outputs => Ok(Edge { vertex: number, output }),
        _ => Err(at(user, format!("output {index} of {} does not exist: it has {outputs}", vertex.digest))),
    }
}

/// Returns the needed ops' digests, inputs before users. Without recursion: a definition may be as deep as it is long.
fn order(ops: &HashMap<String, pb::Op>, target: &str) -> Result<Vec<String>, BuildError> {
    #[derive(PartialEq)]
    enum Mark {
        Open,
        Done,
    }
    let mut marks: HashMap<&str, Mark> = HashMap::new();
    let mut order = Vec::new();
    let mut stack: Vec<(&str, usize)> = vec![(target, 0)];
    while let Some((digest, next)) = stack.pop() {
        let Some((key, op)) = ops.get_key_value(digest) else {
            let user = stack.last().map_or(digest, |(user, _)| user);
            return Err(at(user, format!("input {digest:?} is not in the definition")));
        };
        if next == 0 {
            if marks.get(digest) == Some(&Mark::Done) {
                continue;
            }
            if op.inputs.len() > MAX_INPUTS {
                return Err(at(digest, format!("{} inputs are more than {MAX_INPUTS}", op.inputs.len())));
            }
            marks.insert(key, Mark::Open);
        }
        if let Some(input) = op.inputs.get(next) {
            stack.push((key, next + 1));
            match marks.get(input.digest.as_str()) {
                Some(Mark::Done) => {}
                Some(Mark::Open) => return Err(at(digest, "is its own ancestor")),
                None => stack.push((&input.digest, 0)),
            }
        } else {
            marks.insert(key, Mark::Done);
            order.push(key.clone());
        }
    }
    Ok(order)
}

fn vertex(
    digest: &str,
    op: &pb::Op,
    inputs: Vec<Edge>,
    names: &[&str],
    definition: &pb::Definition,
) -> Result<Vertex, BuildError> {
    use pb::op::Op;
    let kind = match op.op.clone() {
        None => return Err(at(digest, "the op does nothing (no kind)")),
        Some(Op::Source(op)) => Kind::Source(op),
        Some(Op::Exec(op)) => Kind::Exec(Box::new(op)),
        Some(Op::File(op)) => Kind::File(op),
        Some(Op::Merge(op)) => Kind::Merge(op),
        Some(Op::Diff(op)) => Kind::Diff(op),
        Some(Op::Build(op)) => Kind::Build(op),
        Some(Op::Passthrough(op)) => Kind::Passthrough(op),
    };
    let empty = pb::OpMetadata::default();
    let metadata = definition.metadata.get(digest).unwrap_or(&empty);
    for (cap, wanted) in &metadata.caps {
        if *wanted && !crate::control::caps::has_llb(cap) {
            return Err(at(digest, format!("it needs the capability {cap}, which this daemon does not have")));
        }
    }
    let platform = op.platform.as_ref().map(platform_from_pb);
    let mut vertex = Vertex {
        digest: digest.into(),
        kind,
        inputs,
        platform,
        name: String::new(),
        ignore_cache: metadata.ignore_cache,
        group: metadata.progress_group.clone(),
        resources: metadata.linux_resources.clone(),
        places: places(digest, definition),
    };
    crate::ops::validate(&vertex).map_err(|message| at(digest, message))?;
    vertex.name = match metadata.description.get("llb.customname") {
        Some(name) if !name.is_empty() => clean(name),
        // A name made of names doubles with each level of a diamond.
        _ => clean(&crate::ops::name(&vertex, names)).chars().take(1000).collect(),
    };
    Ok(vertex)
}

/// Keeps a name on one line of sensible length.
fn clean(name: &str) -> String {
    name.chars().take(4096).map(|c| if c.is_control() && c != '\t' && c != '\n' { '\u{fffd}' } else { c }).collect()
}

fn places(digest: &str, definition: &pb::Definition) -> Vec<SourcePlace> {
    let Some(source) = &definition.source else { return Vec::new() };
    let Some(locations) = source.locations.get(digest) else { return Vec::new() };
    let place = |location: &pb::Location| {
        let info = usize::try_from(location.source_index).ok().and_then(|i| source.infos.get(i))?;
        (!location.ranges.is_empty()).then(|| SourcePlace { info: Some(info.clone()), ranges: location.ranges.clone() })
    };
    locations.locations.iter().filter_map(place).take(16).collect()
}

/// Converts a platform from the wire, normalized.
#[must_use]
pub fn platform_from_pb(platform: &pb::Platform) -> Platform {
    Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
        variant: platform.variant.clone(),
    }
    .normalize()
}

/// Converts a platform for the wire.
#[must_use]
pub fn platform_to_pb(platform: &Platform) -> pb::Platform {
    pb::Platform {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        os_version: platform.os_version.clone(),
        os_features: platform.os_features.clone(),
    }
}

impl Vertex {
    /// Returns how many outputs it has.
    #[must_use]
    pub fn outputs(&self) -> usize {
        match &self.kind {
            Kind::Exec(op) => count(op.mounts.iter().filter(|m| crate::ops::exec::has_files(m)).map(|m| m.output)),
            Kind::File(op) => count(op.actions.iter().map(|a| a.output)),
            Kind::Passthrough(op) => op.outputs.len(),
            Kind::Source(_) | Kind::Merge(_) | Kind::Diff(_) | Kind::Build(_) => 1,
        }
    }

    /// Announces it.
    #[must_use]
    pub fn to_control(&self, graph: &Graph) -> control::Vertex {
        control::Vertex {
            digest: self.digest.clone(),
            inputs: self.inputs.iter().map(|e| graph.vertices[e.vertex].digest.clone()).collect(),
            name: self.name.clone(),
            progress_group: self.group.clone(),
            ..control::Vertex::default()
        }
    }

    /// Attaches the vertex and its places to an error that has none yet.
    #[must_use]
    pub fn blame(&self, mut error: BuildError) -> BuildError {
        if error.has_vertex() {
            return error;
        }
        let mut details: Vec<Detail> = self.places.iter().map(|p| Detail::Source(Box::new(p.clone()))).collect();
        details.push(Detail::Vertex(self.digest.clone()));
        details.append(&mut error.details);
        BuildError { details, ..error }
    }
}

fn count(outputs: impl Iterator<Item = i64>) -> usize {
    outputs.filter_map(|o| usize::try_from(o).ok()).max().map_or(0, |o| (o + 1).min(MAX_OUTPUTS))
}

/// Makes a definition of the part of another that a vertex's output needs; for references that a client asks the definition of.
#[must_use]
pub fn attributes(op: &pb::SourceOp) -> BTreeMap<String, String> {
    op.attrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source() -> pb::Op {
        pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp { identifier: "local://context".into(), ..Default::default() })),
            ..Default::default()
        }
    }

    fn merge(inputs: &[(&str, i64)]) -> pb::Op {
        pb::Op {
            inputs: inputs.iter().map(|(d, i)| pb::Input { digest: (*d).into(), index: *i }).collect(),
            op: Some(pb::op::Op::Merge(pb::MergeOp {
                inputs: (0..inputs.len()).map(|i| pb::MergeInput { input: i as i64 }).collect(),
            })),
            ..Default::default()
        }
    }

    fn terminal(digest: &str, index: i64) -> Vec<u8> {
        pb::Op { inputs: vec![pb::Input { digest: digest.into(), index }], ..Default::default() }.encode_to_vec()
    }

    fn definition(ops: &[pb::Op], target: (&str, i64)) -> pb::Definition {
        let mut def: Vec<Vec<u8>> = ops.iter().map(llb::encode_op).collect();
        def.push(terminal(target.0, target.1));
        pb::Definition { def, ..Default::default() }
    }

    fn digest(op: &pb::Op) -> String {
        llb::op_digest(&llb::encode_op(op))
    }

    #[test]
    fn a_sound_definition_is_taken_whatever_its_order() {
        let s = source();
        let m = merge(&[(&digest(&s), 0), (&digest(&s), 0)]);
        let graph = load(&definition(&[m.clone(), s.clone()], (&digest(&m), 0))).unwrap().unwrap();
        assert_eq!(graph.vertices.len(), 2);
        assert_eq!(graph.vertices[graph.target.vertex].digest, digest(&m));
        assert!(matches!(graph.vertices[0].kind, Kind::Source(_)));
    }

    #[test]
    fn an_empty_definition_is_scratch() {
        assert!(load(&pb::Definition::default()).unwrap().is_none());
    }

    #[test]
    fn what_is_not_needed_is_not_loaded() {
        let s = source();
        let other = pb::Op {
            op: Some(pb::op::Op::Source(pb::SourceOp { identifier: "local://x".into(), ..Default::default() })),
            ..Default::default()
        };
        let graph = load(&definition(&[other, s.clone()], (&digest(&s), 0))).unwrap().unwrap();
        assert_eq!(graph.vertices.len(), 1);
    }

    #[test]
    fn unsound_definitions_are_refused_by_name() {
        let s = source();
        let d = digest(&s);
        let nothing =
            pb::Op { platform: Some(pb::Platform { os: "linux".into(), ..Default::default() }), ..Default::default() };
        let unknown = format!("sha256:{}", "0".repeat(64));
        let cases: Vec<(pb::Definition, &str)> = vec![
            (pb::Definition { def: vec![llb::encode_op(&s)], ..Default::default() }, "invalid LLB with 1 vertexes"),
            (pb::Definition { def: vec![vec![0xff; 20], terminal(&d, 0)], ..Default::default() }, "can't be read"),
            (definition(std::slice::from_ref(&nothing), (&digest(&nothing), 0)), "does nothing"),
            (definition(std::slice::from_ref(&s), (&unknown, 0)), "is not in the definition"),
            (definition(std::slice::from_ref(&s), ("", 0)), "is not in the definition"),
            (definition(std::slice::from_ref(&s), (&d, -1)), "output -1"),
            (definition(std::slice::from_ref(&s), (&d, 1 << 31)), "output 2147483648"),
            (
                definition(&[s.clone(), merge(&[(&d, 1), (&d, 0)])], (&digest(&merge(&[(&d, 1), (&d, 0)])), 0)),
                "output 1",
            ),
            (
                definition(
                    &[merge(&[(&unknown, 0), (&unknown, 0)])],
                    (&digest(&merge(&[(&unknown, 0), (&unknown, 0)])), 0),
                ),
                &unknown,
            ),
        ];
        for (definition, text) in cases {
            let error = load(&definition).unwrap_err();
            assert_eq!(error.code, tonic::Code::InvalidArgument, "{error}");
            assert!(error.message.contains(text), "{error} should name {text}");
        }
    }

    #[test]
    fn a_deep_chain_and_a_wide_diamond_take_no_time() {
        let mut ops = vec![source()];
        let mut last = digest(&ops[0]);
        for _ in 0..5000 {
            let op = merge(&[(&last, 0), (&last, 0)]);
            last = digest(&op);
            ops.push(op);
        }
        let graph = load(&definition(&ops, (&last, 0))).unwrap().unwrap();
        assert_eq!(graph.vertices.len(), 5001);
    }

    #[test]
    fn a_name_is_kept_free_of_control_characters() {
        assert_eq!(clean("a\x1b[31mb"), "a\u{fffd}[31mb");
    }
}
