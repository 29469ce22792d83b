//! What a target can be given: arguments, secrets, ssh agents.

use super::stage::Stages;
use crate::frontend::Span;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// What was seen of the parameters of a stage.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outline {
    pub(crate) args: Rc<BTreeMap<String, ArgInfo>>,
    pub(crate) used: Rc<BTreeSet<String>>,
    pub(crate) secrets: Rc<BTreeMap<String, MountInfo>>,
    pub(crate) agents: Rc<BTreeMap<String, MountInfo>>,
}

/// An argument.
#[derive(Clone, Debug, Default)]
pub(crate) struct ArgInfo {
    pub(crate) value: String,
    pub(crate) description: String,
    /// Arguments that its value is made of.
    pub(crate) deps: BTreeSet<String>,
    pub(crate) place: Vec<Span>,
    /// Its position in the instruction.
    pub(crate) position: usize,
}

/// A secret or an agent.
#[derive(Clone, Debug, Default)]
pub(crate) struct MountInfo {
    pub(crate) required: bool,
    pub(crate) place: Vec<Span>,
}

impl Outline {
    pub(crate) fn add_arg(&mut self, name: &str, info: ArgInfo) {
        Rc::make_mut(&mut self.args).insert(name.to_owned(), info);
    }

    pub(crate) fn mark_used(&mut self, name: &str) {
        if !self.used.contains(name) {
            Rc::make_mut(&mut self.used).insert(name.to_owned());
        }
    }

    /// Notes a secret or an agent; what was said first holds.
    pub(crate) fn add_mount(map: &mut Rc<BTreeMap<String, MountInfo>>, id: &str, required: bool, place: &[Span]) {
        if !map.contains_key(id) {
            Rc::make_mut(map).insert(id.to_owned(), MountInfo { required, place: place.to_vec() });
        }
    }

    /// Returns the names that are used, with those that their values are made of.
    fn all_used(&self) -> BTreeSet<&str> {
        let mut all: BTreeSet<&str> = BTreeSet::new();
        let mut todo: Vec<&str> = self.used.iter().map(String::as_str).collect();
        while let Some(name) = todo.pop() {
            if all.insert(name)
                && let Some(info) = self.args.get(name)
            {
                todo.extend(info.deps.iter().map(String::as_str));
            }
        }
        all
    }
}

/// All parameters of a target and of what it needs, by line.
#[derive(Debug, Default)]
pub(crate) struct Parameters {
    pub(crate) args: Vec<(String, ArgInfo)>,
    pub(crate) secrets: Vec<(String, MountInfo)>,
    pub(crate) agents: Vec<(String, MountInfo)>,
}

/// Gathers the parameters of a target.
pub(crate) fn gather(stages: &Stages, target: usize) -> Parameters {
    let mut out = Parameters::default();
    let (mut args, mut secrets, mut agents) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut seen = BTreeSet::new();
    // The stage itself first, then its base, then what it takes from.
    let mut todo = vec![target];
    while let Some(index) = todo.pop() {
        if !seen.insert(index) {
            continue;
        }
        let stage = &stages.list[index];
        let outline = &stage.outline;
        for name in outline.all_used() {
            if let Some(info) = outline.args.get(name)
                && args.insert(name.to_owned())
            {
                out.args.push((name.to_owned(), info.clone()));
            }
        }
        for (map, seen, list) in
            [(&outline.secrets, &mut secrets, &mut out.secrets), (&outline.agents, &mut agents, &mut out.agents)]
        {
            for (id, info) in map.iter() {
                if seen.insert(id.clone()) {
                    list.push((id.clone(), info.clone()));
                }
            }
        }
        todo.extend(stage.deps.iter().rev().map(|(dep, _)| *dep));
        todo.extend(stage.base);
    }
    let line = |place: &[Span]| place.first().map_or(0, |span| span.start);
    out.args.sort_by_key(|(_, info)| (line(&info.place), info.position));
    out.secrets.sort_by_key(|(_, info)| line(&info.place));
    out.agents.sort_by_key(|(_, info)| line(&info.place));
    out
}
