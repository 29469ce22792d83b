//! Exec: one process in a sandbox.

mod mounts;
pub(crate) mod output;

use super::{ByContent, OpCx, Outputs, check_input};
use crate::sessions::session_error;
use crate::solver::graph::{MAX_OUTPUTS, Vertex};
use crate::value::Value;
use bud_protocol::errors::{BuildError, Detail};
use bud_protocol::pb;
use bud_protocol::pb::MountType;
use bud_sandbox::server::{EVENT_MAX, Event};
use bud_sandbox::{ContainerSpec, Network, Rlimit, Security};
use bud_store::content::Selection;
use prost::Message as _;
use std::fmt::Write as _;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::AsyncReadExt as _;

const MAX_MOUNTS: usize = 1_000;
/// A program's arguments and environment together; the kernel has its own limit, this one is for us.
const MAX_STRINGS: usize = 8 << 20;
/// How long the rest of the output is waited for after the end of the process.
const REST: Duration = Duration::from_secs(10);

/// Checks the op.
///
/// # Errors
/// What is wrong.
pub fn validate(op: &pb::ExecOp, inputs: usize) -> Result<(), String> {
    let meta = op.meta.as_ref().ok_or("exec has no meta")?;
    if meta.args.is_empty() {
        return Err("exec has no arguments".into());
    }
    let size: usize = meta.args.iter().chain(&meta.env).map(String::len).sum();
    if size > MAX_STRINGS {
        return Err(format!("arguments and environment have {size} bytes, more than {MAX_STRINGS}"));
    }
    if meta.args.iter().chain(&meta.env).chain([&meta.cwd, &meta.user]).any(|s| s.contains('\0')) {
        return Err("an argument or environment entry holds a zero byte".into());
    }
    // What is not known must not become less of a sandbox.
    pb::NetMode::try_from(op.network).map_err(|_| format!("unknown network mode {}", op.network))?;
    pb::SecurityMode::try_from(op.security).map_err(|_| format!("unknown security mode {}", op.security))?;
    if let Some(device) = op.cdi_devices.iter().find(|d| !d.optional) {
        return Err(format!("device {} is not available: this daemon has no CDI devices", device.name));
    }
    if op.mounts.len() > MAX_MOUNTS {
        return Err(format!("exec has {} mounts, more than {MAX_MOUNTS}", op.mounts.len()));
    }
    let mut outputs = std::collections::BTreeSet::new();
    let mut roots = 0;
    for mount in &op.mounts {
        let what = format!("mount {:?}", mount.dest);
        if !mount.dest.starts_with('/') || mount.dest.contains('\0') {
            return Err(format!("{what}: the destination must be an absolute path"));
        }
        if mount.selector.contains('\0') {
            return Err(format!("{what}: the selector holds a zero byte"));
        }
        let kind =
            MountType::try_from(mount.mount_type).map_err(|_| format!("{what}: unknown type {}", mount.mount_type))?;
        match kind {
            MountType::Secret if mount.secret_opt.is_none() => return Err(format!("{what}: secret without options")),
            MountType::Ssh if mount.ssh_opt.is_none() => return Err(format!("{what}: ssh without options")),
            // Go's clients leave input and output at zero here; neither means anything.
            MountType::Secret | MountType::Ssh if mount.dest != "/" => continue,
            _ => {}
        }
        check_input(&what, mount.input, inputs, true)?;
        if mount.output < -1 || mount.output >= MAX_OUTPUTS as i64 {
            return Err(format!("{what}: output {} is out of range", mount.output));
        }
        if mount.output >= 0 && !outputs.insert(mount.output) {
            return Err(format!("{what}: output {} is there twice", mount.output));
        }
        if mount.output >= 0 && kind != MountType::Bind {
            return Err(format!("{what}: only a bind mount can be an output"));
        }
        if mount.dest == "/" {
            roots += 1;
            if kind != MountType::Bind {
                return Err("the root mount must be a bind mount".into());
            }
        }
        if kind == MountType::Cache {
            let options = mount.cache_opt.as_ref().ok_or_else(|| format!("{what}: cache without options"))?;
            pb::CacheSharingOpt::try_from(options.sharing)
                .map_err(|_| format!("{what}: unknown sharing mode {}", options.sharing))?;
        }
    }
    if roots != 1 {
        return Err(format!("exec has {roots} mounts on /, not one"));
    }
    if outputs.len() as i64 != outputs.last().map_or(0, |l| l + 1) {
        return Err("exec's outputs have gaps".into());
    }
    Ok(())
}

