//! Writes tars whose bytes depend on the entries alone, in the forms that Go's `archive/tar` chooses: USTAR where an entry fits,
//! else PAX with sorted records. Layers made here and by containerd from the same entries have the same digest.

use super::header::{Header, Kind};
use super::{BLOCK, pax};
use std::collections::BTreeMap;
use std::io::{Error, ErrorKind, Read, Write};

const NAME: usize = 100;
const PREFIX: usize = 155;
const OWNER_NAME: usize = 32;

/// Writes a tar to a stream.
///
/// After [`Writer::start`] of a file, exactly its size in bytes must be written (the writer is a [`Write`]); [`Writer::append`]
/// does both. [`Writer::finish`] writes the end mark.
pub struct Writer<W> {
    output: W,
    /// Bytes of the current entry still to come.
    left: u64,
    fill: usize,
    name: String,
}

impl<W: Write> Writer<W> {
    /// Starts a tar. The stream should be buffered: headers are written in blocks of 512 bytes.
    pub fn new(output: W) -> Self {
        Self { output, left: 0, fill: 0, name: String::new() }
    }

    /// Writes an entry's header.
    ///
    /// # Errors
    /// The entry before is incomplete, the header has what a tar can't hold, or the stream fails.
    pub fn start(&mut self, header: &Header) -> std::io::Result<()> {
        self.end_entry()?;
        let records = records_of(header)?;
        let mut block = [0; BLOCK];
        match split_path(&header.path) {
            _ if records.pax_needed => {
                if !records.pax.is_empty() {
                    self.write_pax(&header.path, &records.pax)?;
                }
                put_text(&mut block[..NAME], &ascii(&header.path));
            }
            Some((prefix, name)) => {
                put_text(&mut block[..NAME], name);
                put_text(&mut block[345..345 + PREFIX], prefix);
            }
            None => put_text(&mut block[..NAME], &header.path),
        }
        put_text(&mut block[157..257], &ascii(&header.link));
        put_octal(&mut block[100..108], u64::from(header.mode & 0o7777));
        put_octal(&mut block[108..116], u64::from(header.uid));
        put_octal(&mut block[116..124], u64::from(header.gid));
        put_octal(&mut block[124..136], header.size);
        put_octal(&mut block[136..148], u64::try_from(header.mtime.seconds).unwrap_or_default());
        block[156] = header.kind.flag();
        put_text(&mut block[265..297], &ascii(&header.user));
        put_text(&mut block[297..329], &ascii(&header.group));
        put_octal(&mut block[329..337], u64::from(header.device.0));
        put_octal(&mut block[337..345], u64::from(header.device.1));
        seal(&mut block);
        self.output.write_all(&block)?;
        self.left = header.size;
        self.fill = fill_of(header.size);
        self.name = header.display_name();
        Ok(())
    }

    /// Writes an entry and its bytes.
    ///
    /// # Errors
    /// As [`Writer::start`]; and the body has fewer or more bytes than the header says.
    pub fn append(&mut self, header: &Header, mut body: impl Read) -> std::io::Result<()> {
        self.start(header)?;
        let copied = std::io::copy(&mut (&mut body).take(header.size), &mut self.output)?;
        if copied != header.size || body.read(&mut [0])? != 0 {
            let message = format!("{:?} changed its size while it was read", self.name);
            return Err(Error::new(ErrorKind::InvalidData, message));
        }
        self.left = 0;
        self.end_entry()
    }

    /// Writes the end mark and returns the stream.
    ///
    /// # Errors
    /// The last entry is incomplete, or the stream fails.
    pub fn finish(mut self) -> std::io::Result<W> {
        self.end_entry()?;
        self.output.write_all(&[0; 2 * BLOCK])?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn end_entry(&mut self) -> std::io::Result<()> {
        if self.left > 0 {
            let message = format!("{:?} misses {} bytes", self.name, self.left);
            return Err(Error::new(ErrorKind::InvalidData, message));
        }
        let fill = std::mem::take(&mut self.fill);
        self.output.write_all(&[0; BLOCK][..fill])
    }

    fn write_pax(&mut self, path: &[u8], records: &BTreeMap<Vec<u8>, Vec<u8>>) -> std::io::Result<()> {
        let mut data = Vec::new();
        for (key, value) in records {
            pax::push_record(&mut data, key, value);
        }
        if data.len() as u64 > super::MAX_EXTENDED {
            return Err(invalid(path, "its extended attributes are too long for a tar"));
        }
        let mut block = [0; BLOCK];
        let name = ascii(&pax_name(path));
        let name = &name[..name.len().min(NAME)];
        put_text(&mut block[..NAME], trim_slashes(name));
        for range in [100..108, 108..116, 116..124, 136..148] {
            put_octal(&mut block[range], 0);
        }
        put_octal(&mut block[124..136], data.len() as u64);
        block[156] = b'x';
        seal(&mut block);
        self.output.write_all(&block)?;
        let fill = fill_of(data.len() as u64);
        data.resize(data.len() + fill, 0);
        self.output.write_all(&data)
    }
}

impl<W: Write> Write for Writer<W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if bytes.len() as u64 > self.left {
            let message = format!("{:?} has more bytes than its header says", self.name);
            return Err(Error::new(ErrorKind::InvalidData, message));
        }
        let n = self.output.write(bytes)?;
        self.left -= n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.output.flush()
    }
}

struct Records {
    pax: BTreeMap<Vec<u8>, Vec<u8>>,
    /// False if the header block alone holds everything.
    pax_needed: bool,
}

