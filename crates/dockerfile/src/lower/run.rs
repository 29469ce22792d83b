//! `RUN`.

use super::dispatch::{Step, command_name};
use super::graph::{Action, Exec, ExecMount, Files, Id, Meta, Owner};
use super::platform::Lowering;
use crate::fault::Fault;
use crate::instruction::{Mount, MountKind, Run, Sharing, mount};
use crate::parser::heredoc;
use crate::shell::{Lexer, Vars};
use crate::text::path;
use crate::text::quote::quote;
use bud_patterns::clean::clean;
use bud_protocol::pb;
use std::collections::HashMap;

/// A command ready to run.
struct Prepared {
    args: Vec<String>,
    /// What is added to the name in the progress.
    summary: String,
    mount: Option<ExecMount>,
}

impl Lowering<'_> {
    pub(crate) fn run_command(&mut self, step: &Step<'_>, run: &Run) -> Result<(), Fault> {
        let mounts: Vec<Mount> = run
            .mounts
            .iter()
            .map(|text| mount::parse_mount(text, &mut |value| self.expand(step, value)))
            .collect::<Result<_, _>>()?;
        // A command may look at any file.
        self.stages.list[step.stage].paths.borrow_mut().insert("/".into());
        let prepared = self.prepare(step, run)?;
        let args =
            if run.command.is_shell { self.with_shell(step.stage, &prepared.args) } else { prepared.args.clone() };
        let caps = &self.task.world.request.caps;
        let options = self.task.options;
        let mut exec = Exec { mounts: prepared.mount.into_iter().collect(), ..Exec::default() };
        for (index, mount) in mounts.iter().enumerate() {
            self.add_mount(step, mount, index, &mut exec)?;
        }
        if !run.devices.is_empty() && caps.has("exec.meta.cdi") {
            return Err("device feature is only supported in Dockerfile frontend 1.14.0-labs or later".into());
        }
        let stage = &self.stages.list[step.stage];
        let env = stage.state.env.clone();
        let env_list = env.to_list();
        self.spend(env_list.iter().chain(&args).map(String::len).sum())?;
        let mut meta = pb::Meta {
            args: args.clone(),
            env: env_list,
            cwd: stage.state.dir.clone(),
            user: stage.state.user.clone(),
            hostname: stage.state.hostname.clone(),
            extra_hosts: options.extra_hosts.clone(),
            ..pb::Meta::default()
        };
        if caps.has("exec.meta.ulimit") && !options.ulimits.is_empty() {
            exec.caps.insert("exec.meta.ulimit");
            meta.ulimit.clone_from(&options.ulimits);
        }
        if caps.has("exec.meta.cgroup.parent") {
            meta.cgroup_parent.clone_from(&options.cgroup_parent);
        }
        if let Some(proxy) = &self.proxy {
            exec.caps.insert("exec.meta.proxyenv");
            meta.proxy_env = Some(proxy.clone());
        }
        exec.op.meta = Some(meta);
        let network = match run.network.as_str() {
            "none" => pb::NetMode::None,
            "host" => pb::NetMode::Host,
            _ => stage.state.network,
        };
        exec.op.network = network.into();
        if network != pb::NetMode::Unset {
            exec.caps.insert("exec.meta.network");
        }
        if run.security == "insecure" {
            exec.op.security = pb::SecurityMode::Insecure.into();
            exec.caps.insert("exec.meta.security");
        }
        if options.shm_size > 0 && caps.has("exec.mount.tmpfs.size") {
            exec.mounts.push(ExecMount {
                dest: "/dev/shm".into(),
                tmpfs_size: Some(options.shm_size),
                ..ExecMount::default()
            });
        }
        let lexer = Lexer { raw_quotes: true, skip_unset: true, ..self.lexer };
        let code = format!("{}{}", step.origin.code, prepared.summary);
        let name = command_name(&lexer, &code, &Masked::new(&mounts, &env));
        let platform = stage.state.platform.clone();
        let ignores_cache = stage.ignores_cache;
        let shown = self.step_name(step.stage, &name, options.multi_platform, platform.as_ref(), Some(&env));
        let mut meta = Meta::named(shown)
            .with("com.docker.dockerfile.v1.command", step.origin.code.clone())
            .at(&step.origin.place);
        meta.ignore_cache = ignores_cache;
        if caps.has("exec.meta.linux.resources") && options.linux_resources.is_some() {
            meta.linux_resources.clone_from(&options.linux_resources);
            exec.caps.insert("exec.meta.linux.resources");
        }
        let record = format!("RUN {} # buildkit", self.with_args(step.stage, &args));
        self.stages.list[step.stage].state.run(&mut self.graph, exec, meta);
        self.record(step.stage, record, true)
    }

    /// Puts heredocs where the command finds them.
    fn prepare(&mut self, step: &Step<'_>, run: &Run) -> Result<Prepared, Fault> {
        let command = &run.command;
        let mut prepared = Prepared { args: command.args.clone(), summary: String::new(), mount: None };
        let Some(first) = command.files.first() else { return Ok(prepared) };
        let ([line], true) = (command.args.as_slice(), command.is_shell) else {
            return Err(Fault::new(format!("parsing produced an invalid run command: {:?}", command.args)));
        };
        if heredoc::parse(line).ok().flatten().is_none() {
            // More than a heredoc: the shell reads it all.
            let mut text = line.clone();
            for file in &command.files {
                text.push('\n');
                text.push_str(&file.data);
                text.push_str(&file.name);
            }
            prepared.args = vec![text];
            return Ok(prepared);
        }
        let data = if first.chomp { heredoc::chomp(&first.data) } else { first.data.clone() };
        let stage = &self.stages.list[step.stage];
        if stage.image.os != "windows" && data.starts_with("#!") {
            // A script of its own.
            let write = Action::Mkfile { path: first.name.clone(), mode: 0o755, data: data.into_bytes() };
            let files = Files { base: None, dir: "/".into(), actions: vec![write] };
            let source = self.graph.files(files, Meta::named("[internal] preparing inline document"));
            prepared.mount = Some(ExecMount {
                source: Some(source),
                dest: "/dev/pipes/".into(),
                selector: "/".into(),
                readonly: true,
                ..ExecMount::default()
            });
            prepared.args = vec![path::join("/dev/pipes/", &first.name)];
        } else {
            prepared.args = vec![data];
        }
        prepared.summary = format!(" ({})", summarize(&first.data));
        Ok(prepared)
    }

    /// The command as the history shows it: with the build arguments before it.
    fn with_args(&self, stage: usize, args: &[String]) -> String {
        let stage = &self.stages.list[stage];
        let mut names: Vec<&str> = Vec::new();
        let mut defaults: HashMap<&str, &str> = HashMap::new();
        for arg in &stage.build_args {
            if defaults.insert(&arg.key, arg.value.as_deref().unwrap_or_default()).is_none() {
                names.push(&arg.key);
            }
        }
        let mut words = Vec::with_capacity(names.len() + args.len() + 1);
        if !names.is_empty() {
            words.push(format!("|{}", names.len()));
        }
        for name in names {
            let value = stage.state.env.get(name).unwrap_or_else(|| defaults.get(name).copied().unwrap_or_default());
            words.push(format!("{name}={value}"));
        }
        words.extend(args.iter().cloned());
        words.join(" ")
    }

    fn add_mount(&mut self, step: &Step<'_>, mount: &Mount, index: usize, exec: &mut Exec) -> Result<(), Fault> {
        let from_stage = !mount.from.is_empty() || mount.kind == MountKind::Cache;
        let source = step.command.sources.get(index).copied().filter(|_| from_stage);
        let mut output = Some(self.context);
        if let Some(source) = source {
            let stage = &self.stages.list[source];
            output = stage.state.output;
            if !stage.is_dispatched {
                let from = if mount.from.is_empty() { "scratch" } else { &mount.from };
                return Err(Fault::new(format!(
                    "cannot mount from stage {} to {}, stage needs to be defined before current command",
                    quote(from),
                    quote(&mount.target)
                )));
            }
        }
        match mount.kind {
            MountKind::Secret => return self.add_secret(step, mount, exec),
            MountKind::Ssh => return self.add_agent(step, mount, exec),
            _ => {}
        }
        let is_tmpfs = mount.kind == MountKind::Tmpfs;
        let caps = &self.task.world.request.caps;
        let mut added = ExecMount {
            source: output.filter(|_| !is_tmpfs),
            tmpfs_size: is_tmpfs.then_some(mount.size),
            readonly: mount.read_only,
            no_output: !mount.read_only
                && mount.kind == MountKind::Bind
                && caps.has("exec.mount.bind.readwrite-nooutput"),
            ..ExecMount::default()
        };
        if mount.kind == MountKind::Cache {
            let id = if mount.id.is_empty() { clean(&mount.target) } else { mount.id.clone() };
            let sharing = match mount.sharing {
                Some(Sharing::Private) => pb::CacheSharingOpt::Private,
                Some(Sharing::Locked) => pb::CacheSharingOpt::Locked,
                _ => pb::CacheSharingOpt::Shared,
            };
            let id = format!("{}/{id}", self.task.options.cache_namespace);
            added.cache = Some(pb::CacheOpt { id, sharing: sharing.into() });
        }
        added.dest.clone_from(&mount.target);
        if !clean(&mount.target).starts_with('/') {
            let dir = &self.stages.list[step.stage].state.dir;
            added.dest = path::join("/", &format!("{dir}/{}", mount.target));
        }
        if added.dest == "/" {
            return Err(Fault::new(format!("invalid mount target {}", quote(&added.dest))));
        }
        let selector = path::join("/", &mount.source);
        if selector != "/" {
            added.selector = selector;
        } else if mount.uid.is_some() || mount.gid.is_some() || mount.mode.is_some() {
            // The directory itself gets owner and mode, so the cache is a directory within.
            let number = |id: Option<u32>| Some(Id::Number(id.unwrap_or(0)));
            let make = Action::Mkdir {
                path: "/cache".into(),
                mode: i32::try_from(mount.mode.unwrap_or(0o755) & 0o777).unwrap_or(0o755),
                make_parents: false,
                owner: Some(Owner { user: number(mount.uid), group: number(mount.gid) }),
                timestamp: -1,
            };
            let files = Files { base: added.source, dir: "/".into(), actions: vec![make] };
            let meta = Meta::named("[internal] setting cache mount permissions");
            added.source = Some(self.graph.files(files, meta));
            added.selector = "/cache".into();
        }
        exec.mounts.push(added);
        let used = path::join("/", &mount.source);
        match source {
            Some(source) => self.stages.list[source].paths.borrow_mut().insert(used),
            None => self.stages.list[step.stage].context_paths.insert(used),
        };
        Ok(())
    }

    fn add_secret(&mut self, step: &Step<'_>, mount: &Mount, exec: &mut Exec) -> Result<(), Fault> {
        let id = match (mount.source.as_str(), mount.id.as_str()) {
            ("", "") if mount.target.is_empty() => return Err("one of source, target required".into()),
            ("", "") => path::base(&mount.target).to_owned(),
            ("", id) => id.to_owned(),
            (source, _) => source.to_owned(),
        };
        self.note_mount(step, true, &id, mount.required);
        let optional = !mount.required;
        if let Some(name) = &mount.env {
            exec.caps.insert("exec.secretenv");
            exec.op.secretenv.push(pb::SecretEnv { id: id.clone(), name: name.clone(), optional });
        }
        let dest = match mount.target.as_str() {
            "" if mount.env.is_some() => return Ok(()),
            "" => format!("/run/secrets/{}", path::base(&id)),
            target => target.to_owned(),
        };
        let (uid, gid, mode) = owner_and_mode(mount, 0o400);
        exec.secrets.push(pb::Mount {
            input: -1,
            dest,
            mount_type: pb::MountType::Secret.into(),
            secret_opt: Some(pb::SecretOpt { id, uid, gid, mode, optional }),
            ..pb::Mount::default()
        });
        Ok(())
    }

    fn add_agent(&mut self, step: &Step<'_>, mount: &Mount, exec: &mut Exec) -> Result<(), Fault> {
        if !mount.source.is_empty() {
            return Err("ssh does not support source".into());
        }
        let shown = if mount.id.is_empty() { "default" } else { &mount.id };
        self.note_mount(step, false, shown, mount.required);
        let (uid, gid, mode) = owner_and_mode(mount, 0o600);
        let opt = pb::SshOpt { id: mount.id.clone(), uid, gid, mode, optional: !mount.required };
        exec.agents.push(pb::Mount {
            input: -1,
            dest: mount.target.clone(),
            mount_type: pb::MountType::Ssh.into(),
            ssh_opt: Some(opt),
            ..pb::Mount::default()
        });
        Ok(())
    }
}

fn owner_and_mode(mount: &Mount, default_mode: u32) -> (u32, u32, u32) {
    (mount.uid.unwrap_or(0), mount.gid.unwrap_or(0), mount.mode.unwrap_or(default_mode))
}

/// The first line of a text.
fn summarize(text: &str) -> String {
    let text = text.trim().replace("\r\n", "\n");
    match text.split_once('\n') {
        Some((first, _)) => format!("{first}..."),
        None => text,
    }
}

/// Variables with those hidden that hold secrets.
struct Masked<'a> {
    hidden: Vec<&'a str>,
    env: &'a super::env::Env,
}

impl<'a> Masked<'a> {
    fn new(mounts: &'a [Mount], env: &'a super::env::Env) -> Self {
        let secrets = mounts.iter().filter(|mount| mount.kind == MountKind::Secret);
        Self { hidden: secrets.filter_map(|mount| mount.env.as_deref()).collect(), env }
    }
}

impl Vars for Masked<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        if self.hidden.contains(&name) { Some("****") } else { self.env.get(name) }
    }
}
