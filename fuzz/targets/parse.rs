//! Any bytes: the parser, the typed instructions, the instant check with its rendering, names for completion.
#![no_main]

use bud_dockerfile::{CheckOptions, args, check, parse, program, stages};

libfuzzer_sys::fuzz_target!(|text: &[u8]| {
    let parsed = parse(text).is_ok();
    let typed = program(text).is_ok();
    assert!(parsed || !typed, "what can't be parsed has no instructions");
    let report = check(text, &CheckOptions::default());
    let shown = report.render(true);
    // A text for another front end is not looked at.
    let may_be_foreign = text.windows(6).any(|word| word.eq_ignore_ascii_case(b"syntax"));
    assert!(report.has_errors() || typed || may_be_foreign, "an error goes unsaid: {shown}");
    let _names = (stages(text), args(text));
});
