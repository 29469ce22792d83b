//! Rules of our own: what a build on a laptop trips over. The build works; it could be faster, smaller or safer.
//!
//! Their names begin with `Bud`, and `# check=skip=NAME` (at the top, or above an instruction) switches them off like the
//! reference's.

use crate::instruction::{Instruction, Kind, Origin, Program, Run};
use crate::lint::Settings;
use crate::parser::{self, directive};
use crate::{instruction, text::quote::decode};
use std::collections::BTreeSet;
use std::ops::Range;

/// The rules: name and what each is about.
pub const RULES: [(&str, &str); 6] = [
    (
        "BudCopyBeforeInstall",
        "A COPY of the whole context before dependencies are installed installs them anew at every change",
    ),
    ("BudSecretInText", "A password or key written into the Dockerfile stays in the image's history"),
    ("BudAptLists", "Package lists that apt-get update leaves behind make the layer larger"),
    ("BudLargeContext", "A context of gigabytes without .dockerignore is looked through at every build"),
    ("BudUnusedStage", "A stage that the last stage doesn't need"),
    ("BudUnusedArg", "An ARG that nothing reads"),
];

/// One piece of advice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Advice {
    /// The rule.
    pub rule: &'static str,
    /// What is the matter.
    pub message: String,
    /// What to do.
    pub help: String,
    /// Bytes of the text that it is about.
    pub span: Option<Range<usize>>,
}

/// Looks at a text with our own rules. A text that can't be parsed gives advice on what can.
///
/// ```
/// let advice = bud_dockerfile::advice::advise(b"FROM node\nCOPY . .\nRUN npm ci\n");
/// assert_eq!(advice[0].rule, "BudCopyBeforeInstall");
/// ```
#[must_use]
pub fn advise(text: &[u8]) -> Vec<Advice> {
    let text = decode(text);
    let (file, _) = parser::parse_all(&text);
    let (program, _) = instruction::parse_lenient(&file);
    let settings = directive::find(&text, "check").map(|d| d.value).unwrap_or_default();
    let mut advisor = Advisor { off: skipped(&settings), found: Vec::new() };
    for stage in &program.stages {
        advisor.copy_before_install(&stage.instructions);
    }
    let chain = base_chain(&program);
    for &index in &chain {
        for instruction in &program.stages[index].instructions {
            advisor.apt_lists(instruction);
        }
    }
    advisor.secrets(&program);
    advisor.unused_stages(&program);
    advisor.unused_args(&program);
    advisor.found.sort_by_key(|advice| advice.span.as_ref().map_or(usize::MAX, |span| span.start));
    advisor.found
}

/// Tells whether a rule is switched off for the whole text.
#[must_use]
pub fn is_off(text: &[u8], rule: &str) -> bool {
    let off = skipped(&directive::find(&decode(text), "check").map(|d| d.value).unwrap_or_default());
    off.contains("all") || off.contains(rule)
}

fn skipped(settings: &str) -> BTreeSet<String> {
    let Ok(settings) = Settings::parse(settings.split(' ').next().unwrap_or_default()) else { return BTreeSet::new() };
    let all = settings.skip_all.then(|| "all".to_owned());
    settings.skip.into_iter().chain(all).collect()
}

struct Advisor {
    off: BTreeSet<String>,
    found: Vec<Advice>,
}

impl Advisor {
    fn say(&mut self, rule: &'static str, origin: &Origin, span: Range<usize>, message: String, help: &str) {
        let here: BTreeSet<String> =
            origin.comments.iter().filter_map(|c| directive::find_in_comment(c)).flat_map(|c| skipped(&c)).collect();
        let is_off = |set: &BTreeSet<String>| set.contains("all") || set.contains(rule);
        if !is_off(&self.off) && !is_off(&here) {
            let span = Some(span).filter(|span| !span.is_empty());
            self.found.push(Advice { rule, message, help: help.to_owned(), span });
        }
    }

    fn copy_before_install(&mut self, instructions: &[Instruction]) {
        let mut whole: Option<&Instruction> = None;
        for instruction in instructions {
            match &instruction.kind {
                Kind::Copy(copy) if copy.from.is_empty() && copy.paths.sources.iter().any(|s| is_whole(s)) => {
                    whole = whole.or(Some(instruction));
                }
                Kind::Add(add) if add.paths.sources.iter().any(|s| is_whole(s)) => whole = whole.or(Some(instruction)),
                Kind::Run(run) => {
                    let Some(copy) = whole else { continue };
                    let Some((command, files)) = installs(run) else { continue };
                    let message = format!("any change in the context runs `{command}` anew");
                    let help = match files {
                        "" => format!("run `{command}` before it"),
                        files => format!("copy {files} alone before it, and everything else after it"),
                    };
                    self.say("BudCopyBeforeInstall", &copy.origin, line_of(&copy.origin), message, &help);
                    return;
                }
                _ => {}
            }
        }
    }

