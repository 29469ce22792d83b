//! What may be given to git: addresses, references and paths that can't be taken for anything else.

use url::Url;

/// Longest address, reference or path, in bytes.
const MAX: usize = 4096;

/// Why something is not given to git.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?}: {why}")]
pub struct Refused {
    /// What it was to be.
    what: &'static str,
    /// What was given.
    given: String,
    /// What is wrong with it.
    why: &'static str,
}

fn refuse<T>(what: &'static str, given: &str, why: &'static str) -> Result<T, Refused> {
    // Passwords stay out of messages.
    let given = Remote::redacted(given);
    Err(Refused { what, given: given.chars().take(200).collect(), why })
}

/// The address of a repository: `https`, `http`, `ssh` or `git`, or `user@host:path` for ssh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    text: String,
    /// Where an `Authorization` header goes: scheme and host, for `http` and `https`.
    http_host: Option<String>,
    is_ssh: bool,
}

impl Remote {
    /// Checks an address. One without a scheme is `https`.
    ///
    /// # Errors
    /// It is of another kind, or holds what a command line could mistake.
    pub fn parse(text: &str) -> Result<Self, Refused> {
        const WHAT: &str = "git repository";
        if text.is_empty() || text.len() > MAX {
            return refuse(WHAT, text, "it is empty or too long");
        }
        if text.starts_with('-') || text.chars().any(|c| c.is_control() || c == ' ') {
            return refuse(WHAT, text, "it begins with a dash, or has control characters or spaces");
        }
        if !text.contains("://") {
            if let Some(remote) = Self::parse_scp(text)? {
                return Ok(remote);
            }
            return Self::parse(&format!("https://{text}"));
        }
        let Ok(url) = Url::parse(text) else { return refuse(WHAT, text, "it is no URL") };
        if !matches!(url.scheme(), "https" | "http" | "ssh" | "git") {
            return refuse(WHAT, text, "only https, http, ssh and git are allowed");
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return refuse(WHAT, text, "it has no host");
        };
        if host.starts_with('-') || url.username().starts_with('-') || url.username().starts_with("%2d") {
            return refuse(WHAT, text, "its host or user begins with a dash");
        }
        if matches!(url.path(), "" | "/") {
            return refuse(WHAT, text, "it has no path");
        }
        let http_host = matches!(url.scheme(), "https" | "http").then(|| match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        });
        Ok(Self { text: text.to_owned(), http_host, is_ssh: url.scheme() == "ssh" })
    }

    /// Reads `[user@]host:path`.
    fn parse_scp(text: &str) -> Result<Option<Self>, Refused> {
        let Some((login, path)) = text.split_once(':') else { return Ok(None) };
        let Some((user, host)) = login.split_once('@') else {
            // `host:port/path` is a URL without its scheme; a transport helper (`ext::…`) is nothing.
            if path.starts_with(':') {
                return refuse("git repository", text, "only https, http, ssh and git are allowed");
            }
            return Ok(None);
        };
        let is_name = |name: &str| {
            !name.is_empty()
                && !name.starts_with('-')
                && name.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        };
        if login.contains('/') {
            return Ok(None);
        }
        if !is_name(user) || !is_name(host) || path.is_empty() || path.starts_with('-') || path.starts_with(':') {
            return refuse("git repository", text, "it is no user@host:path");
        }
        Ok(Some(Self { text: text.to_owned(), http_host: None, is_ssh: true }))
    }

    /// The address for git's command line, where it follows `--`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The host and port that credentials are for, if the address is of `http` or `https`.
    #[must_use]
    pub fn http_host(&self) -> Option<&str> {
        self.http_host.as_deref()
    }

    /// Tells whether ssh is used.
    #[must_use]
    pub fn is_ssh(&self) -> bool {
        self.is_ssh
    }

    /// The address without a password, for people and for what stays.
    #[must_use]
    pub fn shown(&self) -> String {
        Self::redacted(&self.text)
    }

    fn redacted(text: &str) -> String {
        match Url::parse(text) {
            Ok(mut url)
                if url.password().is_some() || (url.scheme().starts_with("http") && !url.username().is_empty()) =>
            {
                // Fails only for URLs without a host, which have neither.
                let _ = url.set_password(None);
                let _ = url.set_username("");
                url.into()
            }
            _ => text.to_owned(),
        }
    }
}

/// Checks a reference as `git-check-ref-format(1)` does; empty is the default branch.
///
/// # Errors
/// It could be taken for an option or for more than one reference.
pub fn check_reference(reference: &str) -> Result<(), Refused> {
    const WHAT: &str = "git reference";
    if reference.len() > 1024 {
        return refuse(WHAT, reference, "it is too long");
    }
    if reference.starts_with('-') {
        return refuse(WHAT, reference, "it begins with a dash");
    }
    let bad = |c: char| c.is_control() || c.is_whitespace() || "~^:?*[\\".contains(c);
    if reference.chars().any(bad) || reference.contains("..") || reference.contains("@{") || reference.contains("//") {
        return refuse(WHAT, reference, "it has characters that no reference has");
    }
    if reference.starts_with('/') || reference.ends_with('/') || reference.ends_with('.') {
        return refuse(WHAT, reference, "it begins or ends with what no reference does");
    }
    if reference.split('/').any(|part| part.starts_with('.') || part.ends_with(".lock")) {
        return refuse(WHAT, reference, "a part of it begins with a dot or ends with .lock");
    }
    Ok(())
}

