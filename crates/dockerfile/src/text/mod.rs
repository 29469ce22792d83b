//! How values are written and read, where the reference's own forms show in results: Go's quoting, numbers, durations, paths.

pub(crate) mod csv;
pub(crate) mod duration;
pub(crate) mod json;
pub(crate) mod number;
pub(crate) mod path;
pub(crate) mod quote;
pub(crate) mod suggest;
pub(crate) mod table;
