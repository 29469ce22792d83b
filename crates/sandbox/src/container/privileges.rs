//! What the program of a container may do: user, groups, capabilities, filter.

use std::os::fd::{AsFd, OwnedFd};

use super::Context;
use super::failure::{Doing, Failure};
use super::user::User;
use crate::spec::{ContainerSpec, Network, Security};
use crate::sys;

/// Docker's default capabilities: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap, net_bind_service,
/// net_raw, sys_chroot, mknod, audit_write, setfcap.
pub(crate) const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;

/// `LANDLOCK_SCOPE_ABSTRACT_UNIX_SOCKET`, known from ABI 6 on (Linux 6.12).
const SCOPE_ABSTRACT_UNIX_SOCKET: u64 = 1;

/// Makes the Landlock ruleset that keeps abstract sockets of others out of reach, where the kernel can.
pub(crate) fn abstract_socket_scope() -> Option<OwnedFd> {
    let abi = sys::landlock_abi().ok()?;
    if abi < 6 {
        return None;
    }
    sys::landlock_scopes(SCOPE_ABSTRACT_UNIX_SOCKET).ok()
}

/// The capabilities of the kernel and those of them that this process has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Capabilities {
    /// How many the kernel knows: they are numbered from 0.
    known: u32,
    /// Which ones this process may use; root of a container lacks some.
    permitted: u64,
}

impl Capabilities {
    pub(crate) fn read() -> Capabilities {
        let known =
            (0..64).take_while(|capability| sys::prctl(libc::PR_CAPBSET_READ, *capability, 0).is_ok()).count() as u32;
        let permitted = rustix::thread::capabilities(None).map_or(0, |sets| sets.permitted.bits());
        Capabilities { known, permitted }
    }
}

/// Takes away all that the program shall not have. The next thing to do is to execute it.
pub(super) fn drop_to(
    spec: &ContainerSpec,
    user: &User,
    context: &Context,
    owners: Option<&OwnedFd>,
) -> Result<(), Failure> {
    let insecure = spec.security == Security::Insecure;
    let Capabilities { known, permitted: all } = context.capabilities;
    let kept = if insecure { all } else { all & DEFAULT_CAPABILITIES };

    if spec.network == Network::Host
        && !insecure
        && let Some(scope) = &context.abstract_sockets
    {
        sys::landlock_restrict(scope.as_fd()).doing(|| "scope abstract sockets".into())?;
    }
    for capability in (0..known).filter(|capability| kept & (1 << capability) == 0) {
        sys::prctl(libc::PR_CAPBSET_DROP, capability.into(), 0).doing(|| format!("drop capability {capability}"))?;
    }
    if owners.is_none() {
        switch_user(user, context)?;
    }
    if user.uid != 0 && owners.is_none() {
        sys::set_capabilities(all, all, if insecure { all } else { 0 })
            .doing(|| "keep capabilities for the set-up".into())?;
    }
    if spec.no_new_privileges {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0).doing(|| "set no_new_privs".into())?;
    }
    if !insecure {
        match owners {
            Some(socket) => {
                let listener = sys::load_seccomp_listener(&context.filter_with_listener)
                    .doing(|| "load the seccomp filter".into())?;
                super::owners::hand_over(socket, listener, user).doing(|| "hand over the seccomp listener".into())?;
            }
            None => sys::load_seccomp(&context.filter).doing(|| "load the seccomp filter".into())?,
        }
    }
    // For another user than root these go at exec, except the ambient ones.
    sys::set_capabilities(kept, kept, if insecure { kept } else { 0 }).doing(|| "set capabilities".into())?;
    if insecure {
        for capability in (0..known).filter(|capability| kept & (1 << capability) != 0) {
            sys::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE as u64, capability.into())
                .doing(|| format!("raise capability {capability}"))?;
        }
    }
    Ok(())
}

fn switch_user(user: &User, context: &Context) -> Result<(), Failure> {
    let unmapped = |what: &str, id: u32| {
        Failure::new(format!(
            "{what} {id} is not mapped into the build's user namespace, which has {} IDs",
            context.mapped_ids()
        ))
    };
    if context.can_set_groups {
        let groups: Vec<u32> = user.groups.iter().copied().filter(|group| context.has_group(*group)).collect();
        sys::set_groups(&groups).doing(|| "set supplementary groups".into())?;
    }
    if user.gid != 0 && !context.has_group(user.gid) {
        return Err(unmapped("group ID", user.gid));
    }
    if user.uid != 0 && !context.has_user(user.uid) {
        return Err(unmapped("user ID", user.uid));
    }
    sys::set_gid(user.gid).doing(|| format!("become group {}", user.gid))?;
    if user.uid != 0 {
        sys::prctl(libc::PR_SET_KEEPCAPS, 1, 0).doing(|| "keep capabilities for the set-up".into())?;
    }
    sys::set_uid(user.uid).doing(|| format!("become user {}", user.uid))
}
