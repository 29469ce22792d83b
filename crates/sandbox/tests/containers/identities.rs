//! Entering namespaces on machines that lack something, told by files that a test made.

use std::path::Path;
use std::process::ExitCode;

use bud_sandbox::userns::{HostRoot, Policy, enter};

use crate::User;
use crate::bed::As;

/// Gives policy and host root to the process that enters.
pub const VARIABLE: &str = "BUD_SANDBOX_ENTER";

pub struct Case {
    pub name: &'static str,
    policy: &'static str,
    /// Files of the machine; none means the real ones.
    files: &'static [(&'static str, &'static str)],
    /// What the answer has to hold.
    expected: &'static [&'static str],
}

const DEBIAN: (&str, &str) = ("etc/os-release", "ID=debian\n");
const PASSWD: (&str, &str) = ("etc/passwd", "root:x:0:0::/root:/bin/sh\n");

pub const CASES: &[Case] = &[
    Case {
        name: "subids",
        policy: "auto",
        files: &[],
        expected: &["Subids", "mapped: Some(65537)", "uid inside 0", "notices: []", "can become 65536: true"],
    },
    Case {
        name: "single",
        policy: "single",
        files: &[],
        expected: &["Single", "mapped: Some(1)", "uid inside 0", "notices: []", "can become 65536: false"],
    },
    Case {
        name: "nothing_there",
        policy: "auto",
        files: &[DEBIAN, PASSWD],
        expected: &[
            "Single",
            "sudo apt-get install uidmap",
            "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 bud-sub",
        ],
    },
    Case {
        name: "subids_demanded",
        policy: "subids",
        files: &[DEBIAN, PASSWD],
        expected: &["refused", "sudo apt-get install uidmap"],
    },
    Case { name: "root_demanded", policy: "root", files: &[], expected: &["refused", "needs root"] },
    Case {
        name: "no_namespaces_at_all",
        policy: "auto",
        files: &[("proc/sys/user/max_user_namespaces", "0\n")],
        expected: &["refused", "user.max_user_namespaces=15000"],
    },
    Case {
        name: "only_root_may",
        policy: "single",
        files: &[("proc/sys/kernel/unprivileged_userns_clone", "0\n")],
        expected: &["refused", "kernel.unprivileged_userns_clone=1"],
    },
    Case {
        name: "apparmor",
        policy: "auto",
        files: &[
            ("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n"),
            ("proc/self/attr/apparmor/current", "unconfined\n"),
        ],
        expected: &["refused", "/etc/apparmor.d/bud", "userns,"],
    },
];

/// Enters and tells what came of it.
pub fn run(what: &str) -> ExitCode {
    let (policy, root) = what.split_once(' ').expect("policy and root");
    let policy = match policy {
        "auto" => Policy::Auto,
        "subids" => Policy::Subids,
        "single" => Policy::Single,
        "root" => Policy::Root,
        other => panic!("unknown policy {other}"),
    };
    match enter(policy, &HostRoot(root.into())) {
        Ok(identity) => {
            println!("{identity:?}");
            println!("uid inside {}", rustix::process::getuid().as_raw());
            let file = std::env::temp_dir().join("owned");
            std::fs::write(&file, "").expect("make a file");
            println!("can become 65536: {}", std::os::unix::fs::chown(&file, Some(65536), None).is_ok());
        }
        Err(error) => println!("refused: {error}"),
    }
    ExitCode::SUCCESS
}

/// Runs a case as the user with sub-IDs.
pub fn check(case: &Case, users: &[User]) -> Result<(), String> {
    let Some(user) = users.iter().find(|user| user.identity == As::Subids) else {
        println!("    note: enter::{} needs a user with sub-IDs", case.name);
        return Ok(());
    };
    let root = user.directory.join("host");
    for (path, text) in case.files {
        let file = root.join(path);
        std::fs::create_dir_all(file.parent().expect("a parent")).expect("make a directory");
        std::fs::write(file, text).expect("write a file");
    }
    let host = if case.files.is_empty() { Path::new("/") } else { &root };
    let output = user.command().env(VARIABLE, format!("{} {}", case.policy, host.display())).output().expect("run");
    std::fs::remove_dir_all(&root).ok();
    std::fs::remove_file(user.directory.join("owned")).ok();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    match case.expected.iter().find(|expected| !text.contains(**expected)) {
        Some(missing) => Err(format!("{missing:?} is not in\n{text}")),
        None => Ok(()),
    }
}
