//! Git repositories as build contexts and as sources of `ADD`: `https://host/repo.git?tag=v1#ref:dir`.

use super::graph::{Meta, Source};
use super::url::{Url, query_pairs};
use crate::fault::Fault;
use crate::text::number::parse_bool;
use crate::text::path;
use crate::text::quote::quote;
use std::collections::BTreeSet;

/// A repository, and what of it is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct GitRef {
    /// What git is to be given.
    pub(crate) remote: String,
    host: String,
    path: String,
    is_ssh: bool,
    pub(crate) reference: String,
    pub(crate) subdir: String,
    pub(crate) checksum: String,
    /// `github.com/foo/bar`: could be a path as well.
    pub(crate) looks_local: bool,
    pub(crate) keep_git_dir: Option<bool>,
    pub(crate) submodules: Option<bool>,
    pub(crate) mtime: String,
    pub(crate) fetch_by_commit: bool,
}

/// What a text is.
#[derive(Debug)]
pub(crate) enum Parsed {
    /// No repository.
    Other,
    /// A repository, asked for wrongly.
    Wrong(Fault),
    Git(Box<GitRef>),
}

/// A repository's address.
struct Remote {
    remote: String,
    scheme: String,
    host: String,
    path: String,
    query: Vec<(String, String)>,
    fragment: String,
}

fn of_url(url: &Url) -> Remote {
    Remote {
        remote: url.without_query(),
        scheme: url.scheme.clone(),
        host: url.host.clone(),
        path: url.path.clone(),
        // A query with malformed parts counts as far as it can be read.
        query: query_pairs(&url.query).unwrap_or_default(),
        fragment: url.fragment.clone(),
    }
}

/// Reads an address with a protocol, or in the form `user@host:path`.
fn parse_remote(text: &str) -> Option<Remote> {
    let has_protocol = text
        .split_once("://")
        .is_some_and(|(scheme, _)| !scheme.is_empty() && scheme.bytes().all(|b| b.is_ascii_alphanumeric()));
    if has_protocol {
        let scheme = text.split("://").next().unwrap_or_default().to_lowercase();
        if !matches!(scheme.as_str(), "http" | "https" | "ssh" | "git") {
            return None;
        }
        return Some(of_url(&Url::parse(text)?));
    }
    let (user, rest) = text.split_once('@')?;
    let (host, rest) = rest.split_once(':')?;
    let word = |text: &str, extra: u8| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == extra)
    };
    if !word(user, b'_') || !word(host, b'.') || rest.contains('\n') {
        return None;
    }
    let (before, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    // A question mark after the fragment's begin belongs to the fragment.
    let (path, query) = before.split_once('?').unwrap_or((before, ""));
    Some(Remote {
        remote: format!("{user}@{host}:{path}"),
        scheme: "ssh".into(),
        host: host.to_owned(),
        path: path.to_owned(),
        query: query_pairs(query)?,
        fragment: fragment.to_owned(),
    })
}

/// Parses a text as a repository.
pub(crate) fn parse(text: &str) -> Parsed {
    if text.starts_with("./") || text.starts_with("../") {
        return Parsed::Other;
    }
    let looks_local = text.starts_with("github.com/");
    let remote = if looks_local {
        Url::parse(&format!("https://{text}")).map(|url| of_url(&url))
    } else {
        parse_remote(text).filter(|r| !matches!(r.scheme.as_str(), "http" | "https") || r.path.ends_with(".git"))
    };
    let Some(remote) = remote else { return Parsed::Other };
    let (reference, subdir) = remote.fragment.split_once(':').unwrap_or((&remote.fragment, ""));
    let mut git = GitRef {
        remote: if looks_local { remote.remote.trim_start_matches("https://").to_owned() } else { remote.remote },
        host: remote.host,
        path: remote.path,
        is_ssh: remote.scheme == "ssh",
        reference: reference.to_owned(),
        subdir: path::join("/", subdir).trim_start_matches('/').to_owned(),
        looks_local,
        ..GitRef::default()
    };
    match git.read_query(&remote.query) {
        Ok(()) => Parsed::Git(Box::new(git)),
        Err(fault) => Parsed::Wrong(fault),
    }
}

