//! What takes the images: Docker or Podman. And git, which some contexts come from.

use super::network::program;
use super::{Check, Machine};
use crate::output::load;
use anyhow::Result;
use bud_sandbox::userns::Distribution;

pub(super) fn checks(machine: &Machine) -> Result<Vec<Check>> {
    Ok(vec![loader(machine)?, git(machine)])
}

/// Asks Docker; a socket that isn't ours to use is the usual trouble.
fn loader(machine: &Machine) -> Result<Check> {
    let name = "Docker or Podman";
    const LOST: &str = "images stay in bud's own store (and go where -o and --push say)";
    let runtime = crate::commands::runtime()?;
    if let Some(found) = runtime.block_on(load::find())? {
        return Ok(Check::ok(name, format!("images are loaded into {}", found.shown())));
    }
    let socket = machine.host.0.join("var/run/docker.sock");
    let refused = std::os::unix::net::UnixStream::connect(&socket)
        .is_err_and(|error| error.kind() == std::io::ErrorKind::PermissionDenied);
    if refused {
        let fix =
            format!("sudo usermod -aG docker {} and log in again (which gives you root's rights)", machine.survey.user);
        return Ok(Check::degraded(name, "Docker's socket isn't yours to use", LOST, fix));
    }
    // Nobody has to have one.
    Ok(Check::ok(name, format!("neither is there: {LOST}")))
}

fn git(machine: &Machine) -> Check {
    let fix = match machine.survey.distribution {
        Distribution::Debian => "sudo apt-get install git",
        Distribution::Fedora => "sudo dnf install git",
        Distribution::Arch => "sudo pacman -S git",
        Distribution::Alpine => "sudo apk add git",
        Distribution::Suse => "sudo zypper install git",
        Distribution::Unknown => "install git",
    };
    match program(machine, "git") {
        Some(path) => Check::ok("git", path.display().to_string()),
        None => Check::degraded("git", "not installed", "contexts and sources can't come from git", fix),
    }
}
