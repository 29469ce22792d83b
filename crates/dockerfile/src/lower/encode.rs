//! The bytes of ops: fields, mounts and actions in the order that the reference's client library gives them.

use super::graph::{Action, Defaults, Encoded, Exec, ExecMount, Files, Graph, Id, Output, Owner};
use crate::fault::Fault;
use crate::text::path;
use bud_protocol::pb;
use std::collections::{BTreeSet, HashMap};

/// The inputs of an op that is being encoded.
pub(super) struct Inputs<'a> {
    pub(super) graph: &'a Graph,
    pub(super) encoded: &'a HashMap<usize, Encoded>,
    pub(super) list: Vec<pb::Input>,
}

impl Inputs<'_> {
    fn input(&self, output: Output) -> Option<pb::Input> {
        let real = self.graph.real(output)?;
        Some(pb::Input { digest: self.encoded.get(&real.vertex)?.digest.clone(), index: real.index })
    }

    pub(super) fn push(&mut self, output: Output) -> i64 {
        let Some(input) = self.input(output) else { return -1 };
        self.list.push(input);
        index(self.list.len() - 1)
    }

    /// Returns the index of an input, which is added once; -1 for nothing.
    fn add(&mut self, output: Option<Output>) -> i64 {
        let Some(input) = output.and_then(|output| self.input(output)) else { return -1 };
        if let Some(at) = self.list.iter().position(|known| *known == input) {
            return index(at);
        }
        self.list.push(input);
        index(self.list.len() - 1)
    }
}

fn index(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// All mounts, the root among them, by destination.
pub(super) fn sorted_mounts(exec: &Exec) -> Vec<ExecMount> {
    let root = ExecMount { source: exec.root, dest: "/".into(), ..ExecMount::default() };
    let mut mounts = vec![root];
    mounts.extend(exec.mounts.iter().cloned());
    mounts.sort_by(|a, b| a.dest.cmp(&b.dest));
    mounts
}

pub(super) fn encode_exec(
    exec: &Exec,
    defaults: &Defaults,
    inputs: &mut Inputs<'_>,
    caps: &mut BTreeSet<&'static str>,
) -> Result<pb::ExecOp, Fault> {
    let mut op = exec.op.clone();
    let meta = op.meta.get_or_insert_default();
    if meta.args.is_empty() {
        return Err(Fault::new("arguments are required"));
    }
    meta.remove_mount_stubs_recursive = true;
    let mut agents = exec.agents.clone();
    for (i, agent) in agents.iter_mut().enumerate().filter(|(_, agent)| agent.dest.is_empty()) {
        agent.dest = format!("/run/buildkit/ssh_agent.{i}");
    }
    if let Some(agent) = agents.first() {
        if !meta.env.iter().any(|pair| pair.starts_with("SSH_AUTH_SOCK=")) {
            meta.env.push(format!("SSH_AUTH_SOCK={}", agent.dest));
        }
        caps.insert("exec.mount.ssh");
    }
    if exec.has_own_path {
        // As it is.
    } else if defaults.sets_default_path {
        caps.insert("exec.meta.setsdefaultpath");
    } else {
        let os = exec.platform.as_ref().or(defaults.platform.as_ref()).map_or("linux", |p| &p.os);
        if os != "windows" && !meta.env.iter().any(|pair| pair.starts_with("PATH=")) {
            meta.env.push(format!("PATH={}", path::DEFAULT_PATH));
        }
    }
    caps.insert("exec.meta.base");
    caps.extend(&exec.caps);
    let mut output = 0;
    for mount in sorted_mounts(exec) {
        if !mount.selector.is_empty() {
            caps.insert("exec.mount.selector");
        }
        let input = inputs.add(mount.source);
        let keeps_nothing = mount.no_output || mount.readonly || mount.cache.is_some() || mount.tmpfs_size.is_some();
        let mut encoded = pb::Mount {
            input,
            dest: mount.dest,
            selector: mount.selector,
            readonly: mount.readonly,
            output: if keeps_nothing { -1 } else { output },
            ..pb::Mount::default()
        };
        output += i64::from(!keeps_nothing);
        if let Some(cache) = mount.cache {
            caps.extend(["exec.mount.cache", "exec.mount.cache.sharing"]);
            encoded.mount_type = pb::MountType::Cache.into();
            encoded.cache_opt = Some(cache);
        } else if let Some(size) = mount.tmpfs_size {
            caps.insert("exec.mount.tmpfs");
            if size > 0 {
                caps.insert("exec.mount.tmpfs.size");
            }
        } else if mount.source.is_some() {
            caps.insert("exec.mount.bind");
        }
        if let Some(size) = mount.tmpfs_size {
            encoded.mount_type = pb::MountType::Tmpfs.into();
            encoded.tmpfs_opt = Some(pb::TmpfsOpt { size });
        }
        op.mounts.push(encoded);
    }
    if !exec.secrets.is_empty() || !op.secretenv.is_empty() {
        caps.insert("exec.mount.secret");
    }
    op.mounts.extend(exec.secrets.iter().cloned());
    op.mounts.extend(agents);
    Ok(op)
}

pub(super) fn encode_files(files: &Files, inputs: &mut Inputs<'_>) -> pb::FileOp {
    let base = inputs.add(files.base);
    let sources: Vec<i64> = files
        .actions
        .iter()
        .map(|action| match action {
            Action::Copy { from, .. } => inputs.add(*from),
            _ => -1,
        })
        .collect();
    let count = index(inputs.list.len());
    let mut op = pb::FileOp::default();
    for (i, (action, source)) in files.actions.iter().zip(sources).enumerate() {
        let action = match action {
            Action::Mkdir { path, mode, make_parents, owner, timestamp } => {
                pb::file_action::Action::Mkdir(pb::FileActionMkDir {
                    path: path::of_action(&files.dir, path, false),
                    mode: mode & 0o777,
                    make_parents: *make_parents,
                    owner: owner.as_ref().map(|owner| owner.encode(base)),
                    timestamp: *timestamp,
                })
            }
            Action::Mkfile { path, mode, data } => pb::file_action::Action::Mkfile(pb::FileActionMkFile {
                path: path::of_action(&files.dir, path, false),
                mode: mode & 0o777,
                data: data.clone(),
                owner: None,
                timestamp: -1,
            }),
            Action::Copy { from_dir, copy, owner, .. } => pb::file_action::Action::Copy(pb::FileActionCopy {
                src: path::join(if copy.src.starts_with('/') { "/" } else { from_dir }, &copy.src),
                dest: path::of_action(&files.dir, &copy.dest, true),
                owner: owner.as_ref().map(|owner| owner.encode(base)),
                timestamp: -1,
                ..(**copy).clone()
            }),
        };
        op.actions.push(pb::FileAction {
            input: if i == 0 { base } else { count + index(i) - 1 },
            secondary_input: source,
            output: if i + 1 == files.actions.len() { 0 } else { -1 },
            action: Some(action),
        });
    }
    op
}

impl Owner {
    fn encode(&self, base: i64) -> pb::ChownOpt {
        let encode = |id: &Option<Id>| {
            id.as_ref().map(|id| pb::UserOpt {
                user: Some(match id {
                    Id::Number(n) => pb::user_opt::User::ById(*n),
                    Id::Name(name) => pb::user_opt::User::ByName(pb::NamedUserOpt { name: name.clone(), input: base }),
                }),
            })
        };
        pb::ChownOpt { user: encode(&self.user), group: encode(&self.group) }
    }
}
