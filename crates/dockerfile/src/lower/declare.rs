//! Stages as they are declared: base and platform expanded, sources of commands found, circles refused.

use super::context::NamedContext;
use super::outline::Outline;
use super::platform::Lowering;
use super::stage::{Command, Stage, count_steps};
use crate::fault::Fault;
use crate::frontend::Span;
use crate::instruction::{self, Kind};
use crate::lint::{Linter, rules, rules::say};
use crate::shell::Vars;
use crate::text::number::parse_int;
use crate::text::quote::quote;
use crate::text::suggest::{by_likeness, nearest, with_nearest};
use bud_image::Platform;
use std::collections::BTreeSet;
use std::rc::Rc;

impl Lowering<'_> {
    /// Adds a stage, its base and platform expanded.
    pub(crate) fn add_stage(&mut self, index: usize) -> Result<(), Fault> {
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

    pub(crate) fn find_target(&self) -> Result<usize, Fault> {
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
    pub(crate) fn connect(&mut self) -> Result<(), Fault> {
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

    pub(crate) fn find_sources(&mut self, stage: usize, command: &mut Command) -> Result<(), Fault> {
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
}

fn commands(stage: &instruction::Stage) -> Vec<Command> {
    let command = |i: &instruction::Instruction| Command {
        instruction: Rc::new(i.clone()),
        sources: Vec::new(),
        is_trigger: false,
    };
    stage.instructions.iter().map(command).collect()
}
