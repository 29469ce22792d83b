//! Tests of the store by subject, and what they share.

mod blobs;
mod chains;
mod content;
mod layers;
mod state;

use crate::testing::Fixture;
use crate::*;
use bud_image::Digest;
use std::path::Path;
use std::time::Duration;

fn key(text: &str) -> CacheKey {
    Digest::of(text)
}

fn reopen(fixture: &mut Fixture) {
    let root = fixture.store.root().to_owned();
    let dir = std::mem::replace(&mut fixture.dir, tempfile::tempdir().unwrap());
    *fixture = Fixture::of(Store::open(&root, Options::default()).unwrap(), dir);
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    for _ in 0..1000 {
        if done() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("{what}");
}

/// Runs commands on a snapshot as a step does: through a mounted overlay.
fn stepped(fixture: &mut Fixture, parent: &Snapshot, step: impl FnOnce(&Path)) -> Snapshot {
    let draft = fixture.store.draft(parent).unwrap();
    let mount = draft.overlay().mount(bud_sandbox::overlay::MountApi::Auto).unwrap();
    step(Path::new(&format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&mount))));
    drop(mount);
    fixture.commit(draft)
}
