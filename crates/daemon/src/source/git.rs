//! `git://`: a commit of a repository.
//!
//! A reference is pinned to its commit by asking the remote (`ls-remote`); what was fetched of a remote stays in a bare repository of the
//! daemon's own. The program `git` does the work, with nothing of the user's or the machine's in it ([`command`]) and only with what was
//! checked before ([`remote`]).

pub mod command;
pub mod remote;
pub mod repository;

use super::{Pin, PinKey, SourceCx, fixed_key, private_cache_id};
use crate::sessions::session_error;
use crate::value::{Stop, Value, blocking, store_error};
use base64::Engine as _;
use bud_protocol::errors::BuildError;
use bud_session::SessionError;
use bud_session::daemon::SshForward;
use bud_store::{Info, RecordType, Sharing, Snapshot};
use command::{Git, GitError, Log, REMOTE};
use remote::{Refused, Remote, check_reference, check_subdirectory, is_commit};
use repository::{Checkout, Resolved};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// A repository at a reference.
#[derive(Clone, Debug)]
pub struct GitSource {
    remote: Remote,
    /// A branch, a tag, a full reference, a commit; empty: the default branch.
    reference: String,
    subdirectory: String,
    keep_git_dir: bool,
    skip_submodules: bool,
    commit_time: bool,
    /// The commit that it must be, or the beginning of it.
    checksum: String,
    fetch_by_commit: bool,
    token_secret: String,
    header_secret: String,
    known_hosts: String,
    ssh_agent: String,
}

/// What is known of a repository's reference.
#[derive(Clone, Debug, Default)]
pub struct GitMetadata {
    /// The commit.
    pub checksum: String,
    /// The full reference (`refs/heads/main`).
    pub reference: String,
    /// The committer's time in seconds since 1970, if it is known without fetching.
    pub modified: Option<i64>,
}

fn invalid(error: Refused) -> BuildError {
    BuildError::invalid(error.to_string())
}

/// A prepared git, with what it uses while it runs.
struct Session {
    git: Git,
    _agent: Option<SshForward>,
    _files: Scratch,
}

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // Emptied with the directory that it is in when the daemon starts again.
        let _left = std::fs::remove_dir_all(&self.0);
    }
}

impl GitSource {
    /// Parses identifier and attributes (`git.fullurl`, `git.keepgitdir`, `git.authtokensecret`, `git.authheadersecret`,
    /// `git.knownsshhosts`, `git.mountsshsock`, `git.checksum`, `git.skipsubmodules`, `git.mtime`, `git.fetchbycommit`).
    ///
    /// # Errors
    /// `InvalidArgument`.
    pub fn parse(rest: &str, attrs: &BTreeMap<String, String>) -> Result<Self, BuildError> {
        let attr = |key: &str| attrs.get(key).cloned().unwrap_or_default();
        let flag = |key: &str| attrs.get(key).is_some_and(|value| value == "true");
        let (address, fragment) = rest.split_once('#').unwrap_or((rest, ""));
        let (reference, subdirectory) = fragment.split_once(':').unwrap_or((fragment, ""));
        let full = attr("git.fullurl");
        let remote = Remote::parse(if full.is_empty() { address } else { &full }).map_err(invalid)?;
        check_reference(reference).map_err(invalid)?;
        let subdirectory = check_subdirectory(subdirectory).map_err(invalid)?;
        let checksum = attr("git.checksum").to_ascii_lowercase();
        if !checksum.bytes().all(|byte| byte.is_ascii_hexdigit()) || checksum.len() > 64 {
            return Err(BuildError::invalid(format!(
                "invalid checksum {checksum:?} for a git URL, expected a commit hash"
            )));
        }
        if let Some(key) = attrs
            .keys()
            .find(|key| key.starts_with("git.sig.") || key.starts_with("git.bundle") || *key == "git.checkoutbundle")
        {
            return Err(BuildError::invalid(format!("git source: {key} is not supported")));
        }
        Ok(Self {
            remote,
            reference: reference.to_owned(),
            subdirectory,
            keep_git_dir: flag("git.keepgitdir"),
            skip_submodules: flag("git.skipsubmodules"),
            commit_time: attr("git.mtime") == "commit",
            checksum,
            fetch_by_commit: flag("git.fetchbycommit"),
            token_secret: attr("git.authtokensecret"),
            header_secret: attr("git.authheadersecret"),
            known_hosts: attr("git.knownsshhosts"),
            ssh_agent: attr("git.mountsshsock"),
        })
    }

