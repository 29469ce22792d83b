//! Docker's client configuration: credentials for registries, and where its daemon is.

use anyhow::{Context as _, Result};
use base64::Engine as _;
use bud_session::Credentials;
use serde_json::Value;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

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

/// Finds the credentials for a registry.
pub fn credentials(host: &str) -> Result<Option<Credentials>> {
    let Some(folder) = folder() else { return Ok(None) };
    let path = folder.join("config.json");
    let mut text = Vec::new();
    match std::fs::File::open(&path) {
        Ok(file) => {
            _ = file.take(LIMIT).read_to_end(&mut text).with_context(|| format!("reading {}", path.display()))?
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("reading {}", path.display())),
    }
    lookup(&text, host).with_context(|| format!("credentials for {host} from {}", path.display()))
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

/// Docker Hub's name in the configuration.
const HUB: &str = "https://index.docker.io/v1/";

/// Looks a host up in a configuration's text: its own helper, the store, then what is written in the file.
fn lookup(config: &[u8], host: &str) -> Result<Option<Credentials>> {
    let config: Value = serde_json::from_slice(config).context("it is not JSON")?;
    let is_hub = matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    let server = if is_hub { HUB } else { host };
    let same = |key: &str| {
        let name = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let name = name.split('/').next().unwrap_or_default();
        name == host || (is_hub && matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io"))
    };
    let entry = |field: &str| {
        let map = config[field].as_object()?;
        // The exact name first: a map may have several spellings of one host.
        map.get(server).or_else(|| map.iter().find(|(key, _)| same(key)).map(|(_, value)| value))
    };
    if let Some(helper) = entry("credHelpers").and_then(Value::as_str) {
        return ask_helper(helper, server);
    }
    if let Some(store) = config["credsStore"].as_str().filter(|store| !store.is_empty())
        && let Some(found) = ask_helper(store, server)?
    {
        return Ok(Some(found));
    }
    let Some(auth) = entry("auths") else { return Ok(None) };
    let text = |field: &str| auth[field].as_str().filter(|text| !text.is_empty());
    if let Some(token) = text("identitytoken") {
        return Ok(Some(Credentials { username: String::new(), secret: token.to_owned() }));
    }
    if let (Some(username), Some(secret)) = (text("username"), text("password")) {
        return Ok(Some(Credentials { username: username.to_owned(), secret: secret.to_owned() }));
    }
    let Some(encoded) = text("auth") else { return Ok(None) };
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(encoded.trim())
        .ok()
        .and_then(|bytes| String::from_utf8(bytes).ok())
        .context("its `auth` is not base64 of user:password")?;
    let (username, secret) = decoded.split_once(':').context("its `auth` is not base64 of user:password")?;
    Ok(Some(Credentials { username: username.to_owned(), secret: secret.trim_end_matches('\0').to_owned() }))
}

/// Asks a credential helper, a program named docker-credential-NAME.
fn ask_helper(name: &str, server: &str) -> Result<Option<Credentials>> {
    use std::io::Write as _;
    /// A helper may ask the user to unlock a keyring.
    const DEADLINE: Duration = Duration::from_secs(60);
    anyhow::ensure!(
        !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)),
        "`{name}` is not the name of a credential helper"
    );
    let program = format!("docker-credential-{name}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {program}, which the configuration names"))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that doesn't read its input says by its exit what is wrong.
        _ = stdin.write_all(server.as_bytes());
    }
    let stdout = child.stdout.take().context("no stdout")?;
    let reading = std::thread::spawn(move || {
        let mut text = Vec::new();
        stdout.take(1 << 20).read_to_end(&mut text).map(|_| text)
    });
    let until = Instant::now() + DEADLINE;
    let status = loop {
        if let Some(status) = child.try_wait().with_context(|| format!("waiting for {program}"))? {
            break status;
        }
        if Instant::now() > until {
            child.kill().with_context(|| format!("ending {program}"))?;
            child.wait().with_context(|| format!("ending {program}"))?;
            anyhow::bail!("{program} didn't answer within {} seconds", DEADLINE.as_secs());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = reading.join().map_err(|_| anyhow::anyhow!("reading from {program} failed"))??;
    if !status.success() {
        let said = String::from_utf8_lossy(&text);
        if said.contains("credentials not found") {
            return Ok(None);
        }
        anyhow::bail!("{program}: {} ({status})", said.trim());
    }
    let answer: Value = serde_json::from_slice(&text).with_context(|| format!("{program} didn't answer in JSON"))?;
    let username = answer["Username"].as_str().unwrap_or_default();
    let secret = answer["Secret"].as_str().unwrap_or_default();
    if secret.is_empty() {
        return Ok(None);
    }
    let username = if username == "<token>" { "" } else { username };
    Ok(Some(Credentials { username: username.to_owned(), secret: secret.to_owned() }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(config: &str, host: &str) -> Option<(String, String)> {
        lookup(config.as_bytes(), host).unwrap().map(|c| (c.username, c.secret))
    }

    #[test]
    fn credentials_of_the_file() {
        let config = r#"{"auths":{
            "https://index.docker.io/v1/":{"auth":"bWU6aHViOnNlY3JldA=="},
            "localhost:5000":{"username":"u","password":"p"},
            "https://ghcr.io":{"identitytoken":"tok"},
            "empty.example":{}
        }}"#;
        let pair = |a: &str, b: &str| Some((a.to_owned(), b.to_owned()));
        assert_eq!(found(config, "registry-1.docker.io"), pair("me", "hub:secret"));
        assert_eq!(found(config, "docker.io"), pair("me", "hub:secret"));
        assert_eq!(found(config, "localhost:5000"), pair("u", "p"));
        assert_eq!(found(config, "ghcr.io"), pair("", "tok"));
        assert_eq!(found(config, "empty.example"), None);
        assert_eq!(found(config, "evil.example"), None);
        assert_eq!(found("{}", "docker.io"), None);
        assert!(lookup(b"{", "docker.io").is_err());
        assert!(lookup(br#"{"auths":{"a":{"auth":"%"}}}"#, "a").is_err());
    }

    #[test]
    fn proxies_become_build_arguments_in_both_spellings() {
        let config = serde_json::json!({"proxies": {"default": {"httpProxy": "http://p:1", "noProxy": ""}}});
        let pair = |name: &str| (name.to_owned(), "http://p:1".to_owned());
        assert_eq!(proxy_args(&config), [pair("HTTP_PROXY"), pair("http_proxy")]);
        assert!(proxy_args(&Value::Null).is_empty());
    }

    #[test]
    fn a_helper_s_name_is_no_path() {
        let error = lookup(br#"{"credsStore":"../../evil"}"#, "a").unwrap_err();
        assert!(error.to_string().contains("not the name"), "{error}");
    }
}
