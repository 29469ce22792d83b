//! What is to be built: the flags, checked and put into BuildKit's terms, before anything is connected to.

pub mod call;
pub mod context;
pub mod dockerfile;
pub mod secrets;
pub mod values;

use crate::cli::build::{BuildArgs, ProgressMode};
use crate::output::docker_config;
use crate::output::spec::{self, Dest, Output};
use anyhow::{Context as _, Result, bail, ensure};
use bud_image::{ImageRef, Platform};
use context::{Context, NamedContexts};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// A build, ready to be asked for.
#[derive(Debug)]
pub struct BuildRequest {
    /// The build context.
    pub context: Context,
    /// The Dockerfile.
    pub dockerfile: dockerfile::Source,
    /// Options of the front end (`FrontendAttrs`).
    pub attrs: BTreeMap<String, String>,
    /// Names for the image, normalized.
    pub tags: Vec<String>,
    /// The outputs asked for; empty: the image is kept (and loaded, if [`load`](Self::load) says so).
    pub outputs: Vec<Output>,
    /// `--load`, or what `BUD_LOAD` says; none: if there is something to load into.
    pub load: Option<bool>,
    /// Named contexts that this side serves.
    pub contexts: NamedContexts,
    /// Secrets by id.
    pub secrets: BTreeMap<String, secrets::SecretSource>,
    /// ssh agents (a socket, or keys) by id.
    pub ssh: BTreeMap<String, Vec<PathBuf>>,
    /// What is granted.
    pub entitlements: Vec<String>,
    /// Caches to read from: type and attributes.
    pub cache_imports: Vec<CacheEntry>,
    /// Caches to write to.
    pub cache_exports: Vec<CacheEntry>,
    /// Where the image's ID is written.
    pub iidfile: Option<PathBuf>,
    /// Where the metadata is written.
    pub metadata_file: Option<PathBuf>,
    /// How progress is shown.
    pub progress: ProgressMode,
    /// Print the ID alone.
    pub quiet: bool,
    /// Run the front end here.
    pub clientside_frontend: bool,
    /// A question instead of a build. The front end that answers it runs here.
    pub call: Option<call::Call>,
}

/// A cache to read or write.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheEntry {
    /// `registry`, `local`, `inline`, …
    pub kind: String,
    /// Its attributes.
    pub attrs: BTreeMap<String, String>,
}

impl BuildRequest {
    /// Checks the flags and finds the Dockerfile. Reads stdin where it is the context or the Dockerfile.
    ///
    /// # Errors
    /// A flag's value is wrong, or something that it names isn't there.
    pub fn from_args(args: BuildArgs) -> Result<Self> {
        let Some(place) = &args.context else {
            bail!(
                "which folder? Give the build context as the last argument, as in `bud -t foo .`\n(see `bud --help` for all options)"
            );
        };
        let call = match (&args.call, args.check) {
            (Some(text), _) => call::Call::parse(text)?,
            (None, check) => call::Call::parse(if check { "check" } else { "build" })?,
        };
        let tags = args.tag.iter().map(|tag| normalize(tag)).collect::<Result<Vec<_>>>()?;
        let mut outputs = spec::parse(&args.output)?;
        if args.push {
            ensure!(
                !tags.is_empty() || !outputs.is_empty(),
                "--push needs a name to push to: add -t REGISTRY/NAME:TAG"
            );
            match outputs.iter_mut().find(|o| o.kind == "image") {
                Some(image) => _ = image.attrs.insert("push".into(), "true".into()),
                None => outputs.push(Output {
                    kind: "image".into(),
                    attrs: BTreeMap::from([("push".into(), "true".into())]),
                    dest: Dest::Daemon,
                }),
            }
        }
        name_outputs(&mut outputs, &tags)?;
        let load = match (args.load, std::env::var("BUD_LOAD").as_deref()) {
            (Some(load), _) => Some(load),
            (None, Ok("never" | "false" | "0")) => Some(false),
            (None, Ok("always" | "true" | "1")) => Some(true),
            (None, _) => None,
        };
        let mut attrs = attrs(&args)?;
        if let Some(call) = &call {
            attrs.insert("requestid".into(), call.request.clone());
        }
        for (name, value) in docker_config::proxies() {
            attrs.entry(format!("build-arg:{name}")).or_insert(value);
        }
        let contexts = NamedContexts::parse(&args.build_context, &mut attrs)?;
        let mut entitlements = args.allow.clone();
        if args.network.as_deref() == Some("host") {
            entitlements.push("network.host".into());
        }
        for entitlement in &mut entitlements {
            ensure!(
                matches!(entitlement.as_str(), "network.host" | "security.insecure")
                    || entitlement.starts_with("device"),
                "--allow {entitlement}: there are network.host and security.insecure"
            );
        }
        entitlements.sort();
        entitlements.dedup();
        let secrets = secrets::secrets(&args.secret)?;
        let ssh = secrets::ssh(&args.ssh)?;
        let cache_imports = caches("--cache-from", &args.cache_from)?;
        let cache_exports = caches("--cache-to", &args.cache_to)?;
        for (path, flag) in [(&args.iidfile, "--iidfile"), (&args.metadata_file, "--metadata-file")] {
            if let Some(parent) =
                path.as_deref().and_then(std::path::Path::parent).filter(|p| !p.as_os_str().is_empty())
            {
                ensure!(parent.is_dir(), "{flag}: the folder {} does not exist", parent.display());
            }
        }

        let (context, dockerfile) = context::open(place, args.file.as_deref())?;
        Ok(Self {
            context,
            dockerfile,
            attrs,
            tags,
            outputs,
            load,
            contexts,
            secrets,
            ssh,
            entitlements,
            cache_imports,
            cache_exports,
            iidfile: args.iidfile,
            metadata_file: args.metadata_file,
            progress: args.progress,
            quiet: args.quiet,
            clientside_frontend: args.clientside_frontend || call.is_some(),
            call,
        })
    }
}