    /// Finds out what the reference stands for; for front ends.
    ///
    /// # Errors
    /// The repository can't be asked.
    pub async fn metadata(&self, cx: &SourceCx) -> Result<GitMetadata, BuildError> {
        let found = self.resolve(cx).await?;
        Ok(GitMetadata { checksum: found.object, reference: found.reference, modified: None })
    }

    /// Pins to the commit.
    ///
    /// # Errors
    /// The repository can't be asked.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        let found = self.resolve(cx).await?;
        let git_dir =
            if self.keep_git_dir { format!(".git#{} {}", found.reference, found.object) } else { String::new() };
        let commit = found.commit.as_ref().unwrap_or(&found.object);
        let submodules = if self.skip_submodules { "skip-submodules" } else { "" };
        let time = if self.commit_time { "commit-time" } else { "" };
        let key = fixed_key("git", &[commit, &git_dir, &self.subdirectory, submodules, time]);
        let state = BTreeMap::from([("reference".to_owned(), found.reference), ("object".to_owned(), found.object)]);
        Ok(Pin { key: PinKey::Fixed(key), state })
    }

    /// Fetches the commit and checks it out into a layer.
    ///
    /// # Errors
    /// The repository can't be fetched, or a path in it is hostile.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        let state = |key: &str| pin.state.get(key).cloned().unwrap_or_default();
        let (reference, object) = (state("reference"), state("object"));
        let session = self.session(cx).await?;
        let store = Arc::clone(&cx.daemon.store);
        let (key, cancel) = (self.remote.as_str().to_owned(), cx.cancel.clone());
        let (bare, draft) = blocking(move || {
            let id = private_cache_id(&store, "git", &key).map_err(store_error)?;
            let bare = store.cache_mount(&id, Sharing::Locked, &Stop(&cancel)).map_err(store_error)?;
            let draft = store.draft(&Snapshot::scratch()).map_err(store_error)?;
            Ok((bare, draft))
        })
        .await?;
        let what = Checkout {
            reference,
            object,
            subdirectory: self.subdirectory.clone(),
            keep_git_dir: self.keep_git_dir,
            skip_submodules: self.skip_submodules,
            commit_time: self.commit_time,
        };
        let work = async {
            let bare = bare.path();
            repository::fetch(&session.git, &bare, &self.remote, &what.reference, &what.object).await?;
            let (upper, work) = (draft.upper(), draft.work());
            let made = tokio::fs::create_dir_all(&work).await;
            made.map_err(|source| GitError::Io { doing: format!("making {}", work.display()), source })?;
            repository::check_out(&session.git, &bare, &self.remote, &what, &upper, &work).await
        };
        work.await.map_err(|error| self.failed("fetch", &error))?;
        drop(bare);
        let description = format!("git snapshot for {}#{}", self.remote.shown(), what.reference);
        blocking(move || {
            let info = Info { description, record_type: RecordType::GitCheckout };
            draft.commit(&info).map(Value::kept).map_err(store_error)
        })
        .await
    }

    fn failed(&self, doing: &str, error: &GitError) -> BuildError {
        let hint = if error.says(&["could not read Username", "Authentication failed", "terminal prompts disabled"]) {
            "\nIf it is private, give a token: --secret id=GIT_AUTH_TOKEN,env=…"
        } else if error.says(&["Permission denied (publickey", "Host key verification failed"]) {
            "\nIf it is private, give an ssh agent: --ssh default"
        } else {
            ""
        };
        BuildError::other(format!("failed to {doing} remote {}: {error}{hint}", self.remote.shown()))
    }

    async fn resolve(&self, cx: &SourceCx) -> Result<Resolved, BuildError> {
        let of_commit = |reference: &str, commit: &str| Resolved {
            reference: reference.to_owned(),
            object: commit.to_owned(),
            commit: None,
        };
        if is_commit(&self.reference) {
            return self.checked(of_commit(&self.reference, &self.reference));
        }
        if self.fetch_by_commit {
            if !is_commit(&self.checksum) {
                return Err(BuildError::invalid("fetching by commit needs a whole commit hash as checksum"));
            }
            return Ok(of_commit(&self.checksum, &self.checksum));
        }
        let session = self.session(cx).await?;
        let found = repository::resolve(&session.git, &self.remote, &self.reference).await;
        self.checked(found.map_err(|error| self.failed("ask", &error))?)
    }

    /// Compares with the checksum demanded: of the commit, or of the annotated tag.
    fn checked(&self, found: Resolved) -> Result<Resolved, BuildError> {
        let commit = found.commit.as_deref().unwrap_or_default();
        if found.object.starts_with(&self.checksum) || (!commit.is_empty() && commit.starts_with(&self.checksum)) {
            return Ok(found);
        }
        let or = if commit.is_empty() { String::new() } else { format!(" or {commit}") };
        Err(BuildError::other(format!("expected checksum to match {}, got {}{or}", self.checksum, found.object)))
    }

    /// Prepares a git with the client's credentials.
    async fn session(&self, cx: &SourceCx) -> Result<Session, BuildError> {
        let id = bud_session::client::new_id().map_err(session_error)?;
        let files = Scratch(cx.daemon.settings.runtime_dir.join(id));
        let failed = |e: std::io::Error| BuildError::other(format!("create {}: {e}", files.0.display()));
        std::fs::create_dir(&files.0).map_err(failed)?;
        let progress = cx.progress.clone();
        let log: Log = Arc::new(move |bytes| progress.log(2, bytes.to_vec()));
        let mut git = Git {
            dir: files.0.clone(),
            config: self.credentials(cx).await?,
            protocols: REMOTE,
            variables: Vec::new(),
            ssh_socket: None,
            known_hosts: None,
            log,
        };
        let mut agent = None;
        if self.remote.is_ssh() {
            if !self.known_hosts.is_empty() {
                let path = files.0.join("known_hosts");
                std::fs::write(&path, format!("{}\n", self.known_hosts)).map_err(failed)?;
                git.known_hosts = Some(path);
            }
            if !self.ssh_agent.is_empty() {
                let path = files.0.join("agent");
                agent = self.forward_agent(cx, &path).await?;
                git.ssh_socket = agent.is_some().then_some(path);
            }
        }
        Ok(Session { git, _agent: agent, _files: files })
    }

    /// Bridges a socket to the client's ssh agent; `None` if it has none: the repository may be open to all.
    async fn forward_agent(&self, cx: &SourceCx, path: &std::path::Path) -> Result<Option<SshForward>, BuildError> {
        let (id, path) = (self.ssh_agent.as_str(), path.to_owned());
        let forwarded = cx.sessions.any(|session| {
            let path = path.clone();
            async move {
                session.check_ssh(id).await?;
                let listener = tokio::net::UnixListener::bind(&path)
                    .map_err(|source| SessionError::Io { doing: format!("listen on {}", path.display()), source })?;
                session.forward_ssh(id, listener)
            }
        });
        match forwarded.await {
            Ok(forward) => Ok(Some(forward)),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(session_error(error)),
        }
    }

    /// Settings that carry the client's secret for the remote, if it has one.
    async fn credentials(&self, cx: &SourceCx) -> Result<Vec<(String, String)>, BuildError> {
        let Some(host) = self.remote.http_host() else { return Ok(Vec::new()) };
        let named = |name: &String, is_token| (!name.is_empty()).then(|| (name.clone(), is_token));
        let of_host = |name: &String, is_token| (!name.is_empty()).then(|| (format!("{name}.{host}"), is_token));
        let names = [
            of_host(&self.header_secret, false),
            of_host(&self.token_secret, true),
            named(&self.header_secret, false),
            named(&self.token_secret, true),
        ];
        for (name, is_token) in names.into_iter().flatten() {
            let name = name.as_str();
            let secret = cx.sessions.any(|session| async move { session.secret(name).await }).await;
            let secret = match secret {
                Ok(Some(secret)) => secret,
                Ok(None) => continue,
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(session_error(error)),
            };
            let secret = String::from_utf8(secret)
                .ok()
                .map(|secret| secret.trim().to_owned())
                .filter(|secret| !secret.chars().any(char::is_control))
                .ok_or_else(|| BuildError::invalid(format!("secret {name}: it can't be sent in a header")))?;
            let value = if is_token {
                let login = base64::engine::general_purpose::STANDARD.encode(format!("x-access-token:{secret}"));
                format!("basic {login}")
            } else {
                secret
            };
            return Ok(vec![
                (format!("http.{}.extraheader", self.token_scope()), format!("Authorization: {value}")),
                // Else the secret would go along to wherever the server points.
                ("http.followRedirects".to_owned(), "false".to_owned()),
            ]);
        }
        Ok(Vec::new())
    }

    /// The addresses that the secret is for: the repository, and for GitHub all of its.
    fn token_scope(&self) -> &str {
        let github = ["https://github.com/", "https://www.github.com/"];
        github.into_iter().find(|prefix| self.remote.as_str().starts_with(prefix)).unwrap_or(self.remote.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(rest: &str, attrs: &[(&str, &str)]) -> Result<GitSource, BuildError> {
        GitSource::parse(rest, &attrs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
    }

    #[test]
    fn identifiers_are_read() {
        let source =
            parse("github.com/a/b.git#v1:sub/dir", &[("git.fullurl", "ssh://git@github.com/a/b.git")]).unwrap();
        assert_eq!(source.remote.as_str(), "ssh://git@github.com/a/b.git");
        assert_eq!((source.reference.as_str(), source.subdirectory.as_str()), ("v1", "sub/dir"));
        assert_eq!(parse("github.com/a/b", &[]).unwrap().remote.as_str(), "https://github.com/a/b");
    }

    #[test]
    fn hostile_ones_are_refused_before_git_gets_them() {
        for (rest, attrs) in [
            ("h/a#--output=x", &[][..]),
            ("h/a#x:../..", &[]),
            ("h/a#x:.git", &[]),
            ("h/a", &[("git.fullurl", "--upload-pack=touch /x")]),
            ("h/a", &[("git.fullurl", "ext::sh -c id")]),
            ("h/a", &[("git.fullurl", "file:///etc")]),
            ("h/a", &[("git.checksum", "--x")]),
            ("-u/a", &[]),
        ] {
            let error = parse(rest, attrs).unwrap_err();
            assert_eq!(error.to_status().code(), tonic::Code::InvalidArgument, "{rest} {attrs:?}");
        }
    }

    #[test]
    fn the_checksum_is_of_the_commit_or_the_tag() {
        let source = parse("h/a#v1", &[("git.checksum", "abc")]).unwrap();
        let found = |object: &str, commit: Option<&str>| Resolved {
            reference: "refs/tags/v1".into(),
            object: object.into(),
            commit: commit.map(Into::into),
        };
        assert!(source.checked(found("abc1", None)).is_ok());
        assert!(source.checked(found("def", Some("abc1"))).is_ok());
        let error = source.checked(found("def", Some("123"))).unwrap_err().to_string();
        assert!(error.contains("expected checksum to match abc, got def or 123"), "{error}");
    }

    #[test]
    fn a_secret_is_for_its_repository() {
        assert_eq!(parse("h.test/a/b", &[]).unwrap().token_scope(), "https://h.test/a/b");
        assert_eq!(parse("github.com/a/b", &[]).unwrap().token_scope(), "https://github.com/");
    }
}
