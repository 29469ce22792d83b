//! Times the front end on a Dockerfile of 200 lines: `cargo bench -p bud-dockerfile`. Parse, lower and lint are to take less than 1 ms.

use bud_dockerfile::{CheckOptions, ImageAnswer, Need, Request, Step, check, lower};
use std::time::Instant;

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"]},"history":[{"created_by":"x"}],
    "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;

fn dockerfile() -> String {
    let mut text = String::from("# syntax=docker/dockerfile:1\nARG VERSION=1\n");
    for stage in 0..10 {
        text.push_str(&format!("FROM alpine:3.20 AS s{stage}\nARG VERSION\nENV A=1 B=${{VERSION:-2}}\nWORKDIR /src\n"));
        for step in 0..5 {
            text.push_str(&format!("COPY --chown=1:1 a{step} b{step} /d{step}/\n"));
            text.push_str("RUN --mount=type=cache,target=/c make \\\n    all && \\\n    echo $A $VERSION\n");
        }
    }
    text.push_str("FROM scratch\n");
    for stage in 0..10 {
        text.push_str(&format!("COPY --from=s{stage} /d0 /d{stage}\n"));
    }
    text
}

fn main() {
    let text = dockerfile();
    let mut request = Request { session: "s".into(), ..Request::default() };
    let mut rounds = 0;
    while let Ok(Step::Need(needs)) = lower(&request) {
        rounds += 1;
        for need in needs {
            match need {
                Need::Files(query) => {
                    let file = |path: &String| match path.as_str() {
                        "Dockerfile" => Ok(text.clone().into_bytes()),
                        _ => Err("not found".to_owned()),
                    };
                    let files = query.paths.iter().map(file).collect();
                    request.answers.files(query, Ok(files));
                }
                Need::Image(query) => {
                    let reference = query.reference.clone();
                    let answer = ImageAnswer { reference, digest: String::new(), config: CONFIG.to_vec() };
                    request.answers.image(query, Ok(answer));
                }
                Need::Source(_) => {}
            }
        }
    }
    let time = |name: &str, f: &dyn Fn()| {
        let mut best = f64::MAX;
        for _ in 0..200 {
            let start = Instant::now();
            f();
            best = best.min(start.elapsed().as_secs_f64());
        }
        println!("{name}: {:.0} µs", best * 1e6);
    };
    println!("{} lines, {rounds} rounds of questions", text.lines().count());
    time("parse", &|| drop(bud_dockerfile::parse(text.as_bytes())));
    time("parse, lower and lint", &|| drop(lower(&request)));
    time("fix", &|| drop(bud_dockerfile::fix::fix(text.as_bytes(), &Default::default())));
    time("check", &|| drop(check(text.as_bytes(), &CheckOptions::default())));
}
