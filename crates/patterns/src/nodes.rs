//! A pattern as a small non-deterministic automaton over characters, run with one bit a node.

use crate::BadPattern;

/// Whether `**` means any number of path elements.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `filepath.Match`: two stars are one star.
    Match,
    /// `.dockerignore`: `**` crosses separators, `**/` may also be nothing.
    Ignore,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    /// This character.
    Char(char),
    /// `?`: one character but `/`.
    One,
    /// `*`: any number of characters but `/`.
    Star,
    /// Any number of any characters.
    Any,
    /// Also goes on `skip` nodes further, without taking a character.
    Fork { skip: usize },
    /// `[...]`.
    Class { negated: bool, ranges: Vec<(char, char)> },
}

/// A compiled pattern.
#[derive(Debug, Clone)]
pub(crate) struct Nodes {
    nodes: Vec<Node>,
    /// Bytes that every match begins with.
    prefix: String,
    /// How many nodes `prefix` stands for.
    prefix_nodes: usize,
}

impl Nodes {
    pub(crate) fn compile(pattern: &str, dialect: Dialect) -> Result<Nodes, BadPattern> {
        let bad = |reason| BadPattern::new(pattern, reason);
        let mut nodes = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            match c {
                '*' if dialect == Dialect::Ignore && chars.peek() == Some(&'*') => {
                    chars.next();
                    if chars.peek() == Some(&'/') {
                        chars.next();
                    }
                    if chars.peek().is_none() {
                        nodes.push(Node::Any);
                    } else {
                        nodes.extend([Node::Fork { skip: 3 }, Node::Any, Node::Char('/')]);
                    }
                }
                '*' => nodes.push(Node::Star),
                '?' => nodes.push(Node::One),
                '\\' => match chars.next() {
                    Some(c) => nodes.push(Node::Char(c)),
                    None => return Err(bad("it ends in a backslash")),
                },
                '[' => nodes.push(class(&mut chars).map_err(bad)?),
                c => nodes.push(Node::Char(c)),
            }
        }
        let mut prefix = String::new();
        let mut prefix_nodes = 0;
        for node in &nodes {
            let Node::Char(c) = node else { break };
            prefix.push(*c);
            prefix_nodes += 1;
        }
        Ok(Nodes { nodes, prefix, prefix_nodes })
    }

    /// Tells whether the pattern is a plain string, and which.
    pub(crate) fn literal(&self) -> Option<&str> {
        (self.prefix_nodes == self.nodes.len()).then_some(self.prefix.as_str())
    }

    /// Tells whether a `/` can be taken by something else than a `/` in the pattern.
    pub(crate) fn crosses_separators(&self) -> bool {
        self.nodes.iter().any(|node| match node {
            Node::Any => true,
            Node::Class { .. } => takes(node, '/'),
            _ => false,
        })
    }

    pub(crate) fn matches(&self, path: &[u8]) -> bool {
        let Some(rest) = path.strip_prefix(self.prefix.as_bytes()) else {
            return false;
        };
        let nodes = &self.nodes[self.prefix_nodes..];
        if nodes.is_empty() {
            return rest.is_empty();
        }
        let words = nodes.len() / 64 + 1;
        if words == 1 {
            run(nodes, rest, &mut [0], &mut [0])
        } else {
            run(nodes, rest, &mut vec![0; words], &mut vec![0; words])
        }
    }
}

/// Reads a class after its `[`.
fn class(chars: &mut std::iter::Peekable<std::str::Chars>) -> Result<Node, &'static str> {
    const OPEN: &str = "a [ has no ]";
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    loop {
        if !ranges.is_empty() && chars.next_if_eq(&']').is_some() {
            return Ok(Node::Class { negated, ranges });
        }
        let mut end = || match chars.next() {
            None => Err(OPEN),
            Some('-' | ']') => Err("a [ ] has an end of a range missing"),
            Some('\\') => chars.next().ok_or(OPEN),
            Some(c) => Ok(c),
        };
        let low = end()?;
        let high = if chars.next_if_eq(&'-').is_some() {
            let mut end = || match chars.next() {
                None => Err(OPEN),
                Some('-' | ']') => Err("a [ ] has an end of a range missing"),
                Some('\\') => chars.next().ok_or(OPEN),
                Some(c) => Ok(c),
            };
            end()?
        } else {
            low
        };
        ranges.push((low, high));
        if chars.peek().is_none() {
            return Err(OPEN);
        }
    }
}

fn takes(node: &Node, c: char) -> bool {
    match node {
        Node::Char(want) => *want == c,
        Node::One | Node::Star => c != '/',
        Node::Any => true,
        Node::Fork { .. } => false,
        Node::Class { negated, ranges } => ranges.iter().any(|&(low, high)| low <= c && c <= high) != *negated,
    }
}

fn set(bits: &mut [u64], i: usize) {
    bits[i / 64] |= 1 << (i % 64);
}

/// Adds to `bits` what is reached without a character. All such steps lead forward, so one ascending pass does it.
fn close(nodes: &[Node], bits: &mut [u64]) {
    for (i, node) in nodes.iter().enumerate() {
        if bits[i / 64] & (1 << (i % 64)) == 0 {
            continue;
        }
        match node {
            Node::Star | Node::Any => set(bits, i + 1),
            Node::Fork { skip } => {
                set(bits, i + 1);
                set(bits, i + skip);
            }
            _ => {}
        }
    }
}

fn run(nodes: &[Node], text: &[u8], now: &mut [u64], next: &mut [u64]) -> bool {
    let mut now = now;
    let mut next = next;
    now[0] = 1;
    close(nodes, now);
    let mut rest = text;
    while let Some((c, width)) = first_char(rest) {
        rest = &rest[width..];
        next.fill(0);
        let mut alive = false;
        for (word, &bits) in now.iter().enumerate() {
            let mut bits = bits;
            while bits != 0 {
                let i = word * 64 + bits.trailing_zeros() as usize;
                bits &= bits - 1;
                let Some(node) = nodes.get(i) else { continue };
                if takes(node, c) {
                    let stays = matches!(node, Node::Star | Node::Any);
                    set(next, if stays { i } else { i + 1 });
                    alive = true;
                }
            }
        }
        if !alive {
            return false;
        }
        close(nodes, next);
        std::mem::swap(&mut now, &mut next);
    }
    let end = nodes.len();
    now[end / 64] & (1 << (end % 64)) != 0
}

/// Decodes the first character; a byte that is not UTF-8 is one U+FFFD, as in Go.
fn first_char(text: &[u8]) -> Option<(char, usize)> {
    let &first = text.first()?;
    if first < 0x80 {
        return Some((first as char, 1));
    }
    let longest = &text[..text.len().min(4)];
    let valid = match std::str::from_utf8(longest) {
        Ok(text) => text,
        // The part before the error is valid by definition.
        Err(error) => std::str::from_utf8(&longest[..error.valid_up_to()]).unwrap_or(""),
    };
    match valid.chars().next() {
        Some(c) => Some((c, c.len_utf8())),
        None => Some((char::REPLACEMENT_CHARACTER, 1)),
    }
}
