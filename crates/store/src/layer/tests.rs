//! Layers, hostile and other, unpacked and written again.

use super::*;
use crate::fileop::{Copy, Rm, rm};
use crate::snapshot::Snapshot;
use crate::testing::{Fixture, fill};
use crate::tree::{Source, Tree};
use bud_oci::tar::{Header, Kind, Reader, Time, Writer};
use std::os::unix::fs::MetadataExt;

fn tar(entries: &[Header]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for header in entries {
        let body = vec![b'x'; header.size as usize];
        writer.append(header, body.as_slice()).unwrap();
    }
    writer.finish().unwrap()
}

/// `dir/`, `file=size`, `link->target`, `hard~target`, `fifo|`, `dev#major,minor`.
fn entry(text: &str) -> Header {
    if let Some((name, target)) = text.split_once("->") {
        return Header { link: target.into(), mode: 0o777, ..Header::new(name, Kind::Symlink) };
    }
    if let Some((name, target)) = text.split_once('~') {
        return Header { link: target.into(), ..Header::new(name, Kind::HardLink) };
    }
    if let Some((name, device)) = text.split_once('#') {
        let (major, minor) = device.split_once(',').unwrap();
        let device = (major.parse().unwrap(), minor.parse().unwrap());
        return Header { device, ..Header::new(name, Kind::CharDevice) };
    }
    if let Some(name) = text.strip_suffix('|') {
        return Header::new(name, Kind::Fifo);
    }
    if let Some((name, size)) = text.split_once('=') {
        return Header { size: size.parse().unwrap(), ..Header::new(name, Kind::File) };
    }
    Header::new(text, Kind::Directory)
}

fn entries(texts: &[&str]) -> Vec<Header> {
    texts.iter().map(|t| entry(t)).collect()
}

/// Applies layers one on the other and lists the result. Each is also unpacked before its parents are known.
fn applied(layers: &[&[&str]]) -> Result<Vec<String>, String> {
    let headers: Vec<Vec<Header>> = layers.iter().map(|l| entries(l)).collect();
    applied_headers(&headers)
}

fn applied_headers(layers: &[Vec<Header>]) -> Result<Vec<String>, String> {
    let run = |late: bool| -> Result<Vec<String>, String> {
        let mut fixture = Fixture::new();
        let mut snapshot = Snapshot::scratch();
        for layer in layers {
            let bytes = tar(layer);
            let parent = if late { Snapshot::scratch() } else { snapshot.clone() };
            let mut draft = fixture.store.draft(&parent).unwrap();
            apply(bytes.as_slice(), &mut draft, &()).map_err(|e| e.to_string())?;
            if late {
                draft.set_parent(&snapshot).map_err(|e| e.to_string())?;
            }
            let (next, pin) = draft.commit(&crate::Info::default()).map_err(|e| e.to_string())?;
            std::mem::forget(pin);
            snapshot = next;
        }
        let listed = fixture.list(&snapshot);
        // What is written is what was read: unpacked again, it is the same tree.
        let mut again = Snapshot::scratch();
        for chain in fixture.store.logical_layers(&snapshot).unwrap() {
            let mut bytes = Vec::new();
            write_tar(&fixture.store, &chain, &mut bytes, &WriteOptions::default(), &()).unwrap();
            let mut draft = fixture.store.draft(&again).unwrap();
            apply(bytes.as_slice(), &mut draft, &()).unwrap();
            again = fixture.commit(draft);
        }
        assert_eq!(fixture.list(&again), listed, "written and unpacked again");
        Ok(listed)
    };
    let (early, late) = (run(false), run(true));
    assert_eq!(early, late, "on its parents, and before them");
    early
}

#[track_caller]
fn check(layers: &[&[&str]], expected: &[&str]) {
    let expected: Vec<String> = expected.iter().map(ToString::to_string).collect();
    assert_eq!(applied(layers), Ok(expected));
}

