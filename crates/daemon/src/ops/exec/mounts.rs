//! The mounts of a step: which directories are behind them, and what is kept of them.

use super::super::{OpCx, Outputs};
use super::{has_files, secret_data};
use crate::sessions::session_error;
use crate::solver::graph::Vertex;
use crate::value::{Stop, Value, blocking, file_error, store_error};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use bud_protocol::pb::MountType;
use bud_sandbox::{Mount, MountKind, Rootfs};
use bud_session::daemon::SshForward;
use bud_store::{CacheMount, Info, LayerDraft, RecordType, Sharing, Snapshot, Store, View};
use rustix::fs::OFlags;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

/// A step's mounts, made ready.
pub struct Prepared {
    /// The root.
    pub rootfs: Rootfs,
    /// The root is read-only.
    pub readonly: bool,
    /// Where owners are noted that files of the root can't have.
    pub owners: Option<bud_sandbox::Owners>,
    /// The others.
    pub mounts: Vec<Mount>,
    drafts: Vec<(LayerDraft, Option<usize>)>,
    outputs: Outputs,
    caches: Vec<CacheMount>,
    ssh: Vec<(SshForward, SocketDir)>,
    kept: Vec<Value>,
}

/// A directory with a socket; removed when dropped.
struct SocketDir(std::path::PathBuf);

impl Drop for SocketDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::debug!(path = %self.0.display(), %error, "a socket's directory can't be removed");
        }
    }
}

impl Prepared {
    /// Keeps what was written where it is an output.
    ///
    /// # Errors
    /// The disk is full.
    pub async fn commit(self, description: &str) -> Result<Outputs, BuildError> {
        let Self { drafts, mut outputs, caches, ssh, kept, .. } = self;
        drop((caches, ssh));
        let description = description.to_owned();
        blocking(move || {
            for (draft, output) in drafts {
                let Some(output) = output else { continue };
                let info = Info { description: description.clone(), record_type: RecordType::Regular };
                outputs[output] = Some(Value::kept(draft.commit(&info).map_err(store_error)?));
            }
            drop(kept);
            Ok(outputs)
        })
        .await
    }

    /// Throws everything away that was written.
    pub async fn discard(self) {
        // The removal of many files is nothing for this thread. A panic in it leaves rubbish for the next start.
        let removed = tokio::task::spawn_blocking(move || drop(self)).await;
        if let Err(error) = removed {
            tracing::warn!(%error, "a failed step's files can't be removed");
        }
    }
}

/// Makes the mounts ready.
///
/// # Errors
/// A secret or agent is missing, or the store fails.
pub async fn prepare(cx: &OpCx, vertex: &Vertex, op: &pb::ExecOp, inputs: Vec<Value>) -> Result<Prepared, BuildError> {
    let mut mounts: Vec<Option<MountKind>> = Vec::with_capacity(op.mounts.len());
    let mut ssh = Vec::new();
    for mount in &op.mounts {
        mounts.push(match MountType::try_from(mount.mount_type) {
            Ok(MountType::Secret) => {
                let options = mount.secret_opt.clone().unwrap_or_default();
                match secret_data(cx, &options.id, options.optional).await? {
                    Some(data) => {
                        Some(MountKind::File { data, uid: options.uid, gid: options.gid, mode: options.mode })
                    }
                    None => None,
                }
            }
            Ok(MountType::Ssh) => match agent(cx, &mount.ssh_opt.clone().unwrap_or_default()).await? {
                Some((kind, forward, dir)) => {
                    ssh.push((forward, dir));
                    Some(kind)
                }
                None => None,
            },
            _ => None,
        });
    }
    let work = Work {
        store: cx.daemon.store.clone(),
        op: op.clone(),
        base_layer: cx.daemon.settings.root.join(crate::start::BASE_LAYER),
        clear_caches: vertex.ignore_cache,
        outputs: vec![None; vertex.outputs()],
    };
    let cancel = cx.cancel.clone();
    blocking(move || work.prepare(inputs, mounts, ssh, &Stop(&cancel))).await
}

