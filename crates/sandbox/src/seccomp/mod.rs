//! The seccomp filter of a step: Docker's default profile as a BPF program of our own.
//!
//! One program knows both ABIs of the machine: it dispatches on the architecture of the call, then searches a
//! balanced tree of number ranges. Calls that the table doesn't name get `EPERM`; calls newer than the table, and
//! architectures that the machine can't run anyway, get `ENOSYS`.

mod bpf;
mod policy;
mod table;
mod trapped;

pub(crate) use bpf::Instruction;
pub(crate) use trapped::{Call, Chown, Get, Layout, Make, Move, Set, Stat, Trapped, trapped_calls};

#[cfg(test)]
mod tests;

/// A compiled filter, ready to be loaded.
#[derive(Clone, Debug)]
pub(crate) struct Filter(Vec<Instruction>);

impl Filter {
    /// Compiles the filter for the machine this program was built for.
    ///
    /// With `owners`, the calls that change owners go to a listener: [`crate::sys::load_seccomp_listener`].
    pub(crate) fn native(owners: bool) -> Filter {
        #[cfg(target_arch = "x86_64")]
        let arches = [policy::Arch::X86_64, policy::Arch::I386];
        #[cfg(target_arch = "aarch64")]
        let arches = [policy::Arch::Aarch64, policy::Arch::Arm];
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        compile_error!("the seccomp table knows x86_64 and aarch64");
        Filter(policy::compile(&arches, owners))
    }

    /// The instructions, at most 4096 as the kernel demands.
    pub(crate) fn instructions(&self) -> &[Instruction] {
        &self.0
    }
}