#[track_caller]
fn refused(layers: &[&[&str]], named: &str) {
    let error = applied(layers).unwrap_err();
    assert!(error.contains(named), "{error}");
}

#[test]
fn s01_paths_out_of_the_layer_are_refused() {
    for bad in ["../../c=1", "a/../../c=1", "/../c=1", "../d/", "..->x", "a/../..~b"] {
        refused(&[&[bad]], "leads out");
        refused(&[&[bad]], bad.split(['=', '-', '~']).next().unwrap().trim_end_matches('/'));
    }
    check(&[&["./x=1", "/y=1", "a/../z=1", "./"]], &["x=x", "y=x", "z=x"]);
    refused(&[&["./=1"]], "root");
}

#[test]
fn s02_links_on_the_way_stay_in_the_rootfs() {
    let canary = tempfile::tempdir().unwrap();
    let path = canary.path().to_str().unwrap();
    let link = format!("d->{path}");
    let below = format!("{}/c=x", &path[1..]);
    for layers in [vec![&[&link[..], "d/c=1"][..]], vec![&[&link[..]][..], &["d/c=1"]]] {
        let listed = applied(&layers).unwrap();
        assert!(listed.contains(&below), "{listed:?}");
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0);
    }
    let up = format!("d->{}", "../".repeat(30));
    check(&[&[&up, "d/c=1"]], &["c=x", &up]);
    check(&[&[&up], &["d/c=1"]], &["c=x", &up]);
    // A merged-/usr base and layers that don't know of it.
    check(
        &[&["usr/bin/", "bin->usr/bin", "usr/bin/a=1"], &["bin/b=2", "bin/sub/c=1"]],
        &["bin->usr/bin", "usr/", "usr/bin/", "usr/bin/a=x", "usr/bin/b=xx", "usr/bin/sub/", "usr/bin/sub/c=x"],
    );
    check(
        &[&["run/", "var/run->/run"], &["var/run/x/y=1", "var/run/.wh.gone=0"]],
        &["run/", "run/x/", "run/x/y=x", "var/", "var/run->/run"],
    );
    // But a directory that the layer has itself replaces the link.
    check(&[&["t/", "d->t"], &["d/", "d/c=1"]], &["d/", "d/c=x", "t/"]);
    refused(&[&["a->b", "b->a", "a/c=1"]], "resolve");
    refused(&[&["f=1", "f/c=1"]], "f");
}

#[test]
fn s03_hard_links_name_files_of_the_rootfs_alone() {
    let canary = tempfile::NamedTempFile::new().unwrap();
    let path = canary.path().to_str().unwrap();
    for bad in [format!("h~{path}"), format!("h~{}{}", "../".repeat(20), &path[1..]), "h~missing".into()] {
        refused(&[&[&bad]], "not there");
        refused(&[&["k=1"], &[&bad]], "not there");
    }
    assert_eq!(std::fs::metadata(path).unwrap().nlink(), 1);
    check(&[&["a=3", "d/h~a", "g~/a"]], &["a=xxx", "d/", "d/h=xxx", "g=xxx"]);
    // Of a file below.
    check(&[&["d/a=3"], &["h~d/a", "e/g~../d/a"]], &["d/", "d/a=xxx", "e/", "e/g=xxx", "h=xxx"]);
    refused(&[&["d/", "h~d"]], "directory");
    check(&[&["a=1", "a~a"]], &["a=x"]);
}

