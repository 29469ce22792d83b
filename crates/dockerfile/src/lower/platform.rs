//! One text lowered for one platform: stages are found, resolved and dispatched.

use super::context::{Context, compile_ignore};
use super::env::Env;
use super::graph::{Defaults, Graph, Output};
use super::options::Options;
use super::outline::{ArgInfo, Outline};
use super::stage::Stages;
use super::state::{platform_of, set_platform};
use super::world::{Stop, World};
use crate::fault::Fault;
use crate::frontend::SourceText;
use crate::instruction::{GlobalArg, Program};
use crate::lint::{Linter, rules, rules::say};
use crate::shell::{Lexer, Vars};
use crate::text::number::parse_bool;
use crate::text::path;
use bud_image::{ImageRef, Platform};
use bud_patterns::PatternMatcher;
use bud_protocol::pb;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// All that variables expand to, that steps carry and that stages take over may not be larger than this.
const MAX_EXPANDED: usize = 128 << 20;

/// Arguments that steer the build and are no variables of it.
const NO_VARIABLES: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// What is lowered, and for what.
pub(crate) struct Task<'a> {
    pub(crate) world: &'a World<'a>,
    pub(crate) options: &'a Options,
    pub(crate) context: &'a Context,
    pub(crate) text: &'a SourceText,
    pub(crate) program: &'a Program,
    pub(crate) escape: char,
    /// The target platform, if one is asked for.
    pub(crate) platform: Option<Platform>,
    /// Look at all stages, whether the target needs them or not.
    pub(crate) all_stages: bool,
}

/// A text being lowered for a platform.
pub(crate) struct Lowering<'a> {
    pub(crate) task: &'a Task<'a>,
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) target_platform: Platform,
    pub(crate) lexer: Lexer,
    pub(crate) globals: Env,
    pub(crate) epoch: Option<i64>,
    pub(crate) lint: Linter,
    pub(crate) graph: Graph,
    pub(crate) stages: Stages,
    pub(crate) context: Output,
    pub(crate) ignore: Option<PatternMatcher>,
    pub(crate) ignore_patterns: Vec<String>,
    pub(crate) proxy: Option<pb::ProxyEnv>,
    pub(crate) groups: usize,
    pub(crate) outline: Outline,
    spent: Cell<usize>,
}

/// What came of it.
pub(crate) struct Lowered<'a> {
    pub(crate) lowering: Lowering<'a>,
    pub(crate) target: usize,
}

/// Lowers a text for a platform.
pub(crate) fn lower<'a>(task: &'a Task<'a>, lint: &Linter) -> Result<Lowered<'a>, Stop> {
    let own = &task.options.build_platforms[0];
    let mut graph = Graph::default();
    let context = graph.later();
    let mut lowering = Lowering {
        task,
        build_args: task.options.build_args.clone(),
        target_platform: task.platform.clone().unwrap_or_else(|| own.clone()),
        lexer: Lexer::new(task.escape),
        globals: Env::default(),
        epoch: None,
        lint: lint.clone(),
        graph,
        stages: Stages::default(),
        context,
        ignore: None,
        ignore_patterns: Vec::new(),
        proxy: proxy_env(&task.options.build_args),
        groups: 0,
        outline: Outline::default(),
        spent: Cell::new(0),
    };
    let target = lowering.run()?;
    Ok(Lowered { lowering, target })
}

