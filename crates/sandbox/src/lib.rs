//! User namespaces, overlay mounts and the container a RUN executes in.
//!
//! Three parts, in the order a daemon uses them:
//! - [`userns`]: the rootless start, before the process has threads;
//! - [`server`]: a small single-threaded process that clones one container for each request;
//! - [`overlay`]: detached overlay mounts, for containers and for reading snapshots.
//!
//! This is the only crate with unsafe code. System calls that `rustix` lacks are behind the narrow
//! functions of the private `sys` module.
#![cfg(target_os = "linux")]

mod container;
mod seccomp;
mod spec;
mod sys;

pub mod activation;
pub mod overlay;
pub mod probe;
pub mod rest;
pub mod server;
pub mod userns;

pub use spec::{ContainerSpec, Mount, MountKind, Network, OWNER_BELOW, OWNER_RECORD, Owners, Rlimit, Rootfs, Security};
