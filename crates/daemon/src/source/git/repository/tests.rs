//! Against a real git daemon on loopback.

use super::*;
use crate::source::git::command::Log;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// A directory of repositories, served over `git://`.
struct Server {
    base: tempfile::TempDir,
    daemon: Child,
    port: u16,
}

impl Drop for Server {
    fn drop(&mut self) {
        // `git daemon` is two processes.
        let group = rustix::process::Pid::from_child(&self.daemon);
        let _ = rustix::process::kill_process_group(group, rustix::process::Signal::KILL);
        let _ = self.daemon.wait();
    }
}

/// Runs git as the owner of a repository would.
fn git_in(dir: &Path, args: &[&str]) -> String {
    let output = Command::new("git")
        .args(["-c", "protocol.file.allow=always", "-c", "user.name=t", "-c", "user.email=t@t"])
        .args(args)
        .current_dir(dir)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_COMMITTER_DATE", "1700000000 +0000")
        .env("GIT_AUTHOR_DATE", "1700000000 +0000")
        .output()
        .unwrap();
    assert!(output.status.success(), "git {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

impl Server {
    fn new() -> Self {
        let base = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let daemon = Command::new("git")
            .args(["daemon", "--listen=127.0.0.1", "--reuseaddr", "--export-all"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", base.path().display()))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group_of_its_own()
            .spawn()
            .unwrap();
        let server = Self { base, daemon, port };
        for _ in 0..200 {
            if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
                return server;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        panic!("git daemon does not listen");
    }

    /// Makes a repository with one commit of these files; returns the commit.
    fn repository(&self, name: &str, files: &[(&str, &str)]) -> String {
        let dir = self.base.path().join(name);
        std::fs::create_dir_all(&dir).unwrap();
        git_in(&dir, &["init", "-q", "-b", "main"]);
        for (path, text) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        git_in(&dir, &["add", "-A"]);
        git_in(&dir, &["commit", "-q", "--allow-empty", "-m", "one"]);
        git_in(&dir, &["rev-parse", "HEAD"])
    }

    fn remote(&self, name: &str) -> Remote {
        Remote::parse(&format!("git://127.0.0.1:{}/{name}", self.port)).unwrap()
    }
}

trait OwnGroup {
    fn process_group_of_its_own(&mut self) -> &mut Self;
}

impl OwnGroup for Command {
    fn process_group_of_its_own(&mut self) -> &mut Self {
        std::os::unix::process::CommandExt::process_group(self, 0)
    }
}

/// The daemon's side.
struct Ours {
    dir: tempfile::TempDir,
    variables: Vec<(&'static str, OsString)>,
    said: Arc<Mutex<Vec<u8>>>,
}

impl Ours {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), variables: Vec::new(), said: Arc::default() }
    }

    fn git(&self) -> Git {
        let said = self.said.clone();
        let log: Log = Arc::new(move |bytes| said.lock().unwrap().extend_from_slice(bytes));
        Git {
            dir: self.dir.path().to_owned(),
            config: Vec::new(),
            protocols: REMOTE,
            variables: self.variables.clone(),
            ssh_socket: None,
            known_hosts: None,
            log,
        }
    }

    async fn check_out(
        &self,
        remote: &Remote,
        reference: &str,
        change: impl FnOnce(&mut Checkout),
    ) -> Result<PathBuf, GitError> {
        let git = self.git();
        let found = if is_commit(reference) {
            Resolved { reference: reference.to_owned(), object: reference.to_owned(), commit: None }
        } else {
            resolve(&git, remote, reference).await?
        };
        let bare = self.dir.path().join("bare");
        fetch(&git, &bare, remote, &found.reference, &found.object).await?;
        let mut what = Checkout {
            reference: found.reference,
            object: found.object,
            subdirectory: String::new(),
            keep_git_dir: false,
            skip_submodules: false,
            commit_time: false,
        };
        change(&mut what);
        let place = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let (dest, work) = (place.join("dest"), place.join("work"));
        std::fs::create_dir(&dest).unwrap();
        std::fs::create_dir(&work).unwrap();
        check_out(&git, &bare, remote, &what, &dest, &work).await?;
        Ok(dest)
    }
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn branches_tags_and_commits_are_checked_out() {
    let (server, ours) = (Server::new(), Ours::new());
    let first = server.repository("r", &[("a", "1"), ("bin/x", "#!")]);
    let dir = server.base.path().join("r");
    std::fs::set_permissions(dir.join("bin/x"), PermissionsExt::from_mode(0o755)).unwrap();
    git_in(&dir, &["tag", "-a", "v1", "-m", "v1"]);
    std::fs::write(dir.join("a"), "2").unwrap();
    git_in(&dir, &["commit", "-q", "-a", "-m", "two"]);
    git_in(&dir, &["branch", "side/x"]);
    let remote = server.remote("r");
    let read = |dir: PathBuf| std::fs::read_to_string(dir.join("a")).unwrap();

    let tag = resolve(&ours.git(), &remote, "v1").await.unwrap();
    assert_eq!((tag.reference.as_str(), tag.commit.as_deref()), ("refs/tags/v1", Some(first.as_str())));
    assert_eq!(resolve(&ours.git(), &remote, "").await.unwrap().reference, "refs/heads/main");
    assert_eq!(read(ours.check_out(&remote, "", |_| {}).await.unwrap()), "2");
    assert_eq!(read(ours.check_out(&remote, "v1", |_| {}).await.unwrap()), "1");
    assert_eq!(read(ours.check_out(&remote, "side/x", |_| {}).await.unwrap()), "2");
    let missing = ours.check_out(&remote, "nope", |_| {}).await.unwrap_err();
    assert!(missing.to_string().contains("does not have \"nope\""), "{missing}");

    // A commit that nothing names any more but a branch's past, in a fresh repository.
    let fresh = Ours::new();
    let tree = fresh.check_out(&remote, &first, |what| what.commit_time = true).await.unwrap();
    assert_eq!(names(&tree), ["a", "bin"]);
    let modified = std::fs::metadata(tree.join("a")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::mtime(&modified), 1_700_000_000);
    assert_eq!(modified.permissions().mode() & 0o777, 0o644);
    let unknown = fresh.check_out(&remote, &"1".repeat(40), |_| {}).await.unwrap_err();
    assert!(unknown.to_string().contains("does not have commit"), "{unknown}");
}

#[tokio::test]
async fn a_directory_is_lifted_but_through_no_link() {
    let (server, ours) = (Server::new(), Ours::new());
    server.repository("r", &[("sub/dir/f", "1"), ("top", "2")]);
    let dir = server.base.path().join("r");
    symlink("/etc", dir.join("out")).unwrap();
    symlink("sub", dir.join("in")).unwrap();
    git_in(&dir, &["add", "-A"]);
    git_in(&dir, &["commit", "-q", "-m", "links"]);
    let remote = server.remote("r");
    let sub = |path: &'static str| move |what: &mut Checkout| what.subdirectory = path.to_owned();
    assert_eq!(names(&ours.check_out(&remote, "", sub("sub/dir")).await.unwrap()), ["f"]);
    for path in ["out", "in/dir", "top", "nope"] {
        let error = ours.check_out(&remote, "", sub(path)).await.unwrap_err().to_string();
        assert!(error.contains(path) && error.contains("of the git repository"), "{error}");
    }
}

#[tokio::test]
async fn the_git_directory_is_kept_when_asked_and_tells_no_secret() {
    let (server, ours) = (Server::new(), Ours::new());
    let commit = server.repository("r", &[("a", "1")]);
    let remote = server.remote("r");
    let tree = ours.check_out(&remote, "main", |what| what.keep_git_dir = true).await.unwrap();
    assert_eq!(names(&tree), [".git", "a"]);
    assert_eq!(git_in(&tree, &["rev-parse", "HEAD"]), commit);
    assert_eq!(git_in(&tree, &["rev-parse", "refs/heads/main"]), commit);
    assert_eq!(git_in(&tree, &["status", "--porcelain"]), "");
    let config = std::fs::read_to_string(tree.join(".git/config")).unwrap();
    assert!(
        config.contains(remote.as_str()) && !config.contains("extraheader") && !config.contains("bare\""),
        "{config}"
    );
    assert!(!tree.join(".git/FETCH_HEAD").exists());
    assert!(names(&tree.join(".git")).iter().all(|name| name != "hooks"), "no hooks of the machine's template");
}

#[tokio::test]
async fn hooks_and_filters_do_not_run() {
    let (server, mut ours) = (Server::new(), Ours::new());
    server.repository("r", &[("f.txt", "text"), (".gitattributes", "*.txt filter=evil diff=evil merge=evil\n")]);
    let canary = server.base.path().join("canary");
    // What a user's own configuration could define.
    let home = server.base.path().join("home");
    std::fs::create_dir(&home).unwrap();
    let config = format!(
        "[filter \"evil\"]\n smudge = touch {0}\n clean = touch {0}\n[core]\n hooksPath = {1}\n[url \"git://127.0.0.1:1/\"]\n insteadOf = git://\n",
        canary.display(),
        home.display()
    );
    std::fs::write(home.join(".gitconfig"), config).unwrap();
    let hook = home.join("post-checkout");
    std::fs::write(&hook, format!("#!/bin/sh\ntouch {}\n", canary.display())).unwrap();
    std::fs::set_permissions(&hook, PermissionsExt::from_mode(0o755)).unwrap();
    // Even a home directory that reaches git is not looked at.
    ours.variables = vec![("HOME", home.clone().into()), ("XDG_CONFIG_HOME", home.into())];
    let command = ours.git().run(&["config", "--list", "--show-origin"]).await.unwrap();
    let listed = String::from_utf8(command).unwrap();
    assert!(listed.lines().all(|line| line.starts_with("command line:")), "{listed}");
    let tree = ours.check_out(&server.remote("r"), "", |what| what.keep_git_dir = true).await.unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("f.txt")).unwrap(), "text");
    assert!(!canary.exists());
}

#[tokio::test]
async fn submodules_are_checked_out_with_theirs() {
    let (server, ours) = (Server::new(), Ours::new());
    server.repository("inner", &[("i", "inner")]);
    server.repository("middle", &[("m", "middle")]);
    server.repository("outer", &[("o", "outer")]);
    let add = |repository: &str, module: &str| {
        let dir = server.base.path().join(repository);
        git_in(&dir, &["submodule", "--quiet", "add", server.remote(module).as_str(), "libs/mod"]);
        git_in(&dir, &["commit", "-q", "-m", "module"]);
    };
    add("middle", "inner");
    add("outer", "middle");
    let remote = server.remote("outer");
    let tree = ours.check_out(&remote, "", |_| {}).await.unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("libs/mod/libs/mod/i")).unwrap(), "inner");
    assert_eq!(names(&tree.join("libs/mod")), [".gitmodules", "libs", "m"]);
    assert_eq!(names(&tree), [".gitmodules", "libs", "o"]);
    let without = ours.check_out(&remote, "", |what| what.skip_submodules = true).await.unwrap();
    assert!(names(&without.join("libs/mod")).is_empty());
}

