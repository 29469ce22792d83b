//! The front end run without a world: every image is there and says nothing of itself but its platform.
//!
//! What lint and edits need to know is in the text; what only an image can tell (its variables, its working directory) stays
//! unknown, and callers leave out what would be a guess.

use crate::frontend::{Error, ImageAnswer, Need, Request, SourceAnswer, Step, lower};
use bud_image::Platform;
use std::collections::BTreeMap;

/// A text that asks more often than this goes in circles.
const ROUNDS: usize = 20;

/// Lowers a text with some front-end options.
pub(crate) fn run(text: &[u8], opts: &BTreeMap<String, String>) -> Result<Step, Error> {
    let mut request = Request { opts: opts.clone(), session: "offline".into(), ..Request::default() };
    // The text is ours to read, whatever front end it names.
    request.opts.insert("cmdline".into(), "offline".into());
    request.platforms = vec![Platform { os: "linux".into(), architecture: "amd64".into(), ..Platform::default() }];
    for _ in 0..ROUNDS {
        let Step::Need(needs) = lower(&request)? else { return lower(&request) };
        for need in needs {
            match need {
                Need::Files(query) => {
                    let file = |path: &String| match path.as_str() {
                        "Dockerfile" => Ok(text.to_vec()),
                        other => Err(format!("{other}: file does not exist")),
                    };
                    let files = query.paths.iter().map(file).collect();
                    request.answers.files(query, Ok(files));
                }
                Need::Image(query) => {
                    let answer = ImageAnswer {
                        reference: query.reference.clone(),
                        digest: String::new(),
                        config: config(query.platform.as_ref().unwrap_or(&request.platforms[0])),
                    };
                    request.answers.image(query, Ok(answer));
                }
                Need::Source(query) => request.answers.source(query, Ok(SourceAnswer::default())),
            }
        }
    }
    Err(Error { message: "the text asks without an end".into(), ..Error::default() })
}

/// The config of an image of which nothing is known.
fn config(platform: &Platform) -> Vec<u8> {
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": platform.os, "variant": platform.variant, "config": {},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{}", "0".repeat(64))]},
        "history": [{"created_by": "base"}],
    });
    config.to_string().into_bytes()
}
