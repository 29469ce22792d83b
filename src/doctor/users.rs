//! The user IDs inside builds: newuidmap, sub-IDs, and what came out when it was tried.

use super::{Check, Machine, Status};
use crate::cli::daemon::Userns;
use bud_sandbox::probe::Outcome;
use bud_sandbox::userns::WANTED;

/// What the own ID alone costs.
const LOST: &str = "other users and owners inside builds are emulated: slower, and nothing is refused to them";

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let trial = &machine.trial;
    let mut checks = Vec::new();
    if trial.namespaces == Outcome::Works {
        checks.push(Check::ok("user IDs", trial.mode.clone()));
    }
    if trial.mode == "root" || machine.userns == Userns::Single {
        return checks;
    }
    let survey = &machine.survey;
    for (name, found) in &survey.tools {
        match found {
            Ok(path) => checks.push(Check::ok(name, path.clone())),
            Err(why) => checks
                .push(lacking(machine, name, why.clone(), |what| what.contains("newuidmap") || what.contains(name))),
        }
    }
    for (name, count) in &survey.sub_ids {
        if *count >= WANTED {
            checks.push(Check::ok(name, format!("{count} IDs for {}", survey.user)));
        } else {
            let detail = match count {
                0 => format!("no IDs for {}", survey.user),
                few => format!("{few} IDs for {}, images use {WANTED}", survey.user),
            };
            checks.push(lacking(machine, name, detail, |what| what.contains(name)));
        }
    }
    // Everything speaks for it, and yet it doesn't work.
    if survey.lacks.is_empty() && trial.namespaces == Outcome::Works && trial.mode != "rootless, with sub-IDs" {
        let detail = trial.notices.first().cloned().unwrap_or_else(|| "newuidmap was refused".into());
        checks.push(Check::degraded(
            "newuidmap tried",
            detail,
            LOST,
            "compare /etc/subuid and /etc/subgid with the IDs that are named",
        ));
    }
    checks
}

fn lacking(machine: &Machine, name: &str, detail: String, is_about: impl Fn(&str) -> bool) -> Check {
    let fix = machine.survey.lacks.iter().find(|lack| is_about(&lack.what)).map(|lack| lack.fix.clone());
    let check = Check::degraded(name, detail, LOST, fix.unwrap_or_default());
    match machine.userns {
        Userns::Subids => Check { status: Status::Broken, lost: None, ..check },
        _ => check,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{machine, named, write};
    use super::*;
    use bud_sandbox::userns::{HostRoot, survey};

    #[test]
    fn each_distribution_gets_its_command() {
        let cases = [
            ("ID=ubuntu\nID_LIKE=debian\n", "sudo apt-get install uidmap"),
            ("ID=rocky\nID_LIKE=\"rhel centos fedora\"\n", "sudo dnf install shadow-utils"),
            ("ID=arch\n", "sudo pacman -S shadow"),
            ("ID=alpine\n", "sudo apk add shadow-subids"),
            ("ID=opensuse-tumbleweed\nID_LIKE=\"opensuse suse\"\n", "sudo zypper install shadow"),
        ];
        for (release, command) in cases {
            let root = tempfile::tempdir().unwrap();
            write(root.path(), "etc/os-release", release);
            let mut machine = machine(root.path());
            machine.survey = survey(&HostRoot(root.path().to_owned()));
            machine.trial.mode = "rootless, own ID alone".into();
            let found = checks(&machine);
            for tool in ["newuidmap", "newgidmap"] {
                assert_eq!(named(&found, tool).fix.as_deref(), Some(command), "{release}");
                assert_eq!(named(&found, tool).status, Status::Degraded);
            }
            let fix = named(&found, "/etc/subuid").fix.clone().unwrap();
            let tells =
                if release.contains("alpine") { "tee -a /etc/subuid" } else { "usermod --add-subuids 100000-165535" };
            assert!(fix.contains(tells), "{fix}");
        }
    }

    #[test]
    fn sub_ids_that_were_asked_for_must_be_there() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        machine.userns = Userns::Subids;
        machine.survey.sub_ids[1].1 = 1000;
        let found = checks(&machine);
        assert_eq!(named(&found, "/etc/subuid").status, Status::Ok);
        assert_eq!(named(&found, "/etc/subgid").status, Status::Broken);
        assert_eq!(named(&found, "/etc/subgid").detail, "1000 IDs for maria, images use 65536");
    }

    #[test]
    fn newuidmap_that_is_refused_is_told() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        machine.trial.mode = "rootless, own ID alone".into();
        machine.trial.notices = vec!["newuidmap failed: not allowed".into()];
        assert_eq!(named(&checks(&machine), "newuidmap tried").status, Status::Degraded);
    }
}