    fn apt_lists(&mut self, instruction: &Instruction) {
        let Kind::Run(run) = &instruction.kind else { return };
        let text = command_text(run);
        let updates = ["apt-get update", "apt update", "apt-get -y update", "apt-get -qq update"];
        let is_mounted = run.mounts.iter().any(|mount| mount.contains("/var/lib/apt"));
        let is_cleaned = text.contains("/var/lib/apt") && (text.contains("rm -") || text.contains("find "));
        if updates.iter().any(|update| text.contains(update)) && !is_mounted && !is_cleaned {
            self.say(
                "BudAptLists",
                &instruction.origin,
                instruction.origin.keyword_bytes.clone(),
                "the package lists stay in this layer".into(),
                "end the command with `&& rm -rf /var/lib/apt/lists/*`, or mount a cache: --mount=type=cache,target=/var/lib/apt/lists",
            );
        }
    }

    fn secrets(&mut self, program: &Program) {
        const HELP: &str = "give it at build time with --secret, and read it with RUN --mount=type=secret";
        let globals = program.globals.iter().map(|global| (&global.origin, global.args.as_slice()));
        let mut found: Vec<(Origin, Range<usize>, &str)> = Vec::new();
        for (origin, args) in globals {
            for (index, arg) in args.iter().enumerate() {
                if let Some(kind) = arg.value.as_deref().and_then(secret_kind) {
                    found.push((origin.clone(), word_of(origin, index), kind));
                }
            }
        }
        for instruction in program.stages.iter().flat_map(|stage| &stage.instructions) {
            let origin = &instruction.origin;
            match &instruction.kind {
                Kind::Arg(args) => {
                    for (index, arg) in args.iter().enumerate() {
                        if let Some(kind) = arg.value.as_deref().and_then(secret_kind) {
                            found.push((origin.clone(), word_of(origin, index), kind));
                        }
                    }
                }
                Kind::Env(pairs) | Kind::Label(pairs) => {
                    for (index, pair) in pairs.iter().enumerate() {
                        if let Some(kind) = secret_kind(&pair.value) {
                            found.push((origin.clone(), word_of(origin, index * 3 + 1), kind));
                        }
                    }
                }
                Kind::Run(run) => {
                    if let Some(kind) = secret_kind(&command_text(run)) {
                        found.push((origin.clone(), origin.keyword_bytes.clone(), kind));
                    }
                }
                _ => {}
            }
        }
        for (origin, span, kind) in found {
            let message = format!("{kind} stands here, and everybody who gets the image can read it");
            self.say("BudSecretInText", &origin, span, message, HELP);
        }
    }

    fn unused_stages(&mut self, program: &Program) {
        let used = needed(program);
        for (index, stage) in program.stages.iter().enumerate().filter(|(index, _)| !used.contains(index)) {
            let (message, help) = match stage.name.as_str() {
                "" => (
                    format!("stage {index} has no name, and no later stage needs it"),
                    "remove it, or name it with AS if it is a target".to_owned(),
                ),
                name => (
                    format!("the last stage doesn't need stage {name}"),
                    format!("it is built with --target {name} only; remove it if nobody does that"),
                ),
            };
            self.say("BudUnusedStage", &stage.origin, line_of(&stage.origin), message, &help);
        }
    }