#[test]
fn s04_links_are_replaced_never_written_through() {
    let canary = tempfile::tempdir().unwrap();
    let file = canary.path().join("f");
    std::fs::write(&file, "canary").unwrap();
    let to_file = format!("l->{}", file.display());
    check(&[&[&to_file, "h~l", "h=2"]], &["h=xx", &to_file]);
    let mode = std::fs::metadata(canary.path()).unwrap().mode();
    let to_dir = format!("d->{}", canary.path().display());
    let mut wide = entries(&[&to_dir, "d/", "d/new/"]);
    wide[1].mode = 0o777;
    wide[2].mode = 0o777;
    assert_eq!(applied_headers(&[wide.clone()]), Ok(vec!["d/ 777".into(), "d/new/ 777".into()]));
    assert_eq!(
        applied_headers(&[wide[..1].to_vec(), wide[1..].to_vec()]),
        Ok(vec!["d/ 777".into(), "d/new/ 777".into()])
    );
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "canary");
    assert_eq!(std::fs::metadata(canary.path()).unwrap().mode(), mode);
    assert_eq!(std::fs::read_dir(canary.path()).unwrap().count(), 1);
    check(&[&["p=1", "p/", "p/q=1", "p->x", "p=2"]], &["p=xx"]);
    check(&[&["p=2", "p/", "p/q=1"]], &["p/", "p/q=x"]);
    // What a directory replaced in the same layer hides what is below.
    check(&[&["p/old=1"], &["p=1", "p/", "p/new=1"]], &["p/", "p/new=x"]);
}

#[test]
fn s06_whiteouts_hide_what_is_below() {
    for bad in [".wh..=0", ".wh...=0", ".wh.=0", "d/.wh...=0"] {
        refused(&[&["k=1"], &[bad]], "whiteout");
    }
    check(&[&["a=1", "b=1", "d/e=1"], &[".wh.a=0", "d/.wh.e=0"]], &["b=x", "d/"]);
    check(&[&["d/a=1", "d/b/c=1"], &["d/.wh..wh..opq=0", "d/n=1"]], &["d/", "d/n=x"]);
    check(&[&["d/a=1", "d/b/c=1"], &["d/n=1", "d/.wh..wh..opq=0"]], &["d/", "d/n=x"]);
    check(&[&["d/a=1", "k=1"], &[".wh..wh..opq=0", "d/n=1"]], &["d/", "d/n=x"]);
    // Only of layers below: before or after the entry of the same name.
    check(&[&["a=1"], &[".wh.a=0", "a=2"]], &["a=xx"]);
    check(&[&["a=1"], &["a=2", ".wh.a=0"]], &["a=xx"]);
    check(&[&["a/o=1"], &[".wh.a=0", "a/n=2"]], &["a/", "a/n=xx"]);
    check(&[&["a/o=1"], &["a/n=2", ".wh.a=0"]], &["a/", "a/n=xx"]);
    let canary = tempfile::tempdir().unwrap();
    std::fs::write(canary.path().join("x"), "canary").unwrap();
    let link = format!("d->{}", canary.path().display());
    applied(&[&[&link], &["d/.wh.x=0"]]).unwrap();
    assert!(canary.path().join("x").exists());
    check(&[&["a=1"], &[".wh..wh.plnk=0", ".wh.none=0"]], &["a=x"]);
    check(&[&["a=1"], &[".wh.a=0"], &["b=1"]], &["b=x"]);
}

#[test]
fn s07_attributes_of_overlay_are_dropped() {
    let mut headers = entries(&["d/", "d/f=1"]);
    for (name, value) in [
        ("trusted.overlay.opaque", "y"),
        ("user.overlay.opaque", "y"),
        ("user.overlay.redirect", "/k"),
        ("user.overlay.metacopy", ""),
        ("trusted.x", "1"),
        ("user.kept", "1"),
    ] {
        for header in &mut headers {
            header.xattrs.push((name.into(), value.into()));
        }
    }
    let below = entries(&["d/shown=1", "k/k=1"]);
    assert_eq!(applied_headers(&[below, headers.clone()]).unwrap(), ["d/", "d/f=x", "d/shown=x", "k/", "k/k=x"]);
    let fixture = Fixture::new();
    let mut draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    apply(tar(&headers).as_slice(), &mut draft, &()).unwrap();
    for path in ["d", "d/f"] {
        let mut names = vec![0; 1000];
        let n = rustix::fs::listxattr(draft.upper().join(path), &mut names).unwrap();
        assert_eq!(names[..n].escape_ascii().to_string(), "user.kept\\x00", "{path}");
    }
}

