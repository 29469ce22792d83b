//! Limits what a step's output costs on the wire: so much in all, so much a second, and the last part always.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// What is kept aside of clipped output, to be told at the end.
const TAIL: usize = 256 << 10;

/// Limits of one output stream; none: no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes in all.
    pub size: Option<u64>,
    /// Bytes per second of runtime.
    pub speed: Option<u64>,
}

impl Limits {
    /// Returns BuildKit's: 2 MiB and 200 KiB per second, or what its environment variables say (−1: no limit).
    #[must_use]
    pub fn from_env() -> Self {
        let limit = |name: &str, default: u64| match std::env::var(name).ok().and_then(|v| v.parse::<i64>().ok()) {
            None => Some(default),
            Some(n) => u64::try_from(n).ok(),
        };
        Self {
            size: limit("BUILDKIT_STEP_LOG_MAX_SIZE", 2 << 20),
            speed: limit("BUILDKIT_STEP_LOG_MAX_SPEED", 200 << 10),
        }
    }
}

/// Clips one stream of one step.
#[derive(Debug)]
pub struct Clip {
    limits: Limits,
    began: Instant,
    passed: u64,
    clipping: bool,
    tail: VecDeque<u8>,
    lost: bool,
}

impl Clip {
    /// Starts the clock.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self { limits, began: Instant::now(), passed: 0, clipping: false, tail: VecDeque::new(), lost: false }
    }

    /// Tells whether anything was held back so far.
    #[must_use]
    pub fn has_clipped(&self) -> bool {
        self.lost || !self.tail.is_empty()
    }

    /// Takes output and returns what is to be told of it.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<u8> {
        self.push_at(bytes, self.began.elapsed())
    }

    fn push_at(&mut self, bytes: &[u8], elapsed: Duration) -> Vec<u8> {
        let after = self.passed.saturating_add(bytes.len() as u64);
        let mut reason = None;
        if let Some(size) = self.limits.size
            && after > size
        {
            reason = Some(format!("log limit {} reached", human(size)));
        } else if let Some(speed) = self.limits.speed {
            // A second is granted in advance, so that short bursts pass; once clipped, half a second has to be saved up.
            let allowed = u128::from(speed) * (elapsed.as_millis() + 1000) / 1000;
            let saved = if self.clipping { u128::from(speed) / 2 } else { 0 };
            if u128::from(after) + saved > allowed {
                reason = Some(format!("log limit {}/s reached", human(speed)));
            }
        }
        let Some(reason) = reason else {
            if std::mem::take(&mut self.clipping) {
                // What was left out meanwhile stays out: telling it now would be what the limit is against.
                self.lost = true;
                self.tail.clear();
            }
            self.passed = after;
            return bytes.to_vec();
        };
        let told = if self.clipping { Vec::new() } else { format!("\n[output clipped, {reason}]\n").into_bytes() };
        self.clipping = true;
        self.keep(bytes);
        told
    }

    fn keep(&mut self, bytes: &[u8]) {
        let bytes = if bytes.len() > TAIL {
            self.lost = true;
            &bytes[bytes.len() - TAIL..]
        } else {
            bytes
        };
        let over = (self.tail.len() + bytes.len()).saturating_sub(TAIL);
        if over > 0 {
            self.lost = true;
            self.tail.drain(..over.min(self.tail.len()));
        }
        self.tail.extend(bytes);
    }

    fn take_tail(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.tail).into()
    }

    /// Returns what was kept aside last.
    pub fn finish(&mut self) -> Vec<u8> {
        self.take_tail()
    }
}

fn human(bytes: u64) -> String {
    match bytes {
        n if n >= 1 << 20 && n % (1 << 20) == 0 => format!("{}MiB", n >> 20),
        n if n >= 1 << 10 && n % (1 << 10) == 0 => format!("{}KiB", n >> 10),
        n => format!("{n}B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_size_limit_is_said_once_and_the_end_is_kept() {
        let mut clip = Clip::new(Limits { size: Some(1 << 20), speed: None });
        let line = [b'a'; 1000];
        let mut told = Vec::new();
        for _ in 0..2000 {
            told.extend(clip.push(&line));
        }
        let text = String::from_utf8(told.clone()).unwrap();
        assert_eq!(text.matches("[output clipped, log limit 1MiB reached]").count(), 1);
        assert!(told.len() < (1 << 20) + 100);
        assert!(clip.has_clipped());
        assert_eq!(clip.finish().len(), TAIL);
    }

    #[test]
    fn the_speed_limit_lets_go_on_later() {
        let mut clip = Clip::new(Limits { size: None, speed: Some(1000) });
        assert_eq!(clip.push_at(&[b'a'; 900], Duration::ZERO).len(), 900);
        let told = clip.push_at(&[b'b'; 900], Duration::from_millis(10));
        assert_eq!(told, b"\n[output clipped, log limit 1000B/s reached]\n");
        assert!(clip.push_at(b"b", Duration::from_millis(20)).is_empty());
        assert_eq!(clip.push_at(b"c", Duration::from_secs(5)), b"c");
        assert!(clip.finish().is_empty() && clip.has_clipped());
    }

    #[test]
    fn a_flood_stays_near_the_limit() {
        let mut clip = Clip::new(Limits { size: None, speed: Some(200 << 10) });
        let chunk = vec![b'x'; 32 << 10];
        let told: usize = (0..10_000).map(|ms| clip.push_at(&chunk, Duration::from_millis(ms)).len()).sum();
        assert!(told < (11 * 200) << 10, "{told}");
        assert!(told > (5 * 200) << 10, "{told}");
    }

    #[test]
    fn memory_is_bounded_whatever_comes() {
        let mut clip = Clip::new(Limits { size: Some(10), speed: None });
        for _ in 0..100 {
            clip.push(&vec![0; 1 << 20]);
        }
        assert!(clip.finish().len() <= TAIL);
    }
}
