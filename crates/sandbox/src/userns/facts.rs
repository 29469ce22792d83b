//! What the machine allows, read below a root that a test can set.

use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::idmap::{self, Line, MAX_FILE};
use super::remedy::Distribution;

/// Reads a small file; an unreadable one is as good as none.
fn read(root: &Path, path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    fs::File::open(root.join(path)).ok()?.take(MAX_FILE).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// A kernel setting that keeps users from making user namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Forbidden {
    /// `user.max_user_namespaces` is 0.
    MaxUserNamespaces,
    /// `kernel.unprivileged_userns_clone` is 0 (Debian's kernels before 11).
    UnprivilegedClone,
    /// `kernel.apparmor_restrict_unprivileged_userns` is 1 and no profile lets this program (Ubuntu from 23.10).
    AppArmor,
}

/// Returns the setting that forbids user namespaces, if there is one.
pub(super) fn forbidden(root: &Path) -> Option<Forbidden> {
    let is = |path: &str, value: &str| read(root, path).is_some_and(|text| text.trim() == value);
    if is("proc/sys/user/max_user_namespaces", "0") {
        Some(Forbidden::MaxUserNamespaces)
    } else if is("proc/sys/kernel/unprivileged_userns_clone", "0") {
        Some(Forbidden::UnprivilegedClone)
    } else if is("proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1")
        && is("proc/self/attr/apparmor/current", "unconfined")
    {
        Some(Forbidden::AppArmor)
    } else {
        None
    }
}

/// The user who starts the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The login name, if it is known.
    pub(super) name: Option<String>,
}

impl User {
    pub(super) fn current(root: &Path) -> User {
        let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let named = read(root, "etc/passwd").and_then(|text| {
            text.lines().find_map(|line| {
                let mut fields = line.split(':');
                let name = fields.next()?;
                (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
            })
        });
        // Users of a directory service are in no passwd file; newuidmap asks the service, and refuses a wrong name.
        let name = named.or_else(|| {
            ["USER", "LOGNAME"]
                .iter()
                .find_map(|key| std::env::var(key).ok())
                .filter(|name| !name.is_empty() && name != "root")
        });
        User { uid, gid, name }
    }

    /// How the user is named to a person and to usermod.
    pub(super) fn shown(&self) -> String {
        self.name.clone().unwrap_or_else(|| self.uid.to_string())
    }
}

/// newuidmap or newgidmap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Tool {
    Usable(PathBuf),
    Missing,
    /// There, but it can't gain privileges; the text says why.
    Powerless(PathBuf, &'static str),
}

/// Looks for a tool in `PATH` and where distributions put it.
pub(super) fn tool(root: &Path, name: &str) -> Tool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).filter(|directory| directory.is_absolute());
    let usual = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"].iter().map(PathBuf::from);
    let mut powerless = None;
    for directory in directories.chain(usual) {
        let file = root.join(directory.strip_prefix("/").unwrap_or(&directory)).join(name);
        match power(&file) {
            Some(Ok(())) => return Tool::Usable(file),
            Some(Err(why)) => powerless = powerless.or(Some(Tool::Powerless(file, why))),
            None => {}
        }
    }
    powerless.unwrap_or(Tool::Missing)
}

/// Says whether a file is there and, if so, whether running it gains the privileges that it needs.
fn power(file: &Path) -> Option<Result<(), &'static str>> {
    let metadata = fs::metadata(file).ok().filter(|metadata| metadata.is_file())?;
    if metadata.mode() & 0o111 == 0 {
        return Some(Err("is not executable"));
    }
    let set_uid = metadata.mode() & 0o4000 != 0 && metadata.uid() == 0;
    let capabilities = || rustix::fs::getxattr(file, "security.capability", &mut [0u8; 64][..]).is_ok();
    if !set_uid && !capabilities() {
        return Some(Err("is neither set-uid root nor has file capabilities"));
    }
    let nosuid = rustix::fs::statvfs(file).is_ok_and(|fs| fs.f_flag.contains(rustix::fs::StatVfsMountFlags::NOSUID));
    if nosuid {
        return Some(Err("is on a file system mounted nosuid"));
    }
    if rustix::thread::no_new_privs().unwrap_or(false) {
        return Some(Err("can't gain privileges: no_new_privs is set for this process"));
    }
    Some(Ok(()))
}

