//! Where results go on this side: files, Docker, Podman.

pub mod docker;
pub mod docker_config;
pub mod files;
pub mod layout;
pub mod load;
pub mod spec;
