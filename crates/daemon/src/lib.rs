//! The daemon: control API, gateway, solver, ops, sources, exporters, history, garbage collection.
//!
//! [`run`] is its whole life. The way of a build: [`control::solve`] takes the request, [`frontend`] makes definitions of it,
//! [`solver`] finds or makes the results with [`source`] and [`ops`], [`exporter`] hands them over; [`progress`] tells of all of it.

#![forbid(unsafe_code)]

pub mod build;
pub mod config;
pub mod control;
pub mod daemon;
pub mod descriptors;
pub mod exporter;
pub mod frontend;
pub mod gateway;
pub mod gc;
pub mod history;
pub mod images;
mod leave;
pub mod life;
mod limits;
mod lock;
mod log;
mod memory;
pub mod ops;
mod options;
mod program;
pub mod progress;
mod resolv;
mod routes;
mod serve;
pub mod service;
pub mod sessions;
pub mod socket;
pub mod solver;
pub mod source;
mod start;
pub mod value;

pub use lock::Running;
pub use log::{LogFile, OLD_LOG};
pub use options::{Options, Snapshotter, Tls};
pub use program::{BuildId, Program, is_newer};
pub use start::{StartError, run};
