//! `# syntax=`: which front ends this one does for.

use bud_image::ImageRef;

/// The newest version of the Dockerfile language that is built in.
const VERSION: (u32, u32) = (1, 26);

/// Tells whether an image is the Dockerfile front end in a version that is built in.
pub(crate) fn is_builtin(image: &str) -> bool {
    let Ok(reference) = ImageRef::parse(image) else { return false };
    if reference.domain != "docker.io"
        || !matches!(reference.path.as_str(), "docker/dockerfile" | "docker/dockerfile-upstream")
    {
        return false;
    }
    // A digest alone does not tell which version it is.
    let Some(tag) = reference.tag.as_deref().or_else(|| reference.digest.is_none().then_some("latest")) else {
        return false;
    };
    let version = tag.strip_suffix("-labs").unwrap_or(tag);
    if matches!(version, "latest" | "labs") {
        return reference.path == "docker/dockerfile";
    }
    let numbers: Option<Vec<u32>> = version.split('.').map(|part| part.parse().ok()).collect();
    match numbers.as_deref() {
        Some([major]) => *major == VERSION.0,
        Some([major, minor] | [major, minor, _]) => *major == VERSION.0 && *minor <= VERSION.1,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_versions_are_built_in() {
        for yes in ["docker/dockerfile:1", "docker/dockerfile:1.7.0", "docker/dockerfile", "docker/dockerfile:1.4-labs"]
        {
            assert!(is_builtin(yes), "{yes}");
        }
        let digest = "a".repeat(64);
        assert!(is_builtin(&format!("docker/dockerfile:1@sha256:{digest}")));
        assert!(!is_builtin(&format!("docker/dockerfile@sha256:{digest}")));
        for no in ["docker/dockerfile:2", "docker/dockerfile:1.99", "foo/bar", "docker/dockerfile-upstream:master"] {
            assert!(!is_builtin(no), "{no}");
        }
    }
}
