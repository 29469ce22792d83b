//! Patterns of `${v#p}`, `${v%p}` and `${v/p/r}`: `*` is any text on one line, `?` any one character but a line end.

use super::MAX_EXPANSION;
use std::collections::HashSet;

/// A search gives up beyond this many steps.
const MAX_STEPS: usize = 1_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    Literal(char),
    AnyChar,
    AnyText,
}

struct Pattern {
    tokens: Vec<Token>,
    longest: bool,
    steps: usize,
}

impl Pattern {
    fn new(text: &str, longest: bool) -> Result<Self, String> {
        let invalid = |c: char| format!("invalid pattern ({text}) in substitution: invalid escape '\\{c}'");
        let mut tokens = Vec::new();
        let mut chars = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::AnyText,
                '?' => Token::AnyChar,
                '\\' => match chars.peek() {
                    // What ends a pattern is written with an escape that is no part of it.
                    Some('}' | '/') => continue,
                    Some('*' | '?' | '\\') => Token::Literal(chars.next().unwrap_or('\\')),
                    other => return Err(invalid(other.copied().unwrap_or('\u{fffd}'))),
                },
                c => Token::Literal(c),
            });
        }
        Ok(Self { tokens, longest, steps: 0 })
    }

    /// Finds the first match that begins at `start` or after it (only there if `anchored`).
    ///
    /// Of the matches at one place, the one that a backtracking search finds first wins; each state is tried once.
    fn find(&mut self, text: &[char], start: usize, anchored: bool) -> Result<Option<(usize, usize)>, String> {
        let mut seen: HashSet<(usize, usize)> = HashSet::new();
        for begin in start..=text.len() {
            let mut stack = vec![(0, begin)];
            while let Some((token, at)) = stack.pop() {
                let Some(kind) = self.tokens.get(token) else { return Ok(Some((begin, at))) };
                let plain = *kind != Token::AnyText;
                self.steps += 1;
                if self.steps > MAX_STEPS {
                    return Err("the pattern in the substitution takes too long to match".into());
                }
                let next = text.get(at).copied();
                match kind {
                    Token::Literal(c) if next == Some(*c) => stack.push((token + 1, at + 1)),
                    Token::AnyChar if next.is_some_and(|c| c != '\n') => stack.push((token + 1, at + 1)),
                    Token::AnyText => {
                        if !seen.insert((token, at)) {
                            continue;
                        }
                        let more = next.is_some_and(|c| c != '\n').then_some((token, at + 1));
                        if self.longest {
                            stack.push((token + 1, at));
                            stack.extend(more);
                        } else {
                            stack.extend(more);
                            stack.push((token + 1, at));
                        }
                    }
                    _ => debug_assert!(plain),
                }
            }
            if anchored {
                break;
            }
        }
        Ok(None)
    }
}

/// Takes the shortest or longest match of a pattern off the beginning.
pub(super) fn trim_prefix(pattern: &str, value: &str, longest: bool) -> Result<String, String> {
    let chars: Vec<char> = value.chars().collect();
    let end = Pattern::new(pattern, longest)?.find(&chars, 0, true)?.map_or(0, |(_, end)| end);
    Ok(chars[end..].iter().collect())
}

/// Takes the shortest or longest match of a pattern off the end.
pub(super) fn trim_suffix(pattern: &str, value: &str, longest: bool) -> Result<String, String> {
    let reversed: String = value.chars().rev().collect();
    let rest = trim_prefix(&reverse_pattern(pattern), &reversed, longest)?;
    Ok(rest.chars().rev().collect())
}

/// Reverses a pattern; an escape stays before what it escapes.
fn reverse_pattern(pattern: &str) -> String {
    let mut pieces: Vec<String> = Vec::new();
    let mut chars = pattern.chars();
    while let Some(c) = chars.next() {
        let mut piece = String::from(c);
        if c == '\\' {
            piece.extend(chars.next());
        }
        pieces.push(piece);
    }
    pieces.into_iter().rev().collect()
}

/// Replaces the first or all matches of a pattern. With `all`, `$0` in the replacement stands for the match, as in Go's
/// regular expressions, and other `$names` for nothing.
pub(super) fn replace(pattern: &str, value: &str, replacement: &str, all: bool) -> Result<String, String> {
    let mut pattern = Pattern::new(pattern, true)?;
    let chars: Vec<char> = value.chars().collect();
    if !all {
        let Some((begin, end)) = pattern.find(&chars, 0, false)? else { return Ok(value.to_owned()) };
        let mut out: String = chars[..begin].iter().collect();
        out.push_str(replacement);
        out.extend(&chars[end..]);
        return Ok(out);
    }
    let mut out = String::new();
    let (mut done, mut at) = (0, 0);
    while at <= chars.len() {
        let Some((begin, end)) = pattern.find(&chars, at, false)? else { break };
        out.extend(&chars[done..begin]);
        // No empty match right after another match.
        if end > done || begin == 0 {
            expand_template(replacement, &chars[begin..end], &mut out);
        }
        if out.len() > 2 * MAX_EXPANSION {
            return Err(format!("the text is longer than {MAX_EXPANSION} bytes when its variables are expanded"));
        }
        done = end;
        at = if at < end { end } else { at + 1 };
    }
    out.extend(&chars[done.min(chars.len())..]);
    Ok(out)
}

fn expand_template(template: &str, matched: &[char], out: &mut String) {
    let mut rest = template;
    while let Some(dollar) = rest.find('$') {
        out.push_str(&rest[..dollar]);
        rest = &rest[dollar + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let word = |text: &str| text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
        let braced = rest.strip_prefix('{');
        let inner = braced.unwrap_or(rest);
        let len = word(inner);
        let closed = braced.is_none() || inner[len..].starts_with('}');
        if len == 0 || !closed {
            out.push('$');
            continue;
        }
        if inner[..len].bytes().all(|b| b == b'0') {
            out.extend(matched);
        }
        rest = &inner[len + usize::from(braced.is_some())..];
    }
    out.push_str(rest);
}
