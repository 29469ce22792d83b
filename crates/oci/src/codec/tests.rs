use super::*;
use bud_image::Digest;
use proptest::prelude::*;
use std::io::{Read, Write};
use std::process::{Command, Stdio};

/// Text that compresses, different at each place.
fn text(length: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 16);
    let mut n = 12345u32;
    while bytes.len() < length {
        n = n.wrapping_mul(1_103_515_245).wrapping_add(12345);
        bytes.extend_from_slice(format!("{:x} line\n", n >> 12).as_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn compress(bytes: &[u8], compression: Compression, step: usize) -> Compressed<Vec<u8>> {
    let mut compressor = Compressor::new(Vec::new(), compression, None).unwrap();
    for part in bytes.chunks(step.max(1)) {
        compressor.write_all(part).unwrap();
    }
    compressor.finish().unwrap()
}

fn uncompress(bytes: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut out = Vec::new();
    decompress(bytes)?.1.read_to_end(&mut out)?;
    Ok(out)
}

#[test]
fn what_is_compressed_comes_back_with_its_digests() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Uncompressed] {
        for length in [0, 1, 1000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 5_000_000] {
            let bytes = text(length);
            let packed = compress(&bytes, compression, 100_000);
            assert_eq!(packed.diff_id, Digest::of(&bytes));
            assert_eq!(packed.digest, Digest::of(&packed.output));
            assert_eq!((packed.size, packed.uncompressed_size), (packed.output.len() as u64, length as u64));
            assert_eq!(uncompress(&packed.output).unwrap(), bytes, "{compression:?} {length}");
            if length > 0 {
                assert_eq!(Compression::detect(&packed.output), compression);
            }
        }
    }
}

#[test]
fn how_bytes_arrive_does_not_change_the_result() {
    let bytes = text(3_500_000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let one = compress(&bytes, compression, bytes.len());
        for step in [4096, 777_777, 1 << 20] {
            assert_eq!(compress(&bytes, compression, step).digest, one.digest, "{compression:?} {step}");
        }
    }
}

#[test]
fn the_number_of_zstd_workers_does_not_change_the_result() {
    // gzip members are independent by construction.
    let bytes = text(30_000_000);
    let pack = |workers| {
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 3).unwrap();
        encoder.multithread(workers).unwrap();
        encoder.write_all(&bytes).unwrap();
        Digest::of(encoder.finish().unwrap())
    };
    assert_eq!(pack(1), pack(4));
}

fn through(program: &str, args: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = std::thread::spawn(move || stdin.write_all(&input));
    let output = child.wait_with_output().unwrap();
    feeder.join().unwrap().unwrap();
    assert!(output.status.success(), "{program}");
    output.stdout
}

#[test]
fn other_programs_read_and_are_read() {
    let bytes = text(2_500_000);
    let python = "import sys,gzip;sys.stdout.buffer.write(gzip.decompress(sys.stdin.buffer.read()))";
    let packed = compress(&bytes, Compression::Gzip, 9999).output;
    assert_eq!(through("gzip", &["-dc"], &packed), bytes);
    assert_eq!(through("python3", &["-c", python], &packed), bytes);
    assert_eq!(uncompress(&through("gzip", &["-c"], &bytes)).unwrap(), bytes);
    for module in ["bz2", "lzma"] {
        let make = format!("import sys,{module};sys.stdout.buffer.write({module}.compress(sys.stdin.buffer.read()))");
        let packed = through("python3", &["-c", &make], &bytes);
        assert_eq!(uncompress(&packed).unwrap(), bytes, "{module}");
        // Two streams, one after the other.
        assert_eq!(uncompress(&[&packed[..], &packed[..]].concat()).unwrap().len(), 2 * bytes.len(), "{module}");
    }
}

#[test]
fn damage_and_cuts_are_errors() {
    let bytes = text(2_500_000);
    for compression in [Compression::Gzip, Compression::Zstd] {
        let packed = compress(&bytes, compression, 1 << 16).output;
        for cut in [100, packed.len() / 2, packed.len() - 1] {
            assert!(uncompress(&packed[..cut]).is_err(), "{compression:?} cut at {cut}");
        }
        let mut flipped = packed.clone();
        let middle = flipped.len() / 2;
        flipped[middle] ^= 0x10;
        assert!(uncompress(&flipped).map_or(true, |out| out != bytes), "{compression:?}");
        assert!(uncompress(&flipped).is_err(), "{compression:?}");
    }
}

#[test]
fn a_zstd_frame_that_wants_a_huge_window_is_refused() {
    // Frame header with a window of 2 GiB, and a block of four equal bytes.
    let frame = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 21 << 3, 0x23, 0x00, 0x00, b'a'];
    assert!(uncompress(&frame).unwrap_err().to_string().to_lowercase().contains("memory"));
    let small = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0 << 3, 0x23, 0x00, 0x00, b'a'];
    assert_eq!(uncompress(&small).unwrap(), b"aaaa");
    // A skippable frame before it.
    let skipped = [&[0x50, 0x2a, 0x4d, 0x18, 2, 0, 0, 0, 9, 9][..], &small].concat();
    assert_eq!(uncompress(&skipped).unwrap(), b"aaaa");
}

#[test]
fn a_tar_named_like_an_archive_is_a_tar() {
    let mut writer = crate::tar::Writer::new(Vec::new());
    writer.append(&crate::tar::Header::new("BZh91", crate::tar::Kind::File), &b""[..]).unwrap();
    assert_eq!(Compression::detect(&writer.finish().unwrap()), Compression::Uncompressed);
    assert_eq!(Compression::detect(b"BZh91AY"), Compression::Bzip2);
    assert_eq!(Compression::detect(b""), Compression::Uncompressed);
}

#[test]
fn digests_cover_what_is_not_read() {
    let bytes = text(3_000_000);
    let packed = compress(&bytes, Compression::Gzip, 1 << 20).output;
    let mut digested = Digested::new(std::io::Cursor::new(packed.clone())).unwrap();
    let mut head = vec![0; 1000];
    digested.read_exact(&mut head).unwrap();
    assert_eq!(head, bytes[..1000]);
    assert_eq!(digested.finish(u64::MAX).unwrap(), (Digest::of(&bytes), 3_000_000));
    let bomb = Digested::new(std::io::Cursor::new(packed.clone())).unwrap();
    assert!(bomb.finish(2_000_000).is_err());
    let cut = Digested::new(std::io::Cursor::new(packed[..packed.len() / 2].to_vec())).unwrap();
    assert!(cut.finish(u64::MAX).is_err());
}

struct Full;

impl Write for Full {
    fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
        Err(std::io::ErrorKind::StorageFull.into())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_told_as_such() {
    for compression in [Compression::Gzip, Compression::Zstd, Compression::Uncompressed] {
        for length in [10, 20_000_000] {
            let mut compressor = Compressor::new(Full, compression, None).unwrap();
            let result = compressor.write_all(&text(length)).and_then(|()| compressor.finish().map(|_| ()));
            assert_eq!(result.unwrap_err().kind(), std::io::ErrorKind::StorageFull, "{compression:?} {length}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_bytes_make_a_decoder_panic(
        which in 0usize..2,
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..5),
    ) {
        let compression = [Compression::Gzip, Compression::Zstd][which];
        let mut packed = compress(&text(4000), compression, 4000).output;
        for (at, byte) in edits {
            let at = at.index(packed.len());
            packed[at] = byte;
        }
        let _ = uncompress(&packed);
    }
}
