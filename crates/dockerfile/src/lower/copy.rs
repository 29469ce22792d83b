//! `COPY` and `ADD`.

use super::context::http_source;
use super::dispatch::{Step, command_name, owner};
use super::epoch::{http_filename, set_http_checksum};
use super::git::{self, Parsed};
use super::graph::{Action, Files, Meta, Output};
use super::platform::Lowering;
use crate::fault::Fault;
use crate::instruction::{Add, Content, Copy, Paths};
use crate::lint::{rules, rules::say};
use crate::shell::Lexer;
use crate::text::number::parse_uint;
use crate::text::path;
use crate::text::quote::quote;
use bud_image::Digest;
use bud_image::reference::check_digest;
use bud_patterns::clean::clean;
use bud_protocol::pb;

/// What `COPY` and `ADD` have in common, expanded.
struct Transfer {
    paths: Paths,
    chown: String,
    chmod: String,
    link: bool,
    parents: bool,
    excludes: Vec<String>,
    /// Where paths are copied from.
    source: Option<Output>,
    source_dir: String,
    is_add: bool,
    from_context: bool,
    keep_git_dir: Option<bool>,
    checksum: String,
    unpack: Option<bool>,
}

impl Lowering<'_> {
    pub(crate) fn add(&mut self, step: &Step<'_>, add: &Add) -> Result<(), Fault> {
        let chown = self.expand(step, &add.chown)?;
        let chmod = self.expand(step, &add.chmod)?;
        let checksum = self.expand(step, &add.checksum)?;
        let transfer = Transfer {
            paths: self.expand_paths(step, &add.paths)?,
            chown,
            chmod,
            link: add.link,
            parents: false,
            excludes: add.excludes.clone(),
            source: Some(self.context),
            source_dir: "/".into(),
            is_add: true,
            from_context: true,
            keep_git_dir: add.keep_git_dir,
            checksum,
            unpack: add.unpack,
        };
        self.transfer(step, &transfer)?;
        let is_local = |path: &&String| !path.starts_with("http://") && !path.starts_with("https://");
        let used = transfer.paths.sources.iter().filter(is_local).map(|path| path::join("/", path));
        self.stages.list[step.stage].context_paths.extend(used);
        Ok(())
    }

    pub(crate) fn copy(&mut self, step: &Step<'_>, copy: &Copy) -> Result<(), Fault> {
        let chown = self.expand(step, &copy.chown)?;
        let chmod = self.expand(step, &copy.chmod)?;
        let paths = self.expand_paths(step, &copy.paths)?;
        let from = step.command.sources.first().copied();
        let (source, source_dir) = match from {
            None => (Some(self.context), "/".to_owned()),
            Some(from) => {
                let source = &self.stages.list[from];
                if !source.is_dispatched {
                    let own = &self.stages.list[step.stage].shown;
                    return Err(Fault::new(format!(
                        "cannot copy from stage {}, it needs to be defined before current stage {}",
                        quote(&copy.from),
                        quote(own)
                    )));
                }
                (source.state.output, source.state.dir.clone())
            }
        };
        let transfer = Transfer {
            paths,
            chown,
            chmod,
            link: copy.link,
            parents: copy.parents,
            excludes: copy.excludes.clone(),
            source,
            source_dir,
            is_add: false,
            from_context: from.is_none(),
            keep_git_dir: None,
            checksum: String::new(),
            unpack: None,
        };
        self.transfer(step, &transfer)?;
        let used = transfer.paths.sources.iter().map(|path| path::join("/", path));
        match from {
            None => self.stages.list[step.stage].context_paths.extend(used),
            Some(from) => self.stages.list[from].paths.borrow_mut().extend(used),
        }
        Ok(())
    }

    fn expand_paths(&self, step: &Step<'_>, paths: &Paths) -> Result<Paths, Fault> {
        let sources = paths.sources.iter().map(|path| self.expand(step, path)).collect::<Result<_, _>>()?;
        let dest = self.expand(step, &paths.dest)?;
        let raw = Lexer { skip_quotes: true, ..Lexer::new('\\') };
        let content = |content: &Content| {
            let data = if content.expand { self.expand_with(step, &raw, &content.data)? } else { content.data.clone() };
            Ok(Content { data, ..content.clone() })
        };
        let contents = paths.contents.iter().map(content).collect::<Result<_, Fault>>()?;
        Ok(Paths { dest, sources, contents })
    }

    fn transfer(&mut self, step: &Step<'_>, transfer: &Transfer) -> Result<(), Fault> {
        let stage = &self.stages.list[step.stage];
        let platform = stage.platform.clone().unwrap_or_else(|| self.target_platform.clone());
        let os = platform.os.clone();
        let dest = relative_to(&stage.state.dir, &transfer.paths.dest, &os)?;
        let (mode, mode_str) = parse_mode(&transfer.chmod)?;
        check_checksum(transfer)?;
        let mut record = String::from(if transfer.is_add { "ADD" } else { "COPY" });
        if transfer.parents {
            record.push_str(" --parents");
        }
        for (flag, value) in [("chown", &transfer.chown), ("chmod", &transfer.chmod)] {
            if !value.is_empty() {
                record.push_str(&format!(" --{flag}={value}"));
            }
        }
        let env = stage.state.env.clone();
        let with_platform = self.task.options.multi_platform;
        let name = command_name(&self.lexer, &step.origin.code, &env);
        let shown = self.step_name(step.stage, &name, with_platform, Some(&platform), Some(&env));
        let template = pb::FileActionCopy {
            dest,
            mode,
            mode_str,
            create_dest_path: true,
            exclude_patterns: transfer.excludes.clone(),
            ..Default::default()
        };
        let owner = (!transfer.chown.is_empty()).then(|| owner(&transfer.chown));
        let mut actions = Vec::new();
        let mut push = |from: Option<Output>, from_dir: &str, copy: pb::FileActionCopy| {
            let from_dir = from_dir.to_owned();
            actions.push(Action::Copy { from, from_dir, copy: Box::new(copy), owner: owner.clone() });
        };
        let (mut keep_git_dir, mut checksum) = (transfer.keep_git_dir, transfer.checksum.clone());
        for source in &transfer.paths.sources {
            record.push(' ');
            record.push_str(source);
            let git = match git::parse(source) {
                Parsed::Wrong(fault) => return Err(fault),
                Parsed::Git(git) if !git.looks_local => Some(git),
                _ => None,
            };
            if let Some(git) = git {
                if !transfer.is_add {
                    return Err("source can't be a git ref for COPY".into());
                }
                if let (Some(flag), Some(written)) = (keep_git_dir, git.keep_git_dir)
                    && flag != written
                {
                    return Err("inconsistent keep-git-dir configuration".into());
                }
                keep_git_dir = git.keep_git_dir.or(keep_git_dir);
                if !checksum.is_empty() && !git.checksum.is_empty() && checksum != git.checksum {
                    let (a, b) = (quote(&checksum), quote(&git.checksum));
                    return Err(Fault::new(format!("checksum mismatch {a} != {b}")));
                }
                if !git.checksum.is_empty() {
                    checksum.clone_from(&git.checksum);
                }
                let mut options = git.options();
                options.keep_git_dir = keep_git_dir == Some(true);
                options.checksum.clone_from(&checksum);
                options.mtime.clear();
                let from = self.graph.source(git.source(&options), Meta::named(shown.clone()));
                push(Some(from), "/", pb::FileActionCopy { src: "/".into(), ..template.clone() });
            } else if git::is_http(source) {
                if !transfer.is_add {
                    return Err("source can't be a URL for COPY".into());
                }
                let file = http_filename(source);
                let mut http = http_source(source, &file);
                if !checksum.is_empty() {
                    check_digest(&checksum)?;
                    set_http_checksum(&mut http, &checksum);
                }
                let meta = Meta::named(shown.clone()).with("com.docker.dockerfile.v1.command", "");
                let from = self.graph.source(http, meta);
                let copy = pb::FileActionCopy {
                    src: file,
                    attempt_unpack_docker_compatibility: transfer.unpack == Some(true),
                    ..template.clone()
                };
                push(Some(from), "/", copy);
            } else {
                if transfer.from_context {
                    self.check_ignored(step, transfer, source);
                }
                let copy = path_action(transfer, source, &os, &template)?;
                push(transfer.source, &transfer.source_dir, copy);
            }
        }
        for content in &transfer.paths.contents {
            record.push_str(" <<");
            record.push_str(&content.path);
            let file = path::strip_drive(&content.path, &os, false)
                .map_err(|e| Fault::new(format!("removing drive letter: {e}")))?;
            let write = Action::Mkfile { path: file.clone(), mode: 0o644, data: content.data.clone().into_bytes() };
            let files = Files { base: None, dir: "/".into(), actions: vec![write] };
            self.spend(content.data.len())?;
            let from = self.graph.files(files, Meta::named("[internal] preparing inline document"));
            push(Some(from), "/", pb::FileActionCopy { src: path::to_slash(&file, &os), ..template.clone() });
        }
        record.push(' ');
        record.push_str(&transfer.paths.dest);

        let stage = &self.stages.list[step.stage];
        let mut meta = Meta::named(shown.clone()).at(&step.origin.place);
        meta.ignore_cache = stage.ignores_cache;
        let base = stage.state.output;
        let dir = stage.state.dir.clone();
        if transfer.link && transfer.chmod.is_empty() && self.task.world.request.caps.has("mergeop") {
            self.link(step, base, actions, meta, &name, &shown, &platform, &env);
        } else {
            let files = Files { base, dir, actions };
            self.stages.list[step.stage].state.files(&mut self.graph, files, meta);
        }
        self.record(step.stage, format!("{record} # buildkit"), true)
    }

    /// Copies into an empty file system, which is then put upon the stage's: so it doesn't depend on what is below.
    #[allow(clippy::too_many_arguments)]
    fn link(
        &mut self,
        step: &Step<'_>,
        base: Option<Output>,
        actions: Vec<Action>,
        meta: Meta,
        name: &str,
        shown: &str,
        platform: &bud_image::Platform,
        env: &super::env::Env,
    ) {
        let group = self.group_id(shown);
        let in_group = |weak: bool| Some(pb::ProgressGroup { id: group.clone(), name: shown.to_owned(), weak });
        // The copy and the link are one step in the numbering.
        self.stages.list[step.stage].command_index -= 1;
        let with_platform = self.task.options.multi_platform;
        let link = self.step_name(step.stage, &format!("LINK {name}"), with_platform, Some(platform), Some(env));
        let files = Files { base: None, dir: "/".into(), actions };
        let mut copy_meta = meta.clone();
        copy_meta.progress_group = in_group(true);
        let copied = self.graph.files(files, copy_meta);
        let mut merge_meta = meta.with("llb.customname", link);
        merge_meta.progress_group = in_group(false);
        let output = match base {
            Some(base) => self.graph.merge(vec![base, copied], merge_meta),
            None => copied,
        };
        self.stages.list[step.stage].state.output = Some(output);
    }

    /// An id that no other group of this or another build has.
    fn group_id(&mut self, shown: &str) -> String {
        self.groups += 1;
        let request = self.task.world.request;
        let seed = format!("{}|{}|{}|{shown}", request.session, self.target_platform, self.groups);
        Digest::of(seed).hex()[..25].to_owned()
    }

    /// Warns of paths that the ignore file takes away.
    fn check_ignored(&self, step: &Step<'_>, transfer: &Transfer, source: &str) {
        let Some(ignore) = &self.ignore else { return };
        if ignore.has_exclusions() {
            return;
        }
        let source = clean(source);
        if matches!(source.as_str(), "." | "/") {
            let takes_all = |pattern: &String| matches!(clean(pattern.trim()).as_str(), "*" | "**" | "**/*");
            if !self.ignore_patterns.iter().any(takes_all) {
                return;
            }
        }
        if ignore.matches_or_parent_matches(&source) {
            let verb = if transfer.is_add { "Add" } else { "Copy" };
            let message = say::ignored_file(verb, &source);
            step.lint.report(&rules::COPY_IGNORED_FILE, &step.origin.place, message);
        }
    }
}

