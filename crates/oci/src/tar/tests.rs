use super::*;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

fn write_all(entries: &[(Header, Vec<u8>)]) -> Vec<u8> {
    let mut writer = Writer::new(Vec::new());
    for (header, body) in entries {
        writer.append(header, &body[..]).unwrap();
    }
    writer.finish().unwrap()
}

fn read_all(tar: &[u8]) -> Result<Vec<(Header, Vec<u8>)>, TarError> {
    let mut reader = Reader::new(tar);
    let mut entries = Vec::new();
    while let Some(mut entry) = reader.next_entry()? {
        let mut body = Vec::new();
        entry.read_to_end(&mut body)?;
        entries.push((entry.header, body));
    }
    Ok(entries)
}

fn file(path: &str, body: &[u8]) -> (Header, Vec<u8>) {
    let header = Header { size: body.len() as u64, ..Header::new(path, Kind::File) };
    (header, body.to_vec())
}

fn arbitrary_entry() -> impl Strategy<Value = (Header, Vec<u8>)> {
    let part = prop_oneof!["[a-z]{1,40}", "\\PC{1,30}"].prop_map(|s| s.replace(['/', '\0'], "_"));
    let path = proptest::collection::vec(part, 1..8).prop_map(|parts| parts.join("/").into_bytes());
    let kind = prop_oneof![
        Just(Kind::File),
        Just(Kind::HardLink),
        Just(Kind::Symlink),
        Just(Kind::CharDevice),
        Just(Kind::BlockDevice),
        Just(Kind::Directory),
        Just(Kind::Fifo),
    ];
    let time = (any::<i32>(), prop_oneof![Just(0u32), 1u32..1_000_000_000])
        .prop_map(|(seconds, nanos)| Time { seconds: i64::from(seconds) * 100, nanos });
    let xattrs = proptest::collection::btree_map("[a-z]{1,5}\\.[a-z.]{1,9}", any::<Vec<u8>>(), 0..3);
    let body = proptest::collection::vec(any::<u8>(), 0..1500);
    let numbers = (any::<u16>(), any::<u32>(), any::<u32>(), 0u32..0o7777777);
    (path.clone(), path, kind, numbers, time, xattrs, body).prop_map(
        |(path, link, kind, (mode, uid, gid, device), mtime, xattrs, body)| {
            let body = if kind == Kind::File { body } else { Vec::new() };
            let is_link = matches!(kind, Kind::HardLink | Kind::Symlink);
            let is_device = matches!(kind, Kind::CharDevice | Kind::BlockDevice);
            let header = Header {
                mode: u32::from(mode) & 0o7777,
                uid,
                gid,
                size: body.len() as u64,
                mtime,
                link: if is_link { link } else { Vec::new() },
                device: if is_device { (device, device / 2) } else { (0, 0) },
                xattrs: xattrs.into_iter().map(|(k, v)| (k.into_bytes(), v)).collect(),
                ..Header::new(path, kind)
            };
            (header, body)
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn what_is_written_is_read_again(entries in proptest::collection::vec(arbitrary_entry(), 0..6)) {
        prop_assert_eq!(read_all(&write_all(&entries)).unwrap(), entries);
    }

    #[test]
    fn no_bytes_make_the_reader_panic(
        entries in proptest::collection::vec(arbitrary_entry(), 1..4),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut tar = write_all(&entries);
        for (at, byte, mend) in edits {
            let at = at.index(tar.len());
            tar[at] = byte;
            let start = at / BLOCK * BLOCK;
            if mend && tar[start + 257..start + 262] == *b"ustar" {
                mend_checksum(&mut tar[start..start + BLOCK]);
            }
        }
        let _ = read_all(&tar);
        let _ = read_all(&tar[..cut.index(tar.len())]);
    }
}

fn mend_checksum(block: &mut [u8]) {
    block[148..156].fill(b' ');
    let sum: u32 = block[..BLOCK].iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// A header block as a hostile archive would have it.
fn block(name: &str, flag: u8, size: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    block[..name.len()].copy_from_slice(name.as_bytes());
    block[100..107].copy_from_slice(b"0000644");
    block[124..124 + size.len()].copy_from_slice(size);
    block[156] = flag;
    block[257..265].copy_from_slice(b"ustar\x0000");
    mend_checksum(&mut block);
    block
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    data.resize(data.len().div_ceil(BLOCK) * BLOCK, 0);
    data
}

fn pax_entry(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut data = Vec::new();
    for (key, value) in records {
        pax::push_record(&mut data, key.as_bytes(), value);
    }
    [block("x", b'x', format!("{:o}", data.len()).as_bytes()), padded(&data)].concat()
}

#[test]
fn the_pax_size_wins_so_that_an_inner_tar_stays_a_body() {
    let inner = write_all(&[file("etc/evil", b"evil")]);
    let size = inner.len().to_string();
    let tar = [pax_entry(&[("size", size.as_bytes())]), block("inner.tar", b'0', b"0"), padded(&inner)].concat();
    let entries = read_all(&[tar, write_all(&[file("after", b"")])].concat()).unwrap();
    let names: Vec<_> = entries.iter().map(|(h, _)| h.display_name()).collect();
    assert_eq!(names, ["inner.tar", "after"]);
    assert_eq!(entries[0].1, inner);
}

#[test]
fn damage_is_an_error_and_never_an_early_end() {
    let whole = write_all(&[file("a", &[7; 600]), file("b", b"x")]);
    assert_eq!(read_all(&whole).unwrap().len(), 2);
    // Without the end mark, or with rubbish behind it.
    assert_eq!(read_all(&whole[..whole.len() - 1024]).unwrap().len(), 2);
    assert_eq!(read_all(&[&whole[..], b"rubbish"].concat()).unwrap().len(), 2);
    // A writer that forgot even the last file's filling.
    assert_eq!(read_all(&whole[..512 + 600]).unwrap().len(), 1);
    for cut in [1, 511, 513, 512 + 1023, 1536 + 100, 1536 + 512] {
        assert!(read_all(&whole[..cut]).is_err(), "cut at {cut}");
    }
    let mut flipped = whole.clone();
    flipped[3] ^= 1;
    assert!(read_all(&flipped).unwrap_err().to_string().contains("checksum"));
}

#[test]
fn limits_hold_without_allocating_what_a_header_claims() {
    let huge = b"77777777777";
    let cases: [(&str, Vec<u8>, &str); 12] = [
        ("1 GB of long name", block("n", b'L', b"10000000000"), "over 1048576 bytes"),
        ("8 GB of PAX", block("n", b'x', huge), "over 1048576 bytes"),
        ("8 GB of global PAX", block("n", b'g', huge), "over 1048576 bytes"),
        ("negative size", block("n", b'0', &[0xff; 12]), "out of range"),
        (
            "size over 2^63",
            block("n", b'0', &[0x80, 0, 0, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]),
            "out of range",
        ),
        ("size no number", block("n", b'0', b"zzz"), "no number"),
        ("PAX size no number", [pax_entry(&[("size", b"-1")]), block("n", b'0', b"0")].concat(), "no number"),
        ("long path", [pax_entry(&[("path", &[b'a'; 70_000])]), block("n", b'0', b"0")].concat(), "longer than 65535"),
        ("long component", [pax_entry(&[("path", &[b'a'; 300])]), block("n", b'0', b"0")].concat(), "longer than 255"),
        ("NUL in path", [pax_entry(&[("path", b"a\0b")]), block("n", b'0', b"0")].concat(), "NUL"),
        ("sparse PAX", [pax_entry(&[("GNU.sparse.major", b"1")]), block("n", b'0', b"0")].concat(), "sparse"),
        ("sparse GNU", block("n", b'S', b"0"), "sparse"),
    ];
    for (what, tar, expected) in cases {
        let error = read_all(&tar).unwrap_err().to_string();
        assert!(error.contains(expected), "{what}: {error}");
    }
    for records in [&b"5 a=b\n"[..], b"99 a=b\n", b"x a=b\n", b"6 ab\n\n", b"0 a=b\n", b"6 =ab\n"] {
        let header = block("x", b'x', format!("{:o}", records.len()).as_bytes());
        let tar = [header, padded(records), block("n", b'0', b"0")].concat();
        assert!(read_all(&tar).is_err(), "{:?}", records.escape_ascii().to_string());
    }
    assert!(matches!(read_all(&block("n", b'0', huge)), Err(TarError::Io(_) | TarError::Truncated { .. })));
    assert!(read_all(&block("n", b'V', b"0")).unwrap_err().to_string().contains("type 'V'"));
}

#[test]
fn old_forms_are_read() {
    let long = "d/".repeat(90) + "f";
    let mut tar =
        [block("././@LongLink", b'L', format!("{:o}", long.len() + 1).as_bytes()), padded(long.as_bytes())].concat();
    tar.extend(block("cut", b'0', b"0"));
    let mut base256 = block("n", b'0', &[0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3]);
    base256[136..148].copy_from_slice(&[0xff; 12]);
    mend_checksum(&mut base256);
    tar.extend(base256);
    tar.extend(padded(b"abc"));
    tar.extend(block("old-dir/", 0, b"0"));
    let entries = read_all(&tar).unwrap();
    assert_eq!(entries[0].0.path, long.as_bytes());
    assert_eq!((&entries[1].1[..], entries[1].0.mtime.seconds), (&b"abc"[..], -1));
    assert_eq!(entries[2].0.kind, Kind::Directory);
}

fn sample() -> Vec<(Header, Vec<u8>)> {
    let deep = format!("{}/{}", "p".repeat(120), "n".repeat(90));
    let long = format!("{}/", "long-directory".repeat(9)).repeat(3) + "file";
    vec![
        (Header { mtime: Time { seconds: 1_700_000_000, nanos: 0 }, ..Header::new("dir/", Kind::Directory) }, vec![]),
        file("dir/file", b"hello\n"),
        file(&deep, b"x"),
        file(&long, b"yy"),
        file("dir/größe-日本", b"zzz"),
        (Header { mode: 0o4755, uid: 1000, gid: 4_000_000_000, ..file("dir/setuid", &[1; 513]).0 }, vec![1; 513]),
        (Header { link: b"../a/b".to_vec(), mode: 0o777, ..Header::new("dir/link", Kind::Symlink) }, vec![]),
        (Header { link: deep.clone().into_bytes(), ..Header::new("dir/hard", Kind::HardLink) }, vec![]),
        (
            Header {
                xattrs: vec![(b"user.b".to_vec(), b"2=\n".to_vec()), (b"user.a".to_vec(), vec![0, 255])],
                ..file("dir/x", b"q").0
            },
            b"q".to_vec(),
        ),
        (Header { device: (5, 1), mode: 0o600, ..Header::new("dev/console", Kind::CharDevice) }, vec![]),
        (Header { mtime: Time { seconds: -5, nanos: 0 }, ..file("old", b"").0 }, vec![]),
        (Header { mtime: Time { seconds: 5, nanos: 120_000_000 }, ..file("fine", b"").0 }, vec![]),
    ]
}

/// Gives a tar to a program, returns what it prints.
fn through(program: &str, args: &[&str], tar: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .env("LC_ALL", "C.UTF-8")
        .env("TZ", "UTC")
        .spawn()
        .unwrap_or_else(|e| panic!("{program}: {e}"));
    child.stdin.take().unwrap().write_all(tar).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{program}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn gnu_tar_reads_what_is_written() {
    let listing = through("tar", &["-tvf", "-", "--numeric-owner", "--quoting-style=literal"], &write_all(&sample()));
    let lines: Vec<_> = listing.lines().collect();
    assert_eq!(lines.len(), sample().len(), "{listing}");
    assert!(lines[0].starts_with("drwxr-xr-x 0/0") && lines[0].ends_with("2023-11-14 22:13 dir/"), "{}", lines[0]);
    assert!(lines[4].ends_with("dir/größe-日本"), "{}", lines[4]);
    assert!(lines[5].starts_with("-rwsr-xr-x 1000/4000000000"), "{}", lines[5]);
    assert!(lines[6].ends_with("dir/link -> ../a/b"), "{}", lines[6]);
    assert!(lines[9].starts_with("crw------- 0/0") && lines[9].contains("5,1"), "{}", lines[9]);
}

#[test]
fn python_reads_what_is_written_and_is_read() {
    let list = "import sys,tarfile,io,hashlib\n\
        for m in tarfile.open(fileobj=io.BytesIO(sys.stdin.buffer.read())):\n\
        \x20 print(m.name, m.type.decode(), oct(m.mode), m.uid, m.gid, m.size, m.mtime, m.linkname, sep='|')\n";
    let listing = through("python3", &["-c", list], &write_all(&sample()));
    for ((header, body), line) in sample().iter().zip(listing.lines()) {
        let fields: Vec<_> = line.split('|').collect();
        let name = String::from_utf8(header.path.clone()).unwrap();
        assert_eq!(fields[0], name.trim_end_matches('/'));
        assert_eq!(fields[2], format!("0o{:o}", header.mode));
        assert_eq!(fields[4], header.gid.to_string());
        assert_eq!(fields[5], body.len().to_string());
        assert_eq!(fields[7].as_bytes(), header.link);
    }
    for format in ["USTAR", "GNU", "PAX"] {
        let make = format!(
            "import sys,tarfile,io\n\
             t=tarfile.open(fileobj=sys.stdout.buffer, mode='w|', format=tarfile.{format}_FORMAT)\n\
             i=tarfile.TarInfo('d/'+'n'*90 if '{format}'=='USTAR' else 'd/'*80+'ä'); i.size=3; i.mtime=7; i.mode=0o640; i.uid=12\n\
             t.addfile(i, io.BytesIO(b'abc'))\n\
             i=tarfile.TarInfo('l'); i.type=tarfile.SYMTYPE; i.linkname='t'*(90 if '{format}'=='USTAR' else 200)\n\
             t.addfile(i); t.close()"
        );
        let output = Command::new("python3").args(["-c", &make]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let entries = read_all(&output.stdout).unwrap();
        assert_eq!(entries.len(), 2, "{format}");
        let (header, body) = &entries[0];
        assert_eq!((&body[..], header.mode, header.uid, header.mtime.seconds), (&b"abc"[..], 0o640, 12, 7), "{format}");
        if format != "USTAR" {
            assert_eq!(header.path, ("d/".repeat(80) + "ä").into_bytes(), "{format}");
            assert_eq!(entries[1].0.link.len(), 200, "{format}");
        }
    }
}

/// The digest is that of the tar which Go 1.27's `archive/tar` makes of the same headers.
#[test]
fn bytes_are_those_of_go() {
    assert_eq!(bud_image::Digest::of(write_all(&sample())).to_string(), GO_SAMPLE);
}

const GO_SAMPLE: &str = "sha256:718633dc0abaafea74c607e1f015c3e8444d7a83ea2af26bc0720e5a55543846";

#[test]
fn a_file_that_changes_its_size_is_an_error() {
    let (header, _) = file("f", b"12345");
    assert!(Writer::new(Vec::new()).append(&header, &b"1234"[..]).is_err());
    assert!(Writer::new(Vec::new()).append(&header, &b"123456"[..]).is_err());
    let mut writer = Writer::new(Vec::new());
    writer.start(&header).unwrap();
    writer.write_all(b"123").unwrap();
    assert!(writer.finish().is_err());
}
