//! The worker: there is one, this machine.

use crate::daemon::Daemon;
use crate::gateway::server::platforms;
use bud_protocol::types::{BuildkitVersion, WorkerRecord};
use std::collections::BTreeMap;

const LABEL: &str = "org.mobyproject.buildkit.worker.";
/// What clients compare features with.
const PACKAGE: &str = "build-using-dockerfile";

/// Returns what is told of this program.
#[must_use]
pub fn version(daemon: &Daemon) -> BuildkitVersion {
    BuildkitVersion {
        package: PACKAGE.into(),
        version: format!("v{}+bud", daemon.settings.version),
        revision: String::new(),
        dockerfile_version: String::new(),
    }
}

/// Returns the worker's record; its default platform is the first.
#[must_use]
pub fn record(daemon: &Daemon) -> WorkerRecord {
    let settings = &daemon.settings;
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mode = if settings.no_process_sandbox { "no-sandbox" } else { "sandbox" };
    let network = if settings.network == "none" { "none" } else { "host" };
    let mut labels: BTreeMap<String, String> = [
        ("executor", "oci"),
        ("snapshotter", settings.snapshotter.as_str()),
        ("hostname", hostname.as_str()),
        ("network", network),
        ("oci.process-mode", mode),
        ("selinux.enabled", "false"),
        ("apparmor.profile", ""),
    ]
    .into_iter()
    .map(|(name, value)| (format!("{LABEL}{name}"), value.to_owned()))
    .collect();
    labels.extend(settings.labels.iter().cloned());
    WorkerRecord {
        id: settings.worker_id.clone(),
        labels: labels.into_iter().collect(),
        platforms: platforms(daemon),
        gc_policy: crate::gc::policies(daemon),
        buildkit_version: Some(version(daemon)),
        cdi_devices: Vec::new(),
    }
}