/// The copy of a path or pattern.
fn path_action(
    transfer: &Transfer,
    source: &str,
    os: &str,
    template: &pb::FileActionCopy,
) -> Result<pb::FileActionCopy, Fault> {
    let normalize = |path: &str| {
        path::normalize("/", path, os, false).map_err(|e| Fault::new(format!("removing drive letter: {e}")))
    };
    let (mut source, mut patterns, mut required) = (source.to_owned(), Vec::new(), Vec::new());
    if transfer.parents {
        // Parents are kept from `/./` on.
        let (from, pattern) = match source.split_once("/./") {
            Some((parent, pattern)) => (parent.to_owned(), pattern.to_owned()),
            None => ("/".to_owned(), source.clone()),
        };
        let pattern = normalize(&pattern)?;
        patterns.push(pattern.strip_prefix('/').unwrap_or(&pattern).to_owned());
        if !bud_patterns::has_wildcards(&from) && !bud_patterns::has_wildcards(&pattern) {
            required.push(path::join(&from, &pattern));
        }
        source = from;
    }
    let source = normalize(&source)?;
    let required = required.iter().map(|path| normalize(path)).collect::<Result<_, _>>()?;
    Ok(pb::FileActionCopy {
        src: source,
        follow_symlink: true,
        dir_copy_contents: true,
        include_patterns: patterns,
        required_paths: required,
        attempt_unpack_docker_compatibility: transfer.unpack.unwrap_or(transfer.is_add),
        allow_wildcard: true,
        allow_empty_wildcard: true,
        ..template.clone()
    })
}

