//! Chains that are long, and trees where there are no overlays.

use super::{reopen, stepped, wait_until};
use crate::testing::{Fixture, fill};
use crate::*;

/// L04, testLayerLimitOnMounts: more layers than the kernel stacks.
#[test]
fn long_chains_are_flattened() {
    let mut fixture = Fixture::new();
    let mut snapshot = Snapshot::scratch();
    for i in 0..850 {
        let draft = fixture.store.draft(&snapshot).unwrap();
        match i % 4 {
            0 => fill(&draft.upper(), &[&format!("d/f{i}=1"), "same=0"]),
            1 => fill(&draft.upper(), &[&format!("same={i}"), &format!("d{i}/x=1")]),
            2 => fileop::rm(&draft, &fileop::Rm { path: format!("/d{}", i - 1), ..fileop::Rm::default() }).unwrap(),
            _ => {
                let op = fileop::Rm { path: format!("/d/f{}", i - 3), ..fileop::Rm::default() };
                if i % 8 == 3 {
                    fileop::rm(&draft, &op).unwrap();
                }
            }
        }
        snapshot = fixture.commit(draft);
    }
    let listed = fixture.list(&snapshot);
    // Every second `f` was removed; the last `d` was made by layer 849.
    let files: Vec<String> =
        (0..850).filter(|i| i % 8 == 4 || (i % 4 == 0 && *i + 3 >= 850)).map(|i| format!("d/f{i}=1")).collect();
    let mut expected: Vec<String> = ["d/".to_owned(), "d849/".into(), "d849/x=1".into(), "same=849".into()].into();
    expected.extend(files);
    expected.sort();
    let mut sorted = listed.clone();
    sorted.sort();
    assert_eq!(sorted, expected);
    assert!(fixture.store.lowers(&snapshot).len() <= 32);
    let mut tar = Vec::new();
    layer::write_tar(&fixture.store, &snapshot, &mut tar, &layer::WriteOptions::default(), &()).unwrap();
    reopen(&mut fixture);
    assert_eq!(fixture.list(&snapshot), listed);
    fixture.store.prune(&PrunePolicy::default()).unwrap();
    wait_until("directories stay", || std::fs::read_dir(fixture.store.root().join("layers")).unwrap().count() == 0);
}

/// A run of layers looks like the layers in it, also where they delete and replace what is below.
#[test]
fn merged_runs_look_like_their_layers() {
    let build = |direct: usize, seen: &mut Vec<Vec<String>>| {
        let mut fixture = Fixture::with(Options { direct, window: 2, ..Options::default() });
        let files = ["d/a=1", "d/b=1", "d/sub/x=1", "e/f=1", "file=1", "keep/k=1"];
        let mut snapshot = fixture.layer(&Snapshot::scratch(), &files);
        let steps: [&[&str]; 8] = [
            &["rm d/a", "write d/own", "mkdir new"],
            &["rm d/own", "write new/n", "write d/sub/y"],
            &["rm d", "mkdir d", "write d/later"],
            &["rm file", "mkdir file", "write file/in", "rm new/n"],
            &["rm e", "write e"],
            &["rm e", "mkdir e", "write e/g", "rm file"],
            &["rm d/later", "write keep/l"],
            &["rm keep/k", "rm keep/l"],
        ];
        for step in steps {
            snapshot = stepped(&mut fixture, &snapshot, |root| {
                for action in step {
                    let (what, path) = action.split_once(' ').unwrap();
                    let path = root.join(path);
                    match what {
                        "rm" if path.is_dir() => std::fs::remove_dir_all(path).unwrap(),
                        "rm" => std::fs::remove_file(path).unwrap(),
                        "mkdir" => std::fs::create_dir(path).unwrap(),
                        _ => std::fs::write(path, *action).unwrap(),
                    }
                }
            });
            seen.push(fixture.list(&snapshot));
        }
        fixture.store.lowers(&snapshot).len()
    };
    let (mut merged, mut plain) = (Vec::new(), Vec::new());
    assert!(build(1, &mut merged) <= 2);
    assert_eq!(build(100, &mut plain), 9);
    assert_eq!(merged, plain);
    assert_eq!(merged.last().unwrap(), &["d/", "e/", "e/g=write e/g", "keep/", "new/"]);
}

/// Links to all files of a large layer would cost more than they save.
#[test]
fn large_layers_are_not_merged() {
    let mut fixture = Fixture::with(Options { direct: 2, window: 4, ..Options::default() });
    let many: Vec<String> = (0..300).map(|n| format!("f{n}=1")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let mut snapshot = fixture.layer(&Snapshot::scratch(), &many);
    for n in 0..13 {
        snapshot = fixture.layer(&snapshot, &[&format!("g{n}=1")]);
    }
    let lowers = fixture.store.lowers(&fixture.store.draft(&snapshot).unwrap().parent().clone());
    assert!(lowers.ends_with(&[fixture.store.layer_fs(snapshot.layers()[0])]), "{lowers:?}");
    // The large one, three runs, and two that don't fill a window.
    assert_eq!(lowers.len(), 6, "{lowers:?}");
    assert_eq!(fixture.list(&snapshot).len(), 313);
}

/// F11: where no overlay can be mounted, trees are still there, and what was made for them goes with their layers.
#[test]
fn without_overlays_trees_are_flat_directories() {
    let mut fixture = Fixture::with(Options { native: true, ..Options::default() });
    let base = fixture.layer(&Snapshot::scratch(), &["a/f=1", "k=1"]);
    let draft = fixture.store.draft(&base).unwrap();
    fileop::rm(&draft, &fileop::Rm { path: "/a/f".into(), ..fileop::Rm::default() }).unwrap();
    fill(&draft.upper(), &["n=2"]);
    assert_eq!(fixture.list_draft(&draft), ["a/", "k=1", "n=2"]);
    let next = fixture.commit(draft);
    assert_eq!(fixture.list(&next), ["a/", "k=1", "n=2"]);
    assert_eq!(fixture.list(&base), ["a/", "a/f=1", "k=1"]);
    fixture.unpin();
    fixture.store.prune(&PrunePolicy::default()).unwrap();
    wait_until("directories stay", || std::fs::read_dir(fixture.store.root().join("layers")).unwrap().count() == 0);
}
