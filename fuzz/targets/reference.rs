//! Names of images, digests, platforms: what is taken can be written and read again.
#![no_main]

use bud_image::{Digest, ImageRef, Platform};

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(name) = ImageRef::parse(text) {
        let again = ImageRef::parse(&name.to_string());
        assert_eq!(again.as_ref(), Ok(&name), "{text:?}");
        let _shown = (name.name(), name.familiar(), name.or_latest());
    }
    if let Ok(digest) = text.parse::<Digest>() {
        assert_eq!(digest.to_string(), text);
    }
    if let Ok(platform) = Platform::parse(text) {
        assert!(platform.to_string().split('/').all(|part| !matches!(part, "" | "." | "..")), "{text:?}");
        let _shown = platform.normalize().short();
    }
});