/// Tells whether a mount has an input and an output: secrets and agents don't, whatever their numbers say.
#[must_use]
pub fn has_files(mount: &pb::Mount) -> bool {
    mount.mount_type != MountType::Secret as i32 && mount.mount_type != MountType::Ssh as i32
}

/// Mounts that are read-only or thrown away count by what is in them; the root never does.
#[must_use]
pub fn by_content(op: &pb::ExecOp, inputs: usize) -> Vec<Option<ByContent>> {
    let mut uses: Vec<Option<ByContent>> = vec![None; inputs];
    let mut whole = vec![false; inputs];
    for mount in op.mounts.iter().filter(|m| has_files(m)) {
        let Some(number) = usize::try_from(mount.input).ok().filter(|n| *n < inputs) else { continue };
        let off = mount.content_cache == pb::MountContentCache::Off as i32;
        let seen_through = mount.dest != "/"
            && mount.mount_type == MountType::Bind as i32
            && (mount.readonly || mount.output == -1)
            && !off;
        if seen_through {
            let path = if mount.selector.is_empty() { "/".to_owned() } else { mount.selector.clone() };
            uses[number].get_or_insert_default().selections.push(Selection {
                path,
                follow_symlink: true,
                ..Selection::default()
            });
        } else {
            whole[number] = true;
        }
    }
    for (used, whole) in uses.iter_mut().zip(whole) {
        if let Some(used) = used {
            used.also_by_key = whole;
        }
    }
    uses
}

/// Returns the bytes that say what the op does. Proxies and hosts' addresses are the machine's business, not the result's.
#[must_use]
pub fn identity(op: &pb::ExecOp, content: bool) -> Vec<u8> {
    let mut op = op.clone();
    if let Some(meta) = &mut op.meta {
        meta.proxy_env = None;
        for host in &mut meta.extra_hosts {
            host.ip.clear();
        }
    }
    for mount in &mut op.mounts {
        if content
            && mount.dest != "/"
            && mount.mount_type == MountType::Bind as i32
            && (mount.readonly || mount.output == -1)
        {
            mount.selector.clear();
        }
        mount.result_id.clear();
    }
    op.encode_to_vec()
}

/// Runs the process and keeps what it wrote.
///
/// # Errors
/// The process can't be started or ends with a code that is not a valid one; a mount can't be made.
pub async fn execute(cx: &OpCx, vertex: &Vertex, op: &pb::ExecOp, inputs: Vec<Value>) -> Result<Outputs, BuildError> {
    let meta = op.meta.clone().unwrap_or_default();
    cx.entitlements.check_exec(op)?;
    let mut prepared = mounts::prepare(cx, vertex, op, inputs).await?;
    let env = environment(cx, op, &meta).await?;
    let spec = ContainerSpec {
        rootfs: prepared.rootfs.clone(),
        base_layer: Some(cx.daemon.settings.root.join(crate::start::BASE_LAYER)),
        readonly: prepared.readonly,
        owners: prepared.owners.take(),
        mounts: std::mem::take(&mut prepared.mounts),
        args: meta.args.clone(),
        env,
        cwd: meta.cwd.clone(),
        user: meta.user.clone(),
        hostname: (!meta.hostname.is_empty()).then(|| meta.hostname.clone()),
        network: network(cx, op),
        security: if op.security == pb::SecurityMode::Insecure as i32 { Security::Insecure } else { Security::Sandbox },
        rlimits: meta.ulimit.iter().map(rlimit).collect(),
        hosts: hosts(&meta)?,
        resolv_conf: crate::resolv::content(),
        shm_size: None,
        no_process_sandbox: cx.daemon.settings.no_process_sandbox,
        remove_mount_stubs_recursive: meta.remove_mount_stubs_recursive,
        no_new_privileges: false,
        oom_score_adj: None,
    };
    let outcome = run(cx, &spec).await;
    drop(spec);
    let code = match outcome {
        Ok(code) => code,
        Err(error) => {
            prepared.discard().await;
            return Err(error);
        }
    };
    let is_valid = if meta.valid_exit_codes.is_empty() { code == 0 } else { meta.valid_exit_codes.contains(&code) };
    if !is_valid {
        prepared.discard().await;
        return Err(failed(&meta, &format!("exit code: {code}"), code));
    }
    prepared.commit(&vertex.name).await
}

