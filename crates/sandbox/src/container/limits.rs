//! Resource limits of a container's program.

use super::failure::{Doing, Failure};
use crate::spec::{ContainerSpec, Rlimit};
use crate::sys;

/// Names as in BuildKit's API, with the kernel's numbers (`asm-generic/resource.h`).
const NAMES: &[(&str, u32)] = &[
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];

/// Sets the limits and the OOM score of the process.
pub(super) fn set(spec: &ContainerSpec) -> Result<(), Failure> {
    for Rlimit { name, soft, hard } in &spec.rlimits {
        let lower = name.to_ascii_lowercase();
        let number = NAMES.iter().find(|(known, _)| *known == lower).map(|(_, number)| *number);
        let number = number.ok_or_else(|| Failure::new(format!("unknown resource limit {name:?}")))?;
        sys::set_rlimit(number, *soft, *hard).doing(|| format!("set resource limit {name}={soft}:{hard}"))?;
    }
    if let Some(score) = spec.oom_score_adj {
        // Lowering it takes privileges on the machine: asked for, not demanded.
        std::fs::write("/proc/self/oom_score_adj", score.clamp(-1000, 1000).to_string()).ok();
    }
    Ok(())
}