#[tokio::test]
async fn hostile_submodules_are_refused_before_git_acts_on_them() {
    for (module, want) in [
        ("[submodule \"x\"]\n path = x\n url = -u./payload\n", "submodule URL"),
        ("[submodule \"x\"]\n path = x\n url = ext::sh -c touch% /tmp/bud-canary\n", "submodule URL"),
        ("[submodule \"x\"]\n path = x\n url = file:///etc\n", "only https, http, ssh and git"),
        ("[submodule \"x\"]\n path = ../../x\n url = https://127.0.0.1:1/x\n", "leads out"),
        ("[submodule \"x\"]\n path = .git/hooks\n url = https://127.0.0.1:1/x\n", "git's own"),
        ("[submodule \"../../x\"]\n path = x\n url = https://127.0.0.1:1/x\n", "leads out"),
        ("[submodule \"x\"]\n path = -x\n url = https://127.0.0.1:1/x\n", "submodule path"),
    ] {
        let (server, ours) = (Server::new(), Ours::new());
        server.repository("r", &[(".gitmodules", module), ("a", "1")]);
        let error = ours.check_out(&server.remote("r"), "", |_| {}).await.unwrap_err().to_string();
        assert!(error.contains(want), "{module}: {error}");
    }
}

#[tokio::test]
async fn other_transports_are_refused_by_git_itself_as_well() {
    let ours = Ours::new();
    let local = tempfile::tempdir().unwrap();
    git_in(local.path(), &["init", "-q"]);
    let url = format!("file://{}", local.path().display());
    let error = ours.git().run(&["ls-remote", "--", &url]).await.unwrap_err().to_string();
    assert!(error.contains("not allowed"), "{error}");
}

