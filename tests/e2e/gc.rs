//! Disk space: what is listed, what is removed, what is kept whatever is removed, and cache mounts as objects.

use crate::harness::{Home, json, read, run};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

/// The listing as JSON.
fn usage(home: &Home) -> Vec<serde_json::Value> {
    let out = home.bud(["du", "--format", "json"]).ok().stdout;
    json(out.as_bytes()).as_array().expect("a list").clone()
}

fn sizes(records: &[serde_json::Value], wanted: impl Fn(&serde_json::Value) -> bool) -> u64 {
    records.iter().filter(|r| wanted(r)).map(|r| r["size"].as_u64().expect("a size")).sum()
}

#[test]
fn du_and_prune_say_and_do_the_same() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nRUN --mount=type=cache,id=mine,target=/c head -c 300000 /dev/urandom > /c/f\nRUN head -c 5000000 /dev/urandom > /big\n",
    );
    home.build(&["-o", "type=local,dest=out"], &context).ok();
    let named = home.dockerfile("FROM busybox\nRUN echo named > /named\n");
    home.build(&["-t", "named"], &named).ok();
    let records = usage(&home);
    let of = |kind: &str| sizes(&records, |r| r["type"] == kind);
    assert!(of("exec.cachemount") >= 300_000 && of("regular") >= 5_000_000, "{records:#?}");
    let reclaimable = sizes(&records, |r| r["reclaimable"] == true);
    assert!(reclaimable >= 5_300_000 && sizes(&records, |r| r["shared"] == true) > 0);
    home.bud(["du"]).ok().says(&["RECLAIMABLE", "Of named images:", "Reclaimable:", "Total:"]);
    home.bud(["du", "--verbose"]).ok().says(&[
        "cached mount /mine",
        "Used:",
        "Created:",
        "Last used:",
        "Reclaimable:",
        "`bud prune` frees:",
    ]);
    home.bud(["du", "--filter", "type=exec.cachemount"]).ok().says(&["cached mount /mine"]);
    let none = home.bud(["du", "--filter", "type==exec.cachemount,inuse", "--json"]).ok();
    assert_eq!(none.stdout.trim(), "[]");
    home.bud(["du", "--filter", "id~=("]).fails_with(&["regular expression"]);
    // A dry run says it and does nothing.
    let dry = home.bud(["prune", "--dry-run"]).ok().says(&["would be freed", "cached mount /mine"]);
    assert_eq!(usage(&home).len(), records.len(), "{dry}");
    let count = |text: &str| text.lines().filter(|line| line.contains("  ")).count();
    // Limits: nothing that is young, nothing when there is room.
    for limits in
        [["--keep-duration", "1h"], ["--max-used-space", "50GB"], ["--filter", "until=1h"], ["--reserved-space", "1GB"]]
    {
        home.bud(["prune", "--force", limits[0], limits[1]]).ok().says(&["0 records removed"]);
    }
    // By kind; the rest stays.
    home.bud(["prune", "--force", "--filter", "type=exec.cachemount"]).ok().says(&["1 record removed"]);
    let cut = home.bud(["prune", "--force", "--verbose"]).ok();
    assert_eq!(count(&cut.stdout) + 1, count(&dry.stdout), "{cut}\n{dry}");
    let left = usage(&home);
    assert_eq!(sizes(&left, |r| r["reclaimable"] == true), 0, "{left:#?}");
    // What a named image needs is there, and is still a hit.
    home.build(&["-t", "named"], &named).ok().says(&["CACHED"]);
}

