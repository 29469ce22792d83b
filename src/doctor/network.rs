//! Networks of steps, names, proxies.

use super::{Check, Machine};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

/// A resolver that answers later than this is told of.
const PATIENCE: Duration = Duration::from_millis(80);

pub(super) fn checks(machine: &Machine) -> Vec<Check> {
    // Said here until steps can have a network of their own.
    let mut checks = vec![Check::ok("network of steps", "the host's, with its loopback"), names(machine)];
    checks.extend(proxies(machine));
    checks
}

/// Looks for a program in `PATH`.
pub(super) fn program(machine: &Machine, name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let path = machine.variable("PATH").unwrap_or_default();
    std::env::split_paths(path).map(|dir| dir.join(name)).find(|file| {
        let meta = std::fs::metadata(file);
        meta.is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    })
}

/// Asks the first resolver for the root of all names.
fn names(machine: &Machine) -> Check {
    let name = "DNS";
    const LOST: &str = "names of registries and mirrors may not be found";
    let text = machine.read("etc/resolv.conf").unwrap_or_default();
    let servers: Vec<IpAddr> = text
        .lines()
        .filter_map(|line| line.strip_prefix("nameserver")?.trim().split('%').next()?.parse().ok())
        .collect();
    // Tests must not ask the resolver of whoever runs them.
    let other = machine.variable("BUD_DOCTOR_RESOLVER").and_then(|address| address.parse().ok());
    let Some(first) = other.as_ref().or(servers.first()) else {
        return Check::degraded(
            name,
            "/etc/resolv.conf names no resolver",
            LOST,
            "echo nameserver ADDRESS | sudo tee -a /etc/resolv.conf",
        );
    };
    if answers(SocketAddr::new(*first, 53)) {
        return Check::ok(name, format!("{first} answers"));
    }
    let fix = match machine.host.0.join("run/systemd/resolve").exists() {
        true => "resolvectl status shows what is known; sudo systemctl restart systemd-resolved",
        false => "check the connection and /etc/resolv.conf",
    };
    Check::degraded(name, format!("{first} doesn't answer at once"), LOST, fix)
}

fn answers(server: SocketAddr) -> bool {
    /// Recursive, one question: NS records of the root (RFC 1035, section 4.1).
    const QUESTION: [u8; 17] = [0xb0, 0xd0, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 1];
    let here = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let ask = || -> std::io::Result<bool> {
        let socket = UdpSocket::bind(here)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        socket.connect(server)?;
        socket.send(&QUESTION)?;
        let mut answer = [0; 1500];
        let length = socket.recv(&mut answer)?;
        Ok(length >= 12 && answer[..2] == QUESTION[..2] && answer[2] & 0x80 != 0)
    };
    ask().unwrap_or(false)
}

fn proxies(machine: &Machine) -> Vec<Check> {
    const NAMES: [&str; 6] = ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let mut checks = Vec::new();
    for name in NAMES {
        let Some(value) = machine.variable(name) else { continue };
        let full = if value.contains("://") { value.to_owned() } else { format!("http://{value}") };
        let host = url::Url::parse(&full).ok().and_then(|url| url.host_str().map(str::to_owned));
        // The address may hold a password: only the host is shown.
        checks.push(match host {
            None => {
                Check::degraded(name, "is no address", "downloads may fail", format!("export {name}=http://HOST:PORT"))
            }
            Some(host) => Check::ok(name, format!("{host}; the daemon uses what it was started with")),
        });
    }
    checks
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::super::testing::{machine, named, write};
    use super::*;

    #[test]
    fn proxies_are_looked_at_and_passwords_not_shown() {
        let root = tempfile::tempdir().unwrap();
        let mut machine = machine(root.path());
        let set = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        machine.environment = vec![
            set("http_proxy", "http://me:secret@proxy.example:3128"),
            set("https_proxy", "127.0.0.1:3128"),
            set("ALL_PROXY", "http://"),
        ];
        let found = proxies(&machine);
        assert_eq!(named(&found, "http_proxy").status, Status::Ok);
        // Steps have the host's network.
        assert_eq!(named(&found, "https_proxy").status, Status::Ok);
        assert_eq!(named(&found, "ALL_PROXY").detail, "is no address");
        assert!(!format!("{found:?}").contains("secret"));
    }

    #[test]
    fn a_resolver_is_asked() {
        let server = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = server.local_addr().unwrap();
        let answering = std::thread::spawn(move || {
            let mut question = [0; 512];
            let (length, from) = server.recv_from(&mut question).unwrap();
            question[2] |= 0x80;
            server.send_to(&question[..length], from).unwrap();
        });
        assert!(answers(address));
        answering.join().unwrap();
        assert!(!answers(address), "nobody is there any more");
        let root = tempfile::tempdir().unwrap();
        assert!(names(&machine(root.path())).detail.contains("names no resolver"));
        write(root.path(), "etc/resolv.conf", "search x\nnameserver 127.255.255.1\n");
        assert!(names(&machine(root.path())).detail.contains("127.255.255.1"));
    }
}
