//! `dockerfile.v0`: drives the Dockerfile front end, which does no I/O itself: it says what it must know, and is called again.

use super::{Request, is_builtin};
use crate::build::Build;
use crate::gateway::meta::Metadata;
use crate::gateway::{BuildResult, files};
use crate::progress::Reporter;
use bud_dockerfile::frontend::{
    Caps, Error, ErrorKind, FilesAnswer, FilesQuery, Forward, ImageAnswer, ImageQuery, Need, SourceAnswer, SourceQuery,
    SourceText, Span, Step, Warning,
};
use bud_protocol::control::VertexWarning;
use bud_protocol::errors::{BuildError, Detail, SourcePlace};
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::sync::Arc;

/// A front end that asks more often than this asks for ever.
const ROUNDS: usize = 1000;

/// Makes a result of a Dockerfile.
///
/// # Errors
/// The Dockerfile is wrong, or what it needs isn't there.
pub async fn solve(build: &Arc<Build>, request: &Request) -> Result<BuildResult, BuildError> {
    let mut question = bud_dockerfile::frontend::Request {
        opts: request.opts.clone(),
        session: build.session.clone(),
        platforms: build.daemon.settings.platforms.clone(),
        caps: Caps::All,
        inputs: request.inputs.clone(),
        ..Default::default()
    };
    if leave_out_attestations(&mut question.opts) {
        build.say_once("attestations (provenance, SBOM) are not supported yet: building without them");
    }
    for _ in 0..ROUNDS {
        if build.cancel.is_cancelled() {
            return Err(BuildError::canceled());
        }
        match bud_dockerfile::frontend::lower(&question) {
            Err(error) => {
                warn(build, &error.warnings);
                return Err(convert(error));
            }
            Ok(Step::Need(needs)) => {
                let answers = join_all(needs.into_iter().map(|need| answer(build, need))).await;
                for answer in answers {
                    match answer {
                        Answer::Files(query, answer) => question.answers.files(query, answer),
                        Answer::Image(query, answer) => question.answers.image(query, answer),
                        Answer::Source(query, answer) => question.answers.source(query, answer),
                    }
                }
            }
            Ok(Step::Forward(forward)) => {
                if is_builtin(&forward.source) && !forward.opts.contains_key(&format!("context:{}", forward.source)) {
                    build.say_once(&format!("{} is built in", forward.source));
                    // With `cmdline` the front end does not look at the syntax line again.
                    question.opts = forward.opts;
                    continue;
                }
                return other(build, request, forward).await;
            }
            Ok(Step::Answer(answer)) => {
                return Ok(BuildResult { metadata: answer.metadata, ..BuildResult::default() });
            }
            Ok(Step::Build(made)) => {
                warn(build, &made.warnings);
                if let Some(syntax) = &made.builtin_syntax {
                    build.say_once(&format!("{syntax} is built in"));
                }
                let mut refs = Vec::with_capacity(made.platforms.len());
                for platform in &made.platforms {
                    refs.push((platform.id.clone(), build.lazy(&platform.definition)?));
                }
                let metadata = made.metadata().map_err(|e| BuildError::other(format!("image config: {e}")))?;
                return Ok(BuildResult { refs, multi: made.multi_platform, metadata });
            }
        }
    }
    Err(BuildError::new(tonic::Code::Internal, "the Dockerfile front end asks without an end"))
}

/// Takes away what asks for attestations, so that no scanner is looked for; tells whether a user asked.
fn leave_out_attestations(opts: &mut BTreeMap<String, String>) -> bool {
    let mut asked = opts.iter().any(|(name, value)| {
        name.starts_with("build-arg:BUILDKIT_ATTEST_") && !value.split(',').any(|part| part == "disabled=true")
    });
    opts.retain(|name, value| {
        if !matches!(name.strip_prefix("attest:"), Some("provenance" | "sbom")) {
            return true;
        }
        // Clients add `inline-only` by themselves.
        asked |= !value.split(',').any(|part| matches!(part, "disabled=true" | "inline-only=true"));
        false
    });
    asked
}

enum Answer {
    Files(FilesQuery, FilesAnswer),
    Image(ImageQuery, Result<ImageAnswer, String>),
    Source(SourceQuery, Result<SourceAnswer, String>),
}

