//! Manifests, indexes and configs from anywhere; ops as clients send them.
#![no_main]

use bud_image::{ImageConfig, Index, Manifest};
use prost::Message;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    if let Ok(config) = serde_json::from_slice::<ImageConfig>(bytes) {
        let text = serde_json::to_vec(&config).expect("what was read can be written");
        let again: ImageConfig = serde_json::from_slice(&text).expect("what was written can be read");
        assert_eq!(serde_json::to_vec(&again).ok(), Some(text));
    }
    let _manifest = serde_json::from_slice::<Manifest>(bytes);
    let _index = serde_json::from_slice::<Index>(bytes);
    if let Ok(op) = bud_protocol::pb::Op::decode(bytes) {
        let encoded = bud_protocol::llb::encode_op(&op);
        let again = bud_protocol::pb::Op::decode(&encoded[..]).expect("what was written can be read");
        assert_eq!(bud_protocol::llb::encode_op(&again), encoded);
    }
});
