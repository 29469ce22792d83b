//! Any Dockerfile through the whole front end, with a world that answers every question.
//!
//! The first byte chooses options; what it needs is answered until there is a build or an error.
#![no_main]

use bud_dockerfile::{ImageAnswer, Need, Request, SourceAnswer, Step, lower};

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"],"OnBuild":["RUN x","COPY a b"]},
    "history":[{"created_by":"x"}],
    "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;

libfuzzer_sys::fuzz_target!(|input: &[u8]| {
    let Some((&options, text)) = input.split_first() else { return };
    let mut request = Request { session: "s".into(), ..Request::default() };
    let mut set = |bit: u8, name: &str, value: &str| {
        if options & bit != 0 {
            request.opts.insert(name.to_owned(), value.to_owned());
        }
    };
    set(1, "platform", "linux/amd64,linux/arm64");
    set(2, "target", "a");
    set(4, "build-arg:A", "$B ${A:-x}");
    set(8, "context:b", "docker-image://busybox");
    set(16, "no-cache", "");
    set(32, "build-arg:SOURCE_DATE_EPOCH", "1");
    set(64, "requestid", "frontend.outline");
    set(128, "add-hosts", "a=1.2.3.4");
    for _ in 0..64 {
        let needs = match lower(&request) {
            Ok(Step::Need(needs)) => needs,
            _ => return,
        };
        assert!(!needs.is_empty(), "it waits for nothing");
        for need in needs {
            match need {
                Need::Files(query) => {
                    let read = |path: &String| match path.as_str() {
                        "Dockerfile" => Ok(text.to_vec()),
                        other => Err(format!("{other}: no such file")),
                    };
                    let files = query.paths.iter().map(read).collect();
                    request.answers.files(query, Ok(files));
                }
                Need::Image(query) => {
                    let reference = query.reference.clone();
                    let answer = ImageAnswer { reference, digest: String::new(), config: CONFIG.to_vec() };
                    request.answers.image(query, Ok(answer));
                }
                Need::Source(query) => request.answers.source(query, Ok(SourceAnswer::default())),
            }
        }
    }
    // A question for each base and source: a text that has more of them than rounds is fine, but must get on.
});
