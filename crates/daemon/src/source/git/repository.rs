//! A bare repository that keeps what was fetched of a remote, and checking a commit out of it.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Mode, OFlags, ResolveFlags, Timespec, Timestamps};

use super::command::{Git, GitError, REMOTE};
use super::remote::{Refused, Remote, check_submodule_path, check_submodule_url, is_commit};

/// Most submodules of one check-out.
const MAX_SUBMODULES: usize = 1000;
/// How deep submodules may be in one another.
const MAX_SUBMODULE_DEPTH: usize = 16;

/// What a reference stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// The full reference (`refs/heads/main`), or the commit where that was given.
    pub reference: String,
    /// The object: a commit, or an annotated tag.
    pub object: String,
    /// The commit that an annotated tag stands for.
    pub commit: Option<String>,
}

/// What is checked out, and how.
#[derive(Clone, Debug)]
pub struct Checkout {
    /// The full reference or the commit.
    pub reference: String,
    /// The object that the reference stands for.
    pub object: String,
    /// A directory of the repository, cleaned; empty: all of it.
    pub subdirectory: String,
    /// Keep `.git`.
    pub keep_git_dir: bool,
    /// Leave submodules out.
    pub skip_submodules: bool,
    /// Give all files the commit's time.
    pub commit_time: bool,
}

fn refused(error: Refused) -> GitError {
    GitError::Unusable(error.to_string())
}

fn io(doing: impl Into<String>) -> impl FnOnce(std::io::Error) -> GitError {
    let doing = doing.into();
    move |source| GitError::Io { doing, source }
}

/// Asks a remote what a reference stands for; empty: its default branch.
///
/// # Errors
/// The remote can't be asked, or doesn't have it.
pub async fn resolve(git: &Git, remote: &Remote, reference: &str) -> Result<Resolved, GitError> {
    let url = remote.as_str();
    let reference = if reference.is_empty() {
        let head = git.text(&["ls-remote", "--symref", "--", url, "HEAD"]).await?;
        let branch = head.lines().find_map(|line| line.strip_prefix("ref: ")?.strip_suffix("\tHEAD"));
        let Some(branch) = branch else {
            return Err(GitError::Unusable(format!("{} has no default branch: name one (#branch)", remote.shown())));
        };
        super::remote::check_reference(branch).map_err(refused)?;
        branch.to_owned()
    } else {
        reference.to_owned()
    };
    let peeled = format!("{reference}^{{}}");
    let listed = git.text(&["ls-remote", "--", url, &reference, &peeled]).await?;
    let listed: BTreeMap<&str, &str> =
        listed.lines().filter_map(|line| line.split_once('\t')).map(|(object, name)| (name, object)).collect();
    let short = reference.strip_prefix("refs/").unwrap_or(&reference);
    let branch = format!("refs/heads/{}", reference.strip_prefix("refs/heads/").unwrap_or(&reference));
    let tag = format!("refs/tags/{}", reference.strip_prefix("refs/tags/").unwrap_or(&reference));
    // A branch goes before a tag of the same name, as in git-checkout.
    let found = [format!("refs/{short}"), branch, tag].into_iter().find_map(|name| {
        let object = listed.get(name.as_str())?;
        Some((name, (*object).to_owned()))
    });
    let Some((name, object)) = found else {
        return Err(GitError::Unusable(format!("{} does not have {reference:?}", remote.shown())));
    };
    let commit = listed.get(format!("{name}^{{}}").as_str()).map(|commit| (*commit).to_owned());
    if !is_commit(&object) || commit.as_deref().is_some_and(|commit| !is_commit(commit)) {
        return Err(GitError::Unusable(format!("{} answers with {object:?}, which is no commit", remote.shown())));
    }
    Ok(Resolved { reference: name, object, commit })
}

