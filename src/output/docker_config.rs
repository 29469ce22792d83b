//! Docker's client configuration: where its daemon is, and the proxies for builds.

use serde_json::Value;
use std::io::Read as _;
use std::path::PathBuf;

/// More of a configuration file isn't read.
const LIMIT: u64 = 4 << 20;

fn folder() -> Option<PathBuf> {
    let given = std::env::var_os("DOCKER_CONFIG").filter(|dir| !dir.is_empty()).map(PathBuf::from);
    given.or_else(|| Some(crate::connect::places::Surroundings::current().home?.join(".docker")))
}

fn read(path: &std::path::Path) -> Option<Value> {
    let mut text = Vec::new();
    std::fs::File::open(path).ok()?.take(LIMIT).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Returns the address of Docker's daemon: DOCKER_HOST, the current context's, or where it is by default.
pub fn docker_host() -> Option<String> {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let context = variable("DOCKER_CONTEXT");
    if context.is_none()
        && let Some(host) = variable("DOCKER_HOST")
    {
        return Some(host);
    }
    let folder = folder();
    let context = context.or_else(|| {
        let config = read(&folder.as_ref()?.join("config.json"))?;
        config["currentContext"].as_str().map(str::to_owned)
    });
    if let Some(context) = context.filter(|name| name != "default" && !name.is_empty()) {
        let digest = bud_image::Digest::of(context.as_bytes()).to_string();
        let hex = digest.rsplit(':').next().unwrap_or_default();
        let meta = read(&folder?.join("contexts/meta").join(hex).join("meta.json"))?;
        return meta["Endpoints"]["docker"]["Host"].as_str().map(str::to_owned);
    }
    let default = PathBuf::from("/var/run/docker.sock");
    let rootless = crate::connect::places::Surroundings::current().runtime_dir.map(|dir| dir.join("docker.sock"));
    let socket = [Some(default), rootless].into_iter().flatten().find(|path| path.exists())?;
    Some(format!("unix://{}", socket.display()))
}

/// Returns the proxies that Docker's configuration has for builds, as build arguments.
pub fn proxies() -> Vec<(String, String)> {
    folder().and_then(|folder| read(&folder.join("config.json"))).map(|config| proxy_args(&config)).unwrap_or_default()
}

fn proxy_args(config: &Value) -> Vec<(String, String)> {
    const NAMES: [(&str, &str); 5] = [
        ("httpProxy", "HTTP_PROXY"),
        ("httpsProxy", "HTTPS_PROXY"),
        ("ftpProxy", "FTP_PROXY"),
        ("noProxy", "NO_PROXY"),
        ("allProxy", "ALL_PROXY"),
    ];
    let proxies = &config["proxies"]["default"];
    let set = NAMES.iter().filter_map(|(key, name)| Some((*name, proxies[*key].as_str()?)));
    let both = set
        .filter(|(_, value)| !value.is_empty())
        .flat_map(|(name, value)| [(name.to_owned(), value.to_owned()), (name.to_ascii_lowercase(), value.to_owned())]);
    both.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_become_build_arguments_in_both_spellings() {
        let config = serde_json::json!({"proxies": {"default": {"httpProxy": "http://p:1", "noProxy": ""}}});
        let pair = |name: &str| (name.to_owned(), "http://p:1".to_owned());
        assert_eq!(proxy_args(&config), [pair("HTTP_PROXY"), pair("http_proxy")]);
        assert!(proxy_args(&Value::Null).is_empty());
    }
}
