//! The registries' part of `buildkitd.toml`: mirrors, plain HTTP, own certificates.

use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Docker Hub's name in references.
const HUB: &str = "docker.io";
/// Docker Hub's host.
const HUB_HOST: &str = "registry-1.docker.io";

/// How to reach registries, by their name in references.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegistryConfig {
    hosts: BTreeMap<String, HostConfig>,
}

/// How to reach one registry or mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct HostConfig {
    /// Hosts that are asked first, each with a path if it needs one (`core.example/proxy`).
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// True for plain HTTP; not given, only loopback hosts are asked so.
    pub http: Option<bool>,
    /// True if any certificate is accepted.
    pub insecure: Option<bool>,
    /// More certificates of authorities, PEM files.
    #[serde(default)]
    pub ca: Vec<PathBuf>,
    /// Certificates of this client.
    #[serde(default)]
    pub keypair: Vec<KeyPair>,
    /// Directories with `*.crt`, and `*.cert` beside `*.key`.
    #[serde(default)]
    pub tlsconfigdir: Vec<PathBuf>,
}

/// A client's certificate and its key, PEM files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct KeyPair {
    /// The key.
    pub key: PathBuf,
    /// The certificate.
    pub cert: PathBuf,
}

/// Says what is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(String);

/// An address under which a repository is to be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// True for plain HTTP.
    pub plain: bool,
    /// Host, with port if any. Credentials are for this host.
    pub host: String,
    /// Path before the repository: `/v2`, or `/v2/proxy` at a mirror.
    pub prefix: String,
    /// The name in references, if the host is a mirror.
    pub namespace: Option<String>,
    /// How to trust it.
    pub settings: HostConfig,
}

impl RegistryConfig {
    /// Reads the `[registry."…"]` tables of a `buildkitd.toml`; other parts are not looked at.
    ///
    /// # Errors
    /// The text is no TOML, or a table has a wrong type.
    pub fn from_toml(text: &str) -> Result<Self, ConfigError> {
        #[derive(Deserialize)]
        struct File {
            #[serde(default)]
            registry: BTreeMap<String, HostConfig>,
        }
        let file: File = toml::from_str(text).map_err(|e| ConfigError(e.to_string()))?;
        for (name, host) in &file.registry {
            if host.http == Some(true) && name.contains('/') {
                return Err(ConfigError(format!("registry {name:?}: expected a host, not an address")));
            }
        }
        Ok(Self { hosts: file.registry })
    }

    /// Adds or replaces a host's settings.
    pub fn set(&mut self, name: &str, config: HostConfig) {
        self.hosts.insert(name.to_owned(), config);
    }

    /// Returns where to pull from, in order: mirrors, then the registry itself.
    #[must_use]
    pub fn pull_endpoints(&self, domain: &str, insecure: bool) -> Vec<Endpoint> {
        let mut endpoints = Vec::new();
        for mirror in self.hosts.get(domain).map_or(&[][..], |h| &h.mirrors) {
            let mirror = mirror.trim_start_matches("https://").trim_start_matches("http://");
            let (host, path) = mirror.split_once('/').unwrap_or((mirror, ""));
            let settings = self.hosts.get(host).cloned().unwrap_or_default();
            let path = path.trim_matches('/');
            let prefix = if path.is_empty() { "/v2".into() } else { format!("/v2/{path}") };
            endpoints.extend(schemes(host, &settings).map(|plain| Endpoint {
                plain,
                host: host.to_owned(),
                prefix: prefix.clone(),
                namespace: Some(domain.to_owned()),
                settings: settings.clone(),
            }));
        }
        endpoints.extend(self.push_endpoints(domain, insecure));
        endpoints
    }

    /// Returns where to push to: the registry itself. Two addresses if either scheme will do.
    #[must_use]
    pub fn push_endpoints(&self, domain: &str, insecure: bool) -> Vec<Endpoint> {
        let mut settings = self.hosts.get(domain).cloned().unwrap_or_default();
        if insecure {
            settings.insecure = Some(true);
            settings.http = settings.http.or(Some(true));
        }
        let host = if domain == HUB { HUB_HOST } else { domain };
        schemes(host, &settings)
            .map(|plain| Endpoint {
                plain,
                host: host.to_owned(),
                prefix: "/v2".into(),
                namespace: None,
                settings: settings.clone(),
            })
            .collect()
    }
}

/// Returns whether to use plain HTTP; both ways, HTTPS first, where neither certificate nor encryption is asked for.
fn schemes(host: &str, settings: &HostConfig) -> impl Iterator<Item = bool> {
    let plain = settings.http.unwrap_or_else(|| is_loopback(host));
    let both: &[bool] = match (plain, settings.insecure == Some(true)) {
        (true, true) => &[false, true],
        (true, false) => &[true],
        (false, _) => &[false],
    };
    both.iter().copied()
}

/// Tells if a host, with or without port, is this machine by its text alone.
pub(super) fn is_loopback(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.split(':').next().unwrap_or_default(),
    };
    name == "localhost" || name.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(endpoints: &[Endpoint]) -> Vec<String> {
        let scheme = |e: &Endpoint| if e.plain { "http" } else { "https" };
        endpoints.iter().map(|e| format!("{}://{}{}", scheme(e), e.host, e.prefix)).collect()
    }

    #[test]
    fn mirrors_come_first_each_with_its_own_settings() {
        let config = RegistryConfig::from_toml(
            "root = \"/x\"\n[registry.\"docker.io\"]\n mirrors = [\"m.local:5000\", \"core.test/proxy.docker.io\"]\n\
             [registry.\"m.local:5000\"]\n http = true\n[worker.oci]\n enabled = true\n\
             [registry.both]\n http = true\n insecure = true\n[registry.\"localhost:1\"]\nhttp=false",
        )
        .unwrap();
        assert_eq!(
            shown(&config.pull_endpoints("docker.io", false)),
            ["http://m.local:5000/v2", "https://core.test/v2/proxy.docker.io", "https://registry-1.docker.io/v2"]
        );
        assert_eq!(shown(&config.push_endpoints("docker.io", false)), ["https://registry-1.docker.io/v2"]);
        assert_eq!(shown(&config.push_endpoints("both", false)), ["https://both/v2", "http://both/v2"]);
        assert_eq!(shown(&config.push_endpoints("localhost:1", false)), ["https://localhost:1/v2"]);
        assert_eq!(shown(&config.push_endpoints("x.test", true)), ["https://x.test/v2", "http://x.test/v2"]);
        for (host, plain) in [
            ("localhost:5000", true),
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost.evil.test", false),
            ("127.0.0.1.evil.test", false),
            ("10.0.0.1", false),
        ] {
            assert_eq!(config.push_endpoints(host, false)[0].plain, plain, "{host}");
        }
    }

    #[test]
    fn what_is_wrong_in_the_file_is_told() {
        let error = RegistryConfig::from_toml("[registry.\"a\"]\nhttp = \"yes\"").unwrap_err().to_string();
        assert!(error.contains("http = \"yes\""), "{error}");
        assert!(RegistryConfig::from_toml("[registry").is_err());
        assert_eq!(RegistryConfig::from_toml("").unwrap(), RegistryConfig::default());
    }
}
