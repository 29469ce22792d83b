//! `--secret` and `--ssh`: what steps may mount. Only what is named here is ever given to a daemon.

use super::values;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The largest secret that BuildKit takes.
const SECRET_LIMIT: u64 = 500 * 1024;

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file, read when a step asks.
    File(PathBuf),
    /// A variable of this process's environment.
    Env(String),
}

/// Parses the `--secret` values: `id=ID[,src=FILE|,env=VARIABLE][,type=file|env]`.
pub fn secrets(values: &[String]) -> Result<BTreeMap<String, SecretSource>> {
    let mut secrets = BTreeMap::new();
    for value in values {
        let (id, source) = secret(value).with_context(|| format!("--secret {value}"))?;
        secrets.insert(id, source);
    }
    Ok(secrets)
}

fn secret(value: &str) -> Result<(String, SecretSource)> {
    let (mut id, mut file, mut env, mut kind) = (None, None, None, None);
    for field in values::fields(value)? {
        let (key, text) = values::key_value(&field)?;
        match key.to_ascii_lowercase().as_str() {
            "id" => id = Some(text.to_owned()),
            "src" | "source" => file = Some(PathBuf::from(text)),
            "env" => env = Some(text.to_owned()),
            "type" if text == "file" || text == "env" => kind = Some(text.to_owned()),
            "type" => bail!("type is file or env, not `{text}`"),
            _ => bail!("`{key}` is not known here; there are id, src, env and type"),
        }
    }
    let id = id.filter(|id| !id.is_empty()).context("it needs an id=…, the name that the Dockerfile mounts it by")?;
    let source = match (kind.as_deref(), file, env) {
        (Some("env"), Some(name), None) => SecretSource::Env(name.to_string_lossy().into_owned()),
        (_, Some(_), Some(_)) => bail!("src and env exclude each other"),
        (_, Some(file), None) => SecretSource::File(file),
        (_, None, Some(name)) => SecretSource::Env(name),
        (Some("file"), None, None) => SecretSource::File(PathBuf::from(&id)),
        (_, None, None) if std::env::var_os(&id).is_some() => SecretSource::Env(id.clone()),
        (_, None, None) => SecretSource::File(PathBuf::from(&id)),
    };
    match &source {
        SecretSource::Env(name) => {
            ensure!(std::env::var_os(name).is_some(), "the environment variable {name} isn't set");
        }
        SecretSource::File(path) => {
            let meta = std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?;
            ensure!(meta.is_file(), "{} is not a file", path.display());
            ensure!(meta.len() <= SECRET_LIMIT, "{} is larger than {SECRET_LIMIT} bytes", path.display());
        }
    }
    Ok((id, source))
}

/// Parses the `--ssh` values, `default` or `ID[=PATH[,PATH]]`, into ids with paths (a socket, or keys); without a path,
/// `SSH_AUTH_SOCK` is it.
pub fn ssh(values: &[String]) -> Result<BTreeMap<String, Vec<PathBuf>>> {
    let mut agents = BTreeMap::new();
    for value in values {
        let (id, paths) = value.split_once('=').unwrap_or((value, ""));
        let id = if id.is_empty() { "default" } else { id };
        let mut list: Vec<PathBuf> = paths.split(',').filter(|p| !p.is_empty()).map(PathBuf::from).collect();
        if list.is_empty() {
            let socket = std::env::var_os("SSH_AUTH_SOCK").filter(|s| !s.is_empty());
            let socket = socket.with_context(|| {
                format!("--ssh {value}: no ssh agent runs here (SSH_AUTH_SOCK isn't set); start one with `eval $(ssh-agent)` and `ssh-add`, or give {id}=PATH")
            })?;
            list.push(PathBuf::from(socket));
        }
        for path in &list {
            std::fs::metadata(path).with_context(|| format!("--ssh {value}: cannot use {}", path.display()))?;
        }
        agents.insert(id.to_owned(), list);
    }
    Ok(agents)
}

/// Tells whether a path is a socket.
pub fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_a_secret() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, "x").unwrap();
        let path = file.display();
        assert_eq!(secret(&format!("id=a,src={path}")).unwrap(), ("a".into(), SecretSource::File(file.clone())));
        assert_eq!(secret(&format!("type=file,id=a,source={path}")).unwrap().1, SecretSource::File(file.clone()));
        assert_eq!(secret("id=a,env=PATH").unwrap(), ("a".into(), SecretSource::Env("PATH".into())));
        assert_eq!(secret("id=PATH").unwrap(), ("PATH".into(), SecretSource::Env("PATH".into())));
        assert_eq!(secret("id=a,type=env,src=PATH").unwrap(), ("a".into(), SecretSource::Env("PATH".into())));
        for bad in
            ["src=/etc/hostname", "id=a,src=/nonexistent", "id=a,env=NOT_SET_ANYWHERE", "id=a,what=b", "id=a,src=/"]
        {
            assert!(secrets(&[bad.into()]).is_err(), "{bad}");
        }
        let error = format!("{:#}", secrets(&["id=a,src=/nonexistent".into()]).unwrap_err());
        assert!(error.starts_with("--secret id=a,src=/nonexistent: cannot read /nonexistent"), "{error}");
    }
}