#[test]
fn s08_no_usable_device_is_made() {
    refused(&[&["f=1"], &["f#0,0"]], "0:0");
    check(&[&["f=1", "dev/sda#8,0", "p|"]], &["dev/", "f=x", "p?10000"]);
    let fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["k=1"]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        from.join("p"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    let tree = Tree::of_directory(&from).unwrap();
    assert!(tree.read_file(b"p", 10).is_err());
    let draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    let copy = Copy { src: "/".into(), dest: "/".into(), dir_copy_contents: true, ..Copy::default() };
    crate::fileop::copy(&draft, Source::Tree(&tree), &copy, &()).unwrap();
    assert_eq!(fixture.list_draft(&draft), ["k=1", "p?10000 600"]);
}

#[test]
fn s09_a_full_disk_ends_the_unpacking_and_the_space_comes_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = crate::Options { reserve: u64::MAX, ..crate::Options::default() };
    let store = crate::Store::open(&dir.path().join("state"), options).unwrap();
    let mut draft = store.draft(&Snapshot::scratch()).unwrap();
    let upper = draft.upper();
    let error = apply(tar(&entries(&["f=100"])).as_slice(), &mut draft, &()).unwrap_err();
    assert!(error.to_string().contains("not enough free space"), "{error}");
    drop(draft);
    for _ in 0..500 {
        if !upper.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("the draft is still there");
}

#[test]
fn s10_and_p08_damage_is_refused() {
    let long = format!("{}=1", "n".repeat(300));
    assert!(applied_headers(&[vec![entry("ok=1")], vec![]]).is_ok());
    let bytes = tar(&entries(&["a=2000"]));
    let fixture = Fixture::new();
    for cut in [1, 100, 600, 1500] {
        let mut draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
        assert!(apply(&bytes[..cut], &mut draft, &()).is_err(), "{cut}");
    }
    let deep = format!("{}f=1", "d/".repeat(1100));
    for name in [&long, &deep] {
        let mut draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
        let mut writer = Writer::new(Vec::new());
        if writer.append(&entry(name), &b"x"[..]).is_ok() {
            let bytes = writer.finish().unwrap();
            assert!(apply(bytes.as_slice(), &mut draft, &()).is_err(), "{name}");
        }
    }
}

#[test]
fn looks_are_kept_and_parents_that_are_implied_look_as_below() {
    let mut headers = entries(&["./", "tmp/", "tmp/f=3"]);
    headers[0].mode = 0o711;
    headers[1].mode = 0o1777;
    headers[2] =
        Header { uid: 5, gid: 6, mode: 0o4755, mtime: Time { seconds: 1_000_000, nanos: 0 }, ..headers[2].clone() };
    let upper = entries(&["tmp/g=1"]);
    assert_eq!(applied_headers(&[headers.clone(), upper]).unwrap(), ["tmp/ 1777", "tmp/f=xxx 4755 5:6", "tmp/g=x"]);
    let fixture = Fixture::new();
    let mut draft = fixture.store.draft(&Snapshot::scratch()).unwrap();
    apply(tar(&headers).as_slice(), &mut draft, &()).unwrap();
    assert_eq!(std::fs::metadata(draft.upper()).unwrap().mode() & 0o7777, 0o711);
    assert_eq!(std::fs::metadata(draft.upper().join("tmp/f")).unwrap().mtime(), 1_000_000);
    assert_eq!(std::fs::metadata(draft.upper().join("tmp")).unwrap().mtime(), 0);
}

/// Lists the entries that a layer's tar has.
fn written(fixture: &Fixture, snapshot: &Snapshot, options: &WriteOptions) -> Vec<String> {
    let mut bytes = Vec::new();
    write_tar(&fixture.store, snapshot, &mut bytes, options, &()).unwrap();
    let mut again = Vec::new();
    write_tar(&fixture.store, snapshot, &mut again, options, &()).unwrap();
    assert_eq!(bytes, again);
    let mut reader = Reader::new(bytes.as_slice());
    let mut lines = Vec::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        let h = &entry.header;
        let mut line = String::from_utf8(h.path.clone()).unwrap();
        match h.kind {
            Kind::Symlink => line += &format!("->{}", String::from_utf8_lossy(&h.link)),
            Kind::HardLink => line += &format!("~{}", String::from_utf8_lossy(&h.link)),
            Kind::File => line += &format!("={}", h.size),
            _ => {}
        }
        if h.mtime.seconds > 0 && options.rewrite_timestamp {
            line += &format!(" @{}", h.mtime.seconds);
        }
        lines.push(line);
    }
    lines
}

