//! The client against hostile and ill servers, and against Debian's registry.

mod hostile;
mod pull;
mod push;
mod real;
mod server;