async fn agent(cx: &OpCx, options: &pb::SshOpt) -> Result<Option<(MountKind, SshForward, SocketDir)>, BuildError> {
    let id = if options.id.is_empty() { "default" } else { &options.id };
    let asked = cx.sessions.any(|session| async move { session.check_ssh(id).await.map(|()| session) });
    let session = match asked.await {
        Ok(session) => session,
        Err(error) if error.is_not_found() && options.optional => return Ok(None),
        Err(error) => return Err(session_error(error).context(format!("ssh agent {id:?}"))),
    };
    let io = |e: std::io::Error| BuildError::other(format!("ssh agent {id:?}: {e}"));
    let name = bud_image::Digest::of(format!("{}:{id}:{:?}", session.id(), std::time::Instant::now())).hex();
    let dir = cx.daemon.settings.runtime_dir.join(&name[..16]);
    std::fs::create_dir(&dir).map_err(io)?;
    let dir = SocketDir(dir);
    std::fs::set_permissions(&dir.0, std::fs::Permissions::from_mode(0o700)).map_err(io)?;
    let source = dir.0.join("agent");
    let listener = tokio::net::UnixListener::bind(&source).map_err(io)?;
    let forward = session.forward_ssh(id, listener).map_err(session_error)?;
    let kind = MountKind::Socket { source, uid: options.uid, gid: options.gid, mode: options.mode };
    Ok(Some((kind, forward, dir)))
}

struct Work {
    store: Arc<Store>,
    op: pb::ExecOp,
    base_layer: std::path::PathBuf,
    clear_caches: bool,
    outputs: Outputs,
}

impl Work {
    fn prepare(
        self,
        inputs: Vec<Value>,
        made: Vec<Option<MountKind>>,
        ssh: Vec<(SshForward, SocketDir)>,
        stop: &Stop<'_>,
    ) -> Result<Prepared, BuildError> {
        let mut prepared = Prepared {
            rootfs: Rootfs::default(),
            readonly: false,
            owners: None,
            mounts: Vec::new(),
            drafts: Vec::new(),
            outputs: self.outputs.clone(),
            caches: Vec::new(),
            ssh,
            kept: Vec::new(),
        };
        // Each input once: a local directory is copied in, and what an input had is a result too if nothing can be written.
        let mut snapshots: Vec<Option<Snapshot>> = vec![None; inputs.len()];
        for (mount, kind) in self.op.mounts.iter().zip(made) {
            let input = match usize::try_from(mount.input) {
                Ok(n) if has_files(mount) => {
                    if snapshots[n].is_none() {
                        let (snapshot, pin) = inputs[n].snapshot(&self.store, stop).map_err(file_error)?;
                        prepared.kept.push(Value::Stored(snapshot.clone(), pin));
                        snapshots[n] = Some(snapshot);
                    }
                    snapshots[n].clone().unwrap_or_else(Snapshot::scratch)
                }
                _ => Snapshot::scratch(),
            };
            let kind = match MountType::try_from(mount.mount_type) {
                Ok(MountType::Secret | MountType::Ssh) => kind,
                Ok(MountType::Tmpfs) => {
                    let size = mount.tmpfs_opt.as_ref().and_then(|o| u64::try_from(o.size).ok()).filter(|s| *s > 0);
                    Some(MountKind::Tmpfs { size, mode: 0o1777 })
                }
                Ok(MountType::Cache) => Some(self.cache(mount, &input, &mut prepared, stop)?),
                _ => self.bind(mount, &input, &mut prepared, stop)?,
            };
            if let Some(kind) = kind {
                prepared.mounts.push(Mount { dest: mount.dest.clone(), kind });
            }
        }
        Ok(prepared)
    }

