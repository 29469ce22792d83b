//! Small Dockerfiles, and what a real BuildKit (front end 1.26-dev) made of them: the digests of all vertices and the names of
//! the steps, or the error. `data/recorded.jsonl` has a line for each; the texts were made up at random for this test.

use bud_dockerfile::{Error, Need, Request, Step, lower};
use bud_image::Platform;
use bud_protocol::llb;
use serde_json::Value;
use std::collections::BTreeSet;

fn build(text: &str, session: &str) -> Result<Step, Error> {
    let mut request = Request {
        session: session.into(),
        platforms: vec![Platform { os: "linux".into(), architecture: "amd64".into(), ..Platform::default() }],
        ..Request::default()
    };
    request.opts.insert("cmdline".into(), "none".into());
    loop {
        let Step::Need(needs) = lower(&request)? else { return lower(&request) };
        for need in needs {
            match need {
                Need::Files(query) => {
                    let file = |path: &String| match path.as_str() {
                        "Dockerfile" => Ok(text.as_bytes().to_vec()),
                        other => Err(format!("{other}: not found")),
                    };
                    let files = query.paths.iter().map(file).collect();
                    request.answers.files(query, Ok(files));
                }
                Need::Image(query) => panic!("asks for {}", query.reference),
                Need::Source(query) => panic!("asks for {}", query.op.identifier),
            }
        }
    }
}

#[test]
fn the_same_vertices_as_a_real_buildkit() {
    let records = include_str!("data/recorded.jsonl");
    let (mut builds, mut errors) = (0, 0);
    for line in records.lines() {
        let record: Value = serde_json::from_str(line).unwrap();
        let text = record["dockerfile"].as_str().unwrap();
        let outcome = build(text, record["session"].as_str().unwrap_or("s"));
        if let Some(error) = record["error"].as_str() {
            let got = outcome.map(|_| ()).unwrap_err();
            assert!(got.message.contains(error), "{text}\nwanted {error}\ngot    {got}");
            errors += 1;
            continue;
        }
        let Step::Build(build) = outcome.unwrap_or_else(|e| panic!("{text}\n{e}")) else { panic!("no build: {text}") };
        let definition = &build.platforms[0].definition;
        let digests: BTreeSet<String> = definition.def.iter().map(|bytes| llb::op_digest(bytes)).collect();
        let names: BTreeSet<&str> = definition
            .metadata
            .values()
            .filter_map(|m| m.description.get("llb.customname"))
            .map(String::as_str)
            .collect();
        let wanted = |key: &str| -> BTreeSet<String> {
            record[key].as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names.iter().map(|n| (*n).to_owned()).collect::<BTreeSet<_>>(), wanted("names"), "{text}");
        assert_eq!(digests, wanted("ops"), "{text}");
        builds += 1;
    }
    assert!(builds >= 60 && errors >= 5, "{builds} builds, {errors} errors");
}
