//! Reads tars of unknown origin.

use super::header::{Header, Kind, Time, printable};
use super::{BLOCK, MAX_COMPONENT, MAX_EXTENDED, MAX_PATH, TarError, pax};
use std::io::Read;

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE: &[u8] = b"GNU.sparse.";

/// Reads the entries of an uncompressed tar, one after the other.
///
/// What follows the end mark is not looked at; to digest it, read on from [`Reader::into_inner`].
pub struct Reader<R> {
    input: R,
    /// Bytes of the current entry that were not read.
    left: u64,
    /// Fill bytes after them.
    fill: u64,
    /// Name of the current entry, for messages.
    current: Vec<u8>,
    headers: u64,
    ended: bool,
}

/// An entry: its header, and its bytes to [`Read`].
///
/// Reading past a cut in the archive is an error, never a silent end.
pub struct Entry<'a, R> {
    /// What the entry is.
    pub header: Header,
    reader: &'a mut Reader<R>,
}

impl<R: Read> Read for Entry<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.reader.read_body(buffer)
    }
}

impl<R> Entry<'_, R> {
    /// Returns how many bytes are still to be read.
    #[must_use]
    pub fn remaining(&self) -> u64 {
        self.reader.left
    }
}

/// What comes before an entry and belongs to it.
#[derive(Default)]
struct Extended {
    bytes: u64,
    pax: Vec<u8>,
    has_pax: bool,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extended {
    fn is_empty(&self) -> bool {
        !self.has_pax && self.long_name.is_none() && self.long_link.is_none()
    }
}

impl<R: Read> Reader<R> {
    /// Reads a tar from its first byte.
    pub fn new(input: R) -> Self {
        Self { input, left: 0, fill: 0, current: Vec::new(), headers: 0, ended: false }
    }

    /// Returns the stream below, wherever it stands.
    pub fn into_inner(self) -> R {
        self.input
    }

    /// Returns the next entry; none at the end. What was not read of the entry before is skipped.
    ///
    /// # Errors
    /// See [`TarError`]; after one, nothing more can be read.
    pub fn next_entry(&mut self) -> Result<Option<Entry<'_, R>>, TarError> {
        if self.ended {
            return Ok(None);
        }
        match self.next_header() {
            Ok(Some(header)) => Ok(Some(Entry { header, reader: self })),
            Ok(None) => {
                self.ended = true;
                Ok(None)
            }
            Err(error) => {
                self.ended = true;
                Err(error)
            }
        }
    }

    fn next_header(&mut self) -> Result<Option<Header>, TarError> {
        self.skip_body()?;
        let mut extended = Extended::default();
        loop {
            let mut block = [0; BLOCK];
            if !self.read_block(&mut block)? || block.iter().all(|b| *b == 0) {
                if extended.is_empty() {
                    return Ok(None);
                }
                return Err(TarError::Truncated { place: "an extended header that no entry follows".into() });
            }
            let index = self.headers;
            self.headers += 1;
            let damaged = |reason: &str| TarError::Header { index, reason: reason.into() };
            check_sum(&block).map_err(damaged)?;
            match block[156] {
                b'x' => {
                    extended.pax = self.read_extended(&block, &mut extended.bytes, index)?;
                    extended.has_pax = true;
                }
                // Global records (the commit of a `git archive`) say nothing that concerns files here.
                b'g' => {
                    self.read_extended(&block, &mut extended.bytes, index)?;
                }
                b'L' => {
                    let name = self.read_extended(&block, &mut extended.bytes, index)?;
                    extended.long_name = Some(until_nul(&name).to_vec());
                }
                b'K' => {
                    let link = self.read_extended(&block, &mut extended.bytes, index)?;
                    extended.long_link = Some(until_nul(&link).to_vec());
                }
                _ => return self.entry(&block, extended, index).map(Some),
            }
        }
    }

