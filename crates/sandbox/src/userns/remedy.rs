//! What to type on this machine to get what is missing.

use super::facts::{Facts, Forbidden, Tool};
use super::idmap;

/// How many IDs beside the own one images may use.
pub const WANTED: u64 = 65_536;

/// A family of distributions that installs and configures alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// Debian, Ubuntu and what is made of them.
    Debian,
    /// Fedora, RHEL and its rebuilds.
    Fedora,
    /// Arch.
    Arch,
    /// Alpine.
    Alpine,
    /// openSUSE and SLE.
    Suse,
    /// Another one.
    Unknown,
}

/// Something that this machine lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What it is.
    pub what: String,
    /// What to type or do.
    pub fix: String,
}

impl Distribution {
    /// Reads `os-release(5)`.
    pub fn of(os_release: &str) -> Distribution {
        let value = |key: &str| {
            let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let ids = format!("{} {}", value("ID"), value("ID_LIKE"));
        let family = |id: &str| match id {
            "debian" | "ubuntu" => Some(Distribution::Debian),
            "fedora" | "rhel" | "centos" => Some(Distribution::Fedora),
            "arch" => Some(Distribution::Arch),
            "alpine" => Some(Distribution::Alpine),
            "suse" | "opensuse" | "sles" => Some(Distribution::Suse),
            _ => None,
        };
        ids.split_whitespace().find_map(family).unwrap_or(Distribution::Unknown)
    }

    fn install(self) -> &'static str {
        match self {
            Distribution::Debian => "sudo apt-get install uidmap",
            Distribution::Fedora => "sudo dnf install shadow-utils",
            Distribution::Arch => "sudo pacman -S shadow",
            Distribution::Alpine => "sudo apk add shadow-subids",
            Distribution::Suse => "sudo zypper install shadow",
            Distribution::Unknown => "install the package that has newuidmap and newgidmap (uidmap or shadow)",
        }
    }

    fn reinstall(self) -> &'static str {
        match self {
            Distribution::Debian => "sudo apt-get install --reinstall uidmap",
            Distribution::Fedora => "sudo dnf reinstall shadow-utils",
            Distribution::Arch => "sudo pacman -S shadow",
            Distribution::Alpine => "sudo apk fix shadow-subids",
            Distribution::Suse => "sudo zypper install --force shadow",
            Distribution::Unknown => "reinstall the package that has newuidmap and newgidmap",
        }
    }
}

/// What the own ID alone means for builds.
const CONSEQUENCE: &str =
    "only your own user ID is there inside builds; other users and owners are emulated, which is slower";

/// Says why sub-IDs can't be used, one line for each thing that is missing. Empty: they can.
pub(super) fn missing_subids(facts: &Facts) -> Vec<String> {
    lacks(facts).iter().map(|Lack { what, fix }| format!("{what}: {CONSEQUENCE}. To mend it: {fix}")).collect()
}

/// Says what sub-IDs lack, each with what mends it.
pub(super) fn lacks(facts: &Facts) -> Vec<Lack> {
    let mut notices = Vec::new();
    for (name, tool) in [("newuidmap", &facts.newuidmap), ("newgidmap", &facts.newgidmap)] {
        match tool {
            Tool::Usable(_) => {}
            Tool::Missing => {
                notices.push(Lack {
                    what: "newuidmap and newgidmap are not installed".into(),
                    fix: facts.distribution.install().into(),
                });
                break;
            }
            Tool::Powerless(path, why) if why.contains("no_new_privs") => {
                notices.push(Lack {
                    what: format!("{} {why}", path.display()),
                    fix: "start the daemon from a normal login shell".into(),
                });
                break;
            }
            Tool::Powerless(path, why) => {
                notices.push(Lack {
                    what: format!("{name} can't be used ({} {why})", path.display()),
                    fix: facts.distribution.reinstall().into(),
                });
            }
        }
    }
    let (uids, gids) = (idmap::mapped(&facts.uid_map), idmap::mapped(&facts.gid_map));
    if uids < WANTED || gids < WANTED {
        let files = match (uids < WANTED, gids < WANTED) {
            (true, true) => "/etc/subuid and /etc/subgid",
            (true, false) => "/etc/subuid",
            _ => "/etc/subgid",
        };
        let has = match uids.min(gids) {
            0 => format!("{files} give no IDs to {}", facts.user.shown()),
            few => format!("{files} give only {few} of the 65536 IDs that images use to {}", facts.user.shown()),
        };
        notices.push(Lack { what: has, fix: add_subids(facts, uids < WANTED, gids < WANTED) });
    }
    notices
}

/// Says that newuidmap or newgidmap didn't do what everything spoke for.
pub(super) fn refused(text: &str) -> String {
    // Only the user who made the namespace, or CAP_SYS_ADMIN, may write its maps. A set-uid program is root, without that capability in
    // most containers; one with file capabilities stays the user.
    if text.contains("_map failed: Operation not permitted") {
        return format!(
            "{text}: {CONSEQUENCE}. In a container without CAP_SYS_ADMIN these programs need file capabilities instead of set-uid: \
             chmod u-s /usr/bin/newuidmap /usr/bin/newgidmap; setcap cap_setuid=ep /usr/bin/newuidmap; setcap cap_setgid=ep /usr/bin/newgidmap. \
             Elsewhere, compare /etc/subuid and /etc/subgid with the IDs that are named here"
        );
    }
    format!("{text}: {CONSEQUENCE}. To mend it, compare /etc/subuid and /etc/subgid with the IDs that are named here")
}

