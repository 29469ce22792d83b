//! The command line of bud: flags, finding or starting a daemon, a build's session, its progress, its outputs.
//!
//! Both commands (`bud` and `build-using-dockerfile`) are the few lines that call [`main`].

#![forbid(unsafe_code)]

pub mod cli;
mod commands;
pub mod connect;
mod doctor;
mod failure;
mod output;
pub mod progress;
mod request;
mod solve;
mod terminal;

pub use commands::main;
