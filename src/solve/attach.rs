//! What a build's session serves: the context, the Dockerfile, secrets, agents, credentials. Nothing else is ever given.

use crate::request::BuildRequest;
use crate::request::context::Context;
use crate::request::dockerfile::Source;
use crate::request::secrets::SecretSource;
use anyhow::{Context as _, Result, ensure};
use bud_oci::auth_config::AuthConfig;
use bud_oci::registry::Credential;
use bud_session::client::{ContentStore, CredentialProvider, LocalDir, SshAgent, UploadSource};
use bud_session::{Attachables, Credentials, client};
use std::collections::BTreeMap;
use std::io::{Cursor, Read as _};
use std::path::Path;
use std::sync::Arc;

/// What is shared, and the options that tell the front end of it.
pub struct Shared {
    /// What the session serves.
    pub attachables: Attachables,
    /// Options to add.
    pub attrs: BTreeMap<String, String>,
    /// The directories by name, once more, for a daemon that reads them in place.
    pub dirs: BTreeMap<String, LocalDir>,
    /// Names this client's directories across sessions.
    pub shared_key: String,
    /// Folders that are there as long as the build.
    _temporary: Vec<tempfile::TempDir>,
}

/// Opens all that a build shares.
///
/// # Errors
/// Something that the flags name can't be opened.
pub fn share(request: &mut BuildRequest) -> Result<Shared> {
    let mut attachables = Attachables::default();
    let mut attrs = BTreeMap::new();
    let mut dirs = BTreeMap::new();
    let mut temporary = Vec::new();
    let mut shared_key = String::new();
    let mut empty = || -> Result<(LocalDir, std::path::PathBuf)> {
        let dir = tempfile::Builder::new().prefix("bud-").tempdir().context("cannot make a temporary folder")?;
        let path = dir.path().to_owned();
        let local = LocalDir::open(&path).context("cannot open a temporary folder")?;
        temporary.push(dir);
        Ok((local, path))
    };

    match std::mem::replace(&mut request.context, Context::Empty) {
        Context::Dir(path) => {
            dirs.insert("context".to_owned(), open(&path)?);
            shared_key = key(&path);
        }
        Context::Empty => _ = dirs.insert("context".to_owned(), empty()?.0),
        Context::Remote(url) => _ = attrs.insert("context".to_owned(), url),
        Context::Tar(head) => {
            let id = client::new_id().context("cannot name the upload")?;
            attachables.uploads.insert(id.clone(), UploadSource::new(Cursor::new(head).chain(std::io::stdin())));
            attrs.insert("context".to_owned(), format!("http://buildkit-session/{id}"));
        }
    }
    let is_remote = attrs.contains_key("context");
    match &request.dockerfile {
        Source::File { dir, name, .. } => {
            dirs.insert("dockerfile".to_owned(), open(dir)?);
            attrs.insert("filename".to_owned(), name.clone());
        }
        Source::Stdin(text) => {
            let (local, path) = empty()?;
            std::fs::write(path.join("Dockerfile"), text)
                .context("cannot write the Dockerfile to a temporary folder")?;
            dirs.insert("dockerfile".to_owned(), local);
            attrs.insert("filename".to_owned(), "Dockerfile".to_owned());
        }
        Source::Remote(name) => attrs.extend(name.clone().map(|name| ("filename".to_owned(), name))),
    }
    if is_remote && dirs.contains_key("dockerfile") {
        // The Dockerfile isn't in the context, but here.
        attrs.insert("dockerfilekey".to_owned(), "dockerfile".to_owned());
    }
    for (name, path) in &request.contexts.dirs {
        dirs.insert(name.clone(), open(path)?);
    }
    for (store, path) in &request.contexts.layouts {
        let layout = ContentStore { root: path.clone(), writable: false };
        attachables.stores.insert(format!("oci:{store}"), layout);
    }
    attachables.locals = dirs.clone();
    attachables.secrets = std::mem::take(&mut request.secrets)
        .into_iter()
        .map(|(id, source)| {
            let source = match source {
                SecretSource::File(path) => client::SecretSource::File(path),
                SecretSource::Env(name) => client::SecretSource::Env(name),
            };
            (id, source)
        })
        .collect();
    for (id, paths) in &request.ssh {
        let [socket] = paths.as_slice() else { anyhow::bail!("--ssh {id}: give one agent's socket") };
        ensure!(
            crate::request::secrets::is_socket(socket),
            "--ssh {id}={}: keys are read by an agent only: `eval $(ssh-agent)`, `ssh-add {}`, then --ssh {id}",
            socket.display(),
            socket.display()
        );
        attachables.ssh.insert(id.clone(), SshAgent { socket: socket.clone() });
    }
    attachables.credentials = Some(Arc::new(Logins(AuthConfig::of_user())));
    Ok(Shared { attachables, attrs, dirs, shared_key, _temporary: temporary })
}

fn open(path: &Path) -> Result<LocalDir> {
    LocalDir::open(path).with_context(|| format!("cannot open {}", path.display()))
}

/// Names a directory across builds, without telling where it is.
fn key(path: &Path) -> String {
    let full = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let digest = bud_image::Digest::of(full.as_os_str().as_encoded_bytes()).to_string();
    let name: String = full
        .file_name()
        .map(|name| name.to_string_lossy().chars().filter(char::is_ascii_alphanumeric).take(32).collect())
        .unwrap_or_default();
    let hex = digest.rsplit(':').next().unwrap_or_default();
    format!("{name}:{}", &hex[..hex.len().min(24)])
}

/// The user's logins, from Docker's configuration and its helpers.
struct Logins(AuthConfig);

#[tonic::async_trait]
impl CredentialProvider for Logins {
    async fn credentials(&self, host: &str) -> Result<Option<Credentials>, String> {
        let found = self.0.credential(host).await.map_err(|error| error.to_string())?;
        Ok(found.map(|credential| match credential {
            Credential::Password { user, secret } => Credentials { username: user, secret },
            Credential::IdentityToken(token) => Credentials { username: String::new(), secret: token },
        }))
    }
}
