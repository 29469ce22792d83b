//! Front-end options, read once.

use crate::fault::Fault;
use crate::frontend::Request;
use crate::lint;
use crate::text::csv;
use crate::text::number::{parse_bool, parse_int, parse_uint};
use bud_image::{ImageRef, Platform};
use bud_protocol::pb;
use std::collections::BTreeMap;
use std::net::IpAddr;

/// What the options of a build say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Options {
    pub(crate) build_args: BTreeMap<String, String>,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) target: String,
    pub(crate) build_platforms: Vec<Platform>,
    pub(crate) target_platforms: Vec<Platform>,
    pub(crate) multi_platform: bool,
    /// `default`, `pull` or `local`.
    pub(crate) resolve_mode: String,
    pub(crate) extra_hosts: Vec<pb::HostIp>,
    pub(crate) shm_size: i64,
    pub(crate) ulimits: Vec<pb::Ulimit>,
    pub(crate) linux_resources: Option<pb::LinuxResources>,
    pub(crate) network: pb::NetMode,
    /// Stages that must not come from the cache; none named: all.
    pub(crate) no_cache: Option<Vec<String>>,
    pub(crate) cache_imports: Vec<(String, BTreeMap<String, String>)>,
    pub(crate) cache_namespace: String,
    pub(crate) cgroup_parent: String,
    pub(crate) hostname: String,
    pub(crate) lint: Option<lint::Settings>,
    /// The SBOM scanner's image and parameters.
    pub(crate) sbom: Option<(String, BTreeMap<String, String>)>,
}

impl Options {
    pub(crate) fn read(request: &Request) -> Result<Self, Fault> {
        let opts = &request.opts;
        let opt = |key: &str| opts.get(key).map(String::as_str).unwrap_or_default();
        if !request.caps.has("file.base") {
            return Err(Fault::new("needs BuildKit 0.5 or later: the solver has no file operations"));
        }
        for (key, shown) in [
            ("override-copy-image", "support for \"override-copy-image\" was removed in BuildKit 0.11"),
            (
                "build-arg:BUILDKIT_DISABLE_FILEOP",
                "support for \"BUILDKIT_DISABLE_FILEOP\" build-arg was removed in BuildKit 0.11",
            ),
        ] {
            let is_arg = key.starts_with("build-arg:");
            if (!is_arg && !opt(key).is_empty()) || (is_arg && parse_bool(opt(key)) == Some(true)) {
                return Err(shown.into());
            }
        }
        let with_prefix = |prefix: &str| -> BTreeMap<String, String> {
            opts.iter().filter_map(|(k, v)| Some((k.strip_prefix(prefix)?.to_owned(), v.clone()))).collect()
        };
        let own = request.platforms.first().cloned().unwrap_or_else(|| Platform::host().normalize());
        let mut options = Self { build_platforms: vec![own], ..Self::default() };
        if !opt("platform").is_empty() {
            for text in opt("platform").split(',') {
                let platform = Platform::parse(text)
                    .map_err(|e| Fault::new(format!("failed to parse target platform {text}: {e}")))?;
                options.target_platforms.push(platform.normalize());
            }
        }
        options.resolve_mode = match opt("image-resolve-mode") {
            "" | "default" => "default".into(),
            mode @ ("pull" | "local") => mode.into(),
            other => return Err(Fault::new(format!("invalid image-resolve-mode: {other}"))),
        };
        options.extra_hosts =
            extra_hosts(opt("add-hosts")).map_err(|e| Fault::new(format!("failed to parse additional hosts: {e}")))?;
        if !opt("shm-size").is_empty() {
            options.shm_size = parse_int(opt("shm-size"), 64)
                .map_err(|e| format!("failed to parse shm size: {}", e.describe("ParseInt", opt("shm-size"))))?;
        }
        options.ulimits = ulimits(opt("ulimit")).map_err(|e| Fault::new(format!("failed to parse ulimit: {e}")))?;
        options.linux_resources =
            linux_resources(&opt).map_err(|e| Fault::new(format!("failed to parse resource limits: {e}")))?;
        options.network = match opt("force-network-mode") {
            "" | "sandbox" => pb::NetMode::Unset,
            "none" => pb::NetMode::None,
            "host" => pb::NetMode::Host,
            other => return Err(Fault::new(format!("invalid netmode {other}"))),
        };
        options.no_cache = opts.get("no-cache").map(|list| match list.as_str() {
            "" => Vec::new(),
            list => list.split(',').map(str::to_owned).collect(),
        });
        options.read_multi_platform(&opt)?;
        options.read_cache_imports(&opt)?;
        options.read_attestations(opts)?;
        options.build_args = with_prefix("build-arg:");
        options.labels = with_prefix("label:");
        opt("build-arg:BUILDKIT_CACHE_MOUNT_NS").clone_into(&mut options.cache_namespace);
        opt("cgroup-parent").clone_into(&mut options.cgroup_parent);
        opt("target").clone_into(&mut options.target);
        let hostname = [opt("build-arg:BUILDKIT_SANDBOX_HOSTNAME"), opt("hostname")];
        hostname.into_iter().find(|h| !h.is_empty()).unwrap_or_default().clone_into(&mut options.hostname);
        if let Some(text) = opts.get("build-arg:BUILDKIT_DOCKERFILE_CHECK") {
            let key = "build-arg:BUILDKIT_DOCKERFILE_CHECK";
            options.lint =
                Some(lint::Settings::parse(text).map_err(|e| Fault::new(format!("failed to parse {key}: {e}")))?);
        }
        Ok(options)
    }

