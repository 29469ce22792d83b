//! What must hold for any input: the union written by hand is the one that the kernel shows, and no tar leaves its directory.

use crate::fileop::{Copy, Mkdir, Mkfile, Rm, Symlink, copy, mkdir, mkfile, rm, symlink};
use crate::layer::{WriteOptions, apply, write_tar};
use crate::snapshot::{LayerDraft, Snapshot};
use crate::testing::Fixture;
use crate::tree::Source;
use bud_oci::tar::{Header, Kind, Writer};
use proptest::prelude::*;

#[derive(Clone, Debug)]
enum Op {
    Mkdir(String, bool),
    Mkfile(String, u8),
    Rm(String, bool),
    Symlink(String, String),
    Copy(String, String, bool, bool),
    /// A new layer begins.
    Commit,
}

fn paths() -> impl Strategy<Value = String> {
    let part = prop_oneof![4 => "[abc]", 1 => Just("..".to_owned())];
    proptest::collection::vec(part, 1..4).prop_map(|parts| format!("/{}", parts.join("/")))
}

fn ops() -> impl Strategy<Value = Op> {
    prop_oneof![
        3 => (paths(), any::<bool>()).prop_map(|(p, all)| Op::Mkdir(p, all)),
        4 => (paths(), any::<u8>()).prop_map(|(p, data)| Op::Mkfile(p, data)),
        3 => (paths(), any::<bool>()).prop_map(|(p, wild)| Op::Rm(if wild { p.replace('a', "*") } else { p }, wild)),
        2 => (paths(), paths()).prop_map(|(p, q)| Op::Symlink(q, p)),
        4 => (paths(), paths(), any::<bool>(), any::<bool>()).prop_map(|(p, q, contents, replace)| Op::Copy(p, q, contents, replace)),
        2 => Just(Op::Commit),
    ]
}

/// Does an op, taking files for copies from a snapshot.
fn run(draft: &LayerDraft, from: &Snapshot, op: &Op) -> bool {
    let text = String::from;
    match op {
        Op::Mkdir(path, make_parents) => {
            let op = Mkdir { path: text(path), mode: 0o755, make_parents: *make_parents, ..Mkdir::default() };
            mkdir(draft, &op).is_ok()
        }
        Op::Mkfile(path, byte) => {
            let op = Mkfile { path: text(path), mode: 0o644, data: byte.to_string().into_bytes(), ..Mkfile::default() };
            mkfile(draft, &op).is_ok()
        }
        Op::Rm(path, allow_wildcard) => {
            rm(draft, &Rm { path: text(path), allow_wildcard: *allow_wildcard, ..Rm::default() }).is_ok()
        }
        Op::Symlink(old, new) => {
            symlink(draft, &Symlink { old_path: text(old), new_path: text(new), ..Symlink::default() }).is_ok()
        }
        Op::Copy(src, dest, dir_copy_contents, replace) => {
            let tree = draft.store().tree(from).unwrap();
            let op = Copy {
                src: text(src),
                dest: text(dest),
                create_dest_path: true,
                follow_symlink: true,
                dir_copy_contents: *dir_copy_contents,
                always_replace_existing_dest_paths: *replace,
                ..Copy::default()
            };
            copy(draft, Source::Tree(&tree), &op, &()).is_ok()
        }
        Op::Commit => true,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    /// The same operations on one layer and on a chain of them make the same tree, which also comes out of the layers' tars.
    #[test]
    fn layers_add_up(native in any::<bool>(), direct in prop_oneof![Just(1_usize), Just(32)], ops in proptest::collection::vec(ops(), 1..24)) {
        // Flat directories of hard links must look the same as overlays, and merged runs as the layers in them.
        let mut fixture = Fixture::with(crate::Options { native, direct, window: 2, ..crate::Options::default() });
        let from = fixture.layer(&Snapshot::scratch(), &["a/b=1", "a/c/a=2", "b=3", "c->a/c"]);
        let plain = fixture.store.draft(&Snapshot::scratch()).unwrap();
        let mut chain = fixture.store.draft(&Snapshot::scratch()).unwrap();
        for op in &ops {
            if matches!(op, Op::Commit) {
                let snapshot = fixture.commit(chain);
                chain = fixture.store.draft(&snapshot).unwrap();
                continue;
            }
            prop_assert_eq!(run(&plain, &from, op), run(&chain, &from, op), "{:?}", op);
            prop_assert_eq!(fixture.list_draft(&plain), fixture.list_draft(&chain), "{:?}", op);
        }
        let expected = fixture.list_draft(&chain);
        let snapshot = fixture.commit(chain);
        let mut again = Snapshot::scratch();
        for layer in fixture.store.logical_layers(&snapshot).unwrap() {
            let mut tar = Vec::new();
            write_tar(&fixture.store, &layer, &mut tar, &WriteOptions::default(), &()).unwrap();
            let mut draft = fixture.store.draft(&again).unwrap();
            apply(tar.as_slice(), &mut draft, &()).unwrap();
            again = fixture.commit(draft);
        }
        prop_assert_eq!(fixture.list(&again), expected);
    }

    /// Whatever entries there are: nothing outside is touched, and before the parents are known or after makes no difference.
    #[test]
    fn tars_stay_inside(layers in proptest::collection::vec(proptest::collection::vec(
        (0..5_u8, "(\\./|/)?[ab]?(/?(\\.\\.|\\.wh\\.|\\.wh\\.\\.wh\\.\\.opq|c|d)){0,3}", "/?(\\.\\./){0,3}[abcd](/[abcd])?"), 0..8), 1..4)) {
        let mut fixture = Fixture::new();
        let canary = fixture.dir.path().join("canary");
        std::fs::write(&canary, "canary").unwrap();
        let mut results = Vec::new();
        for late in [false, true] {
            let mut snapshot = Snapshot::scratch();
            let mut failed = false;
            for entries in &layers {
                let mut writer = Writer::new(Vec::new());
                for (kind, path, link) in entries {
                    let kind = [Kind::File, Kind::Directory, Kind::Symlink, Kind::HardLink, Kind::Fifo][usize::from(*kind)];
                    let header = Header { link: if matches!(kind, Kind::Symlink | Kind::HardLink) { link.clone().into() } else { Vec::new() }, ..Header::new(path.clone(), kind) };
                    // The writer refuses some names by itself.
                    let _refused = writer.start(&header);
                }
                let tar = writer.finish().unwrap();
                let parent = if late { Snapshot::scratch() } else { snapshot.clone() };
                let mut draft = fixture.store.draft(&parent).unwrap();
                let mut result = apply(tar.as_slice(), &mut draft, &()).map_err(|e| e.to_string()).map(|_| ());
                if late && result.is_ok() {
                    result = draft.set_parent(&snapshot).map_err(|e| e.to_string());
                }
                match result.and_then(|()| draft.commit(&crate::Info::default()).map_err(|e| e.to_string())) {
                    Ok((next, pin)) => {
                        fixture.keep(pin);
                        snapshot = next;
                    }
                    Err(_) => failed = true,
                }
                if failed {
                    break;
                }
            }
            results.push((failed, fixture.list(&snapshot)));
        }
        prop_assert_eq!(&results[0], &results[1]);
        prop_assert_eq!(std::fs::read_to_string(&canary).unwrap(), "canary");
        prop_assert_eq!(std::fs::read_dir(fixture.dir.path()).unwrap().count(), 2);
    }
}