    fn unused_args(&mut self, program: &Program) {
        let declares = |name: &str| {
            program.stages.iter().flat_map(|stage| &stage.instructions).any(|instruction| match &instruction.kind {
                Kind::Arg(args) => args.iter().any(|arg| arg.key == name),
                _ => false,
            })
        };
        let mut found: Vec<(Origin, Range<usize>, String)> = Vec::new();
        for (at, global) in program.globals.iter().enumerate() {
            for (index, arg) in global.args.iter().enumerate() {
                let in_defaults = || {
                    let later = program.globals[at..].iter().flat_map(|global| &global.args);
                    later.filter(|other| other.key != arg.key).any(|other| reads(other.value.as_deref(), &arg.key))
                };
                let in_stages = || {
                    program
                        .stages
                        .iter()
                        .any(|stage| reads(Some(&stage.base), &arg.key) || reads(Some(&stage.platform), &arg.key))
                };
                if !is_for_builder(&arg.key) && !declares(&arg.key) && !in_defaults() && !in_stages() {
                    found.push((global.origin.clone(), word_of(&global.origin, index), arg.key.clone()));
                }
            }
        }
        for (stage_index, stage) in program.stages.iter().enumerate() {
            for (at, instruction) in stage.instructions.iter().enumerate() {
                let Kind::Arg(args) = &instruction.kind else { continue };
                for (index, arg) in args.iter().enumerate() {
                    // Later instructions of this stage, and those of stages that stand on it.
                    let own = stage.instructions[at..].iter();
                    let others =
                        standing_on(program, stage_index).into_iter().flat_map(|i| &program.stages[i].instructions);
                    let is_read = own.chain(others).any(|other| may_read(other, instruction, &arg.key));
                    if !is_read && !is_for_builder(&arg.key) {
                        found.push((instruction.origin.clone(), word_of(&instruction.origin, index), arg.key.clone()));
                    }
                }
            }
        }
        for (origin, span, name) in found {
            let message = format!("nothing reads the argument {name}");
            self.say("BudUnusedArg", &origin, span, message, "remove it");
        }
    }
}

/// The whole of an instruction's own line, as far as it is known.
fn line_of(origin: &Origin) -> Range<usize> {
    let end = origin.word_bytes.last().map_or(origin.keyword_bytes.end, |word| word.end);
    origin.keyword_bytes.start..end.max(origin.keyword_bytes.end)
}

fn word_of(origin: &Origin, index: usize) -> Range<usize> {
    origin.word_bytes.get(index).cloned().unwrap_or_else(|| origin.keyword_bytes.clone())
}

fn is_whole(source: &str) -> bool {
    matches!(source, "." | "./" | "/" | "./." | "*" | "./*")
}

fn command_text(run: &Run) -> String {
    let files = run.command.files.iter().map(|file| file.data.as_str());
    run.command.args.iter().map(String::as_str).chain(files).collect::<Vec<_>>().join(" ")
}

/// The command with which a `RUN` installs dependencies, and the files which say what those are, if it reads any. With a cache mount it is cheap.
fn installs(run: &Run) -> Option<(&'static str, &'static str)> {
    const COMMANDS: [(&str, &str); 16] = [
        ("npm ci", "package.json and package-lock.json"),
        ("npm install", "package.json and package-lock.json"),
        ("yarn install", "package.json and yarn.lock"),
        ("pnpm install", "package.json and pnpm-lock.yaml"),
        ("pip install -r", "requirements.txt"),
        ("pip3 install -r", "requirements.txt"),
        ("pip install --no-cache-dir -r", "requirements.txt"),
        ("poetry install", "pyproject.toml and poetry.lock"),
        ("uv sync", "pyproject.toml and uv.lock"),
        ("bundle install", "Gemfile and Gemfile.lock"),
        ("composer install", "composer.json and composer.lock"),
        ("go mod download", "go.mod and go.sum"),
        ("cargo fetch", "Cargo.toml and Cargo.lock"),
        ("apt-get install", ""),
        ("apk add", ""),
        ("dotnet restore", "the project files"),
    ];
    if run.mounts.iter().any(|mount| mount.contains("type=cache")) {
        return None;
    }
    let text = command_text(run);
    COMMANDS.into_iter().find(|(command, _)| text.contains(command))
}

/// What a value is, if it looks like a secret.
fn secret_kind(value: &str) -> Option<&'static str> {
    const KEYS: [(&str, usize, &str); 7] = [
        ("AKIA", 16, "an AWS access key"),
        ("ghp_", 36, "a GitHub token"),
        ("github_pat_", 40, "a GitHub token"),
        ("glpat-", 20, "a GitLab token"),
        ("xoxb-", 20, "a Slack token"),
        ("sk_live_", 20, "a Stripe key"),
        ("npm_", 36, "an npm token"),
    ];
    for (prefix, length, kind) in KEYS {
        for (at, _) in value.match_indices(prefix) {
            let rest = &value[at + prefix.len()..];
            let run = rest.bytes().take_while(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-')).count();
            if run >= length {
                return Some(kind);
            }
        }
    }
    if value.contains("-----BEGIN ") && value.contains("PRIVATE KEY") {
        return Some("a private key");
    }
    // scheme://user:password@host, with a password that is no variable.
    for (at, _) in value.match_indices("://") {
        let rest = &value[at + 3..];
        let host = rest.split(['/', ' ', '"', '\'', '?', '#']).next().unwrap_or_default();
        let Some((user, _)) = host.rsplit_once('@') else { continue };
        if user
            .split_once(':')
            .is_some_and(|(_, password)| !password.is_empty() && !password.contains(['$', '<', '{', '*']))
        {
            return Some("a password in an address");
        }
    }
    None
}

