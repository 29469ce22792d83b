//! Paths of Linux and Windows images. Inside LLB a path is absolute, with forward slashes and without a drive.

use bud_patterns::clean::clean;

/// `PATH` where an image sets none.
pub(crate) const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Joins two paths and cleans the result; empty ones don't count.
pub(crate) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, true) => String::new(),
        (true, false) => clean(b),
        (false, true) => clean(a),
        (false, false) => clean(&format!("{a}/{b}")),
    }
}

/// Returns the last element of a path.
pub(crate) fn base(path: &str) -> &str {
    if path.is_empty() {
        return ".";
    }
    let trimmed = path.trim_end_matches('/');
    if trimmed.is_empty() {
        return "/";
    }
    trimmed.rsplit('/').next().unwrap_or(trimmed)
}

/// Returns all of a path but its last element.
pub(crate) fn dir(path: &str) -> String {
    clean(&path[..path.rfind('/').map_or(0, |i| i + 1)])
}

fn is_windows(os: &str) -> bool {
    os == "windows"
}

/// Replaces the backslashes of a Windows path.
pub(crate) fn to_slash(path: &str, os: &str) -> String {
    if is_windows(os) { path.replace('\\', "/") } else { path.to_owned() }
}

fn from_slash(path: &str, os: &str) -> String {
    if is_windows(os) { path.replace('/', "\\") } else { path.to_owned() }
}

/// Tells whether a path is absolute within an image of that operating system.
pub(crate) fn is_absolute(path: &str, os: &str) -> bool {
    strip_drive(path, os, false).is_ok_and(|p| to_slash(&p, os).starts_with('/'))
}

/// Takes the drive letter off a Windows path, which must be that of the system drive.
pub(crate) fn strip_drive(path: &str, os: &str, keep_slash: bool) -> Result<String, String> {
    if !is_windows(os) {
        return Ok(path.to_owned());
    }
    if path.len() == 2 && path.ends_with(':') {
        return Err(format!("No relative path specified in {}", super::quote::quote(path)));
    }
    if path.get(..2).is_some_and(|start| to_slash(start, os) == "//") {
        return Err("UNC paths are not supported".into());
    }
    let rest = match path.split_once(':') {
        None => path,
        Some((drive, rest)) if drive.eq_ignore_ascii_case("c") => rest,
        Some(_) => return Err("The specified path is not on the system drive (C:)".into()),
    };
    let slashed = to_slash(rest, os);
    let mut cleaned = clean(&slashed);
    if keep_slash && cleaned.len() > 1 && slashed.ends_with('/') {
        cleaned.push('/');
    }
    Ok(cleaned)
}

/// Makes a path absolute, below `parent` if it is relative; a slash (or `/.`) at its end can be kept.
pub(crate) fn normalize(parent: &str, path: &str, os: &str, keep_slash: bool) -> Result<String, String> {
    let within = |e: String| format!("removing drive letter: {e}");
    let original = to_slash(path, os);
    let parent = to_slash(parent, os);
    let mut parent = strip_drive(if parent.is_empty() { "/" } else { &parent }, os, keep_slash).map_err(within)?;
    if !is_absolute(&parent, os) {
        parent = join("/", &parent);
    }
    let path = if original.is_empty() { parent.clone() } else { original.clone() };
    let mut path = strip_drive(&path, os, keep_slash).map_err(within)?;
    if !is_absolute(&path, os) {
        path = join(&parent, &path);
    }
    if keep_slash {
        if original.ends_with('/') && !path.ends_with('/') {
            path.push('/');
        } else if original.ends_with("/.") {
            if path != "/" {
                path.push('/');
            }
            path.push('.');
        }
    }
    Ok(to_slash(&path, os))
}

/// Resolves a `WORKDIR` against the current one, in the operating system's own form.
pub(crate) fn normalize_workdir(current: &str, path: &str, os: &str) -> Result<String, String> {
    let path = normalize(current, path, os, false).map_err(|e| format!("normalizing working directory: {e}"))?;
    Ok(from_slash(&path, os))
}

/// Cleans a path of a file operation; relative ones are below `parent`.
pub(crate) fn of_action(parent: &str, original: &str, keep_slash: bool) -> String {
    let mut path = clean(original);
    if !path.starts_with('/') {
        path = join("/", &join(parent, &path));
    }
    if keep_slash {
        if original.ends_with('/') && !path.ends_with('/') {
            path.push('/');
        } else if original.ends_with("/.") {
            if path != "/" {
                path.push('/');
            }
            path.push('.');
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_paths() {
        assert_eq!(normalize("/a", "b/", "linux", true).unwrap(), "/a/b/");
        assert_eq!(normalize("/a", "./", "linux", true).unwrap(), "/a/");
        assert_eq!(normalize("/a", "b/.", "linux", true).unwrap(), "/a/b/.");
        assert_eq!(normalize_workdir("/a", "../x", "linux").unwrap(), "/x");
        assert_eq!((base("/a/b/"), base("/"), base("")), ("b", "/", "."));
        assert_eq!((dir("a"), dir("a/b")), (".".to_owned(), "a".to_owned()));
    }

    #[test]
    fn windows_paths() {
        assert_eq!(normalize("/", r"C:\foo\bar\", "windows", true).unwrap(), "/foo/bar/");
        assert_eq!(normalize_workdir(r"\a", "b", "windows").unwrap(), r"\a\b");
        assert!(normalize("/", "D:/x", "windows", false).unwrap_err().contains("not on the system drive"));
        assert!(normalize("/", "C:", "windows", false).unwrap_err().contains("No relative path"));
    }
}
