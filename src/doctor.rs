//! `bud doctor`: whether this machine can build, found out by trying, with the command that mends what is missing.

mod images;
mod kernel;
mod network;
mod places;
mod render;
mod storage;
mod users;
mod verdict;

use crate::cli::daemon::Userns;
use crate::cli::manage::DoctorArgs;
use crate::connect::places::Surroundings;
use crate::progress::Style;
use crate::terminal;
use anyhow::{Context as _, Result};
use bud_sandbox::probe::{self, Trial};
use bud_sandbox::userns::{self, HostRoot, Survey};
use serde::{Deserialize, Serialize};
use std::io::{IsTerminal as _, Read as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use verdict::verdict;

/// Settings longer than this aren't read.
const LIMIT: u64 = 1 << 20;

/// How a check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Status {
    /// As it should be.
    Ok,
    /// Builds work, with something lost.
    Degraded,
    /// Builds don't work.
    Broken,
}

/// One line of the report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Check {
    group: String,
    name: String,
    status: Status,
    /// What was found.
    detail: String,
    /// What is lost, if it is degraded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lost: Option<String>,
    /// What to type or do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    fix: Option<String>,
}

impl Check {
    fn ok(name: &str, detail: impl Into<String>) -> Self {
        let (name, detail) = (name.to_owned(), detail.into());
        Self { group: String::new(), name, status: Status::Ok, detail, lost: None, fix: None }
    }

    fn degraded(name: &str, detail: impl Into<String>, lost: &str, fix: impl Into<String>) -> Self {
        let (lost, fix) = (Some(lost.to_owned()), Some(fix.into()));
        Self { status: Status::Degraded, lost, fix, ..Self::ok(name, detail) }
    }

    fn broken(name: &str, detail: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { status: Status::Broken, fix: Some(fix.into()), ..Self::ok(name, detail) }
    }
}

/// The whole report, as `--json` prints it.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    /// A build would work.
    ok: bool,
    /// Which users there would be in it.
    users: String,
    checks: Vec<Check>,
}

/// What the checks look at.
struct Machine {
    /// Where settings are read.
    host: HostRoot,
    around: Surroundings,
    survey: Survey,
    trial: Trial,
    /// The daemon's state directory, which may not be there yet.
    state: PathBuf,
    /// The directory on the same file system that things were tried in; or why none.
    tried: Result<PathBuf, String>,
    userns: Userns,
    /// Environment variables.
    environment: Vec<(String, String)>,
}

impl Machine {
    /// Reads a small file of settings.
    fn read(&self, path: &str) -> Option<String> {
        let mut bytes = Vec::new();
        std::fs::File::open(self.host.0.join(path)).ok()?.take(LIMIT).read_to_end(&mut bytes).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    fn variable(&self, name: &str) -> Option<&str> {
        let found = self.environment.iter().find(|(key, value)| key == name && !value.is_empty());
        found.map(|(_, value)| value.as_str())
    }

    fn is_root(&self) -> bool {
        self.around.uid == 0
    }
}

/// Runs `bud doctor`. To be called while the process has one thread.
pub fn run(args: &DoctorArgs) -> Result<ExitCode> {
    let around = Surroundings::current();
    let state = match &args.root {
        Some(root) => std::path::absolute(root).context("--root")?,
        None => around.state_root()?,
    };
    let host = HostRoot::default();
    let scratch = Scratch::make(&state);
    let trial = match &scratch {
        Ok(scratch) => probe::try_out(args.userns.policy(), &host, &scratch.0).context("cannot try out namespaces")?,
        Err(_) => Trial::default(),
    };
    let machine = Machine {
        survey: userns::survey(&host),
        host,
        around,
        trial,
        state,
        tried: scratch.as_ref().map(|scratch| scratch.0.clone()).map_err(|error| format!("{error:#}")),
        userns: args.userns,
        environment: std::env::vars_os()
            .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
    };
    let mut checks = Vec::new();
    let mut add = |group: &str, found: Vec<Check>| {
        checks.extend(found.into_iter().map(|check| Check { group: group.to_owned(), ..check }));
    };
    add("Kernel", kernel::checks(&machine));
    add("Users", users::checks(&machine));
    add("Storage", storage::checks(&machine));
    add("Places and limits", places::checks(&machine));
    add("Network", network::checks(&machine));
    add("Images", images::checks(&machine)?);
    drop(scratch);
    let ok = checks.iter().all(|check| check.status != Status::Broken);
    let report = Report { ok, users: machine.trial.mode, checks };
    if args.json {
        let text = serde_json::to_string_pretty(&report).context("cannot write the report")?;
        terminal::print(&format!("{text}\n"))?;
    } else {
        let colors = std::io::stdout().is_terminal()
            && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        terminal::print(&render::text(&report, Style { colors, unicode: true }))?;
    }
    Ok(if ok { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// An empty directory on the file system of the state, removed when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn make(state: &Path) -> Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let there = state.ancestors().find(|path| path.is_dir()).unwrap_or(Path::new("/"));
        let path = there.join(format!(".bud-doctor-{}", std::process::id()));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .with_context(|| format!("nothing can be written in {}", there.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left of it is empty directories of our own.
        _ = std::fs::remove_dir_all(&self.0);
    }
}

#[cfg(test)]
mod testing {
    use super::*;
    use bud_sandbox::probe::Outcome;
    use bud_sandbox::userns::Distribution;

    /// A machine on which all is well, whose settings are below `root`.
    pub(super) fn machine(root: &Path) -> Machine {
        let works = Outcome::Works;
        Machine {
            host: HostRoot(root.to_owned()),
            around: Surroundings {
                uid: rustix::process::getuid().as_raw(),
                runtime_dir: None,
                data_home: None,
                config_home: None,
                home: Some(root.join("home")),
                system: root.to_owned(),
            },
            survey: Survey {
                user: "maria".into(),
                distribution: Distribution::Debian,
                forbidden: None,
                tools: [("newuidmap", Ok("/usr/bin/newuidmap".into())), ("newgidmap", Ok("/usr/bin/newgidmap".into()))],
                sub_ids: [("/etc/subuid", 65536), ("/etc/subgid", 65536)],
                lacks: vec![],
            },
            trial: Trial {
                namespaces: works.clone(),
                mode: "rootless, with sub-IDs".into(),
                notices: vec![],
                step_namespaces: vec![("pid".into(), works.clone())],
                proc: works.clone(),
                overlay: works.clone(),
                xattrs: works.clone(),
                exec: works,
            },
            state: root.join("state"),
            tried: Ok(root.to_owned()),
            userns: Userns::Auto,
            environment: vec![],
        }
    }

    pub(super) fn write(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, text).unwrap();
    }

    #[track_caller]
    pub(super) fn named<'a>(checks: &'a [Check], name: &str) -> &'a Check {
        checks.iter().find(|check| check.name == name).unwrap_or_else(|| panic!("no {name} in {checks:?}"))
    }
}
