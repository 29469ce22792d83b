//! Front ends: what makes of a request a result.

pub mod dockerfile;
pub mod image;

use crate::build::Build;
use crate::gateway::{BuildResult, Ref};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use std::collections::BTreeMap;
use std::pin::Pin;
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
    /// How many front ends in containers are above the one that asks.
    pub depth: usize,
}

/// Solves a request; the result's references are lazy.
///
/// # Errors
/// The definition is not sound, there is no such front end, or it fails.
pub fn solve<'a>(build: &'a Arc<Build>, request: &'a Request) -> Solving<'a> {
    Box::pin(find(build, request))
}

/// A front end may solve with another one, so the type must not hold itself.
pub type Solving<'a> = Pin<Box<dyn Future<Output = Result<BuildResult, BuildError>> + Send + 'a>>;

async fn find(build: &Arc<Build>, request: &Request) -> Result<BuildResult, BuildError> {
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
            if is_builtin(source) && !request.opts.contains_key(&format!("context:{source}")) {
                if source != "dockerfile.v0" {
                    build.say_once(&format!("{source} is built in"));
                }
                return dockerfile::solve(build, request).await;
            }
            image::solve(build, request, source).await
        }
        other => Err(BuildError::not_found(format!("frontend {other:?} not found"))),
    }
}

/// Tells whether a front end image is the Dockerfile language's own, in a version that is built in.
#[must_use]
pub fn is_builtin(source: &str) -> bool {
    source == "dockerfile.v0" || bud_dockerfile::is_builtin_syntax(source)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_languages_own_images_are_built_in() {
        for own in ["dockerfile.v0", "docker/dockerfile:1", "docker.io/docker/dockerfile:1.7-labs"] {
            assert!(is_builtin(own), "{own}");
        }
        for other in [
            "evil.test/f",
            "docker/dockerfile-evil",
            "evil.test/docker/dockerfile:1",
            "docker/dockerfile-upstream:master",
            "",
            "..",
        ] {
            assert!(!is_builtin(other), "{other}");
        }
    }
}
