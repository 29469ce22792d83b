//! Hostile texts: each gives a build or an error, soon and within bounds.

use bud_dockerfile::{CheckOptions, Error, ImageAnswer, Need, Request, SourceAnswer, Step, check, lower};
use bud_image::Platform;
use std::time::Instant;

const CONFIG: &[u8] = br#"{"architecture":"amd64","os":"linux","config":{"Env":["PATH=/bin"]},
    "rootfs":{"type":"layers","diff_ids":["sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"]}}"#;

/// Lowers a text, with an image for each that is asked for.
fn build(text: &[u8], request_id: Option<&str>) -> Result<Step, Error> {
    let mut request = Request {
        session: "s".into(),
        platforms: vec![Platform { os: "linux".into(), architecture: "amd64".into(), ..Platform::default() }],
        ..Request::default()
    };
    request.opts.extend(request_id.map(|id| ("requestid".to_owned(), id.to_owned())));
    for _ in 0..20 {
        let Step::Need(needs) = lower(&request)? else { return lower(&request) };
        for need in needs {
            match need {
                Need::Files(query) => {
                    let file = |path: &String| match path.as_str() {
                        "Dockerfile" => Ok(text.to_vec()),
                        other => Err(format!("{other}: not found")),
                    };
                    let files = query.paths.iter().map(file).collect();
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
    panic!("asks without an end");
}

/// Does all that can be done with a text; returns the error of its build.
fn all(name: &str, text: impl AsRef<[u8]>) -> Option<String> {
    let text = text.as_ref();
    let start = Instant::now();
    let report = check(text, &CheckOptions::default());
    let _ = report.render(false);
    let outcome = build(text, None).err().map(|e| e.message);
    for id in ["frontend.lint", "frontend.outline", "frontend.targets"] {
        let _ = build(text, Some(id));
    }
    println!(
        "{name}: {} bytes, {:?}, {:?}",
        text.len(),
        start.elapsed(),
        outcome.as_ref().map(|m| &m[..m.len().min(120)])
    );
    outcome
}

#[test]
fn variables_can_not_grow_without_end() {
    let mut bomb = String::from("ARG a0=xxxxxxxxxx\n");
    for i in 1..=60 {
        bomb.push_str(&format!("ARG a{i}=$a{0}$a{0}\n", i - 1));
    }
    assert!(all("global args", format!("{bomb}FROM alpine\n")).unwrap().contains("longer than"));
    assert!(all("stage args", format!("FROM alpine\n{bomb}RUN x\n")).unwrap().contains("longer than"));
    // Just under the limit of a word, again and again.
    let mut many = String::from("FROM alpine\nENV A=xxxxxxxxxx\n");
    for _ in 0..16 {
        many.push_str("ENV A=$A$A\n");
    }
    many.push_str(&"RUN x\n".repeat(9000));
    assert!(all("a large variable in many steps", many).unwrap().contains("larger than"));
    let replaced = format!("FROM alpine\nENV A={}\nENV B=${{A//x/{}}}\n", "x".repeat(30_000), "y".repeat(30_000));
    assert!(all("replacements", replaced).unwrap().contains("longer than"));
}

#[test]
fn nesting_is_bounded() {
    let deep = format!("FROM alpine\nENV A={}\n", "${a:-".repeat(13_000));
    assert!(all("substitutions", deep).unwrap().contains("nested"));
    let json = format!("FROM alpine\nRUN {}\n", "[".repeat(60_000));
    assert_eq!(all("arrays", json), None);
    let onbuild = format!("FROM alpine\n{}RUN x\n", "ONBUILD ".repeat(8_000));
    assert!(all("triggers", onbuild).unwrap().contains("Chaining ONBUILD"));
    let mut chain = String::from("FROM alpine AS s0\n");
    for i in 1..500 {
        chain.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} a b\n", i - 1, i - 1));
    }
    assert_eq!(all("a chain of stages", &chain), None);
    for i in 500..4_000 {
        chain.push_str(&format!("FROM s{} AS s{i}\nCOPY --from=s{} a b\n", i - 1, i - 1));
    }
    assert!(all("a very long chain of stages", chain).unwrap().contains("larger than"));
    assert_eq!(all("a chain of steps", format!("FROM alpine\n{}", "RUN x\n".repeat(5_000))), None);
}

#[test]
fn long_texts_are_read_in_time() {
    let continued = format!("FROM alpine\nRUN a \\\n{}x\n", "b \\\n".repeat(100_000));
    assert_eq!(all("continuations", continued), None);
    let comments = format!("FROM alpine\nRUN a \\\n{}x\n", "# b\n".repeat(100_000));
    assert_eq!(all("comments within", comments), None);
    let line = format!("FROM alpine\nRUN {}\n", "x".repeat(70_000));
    assert!(all("a long line", line).unwrap().contains("line greater than max allowed size"));
    let docs = format!("FROM alpine\nRUN cat{}\n{}", " <<a".repeat(1000), "a\n".repeat(1000));
    assert_eq!(all("heredocs", docs), None);
    assert!(all("a heredoc without end", "FROM alpine\nRUN <<a\nb\n").unwrap().contains("unterminated heredoc"));
    let ports = format!("FROM alpine\n{}", "EXPOSE 0-65535\n".repeat(60));
    assert!(all("ports", ports).unwrap().contains("larger than"));
    let variables: String = (0..1_500).map(|i| format!("ENV v{i}=$v{}\n", i / 2)).collect();
    assert_eq!(all("variables", format!("FROM alpine\n{variables}")), None);
    let unknown: String = (0..3_000).map(|i| format!("RNU{i} x\n")).collect();
    assert!(all("errors", format!("FROM alpine\n{unknown}")).unwrap().contains("unknown instruction"));
    let quotes = format!("FROM alpine\nENV A={}'\n", "'\"".repeat(30_000));
    assert!(all("quotes", quotes).is_some());
    let pattern = format!("FROM alpine\nENV A={}\nENV B=${{A##{}b}}\n", "a".repeat(60_000), "*a".repeat(30));
    assert!(all("patterns", pattern).unwrap().contains("too long to match"));
}

#[test]
fn odd_encodings_give_a_defined_result() {
    assert_eq!(all("a byte order mark", "\u{feff}FROM alpine\n"), None);
    let utf16: Vec<u8> = "FROM alpine\n".encode_utf16().flat_map(u16::to_le_bytes).collect();
    assert!(all("UTF-16", utf16).unwrap().contains("unknown instruction"));
    assert!(all("NUL", b"FROM alpine\nRUN a\0b\n").is_none());
    assert!(all("CR only", "FROM alpine\rRUN x\r").is_some());
    assert_eq!(all("CR LF", "FROM alpine\r\nRUN x\r\n"), None);
    assert!(all("no stage", "ARG A\n").unwrap().contains("no stages"));
    assert!(all("nothing", "").unwrap().contains("empty"));
    let twice = all("two escapes", "# escape=\\\n# escape=`\nFROM alpine\n").unwrap();
    assert!(twice.contains("only one escape parser directive"), "{twice}");
    assert!(all("not UTF-8, in the config", b"FROM alpine\nENV A=\xff\xfe\n").is_none());
    assert!(all("not UTF-8, in a step", b"FROM alpine\nRUN a\xff\n").unwrap().contains("invalid UTF-8"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(300))]
    #[test]
    fn any_text_gives_a_step_or_an_error(
        lines in proptest::collection::vec(
            r#"(FROM|RUN|COPY|ADD|ENV|ARG|LABEL|ONBUILD RUN|HEALTHCHECK|VOLUME|EXPOSE|USER|WORKDIR|SHELL|STOPSIGNAL) (--(from|mount|chown|link|parents|exclude|chmod)(=[a-z0-9,=/$]{0,12})? )?[a-zA-Z0-9$ {}:=/"'\\.\[\],<-]{0,30}"#,
            0..12,
        )
    ) {
        let text = format!("FROM scratch AS a\n{}\n", lines.join("\n"));
        let _ = check(text.as_bytes(), &CheckOptions::default()).render(true);
        let _ = build(text.as_bytes(), None);
        let _ = build(text.as_bytes(), Some("frontend.lint"));
    }
}