    /// Returns nothing for the root.
    fn bind(
        &self,
        mount: &pb::Mount,
        input: &Snapshot,
        prepared: &mut Prepared,
        stop: &Stop<'_>,
    ) -> Result<Option<MountKind>, BuildError> {
        let base = (mount.dest == "/").then_some(self.base_layer.as_path());
        let output = usize::try_from(mount.output).ok();
        let view = if mount.readonly {
            if let Some(output) = output {
                prepared.outputs[output] = Some(Value::stored(&self.store, input.clone()).map_err(store_error)?);
            }
            if mount.dest == "/" {
                // The sandbox needs places for its own mounts before it makes the root read-only; they are thrown away.
                let draft = self.store.draft(input).map_err(store_error)?;
                let view = draft.writable(base, stop).map_err(file_error)?;
                prepared.drafts.push((draft, None));
                view
            } else {
                self.store.view(input).map_err(store_error)?
            }
        } else {
            let draft = self.store.draft(input).map_err(store_error)?;
            let view = draft.writable(base, stop).map_err(file_error)?;
            if mount.dest == "/" {
                prepared.owners = Some(draft.owners().map_err(store_error)?);
            }
            prepared.drafts.push((draft, output));
            view
        };
        if mount.dest == "/" {
            if !matches!(mount.selector.as_str(), "" | "/") {
                return Err(BuildError::invalid("the root mount can't have a selector"));
            }
            prepared.readonly = mount.readonly;
            prepared.rootfs = match view {
                View::Overlay(overlay) => Rootfs::Overlay(overlay),
                View::Directory(path) => Rootfs::Dir(path),
            };
            return Ok(None);
        }
        let (selector, readonly) = (mount.selector.clone(), mount.readonly);
        Ok(Some(match view {
            View::Overlay(overlay) => MountKind::Overlay { overlay, selector, readonly },
            View::Directory(source) => MountKind::Bind { source, selector, readonly },
        }))
    }

    fn cache(
        &self,
        mount: &pb::Mount,
        input: &Snapshot,
        prepared: &mut Prepared,
        stop: &Stop<'_>,
    ) -> Result<MountKind, BuildError> {
        let options = mount.cache_opt.clone().unwrap_or_default();
        let sharing = match pb::CacheSharingOpt::try_from(options.sharing) {
            Ok(pb::CacheSharingOpt::Private) => Sharing::Private,
            Ok(pb::CacheSharingOpt::Locked) => Sharing::Locked,
            _ => Sharing::Shared,
        };
        let id = cache_id(&options.id, mount, input);
        if self.clear_caches {
            self.store.clear_cache_mount(&id).map_err(store_error)?;
        }
        let cache = self.store.cache_mount(&id, sharing, stop).map_err(store_error)?;
        let source = cache.path();
        if cache.fresh && !input.is_scratch() {
            // What it starts with; front ends say so as well what its owner and mode are to be.
            let tree = self.store.tree(input).map_err(store_error)?;
            let io = |e: std::io::Error| BuildError::other(format!("cache mount {}: {e}", mount.dest));
            let like =
                tree.open(mount.selector.as_bytes(), OFlags::PATH | OFlags::DIRECTORY).map_err(|e| io(e.into()))?;
            let stat = rustix::fs::fstat(&like).map_err(|e| io(e.into()))?;
            std::os::unix::fs::chown(&source, Some(stat.st_uid), Some(stat.st_gid)).map_err(io)?;
            std::fs::set_permissions(&source, std::fs::Permissions::from_mode(stat.st_mode & 0o7777)).map_err(io)?;
            let path = if mount.selector.is_empty() { "/" } else { &mount.selector };
            cache.seed(bud_store::Source::Tree(&tree), path, stop).map_err(file_error)?;
        }
        prepared.caches.push(cache);
        Ok(MountKind::Bind { source, selector: String::new(), readonly: mount.readonly })
    }
}

/// A cache with an input is another one for each input.
fn cache_id(id: &str, mount: &pb::Mount, input: &Snapshot) -> String {
    if mount.input < 0 {
        return id.to_owned();
    }
    format!("{id}:{input:?}")
}
