//! One text lowered for one platform: stages are found, resolved and dispatched.

use super::context::{Context, NamedContext, compile_ignore, image_platform, image_source, parse_image, pin};
use super::env::Env;
use super::graph::{Defaults, Graph, Meta, Output};
use super::options::Options;
use super::outline::{ArgInfo, Outline};
use super::stage::{Command, Stage, Stages, count_steps};
use super::state::{State, platform_of, set_platform};
use super::world::{Stop, World};
use crate::fault::Fault;
use crate::frontend::{ImageQuery, SourceText, Span};
use crate::instruction::{self, GlobalArg, Kind, Program};
use crate::lint::{Linter, rules, rules::say};
use crate::shell::{Lexer, Vars};
use crate::text::number::{parse_bool, parse_int};
use crate::text::path;
use crate::text::quote::quote;
use crate::text::suggest::{by_likeness, nearest, with_nearest};
use bud_image::{ImageConfig, ImageRef, Platform};
use bud_patterns::PatternMatcher;
use bud_protocol::pb;
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

/// All that variables expand to, that steps carry and that stages take over may not be larger than this.
const MAX_EXPANDED: usize = 128 << 20;

/// What an entry of an image's history takes, about.
const ENTRY_SIZE: usize = 256;

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
    outline: Outline,
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

    /// Adds a stage, its base and platform expanded.
    fn add_stage(&mut self, index: usize) -> Result<(), Fault> {
        let written = &self.task.program.stages[index];
        let place = &written.origin.place;
        let lint = self.lint.under(&written.origin.comments);
        let base = self.lexer.expand(&written.base, &self.globals);
        let unmatched = match &base {
            Ok(expanded) => &expanded.unmatched,
            Err(error) => &error.unmatched,
        };
        self.report_undeclared(unmatched, place, &lint);
        let at = |fault: Fault| fault.at(place).on(Some(written.base_bytes.clone()));
        let base = base.map_err(|e| at(e.into()))?;
        if base.text.is_empty() {
            return Err(at(Fault::new(format!("base name ({}) should not be blank", written.base))));
        }
        let mut used = base.matched;
        let mut stage = Stage::new(base.text, place.clone(), self.outline.clone());
        stage.name.clone_from(&written.name);
        stage.shown.clone_from(&written.name);
        stage.code.clone_from(&written.origin.code);
        stage.description.clone_from(&written.description);
        if !written.platform.is_empty() {
            stage.platform = Some(self.stage_platform(written, &lint, &mut used)?);
        }
        if !stage.name.is_empty() {
            let named = NamedContext::for_base(
                self.task.world,
                self.task.options,
                &stage.name,
                stage.platform.as_ref(),
                self.task.platform.as_ref(),
            )?;
            if named.is_some() {
                stage.named_context = named;
                stage.commands = commands(written);
                let added = self.stages.add(stage);
                self.stages.list[added].base = None;
                return Ok(());
            }
        }
        if stage.name.is_empty() {
            stage.shown = format!("stage-{index}");
        }
        let own_base = stage.base_name != "scratch";
        stage.command_total = count_steps(&written.instructions);
        stage.ignores_cache = self.task.options.is_no_cache(&written.name);
        stage.commands = commands(written);
        let added = self.stages.add(stage);
        let stage = &mut self.stages.list[added];
        for name in used {
            stage.outline.mark_used(&name);
        }
        if own_base && stage.base.is_none() {
            stage.command_total += 1;
        }
        Ok(())
    }

    fn stage_platform(
        &self,
        written: &instruction::Stage,
        lint: &Linter,
        used: &mut BTreeSet<String>,
    ) -> Result<Platform, Fault> {
        let place = &written.origin.place;
        let expanded = self.lexer.expand(&written.platform, &self.globals);
        let (text, matched, unmatched) = match &expanded {
            Ok(e) => (e.text.as_str(), &e.matched, &e.unmatched),
            Err(e) => ("", &e.matched, &e.unmatched),
        };
        self.report_undeclared(unmatched, place, lint);
        const TARGET: &str = "TARGETPLATFORM";
        if matched.len() == 1
            && unmatched.is_empty()
            && matched.contains(TARGET)
            && self.globals.get(TARGET).unwrap_or_default() == text
        {
            lint.report(&rules::REDUNDANT_TARGET_PLATFORM, place, say::redundant_platform(&written.platform));
        }
        if matched.is_empty()
            && unmatched.is_empty()
            && let Ok(platform) = Platform::parse(text)
            && !written.name.contains(&platform.os)
            && !written.name.contains(&platform.architecture)
        {
            let message = say::constant_platform(text);
            lint.report(&rules::FROM_PLATFORM_FLAG_CONST_DISALLOWED, place, message);
        }
        let suggest = |message: String| {
            let names: Vec<&str> = self.globals.names().collect();
            let hint = unmatched.iter().find_map(|name| nearest(name, &names, true));
            hint.map_or(message.clone(), |hint| format!("{message} (did you mean {hint}?)"))
        };
        if let Err(error) = &expanded {
            let message = format!("failed to process arguments for platform {text}: {error}");
            return Err(Fault::new(message).at(place));
        }
        if text.is_empty() {
            let message = format!("empty platform value from expression {}", written.platform);
            return Err(Fault::new(suggest(message)).at(place));
        }
        let platform = Platform::parse(text).map_err(|e| {
            Fault::new(suggest(e.to_string()))
                .at(place)
                .during(format!("failed to parse platform {}", written.platform))
                .at(place)
        })?;
        used.extend(matched.iter().cloned());
        Ok(platform)
    }

    fn report_undeclared(&self, unmatched: &BTreeSet<String>, place: &[Span], lint: &Linter) {
        if unmatched.is_empty() {
            return;
        }
        let mut known: Vec<&str> = self.outline.args.keys().map(String::as_str).collect();
        known.extend(self.globals.names());
        for name in unmatched.iter().filter(|name| !known.contains(&name.as_str())) {
            let hint = nearest(name, &by_likeness(name, &known), true);
            let message = say::undefined_from_arg(name, hint.as_deref());
            lint.report(&rules::UNDEFINED_ARG_IN_FROM, place, message);
        }
    }

    fn find_target(&self) -> Result<usize, Fault> {
        let name = &self.task.options.target;
        if name.is_empty() {
            // There is at least one stage.
            return Ok(self.stages.list.len() - 1);
        }
        self.stages.find(name).ok_or_else(|| {
            let message = format!("target stage {} could not be found", quote(name));
            Fault::new(with_nearest(message, name, &self.stages.names(), true))
        })
    }

    /// Finds the stages that commands take from.
    fn connect(&mut self) -> Result<(), Fault> {
        for stage in 0..self.stages.list.len() {
            let mut commands = std::mem::take(&mut self.stages.list[stage].commands);
            for command in &mut commands {
                self.find_sources(stage, command)?;
            }
            self.stages.list[stage].commands = commands;
        }
        self.check_cycles()?;
        if let [only] = self.stages.list.as_mut_slice() {
            only.shown.clear();
        }
        Ok(())
    }

    fn find_sources(&mut self, stage: usize, command: &mut Command) -> Result<(), Fault> {
        let place = command.instruction.origin.place.clone();
        let unregistered = |base: &str, place: Vec<Span>| {
            let mut stage = Stage::new(base.to_owned(), place, Outline::default());
            stage.is_unregistered = true;
            stage
        };
        match &command.instruction.kind {
            Kind::Copy(copy) if !copy.from.is_empty() => {
                let expanded = self.lexer.expand(&copy.from, &crate::shell::NoVars)?;
                if expanded.text != copy.from {
                    return Err("variable expansion is not supported for --from, define a new stage with FROM using \
                                ARG from global scope as a workaround"
                        .into());
                }
                let source = match parse_int(&copy.from, 64) {
                    Ok(index) => usize::try_from(index)
                        .ok()
                        .filter(|index| *index < self.stages.list.len())
                        .ok_or_else(|| Fault::new(format!("invalid stage index {index}")))?,
                    Err(_) => match self.stages.find(&copy.from) {
                        Some(source) => source,
                        None => self.stages.add(unregistered(&copy.from, place.clone())),
                    },
                };
                command.sources = vec![source];
            }
            Kind::Run(run) => {
                for from in &run.mount_sources {
                    let from = if from.is_empty() { "scratch" } else { from };
                    let source = match self.stages.find(from) {
                        Some(source) => source,
                        None => self.stages.add(unregistered(from, Vec::new())),
                    };
                    command.sources.push(source);
                }
            }
            _ => {}
        }
        for source in &command.sources {
            self.stages.list[stage].depend(*source, &place);
        }
        Ok(())
    }

    /// Refuses stages that take from one another in a circle.
    fn check_cycles(&self) -> Result<(), Fault> {
        let list = &self.stages.list;
        let mut visited = vec![false; list.len()];
        for start in 0..list.len() {
            if visited[start] {
                continue;
            }
            // Stages on the way, each with the number of dependencies looked at.
            let mut way: Vec<(usize, usize)> = vec![(start, 0)];
            visited[start] = true;
            while let Some((stage, next)) = way.last_mut() {
                let Some((dep, _)) = list[*stage].deps.get(*next) else {
                    way.pop();
                    continue;
                };
                *next += 1;
                if way.iter().any(|(on_way, _)| on_way == dep) {
                    let shown = &list[start].shown;
                    let mut fault = Fault::new(format!("circular dependency detected on stage: {shown}"));
                    for (stage, next) in &way {
                        fault = fault.at(&list[*stage].deps[*next - 1].1);
                    }
                    return Err(fault);
                }
                if !visited[*dep] {
                    visited[*dep] = true;
                    way.push((*dep, 0));
                }
            }
        }
        Ok(())
    }

    /// Resolves base images until their triggers bring nothing new.
    fn resolve_all(&mut self, target: usize) -> Result<BTreeSet<usize>, Stop> {
        loop {
            let reachable = self.stages.reachable(target);
            self.resolve_bases(&reachable)?;
            let mut has_new = false;
            for &index in &reachable {
                self.inherit(index)?;
                let stage = &mut self.stages.list[index];
                let mut triggers: Vec<String> = stage.image.config.on_build.clone().unwrap_or_default();
                let base = stage.base;
                if let Some(base) = base.filter(|_| !stage.has_triggers) {
                    stage.has_triggers = true;
                    triggers.extend(self.stages.list[base].commands.iter().filter_map(|command| {
                        match &command.instruction.kind {
                            Kind::Onbuild(text) => Some(text.clone()),
                            _ => None,
                        }
                    }));
                }
                if !triggers.is_empty() {
                    let place = self.stages.list[index].place.clone();
                    has_new |= self.add_triggers(index, &triggers).map_err(|mut fault| {
                        fault.places = vec![place];
                        fault
                    })?;
                    self.stages.list[index].image.config.on_build = None;
                }
            }
            if !has_new {
                return Ok(reachable);
            }
        }
    }

    fn add_triggers(&mut self, index: usize, triggers: &[String]) -> Result<bool, Fault> {
        let mut has_new = false;
        let mut commands = Vec::with_capacity(triggers.len());
        for text in triggers {
            let instruction = instruction::parse_trigger(text, &self.stages.list[index].place)?;
            let mut command = Command { instruction: Rc::new(instruction), sources: Vec::new(), is_trigger: true };
            self.find_sources(index, &mut command)?;
            has_new |= !command.sources.is_empty();
            commands.push(command);
        }
        let stage = &mut self.stages.list[index];
        stage.command_total += commands.len();
        commands.append(&mut stage.commands);
        stage.commands = commands;
        Ok(has_new)
    }

    /// Takes over what a stage has from its base stage.
    fn inherit(&mut self, index: usize) -> Result<(), Fault> {
        let Some(base) = self.stages.list[index].base else { return Ok(()) };
        let taken = &self.stages.list[base];
        let entries = taken.image.history.as_ref().map_or(0, Vec::len)
            + taken.build_args.len()
            + taken.image.config.env.as_ref().map_or(0, Vec::len);
        self.spend(entries * ENTRY_SIZE).map_err(|fault| fault.at(&self.stages.list[index].place))?;
        let (before, after) = self.stages.list.split_at_mut(index);
        let (Some(base), Some(stage)) = (before.get(base), after.first_mut()) else { return Ok(()) };
        stage.state.clone_from(&base.state);
        stage.platform.clone_from(&base.platform);
        stage.image.clone_from(&base.image);
        stage.image.config.on_build = None;
        stage.base_image.clone_from(&base.base_image);
        stage.paths = Rc::clone(&base.paths);
        stage.has_workdir = base.has_workdir;
        stage.build_args.extend(base.build_args.iter().cloned());
        Ok(())
    }

    fn resolve_bases(&mut self, reachable: &BTreeSet<usize>) -> Result<(), Stop> {
        let mut missing = false;
        for index in 0..self.stages.list.len() {
            let is_reachable = self.task.all_stages || reachable.contains(&index);
            let stage = &mut self.stages.list[index];
            if stage.base.is_some() || stage.is_dispatched || stage.is_resolved {
                continue;
            }
            stage.is_resolved = is_reachable;
            if stage.base_name == "scratch" && stage.named_context.is_none() {
                stage.state = State::scratch();
                stage.image = empty_image(&self.target_platform);
                stage.platform = Some(self.target_platform.clone());
                stage.is_dispatched |= stage.is_unregistered;
                continue;
            }
            let result = self.resolve_base(index, is_reachable);
            let stage = &mut self.stages.list[index];
            stage.is_dispatched |= stage.is_unregistered;
            match result {
                Ok(()) => {}
                Err(Stop::Need) => missing = true,
                Err(Stop::Fail(fault)) => return Err(Stop::Fail(fault.at(&stage.place))),
            }
        }
        if missing {
            // Asked for in the same round, as it will be needed anyway.
            let _ = self.task.context.ignore_patterns(self.task.world);
            return Err(Stop::Need);
        }
        Ok(())
    }

    fn resolve_base(&mut self, index: usize, is_reachable: bool) -> Result<(), Stop> {
        let (world, options) = (self.task.world, self.task.options);
        let stage = &self.stages.list[index];
        let written = stage.base_name.clone();
        let mut reference = ImageRef::parse(&written)
            .map_err(|e| Fault::new(format!("failed to parse stage name {}: {e}", quote(&written))))?;
        let mut platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let mut base_name = reference.clone().or_latest().to_string();
        let mut image = None;
        if is_reachable {
            if let Some(named) = stage.named_context.clone() {
                self.stages.list[index].base_name = base_name;
                return self.load_stage_context(index, &named);
            }
            let named =
                NamedContext::for_base(world, options, &base_name, Some(&platform), self.task.platform.as_ref())?;
            if let Some(named) = named {
                self.stages.list[index].base_name = base_name;
                return self.load_base_context(index, &named, platform);
            }
            let prefix = if options.multi_platform { format!("{platform} ") } else { String::new() };
            let query = ImageQuery {
                reference: base_name.clone(),
                platform: Some(platform.clone()),
                resolve_mode: options.resolve_mode.clone(),
                log_name: format!("[{prefix}internal] load metadata for {base_name}"),
                store: None,
            };
            let answer = world.image(query)?.as_ref().map_err(|e| {
                let mut names: Vec<String> = self.stages.names().iter().map(|n| (*n).to_owned()).collect();
                names.extend(common_images());
                Fault::new(with_nearest(format!("{written}: {e}"), &written, &names, true))
            })?;
            if reference.to_string() != answer.reference {
                reference = ImageRef::parse(&answer.reference)
                    .map_err(|e| Fault::new(format!("failed to parse ref {}: {e}", quote(&answer.reference))))?;
            }
            let mut config = parse_image(&answer.config)?;
            self.stages.list[index].base_image = Some(config.clone());
            config.created = None;
            if self.stages.list[index].platform.is_none() && self.task.platform.is_none() {
                platform = detect_platform(&config, &platform, &options.build_platforms);
            }
            pin(&mut reference, &answer.digest)?;
            base_name = reference.to_string();
            image = Some(config);
        }
        let is_scratch = image.as_ref().is_some_and(|image| {
            image.rootfs.diff_ids.as_ref().is_none_or(Vec::is_empty)
                && image.history.iter().flatten().all(|step| step.empty_layer)
        });
        let stage = &mut self.stages.list[index];
        stage.base_name.clone_from(&base_name);
        if let Some(image) = &image {
            stage.image = image.clone();
        }
        if is_scratch {
            stage.state = State::scratch();
        } else {
            let name =
                self.step_name(index, &format!("FROM {base_name}"), options.multi_platform, Some(&platform), None);
            let stage = &self.stages.list[index];
            let meta = Meta::named(name).with("com.docker.dockerfile.v1.command", stage.code.clone()).at(&stage.place);
            let source = image_source(&reference.or_latest(), Some(&platform), &options.resolve_mode);
            self.stages.list[index].state = State::source(&mut self.graph, source, meta);
            if let Some(image) = &image {
                self.check_base_platform(index, &written, &platform, image);
            }
        }
        self.stages.list[index].platform = Some(platform);
        Ok(())
    }

    fn check_base_platform(&self, index: usize, name: &str, expected: &Platform, image: &ImageConfig) {
        if expected.os == image.os && expected.architecture == image.architecture {
            return;
        }
        let actual = platform_of(image).normalize().to_string();
        let message = say::base_platform(name, &expected.normalize().to_string(), &actual);
        self.lint.report(&rules::INVALID_BASE_IMAGE_PLATFORM, &self.stages.list[index].place, message);
    }

    /// A named context in place of a whole stage.
    fn load_stage_context(&mut self, index: usize, named: &NamedContext) -> Result<(), Stop> {
        let loaded = named.load(self.task.world, &mut self.graph)?;
        let stage = &mut self.stages.list[index];
        stage.is_dispatched = true;
        stage.state = loaded.state;
        stage.locals.extend(loaded.local);
        if let Some(mut image) = loaded.image {
            image.created = None;
            if let Some(platform) = image_platform(&image) {
                stage.platform = Some(platform);
            }
            stage.image = image;
        }
        Ok(())
    }

    /// A named context in place of a base image.
    fn load_base_context(&mut self, index: usize, named: &NamedContext, platform: Platform) -> Result<(), Stop> {
        let loaded = named.load(self.task.world, &mut self.graph)?;
        let stage = &mut self.stages.list[index];
        let mut image = loaded.image.unwrap_or_else(|| empty_image(&platform));
        stage.base_image = Some(image.clone());
        image.created = None;
        stage.image = image;
        stage.state = loaded.state;
        stage.locals.extend(loaded.local);
        stage.state.platform = Some(platform.normalize());
        stage.platform = Some(platform);
        Ok(())
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

    /// Names a step in the progress: `[stage 2/5] RUN …`.
    pub(crate) fn step_name(
        &mut self,
        index: usize,
        text: &str,
        with_platform: bool,
        platform: Option<&Platform>,
        env: Option<&Env>,
    ) -> String {
        let stage = &mut self.stages.list[index];
        if stage.command_total == 0 {
            return text.to_owned();
        }
        let mut out = String::from("[");
        if with_platform && let Some(platform) = platform {
            let target = env.and_then(platform_of_env);
            out.push_str(&format!("{platform}{} ", target.map_or_else(String::new, |t| arrow(platform, t))));
        }
        if !stage.shown.is_empty() {
            out.push_str(&stage.shown);
            out.push(' ');
        }
        stage.command_index += 1;
        let width = stage.command_total.to_string().len();
        out.push_str(&format!("{:width$}/{}] ", stage.command_index, stage.command_total));
        if stage.in_trigger {
            out.push_str("ONBUILD ");
        }
        out + text
    }
}

