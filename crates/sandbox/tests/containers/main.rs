//! Real containers: every case runs as each identity that a daemon can have.
//!
//! A case enters namespaces, which takes a process with one thread, so each runs in a process of its own: this program
//! again. As root the cases run as root, as a user with sub-IDs and as a user without (`bud-sub` and `bud-plain`, made if
//! they are missing); as an ordinary user only as that user.

mod attacks;
mod bed;
mod identities;
mod lifecycle;
mod mounts;
mod overlays;
mod probe;
mod programs;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use bed::{As, Bed};

/// Names the case and the identity to the process that runs it.
const CASE: &str = "BUD_SANDBOX_CASE";

type Case = (&'static str, fn(&mut Bed));

fn cases() -> Vec<Case> {
    [programs::CASES, lifecycle::CASES, mounts::CASES, attacks::CASES, overlays::CASES].concat()
}

fn main() -> ExitCode {
    if let Some(what) = probe::asked() {
        return probe::run(&what);
    }
    if let Ok(what) = std::env::var(identities::VARIABLE) {
        return identities::run(&what);
    }
    if let Ok(case) = std::env::var(CASE) {
        return run_case(&case);
    }
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let filters: Vec<&String> = arguments.iter().filter(|argument| !argument.starts_with('-')).collect();
    let exact = arguments.iter().any(|argument| argument == "--exact");
    let wanted = |name: &str| {
        filters.is_empty()
            || filters.iter().any(|filter| if exact { name == **filter } else { name.contains(filter.as_str()) })
    };
    let mut names = Vec::new();
    let users = users();
    for user in &users {
        for (case, _) in cases() {
            let name = format!("{}::{case}", user.identity.name());
            if wanted(&name) {
                names.push((name, user, case));
            }
        }
    }
    if arguments.iter().any(|argument| argument == "--list") {
        let entering = identities::CASES.iter().map(|case| format!("enter::{}", case.name));
        for name in names.into_iter().map(|(name, ..)| name).chain(entering) {
            println!("{name}: test");
        }
        return ExitCode::SUCCESS;
    }
    let entering: Vec<&identities::Case> =
        identities::CASES.iter().filter(|case| wanted(&format!("enter::{}", case.name))).collect();
    let total = names.len() + entering.len();
    println!("\nrunning {total} tests");
    let mut failed = Vec::new();
    for case in entering {
        let name = format!("enter::{}", case.name);
        match identities::check(case, &users) {
            Ok(()) => println!("test {name} ... ok"),
            Err(text) => {
                println!("test {name} ... FAILED");
                failed.push((name, text));
            }
        }
    }
    for (name, user, case) in names {
        let log = user.directory.join("log");
        let file = std::fs::File::create(&log).expect("make a log");
        let mut command = user.command();
        command
            .env(CASE, format!("{} {case}", user.identity.name()))
            .stdout(file.try_clone().expect("a second descriptor"))
            .stderr(file);
        let status = wait(command.spawn().expect("start a case"));
        let text = String::from_utf8_lossy(&std::fs::read(&log).expect("read the log")).into_owned();
        if status == "exit status: 0" {
            println!("test {name} ... ok");
            for line in text.lines().filter(|line| line.starts_with("note:")) {
                println!("    {line}");
            }
        } else {
            println!("test {name} ... FAILED ({status})");
            failed.push((name, text));
        }
        std::io::stdout().flush().ok();
    }
    for user in &users {
        std::fs::remove_dir_all(&user.directory).ok();
    }
    for (name, text) in &failed {
        println!("\n---- {name} ----\n{text}");
    }
    println!(
        "\ntest result: {}. {} passed; {} failed\n",
        if failed.is_empty() { "ok" } else { "FAILED" },
        total - failed.len(),
        failed.len()
    );
    if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Waits for a case; one that hangs is killed. Its containers die with it.
fn wait(mut child: std::process::Child) -> String {
    let begun = std::time::Instant::now();
    loop {
        if let Some(status) = child.try_wait().expect("wait for a case") {
            return status.to_string();
        }
        if begun.elapsed().as_secs() > 60 {
            child.kill().expect("kill a case");
            child.wait().expect("wait for a case");
            return "killed after a minute".into();
        }
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
}

fn run_case(named: &str) -> ExitCode {
    let (identity, case) = named.split_once(' ').expect("identity and case");
    let (_, run) = cases().into_iter().find(|(name, _)| *name == case).expect("a known case");
    let identity = [As::Root, As::Subids, As::Single]
        .into_iter()
        .find(|known| known.name() == identity)
        .expect("a known identity");
    run(&mut Bed::enter(identity));
    ExitCode::SUCCESS
}

/// Somebody to run cases as.
struct User {
    identity: As,
    ids: Option<(u32, u32)>,
    name: String,
    /// Its own directory, with a copy of this program that belongs to it, as an installed program does.
    directory: PathBuf,
    /// What changed it must be found out about.
    program: PathBuf,
}

impl User {
    fn new(identity: As, ids: Option<(u32, u32)>, name: &str) -> User {
        let directory = std::env::temp_dir().join(format!("bud-sandbox-{}-{}", std::process::id(), identity.name()));
        std::fs::create_dir(&directory).expect("make a directory");
        std::fs::set_permissions(&directory, std::fs::Permissions::from_mode(0o755)).expect("open it for all");
        let program = directory.join("containers");
        std::fs::copy("/proc/self/exe", &program).expect("copy this program");
        for path in [&program, &directory] {
            if let Some((uid, gid)) = ids {
                std::os::unix::fs::chown(path, Some(uid), Some(gid)).expect("give it to the user");
            }
        }
        User { identity, ids, name: name.to_owned(), directory, program }
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("TMPDIR", &self.directory)
            .env("USER", &self.name);
        command.current_dir("/").stdin(Stdio::null());
        if let Some((uid, gid)) = self.ids {
            command.uid(uid).gid(gid);
        }
        command
    }
}

fn users() -> Vec<User> {
    let number = |flag: &str, name: &str| -> Option<u32> {
        let output = Command::new("id").args([flag, name]).stderr(Stdio::null()).output().ok()?;
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: the cases run as this user alone");
        let name = std::env::var("USER").unwrap_or_default();
        let has_subids = std::fs::read_to_string("/etc/subuid")
            .is_ok_and(|text| text.lines().any(|line| line.starts_with(&format!("{name}:"))));
        return vec![User::new(if has_subids { As::Subids } else { As::Single }, None, &name)];
    }
    let mut users = vec![User::new(As::Root, None, "root")];
    for (name, identity) in [("bud-sub", As::Subids), ("bud-plain", As::Single)] {
        if number("-u", name).is_none() {
            let made = Command::new("useradd").args(["--create-home", name]).status().expect("useradd");
            assert!(made.success(), "can't make the user {name}");
            if identity == As::Single {
                for file in ["/etc/subuid", "/etc/subgid"] {
                    forget(Path::new(file), name);
                }
            }
        }
        let ids = (number("-u", name).expect("uid"), number("-g", name).expect("gid"));
        users.push(User::new(identity, Some(ids), name));
    }
    users
}

/// Takes the ranges that useradd gave to a user away again.
fn forget(file: &Path, name: &str) {
    let Ok(text) = std::fs::read_to_string(file) else { return };
    let kept: String =
        text.lines().filter(|line| !line.starts_with(&format!("{name}:"))).map(|line| format!("{line}\n")).collect();
    std::fs::write(file, kept).expect("write sub-IDs");
}
