//! How much memory the daemon takes, with all its processes.

use std::collections::{HashMap, HashSet};

/// Returns the bytes and the number of this process and all that descend from it: each page counts as the share of it that each
/// process has (`Pss` of `smaps_rollup`, `proc(5)`), or where that can't be read, in full.
pub fn of_all() -> (u64, i32) {
    let mut parents: HashMap<u32, u32> = HashMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        // The name before the parenthesis may hold anything.
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if let Some(parent) = parent {
            parents.insert(pid, parent);
        }
    }
    let mut own = HashSet::from([std::process::id()]);
    loop {
        let before = own.len();
        own.extend(parents.iter().filter(|(_, parent)| own.contains(parent)).map(|(pid, _)| *pid).collect::<Vec<_>>());
        if own.len() == before {
            break;
        }
    }
    (own.iter().map(|pid| of(*pid)).sum(), i32::try_from(own.len()).unwrap_or(i32::MAX))
}

fn of(pid: u32) -> u64 {
    let kilobytes = |file: &str, label: &str| -> Option<u64> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/{file}")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(label))?.split_whitespace().next()?.parse().ok()
    };
    kilobytes("smaps_rollup", "Pss:").or_else(|| kilobytes("status", "VmRSS:")).unwrap_or(0) * 1024
}

#[cfg(test)]
mod tests {
    #[test]
    fn children_count() {
        let (alone, before) = super::of_all();
        assert!(alone > 100_000 && before >= 1);
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let found = super::of_all().1;
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found > before, "{found} after {before}");
    }
}
