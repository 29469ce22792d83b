//! Completion, asked for in the shells themselves.

use crate::harness::{Home, User, bud, run};

/// Types lines, each with a key at its end, into an interactive shell on a terminal of its own. Prints for each what is shown and
/// then, between `<` and `>`, what the line has become. Nothing here goes by the clock: the last key makes the shell print the end.
const TERMINAL: &str = r#"
zmodload zsh/zpty
zpty z "$1"
zpty -r -m z text '*READY*' || exit 1
print -rn -- "${text#*READY}"
shift
for line; do
    zpty -w -n z "$line"$'\C-xe'
    zpty -r -m z text '*END<*>*' || exit 1
    print -rn -- "$text"
done
zpty -d z
"#;

const BASHRC: &str = r#"
stty rows 50 columns 200
PS1=
bind 'set show-all-if-ambiguous on'
bind 'set completion-query-items 0'
bind 'set page-completions off'
bind 'set enable-bracketed-paste off'
bind -x '"\C-xe": printf "END<%s>\n" "$READLINE_LINE"; READLINE_LINE='
source ~/completions/bud.bash
PROMPT_COMMAND='echo READY; PROMPT_COMMAND='
"#;

const ZSHRC: &str = r#"
stty rows 50 columns 200
PS1= LISTMAX=1000 fpath=(~/completions $fpath)
autoload -U compinit
compinit -u -D
said() { print -r "END<$BUFFER>"; BUFFER= }
zle -N said
bindkey '^Xe' said
bindkey '^D' list-choices
zle-line-init() { print READY; zle -D zle-line-init }
zle -N zle-line-init
"#;

/// What is listed where each line ends.
fn listed(home: &Home, shell: &str, lines: &[&str]) -> Vec<String> {
    if shell == "fish" {
        let list = |line: &&str| {
            let mut command = shell_command(home, "fish");
            command.args(["--no-config", "-c", "source ~/completions/bud.fish; complete -C $argv[1]", line]);
            run(command).ok().stdout
        };
        return lines.iter().map(list).collect();
    }
    typed(home, shell, lines, if shell == "zsh" { "\x04" } else { "\x1b?" }).into_iter().map(|(list, _)| list).collect()
}

/// What is shown when a key is pressed at each line's end, and what the line is then.
fn typed(home: &Home, shell: &str, lines: &[&str], key: &str) -> Vec<(String, String)> {
    let mut command = shell_command(home, "zsh");
    command.args(["-f", "-c", TERMINAL, "zsh", if shell == "bash" { "bash -i" } else { "zsh -d -i" }]);
    command.args(lines.iter().map(|line| format!("{line}{key}")));
    let shown = run(command).ok().stdout;
    let parts: Vec<_> = shown.split("END<").collect();
    assert_eq!(parts.len(), lines.len() + 1, "{shell} said less or more than asked: {shown:?}");
    let pairs = parts.windows(2).zip(lines);
    // The line itself is echoed before the list.
    let list = |part: &str, line: &str| part.split_once('>').map_or(part, |(_, rest)| rest).replacen(line, "", 1);
    pairs.map(|(two, line)| (list(two[0], line), two[1].split('>').next().unwrap_or_default().to_owned())).collect()
}

/// A shell with the scripts in its home and the program in its path.
fn shell_command(home: &Home, shell: &str) -> std::process::Command {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("completions");
    for file in ["bud.bash", "_bud", "bud.fish"] {
        home.write(&home.path("completions").join(file), std::fs::read(folder.join(file)).unwrap());
    }
    home.write(&home.path(".bashrc"), BASHRC);
    home.write(&home.path(".zshrc"), ZSHRC);
    // Both names are there as they are when installed.
    let link = bud().with_file_name("build-using-dockerfile");
    if !link.exists() {
        std::os::unix::fs::symlink(bud(), &link).unwrap_or_default();
    }
    let mut command = home.command(shell);
    command.env("TERM", "xterm").env("PATH", format!("{}:/usr/bin:/bin", bud().parent().unwrap().display()));
    command
}