/// Cleans a path in a repository: relative, empty for the root.
///
/// # Errors
/// It leads out, or into `.git`.
pub fn check_subdirectory(path: &str) -> Result<String, Refused> {
    const WHAT: &str = "directory of a git repository";
    if path.len() > MAX || path.contains('\0') {
        return refuse(WHAT, path, "it is too long or has a NUL");
    }
    let parts: Vec<&str> = path.split('/').filter(|part| !matches!(*part, "" | ".")).collect();
    if parts.contains(&"..") {
        return refuse(WHAT, path, "it leads out of the repository");
    }
    if parts.iter().any(|part| part.eq_ignore_ascii_case(".git")) {
        return refuse(WHAT, path, "it leads into git's own directory");
    }
    Ok(parts.join("/"))
}

/// Checks the address of a submodule, which may be relative to its repository's.
///
/// # Errors
/// As for a repository's.
pub fn check_submodule_url(url: &str) -> Result<(), Refused> {
    if url.starts_with("./") || url.starts_with("../") {
        if url.chars().any(char::is_control) || url.contains("::") || url.len() > MAX {
            return refuse("submodule URL", url, "it has characters that it can't have");
        }
        return Ok(());
    }
    if !url.contains("://") && !url.contains('@') {
        return refuse("submodule URL", url, "only https, http, ssh and git are allowed");
    }
    Remote::parse(url).map(|_| ())
}

/// Checks the path of a submodule.
///
/// # Errors
/// It leads out, into `.git`, or could be taken for an option.
pub fn check_submodule_path(path: &str) -> Result<String, Refused> {
    if path.starts_with('-') || path.starts_with('/') || path.chars().any(char::is_control) {
        return refuse("submodule path", path, "it is no relative path");
    }
    let cleaned = check_subdirectory(path)?;
    if cleaned.is_empty() {
        return refuse("submodule path", path, "it is the repository itself");
    }
    Ok(cleaned)
}

/// Tells whether a text is a whole commit id: SHA-1 or SHA-256.
#[must_use]
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_the_four_kinds_are_taken() {
        for (text, want, host) in [
            ("https://github.com/a/b.git", "https://github.com/a/b.git", Some("github.com")),
            ("github.com/a/b", "https://github.com/a/b", Some("github.com")),
            ("example.test:8080/a", "https://example.test:8080/a", Some("example.test:8080")),
            ("http://localhost:80/x", "http://localhost:80/x", Some("localhost")),
            ("git://127.0.0.1:9418/x.git", "git://127.0.0.1:9418/x.git", None),
            ("ssh://git@host:22/x", "ssh://git@host:22/x", None),
            ("git@github.com:a/b.git", "git@github.com:a/b.git", None),
        ] {
            let remote = Remote::parse(text).unwrap();
            assert_eq!((remote.as_str(), remote.http_host()), (want, host), "{text}");
        }
        assert!(Remote::parse("git@github.com:a/b.git").unwrap().is_ssh());
    }

    #[test]
    fn other_addresses_are_refused() {
        for text in [
            "",
            "--upload-pack=touch /tmp/x",
            "-u",
            "ext::sh -c id",
            "ext::sh%20-c%20id",
            "file:///etc",
            "ext://x/y",
            "https://-oProxyCommand=x/y",
            "ssh://-oProxyCommand=x/y",
            "git@-oProxyCommand=x:y",
            "-x@host:y",
            "a@b:-c",
            "https://host",
            "https:///x",
            "https://host/a\nb",
            "https://host/a b",
            "ftp://host/x",
            "a@b::c",
            "fd::17/x",
        ] {
            assert!(Remote::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn passwords_are_not_shown() {
        let remote = Remote::parse("https://user:hunter2@host/x").unwrap();
        assert_eq!(remote.shown(), "https://host/x");
        let error = Remote::parse("ftp://user:hunter2@host/x").unwrap_err();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn references() {
        for good in ["", "main", "v1.0", "refs/heads/a/b", "refs/pull/1/head", "feature@x", "HEAD"] {
            check_reference(good).unwrap();
        }
        for bad in [
            "--output=x",
            "a..b",
            "a b",
            "a:b",
            "a^{}",
            "a~1",
            "@{-1}",
            "/a",
            "a/",
            ".a",
            "a/.b",
            "x.lock",
            "a\n",
            "a*",
            "a\\b",
        ] {
            assert!(check_reference(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn subdirectories_stay_inside() {
        assert_eq!(check_subdirectory("/a//./b/").unwrap(), "a/b");
        assert_eq!(check_subdirectory("").unwrap(), "");
        for bad in ["..", "a/../b", "../..", ".git", "a/.GIT/hooks", "a\0"] {
            assert!(check_subdirectory(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn submodules() {
        for good in ["../other.git", "./x", "https://host/x", "git@host:x"] {
            check_submodule_url(good).unwrap();
        }
        for bad in ["-u./payload", "--upload-pack=x", "ext::sh -c x", "file:///x", "/etc", "x", "../a\nb"] {
            assert!(check_submodule_url(bad).is_err(), "{bad:?}");
        }
        for bad in ["-x", "../x", ".git/modules/x", "/x", "", ".", "a/../b"] {
            assert!(check_submodule_path(bad).is_err(), "{bad:?}");
        }
        assert_eq!(check_submodule_path("libs/a").unwrap(), "libs/a");
    }

    #[test]
    fn commits() {
        assert!(is_commit(&"a1".repeat(20)) && is_commit(&"0f".repeat(32)));
        assert!(!is_commit("abc") && !is_commit(&"A1".repeat(20)) && !is_commit(&"g1".repeat(20)));
    }
}
