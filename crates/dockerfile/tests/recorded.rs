//! Small Dockerfiles, and what a real BuildKit (front end 1.26-dev) made of them: the digests of all vertices and the names of
//! the steps, or the error. `data/recorded.jsonl` has a line for each; the texts were made up at random for this test.

use bud_dockerfile::{Error, Need, Request, Step, lower};
use bud_image::Platform;
use bud_protocol::llb;
use prost::Message as _;
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

/// What a scan takes from a build for another platform, and what has none of its own, is for this machine.
#[test]
fn every_step_of_a_scan_has_a_platform() {
    let text = "FROM scratch\nCOPY a /\nRUN x\n";
    let mut request = Request { session: "s".into(), ..Request::default() };
    for (key, value) in [("cmdline", "none"), ("attest:sbom", "generator=scanner"), ("platform", "linux/arm64")] {
        request.opts.insert(key.into(), value.into());
    }
    let build = loop {
        let needs = match lower(&request).unwrap() {
            Step::Need(needs) => needs,
            Step::Build(build) => break build,
            other => panic!("{other:?}"),
        };
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
                Need::Image(query) => {
                    let config = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":["scan"]},"rootfs":{"type":"layers"}}"#;
                    let answer = bud_dockerfile::ImageAnswer {
                        reference: query.reference.clone(),
                        digest: String::new(),
                        config: config.to_vec(),
                    };
                    request.answers.image(query, Ok(answer));
                }
                Need::Source(query) => panic!("asks for {}", query.op.identifier),
            }
        }
    };
    let host = Platform::host();
    let platforms = |definition: &bud_protocol::pb::Definition| -> Vec<String> {
        let ops = definition.def.iter().map(|op| bud_protocol::pb::Op::decode(op.as_slice()).unwrap());
        let execs = ops.filter(|op| matches!(op.op, Some(bud_protocol::pb::op::Op::Exec(_))));
        execs.map(|op| op.platform.map(|p| p.architecture).unwrap_or_default()).collect()
    };
    let built = &build.platforms[0];
    assert_eq!(platforms(&built.definition), ["arm64"]);
    assert_eq!(platforms(&built.attestations[0].definition), [host.architecture.as_str(); 2]);
}
