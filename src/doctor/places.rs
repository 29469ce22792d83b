//! The socket's directory, limits of processes.

use super::{Check, Machine};
use crate::connect::places::check_socket_dir;
use std::path::Path;

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    let mut checks = vec![runtime_dir(machine), socket(machine)];
    let files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    checks.push(match files {
        Some(few) if few < 4096 => Check::degraded(
            "open files",
            format!("{few} at most"),
            "many connections and layers at a time fail",
            format!(
                "echo '{} hard nofile 524288' | sudo tee /etc/security/limits.d/bud.conf, and log in again",
                machine.survey.user
            ),
        ),
        Some(files) => Check::ok("open files", format!("{files} at most")),
        None => Check::ok("open files", "no limit"),
    });
    checks
}

fn runtime_dir(machine: &Machine) -> Check {
    let name = "XDG_RUNTIME_DIR";
    let dir = machine.around.socket_dir();
    let shown = dir.parent().unwrap_or(&dir).display().to_string();
    if !dir.starts_with(machine.around.system.join("tmp")) || machine.around.runtime_dir.as_deref() == dir.parent() {
        return Check::ok(name, shown);
    }
    let fix = match machine.host.0.join("run/systemd/system").exists() {
        true => format!("sudo loginctl enable-linger {}", machine.survey.user),
        false => "export XDG_RUNTIME_DIR=DIR, with a directory that is yours alone (mode 700)".into(),
    };
    Check::degraded(name, "not set, and there is no /run/user of yours", "the socket is in /tmp", fix)
}

/// Really makes a socket there.
fn socket(machine: &Machine) -> Check {
    let name = "socket";
    let path = machine.around.socket();
    if let Err(error) = check_socket_dir(&machine.around.socket_dir(), machine.around.uid) {
        return Check::broken(name, format!("{error:#}"), "see there");
    }
    let there = path.ancestors().skip(1).find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    let trial = there.join(format!(".bud-doctor-{}.sock", std::process::id()));
    let bound = std::os::unix::net::UnixListener::bind(&trial);
    if bound.is_ok() {
        _ = std::fs::remove_file(&trial);
    }
    // The longest path of a socket (unix(7)).
    let is_too_long = path.as_os_str().len() > 107;
    match bound {
        Ok(_) if !is_too_long => Check::ok(name, path.display().to_string()),
        Ok(_) => Check::broken(
            name,
            format!("{} is longer than 107 bytes", path.display()),
            "export XDG_RUNTIME_DIR=DIR, with a shorter path",
        ),
        Err(error) => Check::broken(
            name,
            format!("none can be made in {}: {error}", there.display()),
            "export XDG_RUNTIME_DIR=DIR, with a directory of yours",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::{machine, write};
    use super::*;

    #[test]
    fn without_a_runtime_directory_the_socket_is_in_tmp() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        write(root, "tmp/x", "");
        let mut machine = machine(root);
        machine.around.uid = 4_000_000;
        assert_eq!(runtime_dir(&machine).status, Status::Degraded);
        assert!(runtime_dir(&machine).fix.unwrap().contains("export"));
        write(root, "run/systemd/system/x", "");
        assert_eq!(runtime_dir(&machine).fix.unwrap(), "sudo loginctl enable-linger maria");
    }

    #[test]
    fn a_socket_s_path_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut machine = machine(dir.path());
        let long = dir.path().join("x".repeat(100));
        std::fs::create_dir(&long).unwrap();
        machine.around.runtime_dir = Some(long);
        assert_eq!(socket(&machine).status, Status::Broken);
    }
}
