//! The user's registry logins: `~/.docker/config.json` and its credential helpers.
//!
//! Own code rather than `docker_credential`: a helper here has a checked name, a deadline and an output limit, and a host is
//! only answered for if it is exactly the one that was logged in to (CVE-2020-15157).

use crate::registry::{Credential, Credentials};
use base64::Engine as _;
use futures_util::future::BoxFuture;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

/// The key under which Docker keeps the login of Docker Hub.
const HUB_KEY: &str = "https://index.docker.io/v1/";
/// Longest configuration file.
const MAX_FILE: u64 = 4 << 20;
/// Longest answer of a helper.
const MAX_OUTPUT: u64 = 64 << 10;
/// Time for a helper to answer; it may ask the user to unlock something.
const DEADLINE: Duration = Duration::from_secs(30);

/// Says why logins can't be read.
#[derive(Debug, thiserror::Error)]
pub enum AuthConfigError {
    /// The file can't be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no valid configuration.
    #[error("{} is not valid: {reason}", path.display())]
    Invalid {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A helper did not do its duty.
    #[error("credential helper docker-credential-{helper}: {reason}")]
    Helper {
        /// Its name, escaped.
        helper: String,
        /// What is wrong.
        reason: String,
    },
}

/// The logins of a configuration file, read anew for each question: a login made meanwhile counts.
#[derive(Clone, Debug)]
pub struct AuthConfig {
    path: Option<PathBuf>,
    /// Where helpers are; none: in PATH.
    helpers: Option<PathBuf>,
    deadline: Duration,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct File {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Clone, Default, Deserialize)]
#[serde(default)]
struct Entry {
    auth: String,
    username: String,
    password: String,
    identitytoken: String,
}

impl AuthConfig {
    /// Uses `$DOCKER_CONFIG/config.json`, else `~/.docker/config.json`. A missing file is one without logins.
    #[must_use]
    pub fn of_user() -> Self {
        let dir = std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".docker"));
        Self { path: dir.or_else(home).map(|dir| dir.join("config.json")), helpers: None, deadline: DEADLINE }
    }

    /// Uses a file.
    #[must_use]
    pub fn of_file(path: &Path) -> Self {
        Self { path: Some(path.to_owned()), helpers: None, deadline: DEADLINE }
    }

    fn read(&self) -> Result<File, AuthConfigError> {
        let Some(path) = &self.path else { return Ok(File::default()) };
        let failed = |source| AuthConfigError::Read { path: path.clone(), source };
        let mut bytes = Vec::new();
        match std::fs::File::open(path) {
            Ok(file) => {
                std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_FILE + 1), &mut bytes).map_err(failed)?
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(File::default()),
            Err(e) => return Err(failed(e)),
        };
        let invalid = |reason: String| AuthConfigError::Invalid { path: path.clone(), reason };
        if bytes.len() as u64 > MAX_FILE {
            return Err(invalid(format!("over {MAX_FILE} bytes")));
        }
        // Messages of the JSON reader may quote values: they say where, and no more.
        serde_json::from_slice(&bytes).map_err(|e| invalid(format!("line {}, column {}", e.line(), e.column())))
    }

    /// Returns the login for exactly this host (`registry-1.docker.io` or `docker.io` for Docker Hub); none if there is none.
    ///
    /// # Errors
    /// The file can't be used, or a helper fails.
    pub async fn credential(&self, host: &str) -> Result<Option<Credential>, AuthConfigError> {
        let file = self.read()?;
        let is_hub = matches!(host, "docker.io" | "registry-1.docker.io" | "index.docker.io");
        let helper = file.cred_helpers.get(if is_hub { HUB_KEY } else { host });
        let helper = helper.or_else(|| file.cred_helpers.get("docker.io").filter(|_| is_hub));
        if let Some(helper) = helper.or(Some(&file.creds_store)).filter(|name| !name.is_empty()) {
            return self.ask(helper, if is_hub { HUB_KEY } else { host }).await;
        }
        let matches = |key: &str| {
            if is_hub { host_of(key) == "index.docker.io" || key == "docker.io" } else { host_of(key) == host }
        };
        let entry = file.auths.iter().find(|(key, _)| matches(key)).map(|(_, entry)| entry.clone());
        entry.map_or(Ok(None), |entry| entry.credential(self))
    }

    /// Asks a helper program (<https://github.com/docker/docker-credential-helpers>).
    async fn ask(&self, helper: &str, server: &str) -> Result<Option<Credential>, AuthConfigError> {
        let failed = |reason: String| AuthConfigError::Helper { helper: crate::registry::printable(helper), reason };
        let is_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if helper.len() > 100 || !helper.bytes().all(is_name) {
            return Err(failed("its name may have letters, digits and -_. only".into()));
        }
        let name = format!("docker-credential-{helper}");
        let program = self.helpers.as_ref().map_or_else(|| PathBuf::from(&name), |dir| dir.join(&name));
        let mut child = tokio::process::Command::new(&program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|e| failed(format!("can't be started: {e} (it is named in your Docker configuration)")))?;
        let (Some(mut stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed("has no pipes".into()));
        };
        let talk = async {
            // A helper that doesn't read says so by its answer.
            let _unread = stdin.write_all(server.as_bytes()).await;
            drop(stdin);
            let output = read_limited(stdout).await?;
            Ok::<_, std::io::Error>((output, child.wait().await?))
        };
        let (output, status) = tokio::time::timeout(self.deadline, talk)
            .await
            .map_err(|_| failed(format!("no answer for {} s", self.deadline.as_secs())))?
            .map_err(|e| failed(e.to_string()))?;
        if !status.success() {
            let text = crate::registry::printable(&String::from_utf8_lossy(&output));
            if text.contains("credentials not found") {
                return Ok(None);
            }
            return Err(failed(if text.is_empty() { status.to_string() } else { text }));
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Answer {
            #[serde(default)]
            username: String,
            #[serde(default)]
            secret: String,
        }
        let answer: Answer = serde_json::from_slice(&output).map_err(|_| failed("its answer can't be read".into()))?;
        Ok(match &answer.username[..] {
            _ if answer.secret.is_empty() => None,
            "<token>" => Some(Credential::IdentityToken(answer.secret)),
            _ => Some(Credential::Password { user: answer.username, secret: answer.secret }),
        })
    }
}

