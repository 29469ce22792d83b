//! What is removed by itself: BuildKit's policies, from flags, from `buildkitd.toml`, or as they are when nobody says anything.

use super::filter;
use crate::config::Worker;
use bud_protocol::errors::BuildError;
use bud_protocol::types::GcPolicy;
use bud_store::PrunePolicy;
use serde::Deserialize;
use std::time::Duration;

const MB: u64 = 1_000_000;
const GB: u64 = 1_000 * MB;
const HOUR: Duration = Duration::from_secs(3600);

/// An amount of disk space: bytes, or a part of the file system.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Space {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of the file system.
    Percent(u64),
}

impl Space {
    /// Reads `512MB`, `1.5g`, `10GiB`, `20%` or plain bytes; letters count by 1024.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no disk space: write it like 512MB, 20GB or 15%");
        let trimmed = text.trim();
        if let Some(percent) = trimmed.strip_suffix('%') {
            let percent = percent.trim().parse().ok().filter(|n| *n <= 100).ok_or_else(wrong)?;
            return Ok(Self::Percent(percent));
        }
        let end = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
        let number: f64 = trimmed[..end].parse().map_err(|_| wrong())?;
        let unit = trimmed[end..].trim().to_ascii_lowercase();
        let power = match unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit) {
            "" => 0,
            "k" => 1,
            "m" => 2,
            "g" => 3,
            "t" => 4,
            "p" => 5,
            _ => return Err(wrong()),
        };
        let bytes = number * 1024_f64.powi(power);
        // Above 2^62 a size is a typing error.
        if !(0.0..4_611_686_018_427_387_904.0).contains(&bytes) {
            return Err(wrong());
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked above")]
        Ok(Self::Bytes(bytes as u64))
    }

    /// Returns the bytes on a file system of this size; parts of it are rounded up to whole GB.
    #[must_use]
    pub fn bytes(self, total: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(0) => 0,
            // The size isn't known.
            Self::Percent(_) if total == 0 => 2 * GB,
            Self::Percent(percent) => (total / 100 * percent / (1 << 30) + 1) * GB,
        }
    }
}

/// Reads a text or a number where the file may have either.
macro_rules! text_or_number {
    ($type:ty, $parse:expr, $number:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                #[derive(Deserialize)]
                #[serde(untagged)]
                enum Value {
                    Number(u64),
                    Text(String),
                }
                match Value::deserialize(deserializer)? {
                    Value::Number(number) => Ok($number(number)),
                    Value::Text(text) => $parse(&text).map_err(serde::de::Error::custom),
                }
            }
        }
    };
}

text_or_number!(Space, Self::parse, Self::Bytes);
text_or_number!(Keep, Self::parse, |seconds| Self(Duration::from_secs(seconds)));

/// How long something is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep(pub Duration);

impl Keep {
    /// Reads `48h`, `1h30m`, or plain seconds.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no duration: write it like 48h or 1h30m, or as seconds");
        let mut rest = text.trim();
        if let Ok(seconds) = rest.parse() {
            return Ok(Self(Duration::from_secs(seconds)));
        }
        let mut total = Duration::ZERO;
        if rest.is_empty() {
            return Err(wrong());
        }
        while !rest.is_empty() {
            let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(wrong)?;
            let number: f64 = rest[..end].parse().map_err(|_| wrong())?;
            rest = &rest[end..];
            let end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
            let unit = match &rest[..end] {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return Err(wrong()),
            };
            let part = Duration::try_from_secs_f64(number * unit).map_err(|_| wrong())?;
            total = total.checked_add(part).ok_or_else(wrong)?;
            rest = &rest[end..];
        }
        Ok(Self(total))
    }
}

/// The three limits of the policies that are made by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// Kept in any case.
    pub reserved: Option<Space>,
    /// To be free on the file system.
    pub min_free: Option<Space>,
    /// Taken at most.
    pub max_used: Option<Space>,
}

impl Limits {
    /// Reads what buildkitd's flag takes, `Reserved[,Free[,Maximum]]`: plain numbers are MB; sizes with a unit and percentages
    /// are taken as well.
    ///
    /// # Errors
    /// A part is no size.
    pub fn from_flag(text: &str) -> Result<Self, String> {
        let mut parts = text.split(',').map(|part| match part.trim().parse::<u64>() {
            Ok(mb) => mb.checked_mul(MB).map(Space::Bytes).ok_or_else(|| format!("{part:?} is too large")),
            Err(_) => Space::parse(part),
        });
        let mut next = || parts.next().transpose();
        let limits = Self { reserved: next()?, min_free: next()?, max_used: next()? };
        if next()?.is_some() {
            return Err(format!("{text:?} has more than three parts: it is Reserved[,Free[,Maximum]]"));
        }
        Ok(limits)
    }

