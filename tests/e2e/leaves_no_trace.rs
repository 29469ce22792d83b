//! An unprivileged user's home and processes are not changed by anything but the state directory.

use crate::harness::{Home, User, read};
use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// What is there of a user: one line each.
fn all_of(home: &Home, ids: &dyn Fn(u32) -> bool) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    // The home, the context and the runtime directory: names, contents' size and times, owners, modes.
    let mut pending = vec![home.dir.clone()];
    while let Some(dir) = pending.pop() {
        for entry in std::fs::read_dir(&dir).expect("readable").flatten() {
            // A socket goes while it is looked at.
            let (path, Ok(meta)) = (entry.path(), entry.metadata()) else { continue };
            // Times of directories with something new in them tell nothing else.
            let time = if meta.is_dir() { 0 } else { meta.mtime_nsec() };
            let looks =
                (meta.ino(), meta.mode(), meta.uid(), meta.gid(), if meta.is_dir() { 0 } else { meta.size() }, time);
            found.insert(format!("file {} {looks:?}", path.display()));
            if meta.is_dir() && path != home.state_root() {
                pending.push(path);
            }
        }
    }
    for place in ["/tmp", "/var/tmp", "/dev/shm", "/dev/mqueue", "/run", "/var/lock"] {
        for entry in std::fs::read_dir(place).into_iter().flatten().flatten() {
            if entry.metadata().is_ok_and(|meta| ids(meta.uid())) {
                found.insert(format!("file {}", entry.path().display()));
            }
        }
    }
    for process in std::fs::read_dir("/proc").expect("readable").flatten() {
        let number = process.file_name().to_string_lossy().parse::<u32>();
        if number.is_ok() && process.metadata().is_ok_and(|meta| ids(meta.uid())) {
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            found.insert(format!("process {:?} {}", process.file_name(), String::from_utf8_lossy(&command)));
        }
    }
    for mount in read("/proc/self/mountinfo").lines().filter(|line| line.contains(&*home.dir.to_string_lossy())) {
        found.insert(format!("mount {mount}"));
    }
    for kind in ["shm", "msg", "sem"] {
        for object in read(Path::new("/proc/sysvipc").join(kind)).lines().skip(1) {
            if object.split_whitespace().filter_map(|number| number.parse().ok()).any(ids) {
                found.insert(format!("{kind} {object}"));
            }
        }
    }
    for socket in read("/proc/net/unix").lines().filter(|line| line.contains("bud") || line.contains("buildkit")) {
        if socket.contains(&*home.dir.to_string_lossy()) {
            found.insert(format!("socket {}", socket.split_whitespace().last().unwrap_or_default()));
        }
    }
    found
}

#[test]
fn a_build_and_the_daemon_s_end_leave_the_state_directory_alone() {
    let home = Home::new(User::alone());
    let (first, count) = User::alone_sub_ids();
    let ids = |id: u32| id == home.user.uid || (first..first + count).contains(&id);
    let context = home.context(&[
        (
            "Dockerfile",
            "FROM busybox\nCOPY . /src\n\
             RUN --mount=type=cache,target=/c --mount=type=bind,target=/ctx,rw touch /ctx/new /c/x /dev/shm/left /dev/mqueue/left && \
             (setsid sleep 1000 >/dev/null 2>&1 &) && chown 7:8 /src/a\n\
             USER 7:8\nRUN (setsid sleep 1000 >/dev/null 2>&1 &) ; touch /dev/shm/mine\n",
        ),
        ("a", "A"),
        ("sub/b", "B"),
    ]);
    for name in [".bashrc", ".config/other", "work/file"] {
        home.write(&home.path(name), name);
    }
    let before = all_of(&home, &ids);
    assert!(before.iter().any(|line| line.contains("work/file")), "{before:?}");
    let ran = home.build(&["-t", "foo"], &context).ok();
    let during = all_of(&home, &ids);
    assert!(during.iter().any(|line| line.starts_with("process") && line.contains("daemon")), "{during:#?} {ran}");
    home.bud(["daemon", "stop"]).ok();
    crate::harness::wait_until("all processes are gone", || {
        !all_of(&home, &ids).iter().any(|line| line.starts_with("process"))
    });
    let after = all_of(&home, &ids);
    let changed: Vec<&String> = before.symmetric_difference(&after).collect();
    let is_own = |line: &str| {
        let state = home.state_root();
        // The state directory, and the directories it and the socket are in.
        let own = [state.as_path(), state.parent().expect("a parent"), state.ancestors().nth(2).expect("a parent")];
        let socket = home.socket();
        own.into_iter().chain(socket.parent()).any(|dir| line.starts_with(&format!("file {} (", dir.display())))
            || line.starts_with(&format!("file {}/", state.display()))
    };
    let changed: Vec<_> = changed.into_iter().filter(|line| !is_own(line)).collect();
    assert!(changed.is_empty(), "{changed:#?}");
    // What a process of the same user could have put into the runtime directory's own place is gone, too.
    let left: Vec<_> =
        std::fs::read_dir(home.socket().parent().expect("a parent")).into_iter().flatten().flatten().collect();
    assert!(left.is_empty(), "{left:?}");
}