/// Makes sure that an object of a remote is in the bare repository `bare`, which is made if it isn't there.
///
/// # Errors
/// The remote can't be asked, or doesn't have it.
pub async fn fetch(git: &Git, bare: &Path, remote: &Remote, reference: &str, object: &str) -> Result<(), GitError> {
    prepare(git, bare, object).await?;
    let git = in_bare(git, bare);
    if has(&git, object).await {
        return Ok(());
    }
    let url = remote.as_str();
    let keep = format!("refs/bud/{object}");
    let wanted = if is_commit(reference) { object } else { reference };
    let one = format!("+{wanted}:{keep}");
    let fetched = match git.run(&["fetch", "--quiet", "--depth=1", "--no-tags", "--", url, &one]).await {
        // Servers that know no shallow copies.
        Err(error) if error.says(&["shallow", "--depth"]) => {
            git.run(&["fetch", "--quiet", "--no-tags", "--", url, &one]).await
        }
        fetched => fetched,
    };
    match fetched {
        Ok(_) if has(&git, object).await => return Ok(()),
        // The reference has moved on, or the server gives no single commits.
        Ok(_) => {}
        Err(error) if error.says(&["not our ref", "unadvertised object", "couldn't find remote ref"]) => {}
        Err(error) => return Err(error),
    }
    let mut args = vec!["fetch", "--quiet", "--tags", "--force"];
    if bare.join("shallow").exists() {
        args.push("--unshallow");
    }
    args.extend(["--", url, "+refs/heads/*:refs/remotes/origin/*"]);
    git.run(&args).await?;
    if has(&git, object).await {
        return Ok(());
    }
    Err(GitError::Unusable(format!("{} does not have commit {object}", remote.shown())))
}

/// Makes the bare repository if it isn't there, and takes away what a killed git may have left in it. It is ours alone meanwhile.
async fn prepare(git: &Git, bare: &Path, object: &str) -> Result<(), GitError> {
    remove_locks(bare).await?;
    let ready = bare.join("bud-ready");
    if !ready.is_file() {
        let format = if object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
        git.run(&[OsString::from("init"), "--bare".into(), "--quiet".into(), format.into(), bare.into()]).await?;
        in_bare(git, bare).run(&["config", "uploadpack.allowAnySHA1InWant", "true"]).await?;
        std::fs::write(&ready, "").map_err(io(format!("write {}", ready.display())))?;
    }
    Ok(())
}

/// Removes lock files; objects have none.
async fn remove_locks(bare: &Path) -> Result<(), GitError> {
    let bare = bare.to_owned();
    blocking(move || {
        let mut waiting = vec![(bare.join("refs"), true), (bare, false)];
        while let Some((dir, deep)) = waiting.pop() {
            let entries = match std::fs::read_dir(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                entries => entries.map_err(io(format!("list {}", dir.display())))?,
            };
            for entry in entries {
                let entry = entry.map_err(io(format!("list {}", dir.display())))?;
                let path = entry.path();
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    if deep {
                        waiting.push((path, true));
                    }
                } else if path.extension().is_some_and(|extension| extension == "lock") {
                    std::fs::remove_file(&path).map_err(io(format!("remove {}", path.display())))?;
                }
            }
        }
        Ok(())
    })
    .await
}

fn in_bare(git: &Git, bare: &Path) -> Git {
    let mut git = git.clone();
    git.dir = bare.to_owned();
    git.variables = vec![("GIT_DIR", bare.into())];
    git
}

async fn has(git: &Git, object: &str) -> bool {
    git.quiet().run(&["cat-file", "-e", &format!("{object}^{{commit}}")]).await.is_ok()
}