    fn read_multi_platform<'a>(&mut self, opt: &dyn Fn(&str) -> &'a str) -> Result<(), Fault> {
        let several = self.target_platforms.len() > 1;
        let given = [opt("build-arg:BUILDKIT_MULTI_PLATFORM"), opt("multi-platform")];
        self.multi_platform = match given.into_iter().find(|v| !v.is_empty()) {
            None => several,
            Some(text) => {
                let Some(wanted) = parse_bool(text) else {
                    return Err(Fault::new(format!("invalid boolean value for multi-platform: {text}")));
                };
                if !wanted && several {
                    return Err("conflicting config: returning multiple target platforms is not allowed".into());
                }
                wanted
            }
        };
        Ok(())
    }

    fn read_cache_imports<'a>(&mut self, opt: &dyn Fn(&str) -> &'a str) -> Result<(), Fault> {
        #[derive(serde::Deserialize)]
        struct Entry {
            #[serde(rename = "Type", alias = "type", default)]
            kind: String,
            #[serde(rename = "Attrs", alias = "attrs", default)]
            attrs: Option<BTreeMap<String, String>>,
        }
        let text = opt("cache-imports");
        if !text.is_empty() {
            let entries: Vec<Entry> = serde_json::from_str(text)
                .map_err(|e| format!("failed to unmarshal cache-imports ({}): {e}", crate::text::quote::quote(text)))?;
            self.cache_imports.extend(entries.into_iter().map(|e| (e.kind, e.attrs.unwrap_or_default())));
        }
        for reference in opt("cache-from").split(',').filter(|_| !opt("cache-from").is_empty()) {
            let attrs = BTreeMap::from([("ref".to_owned(), reference.to_owned())]);
            self.cache_imports.push(("registry".into(), attrs));
        }
        Ok(())
    }

    fn read_attestations(&mut self, opts: &BTreeMap<String, String>) -> Result<(), Fault> {
        for (key, value) in opts {
            let kind = key.strip_prefix("attest:").or_else(|| key.strip_prefix("build-arg:BUILDKIT_ATTEST_"));
            let Some(kind) = kind.map(str::to_lowercase) else { continue };
            let mut attrs = BTreeMap::new();
            if kind == "sbom" {
                attrs.insert("generator".to_owned(), "docker/buildkit-syft-scanner:stable-1".to_owned());
            }
            if !value.is_empty() {
                let fields = csv::fields(value).map_err(|e| Fault::new(format!("failed to parse {kind}: {e}")))?;
                for field in fields {
                    let (key, value) = field.split_once('=').unwrap_or((&field, ""));
                    attrs.insert(key.to_owned(), value.to_owned());
                }
            }
            match kind.as_str() {
                "provenance" => {}
                "sbom" => {
                    let generator = attrs.remove("generator").unwrap_or_default();
                    let reference = ImageRef::parse(&generator)
                        .map_err(|e| Fault::new(format!("failed to parse sbom scanner {generator}: {e}")))?;
                    self.sbom = Some((reference.or_latest().to_string(), attrs));
                }
                other => {
                    let other = crate::text::quote::quote(other);
                    return Err(Fault::new(format!("unknown attestation type {other}")));
                }
            }
        }
        Ok(())
    }

    /// Tells whether a stage must not come from the cache.
    pub(crate) fn is_no_cache(&self, stage: &str) -> bool {
        self.no_cache
            .as_ref()
            .is_some_and(|list| list.is_empty() || list.iter().any(|name| name.eq_ignore_ascii_case(stage)))
    }
}

fn extra_hosts(text: &str) -> Result<Vec<pb::HostIp>, String> {
    let mut hosts = Vec::new();
    if text.is_empty() {
        return Ok(hosts);
    }
    for field in csv::fields(text)? {
        let lower = field.to_lowercase();
        let Some((host, ip)) = lower.split_once('=') else {
            return Err(format!("invalid key-value pair {field}"));
        };
        let Ok(parsed) = ip.parse::<IpAddr>() else { return Err(format!("failed to parse IP {ip}")) };
        let canonical = match parsed {
            IpAddr::V6(v6) => v6.to_ipv4_mapped().map_or(parsed, IpAddr::V4),
            IpAddr::V4(_) => parsed,
        };
        hosts.push(pb::HostIp { host: host.to_owned(), ip: canonical.to_string() });
    }
    Ok(hosts)
}