    /// Puts a header together of its block and of what came before.
    fn entry(&mut self, block: &[u8; BLOCK], extended: Extended, index: u64) -> Result<Header, TarError> {
        let damaged = |reason: String| TarError::Header { index, reason };
        let field = |range: std::ops::Range<usize>, what: &str| {
            number(&block[range]).ok_or_else(|| damaged(format!("its {what} is no number")))
        };
        let path = name_of(block);
        // Old archives mark directories by the slash alone.
        let kind = match block[156] {
            0 if path.ends_with(b"/") => Some(Kind::Directory),
            0 | b'0' | b'7' => Some(Kind::File),
            b'1' => Some(Kind::HardLink),
            b'2' => Some(Kind::Symlink),
            b'3' => Some(Kind::CharDevice),
            b'4' => Some(Kind::BlockDevice),
            b'5' => Some(Kind::Directory),
            b'6' => Some(Kind::Fifo),
            _ => None,
        };
        let ustar = is_ustar(block) || is_gnu(block);
        let mut header = Header::new(path, kind.unwrap_or(Kind::File));
        header.link = until_nul(&block[157..257]).to_vec();
        if ustar {
            header.user = until_nul(&block[265..297]).to_vec();
            header.group = until_nul(&block[297..329]).to_vec();
        }
        let mut size = field(124..136, "size")?;
        let mut uid = field(108..116, "owner")?;
        let mut gid = field(116..124, "group")?;
        let mtime = field(136..148, "time")?;
        header.mtime =
            Time { seconds: i64::try_from(mtime).map_err(|_| damaged("its time is out of range".into()))?, nanos: 0 };
        header.mode = u32::try_from(field(100..108, "mode")? & 0o7777).unwrap_or_default();
        let records = pax::records(&extended.pax).map_err(damaged)?;
        for (key, value) in records {
            let no_number = || damaged(format!("its PAX {} is no number", printable(key)));
            match key {
                // An empty value takes a record away: what the header block says, holds.
                b"path" | b"linkpath" | b"size" | b"uid" | b"gid" | b"uname" | b"gname" | b"mtime"
                    if value.is_empty() => {}
                b"path" => header.path = value.to_vec(),
                b"linkpath" => header.link = value.to_vec(),
                b"uname" => header.user = value.to_vec(),
                b"gname" => header.group = value.to_vec(),
                b"size" => size = pax::decimal(value).ok_or_else(no_number)?.into(),
                b"uid" => uid = pax::decimal(value).ok_or_else(no_number)?.into(),
                b"gid" => gid = pax::decimal(value).ok_or_else(no_number)?.into(),
                b"mtime" => header.mtime = pax::time(value).ok_or_else(no_number)?,
                key if key.starts_with(SPARSE) => {
                    return Err(refused(
                        &header,
                        "sparse files in archives are not supported: make it without --sparse",
                    ));
                }
                key if key.starts_with(XATTR) && key.len() > XATTR.len() => {
                    let name = key[XATTR.len()..].to_vec();
                    header.xattrs.retain(|(known, _)| *known != name);
                    header.xattrs.push((name, value.to_vec()));
                }
                _ => {}
            }
        }
        if let Some(name) = extended.long_name {
            header.path = name;
        }
        if let Some(link) = extended.long_link {
            header.link = link;
        }
        if kind.is_none() {
            let flag = block[156];
            let reason = if flag == b'S' {
                "sparse files in archives are not supported: make it without --sparse".into()
            } else {
                format!("type {:?} is not supported", char::from(flag))
            };
            return Err(refused(&header, &reason));
        }
        header.uid = u32::try_from(uid).map_err(|_| refused(&header, "its owner is out of range"))?;
        header.gid = u32::try_from(gid).map_err(|_| refused(&header, "its group is out of range"))?;
        if matches!(header.kind, Kind::CharDevice | Kind::BlockDevice) && ustar {
            let part = |range, what| {
                u32::try_from(field(range, what)?).map_err(|_| damaged(format!("its {what} is out of range")))
            };
            header.device = (part(329..337, "major number")?, part(337..345, "minor number")?);
        }
        check_path(&header)?;
        // Only files have bytes, whatever the size says; star writes the file's for links to it.
        let size = u64::try_from(size).ok().filter(|n| *n <= i64::MAX as u64);
        let size = size.ok_or_else(|| refused(&header, "its size is out of range"))?;
        header.size = if header.kind == Kind::File { size } else { 0 };
        self.left = header.size;
        self.fill = fill_of(header.size);
        self.current.clone_from(&header.path);
        Ok(header)
    }

    /// Reads the body of an extended header: never more than the limit for all of an entry's.
    fn read_extended(&mut self, block: &[u8; BLOCK], used: &mut u64, index: u64) -> Result<Vec<u8>, TarError> {
        let damaged = |reason: String| TarError::Header { index, reason };
        let size = number(&block[124..136]).and_then(|n| u64::try_from(n).ok());
        let size = size.ok_or_else(|| damaged("its size is no number".into()))?;
        *used = used.saturating_add(size);
        if *used > MAX_EXTENDED {
            return Err(damaged(format!("extended headers of over {MAX_EXTENDED} bytes")));
        }
        let whole = size + fill_of(size);
        let mut data = Vec::new();
        (&mut self.input).take(whole).read_to_end(&mut data)?;
        if data.len() as u64 != whole {
            return Err(TarError::Truncated { place: "an extended header".into() });
        }
        data.truncate(usize::try_from(size).unwrap_or(usize::MAX));
        Ok(data)
    }

