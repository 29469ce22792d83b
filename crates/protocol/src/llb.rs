//! The encoding of LLB ops: an op's identity is the digest of its bytes, so they must be those Go's clients write.

use crate::pb;
use prost::Message as _;
use sha2::{Digest as _, Sha256};

/// Encodes an op as Go's protobuf library does: the fields outside the `oneof` first, in the order of their
/// numbers, then the `oneof` member; maps sorted by key.
///
/// Protobuf messages can be concatenated field by field, so the two halves are encoded one after the other.
#[must_use]
pub fn encode_op(op: &pb::Op) -> Vec<u8> {
    let head = pb::Op {
        inputs: op.inputs.clone(),
        platform: op.platform.clone(),
        constraints: op.constraints.clone(),
        op: None,
    };
    let tail = pb::Op { op: op.op.clone(), ..Default::default() };
    let mut bytes = head.encode_to_vec();
    bytes.extend(tail.encode_to_vec());
    bytes
}

/// Returns the digest of an encoded op: `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn op_digest(encoded: &[u8]) -> String {
    let mut s = String::with_capacity(71);
    s.push_str("sha256:");
    for byte in Sha256::digest(encoded) {
        s.push(char::from(b"0123456789abcdef"[usize::from(byte >> 4)]));
        s.push(char::from(b"0123456789abcdef"[usize::from(byte & 15)]));
    }
    s
}
