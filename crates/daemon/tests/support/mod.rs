//! A daemon without sockets, in this process.

use bud_daemon::build::Builds;
use bud_daemon::config::Config;
use bud_daemon::daemon::{Daemon, Settings};
use bud_daemon::descriptors::Descriptors;
use bud_daemon::history::History;
use bud_daemon::life::Life;
use bud_daemon::solver::flight::Flights;
use bud_image::Platform;
use bud_sandbox::server::ForkServer;
use bud_session::SessionRegistry;
use bud_store::Store;
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

/// Makes a daemon whose state is in `root`.
pub fn daemon(root: &Path) -> Arc<Daemon> {
    let store = Store::open(root, bud_store::Options::default()).expect("open the store");
    std::fs::create_dir_all(root.join("run")).unwrap();
    Arc::new(Daemon {
        settings: Settings {
            program: bud_daemon::Program::running().unwrap(),
            activated: false,
            root: root.to_owned(),
            runtime_dir: root.join("run"),
            address: String::new(),
            version: "0".into(),
            platforms: vec![Platform::host()],
            labels: Vec::new(),
            entitlements: vec!["network.host".into()],
            network: "auto".into(),
            no_process_sandbox: false,
            mode: String::new(),
            snapshotter: "overlayfs".into(),
            notices: Vec::new(),
            started: SystemTime::now(),
            worker_id: "w".into(),
            gc_policies: Vec::new(),
        },
        config: Config::default(),
        history: History::new(&store).unwrap(),
        store,
        fork: ForkServer::start().expect("start the fork server (needs root or a user namespace)"),
        sessions: Arc::new(SessionRegistry::new()),
        descriptors: Descriptors::default(),
        builds: Builds::default(),
        flights: Flights::default(),
        life: Arc::new(Life::new(None)),
        shared: bud_daemon::source::Shared::default(),
    })
}