    fn is_unset(&self) -> bool {
        let zero = |space: Option<Space>| matches!(space, None | Some(Space::Bytes(0) | Space::Percent(0)));
        zero(self.reserved) && zero(self.min_free) && zero(self.max_used)
    }

    /// What is kept when nobody says anything: a tenth of the disk but no more than 10 GB stays in any case, four fifths but no
    /// more than 100 GB are taken at most, a fifth is to be free.
    fn of_disk(total: u64) -> Self {
        let capped = |percent, cap| match Space::Percent(percent) {
            space if space.bytes(total) > cap => Space::Bytes(cap),
            space => space,
        };
        Self {
            reserved: Some(capped(10, 10 * GB)),
            min_free: Some(Space::Percent(20)),
            max_used: Some(capped(80, 100 * GB)),
        }
    }
}

/// `[[worker.oci.gcpolicy]]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct Rule {
    all: bool,
    filters: Vec<String>,
    #[serde(rename = "keepDuration", alias = "keepduration")]
    keep_duration: Keep,
    /// The older name of `reservedSpace`.
    #[serde(rename = "keepBytes", alias = "keepbytes")]
    keep_bytes: Option<Space>,
    #[serde(rename = "reservedSpace", alias = "reservedspace")]
    reserved: Option<Space>,
    #[serde(rename = "maxUsedSpace", alias = "maxusedspace")]
    max_used: Option<Space>,
    #[serde(rename = "minFreeSpace", alias = "minfreespace")]
    min_free: Option<Space>,
}

/// A policy: what goes, in bytes of this machine.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    /// Which records, as they were written.
    pub filters: Vec<String>,
    /// The same, read.
    pub compiled: Vec<filter::Filter>,
    /// The rest of it.
    pub prune: PrunePolicy,
}

impl Policy {
    /// Makes a policy; a limit of zero is none.
    ///
    /// # Errors
    /// A filter is malformed.
    pub fn new(
        filters: Vec<String>,
        all: bool,
        keep: Duration,
        [reserved, max_used, min_free]: [u64; 3],
    ) -> Result<Self, BuildError> {
        let compiled = filter::parse(&filters)?;
        let given = |n: u64| Some(n).filter(|n| *n > 0);
        let prune = PrunePolicy {
            keep_duration: Some(keep).filter(|keep| !keep.is_zero()),
            reserved,
            max_used: given(max_used),
            min_free: given(min_free),
            all,
        };
        Ok(Self { filters, compiled, prune })
    }

    /// Returns it as it is told to clients.
    #[must_use]
    pub fn to_control(&self) -> GcPolicy {
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let keep = self.prune.keep_duration.unwrap_or_default().as_nanos();
        GcPolicy {
            all: self.prune.all,
            keep_duration: i64::try_from(keep).unwrap_or(i64::MAX),
            reserved_space: number(self.prune.reserved),
            filters: self.filters.clone(),
            max_used_space: number(self.prune.max_used.unwrap_or(0)),
            min_free_space: number(self.prune.min_free.unwrap_or(0)),
        }
    }
}