impl GitRef {
    fn read_query(&mut self, query: &[(String, String)]) -> Result<(), Fault> {
        let conflict =
            |what: &str, a: &str, b: &str| Err(Fault::new(format!("{what} conflicts: {} vs {}", quote(a), quote(b))));
        let (mut tag, mut branch) = (String::new(), String::new());
        for (i, (key, value)) in query.iter().enumerate() {
            if query[..i].iter().any(|(other, _)| other == key) {
                return Err(Fault::new(format!("query {} has multiple values", quote(key))));
            }
            let is_flag = matches!(key.as_str(), "submodules" | "keep-git-dir" | "fetch-by-commit");
            if value.is_empty() && !is_flag {
                return Err(Fault::new(format!("query {} has no value", quote(key))));
            }
            let flag = || match parse_bool(value) {
                _ if value.is_empty() => Ok(true),
                Some(b) => Ok(b),
                None => Err(Fault::new(format!("invalid {key} value: {}", quote(value)))),
            };
            match key.as_str() {
                "ref" if !self.reference.is_empty() && self.reference != *value => {
                    return conflict("ref", &self.reference, value);
                }
                "ref" => self.reference.clone_from(value),
                "tag" => tag.clone_from(value),
                "branch" => branch.clone_from(value),
                "subdir" if !self.subdir.is_empty() && self.subdir != *value => {
                    return conflict("subdir", &self.subdir, value);
                }
                "subdir" => self.subdir.clone_from(value),
                "checksum" | "commit" => self.checksum.clone_from(value),
                "keep-git-dir" => self.keep_git_dir = Some(flag()?),
                "submodules" => self.submodules = Some(flag()?),
                "mtime" if matches!(value.as_str(), "checkout" | "commit") => self.mtime.clone_from(value),
                "mtime" => {
                    let value = quote(value);
                    return Err(Fault::new(format!(
                        "invalid mtime value: {value} (must be \"checkout\" or \"commit\")"
                    )));
                }
                "fetch-by-commit" => self.fetch_by_commit = flag()?,
                _ => return Err(Fault::new(format!("unexpected query {}", quote(key)))),
            }
        }
        let has_tag = !tag.is_empty();
        for (name, prefix) in [(tag, "refs/tags/"), (branch, "refs/heads/")] {
            if name.is_empty() {
                continue;
            }
            if prefix == "refs/heads/" && has_tag {
                return Err(Fault::new("branch conflicts with tag"));
            }
            let name = if name.starts_with(prefix) { name } else { format!("{prefix}{name}") };
            if !self.reference.is_empty() && self.reference != name {
                return conflict("ref", &self.reference, &name);
            }
            self.reference = name;
        }
        Ok(())
    }

