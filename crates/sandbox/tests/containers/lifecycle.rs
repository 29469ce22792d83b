//! Starting and ending: everything in a container dies with it, and it dies with whoever asked for it.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use bud_sandbox::server::{Event, ServerError};
use bud_sandbox::{Mount, MountKind};

use crate::Case;
use crate::bed::{Bed, eventually, finish};

pub const CASES: &[Case] = &[
    ("started_names_a_process", started_names_a_process),
    ("background_processes_die_with_the_program", background_processes_die_with_the_program),
    ("dropping_a_container_kills_it", dropping_a_container_kills_it),
    ("kill_ends_a_container", kill_ends_a_container),
    ("containers_die_with_the_server", containers_die_with_the_server),
    ("many_at_once", many_at_once),
    ("large_requests", large_requests),
    ("nothing_is_left", nothing_is_left),
];

/// Waits for the program's start and returns its process ID in our `/proc`.
fn started(container: &mut bud_sandbox::server::Container) -> u32 {
    match container.next_event().unwrap() {
        Some(Event::Started { pid }) => pid,
        other => panic!("{other:?}"),
    }
}

fn proc_of(pid: u32) -> PathBuf {
    Path::new("/proc").join(pid.to_string())
}

fn started_names_a_process(bed: &mut Bed) {
    let spec = bed.shell("exec sleep 1000");
    let (mut container, _output) = bed.start(&spec);
    let pid = started(&mut container);
    eventually("the program's name", || {
        std::fs::read_to_string(proc_of(pid).join("comm")).is_ok_and(|name| name == "sleep\n")
    });
}

fn background_processes_die_with_the_program(bed: &mut Bed) {
    let spec = bed.shell("trap '' TERM HUP; (setsid sh -c 'trap \"\" TERM; sleep 1000' &) ; echo done");
    let begun = Instant::now();
    // The output ends although the sleeper holds it: it was killed.
    assert_eq!(bed.run(&spec).ok(), "done\n");
    assert!(begun.elapsed() < Duration::from_secs(5));
}

fn dropping_a_container_kills_it(bed: &mut Bed) {
    let spec = bed.shell("trap '' TERM INT HUP; (sleep 1000 &); sleep 1000");
    let (mut container, mut output) = bed.start(&spec);
    let pid = started(&mut container);
    assert!(proc_of(pid).exists());
    drop(container);
    eventually("the program goes", || !proc_of(pid).exists());
    assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
}

fn kill_ends_a_container(bed: &mut Bed) {
    let spec = bed.shell("trap '' TERM INT HUP; sleep 1000");
    let (mut container, _output) = bed.start(&spec);
    started(&mut container);
    container.kill().unwrap();
    let status = finish(container).unwrap();
    assert_eq!((status.code, status.signal), (137, Some(9)));
    // Before the program has started, too.
    let (container, _output) = bed.start(&spec);
    container.kill().unwrap();
    assert_eq!(finish(container).unwrap().signal, Some(9));
}

fn containers_die_with_the_server(bed: &mut Bed) {
    let spec = bed.shell("trap '' TERM INT HUP; (setsid sleep 1000 &) ; sleep 1000");
    let (mut container, mut output) = bed.start(&spec);
    let pid = started(&mut container);
    bed.server = None;
    eventually("the program goes", || !proc_of(pid).exists());
    assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
    assert_eq!(container.next_event().unwrap(), None);
    // The server killed, as by the OOM killer: the next request says so.
    bed.server = Some(bud_sandbox::server::ForkServer::start().unwrap());
    let (mut container, _output) = bed.start(&spec);
    let pid = started(&mut container);
    let status = std::fs::read_to_string(proc_of(pid).join("status")).unwrap();
    let parent = status.lines().find_map(|line| line.strip_prefix("PPid:")).unwrap().trim().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(parent).unwrap(), rustix::process::Signal::KILL)
        .unwrap();
    eventually("the program goes", || !proc_of(pid).exists());
    let (_read, write) = std::io::pipe().unwrap();
    let answer = bed.server.as_ref().unwrap().run(&spec, None, write.try_clone().unwrap().into(), write.into());
    assert!(matches!(answer, Err(ServerError::Gone)), "{:?}", answer.err());
}

fn many_at_once(bed: &mut Bed) {
    let specs: Vec<_> =
        (0..20).map(|number| bed.shell(&format!("sleep 0.$(({number} % 4)); echo {number}; exit {number}"))).collect();
    let bed = &*bed;
    std::thread::scope(|scope| {
        for (number, spec) in specs.iter().enumerate() {
            scope.spawn(move || {
                let outcome = bed.run(spec);
                assert_eq!(outcome.output, format!("{number}\n"));
                assert_eq!(outcome.result.unwrap().code, number as i32);
            });
        }
    });
}

fn large_requests(bed: &mut Bed) {
    let mut spec = bed.shell("wc -c < /run/secrets/large; wc -c < /run/secrets/small");
    let secret = |dest: &str, length: usize| Mount {
        dest: dest.into(),
        kind: MountKind::File { data: vec![b'x'; length], uid: 0, gid: 0, mode: 0o400 },
    };
    spec.mounts = vec![secret("/run/secrets/large", 500 << 10), secret("/run/secrets/small", 3)];
    assert_eq!(bed.run(&spec).ok(), "512000\n3\n");
}

fn nothing_is_left(bed: &mut Bed) {
    // What the machine mounts and unmounts meanwhile comes and goes here as well.
    let mounts = || -> std::collections::BTreeSet<String> {
        let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines().filter(|line| !line.contains(" master:")).map(str::to_owned).collect()
    };
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let (before, open) = (mounts(), descriptors());
    let spec = bed.shell("true");
    for _ in 0..10 {
        bed.run(&spec).ok();
    }
    assert_eq!(mounts().difference(&before).collect::<Vec<_>>(), Vec::<&String>::new());
    assert_eq!(descriptors(), open);
}