/// Resolves a destination against the working directory.
fn relative_to(dir: &str, dest: &str, os: &str) -> Result<String, Fault> {
    let dest = path::strip_drive(dest, os, true).map_err(|e| format!("removing drive letter: {e}"))?;
    if path::is_absolute(&dest, os) {
        return Ok(path::normalize("/", &dest, os, true)?);
    }
    let dest = if matches!(dest.as_str(), "" | ".") { "./" } else { &dest };
    Ok(path::normalize(dir, dest, os, true)?)
}

fn check_checksum(transfer: &Transfer) -> Result<(), Fault> {
    if transfer.checksum.is_empty() {
        return Ok(());
    }
    let [source] = transfer.paths.sources.as_slice() else {
        return Err("checksum can't be specified for multiple sources".into());
    };
    if !git::is_http(source) && !git::is_git(source) {
        return Err("checksum requires HTTP(S) or Git sources".into());
    }
    Ok(())
}

/// Reads `--chmod`: octal digits, or symbols (`u=rwX,go=rX`).
fn parse_mode(text: &str) -> Result<(i32, String), Fault> {
    if text.is_empty() {
        return Ok((-1, String::new()));
    }
    let not_octal = || {
        let what = "it should be octal string and between 0 and 07777";
        Fault::new(format!("invalid chmod parameter: '{text}'. {what}"))
    };
    match parse_uint(text, 8, 32) {
        Ok(mode) if mode <= 0o7777 => Ok((i32::try_from(mode).map_err(|_| not_octal())?, String::new())),
        Ok(_) => Err(not_octal()),
        Err(_) if text.starts_with(|c: char| c.is_ascii_digit()) => Err(not_octal()),
        Err(_) if is_symbolic_mode(text) => Ok((0, text.to_owned())),
        Err(_) => Err("invalid syntax".into()),
    }
}

/// Tests `[ugoa…][+-=][rwxXstugo…]…[,…]`.
fn is_symbolic_mode(text: &str) -> bool {
    text.split(',').all(|clause| {
        let mut rest = clause.trim_start_matches(['u', 'g', 'o', 'a']);
        if rest.is_empty() {
            return false;
        }
        while !rest.is_empty() {
            let Some(after) = rest.strip_prefix(['+', '-', '=']) else { return false };
            rest = after.trim_start_matches(['r', 'w', 'x', 'X', 's', 't', 'u', 'g', 'o']);
        }
        true
    })
}
