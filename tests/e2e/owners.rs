//! Owners where only the own ID is mapped: emulated for every program of a step, kept in the layers, the same as with sub-IDs.

use crate::harness::{Home, Image, User, read};

/// The last layers of an image, as names with modes and owners.
fn listed(image: &Image, from: usize) -> Vec<String> {
    let line = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        // Mode, owner, name; not size and time.
        format!("{} {} {}", words[0], words[1], words[5..].join(" "))
    };
    (from..image.layers()).flat_map(|n| image.layer_listing(n).lines().map(line).collect::<Vec<_>>()).collect()
}

/// Builds with sub-IDs, and in some accounts with the own ID alone; returns what the layers above the base's one hold.
#[track_caller]
fn same_in_both(files: &[(&str, &str)], accounts: &[User]) -> Vec<String> {
    let base_layers = 1;
    let sub = Home::sub();
    let expected = listed(&sub.image(&["--userns", "subids"], &sub.context(files)), base_layers);
    for home in accounts.iter().map(|user| Home::new(*user)) {
        let got = listed(&home.image(&["--userns", "single"], &home.context(files)), base_layers);
        assert_eq!(got, expected, "{}", home.user.name);
    }
    expected
}

#[test]
fn changed_owners_are_the_same_with_the_own_id_alone() {
    let dockerfile = "FROM busybox\n\
        COPY --chown=1000:1000 a /copied/a\n\
        RUN mkdir /d && echo f > /d/f && chown 1000:1000 /d/f && chgrp 50 /d && ln -s f /d/l && chown -h 7:8 /d/l\n\
        RUN echo i > /i && cp /i /d/i && chown 12:34 /d/i && chmod 750 /d/i && cp -p /d/i /d/kept && chown 60000 /d/f\n\
        RUN chmod 600 /copied/a && mv /d/f /d/renamed && ln /d/renamed /d/hard && rm /i && echo new > /d/f\n\
        RUN mkdir /t && echo x > /t/x && chown 5:6 /t/x /t && tar -C /t -cf /t.tar . && mkdir /u && tar -C /u -xf /t.tar && rm -r /t /t.tar\n\
        RUN chown 0:0 /u/x && touch /d/i && chmod 711 /d && chown 9 /copied\n\
        RUN mkdir /g && chgrp 50 /g && chmod 2775 /g && mkdir /g/s && echo > /g/s/f\n";
    let files = [("Dockerfile", dockerfile), ("a", "A")];
    let listed = same_in_both(&files, &[User::sub(), User::plain()]);
    // What is the same on both sides is also what was asked for.
    for line in
        ["-rw------- 1000/1000 copied/a", "-rwxr-x--- 12/34 d/i", "lrwxrwxrwx 7/8 d/l -> f", "-rw-r--r-- 0/50 g/s/f"]
    {
        assert!(listed.iter().any(|l| l == line), "{line}: {listed:#?}");
    }
    assert!(listed.iter().any(|l| l == "-rw-r--r-- 60000/1000 d/hard"), "{listed:#?}");
}

#[test]
fn what_processes_ask_is_answered_as_if_it_had_happened() {
    let dockerfile = "FROM busybox\n\
        RUN echo 'anna:x:1000:1000::/home:/bin/sh' >> /etc/passwd && echo 'anna:x:1000:' >> /etc/group && echo 'more:x:50:anna' >> /etc/group\n\
        RUN mkdir /w && touch /w/a && chown anna:more /w /w/a && stat -c '%u:%g %n' /w /w/a > /w/stat && ls -n /w > /w/ls\n\
        USER anna\n\
        RUN id > /w/id; umask 027; mkdir /w/d && echo f > /w/d/f && ln -s f /w/d/l && mkfifo /w/d/p && set -C && echo new > /w/d/excl\n\
        RUN chown 0 /w/d/f 2> /w/refused || chgrp more /w/d/f; stat -c '%u:%g %a %n' /w/d/f > /w/stat2\n\
        RUN (sh -c 'while [ ! -e /w/go ]; do :; done; id -u > /w/late.part; mv /w/late.part /w/late' &); touch /w/go; while [ ! -e /w/late ]; do :; done; rm /w/go\n\
        USER root\n\
        RUN su anna -c 'id -u; touch /w/su; stat -c %u /w/su' > /w/out && id -u >> /w/out && touch /w/root\n";
    let listed = same_in_both(&[("Dockerfile", dockerfile)], &[User::plain()]);
    for line in [
        "-rw-r----- 1000/50 w/d/f",
        "prw-r----- 1000/1000 w/d/p",
        "-rw-r----- 1000/1000 w/d/excl",
        "-rw-r--r-- 1000/1000 w/su",
        "-rw-r--r-- 1000/1000 w/late",
    ] {
        assert!(listed.iter().any(|l| l == line), "{line}: {listed:#?}");
    }
    let tree = |home: Home, mode| {
        let tree = home.tree(&["--userns", mode], &home.dockerfile(dockerfile));
        ["stat", "id", "stat2", "out", "late", "refused"].map(|name| read(tree.join("w").join(name)))
    };
    let got = tree(Home::new(User::plain()), "single");
    assert_eq!(got, tree(Home::sub(), "subids"));
    assert_eq!(got[3], "1000\n1000\n0\n");
}