async fn answer(build: &Arc<Build>, need: Need) -> Answer {
    match need {
        Need::Files(query) => {
            let answer = read(build, &query).await.map_err(|e| e.message);
            Answer::Files(query, answer)
        }
        Need::Image(query) => {
            let found = match &query.store {
                Some(store) => {
                    let (session, id) = (&store.session, &store.store);
                    build.layout_image(&query.reference, query.platform.as_ref(), session, id, &query.log_name).await
                }
                None => {
                    build.image(&query.reference, query.platform.as_ref(), &query.resolve_mode, &query.log_name).await
                }
            };
            let answer = found
                .map(|image| ImageAnswer {
                    reference: query.reference.clone(),
                    digest: image.digest,
                    config: image.config,
                })
                .map_err(|e| e.message);
            Answer::Image(query, answer)
        }
        Need::Source(query) => {
            let found = build.metadata(&query.op, query.platform.as_ref(), &query.log_name).await;
            let answer = found
                .map(|found| match found {
                    Metadata::Git(git) => SourceAnswer { modified: git.modified, config: None },
                    Metadata::Http(http) => SourceAnswer { modified: http.modified, config: None },
                    Metadata::Image(image) => SourceAnswer { modified: None, config: Some(image.config) },
                    Metadata::None => SourceAnswer::default(),
                })
                .map_err(|e| e.message);
            Answer::Source(query, answer)
        }
    }
}

async fn read(build: &Arc<Build>, query: &FilesQuery) -> Result<Vec<Result<Vec<u8>, String>>, BuildError> {
    let reference = build.lazy(&query.definition)?;
    let value = build.files(&reference).await?;
    let store = &build.daemon.store;
    let mut contents = Vec::with_capacity(query.paths.len());
    for path in &query.paths {
        let limit = query.limit.unwrap_or(0);
        let read = files::read(store, value.clone(), path.clone(), 0, limit).await;
        contents.push(read.map_err(|e| e.message));
    }
    Ok(contents)
}

fn place(text: &SourceText, spans: &[Span]) -> Detail {
    Detail::Source(Box::new(SourcePlace {
        info: Some(text.to_info()),
        ranges: spans.iter().map(|s| s.to_range()).collect(),
    }))
}

fn convert(error: Error) -> BuildError {
    let (code, detail) = match error.kind {
        ErrorKind::Other => (tonic::Code::Unknown, None),
        ErrorKind::FrontendCap(name) => (tonic::Code::Unimplemented, Some(Detail::FrontendCap(name))),
        ErrorKind::Subrequest(name) => (tonic::Code::Unimplemented, Some(Detail::Subrequest(name))),
    };
    let mut converted = BuildError::new(code, error.message);
    if let Some(text) = &error.text {
        converted.details.extend(error.places.iter().map(|spans| place(text, spans)));
    }
    converted.details.extend(detail);
    converted
}

/// Solves with the front end that the Dockerfile names; errors that point nowhere point at its name.
async fn other(build: &Arc<Build>, request: &Request, forward: Forward) -> Result<BuildResult, BuildError> {
    let request = Request {
        definition: None,
        frontend: "gateway.v0".into(),
        opts: forward.opts,
        inputs: request.inputs.clone(),
        depth: request.depth,
    };
    super::solve(build, &request).await.map_err(|error| match &forward.place {
        Some((text, spans)) if error.places().next().is_none() => error.with(place(text, spans)),
        _ => error,
    })
}

fn warn(build: &Build, warnings: &[Warning]) {
    for warning in warnings {
        let reporter = Reporter::single(&build.progress, &warning.vertex);
        let spans = warning.spans.as_deref().unwrap_or_default();
        reporter.warning(VertexWarning {
            level: 1,
            short: warning.short.clone().into_bytes(),
            detail: warning.detail.iter().map(|d| d.clone().into_bytes()).collect(),
            url: warning.url.clone(),
            info: Some(warning.source.to_info()),
            ranges: spans.iter().map(|s| s.to_range()).collect(),
            ..VertexWarning::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attestations_are_left_out_and_nothing_else() {
        let mut opts: BTreeMap<_, _> =
            [("attest:provenance", "mode=max"), ("attest:sbom", ""), ("target", "attest:sbom")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into_iter()
                .collect();
        assert!(leave_out_attestations(&mut opts));
        assert_eq!(opts.keys().collect::<Vec<_>>(), ["target"]);
        assert!(!leave_out_attestations(&mut opts));
        opts.insert("attest:provenance".into(), "mode=min,inline-only=true".into());
        assert!(!leave_out_attestations(&mut opts), "nobody asked for what a client adds");
        opts.insert("build-arg:BUILDKIT_ATTEST_SBOM".into(), "true".into());
        assert!(leave_out_attestations(&mut opts));
    }
}
