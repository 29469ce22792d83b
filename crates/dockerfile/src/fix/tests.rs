use super::*;

fn fixed(text: &str) -> String {
    let once = fix(text.as_bytes(), &BTreeMap::new()).unwrap();
    let twice = fix(once.text.as_bytes(), &BTreeMap::new()).unwrap();
    assert_eq!((twice.text.as_str(), twice.changes.len()), (once.text.as_str(), 0), "not at rest: {text}");
    once.text
}

#[test]
fn each_rule_is_mended_where_it_is_broken() {
    for (text, want) in [
        ("FROM alpine AS Build\n", "FROM alpine AS build\n"),
        ("FROM alpine as build\n", "FROM alpine AS build\n"),
        ("from alpine AS build\nrun x\n", "from alpine as build\nrun x\n"),
        ("FROM alpine\nrun x\nCopy a /\n", "FROM alpine\nRUN x\nCOPY a /\n"),
        ("FROM alpine\nENV A b\n", "FROM alpine\nENV A=b\n"),
        ("FROM alpine\nENV A   b c\n", "FROM alpine\nENV A=\"b c\"\n"),
        ("FROM alpine\nENV A \"b c\"\n", "FROM alpine\nENV A=\"b c\"\n"),
        ("FROM alpine\nENV A \"b\" c\n", "FROM alpine\nENV A=\"b\"\\ c\n"),
        ("FROM alpine\nENV A b=c d\n", "FROM alpine\nENV A=\"b=c d\"\n"),
        ("FROM alpine\nENV A $PATH:/x y\n", "FROM alpine\nENV A=\"$PATH:/x y\"\n"),
        ("FROM alpine\nLABEL a it's\n", "FROM alpine\nLABEL a it's\n"),
        ("FROM alpine\nCMD echo hi\n", "FROM alpine\nCMD [\"echo\", \"hi\"]\n"),
        ("FROM alpine\nCMD exec sh -c 'a b'\n", "FROM alpine\nCMD [\"sh\", \"-c\", \"a b\"]\n"),
        ("FROM alpine\nCMD a && b \"$C\"\n", "FROM alpine\nCMD [\"/bin/sh\", \"-c\", \"a && b \\\"$C\\\"\"]\n"),
        ("FROM alpine\nENTRYPOINT cd / ; x\n", "FROM alpine\nENTRYPOINT [\"/bin/sh\", \"-c\", \"cd / ; x\"]\n"),
        ("FROM alpine\nSHELL [\"bash\"]\nCMD echo hi\n", "FROM alpine\nSHELL [\"bash\"]\nCMD echo hi\n"),
        ("FROM alpine\nWORKDIR app\nWORKDIR sub\n", "FROM alpine\nWORKDIR /app\nWORKDIR sub\n"),
        ("FROM alpine\nWORKDIR ./app\n", "FROM alpine\nWORKDIR /app\n"),
        ("FROM --platform=linux/amd64 alpine\n", "FROM alpine\n"),
        ("FROM --platform=$TARGETPLATFORM  alpine\n", "FROM alpine\n"),
        ("FROM alpine\nARG P=9\nEXPOSE 80/TCP $P/UDP\n", "FROM alpine\nARG P=9\nEXPOSE 80/tcp $P/UDP\n"),
        ("FROM alpine\nEXPOSE 127.0.0.1:80:8080 90\n", "FROM alpine\nEXPOSE 8080 90\n"),
        (
            "FROM alpine\nMAINTAINER A \"B\" <a@b>\n",
            "FROM alpine\nLABEL org.opencontainers.image.authors=\"A \\\"B\\\" <a@b>\"\n",
        ),
        ("FROM alpine\nRUN a \\\n\n  b \\\n   \n  c\n", "FROM alpine\nRUN a \\\n  b \\\n  c\n"),
        ("# check=error=true\nFROM alpine as x\nrun x\n", "# check=error=true\nFROM alpine AS x\nRUN x\n"),
        (
            "# check=experimental=all\n#\n# other\nARG a=1\nFROM alpine\n",
            "# check=experimental=all\n#\n# other\n#\nARG a=1\nFROM alpine\n",
        ),
        ("FROM alpine\r\nenv A b\r\nRUN x\r\n", "FROM alpine\r\nENV A=b\r\nRUN x\r\n"),
    ] {
        assert_eq!(fixed(text), want, "{text}");
    }
}

