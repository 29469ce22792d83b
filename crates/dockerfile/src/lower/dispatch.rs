//! The instructions, one by one: what each does to a stage's file system and image.

use super::graph::{Action, Files, Id, Meta, Owner};
use super::outline::{ArgInfo, Outline};
use super::platform::{Lowering, is_variable};
use super::stage::Command;
use crate::fault::Fault;
use crate::frontend::Span;
use crate::instruction::{ArgPair, CommandLine, Kind, Origin, Pair};
use crate::lint::{Linter, rules, rules::say};
use crate::shell::{Lexer, Vars};
use crate::text::duration;
use crate::text::number::parse_int;
use crate::text::path;
use crate::text::quote::{plain_list, quote_list};
use crate::text::suggest::nearest;
use bud_image::config::{Healthcheck, History};
use std::collections::BTreeSet;

/// An instruction that is being carried out.
pub(crate) struct Step<'a> {
    pub(crate) stage: usize,
    pub(crate) command: &'a Command,
    pub(crate) origin: &'a Origin,
    pub(crate) lint: Linter,
}

impl Lowering<'_> {
    /// Carries out an instruction.
    pub(crate) fn dispatch(&mut self, stage: usize, command: &Command) -> Result<(), Fault> {
        let origin = &command.instruction.origin;
        let step = Step { stage, command, origin, lint: self.lint.under(&origin.comments) };
        self.stages.list[stage].in_trigger = command.is_trigger;
        match &command.instruction.kind {
            Kind::Add(add) => self.add(&step, add),
            Kind::Arg(args) => self.arg(&step, args),
            Kind::Cmd(line) => self.cmd(&step, line),
            Kind::Copy(copy) => self.copy(&step, copy),
            Kind::Entrypoint(line) => self.entrypoint(&step, line),
            Kind::Env(pairs) => self.env(&step, pairs),
            Kind::Expose(ports) => self.expose(&step, ports),
            Kind::Healthcheck(check) => self.healthcheck(&step, check),
            Kind::Label(pairs) => self.label(&step, pairs),
            Kind::Maintainer(name) => {
                self.stages.list[stage].image.author.clone_from(name);
                self.record(stage, format!("MAINTAINER {name}"), false)
            }
            Kind::Onbuild(text) => {
                let image = &mut self.stages.list[stage].image;
                image.config.on_build.get_or_insert_default().push(text.clone());
                Ok(())
            }
            Kind::Run(run) => self.run_command(&step, run),
            Kind::Shell(shell) => {
                self.stages.list[stage].image.config.shell = Some(shell.clone());
                self.record(stage, format!("SHELL {}", plain_list(shell)), false)
            }
            Kind::Stopsignal(signal) => {
                let signal = self.expand(&step, signal)?;
                if !is_signal(&signal) {
                    return Err(Fault::new(format!("invalid signal: {signal}")));
                }
                self.stages.list[stage].image.config.stop_signal.clone_from(&signal);
                self.record(stage, format!("STOPSIGNAL {signal}"), false)
            }
            Kind::User(user) => {
                let user = self.expand(&step, user)?;
                self.stages.list[stage].state.user.clone_from(&user);
                self.stages.list[stage].image.config.user.clone_from(&user);
                self.record(stage, format!("USER {user}"), false)
            }
            Kind::Volume(volumes) => self.volume(&step, volumes),
            Kind::Workdir(dir) => self.workdir(&step, dir),
        }
    }

    /// Adds a line to the image's history.
    pub(crate) fn record(&mut self, stage: usize, created_by: String, has_layer: bool) -> Result<(), Fault> {
        self.spend(created_by.len())?;
        let created = self.epoch.map(rfc3339);
        self.stages.list[stage].image.history.get_or_insert_default().push(History {
            created,
            created_by,
            comment: "buildkit.dockerfile.v0".into(),
            empty_layer: !has_layer,
            ..History::default()
        });
        Ok(())
    }

    /// Expands the variables of a word.
    pub(crate) fn expand(&self, step: &Step<'_>, word: &str) -> Result<String, Fault> {
        self.expand_with(step, &self.lexer, word)
    }

    pub(crate) fn expand_with(&self, step: &Step<'_>, lexer: &Lexer, word: &str) -> Result<String, Fault> {
        let expanded = lexer.expand(word, &self.stages.list[step.stage].state.env);
        match &expanded {
            Ok(e) => self.report_undefined(step, &e.unmatched),
            Err(e) => self.report_undefined(step, &e.unmatched),
        }
        let text = expanded?.text;
        self.spend(text.len())?;
        Ok(text)
    }

    fn report_undefined(&self, step: &Step<'_>, unmatched: &BTreeSet<String>) {
        if unmatched.is_empty() {
            return;
        }
        let stage = &self.stages.list[step.stage];
        let names: Vec<&str> = stage.state.env.names().collect();
        for name in unmatched {
            if stage.build_args.iter().any(|arg| arg.key == *name) || !is_variable(name) {
                continue;
            }
            let hint = nearest(name, &names, true);
            let message = say::undefined_var(name, hint.as_deref());
            step.lint.report(&rules::UNDEFINED_VAR, &step.origin.place, message);
        }
    }

    fn expand_pairs(&self, step: &Step<'_>, pairs: &[Pair]) -> Result<Vec<Pair>, Fault> {
        let expand = |pair: &Pair| {
            Ok(Pair {
                key: self.expand(step, &pair.key)?,
                value: self.expand(step, &pair.value)?,
                is_legacy: pair.is_legacy,
            })
        };
        pairs.iter().map(expand).collect()
    }

    fn env(&mut self, step: &Step<'_>, pairs: &[Pair]) -> Result<(), Fault> {
        let mut line = String::from("ENV");
        for Pair { key, value, is_legacy } in self.expand_pairs(step, pairs)? {
            report_legacy(step, is_legacy);
            report_secret(step, "ENV", &key);
            line.push_str(&format!(" {key}={value}"));
            let stage = &mut self.stages.list[step.stage];
            stage.state.env.set(&key, &value);
            let env = stage.image.config.env.get_or_insert_default();
            match env.iter_mut().find(|pair| super::env::split(pair).0 == key) {
                Some(pair) => *pair = format!("{key}={value}"),
                None => env.push(format!("{key}={value}")),
            }
        }
        self.record(step.stage, line, false)
    }

    fn label(&mut self, step: &Step<'_>, pairs: &[Pair]) -> Result<(), Fault> {
        let mut line = String::from("LABEL");
        for Pair { key, value, is_legacy } in self.expand_pairs(step, pairs)? {
            report_legacy(step, is_legacy);
            line.push_str(&format!(" {key}={value}"));
            self.stages.list[step.stage].image.config.labels.get_or_insert_default().insert(key, value);
        }
        self.record(step.stage, line, false)
    }

    fn arg(&mut self, step: &Step<'_>, args: &[ArgPair]) -> Result<(), Fault> {
        let mut shown = Vec::with_capacity(args.len());
        for (position, arg) in args.iter().enumerate() {
            report_secret(step, "ARG", &arg.key);
            let given = self.build_args.get(&arg.key).cloned();
            // From the global scope if there is nothing else.
            let inherited = match (&given, &arg.value) {
                (None, None) => self.globals.get(&arg.key).map(str::to_owned),
                _ => None,
            };
            let is_inherited = inherited.is_some();
            let value = match (given, &arg.value) {
                (Some(given), _) => Some(given),
                (None, Some(default)) => Some(self.expand(step, default)?),
                (None, None) => inherited,
            };
            let stage = &mut self.stages.list[step.stage];
            if let Some(value) = value.as_ref().filter(|_| is_variable(&arg.key)) {
                stage.state.env.set(&arg.key, value);
            }
            if !is_inherited {
                let info = ArgInfo {
                    value: value.clone().unwrap_or_default(),
                    description: arg.description.clone(),
                    place: step.origin.place.clone(),
                    position,
                    ..ArgInfo::default()
                };
                stage.outline.add_arg(&arg.key, info);
            }
            stage.outline.mark_used(&arg.key);
            shown.push(match &value {
                Some(value) => format!("{}={value}", arg.key),
                None => arg.key.clone(),
            });
            stage.build_args.push(ArgPair { value, ..arg.clone() });
        }
        self.record(step.stage, format!("ARG {}", shown.join(" ")), false)
    }

    /// Puts the image's shell before a command in shell form.
    pub(crate) fn with_shell(&self, stage: usize, line: &[String]) -> Vec<String> {
        let image = &self.stages.list[stage].image;
        let mut args = match &image.config.shell {
            Some(shell) if !shell.is_empty() => shell.clone(),
            _ if image.os == "windows" => ["cmd", "/S", "/C"].map(str::to_owned).to_vec(),
            _ => ["/bin/sh", "-c"].map(str::to_owned).to_vec(),
        };
        args.push(line.join(" "));
        args
    }

    /// The arguments of an image's command; the shell form is warned of.
    fn image_command(&self, step: &Step<'_>, line: &CommandLine) -> Vec<String> {
        if !line.is_shell {
            return line.args.clone();
        }
        if self.stages.list[step.stage].image.config.shell.as_ref().is_none_or(Vec::is_empty) {
            let message = say::json_args(&step.origin.keyword);
            step.lint.report(&rules::JSON_ARGS_RECOMMENDED, &step.origin.place, message);
        }
        self.with_shell(step.stage, &line.args)
    }

    fn cmd(&mut self, step: &Step<'_>, line: &CommandLine) -> Result<(), Fault> {
        let last = self.stages.list[step.stage].cmd.replace(step.origin.place.clone());
        report_repeated(step, last.as_deref());
        let args = self.image_command(step, line);
        let record = format!("CMD {}", quote_list(&args));
        let config = &mut self.stages.list[step.stage].image.config;
        config.cmd = Some(args);
        config.args_escaped = true;
        self.record(step.stage, record, false)
    }

    fn entrypoint(&mut self, step: &Step<'_>, line: &CommandLine) -> Result<(), Fault> {
        let last = self.stages.list[step.stage].entrypoint.replace(step.origin.place.clone());
        report_repeated(step, last.as_deref());
        let args = self.image_command(step, line);
        let record = format!("ENTRYPOINT {}", quote_list(&args));
        let stage = &mut self.stages.list[step.stage];
        stage.image.config.entrypoint = Some(args);
        if stage.cmd.is_none() {
            stage.image.config.cmd = None;
        }
        self.record(step.stage, record, false)
    }

    fn healthcheck(&mut self, step: &Step<'_>, check: &Healthcheck) -> Result<(), Fault> {
        let last = self.stages.list[step.stage].healthcheck.replace(step.origin.place.clone());
        report_repeated(step, last.as_deref());
        let record = format!(
            "HEALTHCHECK {{Test:{} Interval:{} Timeout:{} StartPeriod:{} StartInterval:{} Retries:{}}}",
            plain_list(check.test.as_deref().unwrap_or_default()),
            duration::format(check.interval),
            duration::format(check.timeout),
            duration::format(check.start_period),
            duration::format(check.start_interval),
            check.retries,
        );
        self.stages.list[step.stage].image.config.healthcheck = Some(check.clone());
        self.record(step.stage, record, false)
    }

    fn volume(&mut self, step: &Step<'_>, volumes: &[String]) -> Result<(), Fault> {
        let volumes: Vec<String> = volumes.iter().map(|v| self.expand(step, v)).collect::<Result<_, _>>()?;
        let map = self.stages.list[step.stage].image.config.volumes.get_or_insert_default();
        for volume in &volumes {
            if volume.is_empty() {
                return Err("VOLUME specified can not be an empty string".into());
            }
            map.insert(volume.clone(), bud_image::config::Empty {});
        }
        self.record(step.stage, format!("VOLUME {}", plain_list(&volumes)), false)
    }

    /// Sets the working directory of image and state, and returns it with forward slashes.
    pub(crate) fn set_workdir(&mut self, index: usize, dir: &str) -> Result<String, Fault> {
        let stage = &mut self.stages.list[index];
        let os = stage.platform.as_ref().map(|p| p.os.clone()).unwrap_or_default();
        let dir = path::normalize_workdir(&stage.image.config.working_dir, dir, &os)
            .map_err(|e| format!("normalizing workdir: {e}"))?;
        let slashed = path::to_slash(&dir, &os);
        stage.image.config.working_dir = dir;
        stage.state.set_dir(&slashed);
        Ok(slashed)
    }

    fn workdir(&mut self, step: &Step<'_>, dir: &str) -> Result<(), Fault> {
        let dir = self.expand(step, dir)?;
        let stage = &mut self.stages.list[step.stage];
        let os = stage.platform.as_ref().map(|p| p.os.clone()).unwrap_or_default();
        if !stage.has_workdir && !path::is_absolute(&dir, &os) {
            let message = say::relative_workdir(&dir);
            step.lint.report(&rules::WORKDIR_RELATIVE_PATH, &step.origin.place, message);
        }
        stage.has_workdir = true;
        let dir = self.set_workdir(step.stage, &dir)?;
        let has_layer = dir != "/";
        if has_layer {
            let stage = &self.stages.list[step.stage];
            let user = &stage.image.config.user;
            let action = Action::Mkdir {
                path: dir.clone(),
                mode: 0o755,
                make_parents: true,
                owner: (!user.is_empty()).then(|| owner(user)),
                timestamp: self.epoch.map_or(-1, |seconds| seconds.saturating_mul(1_000_000_000)),
            };
            let platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
            let env = stage.state.env.clone();
            let name = command_name(&self.lexer, &step.origin.code, &env);
            let with_platform = self.task.options.multi_platform;
            let name = self.step_name(step.stage, &name, with_platform, Some(&platform), Some(&env));
            let stage = &mut self.stages.list[step.stage];
            let files = Files { base: stage.state.output, dir: stage.state.dir.clone(), actions: vec![action] };
            stage.state.files(&mut self.graph, files, Meta::named(name).at(&step.origin.place));
        }
        self.record(step.stage, format!("WORKDIR {dir}"), has_layer)
    }

    /// Notes a secret or an agent that a step may use.
    pub(crate) fn note_mount(&mut self, step: &Step<'_>, is_secret: bool, id: &str, required: bool) {
        let outline = &mut self.stages.list[step.stage].outline;
        let map = if is_secret { &mut outline.secrets } else { &mut outline.agents };
        Outline::add_mount(map, id, required, &step.origin.place);
    }
}