/// Arguments which the builder itself or every program reads.
fn is_for_builder(name: &str) -> bool {
    name.starts_with("BUILDKIT_")
        || name == "SOURCE_DATE_EPOCH"
        || name.to_lowercase().ends_with("_proxy")
        || name == "DEBIAN_FRONTEND"
}

/// Tells whether a text reads a variable.
fn reads(text: Option<&str>, name: &str) -> bool {
    let Some(text) = text else { return false };
    text.match_indices(name).any(|(at, _)| {
        let before = &text[..at];
        let after = text[at + name.len()..].chars().next();
        let ends = |c: Option<char>| c.is_none_or(|c| !c.is_alphanumeric() && c != '_');
        (before.ends_with('$') || before.ends_with("${")) && ends(after)
    })
}

/// Tells whether an instruction may read a variable: every program of a `RUN` sees it.
fn may_read(other: &Instruction, declaration: &Instruction, name: &str) -> bool {
    match &other.kind {
        Kind::Run(_) => true,
        // Its own default, and arguments of the same name, are no readers.
        Kind::Arg(args) => {
            let own = std::ptr::eq(other, declaration);
            args.iter().any(|arg| (arg.key != name || !own) && reads(arg.value.as_deref(), name))
        }
        Kind::Onbuild(_) => true,
        _ => {
            reads(Some(&other.origin.code), name)
                || match &other.kind {
                    Kind::Copy(copy) => copy.paths.contents.iter().any(|c| reads(Some(&c.data), name)),
                    Kind::Add(add) => add.paths.contents.iter().any(|c| reads(Some(&c.data), name)),
                    _ => false,
                }
        }
    }
}

/// Finds a stage by its name or number, as `FROM` and `--from` do.
fn find(program: &Program, before: usize, name: &str, by_number: bool) -> Option<usize> {
    let named = program.stages[..before].iter().rposition(|s| !s.name.is_empty() && s.name.eq_ignore_ascii_case(name));
    named.or_else(|| name.parse().ok().filter(|&number: &usize| by_number && number < program.stages.len()))
}

/// The stages whose layers are in the image: the last and what it stands on.
fn base_chain(program: &Program) -> Vec<usize> {
    let mut chain = Vec::new();
    let mut next = program.stages.len().checked_sub(1);
    while let Some(index) = next {
        chain.push(index);
        next = find(program, index, &program.stages[index].base, false);
    }
    chain
}

/// The stages that the last one needs.
fn needed(program: &Program) -> BTreeSet<usize> {
    let mut needed = BTreeSet::new();
    let mut open: Vec<usize> = program.stages.len().checked_sub(1).into_iter().collect();
    while let Some(index) = open.pop() {
        if !needed.insert(index) {
            continue;
        }
        let stage = &program.stages[index];
        open.extend(find(program, index, &stage.base, false));
        if stage.base.contains('$') {
            // Any stage may be meant.
            open.extend(0..index);
        }
        for instruction in &stage.instructions {
            match &instruction.kind {
                Kind::Copy(copy) => open.extend(find(program, index, &copy.from, true)),
                Kind::Run(run) => {
                    open.extend(run.mount_sources.iter().filter_map(|from| find(program, index, from, true)));
                }
                // Whatever it names.
                Kind::Onbuild(_) => open.extend(0..index),
                _ => {}
            }
        }
    }
    needed
}

