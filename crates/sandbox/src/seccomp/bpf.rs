//! Classic BPF as seccomp uses it (`seccomp(2)`, `linux/filter.h`).

/// One instruction; the layout is the kernel's `struct sock_filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) jump_true: u8,
    pub(crate) jump_false: u8,
    pub(crate) value: u32,
}

/// Loads the 32-bit word at an offset of `struct seccomp_data`.
pub(super) const LOAD: u16 = 0x20;
/// `A &= value`.
pub(super) const AND: u16 = 0x54;
/// Jumps `value` instructions on.
pub(super) const JUMP: u16 = 0x05;
/// Compares `A == value`.
pub(super) const JUMP_EQUAL: u16 = 0x15;
/// Compares `A >= value`.
pub(super) const JUMP_AT_LEAST: u16 = 0x35;
/// Tests `A & value`.
pub(super) const JUMP_BITS: u16 = 0x45;
/// Ends with the action `value`.
pub(super) const RETURN: u16 = 0x06;

/// Offset of the system call's number.
pub(super) const OFFSET_NUMBER: u32 = 0;
/// Offset of the `AUDIT_ARCH_*` value.
pub(super) const OFFSET_ARCH: u32 = 4;

/// The action that lets a call through.
pub(super) const ALLOW: u32 = 0x7fff_0000;

/// The action that hands a call to the listener.
pub(super) const NOTIFY: u32 = 0x7fc0_0000;

/// The action that fails a call with an error number.
pub(super) const fn errno(number: i32) -> u32 {
    0x0005_0000 | number as u32
}

/// Offset of the low half of an argument on a little-endian machine; the high half follows it.
pub(super) const fn argument(index: u32) -> u32 {
    16 + 8 * index
}

pub(super) const fn statement(code: u16, value: u32) -> Instruction {
    Instruction { code, jump_true: 0, jump_false: 0, value }
}

pub(super) const fn jump(code: u16, value: u32, jump_true: u8, jump_false: u8) -> Instruction {
    Instruction { code, jump_true, jump_false, value }
}

/// Chooses between two blocks: `A >= value` runs `above`, else `below`.
pub(super) fn branch(value: u32, below: Vec<Instruction>, above: Vec<Instruction>) -> Vec<Instruction> {
    let mut block = Vec::with_capacity(below.len() + above.len() + 2);
    match u8::try_from(below.len()) {
        Ok(skip) => block.push(jump(JUMP_AT_LEAST, value, skip, 0)),
        Err(_) => {
            // True: the next instruction jumps over `below`. False: skip that jump.
            block.push(jump(JUMP_AT_LEAST, value, 0, 1));
            block.push(statement(JUMP, below.len() as u32));
        }
    }
    block.extend(below);
    block.extend(above);
    block
}
