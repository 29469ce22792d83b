//! Where files come from: the main context, the Dockerfile in it, and named contexts.

use super::git;
use super::graph::{Action, Defaults, Files, Graph, Meta, Output, Source};
use super::options::Options;
use super::state::{State, platform_of};
use super::world::{Stop, World};
use crate::fault::Fault;
use crate::frontend::{FilesAnswer, FilesQuery, ImageQuery, OciStore, SourceQuery, SourceText};
use crate::text::number::parse_bool;
use crate::text::path;
use crate::text::quote::quote;
use base64::Engine as _;
use bud_image::{Digest, ImageConfig, ImageRef, Platform, RefDigest};
use bud_patterns::{PatternMatcher, ignorefile};
use bud_protocol::pb;
use std::collections::{BTreeMap, BTreeSet};

const DOCKERFILE: &str = "Dockerfile";
const IGNORE_FILE: &str = ".dockerignore";

/// A context that isn't a local directory.
#[derive(Clone, Debug)]
enum Remote {
    Git(Source, Meta),
    Http(Source, Meta),
    /// A downloaded archive, unpacked.
    Archive(Source, Meta),
    Input(pb::Definition),
}

impl Remote {
    fn add(&self, graph: &mut Graph) -> Result<State, Fault> {
        Ok(match self {
            Self::Git(source, meta) | Self::Http(source, meta) => State::source(graph, source.clone(), meta.clone()),
            Self::Archive(source, meta) => {
                let from = graph.source(source.clone(), meta.clone());
                copied(graph, Some(from), "/context", |copy| copy.attempt_unpack_docker_compatibility = true)
            }
            Self::Input(definition) => match graph.import(definition)? {
                Some((output, platform)) => State::of(Some(output), platform.as_ref()),
                None => State::scratch(),
            },
        })
    }
}

/// An empty file system with a copy of a path in its root.
fn copied(graph: &mut Graph, from: Option<Output>, src: &str, set: impl FnOnce(&mut pb::FileActionCopy)) -> State {
    let mut copy = pb::FileActionCopy { src: src.to_owned(), dest: "/".into(), mode: -1, ..Default::default() };
    set(&mut copy);
    let action = Action::Copy { from, from_dir: "/".into(), copy: Box::new(copy), owner: None };
    let files = Files { base: None, dir: "/".into(), actions: vec![action] };
    State::of(Some(graph.files(files, Meta::default())), None)
}

/// The main context of a build.
pub(crate) struct Context {
    local_dockerfile: String,
    filename: String,
    subdir: Option<String>,
    main: Option<Remote>,
    dockerfile: Option<Remote>,
    /// The Dockerfile comes from a local directory in any case.
    forced_local: bool,
    ignore: Option<(Vec<u8>, String)>,
}

impl Context {
    /// Finds out what the context is.
    pub(crate) fn find(world: &World<'_>) -> Result<Self, Stop> {
        let mut context = Self {
            local_dockerfile: world.opt("dockerfilekey").unwrap_or("dockerfile").to_owned(),
            filename: world.opt("filename").unwrap_or(DOCKERFILE).to_owned(),
            subdir: world.opt("contextsubdir").map(str::to_owned),
            main: None,
            dockerfile: None,
            forced_local: world.opt("dockerfilekey").is_some(),
            ignore: None,
        };
        let key = world.opt("contextkey").unwrap_or("context");
        let address = world.opt(key).unwrap_or_default();
        let keep_git = parse_bool(world.opt("build-arg:BUILDKIT_CONTEXT_KEEP_GIT_DIR").unwrap_or_default());
        let has_epoch = world.opt("build-arg:SOURCE_DATE_EPOCH").is_some_and(|v| !v.is_empty());
        if let Some((source, meta)) =
            git::context(address, keep_git == Some(true), if has_epoch { "commit" } else { "" })?
        {
            context.main = Some(Remote::Git(source, meta));
        } else if address.starts_with("http://") || address.starts_with("https://") {
            let source = http_source(address, "context");
            let meta = Meta::named("[internal] load remote build context");
            let mut graph = Graph::default();
            let output = graph.source(source.clone(), meta.clone());
            let definition = graph.encode(Some(output), &Defaults::default(), None)?;
            let query = FilesQuery { definition, paths: vec!["context".into()], limit: Some(1024) };
            let files = world.files(query)?.as_ref();
            let files = files.map_err(|e| Fault::new(format!("failed to resolve httpcontext: {e}")))?;
            let start = file(files, 0).map_err(|e| Fault::new(format!("failed to read downloaded context: {e}")))?;
            context.main = Some(if is_archive(start) {
                Remote::Archive(source, meta)
            } else {
                context.filename = "context".into();
                Remote::Http(source, meta)
            });
        } else {
            let input = |name: &str| world.request.inputs.get(name).cloned().map(Remote::Input);
            if !context.forced_local {
                context.dockerfile = input(&context.local_dockerfile);
            }
            context.main = input("context");
            return Ok(context);
        }
        context.dockerfile.clone_from(&context.main);
        Ok(context)
    }

