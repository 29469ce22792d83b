//! Images outside of this machine: registries, layouts, layer tars and their compression.
//!
//! Everything that comes from a registry or an archive is hostile: sizes are limited, digests checked, and no credential goes
//! to a host that it isn't for.

#![forbid(unsafe_code)]

pub mod auth_config;
pub mod codec;
pub mod layout;
pub mod registry;
pub mod tar;
