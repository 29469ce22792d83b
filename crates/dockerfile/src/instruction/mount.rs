//! `RUN --mount` and `--device`.

use crate::fault::Fault;
use crate::text::csv;
use crate::text::number::{parse_bool, parse_size, parse_uint};
use crate::text::quote::quote;
use crate::text::suggest::{by_likeness, with_nearest};

/// What is mounted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MountKind {
    /// Files of the context or of another stage.
    #[default]
    Bind,
    /// A directory that outlives the build.
    Cache,
    /// A directory in memory.
    Tmpfs,
    /// A secret.
    Secret,
    /// An ssh agent's socket.
    Ssh,
}

const KINDS: [(&str, MountKind); 5] = [
    ("bind", MountKind::Bind),
    ("cache", MountKind::Cache),
    ("tmpfs", MountKind::Tmpfs),
    ("secret", MountKind::Secret),
    ("ssh", MountKind::Ssh),
];

impl MountKind {
    /// Returns the name, as in `type=NAME`.
    #[must_use]
    pub fn name(self) -> &'static str {
        // Every kind is in the table.
        KINDS.iter().find(|(_, kind)| *kind == self).map_or("", |(name, _)| name)
    }
}

/// Who may use a cache mount at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// All.
    Shared,
    /// One; others get another one.
    Private,
    /// One; others wait.
    Locked,
}

const SHARING: [(&str, Sharing); 3] =
    [("shared", Sharing::Shared), ("private", Sharing::Private), ("locked", Sharing::Locked)];

impl Sharing {
    /// Returns the name, as in `sharing=NAME`.
    #[must_use]
    pub fn name(self) -> &'static str {
        // Every mode is in the table.
        SHARING.iter().find(|(_, mode)| *mode == self).map_or("", |(name, _)| name)
    }
}

/// A mount.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mount {
    /// What is mounted.
    pub kind: MountKind,
    /// Stage or image that it is from; empty for the context.
    pub from: String,
    /// Path in there; the id of a secret.
    pub source: String,
    /// Where to.
    pub target: String,
    /// Nothing can be written.
    pub read_only: bool,
    /// Size of a tmpfs in bytes.
    pub size: i64,
    /// Id of a cache, secret or agent.
    pub id: String,
    /// Who may use a cache at the same time.
    pub sharing: Option<Sharing>,
    /// A secret or agent that isn't there ends the build.
    pub required: bool,
    /// The variable that holds the secret.
    pub env: Option<String>,
    /// Mode.
    pub mode: Option<u32>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "target",
    "readonly",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "src",
    "dst",
    "destination",
    "ro",
    "rw",
    "readwrite",
    "env",
];

/// Checks a mount as far as that is possible before variables are known, and returns its `from`.
pub(crate) fn check_mount(text: &str) -> Result<String, Fault> {
    let mut from = String::new();
    for field in csv::fields(text).map_err(|e| Fault::new(format!("failed to parse csv mounts: {e}")))? {
        let Some((key, value)) = field.split_once('=') else { continue };
        if key.to_lowercase() == "from" {
            if value.find('$').is_some_and(|at| at + 1 != value.len()) {
                return Err(Fault::new("'from' doesn't support variable expansion, define alias stage instead"));
            }
            value.clone_into(&mut from);
        }
    }
    Ok(from)
}