    /// Reads the Dockerfile.
    pub(crate) fn read_dockerfile(&mut self, world: &World<'_>) -> Result<SourceText, Stop> {
        let name = self.filename.clone();
        let own_ignore = format!("{name}{IGNORE_FILE}");
        let lower =
            (path::base(&name) == DOCKERFILE).then(|| path::join(&path::dir(&name), &DOCKERFILE.to_lowercase()));
        let mut graph = Graph::default();
        let output = match self.dockerfile.as_ref().filter(|_| !self.forced_local) {
            Some(remote) => remote.add(&mut graph)?.output,
            None => {
                let mut paths = vec![name.clone(), own_ignore.clone()];
                paths.extend(lower.clone());
                let mut source = local_source(world, &self.local_dockerfile, &self.local_dockerfile);
                set_paths(&mut source, "local.followpaths", &paths);
                source.attrs.insert("local.differ".into(), "none".into());
                let meta = Meta::named(format!("[internal] load build definition from {name}"));
                Some(graph.source(source, meta))
            }
        };
        let definition = graph.encode(output, &Defaults::default(), None)?;
        let mut paths = vec![name.clone(), own_ignore.clone()];
        paths.extend(lower);
        let query = FilesQuery { definition: definition.clone(), paths, limit: None };
        let files = world.files(query)?.as_ref();
        let files = files.map_err(|e| Fault::new(format!("failed to resolve dockerfile: {e}")))?;
        let data = match (file(files, 0), file(files, 2)) {
            (Ok(data), _) => data,
            (Err(_), Ok(data)) if files.len() > 2 => data,
            (Err(e), _) => return Err(format!("failed to read dockerfile: {e}").into()),
        };
        if let Ok(ignore) = file(files, 1) {
            self.ignore = Some((ignore.to_vec(), own_ignore));
        }
        Ok(SourceText { filename: name, data: data.to_vec(), definition: Some(definition) })
    }

    /// Returns the patterns of the ignore file; none where the context isn't local.
    pub(crate) fn ignore_patterns(&self, world: &World<'_>) -> Result<Vec<String>, Stop> {
        if self.main.is_some() {
            return Ok(Vec::new());
        }
        let (text, name) = match &self.ignore {
            Some((text, name)) => (text.as_slice(), name.as_str()),
            None => {
                let mut source = local_source(world, "context", &format!("context-{IGNORE_FILE}"));
                set_paths(&mut source, "local.followpaths", &[IGNORE_FILE]);
                source.attrs.insert("local.differ".into(), "none".into());
                let meta = Meta::named(format!("[internal] load {IGNORE_FILE}"));
                (read_ignore_file(world, source, meta)?, IGNORE_FILE)
            }
        };
        check_ignore_file(text).map_err(|e| Fault::new(format!("failed parsing {name}: {e}")))?;
        Ok(ignorefile::read(text))
    }

