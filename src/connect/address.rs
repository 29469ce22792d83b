//! Daemon addresses as people write them.

use std::path::PathBuf;
use url::Url;

/// Where a daemon is, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    /// A socket of this machine.
    Unix(PathBuf),
    /// A TCP endpoint, `host:port`.
    Tcp(String),
    /// A program whose stdin and stdout are the connection.
    Command {
        /// The address as it was written.
        shown: String,
        /// Program and arguments.
        argv: Vec<String>,
    },
}

/// An address that can't be used, and what to write instead.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("the daemon's address {address} can't be used: {reason}")]
pub struct InvalidAddress {
    address: String,
    reason: String,
}

impl Address {
    /// Parses an address.
    ///
    /// # Errors
    /// It has no scheme, an unknown one, or lacks a part.
    pub fn parse(text: &str) -> Result<Self, InvalidAddress> {
        let wrong = |reason: &str| InvalidAddress { address: text.to_owned(), reason: reason.to_owned() };
        if let Some(path) = text.strip_prefix("unix://") {
            // Not through `Url`: a path may hold any character.
            return match path.strip_prefix('/') {
                Some(_) => Ok(Self::Unix(path.into())),
                None => {
                    Err(wrong("write the socket's absolute path, with three slashes: unix:///run/…/buildkitd.sock"))
                }
            };
        }
        if text.starts_with('/') {
            return Err(wrong(&format!("a socket is written as unix://{text}")));
        }
        let url = Url::parse(text).map_err(|_| {
            wrong("it has no scheme that is known; write unix:///path, tcp://host:port, docker-container://name or ssh://user@host")
        })?;
        let host = url.host_str().filter(|host| !host.is_empty());
        let need = |what: &str| wrong(&format!("{what} is missing"));
        let dial = |argv: &[&str]| {
            let argv = argv.iter().map(|&arg| arg.to_owned()).chain(["buildctl".into(), "dial-stdio".into()]).collect();
            Self::Command { shown: text.to_owned(), argv }
        };
        // Nothing that a program would take for one of its options.
        let name = |host: &str| match host.starts_with('-') {
            true => Err(wrong("a name can't begin with a dash")),
            false => Ok(host.to_owned()),
        };
        match url.scheme() {
            "tcp" => {
                let host = host.ok_or_else(|| need("the host"))?;
                let port = url.port().ok_or_else(|| need("the port (often 1234)"))?;
                Ok(Self::Tcp(format!("{host}:{port}")))
            }
            "docker-container" => {
                Ok(dial(&["docker", "exec", "-i", &name(host.ok_or_else(|| need("the container's name"))?)?]))
            }
            "podman-container" => {
                Ok(dial(&["podman", "exec", "-i", &name(host.ok_or_else(|| need("the container's name"))?)?]))
            }
            "kube-pod" => {
                let pod = name(host.ok_or_else(|| need("the pod's name"))?)?;
                let mut argv = vec!["kubectl".to_owned()];
                let mut container = None;
                for (key, value) in url.query_pairs() {
                    match key.as_ref() {
                        "context" => argv.push(format!("--context={value}")),
                        "namespace" => argv.push(format!("--namespace={value}")),
                        "container" => container = Some(format!("--container={value}")),
                        other => {
                            return Err(wrong(&format!(
                                "`{other}` is not known; there are context, namespace, container"
                            )));
                        }
                    }
                }
                argv.extend(["exec".into(), "-i".into()]);
                argv.extend(container);
                argv.extend([pod, "--".into()]);
                Ok(dial(&argv.iter().map(String::as_str).collect::<Vec<_>>()))
            }
            "ssh" => {
                let host = host.ok_or_else(|| need("the host"))?;
                if url.password().is_some() {
                    return Err(wrong("a password can't be in it; use a key"));
                }
                let target = match url.username() {
                    "" => name(host)?,
                    user => name(&format!("{user}@{host}"))?,
                };
                let port = url.port().map(|port| port.to_string());
                let mut argv = vec!["ssh", "-o", "ConnectTimeout=30", "-T"];
                if let Some(port) = &port {
                    argv.extend(["-p", port]);
                }
                argv.extend(["--", &target]);
                Ok(dial(&argv))
            }
            "http" | "https" => Err(wrong("BuildKit is reached with tcp:// (and --tlscacert for TLS)")),
            "npipe" => Err(wrong("named pipes exist on Windows only")),
            "nerdctl-container" => {
                Err(wrong("containers of nerdctl are not supported; forward its socket and use unix://"))
            }
            other => Err(wrong(&format!(
                "{other}:// is not supported; there are unix, tcp, docker-container, podman-container, kube-pod and ssh"
            ))),
        }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(host) => write!(f, "tcp://{host}"),
            Self::Command { shown, .. } => f.write_str(shown),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn argv(text: &str) -> String {
        match Address::parse(text).unwrap() {
            Address::Command { argv, .. } => argv.join(" "),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn known_schemes() {
        assert_eq!(Address::parse("unix:///a b/c%20d").unwrap(), Address::Unix("/a b/c%20d".into()));
        assert_eq!(Address::parse("tcp://[::1]:1234").unwrap(), Address::Tcp("[::1]:1234".into()));
        assert_eq!(argv("docker-container://bk"), "docker exec -i bk buildctl dial-stdio");
        assert_eq!(argv("podman-container://bk"), "podman exec -i bk buildctl dial-stdio");
        assert_eq!(
            argv("kube-pod://p?namespace=n&container=c"),
            "kubectl --namespace=n exec -i --container=c p -- buildctl dial-stdio"
        );
        assert_eq!(argv("ssh://me@host:22"), "ssh -o ConnectTimeout=30 -T -p 22 -- me@host buildctl dial-stdio");
    }

    #[test]
    fn others_are_refused_with_a_hint() {
        for (text, hint) in [
            ("/run/x.sock", "unix:///run/x.sock"),
            ("unix://run/x", "three slashes"),
            ("tcp://localhost", "the port"),
            ("localhost", "no scheme"),
            ("localhost:1234", "not supported"),
            ("https://a:1", "tcp://"),
            ("ssh://-oProxyCommand=x", "dash"),
            ("docker-container://", "name is missing"),
            ("docker-container://--help", "dash"),
        ] {
            let error = Address::parse(text).unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