#[test]
fn stages_args_files_and_images_are_offered_in_three_shells() {
    let home = Home::new(User::plain());
    home.write(
        &home.path("app/Dockerfile"),
        "ARG VERSION=1.2\nFROM scratch AS stage-one\nARG TOKEN\nFROM scratch AS stage-two\n",
    );
    home.write(&home.path("app/other.Dockerfile"), "FROM scratch AS in-other\n");
    let offered = [
        ("bud app --target ", &["stage-one", "stage-two"][..], "in-other"),
        ("bud -f app/other.Dockerfile --target ", &["in-other"], "stage-one"),
        ("build-using-dockerfile build app --target=stage-", &["stage-one", "stage-two"], "in-other"),
        ("bud app --build-arg ", &["VERSION=", "TOKEN="], "stage-one"),
        ("bud -f app/", &["other.Dockerfile"], "stage-one"),
        ("bud --ta", &["--target", "--tag"], "--quiet"),
        ("bud ", &["images", "rmi", "app"], "--target"),
        ("bud help da", &["daemon"], "images"),
        // The last, because bash inserts what it should list after it had nothing to list.
        ("bud rmi ", &[], "app"),
    ];
    for shell in ["bash", "zsh", "fish"] {
        let lines: Vec<_> = offered.iter().map(|(line, ..)| *line).collect();
        for (shown, (line, expected, unexpected)) in listed(&home, shell, &lines).iter().zip(&offered) {
            for word in *expected {
                assert!(shown.contains(word), "{shell}: {line:?}: no {word} in {shown}");
            }
            assert!(!shown.contains(unexpected), "{shell}: {line:?}: {unexpected} in {shown}");
        }
    }
    let becomes = [
        ("bud app --target=stage-t", "bud app --target=stage-two "),
        ("bud app --build-arg VER", "bud app --build-arg VERSION="),
        ("bud app --build-arg VERSION=1", "bud app --build-arg VERSION=1.2 "),
        ("bud -f app/oth", "bud -f app/other.Dockerfile "),
        ("bud ap", "bud app/"),
        ("bud --iidfile=app/D", "bud --iidfile=app/Dockerfile "),
        ("bud -o type=ta", "bud -o type=tar "),
        ("bud daemon sta", "bud daemon sta"),
    ];
    for shell in ["bash", "zsh"] {
        let lines: Vec<_> = becomes.iter().map(|(line, _)| *line).collect();
        for ((_, found), (line, expected)) in typed(&home, shell, &lines, "\t").iter().zip(&becomes) {
            assert_eq!(found, expected, "{shell}: {line:?}");
        }
    }
    assert!(home.daemon_pid().is_none() && !home.state_root().exists(), "completion started or made something");
}

#[test]
fn images_of_a_running_daemon_are_offered_soon() {
    let home = Home::sub();
    let context = home.dockerfile("FROM scratch\nLABEL a=b\n");
    home.build(&["-t", "registry.example:5000/some/name:v1", "-t", "plain"], &context).ok();
    for shell in ["bash", "zsh", "fish"] {
        let shown = listed(&home, shell, &["bud rmi registry.example:5"]).remove(0);
        let whole = if shell == "bash" { "5000/some/name:v1" } else { "some/name:v1" };
        assert!(shown.contains(whole) && !shown.contains("plain"), "{shell}: {shown}");
    }
    let asked = home.bud(["__complete", "fish", "2", "bud", "rmi", ""]).ok();
    assert_eq!(asked.stdout, "plain:latest\nregistry.example:5000/some/name:v1\n");
}

#[test]
fn a_daemon_that_doesn_t_answer_isn_t_waited_for() {
    let home = Home::new(User::plain());
    let socket = home.socket();
    home.write(&socket.with_file_name("x"), "");
    let _nobody = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, Some(home.user.uid), Some(home.user.gid)).unwrap();
    let asked = home.bud(["__complete", "fish", "2", "bud", "rmi", ""]).ok();
    assert_eq!(asked.stdout, "");
}