    /// Adds the main context to a graph, of which just some paths are used (all if there are none).
    pub(crate) fn add(&self, world: &World<'_>, graph: &mut Graph, paths: &[String]) -> Result<State, Stop> {
        let state = match &self.main {
            Some(main) => main.add(graph)?,
            None => {
                let mut source = local_source(world, "context", "context");
                set_paths(&mut source, "local.excludepatterns", &self.ignore_patterns(world)?);
                set_paths(&mut source, "local.followpaths", paths);
                return Ok(State::source(graph, source, Meta::named("[internal] load build context")));
            }
        };
        Ok(match &self.subdir {
            Some(subdir) => copied(graph, state.output, subdir, |copy| copy.dir_copy_contents = true),
            None => state,
        })
    }

    /// Returns the git or HTTP source that the context is, if it is one.
    pub(crate) fn main_source(&self) -> Option<&Source> {
        match &self.main {
            Some(Remote::Git(source, _) | Remote::Http(source, _) | Remote::Archive(source, _)) => Some(source),
            _ => None,
        }
    }
}

/// Limits the ignore file as the reference does: a line must fit its buffer.
fn check_ignore_file(text: &[u8]) -> Result<(), String> {
    if text.split(|b| *b == b'\n').any(|line| line.len() >= 64 << 10) {
        return Err("bufio.Scanner: token too long".into());
    }
    Ok(())
}

fn file(files: &[Result<Vec<u8>, String>], index: usize) -> Result<&[u8], String> {
    match files.get(index) {
        Some(Ok(data)) => Ok(data),
        Some(Err(e)) => Err(e.clone()),
        None => Err("file does not exist".into()),
    }
}

/// Reads `.dockerignore`, the one file of a source; nothing if it isn't there.
fn read_ignore_file<'a>(world: &World<'a>, source: Source, meta: Meta) -> Result<&'a [u8], Stop> {
    let mut graph = Graph::default();
    let output = graph.source(source, meta);
    let definition = graph.encode(Some(output), &Defaults::default(), None)?;
    let answer: &FilesAnswer = world.files(FilesQuery { definition, paths: vec![IGNORE_FILE.into()], limit: None })?;
    match answer {
        Ok(files) => Ok(files.first().and_then(|f| f.as_ref().ok()).map(Vec::as_slice).unwrap_or_default()),
        Err(e) => Err(e.clone().into()),
    }
}

/// Compiles ignore patterns.
pub(crate) fn compile_ignore(patterns: &[String]) -> Result<Option<PatternMatcher>, Fault> {
    if patterns.is_empty() {
        return Ok(None);
    }
    PatternMatcher::new(patterns).map(Some).map_err(|e| Fault::new(format!("{e}: syntax error in pattern")))
}

/// A directory at the client.
fn local_source(world: &World<'_>, name: &str, key: &str) -> Source {
    let session = world.opt(&format!("local-sessionid:{name}")).unwrap_or(&world.request.session);
    let mut source = Source {
        id: format!("local://{name}"),
        caps: BTreeSet::from(["source.local", "source.local.sharedkeyhint"]),
        ..Source::default()
    };
    source.attrs.insert("local.sharedkeyhint".into(), key.to_owned());
    if !session.is_empty() {
        source.attrs.insert("local.session".into(), session.to_owned());
        source.caps.insert("source.local.sessionid");
    }
    source
}

/// Sets a list of paths or patterns, unless it is empty.
fn set_paths<S: AsRef<str>>(source: &mut Source, key: &str, paths: &[S]) {
    if paths.is_empty() {
        return;
    }
    let list: Vec<String> = paths.iter().map(|path| go_json(path.as_ref())).collect();
    source.attrs.insert(key.to_owned(), format!("[{}]", list.join(",")));
    source.caps.insert(match key {
        "local.followpaths" => "source.local.followpaths",
        _ => "source.local.excludepatterns",
    });
}

