//! Mode changes as `chmod` writes them.

use crate::fileop::{FileOpError, ModeChange};

const SET_UID: u32 = 0o4000;
const SET_GID: u32 = 0o2000;
const STICKY: u32 = 0o1000;

/// A parsed change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Set(u32),
    Clauses(Vec<Clause>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Clause {
    /// Bits of the classes that are changed: 0700, 070, 07 and the special ones that go with them.
    who: u32,
    op: u8,
    perms: Perms,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Perms {
    /// `r`, `w`, `x`, `s`, `t`; true for `X`.
    Bits { bits: u32, execute_if_any: bool },
    /// Copied from a class: its shift.
    From(u32),
}

impl Change {
    pub(crate) fn parse(change: &ModeChange) -> Result<Self, FileOpError> {
        let text = match change {
            ModeChange::Bits(bits) if *bits <= 0o7777 => return Ok(Self::Set(*bits)),
            ModeChange::Bits(bits) => {
                return Err(FileOpError::Invalid(format!("invalid mode {bits:o}: more than 07777")));
            }
            ModeChange::Symbolic(text) => text.trim(),
        };
        let invalid = |why: &str| FileOpError::Invalid(format!("invalid mode {text:?}: {why}"));
        if text.len() > 1000 {
            return Err(FileOpError::Invalid("invalid mode: too long".into()));
        }
        if text.starts_with(|c: char| c.is_ascii_digit()) {
            let bits = u32::from_str_radix(text, 8).map_err(|_| invalid("it is no octal number"))?;
            return if bits <= 0o7777 { Ok(Self::Set(bits)) } else { Err(invalid("more than 07777")) };
        }
        let mut clauses = Vec::new();
        for part in text.split(',') {
            let mut bytes = part.bytes().peekable();
            let mut who = 0;
            while let Some(class) = bytes.peek().and_then(|c| match c {
                b'u' => Some(0o700 | SET_UID),
                b'g' => Some(0o070 | SET_GID),
                b'o' => Some(0o007 | STICKY),
                b'a' => Some(0o7777),
                _ => None,
            }) {
                who |= class;
                bytes.next();
            }
            if who == 0 {
                who = 0o7777;
            }
            let mut any = false;
            while let Some(op) = bytes.next_if(|c| matches!(c, b'+' | b'-' | b'=')) {
                any = true;
                let from = bytes.peek().and_then(|c| match c {
                    b'u' => Some(6),
                    b'g' => Some(3),
                    b'o' => Some(0),
                    _ => None,
                });
                if let Some(shift) = from {
                    bytes.next();
                    clauses.push(Clause { who, op, perms: Perms::From(shift) });
                    continue;
                }
                let (mut bits, mut execute_if_any) = (0, false);
                while let Some(bit) = bytes.next_if(|c| b"rwxXst".contains(c)) {
                    match bit {
                        b'r' => bits |= 0o444,
                        b'w' => bits |= 0o222,
                        b'x' => bits |= 0o111,
                        b'X' => execute_if_any = true,
                        b's' => bits |= SET_UID | SET_GID,
                        _ => bits |= STICKY,
                    }
                }
                clauses.push(Clause { who, op, perms: Perms::Bits { bits, execute_if_any } });
            }
            if !any || bytes.next().is_some() {
                return Err(invalid("expected something like u=rwX,go=rX"));
            }
        }
        Ok(Self::Clauses(clauses))
    }

    /// Returns the new mode of an entry.
    pub(crate) fn apply(&self, mode: u32, is_dir: bool) -> u32 {
        let clauses = match self {
            Self::Set(bits) => return *bits,
            Self::Clauses(clauses) => clauses,
        };
        clauses.iter().fold(mode, |mode, clause| {
            let bits = match clause.perms {
                Perms::From(shift) => {
                    let class = mode >> shift & 7;
                    class << 6 | class << 3 | class
                }
                Perms::Bits { bits, execute_if_any } => {
                    let execute = execute_if_any && (is_dir || mode & 0o111 != 0);
                    bits | if execute { 0o111 } else { 0 }
                }
            } & clause.who;
            match clause.op {
                b'+' => mode | bits,
                b'-' => mode & !bits,
                _ => {
                    // Like chmod: the sticky bit goes with `o` or all, a directory's set-id bits stay unless named.
                    let special = if is_dir { SET_UID | SET_GID } else { 0 };
                    mode & !(clause.who & !special) | bits
                }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// testFileOpCopyChmodText, testChmodNonOctal: the same bits as chmod gives.
    #[test]
    fn symbolic_modes_are_those_of_chmod() {
        for (text, before, dir, after) in [
            ("go-w", 0o666, false, 0o644),
            ("o-rwx,g+x", 0o755, false, 0o750),
            ("u=rwx,g=,o=", 0o644, false, 0o700),
            ("u+rw,g+r,o-x,o+w", 0o001, false, 0o642),
            ("a+X", 0o644, false, 0o644),
            ("a+X", 0o744, false, 0o755),
            ("a+X", 0o644, true, 0o755),
            ("g+rw,o+rw", 0o600, false, 0o666),
            ("u=rwX,go=rX", 0o600, true, 0o755),
            ("u=rwX,go=rX", 0o777, false, 0o755),
            ("u=rwX,go=rX", 0o666, false, 0o644),
            ("u=rw,g=r,o=r", 0o777, false, 0o644),
            ("g=u", 0o640, false, 0o660),
            ("+t", 0o755, true, 0o1755),
            ("u+s", 0o755, false, 0o4755),
            ("0644", 0o777, false, 0o644),
            ("755", 0o1, false, 0o755),
        ] {
            let change = Change::parse(&ModeChange::Symbolic(text.into())).unwrap();
            assert_eq!(
                change.apply(before, dir),
                after,
                "{text} on {before:o} dir={dir}: {:o}",
                change.apply(before, dir)
            );
        }
        for bad in ["", "64a", "10000", "u", "u=q", "=,", "z+r", "u+rz"] {
            assert!(Change::parse(&ModeChange::Symbolic(bad.into())).is_err(), "{bad}");
        }
        assert!(Change::parse(&ModeChange::Bits(0o177777)).is_err());
    }
}