#[test]
fn packages_users_and_sudo_give_the_same_tree_with_the_own_id_alone() {
    let base = crate::sandbox::debian();
    let postinst = "#!/bin/sh\nset -e\nuseradd --system --home /var/lib/svc svc\ninstall -d -o svc -g svc -m 750 /var/lib/svc\nchown root:svc /etc/svc.conf\nchmod 640 /etc/svc.conf\ndpkg-statoverride --update --add root svc 2755 /usr/bin/svc\n";
    let control =
        "Package: svc\nVersion: 1\nArchitecture: all\nMaintainer: nobody <n@example>\nDescription: has a user\n";
    let dockerfile = format!(
        "FROM {base}\n\
         COPY p /p\n\
         RUN chmod 755 /p/DEBIAN/postinst /p/usr/bin/svc && dpkg-deb --root-owner-group -b /p /svc.deb && apt-get install -y /svc.deb && rm -r /p /svc.deb\n\
         RUN useradd -m -u 1234 worker && install -o worker -g svc -m 640 /etc/hostname /opt/i && mkdir /t && cp -a /opt/i /home/worker /var/lib/svc /t\n\
         RUN tar -C /t -cf /t.tar . && mkdir /u && tar -C /u -xpf /t.tar && rm -r /t && stat -c '%U:%G %a %n' /u/* /usr/bin/svc > /said\n\
         RUN su worker -c 'id > ~/id; mkdir ~/x; touch ~/x/y; id -un' >> /said && echo 'worker ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/w\n\
         USER worker\n\
         RUN id -u > /tmp/id && sudo id -u > /tmp/sudo && sudo -u svc touch /tmp/svc && sudo chown root:root /home/worker/id && umask 077 && touch /home/worker/mine && test -O /home/worker/mine\n\
         RUN cp -a /home/worker/. /tmp/copy && find /tmp /home -printf '%u:%g %m %p\\n' | sort > /tmp/found\n"
    );
    let files = [
        ("Dockerfile", dockerfile.as_str()),
        ("p/DEBIAN/control", control),
        ("p/DEBIAN/postinst", postinst),
        ("p/etc/svc.conf", "x\n"),
        ("p/usr/bin/svc", "#!/bin/sh\nid\n"),
    ];
    let listed = same_in_both(&files, &[User::plain()]);
    for (owner, name) in [("1234/", "tmp/id"), ("0/0", "home/worker/id"), ("1234/", "home/worker/mine")] {
        assert!(listed.iter().any(|l| l.contains(owner) && l.ends_with(name)), "{owner} {name}: {listed:#?}");
    }
    assert!(
        listed.iter().any(|l| l.starts_with("-rwxr-sr-x 0/") && !l.contains("0/0 ") && l.ends_with("usr/bin/svc")),
        "{listed:#?}"
    );
}

#[test]
fn a_hostile_step_neither_hangs_nor_reaches_out_through_the_emulation() {
    // Callers die while they wait; a link is swapped while paths are resolved; links lead out of the root; numbers of processes are used again.
    let dockerfile = "FROM busybox\n\
        RUN touch /a && for i in $(seq 60); do (while :; do chown 5:6 /a; ls -n /a; done > /dev/null) & kill -9 $!; done; wait; echo done > /killed\n\
        RUN mkdir /r && ln -s /r /s && (while [ ! -e /stop ]; do ln -sfn /../../../../../../etc /s; ln -sfn /r /s; done) & touch /r/passwd; for i in $(seq 100); do chown 7:7 /s/passwd 2> /dev/null; done; touch /stop\n\
        RUN ln -s /proc/1/root/../../../../etc/passwd /out; chown 9:9 /out /proc/self/root/../../etc/shadow 2> /refused; chown 8:8 /dev/null /proc/1/mem 2>> /refused; echo ok > /ok\n\
        RUN --mount=type=tmpfs,target=/m chown 3:3 /m && touch /m/f && chown 4:4 /m/f && chown -R 5:5 /sys/kernel 2> /dev/null; echo on > /on\n";
    let home = Home::new(User::plain());
    let host = |path: &str| std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(path).expect("a file of the host"));
    let image = home.image(&["--userns", "single"], &home.dockerfile(dockerfile));
    assert_eq!((host("/etc/passwd"), host("/etc/shadow"), host("/dev/null")), (0, 0, 0));
    let listed = listed(&image, 1);
    for name in ["killed", "ok", "on", "stop"] {
        assert!(listed.iter().any(|l| l == &format!("-rw-r--r-- 0/0 {name}")), "{name}: {listed:#?}");
    }
    home.bud(["daemon", "status"]).ok();
}