/// What the reference lists: changed entries with their parents, deletions by name, nothing that is as below.
#[test]
fn a_layer_lists_what_changed() {
    let mut fixture = Fixture::new();
    let base = fixture.layer(&Snapshot::scratch(), &["a/b/f=1", "a/k=2", "d/x=1", "d/y/z=1", "d/s=1", "top=1"]);
    let options = WriteOptions::default();
    assert_eq!(
        written(&fixture, &base, &options),
        ["a/", "a/b/", "a/b/f=1", "a/k=1", "d/", "d/s=1", "d/x=1", "d/y/", "d/y/z=1", "top=1",]
    );
    // As a RUN does it: through a mounted overlay.
    let draft = fixture.store.draft(&base).unwrap();
    let mount = draft.overlay().mount(bud_sandbox::overlay::MountApi::Auto).unwrap();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&mount);
    let root = std::path::PathBuf::from(format!("/proc/self/fd/{fd}"));
    std::fs::write(root.join("a/b/new"), "12").unwrap();
    std::fs::remove_file(root.join("a/k")).unwrap();
    std::fs::hard_link(root.join("a/b/new"), root.join("a/b/newer")).unwrap();
    std::fs::remove_dir_all(root.join("d")).unwrap();
    std::fs::create_dir_all(root.join("d/y")).unwrap();
    std::fs::write(root.join("d/n"), "1").unwrap();
    std::fs::write(root.join("temp"), "1").unwrap();
    std::fs::remove_file(root.join("temp")).unwrap();
    // Touched and put back.
    let before = std::fs::metadata(root.join("top")).unwrap();
    std::fs::set_permissions(root.join("top"), std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    std::fs::set_permissions(root.join("top"), before.permissions()).unwrap();
    drop(mount);
    let next = fixture.commit(draft);
    assert_eq!(
        written(&fixture, &next, &options),
        [
            "a/",
            "a/b/",
            "a/b/new=2",
            "a/b/newer~a/b/new",
            "a/.wh.k=0",
            "d/",
            "d/n=1",
            "d/.wh.s=0",
            "d/.wh.x=0",
            "d/y/",
            "d/y/.wh.z=0",
        ]
    );
    // A file operation lists the same as a command would.
    let draft = fixture.store.draft(&next).unwrap();
    rm(&draft, &Rm { path: "/a/b".into(), ..Rm::default() }).unwrap();
    let last = fixture.commit(draft);
    assert_eq!(written(&fixture, &last, &options), ["a/", "a/.wh.b=0"]);
    assert_eq!(written(&fixture, &Snapshot::scratch(), &options), [""; 0]);
}

#[test]
fn times_are_clamped_only_when_asked() {
    let mut fixture = Fixture::new();
    let snapshot = fixture.layer(&Snapshot::scratch(), &["new=1", "old=1"]);
    let old = fixture.store.layer_fs(snapshot.top().unwrap()).join("old");
    std::fs::File::open(old).unwrap().set_modified(std::time::UNIX_EPOCH + std::time::Duration::from_secs(7)).unwrap();
    let options = WriteOptions { source_date_epoch: Some(1000), rewrite_timestamp: true };
    assert_eq!(written(&fixture, &snapshot, &options), ["new=1 @1000", "old=1 @7"]);
}