/// Normalizes a name for the image; without tag it is `latest`.
fn normalize(tag: &str) -> Result<String> {
    let reference = ImageRef::parse(tag).map_err(|error| {
        anyhow::anyhow!("-t {tag}: not a name for an image ({error}); write it like foo, foo:1.0 or ghcr.io/me/foo:1.0")
    })?;
    ensure!(reference.digest.is_none(), "-t {tag}: an image is named with a tag; its digest follows from its content");
    Ok(reference.or_latest().to_string())
}

/// Gives the outputs that make images their names.
fn name_outputs(outputs: &mut [Output], tags: &[String]) -> Result<()> {
    for output in outputs {
        if !matches!(output.kind.as_str(), "image" | "oci" | "docker") {
            continue;
        }
        match output.attrs.get("name") {
            Some(names) => {
                let names = names.split(',').map(normalize).collect::<Result<Vec<_>>>()?;
                output.attrs.insert("name".into(), names.join(","));
            }
            None if !tags.is_empty() => _ = output.attrs.insert("name".into(), tags.join(",")),
            None => {
                let pushes = output.attrs.get("push").is_some_and(|p| p == "true");
                ensure!(!pushes, "pushing needs a name: add -t REGISTRY/NAME:TAG");
            }
        }
    }
    Ok(())
}

fn attrs(args: &BuildArgs) -> Result<BTreeMap<String, String>> {
    let mut attrs = BTreeMap::new();
    if let Some(target) = &args.target {
        attrs.insert("target".into(), target.clone());
    }
    for arg in &args.build_arg {
        match arg.split_once('=') {
            Some((key, value)) if !key.is_empty() => _ = attrs.insert(format!("build-arg:{key}"), value.to_owned()),
            Some(_) => bail!("--build-arg {arg}: the name before `=` is missing"),
            // As in `docker build`, a name alone takes this environment's value, if there is one.
            None => {
                if let Ok(value) = std::env::var(arg) {
                    attrs.insert(format!("build-arg:{arg}"), value);
                }
            }
        }
    }
    if let Ok(epoch) = std::env::var("SOURCE_DATE_EPOCH")
        && !epoch.is_empty()
    {
        attrs.entry("build-arg:SOURCE_DATE_EPOCH".into()).or_insert(epoch);
    }
    for label in &args.label {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        ensure!(!key.is_empty(), "--label {label}: the name before `=` is missing");
        attrs.insert(format!("label:{key}"), value.to_owned());
    }
    ensure!(
        !args.no_cache || args.no_cache_filter.is_empty(),
        "--no-cache and --no-cache-filter exclude each other: the first is for all stages"
    );
    if args.no_cache {
        attrs.insert("no-cache".into(), String::new());
    } else if !args.no_cache_filter.is_empty() {
        attrs.insert("no-cache".into(), args.no_cache_filter.join(","));
    }
    if args.pull {
        attrs.insert("image-resolve-mode".into(), "pull".into());
    }
    let platforms = args
        .platform
        .iter()
        .map(|text| {
            let platform = text.parse::<Platform>().map_err(|error| anyhow::anyhow!("--platform {text}: {error}"))?;
            Ok(platform.to_string())
        })
        .collect::<Result<Vec<_>>>()?;
    if !platforms.is_empty() {
        attrs.insert("platform".into(), platforms.join(","));
    }
    match args.network.as_deref() {
        None | Some("default" | "") => {}
        Some(mode @ ("host" | "none")) => _ = attrs.insert("force-network-mode".into(), mode.into()),
        Some("sandbox") => _ = attrs.insert("force-network-mode".into(), "sandbox".into()),
        Some(other) => bail!("--network {other}: there are default, host and none"),
    }
    if !args.add_host.is_empty() {
        attrs.insert("add-hosts".into(), values::hosts(&args.add_host)?);
    }
    if let Some(size) = &args.shm_size {
        let size = values::bytes(size).with_context(|| format!("--shm-size {size}"))?;
        attrs.insert("shm-size".into(), size.to_string());
    }
    if !args.ulimit.is_empty() {
        attrs.insert("ulimit".into(), values::ulimits(&args.ulimit)?);
    }
    for (flag, value) in [("provenance", &args.provenance), ("sbom", &args.sbom)] {
        if value.as_deref().is_some_and(|v| !matches!(v, "false" | "0")) {
            bail!("--{flag} is not supported yet; leave it out or give --{flag}=false");
        }
    }
    Ok(attrs)
}

