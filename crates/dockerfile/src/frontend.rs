//! The front end as its callers see it: a build's options in, definitions out, and the questions between.

use bud_image::{ImageConfig, Platform};
use bud_protocol::pb;
use std::collections::{BTreeMap, BTreeSet};

/// All that decides what a Dockerfile means: options, the asker's session, the worker, and the answers given so far.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// Front-end options as in `FrontendAttrs` (`target`, `build-arg:X`, `context:X`, `requestid`, …).
    pub opts: BTreeMap<String, String>,
    /// The session that local sources are fetched from.
    pub session: String,
    /// The worker's platforms, its own first. Empty: this machine's.
    pub platforms: Vec<Platform>,
    /// What the solver can do.
    pub caps: Caps,
    /// Front-end inputs (`FrontendInputs`), for the contexts `context`, `dockerfile` and `input:NAME`.
    pub inputs: BTreeMap<String, pb::Definition>,
    /// Answers to the needs returned so far.
    pub answers: Answers,
}

/// The LLB capabilities that the solver has.
#[derive(Clone, Debug, Default)]
pub enum Caps {
    /// All that this version knows.
    #[default]
    All,
    /// Those listed.
    Only(BTreeSet<String>),
}

impl Caps {
    /// Tells whether the solver has a capability (`file.base`, `mergeop`, …).
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        match self {
            Self::All => true,
            Self::Only(ids) => ids.contains(id),
        }
    }
}

/// What [`lower`] came to.
#[derive(Clone, Debug)]
pub enum Step {
    /// Answers are missing: find them (in parallel, they don't depend on one another), put them into
    /// [`Request::answers`] and call again.
    Need(Vec<Need>),
    /// `# syntax=` or `BUILDKIT_SYNTAX` names another front end: solve with front end `gateway.v0` and these options.
    Forward(Forward),
    /// The build: solve the definitions, and return the references with [`Build::metadata`].
    Build(Box<Build>),
    /// The answer to a `requestid`: a result without a reference.
    Answer(Subresult),
}

/// Something that has to be found out.
#[derive(Clone, Debug, PartialEq)]
pub enum Need {
    /// Files from a small definition.
    Files(FilesQuery),
    /// An image's digest and config.
    Image(ImageQuery),
    /// A source's time.
    Source(SourceQuery),
}

/// Asks for files: solve the definition and read them from its result.
///
/// A definition here is one local source as a rule, and tells by itself what to fetch: its identifier is
/// `local://NAME` (`dockerfile`, `context`, or the names given with `dockerfilekey`, `contextkey`, `context:X=local:NAME`), and its
/// attributes are `local.session` (whose session), `local.followpaths` (JSON list: just these files), `local.excludepatterns`,
/// `local.sharedkeyhint` and `local.differ=none`. For a build from local directories there are two: `dockerfile` with follow paths
/// `<filename>`, `<filename>.dockerignore` and the lower-case name where it is `Dockerfile`; then, if that second file isn't there,
/// `context` with follow path `.dockerignore`. The whole context is no need: it is a source in the build's own definition.
#[derive(Clone, Debug, PartialEq)]
pub struct FilesQuery {
    /// What to solve.
    pub definition: pb::Definition,
    /// Which files to read from the result.
    pub paths: Vec<String>,
    /// At most so many bytes of each, where only the beginning matters.
    pub limit: Option<u64>,
}

/// The files' contents, in the order of [`FilesQuery::paths`]; an error (of all, or of one file) as its text.
pub type FilesAnswer = Result<Vec<Result<Vec<u8>, String>>, String>;

/// Asks for an image's digest and config.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageQuery {
    /// The reference, normalized (`docker.io/library/alpine:latest`).
    pub reference: String,
    /// For which platform; none: the worker's.
    pub platform: Option<Platform>,
    /// `default`, `pull` or `local`.
    pub resolve_mode: String,
    /// The name of this in the progress (`[internal] load metadata for …`).
    pub log_name: String,
    /// An OCI layout held by the client, in which to look instead of a registry.
    pub store: Option<OciStore>,
}

/// An OCI layout at a client.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OciStore {
    /// Whose session.
    pub session: String,
    /// The store's id there.
    pub store: String,
}

