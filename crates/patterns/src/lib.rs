//! Paths as Go matches them.
#![forbid(unsafe_code)]
