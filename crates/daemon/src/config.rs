//! `buildkitd.toml`: the part of it that this daemon understands.

use crate::gc::policy::{Rule, Space};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// At most so much of the file is read.
const LIMIT: u64 = 1 << 20;

/// The configuration.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Logs more.
    pub debug: bool,
    /// `network.host`, `security.insecure`: what builds may ask for.
    #[serde(rename = "insecure-entitlements")]
    pub insecure_entitlements: Vec<String>,
    /// Registries by host name.
    pub registry: BTreeMap<String, Registry>,
    /// The worker.
    pub worker: Workers,
}

/// A registry: how it is reached. The same text is what the registry client reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Registry {
    /// Hosts (with a path, maybe) that are asked before it.
    pub mirrors: Vec<String>,
    /// It speaks plain HTTP.
    pub http: Option<bool>,
    /// Its certificate is not checked.
    pub insecure: Option<bool>,
    /// Certificate authorities, as PEM files.
    pub ca: Vec<PathBuf>,
    /// Client certificates.
    pub keypair: Vec<KeyPair>,
    /// Directories with `*.crt` for authorities, `*.cert` and `*.key` for this client.
    pub tlsconfigdir: Vec<PathBuf>,
}

/// A client certificate.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct KeyPair {
    /// Its key, as a PEM file.
    pub key: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
}

/// Workers by kind.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Workers {
    /// The only one there is here.
    pub oci: Worker,
}

/// A worker.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Worker {
    /// Whether rubbish is collected by itself.
    pub gc: Option<bool>,
    /// What of the cache is kept in any case: the older name of `reservedSpace`.
    #[serde(rename = "gckeepstorage")]
    pub gc_keep_storage: Option<Space>,
    /// What of the cache is kept in any case, as in `10GB` or `10%`.
    #[serde(rename = "reservedSpace", alias = "reservedspace")]
    pub reserved_space: Option<Space>,
    /// What the cache takes at most.
    #[serde(rename = "maxUsedSpace", alias = "maxusedspace")]
    pub max_used_space: Option<Space>,
    /// What is to be free on the disk.
    #[serde(rename = "minFreeSpace", alias = "minfreespace")]
    pub min_free_space: Option<Space>,
    /// Policies instead of those that are made of the above.
    #[serde(rename = "gcpolicy")]
    pub gc_policies: Vec<Rule>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Platforms.
    pub platforms: Vec<String>,
    /// At most so many steps at once.
    #[serde(rename = "max-parallelism")]
    pub max_parallelism: Option<usize>,
}

/// Why the configuration can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// It can't be read.
    #[error("read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is no TOML, or not what is expected.
    #[error("{}: {source}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: Box<toml::de::Error>,
    },
}

/// Reads the file.
///
/// # Errors
/// It isn't there, or isn't right.
pub fn read(path: &Path) -> Result<Config, ConfigError> {
    use std::io::Read as _;
    let fail = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(fail)?.take(LIMIT).read_to_string(&mut text).map_err(fail)?;
    toml::from_str(&text).map_err(|source| ConfigError::Parse { path: path.to_owned(), source: Box::new(source) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buildkits_example_is_understood_and_unknown_keys_are_no_harm() {
        let text = r#"
            debug = true
            root = "/var/lib/buildkit"
            insecure-entitlements = ["security.insecure"]
            [worker.oci]
              enabled = true
              gc = false
              [worker.oci.labels]
                "foo" = "bar"
            [registry."docker.io"]
              mirrors = ["localhost:5000", "core.harbor.domain/proxy.docker.io"]
              http = true
              [[registry."docker.io".keypair]]
                key="/etc/config/key.pem"
                cert="/etc/config/cert.pem"
        "#;
        let config: Config = toml::from_str(text).unwrap();
        assert_eq!(config.registry["docker.io"].mirrors[0], "localhost:5000");
        assert_eq!(config.registry["docker.io"].http, Some(true));
        assert_eq!(config.worker.oci.labels["foo"], "bar");
        assert_eq!(config.worker.oci.gc, Some(false));
    }

    #[test]
    fn an_error_names_file_and_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buildkitd.toml");
        std::fs::write(&path, "debug = 3\n").unwrap();
        let text = read(&path).unwrap_err().to_string();
        assert!(text.contains("buildkitd.toml") && text.contains("line 1"), "{text}");
    }
}