#[test]
fn builds_lose_nothing_to_prunes() {
    let home = Home::sub();
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    home.bud(["rmi", "warm"]).ok();
    let done = AtomicBool::new(false);
    let prunes = AtomicU32::new(0);
    std::thread::scope(|scope| {
        let (home, done, prunes) = (&home, &done, &prunes);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                home.bud(["prune", "--all", "--force"]).ok();
                prunes.fetch_add(1, Ordering::Relaxed);
            }
        });
        let builds: Vec<_> = (0..3)
            .map(|worker| {
                scope.spawn(move || {
                    for round in 0..4 {
                        // The base, a shared first step, a stage, a cache mount, a copy between stages and from the context.
                        let context = home.context(&[
                            (
                                "Dockerfile",
                                &format!(
                                    "FROM busybox AS a\nRUN echo {round} > /shared\nRUN --mount=type=cache,target=/c echo {worker} > /c/{worker} && sleep 0.2 && cp /c/{worker} /mine\nFROM busybox\nCOPY --from=a /mine /shared /\nCOPY ctx /ctx\nRUN cat /shared /mine /ctx > /all\n"
                                ),
                            ),
                            ("ctx", &format!("context {worker} {round}\n")),
                        ]);
                        match worker {
                            // Blobs are made, kept and read back whole as well.
                            0 => assert!(home.image(&[], &context).layers() > 1),
                            1 => drop(home.build(&["-t", &format!("round{round}")], &context).ok()),
                            _ => {
                                let tree = home.tree(&[], &context);
                                let all = format!("{round}\n{worker}\ncontext {worker} {round}\n");
                                assert_eq!(read(tree.join("all")), all);
                            }
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = builds.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for end in ended {
            end.expect("a build lost something");
        }
    });
    assert!(prunes.load(Ordering::Relaxed) >= 3, "{prunes:?} prunes");
    // Images that were named meanwhile are whole.
    for round in 0..4 {
        let from = home.dockerfile(&format!("FROM round{round}\nRUN cat /all > /again\n"));
        assert_eq!(read(home.tree(&[], &from).join("again")), format!("{round}\n1\ncontext 1 {round}\n"));
    }
}

#[test]
fn cache_mounts_are_listed_moved_and_removed_by_id() {
    let home = Home::sub();
    let fill = home.dockerfile(
        "FROM busybox\nRUN --mount=type=cache,id=mine,target=/c mkdir -p /c/d && echo kept > /c/d/f && chown -R 7:8 /c/d && chmod 4755 /c/d/f && ln -s d/f /c/link && echo a > /c/.wh.x\n",
    );
    home.build(&["-o", "type=local,dest=out"], &fill).ok();
    home.bud(["cache", "ls"]).ok().says(&["/mine", "1 time"]);
    let out = home.bud(["cache", "ls", "--json"]).ok().stdout;
    assert_eq!(json(out.as_bytes())[0]["id"], "/mine");
    assert_eq!(home.bud(["cache", "ls", "--quiet"]).ok().stdout, "/mine\n");
    // To a file and to a pipe it is the same.
    let tar = home.path("mine.tar");
    let tar = tar.to_str().expect("text");
    home.bud(["cache", "export", "mine", "-o", tar]).ok();
    let listing = std::process::Command::new("tar").args(["--numeric-owner", "-tvf", tar]).output().expect("tar runs");
    let listing = String::from_utf8_lossy(&listing.stdout).into_owned();
    assert!(listing.contains("-rwsr-xr-x 7/8") && listing.contains("link -> d/f"), "{listing}");
    let mut piped = home.bud_command(["cache", "export", "/mine"]);
    let piped = piped.output().expect("bud runs");
    assert!(piped.status.success() && piped.stdout == std::fs::read(tar).expect("the tar"));
    // Into another one, through a pipe and compressed.
    let script = format!("gzip -c {tar} | {} cache import copy", crate::harness::bud().display());
    let mut shell = home.command("sh");
    shell.args(["-c", &script]);
    run(shell).ok().says(&["/copy: 5 entries"]);
    let look = home.dockerfile(
        "FROM busybox\nRUN --mount=type=cache,id=copy,target=/c stat -c '%n %a %u %g' /c/d /c/d/f > /seen && cat /c/link /c/.wh.x >> /seen\n",
    );
    let tree = home.tree(&[], &look);
    assert_eq!(read(tree.join("seen")), "/c/d 755 7 8\n/c/d/f 4755 7 8\nkept\na\n");
    // What can't be done says why, and changes nothing.
    home.write(&home.path("bad.tar"), "this is no tar, but long enough to be looked at as one".repeat(40).as_str());
    home.bud(["cache", "import", "copy", "bad.tar"]).fails_with(&["import the cache mount"]);
    home.bud(["cache", "export", "nope"]).fails_with(&["no cache mount \"nope\"", "/copy, /mine"]);
    home.bud(["cache", "export", "copy", "-o", "."]).fails_with(&["is a directory"]);
    let again = home.dockerfile("FROM busybox\nRUN --mount=type=cache,id=copy,target=/c cp /c/d/f /seen\n");
    assert_eq!(read(home.tree(&[], &again).join("seen")), "kept\n");
    home.bud(["cache", "rm", "copy", "/mine"]).ok().says(&["freed"]);
    assert_eq!(home.bud(["cache", "ls", "--quiet"]).ok().stdout, "");
}

#[test]
fn a_cache_mount_in_use_is_left_alone() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nRUN --mount=type=cache,id=busy,target=/c echo started > /c/f; sleep 4; cp /c/f /f\n",
    );
    let out = home.path("o");
    let mut command = home.bud_command(["--progress", "plain", "-o"]);
    let build = command.arg(&out).arg(&context).spawn().expect("bud runs");
    crate::harness::wait_until("the mount is in use", || home.bud(["cache", "ls"]).stdout.contains("now"));
    home.bud(["cache", "rm", "busy"]).fails_with(&["in use by a running step"]);
    home.bud(["cache", "export", "busy", "-o", "x.tar"]).fails_with(&["in use by a running step"]);
    assert!(!home.path("x.tar").exists());
    home.bud(["cache", "import", "busy", "/dev/null"]).fails_with(&["in use by a running step"]);
    home.bud(["prune", "--all", "--force"]).ok();
    let output = build.wait_with_output().expect("the build ends");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(read(out.join("f")), "started\n");
    home.bud(["cache", "rm", "busy"]).ok();
}

#[test]
fn the_daemons_policies_are_buildkits() {
    let home = Home::sub();
    let config = home.path("buildkitd.toml");
    home.write(&config, "[worker.oci]\n[[worker.oci.gcpolicy]]\nfilters = ['type=regular']\n");
    let config = config.to_str().expect("text");
    let root = home.path("other");
    let root = root.to_str().expect("text");
    let address = format!("unix://{}", home.path("other.sock").display());
    let daemon = |extra: &[&str]| {
        let mut args = vec!["daemon", "--root", root, "--addr", &address, "--idle-timeout", "1s"];
        args.extend(extra);
        home.bud(args)
    };
    daemon(&["--config", config]).fails_with(&["type=regular", "garbage collection"]);
    daemon(&["--oci-worker-gc-keepstorage", "much"]).fails_with(&["--oci-worker-gc-keepstorage", "much"]);
    daemon(&["--oci-worker-gc=false", "--oci-worker-gc-keepstorage", "9000,10%,20GB"]).ok();
}