    /// Reads a block; false at a clean end of the stream.
    fn read_block(&mut self, block: &mut [u8; BLOCK]) -> Result<bool, TarError> {
        let mut have = 0;
        while have < BLOCK {
            match self.input.read(&mut block[have..]) {
                Ok(0) if have == 0 => return Ok(false),
                Ok(0) => return Err(TarError::Truncated { place: "a header".into() }),
                Ok(n) => have += n,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(true)
    }

    fn read_body(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if want == 0 {
            return Ok(0);
        }
        let n = self.input.read(&mut buffer[..want])?;
        if n == 0 {
            let name = printable(&self.current);
            let message = TarError::Truncated { place: format!("{name:?}") }.to_string();
            return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message));
        }
        self.left -= n as u64;
        Ok(n)
    }

    fn skip_body(&mut self) -> Result<(), TarError> {
        let (left, rest) = (self.left, self.left + self.fill);
        (self.left, self.fill) = (0, 0);
        if rest == 0 {
            return Ok(());
        }
        let skipped = std::io::copy(&mut (&mut self.input).take(rest), &mut std::io::sink())?;
        // The last file may lack its filling and the end blocks: some writers forget them, and Go reads such tars.
        if skipped != rest && skipped != left {
            return Err(TarError::Truncated { place: format!("{:?}", printable(&self.current)) });
        }
        Ok(())
    }
}

fn refused(header: &Header, reason: &str) -> TarError {
    TarError::Entry { name: header.display_name(), reason: reason.into() }
}

fn check_path(header: &Header) -> Result<(), TarError> {
    if header.path.is_empty() {
        return Err(refused(header, "it has no name"));
    }
    if header.path.contains(&0) || header.link.contains(&0) {
        return Err(refused(header, "its name or link contains NUL"));
    }
    if header.path.len() > MAX_PATH || header.link.len() > MAX_PATH {
        return Err(refused(header, &format!("its name or link is longer than {MAX_PATH} bytes")));
    }
    let hard_link: &[u8] = if header.kind == Kind::HardLink { &header.link } else { &[] };
    if [&header.path[..], hard_link].iter().any(|path| path.split(|b| *b == b'/').any(|c| c.len() > MAX_COMPONENT)) {
        return Err(refused(header, &format!("a part of its name is longer than {MAX_COMPONENT} bytes")));
    }
    if matches!(header.kind, Kind::HardLink | Kind::Symlink) && header.link.is_empty() {
        return Err(refused(header, "it is a link to nothing"));
    }
    Ok(())
}

fn fill_of(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len())]
}

fn is_ustar(block: &[u8; BLOCK]) -> bool {
    &block[257..263] == b"ustar\0"
}

fn is_gnu(block: &[u8; BLOCK]) -> bool {
    &block[257..265] == b"ustar  \0"
}

fn name_of(block: &[u8; BLOCK]) -> Vec<u8> {
    let name = until_nul(&block[..100]);
    // star keeps two times at the end of what is the prefix elsewhere.
    let prefix = if &block[508..512] == b"tar\0" { &block[345..476] } else { &block[345..500] };
    let prefix = until_nul(prefix);
    if !is_ustar(block) || prefix.is_empty() {
        return name.to_vec();
    }
    [prefix, b"/", name].concat()
}

/// Compares the checksum; some old writers summed signed bytes.
fn check_sum(block: &[u8; BLOCK]) -> Result<(), &'static str> {
    let stored = number(&block[148..156]).ok_or("its checksum is no number")?;
    let counted = block.iter().enumerate().map(|(i, b)| if (148..156).contains(&i) { b' ' } else { *b });
    let (unsigned, signed) = counted
        .fold((0i128, 0i128), |(unsigned, signed), b| (unsigned + i128::from(b), signed + i128::from(b.cast_signed())));
    if stored == unsigned || stored == signed { Ok(()) } else { Err("its checksum is wrong") }
}

/// Parses a number: octal digits with blanks around, or base 256 with the first bit set.
fn number(field: &[u8]) -> Option<i128> {
    let first = *field.first()?;
    if first & 0x80 != 0 {
        // Two's complement without the mark; fields are at most 12 bytes.
        let start = if first & 0x40 != 0 { -1 } else { 0 };
        let bytes = std::iter::once(first & 0x7f | if start < 0 { 0x80 } else { 0 }).chain(field[1..].iter().copied());
        return Some(bytes.fold(start, |n, b| n << 8 | i128::from(b)));
    }
    let text = field.trim_ascii_start();
    let text = &text[text.iter().position(|b| *b != 0).unwrap_or(text.len())..];
    let end = text.iter().position(|b| matches!(b, 0 | b' ')).unwrap_or(text.len());
    if !text[end..].iter().all(|b| matches!(b, 0 | b' ')) {
        return None;
    }
    text[..end].iter().try_fold(0i128, |n, b| {
        let digit = b.checked_sub(b'0').filter(|d| *d < 8)?;
        Some(n << 3 | i128::from(digit))
    })
}