/// Finds what a header block can't hold.
fn records_of(header: &Header) -> std::io::Result<Records> {
    let mut pax = BTreeMap::new();
    let mut pax_needed = false;
    if header.path.is_empty() {
        return Err(invalid(&header.path, "it has no name"));
    }
    let texts: [(&[u8], &[u8], usize); 4] = [
        (b"path", &header.path, NAME),
        (b"linkpath", &header.link, NAME),
        (b"uname", &header.user, OWNER_NAME),
        (b"gname", &header.group, OWNER_NAME),
    ];
    for (key, value, size) in texts {
        if value.contains(&0) {
            return Err(invalid(&header.path, "a name of it contains NUL"));
        }
        if !value.is_ascii() || value.len() > size {
            pax_needed |= key != b"path" || split_path(value).is_none();
            pax.insert(key.to_vec(), value.to_vec());
        }
    }
    let numbers: [(&[u8], u64, usize); 3] =
        [(b"uid", u64::from(header.uid), 8), (b"gid", u64::from(header.gid), 8), (b"size", header.size, 12)];
    for (key, value, size) in numbers {
        if !fits_octal(value, size) {
            pax_needed = true;
            pax.insert(key.to_vec(), value.to_string().into_bytes());
        }
    }
    let time_fits = u64::try_from(header.mtime.seconds).is_ok_and(|s| fits_octal(s, 12));
    if !time_fits || header.mtime.nanos != 0 {
        pax_needed = true;
        pax.insert(b"mtime".to_vec(), pax::format_time(header.mtime).into_bytes());
    }
    if !fits_octal(u64::from(header.device.0), 8) || !fits_octal(u64::from(header.device.1), 8) {
        return Err(invalid(&header.path, "its device number is too large for a tar"));
    }
    for (name, value) in &header.xattrs {
        if name.is_empty() || name.contains(&0) || name.contains(&b'=') {
            return Err(invalid(&header.path, "an extended attribute has a name that a tar can't hold"));
        }
        pax_needed = true;
        pax.insert([b"SCHILY.xattr.", &name[..]].concat(), value.clone());
    }
    if header.size > 0 && header.kind != Kind::File {
        return Err(invalid(&header.path, "only files have bytes"));
    }
    Ok(Records { pax, pax_needed })
}

fn invalid(path: &[u8], reason: &str) -> Error {
    Error::new(ErrorKind::InvalidInput, format!("write {:?} to a tar: {reason}", super::header::printable(path)))
}

/// Splits a path that is too long for its field at a slash, if a header block can hold it in two parts.
fn split_path(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= NAME || !path.is_ascii() {
        return None;
    }
    let mut length = path.len();
    if length > PREFIX + 1 {
        length = PREFIX + 1;
    } else if path[length - 1] == b'/' {
        length -= 1;
    }
    let slash = path[..length].iter().rposition(|b| *b == b'/').filter(|i| *i > 0)?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!name.is_empty() && name.len() <= NAME && prefix.len() <= PREFIX).then_some((prefix, name))
}

/// Names the entry that holds PAX records: `dir/PaxHeaders.0/file`, cleaned.
fn pax_name(path: &[u8]) -> Vec<u8> {
    let cut = path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    let (dir, file) = path.split_at(cut);
    let mut parts: Vec<&[u8]> = Vec::new();
    let rooted = dir.first() == Some(&b'/');
    for part in dir.split(|b| *b == b'/').chain([&b"PaxHeaders.0"[..], file]) {
        match part {
            b"" | b"." => {}
            b".." if parts.last().is_some_and(|last| *last != b"..") => {
                parts.pop();
            }
            b".." if rooted => {}
            part => parts.push(part),
        }
    }
    let joined = parts.join(&b'/');
    if rooted { [b"/", &joined[..]].concat() } else { joined }
}

fn trim_slashes(mut name: &[u8]) -> &[u8] {
    while let Some(rest) = name.strip_suffix(b"/") {
        name = rest;
    }
    name
}

/// Leaves out what is not ASCII, for the fields that a PAX record replaces.
fn ascii(text: &[u8]) -> Vec<u8> {
    text.iter().copied().filter(|b| b.is_ascii() && *b != 0).collect()
}

fn put_text(field: &mut [u8], text: &[u8]) {
    let n = text.len().min(field.len());
    field[..n].copy_from_slice(&text[..n]);
    // A cut name that ends with a slash would be taken for a directory by some readers.
    if text.len() > field.len() && field[field.len() - 1] == b'/' {
        let end = trim_slashes(&text[..field.len() - 1]).len();
        field[end] = 0;
    }
}

fn fits_octal(value: u64, size: usize) -> bool {
    value < 1 << (3 * (size - 1))
}

/// Writes octal digits and NUL; what doesn't fit is 0, with the number in a PAX record.
fn put_octal(field: &mut [u8], value: u64) {
    let value = if fits_octal(value, field.len()) { value } else { 0 };
    let digits = format!("{value:0width$o}", width = field.len() - 1);
    field[..digits.len()].copy_from_slice(digits.as_bytes());
    field[digits.len()..].fill(0);
}

/// Writes the format's mark and the checksum.
fn seal(block: &mut [u8; BLOCK]) {
    block[257..265].copy_from_slice(b"ustar\x0000");
    block[148..156].fill(b' ');
    let sum: u64 = block.iter().map(|b| u64::from(*b)).sum();
    put_octal(&mut block[148..155], sum);
    block[155] = b' ';
}

fn fill_of(size: u64) -> usize {
    // Less than a block.
    (size.wrapping_neg() % BLOCK as u64) as usize
}