/// Writes a text as Go's JSON does: it escapes more, and these bytes are part of a vertex's identity.
fn go_json(text: &str) -> String {
    let plain = serde_json::Value::from(text).to_string();
    plain
        .replace('&', "\\u0026")
        .replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// A file from the web.
pub(crate) fn http_source(url: &str, filename: &str) -> Source {
    Source {
        id: url.to_owned(),
        attrs: BTreeMap::from([("http.filename".to_owned(), filename.to_owned())]),
        caps: BTreeSet::from(["source.http"]),
        platform: None,
    }
}

/// Tells by its beginning whether a file is an archive.
fn is_archive(start: &[u8]) -> bool {
    const MAGIC: [&[u8]; 3] = [b"BZh", b"\x1f\x8b\x08", b"\xfd7zXZ\0"];
    MAGIC.iter().any(|magic| start.starts_with(magic)) || is_tar(start)
}

/// Tests the checksum of a tar header.
fn is_tar(start: &[u8]) -> bool {
    let Some(header) = start.get(..512) else { return false };
    let digits: String = header[148..156].iter().map(|b| char::from(*b)).filter(|c| !matches!(c, ' ' | '\0')).collect();
    let Ok(wanted) = u32::from_str_radix(&digits, 8) else { return false };
    let sum = |(i, b): (usize, &u8)| if (148..156).contains(&i) { 32 } else { u32::from(*b) };
    header.iter().any(|b| *b != 0) && header.iter().enumerate().map(sum).sum::<u32>() == wanted
}

/// A context given by name, which stands for an image or a stage.
#[derive(Clone, Debug)]
pub(crate) struct NamedContext {
    name: String,
    /// The name under which it was given, with the platform if that was in it.
    shown: String,
    input: String,
    platform: Option<Platform>,
    resolve_mode: String,
}

/// A named context, loaded.
pub(crate) struct Loaded {
    pub(crate) state: State,
    pub(crate) image: Option<ImageConfig>,
    /// A local directory whose paths are known only at the end.
    pub(crate) local: Option<LocalContext>,
    /// The source that it is, if it is a single one.
    pub(crate) source: Option<Source>,
}

/// A local directory that is added to the graph when it is known which of its paths are used.
#[derive(Clone, Debug)]
pub(crate) struct LocalContext {
    pub(crate) open: Output,
    source: Source,
    meta: Meta,
}

impl LocalContext {
    pub(crate) fn close(&self, graph: &mut Graph, paths: &[String]) {
        let mut source = self.source.clone();
        set_paths(&mut source, "local.followpaths", paths);
        let output = graph.source(source, self.meta.clone());
        graph.resolve(self.open, Some(output));
    }
}

impl NamedContext {
    /// Finds the context that was given for a name, if there is one.
    pub(crate) fn find(
        world: &World<'_>,
        options: &Options,
        name: &str,
        platform: Option<&Platform>,
    ) -> Result<Option<Self>, Fault> {
        let reference = ImageRef::parse(name).map_err(|e| Fault::new(format!("invalid context name {name}: {e}")))?;
        let familiar = reference.familiar();
        let name = familiar.strip_suffix(":latest").unwrap_or(&familiar);
        let own = Platform::host();
        let with_platform = format!("{name}::{}", platform.unwrap_or(&own).normalize());
        for shown in [with_platform.as_str(), name] {
            if let Some(input) = world.opt(&format!("context:{shown}")) {
                return Ok(Some(Self {
                    name: name.to_owned(),
                    shown: shown.to_owned(),
                    input: input.to_owned(),
                    platform: platform.cloned(),
                    resolve_mode: options.resolve_mode.clone(),
                }));
            }
        }
        Ok(None)
    }

    /// Finds the context for an image or a stage; `scratch` and `context` can't be replaced.
    pub(crate) fn for_base(
        world: &World<'_>,
        options: &Options,
        name: &str,
        platform: Option<&Platform>,
        target: Option<&Platform>,
    ) -> Result<Option<Self>, Fault> {
        if name.eq_ignore_ascii_case("scratch") || name.eq_ignore_ascii_case("context") {
            return Ok(None);
        }
        Self::find(world, options, name, platform.or(target))
    }

    /// Adds it to a graph.
    pub(crate) fn load(&self, world: &World<'_>, graph: &mut Graph) -> Result<Loaded, Stop> {
        let Some((scheme, rest)) = self.input.split_once(':') else {
            return Err(format!("invalid context specifier {} for {}", self.input, self.shown).into());
        };
        let label = format!("[context {}]", self.shown);
        let plain = |state, source| Loaded { state, image: None, local: None, source };
        match scheme {
            "docker-image" => self.load_image(world, graph, rest.trim_start_matches("//"), &label),
            "oci-layout" => self.load_layout(world, graph, rest.trim_start_matches("//"), &label),
            "local" => {
                let mut source = local_source(world, rest, &format!("context:{}-{IGNORE_FILE}", self.shown));
                set_paths(&mut source, "local.followpaths", &[IGNORE_FILE]);
                source.attrs.insert("local.differ".into(), "none".into());
                let meta = Meta::named(format!("{label} load {IGNORE_FILE}"));
                let ignore = read_ignore_file(world, source, meta)?;
                check_ignore_file(ignore).map_err(|e| Fault::new(format!("failed parsing {IGNORE_FILE}: {e}")))?;
                let key = world.opt(&format!("sharedkey:localdir:{}", self.shown)).unwrap_or_default();
                let mut source = local_source(world, rest, &format!("context:{}-{key}", self.shown));
                set_paths(&mut source, "local.excludepatterns", &ignorefile::read(ignore));
                let open = graph.later();
                let meta = Meta::named(format!("{label} load from client"));
                let local = LocalContext { open, source: source.clone(), meta };
                let state = State::of(Some(open), None);
                Ok(Loaded { state, image: None, local: Some(local), source: Some(source) })
            }
            "input" => self.load_input(world, graph, rest),
            _ => {
                let is_git = scheme == "git" || scheme.starts_with("git@");
                let is_http = matches!(scheme, "http" | "https");
                if is_git || is_http {
                    if let Some((source, meta)) = git::context(&self.input, false, "")? {
                        let state = State::source(graph, source.clone(), meta);
                        return Ok(plain(state, Some(source)));
                    }
                    if is_git {
                        return Err(format!("invalid git context {}", self.input).into());
                    }
                    let source = http_source(&self.input, "context");
                    let meta = Meta::named(format!("{label} {}", self.input));
                    let state = State::source(graph, source.clone(), meta);
                    return Ok(plain(state, Some(source)));
                }
                Err(format!("unsupported context source {scheme} for {}", self.shown).into())
            }
        }
    }

    fn load_image(&self, world: &World<'_>, graph: &mut Graph, text: &str, label: &str) -> Result<Loaded, Stop> {
        if text == "scratch" {
            return Ok(Loaded { state: State::scratch(), image: None, local: None, source: None });
        }
        let reference = ImageRef::parse(text).map_err(|e| e.0)?.or_latest();
        let query = ImageQuery {
            reference: reference.to_string(),
            platform: self.platform.clone(),
            resolve_mode: self.resolve_mode.clone(),
            log_name: format!("{label} load metadata for {text}"),
            store: None,
        };
        let answer = world.image(query)?.as_ref().map_err(Clone::clone)?;
        let mut image = parse_image(&answer.config)?;
        let found = ImageRef::parse(&answer.reference).map_err(|e| e.0)?.or_latest();
        let source = image_source(&found, self.platform.as_ref(), "default");
        let meta = Meta::named(format!("{label} {text}"));
        let state = State::source(graph, source.clone(), meta).with_image(&image);
        image.created = None;
        Ok(Loaded { state, image: Some(image), local: None, source: Some(source) })
    }

    fn load_layout(&self, world: &World<'_>, graph: &mut Graph, text: &str, label: &str) -> Result<Loaded, Stop> {
        let unparsed = |text: &str, e: &dyn std::fmt::Display| {
            Fault::new(format!("could not parse oci-layout reference {}: {e}", quote(text)))
        };
        let layout = ImageRef::parse_exact(text).map_err(|e| unparsed(text, &e))?;
        let Some(digest) = layout.digest.clone() else {
            return Err(format!("oci-layout reference {} has no digest", quote(text)).into());
        };
        // Shown in place of the store's name, which may say nothing.
        let mut shown = ImageRef::parse(&self.name).map_err(|e| unparsed(&self.name, &e))?;
        shown.digest = Some(digest);
        let store = OciStore { session: world.request.session.clone(), store: layout.name() };
        let query = ImageQuery {
            reference: shown.to_string(),
            platform: self.platform.clone(),
            resolve_mode: String::new(),
            log_name: format!("{label} load metadata for {shown}"),
            store: Some(store.clone()),
        };
        let answer = world.image(query)?.as_ref().map_err(Clone::clone)?;
        let image = parse_image(&answer.config).map_err(|f| f.during("could not parse oci-layout image config"))?;
        let mut source = Source {
            id: format!("oci-layout://{shown}"),
            caps: BTreeSet::from(["source.ocilayout"]),
            platform: self.platform.clone(),
            ..Source::default()
        };
        for (key, value) in [("oci.session", store.session), ("oci.store", store.store)] {
            if !value.is_empty() {
                source.attrs.insert(key.to_owned(), value);
            }
        }
        let meta = Meta::named(format!("{label} OCI load from client"));
        let state = State::source(graph, source.clone(), meta).with_image(&image);
        Ok(Loaded { state, image: Some(image), local: None, source: Some(source) })
    }

    fn load_input(&self, world: &World<'_>, graph: &mut Graph, name: &str) -> Result<Loaded, Stop> {
        let Some(definition) = world.request.inputs.get(name) else {
            return Err(format!("invalid input {name} for {}", self.shown).into());
        };
        let mut state = Remote::Input(definition.clone()).add(graph)?;
        let mut image = None;
        if let Some(text) = world.opt(&format!("input-metadata:{name}")) {
            let metadata: BTreeMap<String, String> =
                serde_json::from_str(text).map_err(|e| format!("failed to parse input metadata {text}: {e}"))?;
            if let Some(config) = metadata.get("containerimage.config") {
                let bytes = base64::engine::general_purpose::STANDARD
                    .decode(config)
                    .map_err(|e| format!("failed to parse image config for {}: {e}", self.shown))?;
                let config = parse_image(&bytes)?;
                state = state.with_image(&config);
                image = Some(config);
            }
        }
        Ok(Loaded { state, image, local: None, source: None })
    }
}

/// Reads an image's config.
pub(crate) fn parse_image(config: &[u8]) -> Result<ImageConfig, Fault> {
    serde_json::from_slice(config).map_err(|e| Fault::new(format!("failed to parse image config: {e}")))
}

/// An image from a registry.
pub(crate) fn image_source(reference: &ImageRef, platform: Option<&Platform>, resolve_mode: &str) -> Source {
    let mut source = Source {
        id: format!("docker-image://{reference}"),
        caps: BTreeSet::from(["source.image"]),
        platform: platform.cloned(),
        ..Source::default()
    };
    if resolve_mode != "default" {
        source.attrs.insert("image.resolvemode".into(), resolve_mode.to_owned());
        if resolve_mode == "pull" {
            source.caps.insert("source.image.resolvemode");
        }
    }
    source
}

/// Pins a reference to a digest.
pub(crate) fn pin(reference: &mut ImageRef, digest: &str) -> Result<(), Fault> {
    if !digest.is_empty() {
        let digest: Digest = digest.parse().map_err(|e| Fault::new(format!("invalid digest format: {e}")))?;
        reference.digest = Some(RefDigest::from(digest));
    }
    Ok(())
}

/// Returns an image config's platform if it names one.
pub(crate) fn image_platform(image: &ImageConfig) -> Option<Platform> {
    (!image.architecture.is_empty() && !image.os.is_empty()).then(|| platform_of(image))
}

/// Asks when a source was last changed.
pub(crate) fn modified(world: &World<'_>, source: &Source, log_name: &str) -> Result<Option<i64>, Stop> {
    let op = pb::SourceOp { identifier: source.id.clone(), attrs: source.attrs.clone() };
    let query = SourceQuery { op, platform: source.platform.clone(), log_name: log_name.to_owned() };
    Ok(world.source(query)?.as_ref().map_err(Clone::clone)?.modified)
}
