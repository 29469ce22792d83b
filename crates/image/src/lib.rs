//! What an image is: references, digests, platforms, configs and manifests, as types. No I/O.

#![forbid(unsafe_code)]

pub mod config;
pub mod digest;
pub mod manifest;
pub mod platform;
pub mod reference;

pub use config::ImageConfig;
pub use digest::Digest;
pub use manifest::{Descriptor, Index, Manifest};
pub use platform::Platform;
pub use reference::{ImageRef, RefDigest};
