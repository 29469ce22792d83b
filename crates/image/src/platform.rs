//! Platforms: operating system, architecture and variant, normalized as containerd does.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A platform such as `linux/arm64` or `linux/arm/v7`. The JSON form is that of an OCI image index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default)]
pub struct Platform {
    /// CPU architecture in Go's spelling (`amd64`).
    pub architecture: String,
    /// Operating system in Go's spelling (`linux`).
    pub os: String,
    /// Operating system version; Windows only.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// Operating system features; Windows only.
    #[serde(rename = "os.features", default, skip_serializing_if = "Vec::is_empty")]
    pub os_features: Vec<String>,
    /// CPU variant (`v7`), empty where there is none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// Says why a text is not a platform.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct InvalidPlatform {
    /// What is wrong, with the text.
    pub message: String,
}

impl Platform {
    /// Returns `linux/` and the architecture this program was built for.
    #[must_use]
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "x86" => "386",
            "aarch64" => "arm64",
            "powerpc64" => "ppc64le",
            other => other,
        };
        let variant = if architecture == "arm" { "v7" } else { "" };
        Self { architecture: architecture.into(), os: "linux".into(), variant: variant.into(), ..Self::default() }
    }

    /// Parses `os`, `arch`, `os/arch` or `os/arch/variant`, where the operating system may carry version and features:
    /// `windows(10.0.17763+feature)/amd64`.
    ///
    /// The case and the aliases of the parts are settled (`X86_64` is `amd64`), but a variant that was spelled out stays,
    /// even where it is the default; see [`Platform::normalize`].
    ///
    /// # Errors
    /// The text is no platform; in containerd's words.
    pub fn parse(text: &str) -> Result<Self, InvalidPlatform> {
        let fail = |message: String| InvalidPlatform { message: format!("{message}: invalid argument") };
        if text.contains('*') {
            return Err(fail(format!("{text:?}: wildcards not yet supported")));
        }
        let parts: Vec<&str> = text.splitn(4, '/').collect();
        let first = parts[0];
        let Some((name, version, features)) = split_os(first) else {
            return Err(fail(format!(
                "{first:?} is an invalid OS component of {text:?}: OSAndVersion specifier component must match {OS_PATTERN:?}"
            )));
        };
        let mut platform = Self { os: normalize_os(name), ..Self::default() };
        platform.os_version = unescape(version)
            .map_err(|e| InvalidPlatform { message: format!("{text:?} has an invalid OS version {version:?}: {e}") })?;
        for feature in features {
            let feature = unescape(feature).map_err(|e| InvalidPlatform {
                message: format!("{text:?} has invalid OS features: invalid os feature {feature:?}: {e}"),
            })?;
            platform.os_features.push(feature);
        }
        if let Some(part) = parts[1..].iter().find(|part| !is_component(part)) {
            return Err(fail(format!(
                "{part:?} is an invalid component of {text:?}: platform specifier component must match {COMPONENT_PATTERN:?}"
            )));
        }
        match parts[1..] {
            [] => {
                if is_known_os(&platform.os) {
                    return Ok(Self { architecture: Self::host().architecture, ..platform });
                }
                (platform.architecture, platform.variant) = normalize_arch(first, "");
                if !is_known_arch(&platform.architecture) {
                    return Err(fail(format!("{text:?}: unknown operating system or architecture")));
                }
                platform.os = "linux".into();
                platform.drop_default_arm_variant();
            }
            [arch] => {
                (platform.architecture, platform.variant) = normalize_arch(arch, "");
                platform.drop_default_arm_variant();
            }
            [arch, variant] => {
                (platform.architecture, platform.variant) = normalize_arch(arch, variant);
                if platform.architecture == "arm64" && platform.variant.is_empty() {
                    platform.variant = "v8".into();
                }
            }
            _ => return Err(fail(format!("{text:?}: cannot parse platform specifier"))),
        }
        Ok(platform)
    }

    fn drop_default_arm_variant(&mut self) {
        if self.architecture == "arm" && self.variant == "v7" {
            self.variant.clear();
        }
    }

    /// Returns the canonical form: aliases replaced, default variants left out (`arm64/v8`) or put in (`arm` is `arm/v7`).
    #[must_use]
    pub fn normalize(&self) -> Self {
        let (architecture, variant) = normalize_arch(&self.architecture, &self.variant);
        let mut os_features = self.os_features.clone();
        os_features.sort();
        os_features.dedup();
        Self { os: normalize_os(&self.os), architecture, variant, os_version: self.os_version.clone(), os_features }
    }

    /// Returns the form without operating system version and features: `windows/amd64`.
    #[must_use]
    pub fn short(&self) -> String {
        Self { os_version: String::new(), os_features: Vec::new(), ..self.clone() }.to_string()
    }
}

impl std::str::FromStr for Platform {
    type Err = InvalidPlatform;

    fn from_str(text: &str) -> Result<Self, InvalidPlatform> {
        Self::parse(text)
    }
}

const COMPONENT_PATTERN: &str = "^[A-Za-z0-9_.-]+$";
const OS_PATTERN: &str = r"^([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?$";

