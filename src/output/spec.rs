//! `--output`: what kinds there are, and what each needs.

use crate::request::values;
use anyhow::{Context as _, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// One output that was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    /// The exporter's type on the wire: `image`, `oci`, `docker`, `local` or `tar`.
    pub kind: String,
    /// The exporter's attributes.
    pub attrs: BTreeMap<String, String>,
    /// What the client does with the bytes.
    pub dest: Dest,
}

/// Where an output's bytes go on this side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dest {
    /// Nothing comes back: the daemon stores or pushes it.
    Daemon,
    /// Standard output.
    Stdout,
    /// A file.
    File(PathBuf),
    /// A directory that files are written into; `mirror`: what isn't in the result is deleted.
    Dir {
        /// The directory.
        path: PathBuf,
        /// Delete what isn't in the result.
        mirror: bool,
    },
    /// A directory that becomes an image layout.
    Layout(PathBuf),
    /// Docker or Podman.
    Load,
}

const KINDS: &str = "image, registry, docker, oci, local, tar";

/// Parses the `--output` values.
pub fn parse(values: &[String]) -> Result<Vec<Output>> {
    let outputs: Vec<Output> =
        values.iter().map(|v| one(v).with_context(|| format!("--output {v}"))).collect::<Result<_>>()?;
    ensure!(
        outputs.iter().filter(|o| o.dest == Dest::Stdout).count() < 2,
        "only one --output can go to standard output"
    );
    ensure!(
        outputs.iter().filter(|o| matches!(o.dest, Dest::Layout(_))).count() < 2,
        "only one --output can be a layout (tar=false)"
    );
    Ok(outputs)
}

fn one(value: &str) -> Result<Output> {
    let fields = values::fields(value)?;
    if let [plain] = fields.as_slice()
        && !plain.starts_with("type=")
        && (!plain.contains('=') || plain.contains('/'))
    {
        ensure!(!plain.is_empty(), "it is empty; give a directory, `-`, or type=…");
        return Ok(if plain == "-" {
            Output { kind: "tar".into(), attrs: BTreeMap::new(), dest: Dest::Stdout }
        } else {
            Output {
                kind: "local".into(),
                attrs: BTreeMap::new(),
                dest: Dest::Dir { path: plain.into(), mirror: false },
            }
        });
    }
    let (mut kind, mut dest, mut attrs) = (None, None, BTreeMap::new());
    for field in &fields {
        let (key, text) = values::key_value(field)?;
        match key.trim().to_ascii_lowercase().as_str() {
            "type" => kind = Some(text.to_owned()),
            "dest" => dest = Some(text.to_owned()),
            // Names of annotations keep their case.
            _ if key.starts_with("annotation") => _ = attrs.insert(key.trim().to_owned(), text.to_owned()),
            lower => _ = attrs.insert(lower.to_owned(), text.to_owned()),
        }
    }
    let kind = kind.with_context(|| format!("type=… is missing: one of {KINDS}"))?;
    let file = |dest: Option<String>| match dest.as_deref() {
        None | Some("-") => Dest::Stdout,
        Some(path) => Dest::File(path.into()),
    };
    let dest = match kind.as_str() {
        "image" | "registry" => {
            ensure!(dest.is_none(), "an output of type {kind} has no dest; name it with -t or name=…");
            if kind == "registry" {
                attrs.insert("push".into(), "true".into());
            }
            let kind = "image".into();
            return Ok(Output { kind, attrs, dest: Dest::Daemon });
        }
        "local" => {
            let path = dest.context("type=local needs dest=DIRECTORY")?;
            ensure!(path != "-", "type=local writes a directory; for a stream take type=tar");
            let mirror = attrs.get("mode").is_some_and(|mode| mode == "delete");
            Dest::Dir { path: path.into(), mirror }
        }
        "docker" if dest.is_none() && attrs.get("tar").is_none_or(|tar| tar != "false") => Dest::Load,
        "docker" | "oci" if attrs.get("tar").is_some_and(|tar| tar == "false") => {
            let path =
                dest.filter(|path| path != "-").context("tar=false writes a directory: it needs dest=DIRECTORY")?;
            Dest::Layout(path.into())
        }
        "docker" | "oci" | "tar" => file(dest),
        "cacheonly" => {
            bail!("there is no type cacheonly; without -o and -t nothing but the cache is kept: use --load=false")
        }
        other => bail!("`{other}` is not a type of output; there are {KINDS}"),
    };
    Ok(Output { kind, attrs, dest })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attrs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn forms() {
        let dir = |p: &str| Dest::Dir { path: p.into(), mirror: false };
        for (value, kind, given, dest) in [
            ("out", "local", &[][..], dir("out")),
            ("./a=b", "local", &[], dir("./a=b")),
            ("-", "tar", &[], Dest::Stdout),
            ("type=local,dest=x", "local", &[], dir("x")),
            ("type=tar,dest=x.tar", "tar", &[], Dest::File("x.tar".into())),
            ("type=oci", "oci", &[], Dest::Stdout),
            ("type=docker", "docker", &[], Dest::Load),
            ("type=docker,dest=-", "docker", &[], Dest::Stdout),
            ("type=oci,tar=false,dest=x", "oci", &[("tar", "false")], Dest::Layout("x".into())),
            ("type=image,name=a,push=true", "image", &[("name", "a"), ("push", "true")], Dest::Daemon),
            (
                r#"type=registry,"name=a,b",compression=zstd"#,
                "image",
                &[("name", "a,b"), ("push", "true"), ("compression", "zstd")],
                Dest::Daemon,
            ),
            (
                "type=local,dest=x,mode=delete",
                "local",
                &[("mode", "delete")],
                Dest::Dir { path: "x".into(), mirror: true },
            ),
        ] {
            assert_eq!(one(value).unwrap(), Output { kind: kind.into(), attrs: attrs(given), dest }, "{value}");
        }
    }

    #[test]
    fn wrong_ones_say_why() {
        for (value, part) in [
            ("", "it is empty"),
            ("dest=x", "type=… is missing"),
            ("type=what", "`what` is not a type"),
            ("type=local", "needs dest"),
            ("type=image,dest=x", "has no dest"),
            ("type=local,dest=-", "take type=tar"),
        ] {
            let error = format!("{:#}", parse(&[value.to_owned()]).unwrap_err());
            assert!(error.contains(part), "{value}: {error}");
        }
        assert!(parse(&["-".into(), "type=oci".into()]).is_err());
    }
}