/// An image as it was resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageAnswer {
    /// The reference that was found; differs from the one asked for where a policy rewrote it.
    pub reference: String,
    /// `sha256:…` of the manifest or index; empty if unknown.
    pub digest: String,
    /// The config's JSON.
    pub config: Vec<u8>,
}

/// Asks when a source was last changed.
#[derive(Clone, Debug, PartialEq)]
pub struct SourceQuery {
    /// A git or HTTP source.
    pub op: pb::SourceOp,
    /// The platform asked for, of image sources.
    pub platform: Option<Platform>,
    /// The name of this in the progress.
    pub log_name: String,
}

/// What is known of a source.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceAnswer {
    /// Git: seconds since 1970 of the committer's time. HTTP: of `Last-Modified`.
    pub modified: Option<i64>,
    /// Image: its config's JSON.
    pub config: Option<Vec<u8>>,
}

/// The answers given so far.
#[derive(Clone, Debug, Default)]
pub struct Answers {
    files: Vec<(FilesQuery, FilesAnswer)>,
    images: BTreeMap<ImageQuery, Result<ImageAnswer, String>>,
    sources: Vec<(SourceQuery, Result<SourceAnswer, String>)>,
}

impl Answers {
    /// Answers a [`Need::Files`].
    pub fn files(&mut self, query: FilesQuery, answer: FilesAnswer) {
        self.files.push((query, answer));
    }

    /// Answers a [`Need::Image`].
    pub fn image(&mut self, query: ImageQuery, answer: Result<ImageAnswer, String>) {
        self.images.insert(query, answer);
    }

    /// Answers a [`Need::Source`].
    pub fn source(&mut self, query: SourceQuery, answer: Result<SourceAnswer, String>) {
        self.sources.push((query, answer));
    }

    pub(crate) fn of_files(&self, query: &FilesQuery) -> Option<&FilesAnswer> {
        self.files.iter().find(|(q, _)| q == query).map(|(_, a)| a)
    }

    pub(crate) fn of_image(&self, query: &ImageQuery) -> Option<&Result<ImageAnswer, String>> {
        self.images.get(query)
    }

    pub(crate) fn of_source(&self, query: &SourceQuery) -> Option<&Result<SourceAnswer, String>> {
        self.sources.iter().find(|(q, _)| q == query).map(|(_, a)| a)
    }
}

/// Names another front end.
#[derive(Clone, Debug, PartialEq)]
pub struct Forward {
    /// The image.
    pub source: String,
    /// All options of the new request: those given, with `source` and `cmdline`.
    pub opts: BTreeMap<String, String>,
    /// Where it is named, unless in an option: attach it to an error of the other front end.
    pub place: Option<(SourceText, Vec<Span>)>,
}

/// A build, ready to be solved.
#[derive(Clone, Debug, Default)]
pub struct Build {
    /// One a target platform, in the order asked for.
    pub platforms: Vec<PlatformBuild>,
    /// True: return the references by platform id, even one; false: return a single reference.
    pub multi_platform: bool,
    /// Cache imports (type and attributes) to solve with.
    pub cache_imports: Vec<(String, BTreeMap<String, String>)>,
    /// Warnings of the linter.
    pub warnings: Vec<Warning>,
    /// The front end that the text names with `# syntax=` and for which this one stands in: to be said once.
    pub builtin_syntax: Option<String>,
}

/// The build for one platform.
#[derive(Clone, Debug, Default)]
pub struct PlatformBuild {
    /// The platform's id (`linux/amd64`).
    pub id: String,
    /// The platform.
    pub platform: Platform,
    /// What to solve; no ops at all for an empty image.
    pub definition: pb::Definition,
    /// The image config.
    pub config: ImageConfig,
    /// The base image's config, if the target stands on an image.
    pub base_config: Option<ImageConfig>,
    /// `SOURCE_DATE_EPOCH`, in seconds.
    pub epoch: Option<i64>,
    /// Attestations to be made of the result: solve each definition, and add its reference to the result.
    pub attestations: Vec<Attestation>,
}

/// A container that says something of a result: its output is a bundle of in-toto statements.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Attestation {
    /// The statements' predicate.
    pub predicate_type: String,
    /// What to solve.
    pub definition: pb::Definition,
    /// Metadata of the attestation.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