fn add_subids(facts: &Facts, uids: bool, gids: bool) -> String {
    let (user, first) = (facts.user.shown(), facts.free);
    let last = u64::from(first) + WANTED - 1;
    if facts.distribution == Distribution::Alpine {
        // usermod isn't part of the base system there.
        let files = match (uids, gids) {
            (true, true) => "/etc/subuid /etc/subgid",
            (true, false) => "/etc/subuid",
            _ => "/etc/subgid",
        };
        return format!("echo {user}:{first}:65536 | sudo tee -a {files}");
    }
    let mut command = "sudo usermod".to_owned();
    if uids {
        command.push_str(&format!(" --add-subuids {first}-{last}"));
    }
    if gids {
        command.push_str(&format!(" --add-subgids {first}-{last}"));
    }
    format!("{command} {user}")
}

/// Says what forbids user namespaces and how to allow them.
pub(super) fn forbidden(what: Forbidden, program: &str) -> String {
    let Lack { what: text, fix } = forbids(what, program);
    let for_whom = if what == Forbidden::AppArmor { " for this program alone" } else { "" };
    format!("{text}. To allow them{for_whom}: {fix}")
}

/// The same in two parts.
pub(super) fn forbids(what: Forbidden, program: &str) -> Lack {
    let setting = |text: &str, setting: &str| Lack {
        what: text.into(),
        fix: format!("echo {setting} | sudo tee /etc/sysctl.d/99-userns.conf && sudo sysctl --system"),
    };
    match what {
        Forbidden::MaxUserNamespaces => setting(
            "user namespaces are switched off on this machine (user.max_user_namespaces is 0)",
            "user.max_user_namespaces=15000",
        ),
        Forbidden::UnprivilegedClone => setting(
            "only root may make user namespaces on this machine (kernel.unprivileged_userns_clone is 0)",
            "kernel.unprivileged_userns_clone=1",
        ),
        Forbidden::AppArmor => Lack {
            what: "AppArmor keeps programs without a profile from using user namespaces on this machine \
                   (kernel.apparmor_restrict_unprivileged_userns is 1)"
                .into(),
            fix: format!(
                "printf 'abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile bud \"{program}\" flags=(unconfined) {{\\n  userns,\\n}}\\n' \
                 | sudo tee /etc/apparmor.d/bud && sudo apparmor_parser -r /etc/apparmor.d/bud"
            ),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::User;
    use super::super::idmap::{Range, map};
    use super::*;
    use std::path::PathBuf;

    fn facts(uids: u32, gids: u32) -> Facts {
        let lines = |count: u32| map(1000, &(if count == 0 { vec![] } else { vec![Range { start: 100_000, count }] }));
        Facts {
            user: User { uid: 1000, gid: 1000, name: Some("maria".into()) },
            newuidmap: Tool::Usable(PathBuf::from("/usr/bin/newuidmap")),
            newgidmap: Tool::Usable(PathBuf::from("/usr/bin/newgidmap")),
            uid_map: lines(uids),
            gid_map: lines(gids),
            free: 100_000,
            distribution: Distribution::Debian,
        }
    }

    #[test]
    fn nothing_is_said_when_nothing_is_missing() {
        assert!(missing_subids(&facts(65_536, 65_536)).is_empty());
    }

    #[test]
    fn each_missing_thing_has_its_command() {
        let notices =
            missing_subids(&Facts { newuidmap: Tool::Missing, newgidmap: Tool::Missing, ..facts(65_536, 65_536) });
        assert_eq!(notices.len(), 1);
        assert!(notices[0].ends_with("sudo apt-get install uidmap"), "{notices:?}");

        let notices = missing_subids(&facts(0, 0));
        assert!(
            notices[0].ends_with("sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 maria"),
            "{notices:?}"
        );

        let notices = missing_subids(&facts(65_536, 1000));
        assert!(notices[0].contains("give only 1000 of"), "{notices:?}");
        assert!(notices[0].ends_with("sudo usermod --add-subgids 100000-165535 maria"), "{notices:?}");

        let notices = missing_subids(&Facts {
            newgidmap: Tool::Powerless("/usr/bin/newgidmap".into(), "is on a file system mounted nosuid"),
            ..facts(65_536, 65_536)
        });
        assert!(notices[0].contains("nosuid") && notices[0].ends_with("--reinstall uidmap"), "{notices:?}");

        let notices = missing_subids(&Facts { distribution: Distribution::Alpine, ..facts(0, 65_536) });
        assert!(notices[0].ends_with("echo maria:100000:65536 | sudo tee -a /etc/subuid"), "{notices:?}");
    }

    #[test]
    fn distributions_are_told_by_id_and_likeness() {
        let cases = [
            ("ID=debian\n", Distribution::Debian),
            ("NAME=x\nID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Distribution::Debian),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Distribution::Fedora),
            ("ID=alpine\n", Distribution::Alpine),
            ("ID=\"opensuse-leap\"\nID_LIKE=\"suse opensuse\"\n", Distribution::Suse),
            ("ID=manjaro\nID_LIKE=arch\n", Distribution::Arch),
            ("", Distribution::Unknown),
        ];
        for (text, want) in cases {
            assert_eq!(Distribution::of(text), want, "{text}");
        }
    }

    #[test]
    fn what_forbids_namespaces_is_named_with_its_command() {
        assert!(forbidden(Forbidden::MaxUserNamespaces, "/bin/bud").contains("user.max_user_namespaces=15000"));
        assert!(forbidden(Forbidden::UnprivilegedClone, "/bin/bud").contains("kernel.unprivileged_userns_clone=1"));
        let text = forbidden(Forbidden::AppArmor, "/home/m/.cargo/bin/bud");
        assert!(text.contains("profile bud \"/home/m/.cargo/bin/bud\"") && text.contains("/etc/apparmor.d/bud"));
    }
}
