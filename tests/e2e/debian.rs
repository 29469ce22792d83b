//! Packages of Debian's next release, unpacked beside the system: nothing of them is installed.

use crate::harness::{run, scratch};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

const SOURCE: &str = "Types: deb\nURIs: http://deb.debian.org/debian\nSuites: trixie\nComponents: main\n\
     Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n";

/// Returns the directory with a package's files; they are kept for the next run of the tests.
pub fn trixie(package: &str) -> PathBuf {
    static DONE: Mutex<Option<HashSet<String>>> = Mutex::new(None);
    let mut done = DONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("trixie").join(package);
    if done.get_or_insert_default().insert(package.to_owned()) && !kept.exists() {
        let apt = apt();
        let dir = apt.join(package);
        std::fs::create_dir_all(&dir).unwrap();
        apt_get(apt, &dir, &["download", "-q", package]);
        let files = std::fs::read_dir(&dir).unwrap().flatten().map(|entry| entry.path());
        let deb = files.into_iter().find(|path| path.extension().is_some_and(|e| e == "deb")).expect("a package came");
        let mut unpack = Command::new("dpkg");
        unpack.arg("-x").arg(deb).arg(dir.join("x"));
        run(piped(unpack)).ok();
        std::fs::create_dir_all(kept.parent().unwrap()).unwrap();
        // What is there under its name is whole.
        let beside = kept.with_extension(std::process::id().to_string());
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(dir.join("x")).arg(&beside);
        run(piped(copy)).ok();
        std::fs::rename(&beside, &kept).unwrap();
    }
    kept
}

/// A package manager's state of its own, that knows the packages of the release.
fn apt() -> &'static Path {
    static APT: OnceLock<PathBuf> = OnceLock::new();
    APT.get_or_init(|| {
        let dir = scratch("trixie");
        for sub in ["state/lists/partial", "cache/archives/partial"] {
            std::fs::create_dir_all(dir.join(sub)).unwrap();
        }
        std::fs::write(dir.join("trixie.sources"), SOURCE).unwrap();
        apt_get(&dir, &dir, &["update", "-q"]);
        dir
    })
}

fn apt_get(state: &Path, here: &Path, args: &[&str]) {
    let mut command = Command::new("apt-get");
    command.current_dir(here);
    command.args(["-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourceparts=/dev/null"]);
    command.args(["-o", "Dir::State::status=/var/lib/dpkg/status"]);
    for (setting, path) in
        [("Dir::Etc::sourcelist", "trixie.sources"), ("Dir::State", "state"), ("Dir::Cache", "cache")]
    {
        command.arg("-o").arg(format!("{setting}={}", state.join(path).display()));
    }
    command.args(args);
    run(piped(command)).ok();
}

fn piped(mut command: Command) -> Command {
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
