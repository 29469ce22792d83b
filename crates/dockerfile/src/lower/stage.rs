//! Stages while they are lowered.

use super::context::{LocalContext, NamedContext};
use super::outline::Outline;
use super::state::State;
use crate::frontend::Span;
use crate::instruction::{self, ArgPair, Instruction};
use bud_image::{ImageConfig, Platform};
use std::cell::RefCell;
use std::collections::{BTreeSet, HashMap};
use std::rc::Rc;

/// Paths of a stage that others use; shared with the stages that stand on it.
pub(crate) type UsedPaths = Rc<RefCell<BTreeSet<String>>>;

/// A stage, or an image that a `COPY --from` or a mount names.
#[derive(Debug)]
pub(crate) struct Stage {
    /// The name after `AS`, or empty.
    pub(crate) name: String,
    /// The name in progress and messages.
    pub(crate) shown: String,
    /// What it stands on: written, then expanded, then pinned.
    pub(crate) base_name: String,
    pub(crate) base: Option<usize>,
    pub(crate) code: String,
    pub(crate) place: Vec<Span>,
    pub(crate) description: String,
    pub(crate) platform: Option<Platform>,
    pub(crate) named_context: Option<NamedContext>,
    pub(crate) locals: Vec<LocalContext>,
    pub(crate) commands: Vec<Command>,
    /// Stages that its commands take from, with the place of the last such command.
    pub(crate) deps: Vec<(usize, Vec<Span>)>,
    pub(crate) state: State,
    pub(crate) image: ImageConfig,
    /// The image that it stands on, unchanged.
    pub(crate) base_image: Option<ImageConfig>,
    pub(crate) is_dispatched: bool,
    pub(crate) is_resolved: bool,
    pub(crate) has_triggers: bool,
    /// Not written as a stage.
    pub(crate) is_unregistered: bool,
    pub(crate) build_args: Vec<ArgPair>,
    pub(crate) context_paths: BTreeSet<String>,
    pub(crate) paths: UsedPaths,
    pub(crate) ignores_cache: bool,
    pub(crate) command_index: usize,
    pub(crate) command_total: usize,
    pub(crate) in_trigger: bool,
    pub(crate) outline: Outline,
    pub(crate) scan_stage: bool,
    pub(crate) scan_context: bool,
    pub(crate) has_workdir: bool,
    /// Places of the last `ENTRYPOINT`, `CMD`, `HEALTHCHECK`.
    pub(crate) entrypoint: Option<Vec<Span>>,
    pub(crate) cmd: Option<Vec<Span>>,
    pub(crate) healthcheck: Option<Vec<Span>>,
}

/// A command of a stage.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    pub(crate) instruction: Rc<Instruction>,
    /// The stages it takes from: for `COPY` one or none, for `RUN` one a mount.
    pub(crate) sources: Vec<usize>,
    pub(crate) is_trigger: bool,
}

impl Stage {
    pub(crate) fn new(base_name: String, place: Vec<Span>, outline: Outline) -> Self {
        Self {
            name: String::new(),
            shown: String::new(),
            base_name,
            base: None,
            code: String::new(),
            place,
            description: String::new(),
            platform: None,
            named_context: None,
            locals: Vec::new(),
            commands: Vec::new(),
            deps: Vec::new(),
            state: State::scratch(),
            image: ImageConfig::default(),
            base_image: None,
            is_dispatched: false,
            is_resolved: false,
            has_triggers: false,
            is_unregistered: false,
            build_args: Vec::new(),
            context_paths: BTreeSet::new(),
            paths: UsedPaths::default(),
            ignores_cache: false,
            command_index: 0,
            command_total: 0,
            in_trigger: false,
            outline,
            scan_stage: false,
            scan_context: false,
            has_workdir: false,
            entrypoint: None,
            cmd: None,
            healthcheck: None,
        }
    }

    /// Notes a stage that a command takes from.
    pub(crate) fn depend(&mut self, on: usize, place: &[Span]) {
        match self.deps.iter_mut().find(|(known, _)| *known == on) {
            Some((_, known)) => *known = place.to_vec(),
            None => self.deps.push((on, place.to_vec())),
        }
    }
}

/// All stages, in order; images named by commands after those that are written.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    pub(crate) list: Vec<Stage>,
    by_name: HashMap<String, usize>,
}

impl Stages {
    pub(crate) fn add(&mut self, mut stage: Stage) -> usize {
        if let Some(base) = self.by_name.get(&stage.base_name) {
            stage.base = Some(*base);
            stage.outline = self.list[*base].outline.clone();
        }
        let index = self.list.len();
        if !stage.name.is_empty() {
            self.by_name.insert(stage.name.to_lowercase(), index);
        }
        self.list.push(stage);
        index
    }

    pub(crate) fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(&name.to_lowercase()).copied()
    }

    pub(crate) fn names(&self) -> Vec<&str> {
        self.list.iter().map(|s| s.shown.as_str()).filter(|name| !name.is_empty()).collect()
    }

    /// Returns a stage and all that it needs.
    pub(crate) fn reachable(&self, from: usize) -> BTreeSet<usize> {
        let mut seen = BTreeSet::new();
        let mut todo = vec![from];
        while let Some(stage) = todo.pop() {
            if seen.insert(stage) {
                todo.extend(self.list[stage].base);
                todo.extend(self.list[stage].deps.iter().map(|(dep, _)| *dep));
            }
        }
        seen
    }
}

/// Counts the commands that make a step.
pub(crate) fn count_steps(instructions: &[Instruction]) -> usize {
    use instruction::Kind;
    let is_step = |i: &&Instruction| matches!(i.kind, Kind::Add(_) | Kind::Copy(_) | Kind::Run(_) | Kind::Workdir(_));
    instructions.iter().filter(is_step).count()
}
