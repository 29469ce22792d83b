//! The same Dockerfiles give the same image with sub-IDs, with the own ID alone, and as root: config and file tree with owners.
//! They are what a real buildkitd made of them, too (`tests/builds/*/facts.json`).

use crate::compare::{differences, facts_of};
use crate::harness::{Home, User};
use std::path::Path;

/// Cases that are the same in every mode.
const SAME: &[&str] = &[
    "add-tgz-file",
    "args-scopes",
    "cap-xattr",
    "copy-chmod",
    "copy-chown",
    "copy-exclude",
    "copy-from-image",
    "copy-from-stage",
    "copy-into-existing",
    "copy-link",
    "copy-overwrites-types",
    "copy-parents",
    "copy-rename",
    "copy-through-symlink-dest",
    "default-env",
    "deletes",
    "dir-replaced",
    "dockerignore",
    "env-expansion",
    "expose-volume",
    "hardlinks",
    "heredoc-copy",
    "heredoc-run",
    "hostname-hosts",
    "modes",
    "mount-bind",
    "mount-cache-tmpfs",
    "mount-in-missing-dirs",
    "onbuild",
    "special-files-root",
    "stage-reuse",
    "target-middle",
    "touch-only-parent",
    "user-name",
    "user-numeric",
    "workdir-chain",
];

/// Builds the cases in one mode, by one daemon, and returns what differs from what buildkitd made of them.
fn wrong(user: User, mode: &str, shown: &str, cases: &[&str]) -> Vec<String> {
    let home = Home::new(user);
    let flag = format!("--userns={mode}");
    let builds = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/builds");
    let differs = |name: &&str| {
        let case = builds.join(name);
        let expected = crate::harness::json(&std::fs::read(case.join("facts.json")).expect("a case has facts"));
        let difference = facts_of(&home, &case, &[&flag]).map(|got| differences("", &expected, &got));
        difference.unwrap_or_else(Some).map(|text| format!("== {name}, {mode}\n{text}"))
    };
    let wrong = cases.iter().filter_map(differs).collect();
    home.bud(["daemon", "status"]).ok().says(&[shown]);
    wrong
}

#[test]
fn thirty_dockerfiles_give_the_same_image_in_every_mode() {
    assert!(SAME.len() >= 30, "{}", SAME.len());
    let root = User { name: "root", uid: 0, gid: 0 };
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let modes = [
            scope.spawn(|| wrong(User::sub(), "subids", "rootless, with sub-IDs", SAME)),
            scope.spawn(|| wrong(User::plain(), "single", "rootless, own ID alone", SAME)),
            scope.spawn(|| wrong(root, "root", "root", SAME)),
        ];
        modes.into_iter().flat_map(|mode| mode.join().expect("a mode's builds don't panic")).collect()
    });
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Every test that the table of `docs/rootless.md` names is there.
#[test]
fn the_table_of_modes_names_tests_that_exist() {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests: String = std::fs::read_dir(project.join("tests/e2e"))
        .expect("tests are there")
        .map(|entry| crate::harness::read(entry.expect("readable").path()))
        .collect();
    let table = crate::harness::read(project.join("docs/rootless.md"));
    let rows = table.lines().filter(|line| line.starts_with('|'));
    let words = rows.flat_map(|row| row.split('`').skip(1).step_by(2));
    // A test's name is a sentence.
    let is_name = |word: &&str| word.matches('_').count() > 1 && !word.contains(char::is_uppercase);
    let names: Vec<&str> = words.filter(is_name).collect();
    assert!(names.len() > 10, "{names:?}");
    let missing: Vec<_> = names.iter().filter(|name| !tests.contains(&format!("fn {name}()"))).collect();
    assert!(missing.is_empty(), "{missing:?}");
}
