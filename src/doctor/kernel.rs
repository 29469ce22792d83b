//! Namespaces and `/proc`: what the kernel, its settings and security modules let through.

use super::{Check, Machine};
use bud_sandbox::probe::Outcome;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let mut checks = vec![namespaces(machine)];
    checks.extend(limits(machine));
    checks.extend(modules(machine));
    let refused: Vec<String> = machine
        .trial
        .step_namespaces
        .iter()
        .filter_map(|(name, outcome)| match outcome {
            Outcome::Fails(why) => Some(format!("{name}: {why}")),
            _ => None,
        })
        .collect();
    if !refused.is_empty() {
        checks.push(Check::broken("step namespaces", refused.join("; "), container()));
    } else if !machine.trial.step_namespaces.is_empty() {
        let names: Vec<&str> = machine.trial.step_namespaces.iter().map(|(name, _)| name.as_str()).collect();
        checks.push(Check::ok("step namespaces", names.join(", ")));
    }
    match &machine.trial.proc {
        Outcome::Works => checks.push(Check::ok("/proc", "a new one can be mounted")),
        Outcome::Fails(why) => checks.push(Check::broken(
            "/proc",
            format!("a new one can't be mounted ({why}): this is a container whose /proc is partly hidden"),
            "start the container with --security-opt systempaths=unconfined (Docker) or --security-opt unmask=ALL (Podman), or bud daemon --oci-worker-no-process-sandbox",
        )),
        Outcome::Untried => {}
    }
    checks
}

fn container() -> &'static str {
    "in a container, start it with --security-opt seccomp=unconfined --security-opt apparmor=unconfined"
}

/// Making a user namespace with a mount namespace, as the daemon does.
fn namespaces(machine: &Machine) -> Check {
    let name = "user namespace";
    match (&machine.trial.namespaces, &machine.survey.forbidden) {
        (Outcome::Works, _) if machine.trial.mode == "root" => Check::ok(name, "not needed: this is root"),
        (Outcome::Works, _) => Check::ok(name, "can be made"),
        (Outcome::Untried, _) => Check::broken(name, "not tried: the state directory comes first", "see Storage"),
        (Outcome::Fails(_), Some(lack)) => Check::broken(name, lack.what.clone(), lack.fix.clone()),
        // The error says itself what to type; sub-IDs that were asked for are told of below.
        (Outcome::Fails(why), None) => Check::broken(name, why.clone(), container()),
    }
}

/// How many namespaces of each kind there may be; each level of containers has limits of its own.
fn limits(machine: &Machine) -> Vec<Check> {
    const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    /// A daemon and the steps of a build side by side.
    const WANTED: u64 = 64;
    let mut few = Vec::new();
    for kind in KINDS {
        let setting = format!("user.max_{kind}_namespaces");
        let value = machine.read(&format!("proc/sys/user/max_{kind}_namespaces"));
        if let Some(value) = value.and_then(|text| text.parse::<u64>().ok())
            && value < WANTED
            // Told of already.
            && !(kind == "user" && machine.survey.forbidden.is_some())
        {
            few.push((setting, value));
        }
    }
    if few.is_empty() {
        return vec![Check::ok("namespace limits", "high enough")];
    }
    few.into_iter()
        .map(|(setting, value)| {
            let fix =
                format!("echo {setting}=15000 | sudo tee -a /etc/sysctl.d/99-userns.conf && sudo sysctl --system");
            let detail = format!("{setting} is {value}");
            match value {
                0 if !(machine.is_root() && setting.contains("user_")) => {
                    Check::broken("namespace limits", detail, fix)
                }
                _ => Check::degraded("namespace limits", detail, "few steps can run at a time", fix),
            }
        })
        .collect()
}

/// Security modules that are known for getting in the way.
fn modules(machine: &Machine) -> Vec<Check> {
    let mut checks = Vec::new();
    let works = machine.trial.namespaces == Outcome::Works;
    if machine.read("proc/sys/kernel/apparmor_restrict_unprivileged_userns").as_deref() == Some("1") && works {
        checks.push(Check::ok("AppArmor", "restricts user namespaces, but lets this program"));
    }
    if machine.read("sys/fs/selinux/enforce").as_deref() == Some("1") {
        let context = machine.read("proc/self/attr/current").unwrap_or_default();
        let context = context.trim_end_matches('\0');
        checks.push(if works {
            Check::ok("SELinux", format!("enforcing, lets this program ({context})"))
        } else {
            Check::broken(
                "SELinux",
                format!("enforcing ({context}); it may be what refuses the namespace"),
                "sudo ausearch -m avc -ts recent, then allow it: sudo ausearch -m avc -ts recent | audit2allow -M bud && sudo semodule -i bud.pp",
            )
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::{machine, named, write};
    use super::*;
    use bud_sandbox::userns::Lack;

    #[test]
    fn a_machine_where_all_is_well() {
        let root = tempfile::tempdir().unwrap();
        let checks = checks(&machine(root.path()));
        assert!(checks.iter().all(|check| check.status == Status::Ok), "{checks:?}");
        assert_eq!(checks.len(), 4);
    }

    #[test]
    fn a_setting_that_forbids_namespaces_is_named_with_its_command() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        machine.trial = Default::default();
        machine.trial.namespaces = Outcome::Fails("no".into());
        machine.survey.forbidden = Some(Lack { what: "switched off".into(), fix: "sudo sysctl".into() });
        let found = checks(&machine);
        let check = named(&found, "user namespace");
        assert_eq!((check.status, check.fix.as_deref()), (Status::Broken, Some("sudo sysctl")));
    }

    #[test]
    fn limits_of_nested_levels() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "proc/sys/user/max_user_namespaces", "15000\n");
        write(root.path(), "proc/sys/user/max_net_namespaces", "0\n");
        write(root.path(), "proc/sys/user/max_pid_namespaces", "3\n");
        let found = limits(&machine(root.path()));
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].status, &*found[0].detail), (Status::Degraded, "user.max_pid_namespaces is 3"));
        assert_eq!((found[1].status, &*found[1].detail), (Status::Broken, "user.max_net_namespaces is 0"));
        assert!(found[1].fix.as_ref().unwrap().contains("user.max_net_namespaces=15000"));
    }

    #[test]
    fn a_masked_proc_names_the_flag() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        machine.trial.proc = Outcome::Fails("Operation not permitted".into());
        let found = checks(&machine);
        assert!(named(&found, "/proc").fix.as_ref().unwrap().contains("--oci-worker-no-process-sandbox"));
        assert_eq!(named(&found, "/proc").status, Status::Broken);
    }

    #[test]
    fn security_modules_are_named() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "sys/fs/selinux/enforce", "1");
        write(root.path(), "proc/self/attr/current", "user_u:user_r:user_t:s0\0");
        write(root.path(), "proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1\n");
        let mut machine = machine(root.path());
        let found = modules(&machine);
        assert_eq!(named(&found, "SELinux").detail, "enforcing, lets this program (user_u:user_r:user_t:s0)");
        assert_eq!(named(&found, "AppArmor").status, Status::Ok);
        machine.trial.namespaces = Outcome::Fails("no".into());
        assert!(named(&modules(&machine), "SELinux").fix.as_ref().unwrap().contains("audit2allow"));
    }
}