fn failed(meta: &pb::Meta, how: &str, code: i32) -> BuildError {
    let command = meta.args.join(" ");
    BuildError::other(format!("process {command:?} did not complete successfully: {how}"))
        .with(Detail::Exit(u32::try_from(code).unwrap_or(1)))
}

/// Runs the container and returns its exit code.
async fn run(cx: &OpCx, spec: &ContainerSpec) -> Result<i32, BuildError> {
    let io = |what: &str, e: std::io::Error| BuildError::other(format!("{what}: {e}"));
    let (stdout, stdout_end) = output::pipe().map_err(|e| io("pipe", e))?;
    let (stderr, stderr_end) = output::pipe().map_err(|e| io("pipe", e))?;
    let container = cx.daemon.fork.run(spec, None, stdout_end, stderr_end).map_err(|e| BuildError::from_chain(&e))?;
    let channel = container.into_channel();
    channel.set_nonblocking(true).map_err(|e| io("container", e))?;
    let mut channel = tokio::net::UnixStream::from_std(channel).map_err(|e| io("container", e))?;
    let pump = output::pump(cx.progress.clone(), cx.log_file.clone(), stdout, stderr);
    let mut pump = std::pin::pin!(pump);
    let mut pumped = false;
    let mut buffer = vec![0; EVENT_MAX];
    let code = loop {
        let length = tokio::select! {
            () = &mut pump, if !pumped => { pumped = true; continue }
            read = channel.read(&mut buffer) => read.map_err(|e| io("container", e))?,
            () = cx.cancel.cancelled() => return Err(BuildError::canceled()),
        };
        match Event::decode(&buffer[..length]).map_err(|e| io("container", e))? {
            Some(Event::Started { .. }) => {}
            Some(Event::Exited(status)) => break Ok(status.code),
            Some(Event::Failed { error, code }) => break Err((error, code)),
            None => return Err(BuildError::other("the sandbox ended unexpectedly: its server is gone")),
        }
    };
    if !pumped && tokio::time::timeout(REST, pump).await.is_err() {
        tracing::warn!("the output of a step stayed open after its end");
    }
    code.map_err(|(error, code)| failed(&pb::Meta { args: spec.args.clone(), ..pb::Meta::default() }, &error, code))
}

fn network(cx: &OpCx, op: &pb::ExecOp) -> Network {
    match pb::NetMode::try_from(op.network) {
        Ok(pb::NetMode::Host) => Network::Host,
        // Where there is no isolated network yet, the daemon's own is what rootless BuildKit gives as well.
        Ok(pb::NetMode::Unset) if cx.daemon.settings.network != "none" => Network::Host,
        _ => Network::None,
    }
}

fn rlimit(ulimit: &pb::Ulimit) -> Rlimit {
    // −1 is "no limit" on both sides.
    Rlimit { name: ulimit.name.clone(), soft: ulimit.soft.cast_unsigned(), hard: ulimit.hard.cast_unsigned() }
}

async fn environment(cx: &OpCx, op: &pb::ExecOp, meta: &pb::Meta) -> Result<Vec<String>, BuildError> {
    let mut env = meta.env.clone();
    if let Some(proxy) = &meta.proxy_env {
        let has = |env: &[String], name: &str| env.iter().any(|e| e.split('=').next() == Some(name));
        for (name, value) in [
            ("http_proxy", &proxy.http_proxy),
            ("https_proxy", &proxy.https_proxy),
            ("ftp_proxy", &proxy.ftp_proxy),
            ("no_proxy", &proxy.no_proxy),
            ("all_proxy", &proxy.all_proxy),
        ] {
            for name in [name.to_uppercase(), name.to_owned()] {
                if !value.is_empty() && !has(&env, &name) {
                    env.push(format!("{name}={value}"));
                }
            }
        }
    }
    for secret in &op.secretenv {
        let Some(data) = secret_data(cx, &secret.id, secret.optional).await? else { continue };
        let text = String::from_utf8(data).ok().filter(|t| !t.contains('\0')).ok_or_else(|| {
            BuildError::other(format!("secret {}: not a text that can be in an environment", secret.id))
        })?;
        env.retain(|e| e.split('=').next() != Some(&secret.name));
        env.push(format!("{}={text}", secret.name));
    }
    Ok(env)
}

