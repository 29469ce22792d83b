//! Point 8: parallel stages, sharing between builds, and results that outlive the daemon.

use crate::harness::{Home, read};
use std::time::Instant;

#[test]
fn a_second_build_runs_nothing_and_survives_kill_9() {
    let home = Home::sub();
    let context = home.context(&[
        ("Dockerfile", "FROM busybox\nRUN cat /proc/sys/kernel/random/uuid > /id\nCOPY f /f\nRUN cat /proc/sys/kernel/random/uuid > /id2\n"),
        ("f", "1"),
    ]);
    let ids = |home: &Home| {
        let tree = home.tree(&[], &context);
        (read(tree.join("id")), read(tree.join("id2")))
    };
    let first = ids(&home);
    assert_eq!(ids(&home), first);
    home.kill_daemon();
    assert_eq!(ids(&home), first, "results survive kill -9");
    home.bud(["daemon", "stop"]).ok();
    assert_eq!(ids(&home), first, "and a restart");
    home.write(&context.join("f"), "2");
    let changed = ids(&home);
    assert_eq!(changed.0, first.0);
    assert_ne!(changed.1, first.1);
    // What a context does not give to a COPY does not matter.
    home.write(&context.join("unrelated"), "x");
    assert_eq!(ids(&home), changed);
}

#[test]
fn an_unchanged_file_of_a_changed_stage_stops_the_rebuild() {
    let home = Home::sub();
    let text = |n: u32| {
        home.dockerfile(&format!(
            "FROM busybox AS a\nRUN echo {n} > /noise && echo same > /out\nFROM busybox\nCOPY --from=a /out /out\nRUN cat /proc/sys/kernel/random/uuid > /id\n"
        ))
    };
    let first = read(home.tree(&[], &text(1)).join("id"));
    assert_eq!(read(home.tree(&[], &text(2)).join("id")), first);
    // And by the definition alone from now on.
    assert_eq!(read(home.tree(&[], &text(2)).join("id")), first);
}

#[test]
fn stages_run_side_by_side_and_unneeded_ones_not_at_all() {
    let home = Home::sub();
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    // Each of the two waits for the other through a shared cache mount: one after the other would never end.
    let meet = |me: u32, other: u32| {
        format!(
            "FROM busybox AS s{me}\nRUN --mount=type=cache,id=meet,target=/m touch /m/{me}; n=0; while [ ! -e /m/{other} ]; do sleep 0.05; n=$((n+1)); [ $n -lt 400 ] || exit 9; done; echo {me} > /r{me}\n"
        )
    };
    let context = home.dockerfile(&format!(
        "{}{}FROM busybox AS unneeded\nRUN exit 77\nFROM scratch\nCOPY --from=s1 /r1 /\nCOPY --from=s2 /r2 /\n",
        meet(1, 2),
        meet(2, 1)
    ));
    let tree = home.tree(&[], &context);
    assert_eq!((read(tree.join("r1")), read(tree.join("r2"))), ("1\n".into(), "2\n".into()));
}

#[test]
fn the_same_step_of_two_builds_at_once_runs_once() {
    let home = Home::sub();
    let context = home.dockerfile(
        "FROM busybox\nRUN --mount=type=cache,id=count,target=/c echo run >> /c/runs; sleep 2; cp /c/runs /runs\n",
    );
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let outs: Vec<_> = (0..4).map(|n| home.path(&format!("o{n}"))).collect();
    let start = Instant::now();
    let children: Vec<_> = outs
        .iter()
        .map(|out| {
            let mut command = home.bud_command(["--progress", "plain", "-o"]);
            command.arg(out).arg(&context).spawn().unwrap()
        })
        .collect();
    for child in children {
        let out = child.wait_with_output().unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    assert!(start.elapsed().as_secs() < 20);
    for out in outs {
        assert_eq!(read(out.join("runs")), "run\n");
    }
}

#[test]
fn a_client_that_leaves_a_shared_step_does_not_stop_it_for_the_other() {
    let home = Home::sub();
    home.build(&["-t", "warm"], &home.dockerfile("FROM busybox\nRUN true\n")).ok();
    let context = home.dockerfile("FROM busybox\nRUN echo started; sleep 3; echo done > /done\n");
    let out = home.path("o");
    let mut first = home.bud_command(["--progress", "plain", "-t", "x"]).arg(&context).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    let second = home.bud_command(["--progress", "plain", "-o"]).arg(&out).arg(&context).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(700));
    first.kill().unwrap();
    first.wait().unwrap();
    let output = second.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(read(out.join("done")), "done\n");
}
