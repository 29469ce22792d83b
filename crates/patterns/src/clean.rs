//! Lexical path cleaning, as Go's `path.Clean`.

/// Returns the shortest path that means the same lexically: no `.`, no doubled or trailing slash, `..` taken back where
/// it can be. The empty path is `.`.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            name => parts.push(name),
        }
    }
    let joined = parts.join("/");
    match (rooted, joined.is_empty()) {
        (true, _) => format!("/{joined}"),
        (false, true) => ".".to_owned(),
        (false, false) => joined,
    }
}

/// Returns `path` cleaned as if the root of the tree were `/`: relative, without `..`, empty for the root itself.
pub fn clean_in_root(path: &str) -> String {
    clean(&format!("/{path}")).split_off(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cleans_like_go() {
        for (path, want) in [
            ("", "."),
            (".", "."),
            ("/", "/"),
            ("a/b/..", "a"),
            ("a/../..", ".."),
            ("../a", "../a"),
            ("../../a/..", "../.."),
            ("/../a", "/a"),
            ("a//b/./c/", "a/b/c"),
            ("a/..", "."),
            ("/a/../..", "/"),
        ] {
            assert_eq!(clean(path), want, "{path:?}");
        }
    }

    #[test]
    fn the_root_is_never_left() {
        for (path, want) in [("", ""), ("/", ""), ("..", ""), ("../../x", "x"), ("a/../../b/", "b"), ("/a/b", "a/b")] {
            assert_eq!(clean_in_root(path), want, "{path:?}");
        }
    }
}
