//! End to end: the real binary as an unprivileged user, a real daemon, real namespaces, a real registry, real clients.
//!
//! Run through `tests/run`, which makes the users and installs what is needed.

#![forbid(unsafe_code)]

mod harness;
mod registry;

mod api;
mod bad_input;
mod cache;
mod check;
mod cli;
mod compare;
mod completion;
mod containers;
mod daemon_hand_over;
mod daemon_life;
mod daemon_service;
mod debian;
mod deploy;
mod docker;
mod dockerfile;
mod doctor;
mod frontend_image;
mod gc;
mod hostile_clients;
mod images;
mod leaves_no_trace;
mod load;
mod owners;
mod recorded_buildkitd;
mod replay;
mod results;
mod rootless;
mod rootless_same;
mod sandbox;
mod security;
mod storage;
