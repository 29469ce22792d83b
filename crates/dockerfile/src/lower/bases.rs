//! What stages stand on: images, named contexts, other stages, and the triggers that images bring.

use super::context::{NamedContext, image_platform, image_source, parse_image, pin};
use super::graph::Meta;
use super::platform::Lowering;
use super::stage::Command;
use super::state::{State, platform_of, set_platform};
use super::world::Stop;
use crate::fault::Fault;
use crate::frontend::ImageQuery;
use crate::instruction::{self, Kind};
use crate::lint::{rules, rules::say};
use crate::text::path;
use crate::text::quote::quote;
use crate::text::suggest::with_nearest;
use bud_image::{ImageConfig, ImageRef, Platform};
use std::collections::BTreeSet;
use std::rc::Rc;

/// What an entry of an image's history takes, about.
const ENTRY_SIZE: usize = 256;

impl Lowering<'_> {
    /// Resolves base images until their triggers bring nothing new.
    pub(crate) fn resolve_all(&mut self, target: usize) -> Result<BTreeSet<usize>, Stop> {
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
    pub(crate) fn inherit(&mut self, index: usize) -> Result<(), Fault> {
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
        let mut failed = None;
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
                // The reference looks at all at once, and of several that are bad it mostly tells the one begun last.
                Err(Stop::Fail(fault)) => failed = Some(fault.at(&stage.place)),
            }
        }
        if let Some(fault) = failed {
            return Err(Stop::Fail(fault));
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