fn ulimits(text: &str) -> Result<Vec<pb::Ulimit>, String> {
    const NAMES: &str =
        "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack";
    let mut limits = Vec::new();
    if text.is_empty() {
        return Ok(limits);
    }
    for field in csv::fields(text)? {
        let Some((name, values)) = field.split_once('=') else {
            return Err(format!("invalid ulimit argument: {field}"));
        };
        if !NAMES.split(' ').any(|known| known == name) {
            return Err(format!("invalid ulimit type: {name}"));
        }
        let number = |text: &str| parse_int(text, 64).map_err(|e| e.describe("ParseInt", text));
        let parts: Vec<&str> = values.split(':').collect();
        let (soft, hard) = match parts.as_slice() {
            [soft] => (number(soft)?, number(soft)?),
            [soft, hard] => {
                let hard = number(hard)?;
                (number(soft)?, hard)
            }
            _ => {
                return Err(format!(
                    "too many limit value arguments - {values}, can only have up to two, `soft[:hard]`"
                ));
            }
        };
        let must = "ulimit soft limit must be less than or equal to hard limit";
        if hard != -1 && soft == -1 {
            return Err(format!("{must}: soft: -1 (unlimited), hard: {hard}"));
        }
        if hard != -1 && soft > hard {
            return Err(format!("{must}: {soft} > {hard}"));
        }
        limits.push(pb::Ulimit { name: name.to_owned(), soft, hard });
    }
    Ok(limits)
}

fn linux_resources<'a>(opt: &dyn Fn(&str) -> &'a str) -> Result<Option<pb::LinuxResources>, String> {
    let mut res = pb::LinuxResources::default();
    let invalid = |key: &str, why: String| format!("invalid {key} value: {}: {why}", opt(key));
    let signed = |key: &str| -> Result<Option<i64>, String> {
        if opt(key).is_empty() {
            return Ok(None);
        }
        parse_int(opt(key), 64).map(Some).map_err(|e| invalid(key, e.describe("ParseInt", opt(key))))
    };
    let unsigned = |key: &str| -> Result<Option<u64>, String> {
        if opt(key).is_empty() {
            return Ok(None);
        }
        match parse_uint(opt(key), 10, 64) {
            Ok(0) => Err(invalid(key, "must be > 0".into())),
            Ok(n) => Ok(Some(n)),
            Err(e) => Err(invalid(key, e.describe("ParseUint", opt(key)))),
        }
    };
    let positive = |key: &str| match signed(key)? {
        Some(n) if n <= 0 => Err(invalid(key, "must be > 0".into())),
        other => Ok(other.unwrap_or_default()),
    };
    res.memory = positive("memory")?;
    res.memory_swap = match signed("memswap")? {
        Some(n) if n < -1 || n == 0 => return Err(invalid("memswap", "must be -1 (unlimited) or > 0".into())),
        other => other.unwrap_or_default(),
    };
    res.cpu_shares = unsigned("cpushares")?.unwrap_or_default();
    res.cpu_period = unsigned("cpuperiod")?.unwrap_or_default();
    res.cpu_quota = positive("cpuquota")?;
    for (key, field) in [("cpusetcpus", &mut res.cpuset_cpus), ("cpusetmems", &mut res.cpuset_mems)] {
        check_cpu_set(opt(key)).map_err(|e| invalid(key, e))?;
        opt(key).clone_into(field);
    }
    Ok((res != pb::LinuxResources::default()).then_some(res))
}

fn check_cpu_set(text: &str) -> Result<(), String> {
    const MAX_CPU: i64 = 8192;
    let number = |text: &str| parse_int(text.trim(), 64).ok().filter(|n| *n >= 0);
    for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let shown = crate::text::quote::quote(part);
        match part.split_once('-') {
            None => match number(part) {
                None => return Err(format!("invalid cpuset element {shown}")),
                Some(n) if n > MAX_CPU => return Err(format!("cpuset element {shown} exceeds maximum {MAX_CPU}")),
                Some(_) => {}
            },
            Some((low, high)) => match (number(low), number(high)) {
                (Some(low), Some(high)) if low <= high => {
                    if high > MAX_CPU {
                        return Err(format!("cpuset range {shown} exceeds maximum {MAX_CPU}"));
                    }
                }
                _ => return Err(format!("invalid cpuset range {shown}")),
            },
        }
    }
    Ok(())
}