impl Build {
    /// Returns the result's metadata as it goes over the gateway: `containerimage.config`, `containerimage.base.config`,
    /// `source.date.epoch` (each with `/<platform id>` when built for several), `refs.platforms`.
    ///
    /// # Errors
    ///
    /// If a config can't be written as JSON.
    pub fn metadata(&self) -> Result<BTreeMap<String, Vec<u8>>, serde_json::Error> {
        let mut map = BTreeMap::new();
        let mut exported = Vec::new();
        for p in &self.platforms {
            let key = |k: &str| if self.multi_platform { format!("{k}/{}", p.id) } else { k.to_owned() };
            map.insert(key("containerimage.config"), serde_json::to_vec(&p.config)?);
            if let Some(base) = &p.base_config {
                map.insert(key("containerimage.base.config"), serde_json::to_vec(base)?);
            }
            if let Some(epoch) = p.epoch {
                map.insert(key("source.date.epoch"), epoch.to_string().into_bytes());
            }
            exported.push(serde_json::json!({"ID": p.id, "Platform": p.platform}));
        }
        map.insert("refs.platforms".into(), serde_json::to_vec(&serde_json::json!({ "Platforms": exported }))?);
        Ok(map)
    }
}

/// The answer to a `requestid`: metadata of a result without a reference (`result.json`, `result.txt`, `version`, …).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subresult {
    /// Metadata keys and values.
    pub metadata: BTreeMap<String, Vec<u8>>,
}

/// The text that a place is in, as `pb::SourceInfo` carries it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SourceText {
    /// Its name.
    pub filename: String,
    /// Its bytes.
    pub data: Vec<u8>,
    /// What it was read from.
    pub definition: Option<pb::Definition>,
}

impl SourceText {
    /// Converts it for the wire.
    #[must_use]
    pub fn to_info(&self) -> pb::SourceInfo {
        pb::SourceInfo {
            filename: self.filename.clone(),
            data: self.data.clone(),
            definition: self.definition.clone(),
            language: "Dockerfile".into(),
        }
    }
}

/// A range of lines, from 1; both ends are in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First line.
    pub start: u32,
    /// Last line.
    pub end: u32,
}

impl Span {
    /// Converts it for the wire.
    #[must_use]
    pub fn to_range(self) -> pb::Range {
        let at = |line: u32| Some(pb::Position { line: i32::try_from(line).unwrap_or(i32::MAX), character: 0 });
        pb::Range { start: at(self.start), end: at(self.end) }
    }
}

/// A warning of the linter, to be sent as a vertex warning.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Warning {
    /// The rule (`StageNameCasing`).
    pub rule: String,
    /// The vertex it belongs to: the digest of what the Dockerfile was read from.
    pub vertex: String,
    /// What is wrong, with rule and line.
    pub short: String,
    /// More of it, one a line.
    pub detail: Vec<String>,
    /// Where it is explained.
    pub url: String,
    /// In which text.
    pub source: SourceText,
    /// Where in it; `None` where the place is unknown.
    pub spans: Option<Vec<Span>>,
}

/// Why a Dockerfile can't be built.
#[derive(Clone, Debug, Default, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What is wrong.
    pub message: String,
    /// Which kind it is, for the wire.
    pub kind: ErrorKind,
    /// Places in the text, innermost first; each becomes an `errdefs.Source` detail.
    pub places: Vec<Vec<Span>>,
    /// The text, if there was one already.
    pub text: Option<Box<SourceText>>,
    /// Warnings up to there.
    pub warnings: Vec<Warning>,
}

/// The kinds of errors which clients tell apart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ErrorKind {
    /// Any.
    #[default]
    Other,
    /// `frontend.caps` asked for one that this front end lacks: `Unimplemented` with an `errdefs.FrontendCap` detail.
    FrontendCap(String),
    /// `requestid` is unknown: `Unimplemented` with an `errdefs.Subrequest` detail.
    Subrequest(String),
}

/// Makes of a request a build, or says what it needs to know for that. Pure: the same request gives the same step.
///
/// # Errors
///
/// If the Dockerfile, the options or an answer forbid the build.
pub fn lower(request: &Request) -> Result<Step, Error> {
    crate::lower::lower(request)
}