#[tokio::test]
async fn what_a_killed_git_left_behind_is_in_nobody_s_way() {
    let (server, ours) = (Server::new(), Ours::new());
    server.repository("r", &[("a", "1")]);
    let remote = server.remote("r");
    // Killed while the repository was made.
    let bare = ours.dir.path().join("bare");
    std::fs::create_dir_all(bare.join("refs")).unwrap();
    std::fs::write(bare.join("HEAD"), "ref: refs/heads/master\n").unwrap();
    std::fs::write(bare.join("config.lock"), "").unwrap();
    ours.check_out(&remote, "", |_| {}).await.unwrap();
    // Killed while it fetched.
    let dir = server.base.path().join("r");
    std::fs::write(dir.join("a"), "2").unwrap();
    git_in(&dir, &["commit", "-q", "-a", "-m", "two"]);
    let next = git_in(&dir, &["rev-parse", "HEAD"]);
    for lock in ["shallow.lock", "packed-refs.lock", "HEAD.lock"] {
        std::fs::write(bare.join(lock), "").unwrap();
    }
    std::fs::write(bare.join(format!("refs/bud/{next}.lock")), "").unwrap();
    let tree = ours.check_out(&remote, "", |what| what.keep_git_dir = true).await.unwrap();
    assert_eq!(std::fs::read_to_string(tree.join("a")).unwrap(), "2");
}
