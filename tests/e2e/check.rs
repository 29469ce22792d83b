//! `bud check`, `--check` and `--call`: what is said of a Dockerfile without building it.

use crate::harness::{Home, json, read};

const BROKEN: &str = "from scratch AS Base\nENV A b c\nCOPY --from=base /x /\n";
const MENDED: &str = "FROM scratch AS base\nENV A=\"b c\"\nCOPY --from=base /x /\n";

#[test]
fn a_file_is_looked_at_and_mended_without_a_daemon() {
    let home = Home::sub();
    let context = home.dockerfile("from scratch AS Base\nENV A b c\nCOPY . /\n");
    let path = context.to_str().unwrap();
    let seen = home.bud(["check", path]).fails_with(&["StageNameCasing", "LegacyKeyValueFormat", "4 warnings"]);
    assert_eq!(seen.code, Some(1));
    let shown = home.bud(["check", "--fix", "--dry-run", path]);
    assert_eq!(shown.code, Some(1), "{shown}");
    let marked = ["-ENV A b c\n", "+ENV A=\"b c\"\n", " COPY . /\n"];
    assert!(marked.iter().all(|line| shown.stdout.contains(line)), "{shown}");
    let file = context.join("Dockerfile");
    assert!(read(&file).starts_with("from"), "a dry run wrote");
    home.bud(["check", "--fix", path]).ok().says(&["line 2: LegacyKeyValueFormat mended"]);
    assert_eq!(read(&file), "FROM scratch AS base\nENV A=\"b c\"\nCOPY . /\n");
    home.bud(["check", "--fix", path]).ok().says(&["nothing to mend"]);
    home.bud(["check", path]).ok();
    let advice = home.dockerfile("FROM debian\nRUN apt-get update\n");
    home.bud(["check", advice.to_str().unwrap()]).ok().says(&["note[BudAptLists]", "1 piece of advice"]);
    home.bud(["check", "--strict", advice.to_str().unwrap()]).fails_with(&["BudAptLists"]);
    let typo = home.dockerfile("FROM scratch\nRNU x\nCOPY --form=a b /\n");
    home.bud(["check", typo.to_str().unwrap()]).fails_with(&["RNU x", "did you mean RUN?", "--from", "2 errors"]);
    assert!(home.daemon_pid().is_none(), "a daemon was started");
}

#[test]
fn questions_are_answered_as_by_buildx() {
    let home = Home::sub();
    let context = home.dockerfile(&BROKEN.replace("COPY --from=base /x /", "ARG V=1"));
    let path = context.to_str().unwrap();
    let check = home.bud(["--check", path]);
    assert_eq!(check.code, Some(1), "{check}");
    let rules = [
        "WARNING: StageNameCasing - https://docs.docker.com/go/dockerfile/rule/stage-name-casing/",
        "4 warnings have been found!",
    ];
    let check = check.says(&rules);
    assert!(check.stdout.contains(">>> from scratch AS Base"), "{check}");
    home.bud(["--call", "check,ignorestatus", path]).ok();
    let answer = home.bud(["--call", "check,format=json", path]);
    assert_eq!(
        (answer.code, json(answer.stdout.as_bytes())["warnings"][0]["ruleName"].as_str()),
        (Some(1), Some("StageNameCasing")),
        "{answer}"
    );
    let outline = home.bud(["--call=outline,format=json", path]).ok();
    assert_eq!(json(outline.stdout.as_bytes())["args"][0]["name"], "V", "{outline}");
    let targets = home.bud(["build", "--call=targets", path]).ok();
    assert!(targets.stdout.contains("base (default)"), "{targets}");
    home.bud(["--call=subrequests.describe", path]).ok().says(&["outline", "targets"]);
    let clean = home.dockerfile(MENDED.split("COPY").next().unwrap());
    home.bud(["--check", clean.to_str().unwrap()]).ok().says(&["Check complete, no warnings found."]);
    let wrong = home.dockerfile("FROM scratch\nRNU x\n");
    home.bud(["--check", wrong.to_str().unwrap()]).fails_with(&["unknown instruction: RNU (did you mean RUN?)"]);
    home.bud(["--call", "outlin", path]).fails_with(&["outline"]);
    // Nothing was built.
    let images = home.bud(["images", "-q"]).ok();
    assert_eq!(images.stdout.trim(), "", "{images}");
}