/// Checks out of `bare` into the empty directory `dest`; `work` is an empty directory beside it for what is not kept.
///
/// # Errors
/// A submodule can't be fetched, something hostile is in the repository, or the disk fails.
pub async fn check_out(
    git: &Git,
    bare: &Path,
    remote: &Remote,
    what: &Checkout,
    dest: &Path,
    work: &Path,
) -> Result<(), GitError> {
    let bare_git = in_bare(git, bare);
    let commit = bare_git.text(&["rev-parse", "--verify", "--quiet", &format!("{}^{{commit}}", what.object)]).await?;
    let modules = format!("{commit}:.gitmodules");
    let has_submodules = !what.skip_submodules && bare_git.quiet().run(&["cat-file", "-e", &modules]).await.is_ok();
    let keeps = what.keep_git_dir && what.subdirectory.is_empty();
    let tree = if what.subdirectory.is_empty() { dest.to_owned() } else { work.join("tree") };
    std::fs::create_dir_all(&tree).map_err(io(format!("create {}", tree.display())))?;
    if keeps || has_submodules {
        clone(git, bare, remote, what, &commit, &tree, keeps).await?;
        if has_submodules {
            submodules(git, &tree).await?;
        }
        if !keeps {
            remove_git_files(&tree).await?;
        }
    } else {
        let mut checkout = bare_git.clone();
        checkout.dir.clone_from(&tree);
        checkout.variables.push(("GIT_WORK_TREE", tree.clone().into()));
        checkout.variables.push(("GIT_INDEX_FILE", work.join("index").into()));
        checkout.run(&["read-tree", "-u", "--reset", &commit]).await?;
    }
    if !what.subdirectory.is_empty() {
        let (tree, dest, subdirectory) = (tree.clone(), dest.to_owned(), what.subdirectory.clone());
        blocking(move || lift(&tree, &subdirectory, &dest)).await?;
    }
    if what.commit_time {
        let time = bare_git.text(&["show", "-s", "--format=%ct", &commit]).await?;
        let time: i64 = time.parse().map_err(|_| GitError::Unusable(format!("commit {commit} has no time")))?;
        let dest = dest.to_owned();
        blocking(move || set_times(&dest, time)).await?;
    }
    Ok(())
}

/// Makes a repository of its own at `tree` with the commit checked out.
async fn clone(
    git: &Git,
    bare: &Path,
    remote: &Remote,
    what: &Checkout,
    commit: &str,
    tree: &Path,
    keeps: bool,
) -> Result<(), GitError> {
    let mut own = git.clone();
    own.dir = tree.to_owned();
    // Credentials are for the remote, which is not asked here.
    own.config.clear();
    let format = if what.object.len() == 64 { "--object-format=sha256" } else { "--object-format=sha1" };
    own.run(&["init", "--quiet", format]).await?;
    let mut local = own.clone();
    local.protocols = "file";
    let mut source = OsString::from("file://");
    source.push(bare);
    let kept =
        if is_commit(&what.reference) { what.object.clone() } else { format!("{}:{}", what.object, what.reference) };
    local
        .run(&[
            OsString::from("fetch"),
            "--quiet".into(),
            "--update-head-ok".into(),
            "--depth=1".into(),
            "--no-tags".into(),
            "--".into(),
            source,
            kept.into(),
        ])
        .await?;
    own.run(&["checkout", "--quiet", "--detach", commit]).await?;
    own.run(&["remote", "add", "origin", &remote.shown()]).await?;
    if keeps {
        own.run(&["reflog", "expire", "--all", "--expire=now"]).await?;
        // It names a path of this machine.
        let _ = std::fs::remove_file(tree.join(".git/FETCH_HEAD"));
    }
    Ok(())
}

/// Checks out submodules, and theirs, level by level. Nothing of `.gitmodules` reaches a git command that acts on it before it was checked.
async fn submodules(git: &Git, tree: &Path) -> Result<(), GitError> {
    let mut waiting = VecDeque::from([(tree.to_owned(), 0)]);
    let mut count = 0;
    while let Some((dir, depth)) = waiting.pop_front() {
        let mut own = git.clone();
        own.dir.clone_from(&dir);
        let listed = match own.run(&["config", "--blob", "HEAD:.gitmodules", "--null", "--list"]).await {
            Ok(listed) => listed,
            Err(error) if depth > 0 && error.says(&["unable to resolve", "unable to read", "exist"]) => continue,
            Err(error) => return Err(error),
        };
        let modules = parse_modules(&listed).map_err(refused)?;
        count += modules.len();
        if count > MAX_SUBMODULES || (depth >= MAX_SUBMODULE_DEPTH && !modules.is_empty()) {
            return Err(GitError::Unusable("the repository has too many submodules in one another".to_owned()));
        }
        if modules.is_empty() {
            continue;
        }
        own.protocols = REMOTE;
        // What .gitmodules says beside path and address is not followed.
        own.config.push(("submodule.alternateErrorStrategy".to_owned(), "die".to_owned()));
        for (name, _) in &modules {
            own.config.push((format!("submodule.{name}.update"), "checkout".to_owned()));
        }
        own.run(&["submodule", "--quiet", "update", "--init", "--depth=1"]).await?;
        for (_, path) in modules {
            let dir = dir.join(path);
            if dir.join(".git").symlink_metadata().is_ok() {
                waiting.push_back((dir, depth + 1));
            }
        }
    }
    Ok(())
}

