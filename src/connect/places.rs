//! Where this user's daemon has its socket and its state.

use anyhow::{Context as _, Result, ensure};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// What the places depend on.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The user.
    pub uid: u32,
    /// `XDG_RUNTIME_DIR`.
    pub runtime_dir: Option<PathBuf>,
    /// `XDG_DATA_HOME`.
    pub data_home: Option<PathBuf>,
    /// `XDG_CONFIG_HOME`.
    pub config_home: Option<PathBuf>,
    /// The home directory.
    pub home: Option<PathBuf>,
    /// The file system; other than `/` in tests.
    pub system: PathBuf,
}

impl Surroundings {
    /// Reads them from this process.
    #[must_use]
    pub fn current() -> Self {
        let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let uid = rustix::process::getuid().as_raw();
        Self {
            uid,
            runtime_dir: absolute("XDG_RUNTIME_DIR"),
            data_home: absolute("XDG_DATA_HOME"),
            config_home: absolute("XDG_CONFIG_HOME"),
            home: absolute("HOME").or_else(|| home_of(uid)),
            system: "/".into(),
        }
    }

    /// Returns the directory of the default socket.
    #[must_use]
    pub fn socket_dir(&self) -> PathBuf {
        let owned =
            |dir: &Path| std::fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir() && meta.uid() == self.uid);
        if let Some(dir) = self.runtime_dir.as_deref().filter(|dir| owned(dir)) {
            return dir.join("buildkit");
        }
        let run = self.system.join("run");
        let of_user = run.join("user").join(self.uid.to_string());
        if owned(&of_user) {
            return of_user.join("buildkit");
        }
        if self.uid == 0 && owned(&run) {
            return run.join("buildkit");
        }
        self.system.join("tmp").join(format!("buildkit-{}", self.uid))
    }

    /// Returns the user's name, from `/etc/passwd`.
    #[must_use]
    pub fn user_name(&self) -> Option<String> {
        let passwd = std::fs::read_to_string(self.system.join("etc/passwd")).ok()?;
        passwd.lines().find_map(|line| {
            let mut fields = line.split(':');
            let name = fields.next()?;
            (fields.nth(1)?.parse::<u32>().ok()? == self.uid).then(|| name.to_owned())
        })
    }

    /// Returns the default socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.socket_dir().join("buildkitd.sock")
    }

    /// Returns the default directory of the state.
    ///
    /// # Errors
    /// This user has no home.
    pub fn state_root(&self) -> Result<PathBuf> {
        if let Some(data) = &self.data_home {
            return Ok(data.join("bud"));
        }
        let home = self.home.as_ref().context(
            "no place for the daemon's state: HOME isn't set and /etc/passwd names no home for this user; set HOME or XDG_DATA_HOME",
        )?;
        Ok(home.join(".local/share/bud"))
    }

    /// Returns the configuration file that a daemon reads by default, if there is one.
    #[must_use]
    pub fn config(&self) -> Option<PathBuf> {
        let own = self.config_home.clone().or_else(|| Some(self.home.as_ref()?.join(".config")));
        let mut places: Vec<PathBuf> = own.into_iter().map(|dir| dir.join("buildkit/buildkitd.toml")).collect();
        if self.uid == 0 {
            places.insert(0, self.system.join("etc/buildkit/buildkitd.toml"));
        }
        places.into_iter().find(|path| path.is_file())
    }
}

/// Reads a user's home from /etc/passwd.
fn home_of(uid: u32) -> Option<PathBuf> {
    let passwd = std::fs::read_to_string("/etc/passwd").ok()?;
    passwd.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        let found = fields.get(2)?.parse::<u32>().ok()? == uid;
        fields.get(5).filter(|home| found && home.starts_with('/')).map(PathBuf::from)
    })
}

/// Refuses a socket's directory that somebody else could have made or can write to; closes our own to others.
///
/// # Errors
/// The directory is a link, another user's, or open to others.
pub fn check_socket_dir(dir: &Path, uid: u32) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(dir) else { return Ok(()) };
    let shown = dir.display();
    ensure!(
        meta.is_dir(),
        "{shown} is not a directory (a link, perhaps); a daemon's socket must not be in there: remove it"
    );
    ensure!(
        meta.uid() == uid,
        "{shown} belongs to the user with ID {}, not to you; set XDG_RUNTIME_DIR to a directory of yours",
        meta.uid()
    );
    ensure!(
        meta.mode() & 0o002 == 0,
        "everybody can write to {shown} (its mode is {:o}): chmod 700 {shown}",
        meta.mode() & 0o7777
    );
    if meta.mode() & 0o077 != 0 {
        // Ours, but open to a group or for looking, as other daemons make it.
        std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
            .with_context(|| format!("others can use {shown}, and it can't be closed to them"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn surroundings(system: &Path) -> Surroundings {
        Surroundings {
            uid: rustix::process::getuid().as_raw(),
            runtime_dir: None,
            data_home: None,
            config_home: None,
            home: Some("/home/me".into()),
            system: system.into(),
        }
    }

    #[test]
    fn the_socket_is_in_the_runtime_directory_or_where_it_would_be_or_in_tmp() {
        let dir = tempfile::tempdir().unwrap();
        let mut around = surroundings(dir.path());
        let uid = around.uid;
        assert_eq!(around.socket_dir(), dir.path().join(format!("tmp/buildkit-{uid}")));
        let user = dir.path().join(format!("run/user/{uid}"));
        std::fs::create_dir_all(&user).unwrap();
        assert_eq!(around.socket_dir(), user.join("buildkit"));
        around.runtime_dir = Some(dir.path().join("nonexistent"));
        assert_eq!(around.socket_dir(), user.join("buildkit"), "a runtime directory that isn't there is passed over");
        let own = dir.path().join("own");
        std::fs::create_dir(&own).unwrap();
        around.runtime_dir = Some(own.clone());
        assert_eq!(around.socket(), own.join("buildkit/buildkitd.sock"));
    }

    #[test]
    fn state_is_in_the_data_home() {
        let mut around = surroundings(Path::new("/nonexistent"));
        assert_eq!(around.state_root().unwrap(), Path::new("/home/me/.local/share/bud"));
        around.data_home = Some("/data".into());
        assert_eq!(around.state_root().unwrap(), Path::new("/data/bud"));
        around.data_home = None;
        around.home = None;
        assert!(around.state_root().is_err());
    }

    #[test]
    fn an_unsafe_socket_directory_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let uid = rustix::process::getuid().as_raw();
        let path = dir.path().join("d");
        check_socket_dir(&path, uid).unwrap();
        std::fs::create_dir(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
        check_socket_dir(&path, uid).unwrap();
        assert!(check_socket_dir(&path, uid + 1).unwrap_err().to_string().contains("belongs to the user"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)).unwrap();
        assert!(check_socket_dir(&path, uid).unwrap_err().to_string().contains("chmod 700"));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o770)).unwrap();
        check_socket_dir(&path, uid).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        let link = dir.path().join("l");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(check_socket_dir(&link, uid).unwrap_err().to_string().contains("not a directory"));
    }
}