/// Asks the clients for a secret. `None`: nobody has it, and it is optional.
pub(super) async fn secret_data(cx: &OpCx, id: &str, optional: bool) -> Result<Option<Vec<u8>>, BuildError> {
    let asked = cx.sessions.any(|session| async move {
        session.secret(id).await?.ok_or(bud_session::SessionError::Unsupported("secret of that id"))
    });
    match asked.await {
        Ok(data) => Ok(Some(data)),
        Err(error) if error.is_not_found() && optional => Ok(None),
        Err(error) if error.is_not_found() => Err(BuildError::other(format!("secret {id}: not found"))),
        Err(error) => Err(session_error(error).context(format!("secret {id}"))),
    }
}

/// Returns the content of `/etc/hosts`.
fn hosts(meta: &pb::Meta) -> Result<String, BuildError> {
    let name = if meta.hostname.is_empty() { "buildkitsandbox" } else { &meta.hostname };
    let mut text = format!("127.0.0.1\tlocalhost {name}\n::1\tlocalhost ip6-localhost ip6-loopback\n");
    for host in &meta.extra_hosts {
        let ip: IpAddr = host
            .ip
            .parse()
            .map_err(|_| BuildError::invalid(format!("extra host {}: {:?} is no IP address", host.host, host.ip)))?;
        if host.host.is_empty() || host.host.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(BuildError::invalid(format!("extra host {:?} is no host name", host.host)));
        }
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{ip}\t{}", host.host);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exec(mounts: Vec<pb::Mount>) -> pb::ExecOp {
        pb::ExecOp {
            meta: Some(pb::Meta { args: vec!["true".into()], cwd: "/".into(), ..Default::default() }),
            mounts,
            ..Default::default()
        }
    }

    fn mount(dest: &str, input: i64, output: i64) -> pb::Mount {
        pb::Mount { dest: dest.into(), input, output, ..Default::default() }
    }

    #[test]
    fn the_modes_of_the_sandbox_must_be_known() {
        let op = exec(vec![mount("/", 0, 0)]);
        assert!(validate(&op, 1).is_ok());
        for security in [2, -1, 99] {
            assert!(validate(&pb::ExecOp { security, ..op.clone() }, 1).is_err());
        }
        for network in [3, -1] {
            assert!(validate(&pb::ExecOp { network, ..op.clone() }, 1).is_err());
        }
    }

    #[test]
    fn mounts_are_checked() {
        for bad in [
            vec![],
            vec![mount("/", 1, 0)],
            vec![mount("/", 0, 0), mount("/", 0, 1)],
            vec![mount("/", 0, 0), mount("x", 0, -1)],
            vec![mount("/", 0, 0), mount("/x", 0, 0)],
            vec![mount("/", 0, 0), mount("/x", 1 << 31, -1)],
            vec![mount("/", 0, 0), mount("/x", 0, 1 << 40)],
            vec![mount("/", 0, 0), pb::Mount { mount_type: 9, ..mount("/x", -1, -1) }],
            vec![mount("/", 0, 0), pb::Mount { mount_type: MountType::Secret as i32, ..mount("/x", -1, -1) }],
            vec![pb::Mount { mount_type: MountType::Tmpfs as i32, ..mount("/", -1, -1) }],
        ] {
            assert!(validate(&exec(bad.clone()), 1).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_what_a_step_cannot_change_counts_by_content() {
        let op =
            exec(vec![mount("/", 0, 0), pb::Mount { selector: "/s".into(), ..mount("/x", 1, -1) }, mount("/y", 2, 1)]);
        let uses = by_content(&op, 3);
        assert!(uses[0].is_none() && uses[2].is_none());
        assert_eq!(uses[1].as_ref().unwrap().selections[0].path, "/s");
    }

    #[test]
    fn proxies_and_addresses_are_not_in_the_identity() {
        let mut op = exec(vec![mount("/", 0, 0)]);
        let before = identity(&op, false);
        let meta = op.meta.as_mut().unwrap();
        meta.proxy_env = Some(pb::ProxyEnv { http_proxy: "http://x".into(), ..Default::default() });
        assert_eq!(identity(&op, false), before);
        op.meta.as_mut().unwrap().args.push("x".into());
        assert_ne!(identity(&op, false), before);
    }

    #[test]
    fn a_host_name_cannot_add_lines() {
        let bad = pb::Meta {
            extra_hosts: vec![pb::HostIp { host: "a\n1.2.3.4 b".into(), ip: "127.0.0.1".into() }],
            ..Default::default()
        };
        assert!(hosts(&bad).is_err());
        let good = pb::Meta {
            extra_hosts: vec![pb::HostIp { host: "a".into(), ip: "10.0.0.1".into() }],
            ..Default::default()
        };
        assert!(hosts(&good).unwrap().ends_with("10.0.0.1\ta\n"));
    }
}