impl Lowering<'_> {
    fn run(&mut self) -> Result<usize, Stop> {
        let program = self.task.program;
        let target_name = match self.task.options.target.as_str() {
            "" => program.stages.last().map(|s| s.name.as_str()).unwrap_or_default(),
            name => name,
        };
        self.globals = self.predefined(target_name);
        self.check_default_bases();
        let (globals, args) = self.global_args(&program.globals, &self.globals, Some(&self.build_args))?;
        self.globals = globals;
        self.outline.args = Rc::new(args);
        self.resolve_epoch()?;
        for index in 0..program.stages.len() {
            self.add_stage(index)?;
        }
        let target = self.find_target()?;
        self.connect()?;
        let reachable = self.resolve_all(target)?;
        self.dispatch_all(&reachable, target)?;
        self.finish(target)?;
        Ok(target)
    }

    /// Counts bytes that variables or steps produce.
    pub(crate) fn spend(&self, bytes: usize) -> Result<(), Fault> {
        let spent = self.spent.get().saturating_add(bytes);
        self.spent.set(spent);
        if spent > MAX_EXPANDED {
            let limit = MAX_EXPANDED >> 20;
            return Err(Fault::new(format!(
                "the build is larger than {limit} MiB when variables are expanded and stages put together"
            )));
        }
        Ok(())
    }

    /// The arguments that are there without being declared.
    fn predefined(&self, target: &str) -> Env {
        let build = &self.task.options.build_platforms[0];
        let to = &self.target_platform;
        let target = if target.is_empty() { "default" } else { target };
        let mut env = Env::default();
        for (name, value) in [
            ("BUILDPLATFORM", build.short()),
            ("BUILDOS", build.os.clone()),
            ("BUILDOSVERSION", build.os_version.clone()),
            ("BUILDARCH", build.architecture.clone()),
            ("BUILDVARIANT", build.variant.clone()),
            ("TARGETPLATFORM", to.to_string()),
            ("TARGETOS", to.os.clone()),
            ("TARGETOSVERSION", to.os_version.clone()),
            ("TARGETARCH", to.architecture.clone()),
            ("TARGETVARIANT", to.variant.clone()),
            ("TARGETSTAGE", target.to_owned()),
        ] {
            env.set(name, self.build_args.get(name).unwrap_or(&value));
        }
        env
    }

    /// Evaluates the arguments before the first stage.
    fn global_args(
        &self,
        globals: &[GlobalArg],
        predefined: &Env,
        given: Option<&BTreeMap<String, String>>,
    ) -> Result<(Env, BTreeMap<String, ArgInfo>), Fault> {
        let mut env = predefined.clone();
        let mut all: BTreeMap<String, ArgInfo> = BTreeMap::new();
        for global in globals {
            for (position, arg) in global.args.iter().enumerate() {
                let mut info = ArgInfo {
                    position,
                    description: arg.description.clone(),
                    place: global.origin.place.clone(),
                    ..ArgInfo::default()
                };
                let value = match (given.and_then(|given| given.get(&arg.key)), &arg.value) {
                    (Some(value), _) => Some(value.clone()),
                    (None, None) => None,
                    (None, Some(word)) => {
                        let expanded =
                            self.lexer.expand(word, &env).map_err(|e| Fault::from(e).at(&global.origin.place))?;
                        self.spend(expanded.text.len()).map_err(|f| f.at(&global.origin.place))?;
                        info.deps = expanded.matched;
                        if info.deps.remove(&arg.key)
                            && let Some(old) = all.get(&arg.key)
                        {
                            info.deps.extend(old.deps.iter().cloned());
                        }
                        Some(expanded.text)
                    }
                };
                if let Some(value) = value {
                    env.set(&arg.key, &value);
                    info.value = value;
                }
                all.insert(arg.key.clone(), info);
            }
        }
        Ok((env, all))
    }

    /// Warns of base images that are invalid when no build argument is given.
    fn check_default_bases(&self) {
        let Ok((args, _)) = self.global_args(&self.task.program.globals, &self.globals, None) else { return };
        for stage in &self.task.program.stages {
            let Ok(base) = self.lexer.expand(&stage.base, &args) else { return };
            if ImageRef::parse(&base.text).is_err() {
                let message = say::bad_default_base(&stage.base);
                self.lint.report(&rules::INVALID_DEFAULT_ARG_IN_FROM, &stage.origin.place, message);
            }
        }
    }

    fn dispatch_all(&mut self, reachable: &BTreeSet<usize>, target: usize) -> Result<(), Stop> {
        self.ignore_patterns = self.task.context.ignore_patterns(self.task.world)?;
        self.ignore = compile_ignore(&self.ignore_patterns)?;
        for index in 0..self.stages.list.len() {
            let skip = !reachable.contains(&index) || self.stages.list[index].is_dispatched;
            if skip && !self.task.all_stages {
                continue;
            }
            self.inherit(index)?;
            self.begin_stage(index)?;
            for command in self.stages.list[index].commands.clone() {
                let place = &command.instruction.origin.place;
                self.dispatch(index, &command).map_err(|fault| fault.at(place))?;
            }
            self.read_scan_args(index);
        }
        self.stages.list[target].paths.borrow_mut().insert("/".into());
        Ok(())
    }

    /// Sets what a stage has from its base image.
    fn begin_stage(&mut self, index: usize) -> Result<(), Fault> {
        let hostname = self.task.options.hostname.clone();
        let network = self.task.options.network;
        let stage = &mut self.stages.list[index];
        stage.is_dispatched = true;
        let platform = stage.platform.get_or_insert_default().clone();
        let env = stage.image.config.env.get_or_insert_default();
        if platform.os != "windows" && !env.iter().any(|pair| super::env::split(pair).0 == "PATH") {
            env.push(format!("PATH={}", path::DEFAULT_PATH));
        }
        for pair in env.iter() {
            let (name, value) = super::env::split(pair);
            stage.state.env.set(name, value);
        }
        if !hostname.is_empty() {
            stage.state.hostname = hostname;
        }
        let place = stage.place.clone();
        let dir = stage.image.config.working_dir.clone();
        let user = stage.image.config.user.clone();
        if !dir.is_empty() {
            self.set_workdir(index, &dir).map_err(|fault| fault.at(&place))?;
        }
        let stage = &mut self.stages.list[index];
        if !user.is_empty() {
            stage.state.user = user;
        }
        stage.state.network = network;
        Ok(())
    }

    /// Finds out whether the SBOM scanner is to look at the stage, or at the context.
    fn read_scan_args(&mut self, index: usize) {
        let stage = &mut self.stages.list[index];
        let enabled =
            |value: &str| parse_bool(value).unwrap_or_else(|| value.split(',').any(|name| name == stage.shown));
        let [mut context, mut own] = NO_VARIABLES.map(|name| self.globals.get(name).is_some_and(enabled));
        for arg in &stage.build_args {
            let Some(value) = &arg.value else { continue };
            if arg.key == NO_VARIABLES[0] {
                context = enabled(value);
            } else if arg.key == NO_VARIABLES[1] {
                own = enabled(value);
            }
        }
        stage.scan_context |= context;
        stage.scan_stage |= own;
    }

    /// Closes what was left open and settles the target's image.
    fn finish(&mut self, target: usize) -> Result<(), Stop> {
        let options = self.task.options;
        let stage = &mut self.stages.list[target];
        if !options.labels.is_empty() {
            let labels = stage.image.config.labels.get_or_insert_default();
            labels.extend(options.labels.iter().map(|(k, v)| (k.clone(), v.clone())));
        }
        self.lint.verdict()?;
        let mut paths: BTreeSet<String> = BTreeSet::new();
        for stage in &self.stages.list {
            paths.extend(stage.context_paths.iter().cloned());
        }
        let main = self.task.context.add(self.task.world, &mut self.graph, &relative_paths(&paths))?;
        self.graph.resolve(self.context, main.output);
        for stage in &self.stages.list {
            let paths = relative_paths(&stage.paths.borrow());
            for local in &stage.locals {
                local.close(&mut self.graph, &paths);
            }
        }
        let stage = &mut self.stages.list[target];
        if let Some(to) = &self.task.platform {
            let image = &mut stage.image;
            let same = to.os == image.os && to.architecture == image.architecture;
            let mut platform = platform_of(image);
            platform.os.clone_from(&to.os);
            platform.architecture.clone_from(&to.architecture);
            if !to.variant.is_empty() || !same {
                platform.variant.clone_from(&to.variant);
            }
            if !to.os_version.is_empty() || !same {
                platform.os_version.clone_from(&to.os_version);
            }
            if !to.os_features.is_empty() {
                platform.os_features.clone_from(&to.os_features);
            }
            set_platform(image, &platform);
        }
        let platform = platform_of(&stage.image).normalize();
        set_platform(&mut stage.image, &platform);
        Ok(())
    }

    /// Encodes the build up to a state.
    pub(crate) fn encode(&self, output: Option<Output>) -> Result<pb::Definition, Fault> {
        let caps = &self.task.world.request.caps;
        let defaults = Defaults {
            platform: Some(self.target_platform.clone()),
            sets_default_path: caps.has("exec.meta.setsdefaultpath"),
        };
        self.graph
            .encode(output, &defaults, Some(self.task.text))
            .map_err(|fault| fault.during("failed to marshal LLB definition"))
    }
}

/// Returns paths relative to the context; none if all of it is used.
fn relative_paths(paths: &BTreeSet<String>) -> Vec<String> {
    if paths.contains("/") {
        return Vec::new();
    }
    let mut list: Vec<String> = paths.iter().map(|p| path::join(".", p)).collect();
    list.sort();
    list
}

/// Proxy settings among the build arguments; they are no part of a step's identity.
fn proxy_env(args: &BTreeMap<String, String>) -> Option<pb::ProxyEnv> {
    let mut proxy = pb::ProxyEnv::default();
    let mut found = false;
    for (name, value) in args {
        let field = match name.to_lowercase().as_str() {
            "http_proxy" => &mut proxy.http_proxy,
            "https_proxy" => &mut proxy.https_proxy,
            "ftp_proxy" => &mut proxy.ftp_proxy,
            "no_proxy" => &mut proxy.no_proxy,
            "all_proxy" => &mut proxy.all_proxy,
            _ => continue,
        };
        field.clone_from(value);
        found = true;
    }
    found.then_some(proxy)
}

/// Tells whether an argument is a variable.
pub(crate) fn is_variable(name: &str) -> bool {
    !NO_VARIABLES.contains(&name)
}
