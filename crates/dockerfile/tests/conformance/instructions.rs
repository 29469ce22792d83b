//! Instructions with their types and fields.

use super::{Report, difference, dockerfile, error_difference, is_unstable};
use bud_dockerfile::Span;
use bud_dockerfile::instruction::{CommandLine, Instruction, Kind, Mount, Origin, Pair, Paths, mount};
use serde_json::{Map, Value, json};

pub(crate) fn compare(report: &mut Report, label: &str, record: &Value) {
    let Some(want) = record.get("instructions") else { return };
    let differs = match (bud_dockerfile::program(&dockerfile(record)), want.get("error")) {
        (Ok(program), None) => {
            let mut got = json!({});
            if !program.globals.is_empty() {
                got["meta_args"] = program
                    .globals
                    .iter()
                    .map(|global| {
                        instruction(&Instruction {
                            origin: global.origin.clone(),
                            kind: Kind::Arg(global.args.clone()),
                        })
                    })
                    .collect();
            }
            got["stages"] = program
                .stages
                .iter()
                .map(|stage| {
                    let mut value = json!({
                        "name": stage.name,
                        "base": stage.base,
                        "orig_cmd": stage.origin.keyword,
                    });
                    with_origin(&mut value, &stage.origin);
                    if !stage.platform.is_empty() {
                        value["platform"] = json!(stage.platform);
                    }
                    if !stage.description.is_empty() {
                        value["doc_comment"] = json!(stage.description);
                    }
                    value["commands"] = stage.instructions.iter().map(instruction).collect();
                    value
                })
                .collect();
            let mut want = want.clone();
            sort_flag_names(&mut want);
            if want["stages"].is_null() || want["stages"] == json!([]) {
                want["stages"] = json!([]);
            }
            difference(&want, &got)
        }
        (Err(got), Some(_)) if is_unstable(record, "/instructions/error") => {
            // The word that is suggested is any of the nearest.
            let cut = |text: &str| text.split(" (did you mean").next().unwrap_or_default().to_owned();
            let want = cut(want["error"].as_str().unwrap_or_default());
            (!got.message.contains(&want)).then(|| format!("wanted {want}, got {got}"))
        }
        (Err(got), Some(_)) => error_difference(want, &got),
        (Ok(_), Some(error)) => Some(format!("wanted error {error}, got none")),
        (Err(error), None) => Some(format!("wanted none, got error {error}")),
    };
    report.count("instructions", label, differs);
}

/// The names of a RUN's flags come out of a Go map.
fn sort_flag_names(value: &mut Value) {
    let stages = value["stages"].as_array_mut().into_iter().flatten();
    for command in stages.filter_map(|stage| stage.get_mut("commands")?.as_array_mut()).flatten() {
        if let Some(flags) = command["fields"].get_mut("FlagsUsed").and_then(Value::as_array_mut) {
            flags.sort_by_key(ToString::to_string);
        }
    }
}

fn with_origin(value: &mut Value, origin: &Origin) {
    value["code"] = json!(origin.code);
    value["lines"] = origin.place.iter().map(|Span { start, .. }| *start).collect();
    if !origin.comments.is_empty() {
        value["comments"] = json!(origin.comments);
    }
}

/// Drops what the records leave out: empty texts and false.
fn fields(all: Value) -> Value {
    let Value::Object(map) = all else { return all };
    let kept = map.into_iter().filter(|(_, v)| !v.is_null() && *v != json!("") && *v != json!(false));
    Value::Object(kept.collect::<Map<_, _>>())
}

fn some<T: Into<Value> + Clone>(list: &[T]) -> Value {
    if list.is_empty() { Value::Null } else { list.iter().cloned().map(Into::into).collect() }
}

fn pairs(list: &[Pair]) -> Value {
    list.iter().map(|p| json!({"Key": p.key, "Value": p.value, "NoDelim": p.is_legacy})).collect()
}

fn paths(p: &Paths) -> Map<String, Value> {
    let contents: Vec<Value> =
        p.contents.iter().map(|c| json!({"Path": c.path, "Data": c.data, "Expand": c.expand})).collect();
    let all = json!({"DestPath": p.dest, "SourcePaths": some(&p.sources), "SourceContents": some(&contents)});
    all.as_object().cloned().unwrap_or_default()
}