/// As [`COMPONENT_PATTERN`], but without names that mean a directory.
fn is_component(text: &str) -> bool {
    !matches!(text, "" | "." | "..")
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

/// Splits `os(version+feature+feature)`.
fn split_os(text: &str) -> Option<(&str, &str, Vec<&str>)> {
    let (name, options) = match text.split_once('(') {
        Some((name, options)) => (name, Some(options.strip_suffix(')')?)),
        None => (text, None),
    };
    let name_ok = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
    let Some(options) = options else { return name_ok.then_some((name, "", Vec::new())) };
    let option = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'%' | b'-'));
    let mut parts = options.split('+');
    let version = parts.next().unwrap_or_default();
    let features: Vec<&str> = parts.collect();
    let ok = name_ok && option(version) && features.iter().all(|f| !f.is_empty() && option(f));
    ok.then_some((name, version, features))
}

/// Takes `%2B` and its like back to characters.
fn unescape(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        rest = tail;
        if first != b'%' {
            bytes.push(first);
            continue;
        }
        let digits = tail.get(..2).filter(|d| d.iter().all(u8::is_ascii_hexdigit));
        let Some(byte) = digits.and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 16).ok())
        else {
            let shown = String::from_utf8_lossy(&tail[..tail.len().min(2)]).into_owned();
            return Err(format!("invalid URL escape {:?}", format!("%{shown}")));
        };
        bytes.push(byte);
        rest = &tail[2..];
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('+', "%2B").replace('(', "%28").replace(')', "%29").replace('/', "%2F")
}

fn normalize_os(os: &str) -> String {
    match os.to_lowercase().as_str() {
        "" => "linux".into(),
        "macos" => "darwin".into(),
        other => other.into(),
    }
}

fn normalize_arch(arch: &str, variant: &str) -> (String, String) {
    let (arch, variant) = (arch.to_lowercase(), variant.to_lowercase());
    let (arch, variant) = match (arch.as_str(), variant.as_str()) {
        ("i386", _) => ("386", ""),
        ("x86_64" | "x86-64" | "amd64", v) => ("amd64", if v == "v1" { "" } else { v }),
        ("aarch64" | "arm64", "8" | "v8" | "v8.0") => ("arm64", ""),
        ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
        ("aarch64" | "arm64", v) => ("arm64", v),
        ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
        ("armel", _) | ("arm", "6") => ("arm", "v6"),
        ("arm", "5") => ("arm", "v5"),
        ("arm", "8") => ("arm", "v8"),
        (arch, variant) => (arch, variant),
    };
    (arch.into(), variant.into())
}

fn is_known_os(os: &str) -> bool {
    const KNOWN: &str =
        "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris windows zos";
    KNOWN.split(' ').any(|known| known == os)
}

fn is_known_arch(arch: &str) -> bool {
    const KNOWN: &str = "386 amd64 amd64p32 arm armbe arm64 arm64be ppc64 ppc64le loong64 mips mipsle mips64 mips64le \
                         mips64p32 mips64p32le ppc riscv riscv64 s390 s390x sparc sparc64 wasm";
    KNOWN.split(' ').any(|known| known == arch)
}

/// Writes all parts, so that the text parses to the same platform; an empty one is `unknown`.
impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.os.is_empty() {
            return f.write_str("unknown");
        }
        f.write_str(&self.os)?;
        let mut features: Vec<&String> = self.os_features.iter().filter(|f| !f.is_empty()).collect();
        features.sort();
        features.dedup();
        if !self.os_version.is_empty() || !features.is_empty() {
            write!(f, "({}", escape(&self.os_version))?;
            for feature in features {
                write!(f, "+{}", escape(feature))?;
            }
            f.write_str(")")?;
        }
        for part in [&self.architecture, &self.variant] {
            if !part.is_empty() {
                write!(f, "/{part}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn platforms_are_settled_as_containerd_does() {
        for (text, parsed, normal) in [
            ("linux/amd64", "linux/amd64", "linux/amd64"),
            ("Linux/X86_64", "linux/amd64", "linux/amd64"),
            ("linux/arm64/v8", "linux/arm64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm", "linux/arm/v7"),
            ("linux/arm/6", "linux/arm/v6", "linux/arm/v6"),
            ("armhf", "linux/arm", "linux/arm/v7"),
            ("macos/arm64", "darwin/arm64", "darwin/arm64"),
            ("windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64", "windows(10.0.17763)/amd64"),
            ("windows(1+b+a%2Fc)/amd64", "windows(1+a%2Fc+b)/amd64", "windows(1+a%2Fc+b)/amd64"),
        ] {
            let platform = Platform::parse(text).unwrap();
            assert_eq!(platform.to_string(), parsed);
            assert_eq!(platform.normalize().to_string(), normal);
        }
        assert_eq!(Platform::parse("windows(1)/amd64").unwrap().short(), "windows/amd64");
    }

    #[test]
    fn what_is_no_platform_is_refused() {
        for text in [
            "",
            "linux/",
            "linux/../../x",
            "linux/.",
            "linux/amd64/..",
            "a/b/c/d",
            "*",
            "nonsense",
            "linux/amd64/v1/x/y",
            "linux(",
            "linux(%zz)/x",
        ] {
            assert!(Platform::parse(text).is_err(), "{text}");
        }
        let error = Platform::parse("linux/").unwrap_err().to_string();
        assert!(error.contains("is an invalid component of \"linux/\": platform specifier component must match"));
    }
}
