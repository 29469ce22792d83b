//! Front ends: what makes of a request a result.

pub mod dockerfile;

use crate::build::Build;
use crate::gateway::{BuildResult, Ref};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is to be solved: a definition, or a front end's work.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// A definition, if no front end is named.
    pub definition: Option<pb::Definition>,
    /// `dockerfile.v0`, `gateway.v0`, or nothing.
    pub frontend: String,
    /// The front end's options.
    pub opts: BTreeMap<String, String>,
    /// The front end's inputs.
    pub inputs: BTreeMap<String, pb::Definition>,
}

/// Solves a request; the result's references are lazy.
///
/// # Errors
/// The definition is not sound, there is no such front end, or it fails.
pub async fn solve(build: &Arc<Build>, request: &Request) -> Result<BuildResult, BuildError> {
    match request.frontend.as_str() {
        "" => {
            let reference = match &request.definition {
                Some(definition) => build.lazy(definition)?,
                None => Ref::default(),
            };
            Ok(BuildResult::single(reference))
        }
        "dockerfile.v0" => dockerfile::solve(build, request).await,
        "gateway.v0" => {
            let source = request.opts.get("source").map(String::as_str).unwrap_or_default();
            if source.is_empty() {
                return Err(BuildError::invalid("gateway.v0 needs an option \"source\""));
            }
            if is_dockerfile(source) && !request.opts.contains_key(&format!("context:{source}")) {
                return dockerfile::solve(build, request).await;
            }
            Err(BuildError::new(
                tonic::Code::Unimplemented,
                format!(
                    "front end image {source:?} is not supported by this daemon: only Dockerfile's own syntax images are, which it has built in"
                ),
            ))
        }
        other => Err(BuildError::not_found(format!("frontend {other:?} not found"))),
    }
}

/// Tells whether a front end image is the Dockerfile language's own, which is built in.
#[must_use]
pub fn is_dockerfile(source: &str) -> bool {
    if source == "dockerfile.v0" {
        return true;
    }
    let Ok(reference) = bud_image::ImageRef::parse(source) else { return false };
    reference.name() == "docker.io/docker/dockerfile" || reference.name() == "docker.io/docker/dockerfile-upstream"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_languages_own_images_are_built_in() {
        for own in [
            "dockerfile.v0",
            "docker/dockerfile:1",
            "docker.io/docker/dockerfile:1.7-labs",
            "docker/dockerfile-upstream:master",
        ] {
            assert!(is_dockerfile(own), "{own}");
        }
        for other in ["evil.test/f", "docker/dockerfile-evil", "evil.test/docker/dockerfile:1", "", ".."] {
            assert!(!is_dockerfile(other), "{other}");
        }
    }
}