impl Credentials for AuthConfig {
    fn credentials<'a>(&'a self, host: &'a str) -> BoxFuture<'a, Result<Option<Credential>, String>> {
        Box::pin(async move { self.credential(host).await.map_err(|e| e.to_string()) })
    }
}

impl Entry {
    fn credential(self, config: &AuthConfig) -> Result<Option<Credential>, AuthConfigError> {
        let invalid = || AuthConfigError::Invalid {
            path: config.path.clone().unwrap_or_default(),
            reason: "a login in \"auths\" is not base64 of user:password".into(),
        };
        if !self.identitytoken.is_empty() {
            return Ok(Some(Credential::IdentityToken(self.identitytoken)));
        }
        let (user, secret) = if self.auth.is_empty() {
            (self.username, self.password)
        } else {
            let decoded = base64::engine::general_purpose::STANDARD.decode(&self.auth).map_err(|_| invalid())?;
            let text = String::from_utf8(decoded).map_err(|_| invalid())?;
            let (user, secret) = text.trim_end_matches('\0').split_once(':').ok_or_else(invalid)?;
            (user.to_owned(), secret.to_owned())
        };
        Ok((!user.is_empty()).then_some(Credential::Password { user, secret }))
    }
}

/// Returns the host of a key, which may be a whole address (`https://host/v1/`).
fn host_of(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    key.split('/').next().unwrap_or_default()
}

