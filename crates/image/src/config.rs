//! The image config, with Docker's additions, in the field order in which BuildKit exports it: the outer fields sorted.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An image config: what a container of the image runs, and what its layers are.
///
/// Source: OCI image spec `config.md`, and Docker's `DockerOCIImage` additions as the Dockerfile front end writes them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// The platform: architecture.
    #[serde(default)]
    pub architecture: String,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// What a container runs.
    #[serde(default)]
    pub config: RunConfig,
    /// When the image was made (RFC 3339); absent while unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// One entry an instruction.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub history: Option<Vec<History>>,
    /// The platform: operating system.
    #[serde(default)]
    pub os: String,
    /// The platform: operating system features.
    #[serde(rename = "os.features", default, skip_serializing_if = "nil_or_empty")]
    pub os_features: Option<Vec<String>>,
    /// The platform: operating system version.
    #[serde(rename = "os.version", default, skip_serializing_if = "String::is_empty")]
    pub os_version: String,
    /// The layers, as digests of their uncompressed tars.
    #[serde(default)]
    pub rootfs: RootFs,
    /// The platform: CPU variant.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub variant: String,
}

/// The execution parameters of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct RunConfig {
    /// User and group.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports, as `80/tcp`.
    #[serde(default, skip_serializing_if = "nil_or_empty_map")]
    pub exposed_ports: Option<BTreeMap<String, Empty>>,
    /// Environment, `K=V`.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub env: Option<Vec<String>>,
    /// Entrypoint.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub entrypoint: Option<Vec<String>>,
    /// Default command or arguments.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub cmd: Option<Vec<String>>,
    /// Volumes.
    #[serde(default, skip_serializing_if = "nil_or_empty_map")]
    pub volumes: Option<BTreeMap<String, Empty>>,
    /// Working directory.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "nil_or_empty_map")]
    pub labels: Option<BTreeMap<String, String>>,
    /// Signal that stops a container.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    /// Windows: arguments are escaped already.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    /// How to test that a container works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// Triggers for images built on this one.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub on_build: Option<Vec<String>>,
    /// Shell of RUN, CMD and ENTRYPOINT.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub shell: Option<Vec<String>>,
}

/// An empty JSON object, Go's `struct{}`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// A health check; times are in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Healthcheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", …]`.
    #[serde(default, skip_serializing_if = "nil_or_empty")]
    pub test: Option<Vec<String>>,
    /// Time between tests.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub interval: i64,
    /// Time after which a test has failed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub timeout: i64,
    /// Time in which failures don't count.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_period: i64,
    /// Time between tests in the start period.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub start_interval: i64,
    /// Failures in a row that make a container unhealthy.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub retries: i64,
}

/// The layers of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// `layers`.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// Digests of the uncompressed tars, bottom first; null in an unfinished config.
    #[serde(default)]
    pub diff_ids: Option<Vec<Digest>>,
}

/// One step in an image's making.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    /// When (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// The command.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub created_by: String,
    /// Who made it.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub author: String,
    /// The builder's mark (`buildkit.dockerfile.v0`).
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub comment: String,
    /// True if no layer belongs to it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

// Go's `omitempty` leaves out nil and empty alike; null must be read as absent.
fn nil_or_empty<T>(v: &Option<Vec<T>>) -> bool {
    v.as_ref().is_none_or(Vec::is_empty)
}

fn nil_or_empty_map<K, V>(v: &Option<BTreeMap<K, V>>) -> bool {
    v.as_ref().is_none_or(BTreeMap::is_empty)
}

#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(n: &i64) -> bool {
    *n == 0
}