/// Reads what `git config --null --list` prints of a `.gitmodules` file: names and paths of the submodules.
fn parse_modules(listed: &[u8]) -> Result<Vec<(String, String)>, Refused> {
    let mut paths = BTreeMap::new();
    for entry in listed.split(|&byte| byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        let (key, value) = entry.split_once('\n').unwrap_or((&entry, ""));
        let Some((name, field)) = key.strip_prefix("submodule.").and_then(|rest| rest.rsplit_once('.')) else {
            continue;
        };
        match field {
            "url" => check_submodule_url(value)?,
            "path" => {
                check_submodule_path(name)?;
                paths.insert(name.to_owned(), check_submodule_path(value)?);
            }
            _ => {}
        }
    }
    Ok(paths.into_iter().collect())
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, GitError> + Send + 'static,
) -> Result<T, GitError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|panic| Err(GitError::Run(std::io::Error::other(panic))))
}

/// Removes `.git` of the tree and of its submodules.
async fn remove_git_files(tree: &Path) -> Result<(), GitError> {
    let tree = tree.to_owned();
    blocking(move || {
        let mut waiting = vec![tree];
        while let Some(dir) = waiting.pop() {
            for entry in std::fs::read_dir(&dir).map_err(io(format!("list {}", dir.display())))? {
                let entry = entry.map_err(io(format!("list {}", dir.display())))?;
                let (path, kind) = (entry.path(), entry.file_type());
                let kind = kind.map_err(io(format!("look at {}", path.display())))?;
                if entry.file_name() == ".git" {
                    let removed =
                        if kind.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
                    removed.map_err(io(format!("remove {}", path.display())))?;
                } else if kind.is_dir() {
                    waiting.push(path);
                }
            }
        }
        Ok(())
    })
    .await
}

/// Moves what is in a directory of a check-out to `dest`. No part of the directory's path may be a link.
fn lift(tree: &Path, subdirectory: &str, dest: &Path) -> Result<(), GitError> {
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|error| GitError::Io { doing: format!("open {}", path.display()), source: error.into() })
    };
    let (root, dest) = (open(tree)?, open(dest)?);
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let dir = rustix::fs::openat2(&root, subdirectory, flags, Mode::empty(), resolve).map_err(|error| {
        let why = match error {
            rustix::io::Errno::NOENT => "is not in the repository".to_owned(),
            rustix::io::Errno::NOTDIR | rustix::io::Errno::LOOP => {
                "is no directory, or leads through a link".to_owned()
            }
            other => other.to_string(),
        };
        GitError::Unusable(format!("directory {subdirectory:?} of the git repository {why}"))
    })?;
    let failed =
        |error: rustix::io::Errno| GitError::Io { doing: format!("move {subdirectory:?}"), source: error.into() };
    for entry in rustix::fs::Dir::read_from(dir.as_fd()).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        if name.to_bytes() != b"." && name.to_bytes() != b".." && name.to_bytes() != b".git" {
            rustix::fs::renameat(&dir, name, &dest, name).map_err(failed)?;
        }
    }
    Ok(())
}

/// Gives all entries of a tree a time, following no links.
fn set_times(root: &Path, seconds: i64) -> Result<(), GitError> {
    let time = Timespec { tv_sec: seconds, tv_nsec: 0 };
    let times = Timestamps { last_access: time, last_modification: time };
    let mut waiting: Vec<PathBuf> = vec![root.to_owned()];
    while let Some(path) = waiting.pop() {
        let kind = path.symlink_metadata().map_err(io(format!("look at {}", path.display())))?.file_type();
        if kind.is_dir() {
            for entry in std::fs::read_dir(&path).map_err(io(format!("list {}", path.display())))? {
                waiting.push(entry.map_err(io(format!("list {}", path.display())))?.path());
            }
        }
        // Nothing is made in a directory after this, so that its time stays.
        rustix::fs::utimensat(rustix::fs::CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| {
            GitError::Io { doing: format!("set the time of {}", path.display()), source: error.into() }
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