fn command(c: &CommandLine, empty_is_nil: bool) -> Map<String, Value> {
    let files: Vec<Value> = c.files.iter().map(|f| json!({"Name": f.name, "Data": f.data, "Chomp": f.chomp})).collect();
    let args = if empty_is_nil && c.args.is_empty() { Value::Null } else { json!(c.args) };
    let all = json!({"CmdLine": args, "PrependShell": c.is_shell, "Files": some(&files)});
    all.as_object().cloned().unwrap_or_default()
}

fn merged(mut a: Map<String, Value>, b: Value) -> Value {
    a.extend(b.as_object().cloned().unwrap_or_default());
    Value::Object(a)
}

fn instruction(i: &Instruction) -> Value {
    let (type_name, all) = match &i.kind {
        Kind::Add(a) => (
            "AddCommand",
            merged(
                paths(&a.paths),
                json!({
                    "Chown": a.chown, "Chmod": a.chmod, "Link": a.link, "ExcludePatterns": some(&a.excludes),
                    "Checksum": a.checksum, "KeepGitDir": a.keep_git_dir, "Unpack": a.unpack,
                }),
            ),
        ),
        Kind::Arg(args) => {
            let list: Vec<Value> =
                args.iter().map(|a| json!({"Key": a.key, "Value": a.value, "DocComment": a.description})).collect();
            ("ArgCommand", json!({ "Args": list }))
        }
        Kind::Cmd(c) => ("CmdCommand", Value::Object(command(c, false))),
        Kind::Copy(c) => (
            "CopyCommand",
            merged(
                paths(&c.paths),
                json!({
                    "From": c.from, "Chown": c.chown, "Chmod": c.chmod, "Link": c.link, "Parents": c.parents,
                    "ExcludePatterns": some(&c.excludes),
                }),
            ),
        ),
        Kind::Entrypoint(c) => ("EntrypointCommand", Value::Object(command(c, true))),
        Kind::Env(list) => ("EnvCommand", json!({"Env": pairs(list)})),
        Kind::Expose(ports) => ("ExposeCommand", json!({ "Ports": ports })),
        Kind::Healthcheck(h) => ("HealthCheckCommand", json!({ "Health": h })),
        Kind::Label(list) => ("LabelCommand", json!({"Labels": pairs(list)})),
        Kind::Maintainer(text) => ("MaintainerCommand", json!({ "Maintainer": text })),
        Kind::Onbuild(text) => ("OnbuildCommand", json!({ "Expression": text })),
        Kind::Run(r) => ("RunCommand", merged(command(&r.command, false), json!({ "FlagsUsed": r.flags }))),
        Kind::Shell(shell) => ("ShellCommand", json!({ "Shell": shell })),
        Kind::Stopsignal(signal) => ("StopSignalCommand", json!({ "Signal": signal })),
        Kind::User(user) => ("UserCommand", json!({ "User": user })),
        Kind::Volume(volumes) => ("VolumeCommand", json!({ "Volumes": volumes })),
        Kind::Workdir(path) => ("WorkdirCommand", json!({ "Path": path })),
    };
    let all = fields(all);
    let mut value = json!({"name": i.origin.keyword, "type": type_name, "fields": all});
    with_origin(&mut value, &i.origin);
    if let Kind::Run(run) = &i.kind {
        let parsed: Result<Vec<Mount>, String> = run.mounts.iter().map(|text| mount::parse(text)).collect();
        match parsed {
            Ok(mounts) if !mounts.is_empty() => value["mounts"] = mounts.iter().map(mount_fields).collect(),
            Ok(_) => {}
            Err(e) => value["mounts_error"] = json!(e),
        }
        for (key, given, default) in [("network", &run.network, "default"), ("security", &run.security, "sandbox")] {
            if given != default {
                value[key] = json!(given);
            }
        }
        if !run.devices.is_empty() {
            value["devices"] = run.devices.iter().map(|d| json!({"Name": d.name, "Required": d.required})).collect();
        }
    }
    value
}

fn mount_fields(m: &Mount) -> Value {
    fields(json!({
        "Type": m.kind.name(),
        "From": m.from,
        "Source": m.source,
        "Target": m.target,
        "ReadOnly": m.read_only,
        "SizeLimit": if m.size == 0 { Value::Null } else { json!(m.size) },
        "CacheID": m.id,
        "CacheSharing": m.sharing.map(|s| s.name()),
        "Required": m.required,
        "Env": m.env,
        "Mode": m.mode,
        "UID": m.uid,
        "GID": m.gid,
    }))
}
