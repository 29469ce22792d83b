//! Any word, with variables that refer to nothing, to something, to patterns.
#![no_main]

use bud_dockerfile::shell::{Lexer, MAX_EXPANSION};

libfuzzer_sys::fuzz_target!(|word: &str| {
    let vars = vec![("A".to_owned(), "foo/bar/foo"), ("E".to_owned(), ""), ("P".to_owned(), "*o[a-z]?")];
    for escape in ['\\', '`'] {
        for bits in 0..16_u8 {
            let lexer = Lexer {
                raw_quotes: bits & 1 != 0,
                raw_escapes: bits & 2 != 0,
                skip_quotes: bits & 4 != 0,
                skip_unset: bits & 8 != 0,
                ..Lexer::new(escape)
            };
            if let Ok(expansion) = lexer.expand(word, &vars) {
                assert!(expansion.text.len() <= MAX_EXPANSION);
            }
        }
    }
});
