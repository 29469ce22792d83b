//! `SOURCE_DATE_EPOCH`: a number, or the name of a source whose time it is.

use super::context::{NamedContext, http_source, modified};
use super::env::Env;
use super::git::{self, Parsed};
use super::graph::Source;
use super::platform::Lowering;
use super::url::Url;
use super::world::Stop;
use crate::fault::Fault;
use crate::instruction::{self, Add, Kind};
use crate::shell::Vars;
use crate::text::number::parse_int;
use crate::text::path;
use bud_image::reference::check_digest;

const NAME: &str = "SOURCE_DATE_EPOCH";

impl Lowering<'_> {
    /// Finds out the time, and puts it as a number where its source was named.
    pub(crate) fn resolve_epoch(&mut self) -> Result<(), Stop> {
        let global = self.globals.get(NAME).filter(|v| !v.is_empty());
        let Some(value) = self.build_args.get(NAME).map(String::as_str).or(global).map(str::to_owned) else {
            return Ok(());
        };
        self.epoch = self.epoch_of(&value)?;
        let text = self.epoch.map(|seconds| seconds.to_string());
        if self.build_args.contains_key(NAME) {
            match &text {
                Some(text) => self.build_args.insert(NAME.into(), text.clone()),
                None => self.build_args.remove(NAME),
            };
        }
        if self.globals.get(NAME).is_some() {
            match &text {
                Some(text) => self.globals.set(NAME, text),
                None => self.globals.remove(NAME),
            }
        }
        Ok(())
    }

    fn epoch_of(&mut self, value: &str) -> Result<Option<i64>, Stop> {
        if value.is_empty() {
            return Ok(None);
        }
        if let Ok(seconds) = parse_int(value, 64) {
            return Ok(Some(seconds));
        }
        let world = self.task.world;
        let (source, log_name) = if value == "context" {
            // A local directory has no time.
            let source = self.task.context.main_source().cloned();
            (source, "[internal] resolve main build context metadata".to_owned())
        } else if let Some(named) = NamedContext::find(world, self.task.options, value, None)? {
            let mut graph = super::graph::Graph::default();
            let loaded = named.load(world, &mut graph)?;
            (loaded.source, format!("[internal] resolve {NAME} named context {value}"))
        } else {
            let stage = self.task.program.stages.iter().find(|s| s.name.eq_ignore_ascii_case(value));
            let stage = stage.ok_or_else(|| Fault::new(format!("invalid {NAME}: {value}")))?;
            let source = self.stage_source(stage).map_err(|stop| stop.map(|f| f.at(&stage.origin.place)))?;
            (Some(source), format!("[internal] resolve {NAME} source stage {}", stage.name))
        };
        match source {
            Some(source) if !source.id.starts_with("local://") => modified(world, &source, &log_name),
            Some(_) | None => Ok(None),
        }
    }

    /// The source of a stage that is nothing but a remote `ADD`.
    fn stage_source(&self, stage: &instruction::Stage) -> Result<Source, Stop> {
        let mut env = self.globals.clone();
        env.remove(NAME);
        let base = self.lexer.expand(&stage.base, &env)?.text;
        if base != "scratch" {
            return Err(format!("{NAME} stage must use FROM scratch").into());
        }
        let mut source = None;
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Arg(args) => {
                    for arg in args {
                        let value = match (self.build_args.get(&arg.key), &arg.value) {
                            (Some(given), _) => given.clone(),
                            (None, Some(default)) => self.lexer.expand(default, &env)?.text,
                            (None, None) => continue,
                        };
                        env.set(&arg.key, &value);
                    }
                }
                Kind::Add(_) if source.is_some() => {
                    return Err(format!("{NAME} stage must contain exactly one remote ADD").into());
                }
                Kind::Add(add) => source = Some(self.add_source(add, &env)?),
                _ => {
                    let keyword = &instruction.origin.keyword;
                    return Err(format!(
                        "{NAME} stage does not meet source-only requirements: unsupported {keyword} instruction"
                    )
                    .into());
                }
            }
        }
        source.ok_or_else(|| format!("{NAME} stage must contain exactly one remote ADD").into())
    }

    fn add_source(&self, add: &Add, env: &Env) -> Result<Source, Stop> {
        let ([written], true) = (add.paths.sources.as_slice(), add.paths.contents.is_empty()) else {
            return Err(format!("{NAME} stage must contain exactly one remote ADD source").into());
        };
        let address = self.lexer.expand(written, env)?.text;
        let checksum = match add.checksum.as_str() {
            "" => String::new(),
            written => self.lexer.expand(written, env)?.text,
        };
        if git::is_http(&address) {
            let mut source = http_source(&address, &http_filename(&address));
            if !add.checksum.is_empty() {
                check_digest(&checksum)?;
                set_http_checksum(&mut source, &checksum);
            }
            return Ok(source);
        }
        match git::parse(&address) {
            Parsed::Wrong(fault) => Err(fault.into()),
            Parsed::Git(git) if !git.looks_local => {
                let mut options = git.options();
                options.keep_git_dir |= add.keep_git_dir == Some(true);
                options.mtime.clear();
                if !add.checksum.is_empty() {
                    options.checksum = checksum;
                }
                Ok(git.source(&options))
            }
            _ => Err(format!("{NAME} stage source must be a single HTTP(S) or Git ADD").into()),
        }
    }
}

/// The name under which a file from the web is kept.
pub(crate) fn http_filename(address: &str) -> String {
    let path = Url::parse(address).map(|url| url.path).unwrap_or_default();
    match path::base(&path) {
        "." | "/" => "__unnamed__".to_owned(),
        base => base.to_owned(),
    }
}

pub(crate) fn set_http_checksum(source: &mut Source, checksum: &str) {
    source.attrs.insert("http.checksum".into(), checksum.to_owned());
    source.caps.insert("source.http.checksum");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_from_the_web_have_the_name_at_the_end_of_the_path() {
        for (address, name) in [
            ("https://h/a/b.tgz?x=/y#z", "b.tgz"),
            ("https://h/a%20b", "a b"),
            ("https://h/a/", "a"),
            ("https://h/", "__unnamed__"),
            ("https://h", "__unnamed__"),
            ("https://h/%zz", "__unnamed__"),
        ] {
            assert_eq!(http_filename(address), name, "{address}");
        }
    }
}