fn commands(stage: &instruction::Stage) -> Vec<Command> {
    let command = |i: &instruction::Instruction| Command {
        instruction: Rc::new(i.clone()),
        sources: Vec::new(),
        is_trigger: false,
    };
    stage.instructions.iter().map(command).collect()
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

/// The config of an image without anything.
fn empty_image(platform: &Platform) -> ImageConfig {
    let mut image = ImageConfig::default();
    set_platform(&mut image, platform);
    image.rootfs.kind = "layers".into();
    image.config.working_dir = "/".into();
    if platform.os != "windows" {
        image.config.env = Some(vec![format!("PATH={}", path::DEFAULT_PATH)]);
    }
    image
}

/// An image may be for another platform of the worker than the first.
fn detect_platform(image: &ImageConfig, target: &Platform, supported: &[Platform]) -> Platform {
    let fits = |p: &&Platform| p.os == image.os && p.architecture == image.architecture;
    if fits(&target) {
        return target.clone();
    }
    supported.iter().find(fits).unwrap_or(target).clone()
}

fn common_images() -> Vec<String> {
    let mut names = Vec::new();
    for name in ["alpine", "busybox", "centos", "debian", "golang", "ubuntu", "fedora"] {
        for prefix in ["", "docker.io/library/"] {
            names.push(format!("{prefix}{name}"));
            names.push(format!("{prefix}{name}:latest"));
        }
    }
    names
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

/// The platform that a cross-compiling stage builds for, by its arguments.
fn platform_of_env(env: &Env) -> Option<Platform> {
    let mut platform = Platform::default();
    let mut found = false;
    for name in env.names() {
        let value = env.get(name).unwrap_or_default();
        match name {
            "TARGETPLATFORM" => {
                if let Ok(platform) = Platform::parse(value) {
                    return Some(platform);
                }
                continue;
            }
            "TARGETOS" => value.clone_into(&mut platform.os),
            "TARGETARCH" => value.clone_into(&mut platform.architecture),
            "TARGETVARIANT" => value.clone_into(&mut platform.variant),
            _ => continue,
        }
        found = true;
    }
    found.then_some(platform)
}

/// Shows that a stage builds for another platform: `->arm64`.
fn arrow(base: &Platform, mut target: Platform) -> String {
    if target.os.is_empty() {
        target.os.clone_from(&base.os);
    }
    if target.architecture.is_empty() {
        target.architecture.clone_from(&base.architecture);
    }
    let target = target.normalize();
    if target.os != base.os {
        return format!("->{target}");
    }
    if target.architecture == base.architecture {
        return String::new();
    }
    let slash = if target.variant.is_empty() { "" } else { "/" };
    format!("->{}{slash}{}", target.architecture, target.variant)
}

/// Tells whether an argument is a variable.
pub(crate) fn is_variable(name: &str) -> bool {
    !NO_VARIABLES.contains(&name)
}
