//! The same Dockerfiles built here and by a real buildkitd (`tests/builds/*/facts.json`, recorded with it) give the same image
//! config and the same layers: names, types, modes, owners, links, contents. Times are left out.

use crate::harness::{Home, run};
use std::path::Path;
use std::process::Command;

fn build(home: &Home, case: &Path) -> Result<(), String> {
    let facts = std::fs::read(case.join("facts.json")).map_err(|e| format!("no facts: {e}"))?;
    differences("", &crate::harness::json(&facts), &facts_of(home, case, &[])?).map_or(Ok(()), Err)
}

/// Builds a case with these flags and returns what is in its image: the config, and the entries of the layers above the base.
pub fn facts_of(home: &Home, case: &Path, flags: &[&str]) -> Result<serde_json::Value, String> {
    let context = home.context(&[]);
    let status = Command::new("cp").arg("-a").arg("--").arg(case.join(".")).arg(&context).status().expect("cp runs");
    assert!(status.success());
    let options = std::fs::read(context.join("options.json")).unwrap_or_else(|_| b"[]".to_vec());
    for extra in ["facts.json", "options.json"] {
        let _ = std::fs::remove_file(context.join(extra));
    }
    // The recorded contexts had these modes; a checkout's depend on the umask.
    for (kind, mode) in [("d", "755"), ("f", "644")] {
        let status =
            Command::new("find").arg(&context).args(["-type", kind, "-exec", "chmod", mode, "{}", "+"]).status();
        assert!(status.expect("find runs").success());
    }
    let status = Command::new("chown").args(["-hR", home.user.name]).arg(&context).status().expect("chown runs");
    assert!(status.success());
    let tar = context.with_extension("tar");
    let mut command = home.bud_command(["--progress", "plain", "-o"]);
    command.arg(format!("type=oci,dest={}", tar.display())).args(flags);
    let options: Vec<String> = serde_json::from_slice(&options).map_err(|e| e.to_string())?;
    for option in options.iter().filter(|o| *o != "--opt") {
        let (key, value) = option.split_once('=').ok_or("an option has a value")?;
        match key.split_once(':').unwrap_or((key, "")) {
            ("target", _) => command.args(["--target", value]),
            ("build-arg", name) => command.arg("--build-arg").arg(format!("{name}={value}")),
            ("label", name) => command.arg("--label").arg(format!("{name}={value}")),
            ("add-hosts", _) => command.arg("--add-host").arg(value.replace('=', ":")),
            _ => return Err(format!("no flag for {option}")),
        };
    }
    command.arg(&context);
    let ran = run(command);
    if ran.code != Some(0) {
        return Err(format!("does not build: {ran}"));
    }
    let dockerfile = crate::harness::read(context.join("Dockerfile"));
    let last = dockerfile.lines().rfind(|l| l.starts_with("FROM")).unwrap_or_default();
    let base_layers = if last.starts_with("FROM scratch") { "0" } else { "1" };
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/facts.py");
    let out = Command::new("python3").arg(script).arg(&tar).arg(base_layers).output().expect("python3 runs");
    if !out.status.success() {
        return Err(String::from_utf8_lossy(&out.stderr).into_owned());
    }
    Ok(crate::harness::json(&out.stdout))
}

/// Lists where two JSON values differ, by path.
pub fn differences(path: &str, expected: &serde_json::Value, got: &serde_json::Value) -> Option<String> {
    use serde_json::Value::{Array, Object};
    let mut found = Vec::new();
    match (expected, got) {
        (Object(a), Object(b)) => {
            for key in a.keys().chain(b.keys().filter(|k| !a.contains_key(*k))) {
                match (a.get(key), b.get(key)) {
                    (Some(x), Some(y)) => found.extend(differences(&format!("{path}.{key}"), x, y)),
                    (Some(x), None) => found.push(format!("{path}.{key}: missing, expected {x}")),
                    (None, Some(y)) => found.push(format!("{path}.{key}: surplus {y}")),
                    (None, None) => {}
                }
            }
        }
        (Array(a), Array(b)) if a.len() == b.len() => {
            for (n, (x, y)) in a.iter().zip(b).enumerate() {
                found.extend(differences(&format!("{path}[{n}]"), x, y));
            }
        }
        (a, b) if a == b => {}
        (a, b) => found.push(format!("{path}: expected {a}, got {b}")),
    }
    (!found.is_empty()).then(|| found.join("\n"))
}

#[test]
fn sixty_dockerfiles_give_the_images_that_buildkitd_makes() {
    let home = Home::sub();
    let cases = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/builds");
    let mut cases: Vec<_> =
        std::fs::read_dir(cases).expect("tests/builds is there").flatten().map(|e| e.path()).collect();
    cases.sort();
    assert!(cases.len() >= 60, "{}", cases.len());
    let failed: Vec<String> = cases
        .iter()
        .filter_map(|case| build(&home, case).err().map(|e| format!("== {}\n{e}", case.display())))
        .collect();
    assert!(failed.is_empty(), "{} of {} differ\n{}", failed.len(), cases.len(), failed.join("\n"));
}