/// Returns the policies in the order in which they are applied, on a file system of this size.
///
/// # Errors
/// A filter is malformed.
pub fn policies(flag: Option<Limits>, config: &Worker, total: u64) -> Result<Vec<Policy>, BuildError> {
    let bytes = |space: Option<Space>| space.map_or(0, |space| space.bytes(total));
    if !config.gc_policies.is_empty() {
        let make = |rule: &Rule| {
            let is_set = |space: &Space| !matches!(space, Space::Bytes(0) | Space::Percent(0));
            let reserved = rule.reserved.filter(is_set).or(rule.keep_bytes);
            let limits = [bytes(reserved), bytes(rule.max_used), bytes(rule.min_free)];
            Policy::new(rule.filters.clone(), rule.all, rule.keep_duration.0, limits)
        };
        return config.gc_policies.iter().map(make).collect();
    }
    let mut limits = flag.unwrap_or(Limits {
        reserved: config.reserved_space,
        min_free: config.min_free_space,
        max_used: config.max_used_space,
    });
    if limits.is_unset() {
        limits = Limits { reserved: config.gc_keep_storage, ..Limits::default() };
    }
    if limits.is_unset() {
        limits = Limits::of_disk(total);
    }
    let limits = [bytes(limits.reserved), bytes(limits.max_used), bytes(limits.min_free)];
    // What is easily had again, when it was not used for two days and takes much.
    let easy = ["source.local", "exec.cachemount", "source.git.checkout"].map(|kind| format!("type=={kind}"));
    Ok(vec![
        Policy::new(easy.to_vec(), false, 48 * HOUR, [0, 512 * MB, 0])?,
        Policy::new(Vec::new(), false, 60 * 24 * HOUR, limits)?,
        Policy::new(Vec::new(), false, Duration::ZERO, limits)?,
        Policy::new(Vec::new(), true, Duration::ZERO, limits)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    const DISK: u64 = 500 << 30;

    fn worker(text: &str) -> Worker {
        toml::from_str(text).unwrap()
    }

    fn told(policy: &Policy) -> (bool, u64, i64, i64, i64) {
        let p = policy.to_control();
        let hours = p.keep_duration.unsigned_abs() / 3_600_000_000_000;
        (p.all, hours, p.reserved_space, p.max_used_space, p.min_free_space)
    }

    #[test]
    fn defaults_are_buildkits() {
        let all = policies(None, &Worker::default(), DISK).unwrap();
        // 10% of 500 GiB is more than 10 GB, 80% more than 100 GB; a fifth, in GiB, one more, as GB.
        let rest = (10_000_000_000, 100_000_000_000, 101_000_000_000);
        assert_eq!(
            all.iter().map(told).collect::<Vec<_>>(),
            [
                (false, 48, 0, 512_000_000, 0),
                (false, 1440, rest.0, rest.1, rest.2),
                (false, 0, rest.0, rest.1, rest.2),
                (true, 0, rest.0, rest.1, rest.2),
            ]
        );
        assert_eq!(all[0].filters, ["type==source.local", "type==exec.cachemount", "type==source.git.checkout"]);
        // A small disk keeps parts of itself.
        let small = policies(None, &Worker::default(), 50 << 30).unwrap();
        assert_eq!(told(&small[2]), (false, 0, 6_000_000_000, 41_000_000_000, 11_000_000_000));
        // One that can't be measured.
        let unknown = policies(None, &Worker::default(), 0).unwrap();
        assert_eq!(told(&unknown[2]), (false, 0, 2_000_000_000, 2_000_000_000, 2_000_000_000));
    }

    #[test]
    fn flag_goes_before_file_and_new_names_before_old() {
        let limits = |flag: Option<&str>, text: &str| {
            let flag = flag.map(|f| Limits::from_flag(f).unwrap());
            let (_, _, reserved, max, free) = told(&policies(flag, &worker(text), DISK).unwrap()[2]);
            (reserved, max, free)
        };
        assert_eq!(limits(Some("9000"), "gckeepstorage = '5MB'"), (9_000_000_000, 0, 0));
        assert_eq!(limits(Some("1,2,3"), ""), (1_000_000, 3_000_000, 2_000_000));
        assert_eq!(limits(Some("1GB,10%"), ""), (1 << 30, 0, 51_000_000_000));
        assert_eq!(limits(None, "gckeepstorage = '5MB'"), (5 << 20, 0, 0));
        assert_eq!(limits(None, "gckeepstorage = 5000\nmaxUsedSpace = '60%'"), (0, 301_000_000_000, 0));
        for bad in ["x", "1,2,3,4", "-1", "1TBB", "101%", "99999999999999999"] {
            assert!(Limits::from_flag(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rules_of_the_file_replace_the_defaults() {
        let worker = worker(
            r#"
            [[gcpolicy]]
              keepBytes = 512000000
              keepDuration = 172800
              filters = ["type==source.local", "type==exec.cachemount"]
            [[gcpolicy]]
              all = true
              reservedSpace = "1GB"
              keepBytes = "7GB"
              maxUsedSpace = "50%"
              minFreeSpace = "10GB"
              keepDuration = "1h30m"
            "#,
        );
        let all = policies(Some(Limits::from_flag("1").unwrap()), &worker, DISK).unwrap();
        assert_eq!(told(&all[0]), (false, 48, 512_000_000, 0, 0));
        assert_eq!(all[0].filters.len(), 2);
        assert_eq!(told(&all[1]), (true, 1, 1 << 30, 251_000_000_000, 10 << 30));
        assert_eq!(all[1].prune.keep_duration, Some(Duration::from_secs(5400)));
        let bad: Worker = toml::from_str("[[gcpolicy]]\nfilters = ['type=regular']").unwrap();
        assert!(policies(None, &bad, DISK).unwrap_err().to_string().contains("type=regular"));
        for bad in ["keepDuration = 'x'", "keepDuration = '3 days'", "keepBytes = 'many'", "keepBytes = -1", "all = 1"]
        {
            assert!(toml::from_str::<Worker>(&format!("[[gcpolicy]]\n{bad}")).is_err(), "{bad}");
        }
    }
}