/// The kernel's clock ticks in milliseconds: a file that is written over at once may have its size and time, and is still another.
#[test]
fn versions_that_share_a_time_are_told_apart() {
    let mut fixture = Fixture::new();
    let base = fixture.layer(&Snapshot::scratch(), &["changed=1", "same=1"]);
    let draft = fixture.store.draft(&base).unwrap();
    fill(&draft.upper(), &["changed=2", "same=1"]);
    let time = std::time::UNIX_EPOCH + std::time::Duration::new(7, 4_000_000);
    for dir in [fixture.store.layer_fs(base.top().unwrap()), draft.upper()] {
        for name in ["changed", "same"] {
            std::fs::File::open(dir.join(name)).unwrap().set_modified(time).unwrap();
        }
    }
    let snapshot = fixture.commit(draft);
    let layer = fixture.store.logical_layers(&snapshot).unwrap().pop().unwrap();
    let mut tar = Vec::new();
    write_tar(&fixture.store, &layer, &mut tar, &WriteOptions::default(), &()).unwrap();
    let tar = String::from_utf8_lossy(&tar);
    assert!(tar.contains("changed") && !tar.contains("same"));
}

/// An archive is extracted into the destination and its links don't lead out of there; whiteouts are files like any other.
#[test]
fn archives_are_extracted_into_the_destination() {
    let mut fixture = Fixture::new();
    let from = fixture.dir.path().join("from");
    fill(&from, &["plain.txt=text"]);
    let body = tar(&entries(&["sub/", "sub/f=3", "out->/etc", "out/x=1", ".wh.k=0", "h~sub/f"]));
    std::fs::write(from.join("a.tar"), &body).unwrap();
    let zipped = zstd_of(&body);
    std::fs::write(from.join("a.tar.zst"), &zipped).unwrap();
    let base = fixture.layer(&Snapshot::scratch(), &["etc/passwd=1", "x/k=1", "x/sub/old=1"]);
    let tree = Tree::of_directory(&from).unwrap();
    for name in ["/a.tar", "/a.tar.zst"] {
        let draft = fixture.store.draft(&base).unwrap();
        let copy = Copy { src: name.into(), dest: "/x/".into(), unpack: true, ..Copy::default() };
        crate::fileop::copy(&draft, Source::Tree(&tree), &copy, &()).unwrap();
        assert_eq!(
            fixture.list_draft(&draft),
            [
                "etc/",
                "etc/passwd=1",
                "x/",
                "x/.wh.k=",
                "x/etc/",
                "x/etc/x=x",
                "x/h=xxx",
                "x/k=1",
                "x/out->/etc",
                "x/sub/",
                "x/sub/f=xxx",
                "x/sub/old=1",
            ]
        );
    }
    let draft = fixture.store.draft(&base).unwrap();
    let copy = Copy { src: "/plain.txt".into(), dest: "/x/".into(), unpack: true, ..Copy::default() };
    crate::fileop::copy(&draft, Source::Tree(&tree), &copy, &()).unwrap();
    assert!(fixture.list_draft(&draft).contains(&"x/plain.txt=text".to_owned()));
    std::fs::write(from.join("bad.tar"), tar(&entries(&["a=1", "../../etc/x=1"]))).unwrap();
    let copy = Copy { src: "/bad.tar".into(), dest: "/x/".into(), unpack: true, ..Copy::default() };
    assert!(
        crate::fileop::copy(&draft, Source::Tree(&tree), &copy, &()).unwrap_err().to_string().contains("leads out")
    );
}

fn zstd_of(bytes: &[u8]) -> Vec<u8> {
    // One raw frame: magic, no content size, blocks of at most 128 KiB.
    let mut out = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x58];
    let mut blocks = bytes.chunks(64 << 10).peekable();
    while let Some(block) = blocks.next() {
        let header = (block.len() as u32) << 3 | u32::from(blocks.peek().is_none());
        out.extend_from_slice(&header.to_le_bytes()[..3]);
        out.extend_from_slice(block);
    }
    out
}