/// What decides between sub-IDs and the own ID alone.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    pub(super) user: User,
    pub(super) newuidmap: Tool,
    pub(super) newgidmap: Tool,
    pub(super) uid_map: Vec<Line>,
    pub(super) gid_map: Vec<Line>,
    /// The first sub-ID that nobody has.
    pub(super) free: u32,
    pub(super) distribution: Distribution,
}

impl Facts {
    pub(super) fn read(root: &Path) -> Facts {
        let user = User::current(root);
        let (subuid, subgid) =
            (read(root, "etc/subuid").unwrap_or_default(), read(root, "etc/subgid").unwrap_or_default());
        // Both files name the user, never a group.
        let lines = |own: u32, file: &str| idmap::map(own, &idmap::ranges(file, user.name.as_deref(), user.uid));
        Facts {
            newuidmap: tool(root, "newuidmap"),
            newgidmap: tool(root, "newgidmap"),
            uid_map: lines(user.uid, &subuid),
            gid_map: lines(user.gid, &subgid),
            free: idmap::first_free(&subuid).max(idmap::first_free(&subgid)),
            distribution: Distribution::of(&read(root, "etc/os-release").unwrap_or_default()),
            user,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn write(root: &Path, path: &str, text: &str) {
        let file = root.join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, text).unwrap();
    }

    #[test]
    fn settings_that_forbid_namespaces_are_seen() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(forbidden(root), None);
        write(root, "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
        assert_eq!(forbidden(root), None, "AppArmor is not on without a label");
        write(root, "proc/self/attr/apparmor/current", "unconfined\n");
        assert_eq!(forbidden(root), Some(Forbidden::AppArmor));
        write(root, "proc/self/attr/apparmor/current", "bud (unconfined)\n");
        assert_eq!(forbidden(root), None);
        write(root, "proc/sys/kernel/unprivileged_userns_clone", "0\n");
        assert_eq!(forbidden(root), Some(Forbidden::UnprivilegedClone));
        write(root, "proc/sys/user/max_user_namespaces", "0\n");
        assert_eq!(forbidden(root), Some(Forbidden::MaxUserNamespaces));
        write(root, "proc/sys/user/max_user_namespaces", "15000\n");
        write(root, "proc/sys/kernel/unprivileged_userns_clone", "1\n");
        assert_eq!(forbidden(root), None);
    }

    #[test]
    fn tools_without_privileges_are_told_apart() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        assert_eq!(tool(root, "newuidmap"), Tool::Missing);
        write(root, "usr/bin/newuidmap", "");
        let file = root.join("usr/bin/newuidmap");
        assert!(
            matches!(tool(root, "newuidmap"), Tool::Powerless(f, why) if f == file && why.contains("not executable"))
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(matches!(tool(root, "newuidmap"), Tool::Powerless(_, why) if why.contains("set-uid")));
        if rustix::process::geteuid().is_root() {
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4755)).unwrap();
            assert_eq!(tool(root, "newuidmap"), Tool::Usable(file));
        } else {
            eprintln!("the set-uid part needs root");
        }
    }

    #[test]
    fn the_user_has_the_name_of_passwd() {
        let root = tempfile::tempdir().unwrap();
        let uid = rustix::process::geteuid().as_raw();
        write(root.path(), "etc/passwd", &format!("other:x:77777:1::/:\nmaria:x:{uid}:1::/home/maria:/bin/sh\n"));
        write(root.path(), "etc/subuid", "maria:100000:65536\n");
        let facts = Facts::read(root.path());
        assert_eq!(facts.user.name.as_deref(), Some("maria"));
        assert_eq!(idmap::mapped(&facts.uid_map), 65536);
        assert_eq!(idmap::mapped(&facts.gid_map), 0);
        assert_eq!(facts.free, 165536);
    }
}
