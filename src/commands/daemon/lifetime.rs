//! What becomes of the daemon when its user logs out.

use crate::connect::places::Surroundings;

/// Says what happens to the daemon at the user's last logout; none where nothing does: no systemd, or a socket that isn't in the
/// directory that a logout removes.
///
/// Without lingering, systemd-logind then stops the user's services and removes `/run/user/UID`, where the socket is.
pub fn at_logout(around: &Surroundings, activated: bool) -> Option<String> {
    if around.uid == 0 || !around.system.join("run/systemd/system").is_dir() {
        return None;
    }
    let runtime = around.system.join("run/user").join(around.uid.to_string());
    if !around.socket_dir().starts_with(&runtime) {
        return None;
    }
    let user = around.user_name().unwrap_or_else(|| around.uid.to_string());
    let linger = around.system.join("var/lib/systemd/linger").join(&user);
    Some(match (linger.exists(), activated) {
        (true, _) => "stays (lingering is on)".into(),
        (false, true) => format!("ends, and its builds with it; `loginctl enable-linger {user}` keeps it"),
        (false, false) => format!("leaves when its builds have ended; `loginctl enable-linger {user}` keeps it"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{create_dir_all, write};

    #[test]
    fn lingering_is_read_from_its_file() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let uid = rustix::process::getuid().as_raw().max(1);
        let around = Surroundings {
            uid,
            runtime_dir: Some(root.join("run/user").join(uid.to_string())),
            data_home: None,
            config_home: None,
            home: None,
            system: root.into(),
        };
        assert_eq!(at_logout(&around, false), None, "no systemd");
        create_dir_all(root.join("run/systemd/system")).unwrap();
        // A runtime directory that isn't logind's stays at logout.
        assert_eq!(at_logout(&around, false), None);
        create_dir_all(root.join("run/user").join(uid.to_string())).unwrap();
        rustix::fs::chown(root.join("run/user").join(uid.to_string()), Some(rustix::fs::Uid::from_raw(uid)), None)
            .unwrap();
        create_dir_all(root.join("etc")).unwrap();
        write(root.join("etc/passwd"), format!("root:x:0:0::/root:/bin/sh\nann:x:{uid}:7::/home/ann:/bin/sh\n"))
            .unwrap();
        let text = at_logout(&around, false).unwrap();
        assert!(text.contains("leaves") && text.contains("loginctl enable-linger ann"), "{text}");
        assert!(at_logout(&around, true).unwrap().contains("its builds with it"));
        create_dir_all(root.join("var/lib/systemd/linger")).unwrap();
        write(root.join("var/lib/systemd/linger/ann"), "").unwrap();
        assert!(at_logout(&around, false).unwrap().contains("stays"));
    }
}