/// Parses a mount, expanding variables in its values.
pub(crate) fn parse_mount(text: &str, expand: &mut dyn FnMut(&str) -> Result<String, Fault>) -> Result<Mount, Fault> {
    let mut mount = Mount::default();
    let mut read_only = None;
    for field in csv::fields(text).map_err(|e| Fault::new(format!("failed to parse csv mounts: {e}")))? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(expand(value)?)),
            None => (field.to_lowercase(), None),
        };
        let has_required = matches!(mount.kind, MountKind::Secret | MountKind::Ssh);
        let unexpected = || Fault::new(format!("unexpected key '{key}' for mount type '{}'", mount.kind.name()));
        let Some(value) = value else {
            match key.as_str() {
                "readonly" | "ro" => read_only = Some(true),
                "readwrite" | "rw" => read_only = Some(false),
                "required" if has_required => mount.required = true,
                "required" => return Err(unexpected()),
                _ => return Err(Fault::new(format!("invalid field '{field}' must be a key=value pair"))),
            }
            continue;
        };
        let invalid = || Fault::new(format!("invalid value for {key}: {value}"));
        let number = |base| {
            let number = parse_uint(&value, base, 32).ok().and_then(|n| u32::try_from(n).ok());
            number.ok_or_else(|| Fault::new(format!("invalid value {value} for {key}")))
        };
        match key.as_str() {
            "type" => {
                let name = value.to_lowercase();
                let found = KINDS.iter().find(|(kind, _)| *kind == name);
                mount.kind = found.map(|(_, kind)| *kind).ok_or_else(|| {
                    let names = by_likeness(&value, &KINDS.map(|(name, _)| name));
                    with_nearest(format!("unsupported mount type {}", quote(&value)), &value, &names, true)
                })?;
            }
            "from" => mount.from = value,
            "source" | "src" => mount.source = value,
            "target" | "dst" | "destination" => mount.target = value,
            "readonly" | "ro" => read_only = Some(parse_bool(&value).ok_or_else(invalid)?),
            "readwrite" | "rw" => read_only = Some(!parse_bool(&value).ok_or_else(invalid)?),
            "required" if has_required => mount.required = parse_bool(&value).ok_or_else(invalid)?,
            "size" if mount.kind == MountKind::Tmpfs => mount.size = parse_size(&value).ok_or_else(invalid)?,
            "required" | "size" => return Err(unexpected()),
            "id" => mount.id = value,
            "sharing" => {
                let name = value.to_lowercase();
                let found = SHARING.iter().find(|(mode, _)| *mode == name);
                mount.sharing = Some(found.map(|(_, mode)| *mode).ok_or_else(|| {
                    let names = by_likeness(&value, &SHARING.map(|(name, _)| name));
                    with_nearest(format!("unsupported sharing value {}", quote(&value)), &value, &names, true)
                })?);
            }
            "mode" => mount.mode = Some(number(8)?),
            "uid" => mount.uid = Some(number(10)?),
            "gid" => mount.gid = Some(number(10)?),
            "env" => mount.env = Some(value),
            _ => {
                return Err(with_nearest(format!("unexpected key '{key}' in '{field}'"), &key, &KEYS, true).into());
            }
        }
    }
    mount.read_only = read_only.unwrap_or(!matches!(mount.kind, MountKind::Cache | MountKind::Tmpfs));
    check_combination(&mount)?;
    Ok(mount)
}

fn check_combination(mount: &Mount) -> Result<(), Fault> {
    let kind = mount.kind.name();
    if matches!(mount.kind, MountKind::Bind | MountKind::Tmpfs) {
        let given = [("mode", mount.mode), ("uid", mount.uid), ("gid", mount.gid)];
        if let Some((name, _)) = given.iter().find(|(_, value)| value.is_some()) {
            return Err(Fault::new(format!("{name} not allowed for {} type mounts", quote(kind))));
        }
    }
    if mount.kind == MountKind::Secret {
        let refused = if !mount.from.is_empty() {
            "secret mount should not have a from"
        } else if mount.sharing.is_some() {
            "secret mount should not define sharing"
        } else if mount.source.is_empty() && mount.target.is_empty() && mount.id.is_empty() {
            "invalid secret mount. one of source, target required"
        } else if !mount.source.is_empty() && !mount.id.is_empty() {
            "both source and id can't be set"
        } else {
            ""
        };
        if !refused.is_empty() {
            return Err(refused.into());
        }
    }
    if mount.sharing.is_some() && mount.kind != MountKind::Cache {
        return Err(Fault::new(format!("invalid cache sharing set for {kind} mount")));
    }
    Ok(())
}

/// A device that a step may use (CDI).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Its name, `vendor/class=name`.
    pub name: String,
    /// A device that isn't there ends the build.
    pub required: bool,
}

pub(crate) fn parse_device(text: &str) -> Result<Device, Fault> {
    let mut device = Device::default();
    for field in csv::fields(text).map_err(|e| Fault::new(format!("failed to parse csv devices: {e}")))? {
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value)),
            None => (field.to_lowercase(), None),
        };
        match (key.as_str(), value) {
            ("required", None) => device.required = true,
            ("required", Some(value)) => {
                device.required =
                    parse_bool(value).ok_or_else(|| Fault::new(format!("invalid value for required: {value}")))?;
            }
            ("name", Some(_)) if !device.name.is_empty() => {
                return Err(Fault::new(format!("device name already set to {}", device.name)));
            }
            ("name", Some(value)) => value.clone_into(&mut device.name),
            _ if device.name.is_empty() => device.name = field,
            (_, None) => return Err(Fault::new(format!("invalid field '{field}' must be a key=value pair"))),
            (key, Some(_)) => {
                let message = format!("unexpected key '{key}' in '{field}'");
                return Err(with_nearest(message, key, &["name", "required"], true).into());
            }
        }
    }
    Ok(device)
}

/// Parses a mount whose values have no variables.
///
/// # Errors
///
/// What is wrong with it.
pub fn parse(text: &str) -> Result<Mount, String> {
    parse_mount(text, &mut |value| Ok(value.to_owned())).map_err(|fault| fault.message)
}