/// The text of an instruction in the progress: keyword in upper case, variables expanded if they can be.
pub(crate) fn command_name(lexer: &Lexer, code: &str, env: &dyn Vars) -> String {
    let expanded = lexer.expand(code, env).map(|e| e.text);
    let text = expanded.unwrap_or_else(|_| code.to_owned());
    match text.split_once(' ') {
        Some((keyword, rest)) => format!("{} {rest}", keyword.to_uppercase()),
        None => text.to_uppercase(),
    }
}

fn report_legacy(step: &Step<'_>, is_legacy: bool) {
    if is_legacy {
        let message = say::legacy_pair(&step.origin.keyword);
        step.lint.report(&rules::LEGACY_KEY_VALUE_FORMAT, &step.origin.place, message);
    }
}

/// Warns at the last instruction of a kind when another follows: it has no effect.
fn report_repeated(step: &Step<'_>, last: Option<&[Span]>) {
    if let Some(last) = last {
        let message = say::multiple(&step.origin.keyword);
        step.lint.report(&rules::MULTIPLE_INSTRUCTIONS_DISALLOWED, last, message);
    }
}

fn report_secret(step: &Step<'_>, instruction: &str, key: &str) {
    const TELLING: [&str; 10] =
        ["apikey", "auth", "credential", "credentials", "key", "password", "pword", "passwd", "secret", "token"];
    const HARMLESS: [&str; 3] = ["public", "file", "version"];
    let words: Vec<String> = key.split('_').map(str::to_lowercase).collect();
    let has = |list: &[&str]| words.iter().any(|word| list.contains(&word.as_str()));
    if has(&TELLING) && !has(&HARMLESS) {
        step.lint.report(&rules::SECRETS_USED_IN_ARG_OR_ENV, &step.origin.place, say::secret(instruction, key));
    }
}