#[test]
fn what_is_switched_off_or_needs_a_person_is_left() {
    for text in [
        "# check=skip=all\nFROM alpine as X\n",
        "# check=skip=LegacyKeyValueFormat\nFROM alpine\nENV A b\n",
        "FROM alpine\nCMD [\"a\"]\nCMD [\"b\"]\n",
        "FROM alpine\nARG TOKEN=x\n",
    ] {
        assert_eq!(fixed(text), text);
    }
}

#[test]
fn what_was_done_and_what_is_left_is_told() {
    let text = "FROM alpine AS Build\nARG TOKEN\nMAINTAINER me\n";
    let fixed = fix(text.as_bytes(), &BTreeMap::new()).unwrap();
    let told: Vec<_> = fixed.changes.iter().map(|c| (c.rule.as_str(), c.line, c.changes_meaning)).collect();
    assert_eq!(told, [("StageNameCasing", 1, false), ("MaintainerDeprecated", 3, true)]);
    assert_eq!(fixed.left.len(), 1);
    assert_eq!(fixed.left[0].rule, "SecretsUsedInArgOrEnv");
    assert!(fix(b"FROM a\nRNU x\n", &BTreeMap::new()).is_err());
    assert!(fix(b"FROM a\n# \xff\n", &BTreeMap::new()).unwrap_err().message.contains("not UTF-8"));
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 60, ..Default::default() })]
    /// A mended text is at rest, has nothing left of what was mended, and builds what it built before unless a rule asks for more.
    #[test]
    fn mended_texts_build_the_same(lines in proptest::collection::vec(line(), 1..8)) {
        let text = format!("FROM alpine AS Base\n{}\nFROM Base\nCOPY --from=Base /a /b\n", lines.join("\n"));
        let opts = BTreeMap::new();
        let Ok(once) = fix(text.as_bytes(), &opts) else { return Ok(()) };
        let again = fix(once.text.as_bytes(), &opts).unwrap();
        proptest::prop_assert_eq!(&again.text, &once.text);
        proptest::prop_assert!(again.changes.is_empty());
        if once.changes.iter().all(|change| !change.changes_meaning) {
            proptest::prop_assert_eq!(meaning(&text, &opts), meaning(&once.text, &opts));
        }
        for rule in ["StageNameCasing", "FromAsCasing", "ConsistentInstructionCasing", "NoEmptyContinuation"] {
            proptest::prop_assert!(!once.left.iter().any(|w| w.rule == rule), "{} in {}", rule, once.text);
        }
        // Lines that nothing was found on are as they were.
        let (found, _) = look(text.as_bytes(), &opts).unwrap();
        let touched = |number: usize| found.iter().any(|w| w.lines.iter().any(|l| *l as usize == number));
        for (number, line) in text.lines().enumerate() {
            if !touched(number + 1) && !line.trim().is_empty() {
                proptest::prop_assert!(once.text.lines().any(|l| l == line), "{:?} is gone from {}", line, once.text);
            }
        }
    }
}

fn line() -> impl proptest::strategy::Strategy<Value = String> {
    use proptest::prelude::*;
    let value = "[a-c$X \"'\\\\=#/.-]{1,8}";
    prop_oneof![
        value.prop_map(|v| format!("ENV A {v}")),
        value.prop_map(|v| format!("LABEL a.b {v}")),
        value.prop_map(|v| format!("CMD {v}")),
        value.prop_map(|v| format!("ENTRYPOINT {v}")),
        value.prop_map(|v| format!("WORKDIR {v}")),
        value.prop_map(|v| format!("run {v}")),
        value.prop_map(|v| format!("RUN a \\\n\n  {v}")),
        "[0-9]{1,3}(:[0-9]{1,2})?(/[tT][cC]p)?".prop_map(|v| format!("EXPOSE {v}")),
        value.prop_map(|v| format!("MAINTAINER {v}")),
        Just("FROM --platform=linux/amd64 alpine as Other".to_owned()),
        Just("# a comment".to_owned()),
        Just("ARG X=1".to_owned()),
    ]
}
