//! An ignore file, then a line with a path to match: both ways to ask give one answer, where none takes back another.
//!
//! With exceptions (`!`) the reference's two ways differ, and so do ours: going down, an exception that wasn't needed for a
//! directory isn't remembered for what is in it.
#![no_main]

use bud_patterns::{Filter, FilterState, MatchState, PatternMatcher, glob, ignorefile};

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let (text, path) = match input.iter().rposition(|b| *b == b'\n') {
        Some(at) => (&input[..at], &input[at + 1..]),
        None => (input, &b"a/b"[..]),
    };
    let patterns = ignorefile::read(text);
    for pattern in &patterns {
        let _either = glob::matches(pattern, path);
    }
    let Ok(matcher) = PatternMatcher::new(&patterns) else { return };
    let clean: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|p| !p.is_empty() && *p != b"." && *p != b"..").collect();
    if clean.is_empty() || clean.len() > 64 {
        return;
    }
    let path = clean.join(&b'/');
    let mut state = MatchState::default();
    let mut stepped = false;
    for end in 1..=clean.len() {
        (stepped, state) = matcher.step(&state, clean[..end].join(&b'/'));
    }
    if let Ok(filter) = Filter::new(&[], &patterns) {
        let _verdict = filter.step(&FilterState::default(), &path);
        let _selected = filter.selects(&path);
    }
    if matcher.has_exclusions() {
        return;
    }
    assert_eq!(stepped, matcher.matches_or_parent_matches(&path), "{patterns:?} {:?}", String::from_utf8_lossy(&path));
});
