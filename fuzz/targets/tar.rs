//! Any bytes as a tar: every entry's header and body are read to the end.
#![no_main]

use bud_oci::tar::Reader;
use std::io::Read;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let mut reader = Reader::new(bytes);
    let mut entries = 0;
    while let Ok(Some(mut entry)) = reader.next_entry() {
        let _shown = entry.header.display_name();
        let mut sink = [0; 4096];
        while matches!(entry.read(&mut sink), Ok(n) if n > 0) {}
        entries += 1;
        assert!(entries <= bytes.len() / 512 + 1, "more entries than blocks");
    }
});
