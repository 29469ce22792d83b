//! Sources: where files come from. Adding one is adding a file and a line in [`parse`].
//!
//! A source is first *pinned*: what it stands for right now is found out, as cheaply as that is possible (a tag becomes a digest, a
//! branch a commit). The pin gives the cache key. Only if nothing is stored under that key, and something needs the files,
//! is it *fetched*.

pub mod git;
pub mod http;
pub mod image;
pub mod local;
pub mod oci_layout;
pub mod pull;
pub mod registry;

use crate::daemon::Daemon;
use crate::progress::Reporter;
use crate::sessions::SessionGroup;
use crate::value::Value;
use bud_image::{Digest, Platform};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What sources keep for the daemon's whole life: registry clients, what tags were resolved to a moment ago, and the like. Its parts are made
/// on first use; nothing is done at the daemon's start.
#[derive(Debug, Default)]
pub struct Shared {
    /// Connections to registries.
    pub registries: registry::Registries,
    /// Layers' blobs that are being made.
    pub layer_blobs: crate::exporter::layers::InFlight,
}

/// What a source works with.
#[derive(Clone, Debug)]
pub struct SourceCx {
    /// The daemon: store, registries, descriptors, configuration.
    pub daemon: Arc<Daemon>,
    /// The clients that may be asked for files, credentials, secrets, ssh agents.
    pub sessions: SessionGroup,
    /// Where progress goes: the source's own vertex.
    pub progress: Reporter,
    /// Cancelled when nobody wants the result any more. Long blocking work asks it; async work may simply be dropped.
    pub cancel: CancellationToken,
    /// The platform asked for.
    pub platform: Platform,
}

/// A source, parsed: its identifier's scheme decides which.
#[derive(Clone, Debug)]
pub enum Source {
    /// `docker-image://`
    Image(image::ImageSource),
    /// `oci-layout://`
    OciLayout(oci_layout::OciLayoutSource),
    /// `local://`
    Local(local::LocalSource),
    /// `git://`
    Git(git::GitSource),
    /// `http://`, `https://`
    Http(http::HttpSource),
}

/// What a source stands for at this moment.
#[derive(Clone, Debug)]
pub struct Pin {
    /// How it is remembered.
    pub key: PinKey,
    /// What was found out, for [`Source::fetch`], as the source likes (a digest, a commit, an etag).
    pub state: BTreeMap<String, String>,
}

/// How a pinned source is remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PinKey {
    /// Its content is fixed by this key: a record under it is the same content. Made by [`fixed_key`].
    Fixed(Digest),
    /// Only the files themselves tell (a client's directory): users are keyed by what they take from it.
    Content,
}

/// Makes the key of a fixed content: of the kind of source and all that decides its files.
#[must_use]
pub fn fixed_key(kind: &str, parts: &[&str]) -> Digest {
    let mut text = format!("source:{kind}");
    for part in parts {
        text.push('\0');
        text.push_str(part);
    }
    Digest::of(text)
}

/// Returns the id of a cache mount of the daemon's own, which no step can name: it has a random part that only the store knows.
///
/// # Errors
/// The database fails.
pub fn private_cache_id(store: &bud_store::Store, kind: &str, key: &str) -> Result<String, bud_store::StoreError> {
    const SECRET: &str = "\0secret of the daemon's own cache mounts";
    static MAKING: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one_at_a_time = MAKING.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let secret = match store.remembered_tag(SECRET)? {
        Some((secret, _)) => secret,
        None => {
            let mut random = [0u8; 32];
            let mut filled = 0;
            while filled < random.len() {
                match rustix::rand::getrandom(&mut random[filled..], rustix::rand::GetRandomFlags::empty()) {
                    Ok(more) => filled += more,
                    Err(rustix::io::Errno::INTR) => {}
                    Err(source) => {
                        let path = std::path::PathBuf::from("random numbers");
                        return Err(bud_store::StoreError::Io { what: "read", path, source: source.into() });
                    }
                }
            }
            let secret = hex::encode(random);
            store.remember_tag(SECRET, &secret)?;
            secret
        }
    };
    // The hash hides the secret, and whatever else the key has, from listings.
    Ok(format!("{kind} {}", Digest::of(format!("{secret}\0{key}")).hex()))
}

/// Parses a source op. Everything that can be wrong with it without asking anybody is an error here.
///
/// # Errors
/// `InvalidArgument`: unknown scheme, bad attribute.
pub fn parse(op: &pb::SourceOp, platform: Option<&Platform>) -> Result<Source, BuildError> {
    let attrs: BTreeMap<String, String> = op.attrs.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    let Some((scheme, rest)) = op.identifier.split_once("://") else {
        return Err(BuildError::invalid(format!("source {:?} has no scheme", op.identifier)));
    };
    Ok(match scheme {
        "docker-image" => Source::Image(image::ImageSource::parse(rest, &attrs, platform)?),
        "oci-layout" => Source::OciLayout(oci_layout::OciLayoutSource::parse(rest, &attrs, platform)?),
        "local" => Source::Local(local::LocalSource::parse(rest, &attrs)?),
        "git" => Source::Git(git::GitSource::parse(rest, &attrs)?),
        "http" | "https" => Source::Http(http::HttpSource::parse(&op.identifier, &attrs)?),
        other => return Err(BuildError::invalid(format!("unsupported source scheme {other:?}"))),
    })
}

impl Source {
    /// Finds out what it stands for.
    ///
    /// # Errors
    /// The source can't be asked, or doesn't have it.
    pub async fn pin(&self, cx: &SourceCx) -> Result<Pin, BuildError> {
        match self {
            Self::Image(source) => source.pin(cx).await,
            Self::OciLayout(source) => source.pin(cx).await,
            Self::Local(source) => source.pin(cx).await,
            Self::Git(source) => source.pin(cx).await,
            Self::Http(source) => source.pin(cx).await,
        }
    }

    /// Brings the files. Called once for a fixed key, however many builds want it; the solver stores the record.
    ///
    /// # Errors
    /// The source can't be read, or is not what it should be.
    pub async fn fetch(&self, pin: &Pin, cx: &SourceCx) -> Result<Value, BuildError> {
        match self {
            Self::Image(source) => source.fetch(pin, cx).await,
            Self::OciLayout(source) => source.fetch(pin, cx).await,
            Self::Local(source) => source.fetch(pin, cx).await,
            Self::Git(source) => source.fetch(pin, cx).await,
            Self::Http(source) => source.fetch(pin, cx).await,
        }
    }
}