async fn read_limited(input: impl AsyncRead + Unpin) -> std::io::Result<Vec<u8>> {
    let mut output = Vec::new();
    input.take(MAX_OUTPUT + 1).read_to_end(&mut output).await?;
    if output.len() as u64 > MAX_OUTPUT {
        return Err(std::io::Error::other(format!("answered with over {MAX_OUTPUT} bytes")));
    }
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn ask(config: &AuthConfig, host: &str) -> Result<Option<Credential>, String> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(config.credential(host)).map_err(|e| e.to_string())
    }

    fn file(text: &str) -> (tempfile::TempDir, AuthConfig) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        (dir, AuthConfig::of_file(&path))
    }

    fn password(user: &str, secret: &str) -> Option<Credential> {
        Some(Credential::Password { user: user.into(), secret: secret.into() })
    }

    #[test]
    fn logins_are_for_exactly_their_host() {
        let (_dir, config) = file(
            r#"{"auths": {
                "https://index.docker.io/v1/": {"auth": "aHViOnA6dw=="},
                "reg.test:5000": {"username": "u", "password": "p"},
                "https://full.test/v2/": {"auth": "dTpw"},
                "token.test": {"auth": "dTpw", "identitytoken": "tok"},
                "empty.test": {}, "broken.test": {"auth": "%%"}
            }, "HttpHeaders": {"X": "y"}}"#,
        );
        for (host, expected) in [
            ("docker.io", password("hub", "p:w")),
            ("registry-1.docker.io", password("hub", "p:w")),
            ("index.docker.io.evil.test", None),
            ("evil.index.docker.io", None),
            ("reg.test:5000", password("u", "p")),
            ("reg.test", None),
            ("reg.test:5000.evil.test", None),
            ("full.test", password("u", "p")),
            ("token.test", Some(Credential::IdentityToken("tok".into()))),
            ("empty.test", None),
            ("", None),
        ] {
            assert_eq!(ask(&config, host).unwrap(), expected, "{host}");
        }
        assert!(ask(&config, "broken.test").unwrap_err().contains("base64"));
    }

    #[test]
    fn a_missing_file_has_no_logins_and_a_broken_one_is_told_without_its_content() {
        assert_eq!(ask(&AuthConfig::of_file(Path::new("/nonexistent/config.json")), "x").unwrap(), None);
        let (_dir, config) = file("{\"auths\": {\"x\": {\"auth\": 5, \"password\": \"geheim\"}}}");
        let error = ask(&config, "x").unwrap_err();
        assert!(error.contains("line 1, column") && !error.contains("geheim"), "{error}");
    }

    fn with_helper(script: &str, run: impl FnOnce(&AuthConfig)) {
        let (dir, mut config) = file(r#"{"credsStore": "budtest"}"#);
        config.deadline = Duration::from_secs(2);
        config.helpers = Some(dir.path().to_owned());
        let helper = dir.path().join("docker-credential-budtest");
        std::fs::write(&helper, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&helper, std::fs::Permissions::from_mode(0o755)).unwrap();
        run(&config);
    }

    #[test]
    fn helpers_are_asked_within_limits() {
        with_helper("read x; echo \"{\\\"Username\\\":\\\"u\\\",\\\"Secret\\\":\\\"$x\\\"}\"", |config| {
            assert_eq!(ask(config, "reg.test").unwrap(), password("u", "reg.test"));
            assert_eq!(ask(config, "docker.io").unwrap(), password("u", HUB_KEY));
        });
        with_helper("cat >/dev/null; echo '{\"Username\":\"<token>\",\"Secret\":\"t\"}'", |config| {
            assert_eq!(ask(config, "reg.test").unwrap(), Some(Credential::IdentityToken("t".into())));
        });
        with_helper("echo credentials not found in native keychain; exit 1", |config| {
            assert_eq!(ask(config, "reg.test").unwrap(), None);
        });
        with_helper("printf 'locked \\033[2J'; exit 3", |config| {
            let error = ask(config, "reg.test").unwrap_err();
            assert!(error.contains("locked") && !error.contains('\x1b'), "{error}");
        });
        with_helper("exec sleep 60", |config| assert!(ask(config, "x").unwrap_err().contains("no answer for 2 s")));
        with_helper("exec cat /dev/zero", |config| assert!(ask(config, "x").unwrap_err().contains("over 65536 bytes")));
    }

    #[test]
    fn names_of_helpers_are_names_only() {
        for name in ["../../tmp/x", "a/b", "a;b", "a b", "$(x)"] {
            let (_dir, config) = file(&serde_json::json!({"credHelpers": {"reg.test": name}}).to_string());
            assert!(ask(&config, "reg.test").unwrap_err().contains("letters, digits"), "{name}");
            assert_eq!(ask(&config, "other.test").unwrap(), None);
        }
        let (_dir, config) = file(r#"{"credsStore": "no-such-helper-here"}"#);
        assert!(ask(&config, "reg.test").unwrap_err().contains("can't be started"));
    }
}
