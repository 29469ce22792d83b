//! Measures what a build asks of the store: `cargo run --profile bench-quick -p bud-store --example measure -- DIR`.
//!
//! Run it where overlays can be mounted: as root, or under `unshare -Urm`.

#![allow(missing_docs)]

use bud_store::content::{Selection, digest};
use bud_store::context::{ContextOptions, ContextTree};
use bud_store::fileop::{Copy, copy};
use bud_store::{Info, Options, Snapshot, Source, Store};
use std::path::Path;
use std::time::Instant;

fn timed<T>(what: &str, run: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = run();
    println!("{:>10.2} ms  {what}", start.elapsed().as_secs_f64() * 1000.0);
    result
}

fn make_files(dir: &Path, files: usize) {
    for i in 0..files {
        let sub = dir.join(format!("d{}", i / 100));
        if i % 100 == 0 {
            std::fs::create_dir_all(&sub).unwrap();
        }
        std::fs::write(sub.join(format!("f{i}")), format!("{i}\n").repeat(200)).unwrap();
    }
}

fn context(dir: &Path) -> ContextTree {
    ContextTree::open(std::fs::File::open(dir).unwrap().into(), &ContextOptions::default()).unwrap()
}

fn main() {
    let work = std::path::PathBuf::from(std::env::args().nth(1).expect("a directory to work in"));
    std::fs::create_dir_all(&work).unwrap();
    let state = work.join("state");
    let store = timed("open a fresh state", || Store::open(&state, Options::default()).unwrap());
    let all = Selection { path: "/".into(), ..Selection::default() };
    let whole = Copy {
        src: "/".into(),
        dest: "/app".into(),
        create_dest_path: true,
        dir_copy_contents: true,
        ..Copy::default()
    };
    for files in [2_000, 20_000] {
        let dir = work.join(format!("context-{files}"));
        if !dir.exists() {
            make_files(&dir, files);
        }
        println!("-- {files} files");
        let tree = timed("list the context", || context(&dir));
        let first = timed("digest it, nothing known", || digest(&store, Source::Context(&tree), &all, &()).unwrap());
        std::thread::sleep(std::time::Duration::from_millis(2100));
        let tree = context(&dir);
        digest(&store, Source::Context(&tree), &all, &()).unwrap();
        let again = timed("list and digest it again", || {
            let tree = context(&dir);
            digest(&store, Source::Context(&tree), &all, &()).unwrap()
        });
        assert_eq!(first, again);
        let draft = store.draft(&Snapshot::scratch()).unwrap();
        let stats = timed("copy it into a layer", || copy(&draft, Source::Context(&tree), &whole, &()).unwrap());
        println!("               {} entries, {} bytes", stats.files, stats.bytes);
        let (base, _pin) = timed("commit", || draft.commit(&Info::default()).unwrap());
        let draft = store.draft(&base).unwrap();
        timed("copy it over itself", || copy(&draft, Source::Context(&tree), &whole, &()).unwrap());
        drop(draft);
        timed("write the layer's tar", || {
            bud_store::layer::write_tar(&store, &base, std::io::sink(), &Default::default(), &()).unwrap();
        });
        std::fs::write(dir.join("d3/f300"), format!("{:?}", Instant::now())).unwrap();
        timed("list and digest, one file edited", || {
            let tree = context(&dir);
            digest(&store, Source::Context(&tree), &all, &()).unwrap()
        });
    }
    println!("-- 1 GiB");
    let big = work.join("big");
    if !big.exists() {
        std::fs::create_dir_all(&big).unwrap();
        let piece: Vec<u8> = (0..1_u32 << 20).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let mut file = std::fs::File::create(big.join("blob")).unwrap();
        for _ in 0..1024 {
            std::io::Write::write_all(&mut file, &piece).unwrap();
        }
    }
    timed("cp of coreutils", || {
        assert!(
            std::process::Command::new("cp").arg(big.join("blob")).arg(work.join("copied")).status().unwrap().success()
        );
    });
    std::fs::remove_file(work.join("copied")).unwrap();
    let tree = context(&big);
    timed("digest", || digest(&store, Source::Context(&tree), &all, &()).unwrap());
    let draft = store.draft(&Snapshot::scratch()).unwrap();
    timed("copy", || copy(&draft, Source::Context(&tree), &whole, &()).unwrap());
    drop(draft);
    println!("-- drafts");
    timed("100 empty layers on one another, committed", || {
        let mut snapshot = Snapshot::scratch();
        for _ in 0..100 {
            snapshot = store.draft(&snapshot).unwrap().commit(&Info::default()).unwrap().0;
        }
        for i in 0..100_u32 {
            store.put_record(&bud_image::Digest::of(i.to_le_bytes()), &[Some(snapshot.clone())], "").unwrap();
        }
        timed("mount the chain of 100", || store.tree(&snapshot).unwrap());
    });
    timed("usage", || store.usage().unwrap());
    timed("sync", || store.sync().unwrap());
    drop(store);
    timed("open the state again", || Store::open(&state, Options::default()).unwrap());
}