    /// Makes a source of it.
    pub(crate) fn source(&self, options: &GitOptions) -> Source {
        let mut source = Source { caps: BTreeSet::from(["source.git"]), ..Source::default() };
        let mut url = self.remote.clone();
        let (host, repo_path, is_ssh) = if self.looks_local {
            url = format!("https://{url}");
            (self.host.as_str(), self.path.as_str(), false)
        } else {
            (self.host.as_str(), self.path.as_str(), self.is_ssh)
        };
        let mut id = format!("git://{host}{}", path::join("/", repo_path));
        if !self.reference.is_empty() || !options.subdir.is_empty() {
            id.push('#');
            id.push_str(&self.reference);
            if !options.subdir.is_empty() {
                id.push(':');
                id.push_str(&options.subdir);
            }
        }
        source.id = id;
        let mut set = |key: &str, value: &str, cap: Option<&'static str>| {
            source.attrs.insert(key.to_owned(), value.to_owned());
            source.caps.extend(cap);
        };
        if options.keep_git_dir {
            set("git.keepgitdir", "true", Some("source.git.keepgitdir"));
        }
        set("git.fullurl", &url, Some("source.git.fullurl"));
        set("git.authtokensecret", "GIT_AUTH_TOKEN", None);
        set("git.authheadersecret", "GIT_AUTH_HEADER", None);
        if is_ssh {
            // Known hosts are not looked up here: that would be I/O.
            set("git.mountsshsock", "default", Some("source.git.mountsshsock"));
        }
        if !options.checksum.is_empty() {
            set("git.checksum", &options.checksum, Some("source.git.checksum"));
        }
        if self.submodules == Some(false) {
            set("git.skipsubmodules", "true", Some("source.git.skipsubmodules"));
        }
        if !options.mtime.is_empty() {
            set("git.mtime", &options.mtime, Some("source.git.mtime"));
        }
        if self.fetch_by_commit {
            set("git.fetchbycommit", "true", Some("source.git.fetchbycommit"));
        }
        if is_ssh {
            source.caps.insert("source.git.knownsshhosts");
        }
        source
    }

    /// Returns the options that are written in the address.
    pub(crate) fn options(&self) -> GitOptions {
        GitOptions {
            keep_git_dir: self.keep_git_dir == Some(true),
            checksum: self.checksum.clone(),
            subdir: self.subdir.clone(),
            mtime: self.mtime.clone(),
        }
    }
}

/// What may be decided elsewhere than in the address.
#[derive(Clone, Debug, Default)]
pub(crate) struct GitOptions {
    pub(crate) keep_git_dir: bool,
    pub(crate) checksum: String,
    pub(crate) subdir: String,
    pub(crate) mtime: String,
}

/// Reads the address of a context; none if it is no repository.
pub(crate) fn context(text: &str, keep_git_dir: bool, mtime: &str) -> Result<Option<(Source, Meta)>, Fault> {
    let git = match parse(text) {
        Parsed::Other => return Ok(None),
        Parsed::Wrong(fault) => return Err(fault),
        Parsed::Git(git) => git,
    };
    let mut options = git.options();
    options.keep_git_dir |= keep_git_dir;
    if options.mtime.is_empty() {
        mtime.clone_into(&mut options.mtime);
    }
    Ok(Some((git.source(&options), Meta::named(format!("[internal] load git source {text}")))))
}

/// Tells whether a text is an address of a repository.
pub(crate) fn is_git(text: &str) -> bool {
    matches!(parse(text), Parsed::Git(_))
}

/// Tells whether a text is the address of a file.
pub(crate) fn is_http(text: &str) -> bool {
    (text.starts_with("http://") || text.starts_with("https://")) && !is_git(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn git(text: &str) -> GitRef {
        match parse(text) {
            Parsed::Git(git) => *git,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn repositories_are_told_from_files() {
        for text in ["https://h/a.git", "git://h/a", "ssh://git@h/a", "git@h:a.git", "https://h/a.git#v1:d"] {
            assert!(is_git(text), "{text}");
        }
        for text in ["https://h/a.tar.gz", "./a.git", "a.git", "ftp://h/a.git", "https://h/a", "ext::sh -c x"] {
            assert!(!is_git(text), "{text}");
        }
        assert!(git("github.com/a/b").looks_local);
    }

    #[test]
    fn queries() {
        let ok = git("https://h/a.git?tag=v1&subdir=d&keep-git-dir=1&submodules=false");
        assert_eq!((ok.reference.as_str(), ok.subdir.as_str()), ("refs/tags/v1", "d"));
        assert_eq!((ok.keep_git_dir, ok.submodules), (Some(true), Some(false)));
        for bad in ["?x=1", "?ref=a#b", "?tag=a&branch=b", "?subdir=", "?mtime=x", "?ref=a&ref=a"] {
            assert!(matches!(parse(&format!("https://h/a.git{bad}")), Parsed::Wrong(_)), "{bad}");
        }
        let ssh = git("git@h:a/b.git#v1");
        assert_eq!(ssh.source(&ssh.options()).id, "git://h/a/b.git#v1");
    }
}