fn caches(flag: &str, list: &[String]) -> Result<Vec<CacheEntry>> {
    list.iter().map(|value| cache(value).with_context(|| format!("{flag} {value}"))).collect()
}

fn cache(value: &str) -> Result<CacheEntry> {
    let fields = values::fields(value)?;
    if let [name] = fields.as_slice()
        && !name.contains('=')
    {
        if name == "inline" {
            return Ok(CacheEntry { kind: name.clone(), attrs: BTreeMap::new() });
        }
        return Ok(CacheEntry { kind: "registry".into(), attrs: BTreeMap::from([("ref".into(), normalize(name)?)]) });
    }
    let mut attrs = BTreeMap::new();
    for field in &fields {
        let (key, text) = values::key_value(field)?;
        attrs.insert(key.to_ascii_lowercase(), text.to_owned());
    }
    let kind = attrs.remove("type").context("type=… is missing: registry, inline, gha or s3")?;
    ensure!(kind != "local", "a cache in a folder is not supported yet; keep it in a registry (type=registry,ref=…)");
    Ok(CacheEntry { kind, attrs })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(change: impl FnOnce(&mut BuildArgs)) -> BuildArgs {
        let mut args = BuildArgs { context: Some(".".into()), ..Default::default() };
        change(&mut args);
        args
    }

    #[test]
    fn flags_become_front_end_options() {
        let attrs = attrs(&args(|a| {
            a.target = Some("dev".into());
            a.build_arg = vec!["A=1=2".into(), "PATH".into(), "NOT_SET_ANYWHERE".into(), "EMPTY=".into()];
            a.label = vec!["x=y".into(), "alone".into()];
            a.no_cache_filter = vec!["one".into(), "two".into()];
            a.pull = true;
            a.platform = vec!["linux/arm64".into(), "linux/amd64".into()];
            a.network = Some("host".into());
            a.add_host = vec!["db:10.0.0.5".into()];
            a.shm_size = Some("64m".into());
            a.ulimit = vec!["nofile=5".into()];
        }))
        .unwrap();
        let mut lines: Vec<String> = attrs.iter().map(|(k, v)| format!("{k} {v}")).collect();
        lines.retain(|line| !line.starts_with("build-arg:PATH ") && !line.starts_with("build-arg:SOURCE_DATE"));
        assert!(attrs.contains_key("build-arg:PATH"));
        assert_eq!(
            lines,
            [
                "add-hosts db=10.0.0.5",
                "build-arg:A 1=2",
                "build-arg:EMPTY ",
                "force-network-mode host",
                "image-resolve-mode pull",
                "label:alone ",
                "label:x y",
                "no-cache one,two",
                "platform linux/arm64,linux/amd64",
                "shm-size 67108864",
                "target dev",
                "ulimit nofile=5:5",
            ]
        );
    }

    #[test]
    fn names_are_normalized_and_given_to_outputs() {
        assert_eq!(normalize("foo").unwrap(), "docker.io/library/foo:latest");
        assert_eq!(normalize("localhost:5000/a/b:1").unwrap(), "localhost:5000/a/b:1");
        assert!(normalize("Foo").unwrap_err().to_string().starts_with("-t Foo: not a name"));
        let mut outputs = spec::parse(&["type=oci,dest=x".into(), "out".into(), "type=image,name=own".into()]).unwrap();
        name_outputs(&mut outputs, &["docker.io/library/foo:latest".into()]).unwrap();
        assert_eq!(outputs[0].attrs["name"], "docker.io/library/foo:latest");
        assert!(!outputs[1].attrs.contains_key("name"));
        assert_eq!(outputs[2].attrs["name"], "docker.io/library/own:latest");
        let mut push = spec::parse(&["type=registry".into()]).unwrap();
        assert!(name_outputs(&mut push, &[]).is_err());
    }

    #[test]
    fn forms_of_a_cache() {
        assert_eq!(cache("a/b:c").unwrap().attrs["ref"], "docker.io/a/b:c");
        assert_eq!(cache("inline").unwrap().kind, "inline");
        let entry = cache("type=registry,ref=a/b,mode=max").unwrap();
        assert_eq!((entry.kind.as_str(), entry.attrs["mode"].as_str()), ("registry", "max"));
        assert!(cache("type=local,dest=x").unwrap_err().to_string().contains("not supported yet"));
        assert!(cache("ref=a").is_err());
    }
}