/// The stages that stand on a stage, directly or not.
fn standing_on(program: &Program, base: usize) -> BTreeSet<usize> {
    let mut all = BTreeSet::new();
    for (index, stage) in program.stages.iter().enumerate().skip(base + 1) {
        if find(program, index, &stage.base, false).is_some_and(|on| on == base || all.contains(&on)) {
            all.insert(index);
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(text: &str) -> Vec<(&'static str, String)> {
        let spanned = |advice: Advice| (advice.rule, text[advice.span.unwrap_or(0..0)].to_owned());
        advise(text.as_bytes()).into_iter().map(spanned).collect()
    }

    fn one(rule: &'static str, span: &str) -> Vec<(&'static str, String)> {
        vec![(rule, span.to_owned())]
    }

    #[test]
    fn a_copy_that_makes_the_cache_useless() {
        assert_eq!(rules("FROM node\nCOPY . .\nRUN npm ci\n"), one("BudCopyBeforeInstall", "COPY . ."));
        for text in [
            "FROM node\nCOPY package.json .\nRUN npm ci\nCOPY . .\n",
            "FROM node\nCOPY . .\nRUN --mount=type=cache,target=/root/.npm npm ci\n",
            "FROM node\nCOPY --from=node / .\nRUN npm ci\n",
            "FROM node\n# check=skip=BudCopyBeforeInstall\nCOPY . .\nRUN npm ci\n",
            "# check=skip=all\nFROM node\nCOPY . .\nRUN npm ci\n",
        ] {
            assert_eq!(rules(text), [], "{text}");
        }
    }

    #[test]
    fn packages_are_installed_before_the_copy() {
        let advice = advise(b"FROM alpine\nCOPY . .\nRUN apk add x\n");
        assert_eq!(advice[0].help, "run `apk add` before it");
        let advice = advise(b"FROM node\nCOPY . .\nRUN yarn install\n");
        assert_eq!(advice[0].help, "copy package.json and yarn.lock alone before it, and everything else after it");
    }

    #[test]
    fn lists_that_stay_in_a_layer() {
        let left = "FROM debian\nRUN apt-get update && apt-get install -y x\n";
        assert_eq!(rules(left), one("BudAptLists", "RUN"));
        for text in [
            "FROM debian\nRUN apt-get update && apt-get install -y x && rm -rf /var/lib/apt/lists/*\n",
            "FROM debian\nRUN --mount=type=cache,target=/var/lib/apt apt-get update\n",
            // Not in the image.
            "FROM debian AS a\nRUN apt-get update\nFROM scratch\nCOPY --from=a /a /\n",
        ] {
            assert_eq!(rules(text), [], "{text}");
        }
        let heredoc = "FROM debian AS a\nRUN <<E\napt-get update\nE\nFROM a\n";
        assert_eq!(rules(heredoc), one("BudAptLists", "RUN"));
    }

    #[test]
    fn secrets_by_their_looks() {
        let key = format!("AKIA{}", "A1".repeat(8));
        assert_eq!(rules(&format!("FROM a\nENV X={key} Y=1\n")), one("BudSecretInText", &key));
        let url = "FROM a\nRUN git clone https://me:hunter2@example.org/x\n";
        assert_eq!(rules(url), one("BudSecretInText", "RUN"));
        for text in [
            "FROM a\nRUN git clone https://me:$TOKEN@example.org/x\n",
            "FROM a\nRUN git clone https://git@example.org/x:y\nENV A=AKIA\n",
        ] {
            assert_eq!(rules(text), [], "{text}");
        }
    }

    #[test]
    fn stages_and_arguments_that_nothing_needs() {
        let text = "ARG G=1\nARG B=a\nFROM $B AS one\nFROM a AS two\nARG U=1\nCOPY a /\nFROM one\nARG R\nRUN x\n";
        // Which of the stages `$B` is can't be known, but it isn't asked for: the last stands on `one`.
        assert_eq!(
            rules(text),
            [
                ("BudUnusedArg", "G=1".to_owned()),
                ("BudUnusedStage", "FROM a AS two".to_owned()),
                ("BudUnusedArg", "U=1".to_owned())
            ]
        );
        for text in [
            "FROM a AS one\nFROM b\nCOPY --from=0 /a /\n",
            "FROM a AS one\nFROM b\nRUN --mount=from=one,target=/x y\n",
            "ARG V=1\nFROM a\nARG V\nENV X=${V:-2}\n",
            "ARG V=1\nARG W=a:$V\nFROM $W\n",
            "FROM a AS x\nARG V=1\nFROM x\nRUN y\n",
            "FROM a\nARG V=1\nCOPY <<E /x\n$V\nE\n",
        ] {
            assert_eq!(rules(text), [], "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_gives_advice(text in r#"(FROM|RUN|COPY|ENV|ARG|AS|--from=|\$A|A|://|@|:|#|[a-z]|[ \n\\"'$={}<]|é){0,60}"#) {
            for advice in advise(text.as_bytes()) {
                proptest::prop_assert!(advice.span.is_none_or(|span| span.end <= text.len()));
            }
        }
    }
}