/// Reads `user[:group]`, each a name or a number.
pub(crate) fn owner(text: &str) -> Owner {
    let id = |text: &str| match (text, parse_int(text, 32)) {
        ("root" | "", _) => Id::Number(0),
        // Negative numbers wrap, as they are passed on as unsigned.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        (_, Ok(number)) => Id::Number(number as u32),
        (name, Err(_)) => Id::Name(name.to_owned()),
    };
    match text.split_once(':') {
        Some((user, group)) => Owner { user: Some(id(user)), group: Some(id(group)) },
        None => Owner { user: Some(id(text)), group: None },
    }
}

fn is_signal(text: &str) -> bool {
    const NAMES: &str = "ABRT ALRM BUS CHLD CLD CONT FPE HUP ILL INT IO IOT KILL PIPE POLL PROF PWR QUIT SEGV STKFLT \
                         STOP SYS TERM TRAP TSTP TTIN TTOU URG USR1 USR2 VTALRM WINCH XCPU XFSZ RTMIN RTMAX";
    if let Ok(number) = parse_int(text, 64) {
        return number != 0;
    }
    let upper = text.to_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if NAMES.split_whitespace().any(|known| known == name) {
        return true;
    }
    let offset = |prefix: &str, most: i64| {
        let digits = name.strip_prefix(prefix).filter(|d| !d.starts_with(['0', '+', '-']));
        digits.and_then(|d| parse_int(d, 64).ok()).is_some_and(|n| (1..=most).contains(&n))
    };
    offset("RTMIN+", 15) || offset("RTMAX-", 14)
}

/// Writes seconds since 1970 as a date.
fn rfc3339(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days to a date by the civil calendar, in eras of 400 years that begin in March.
    let z = days + 719_468;
    let (era, day_of_era) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (rest / 3600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_001), "2023-11-14T22:13:21Z");
        assert_eq!(rfc3339(951_782_400), "2000-02-29T00:00:00Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59Z");
    }

    #[test]
    fn signals() {
        for good in ["9", "SIGTERM", "term", "RTMIN+3", "SIGRTMAX-14"] {
            assert!(is_signal(good), "{good}");
        }
        for bad in ["0", "", "SIGFOO", "RTMIN+16", "RTMIN+"] {
            assert!(!is_signal(bad), "{bad}");
        }
    }
}
