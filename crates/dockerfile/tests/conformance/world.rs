//! The stand-in for the world: files, images and times as the records were made with.

use super::dockerfile;
use bud_dockerfile::{
    Error, FilesQuery, ImageAnswer, ImageQuery, Need, Request, SourceAnswer, SourceQuery, Step, lower,
};
use bud_image::{Digest, ImageRef, Platform};
use serde_json::{Value, json};

/// Asks the front end until it has what it needs; also returns which images it asked for.
pub(crate) fn ask(record: &Value, request_id: Option<&str>) -> (Result<Step, Error>, Vec<Value>) {
    let opts = record["opts"].as_object().into_iter().flatten();
    let mut request = Request {
        opts: opts.map(|(k, v)| (k.clone(), v.as_str().unwrap_or_default().to_owned())).collect(),
        session: "session0".into(),
        platforms: vec![Platform { os: "linux".into(), architecture: "amd64".into(), ..Platform::default() }],
        ..Request::default()
    };
    request.opts.insert("cmdline".into(), "none".into());
    if let Some(id) = request_id {
        request.opts.insert("requestid".into(), id.into());
    }
    let mut asked: Vec<(String, String, String)> = Vec::new();
    for _ in 0..50 {
        match lower(&request) {
            Ok(Step::Need(needs)) => {
                for need in needs {
                    match need {
                        Need::Files(query) => {
                            let answer = query.paths.iter().map(|path| file(record, path, &query)).collect();
                            request.answers.files(query, Ok(answer));
                        }
                        Need::Image(query) => {
                            let platform = query.platform.as_ref().map(ToString::to_string).unwrap_or_default();
                            asked.push((query.reference.clone(), platform, query.log_name.clone()));
                            let answer = image(record, &query);
                            request.answers.image(query, answer);
                        }
                        Need::Source(query) => {
                            let answer = source(&query);
                            request.answers.source(query, Ok(answer));
                        }
                    }
                }
            }
            other => {
                asked.sort();
                return (other, asked.into_iter().map(|(r, p, l)| json!([r, p, l])).collect());
            }
        }
    }
    let message = "the front end asks for ever".into();
    (Err(Error { message, ..Error::default() }), Vec::new())
}

fn file(record: &Value, path: &str, query: &FilesQuery) -> Result<Vec<u8>, String> {
    let mut data = match (record["files"].get(path).and_then(Value::as_str), path) {
        (Some(text), _) => text.as_bytes().to_vec(),
        (None, "Dockerfile") => dockerfile(record),
        _ => return Err(format!("open {path}: file does not exist")),
    };
    if let Some(limit) = query.limit {
        data.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
    Ok(data)
}

fn source(query: &SourceQuery) -> SourceAnswer {
    let modified = if query.op.identifier.starts_with("git://") { 1_700_000_001 } else { 1_700_000_002 };
    SourceAnswer { modified: Some(modified), config: None }
}

/// Serves the record's answer, or else makes one by the rules by which those were made.
fn image(record: &Value, query: &ImageQuery) -> Result<ImageAnswer, String> {
    let platform = query.platform.clone().unwrap_or_else(Platform::host);
    let shown = query.platform.as_ref().map(ToString::to_string).unwrap_or_default();
    let recorded = record["build"]["images"].as_array().into_iter().flatten();
    let found = recorded
        .into_iter()
        .find(|i| i["ref"] == json!(query.reference) && i["platform"].as_str().unwrap_or_default() == shown);
    if let Some(image) = found {
        if let Some(error) = image["error"].as_str() {
            return Err(error.to_owned());
        }
        return Ok(ImageAnswer {
            reference: query.reference.clone(),
            digest: image["digest"].as_str().unwrap_or_default().to_owned(),
            config: image["config"].to_string().into_bytes(),
        });
    }
    let reference = ImageRef::parse(&query.reference).map_err(|e| e.to_string())?;
    let component = reference.path.rsplit('/').next().unwrap_or_default().to_owned();
    if ["nonexist", "doesnotexist", "notfound"].iter().any(|word| component.contains(word)) {
        return Err(format!("{}: not found", query.reference));
    }
    let normal = platform.normalize();
    Ok(ImageAnswer {
        reference: query.reference.clone(),
        digest: Digest::of(format!("manifest|{}|{normal}", query.reference)).to_string(),
        config: config(&reference, &component, &platform).to_string().into_bytes(),
    })
}

fn config(reference: &ImageRef, component: &str, platform: &Platform) -> Value {
    const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
    const CREATED: &str = "2024-01-01T00:00:00Z";
    let repository = &reference.path;
    let mut run = if platform.os == "windows" {
        json!({"Cmd": ["c:\\windows\\system32\\cmd.exe"]})
    } else {
        json!({"Env": [format!("PATH={PATH}")], "Cmd": ["/bin/sh"]})
    };
    match component {
        "golang" => {
            run["Env"] = json!([format!("PATH=/go/bin:/usr/local/go/bin:{PATH}"), "GOPATH=/go"]);
            run["WorkingDir"] = json!("/go");
        }
        "node" => {
            run["Env"] = json!([format!("PATH={PATH}"), "NODE_VERSION=22.0.0"]);
            run["Entrypoint"] = json!(["docker-entrypoint.sh"]);
            run["Cmd"] = json!(["node"]);
        }
        "nginx" => {
            run["ExposedPorts"] = json!({"80/tcp": {}});
            run["StopSignal"] = json!("SIGQUIT");
            run["Labels"] = json!({"maintainer": "nginx"});
        }
        "jenkins" | "solr" => {
            run["User"] = json!(component);
            run["WorkingDir"] = json!(format!("/opt/{component}"));
        }
        _ => {}
    }
    if component.contains("onbuild") || reference.tag.as_deref().is_some_and(|tag| tag.contains("onbuild")) {
        run["OnBuild"] = json!(["COPY . /usr/src/app", "RUN echo onbuild"]);
    }
    let mut image = json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "created": CREATED,
        "config": run,
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(format!("layer|{repository}")).to_string()]},
        "history": [{"created": CREATED, "created_by": format!("base layer of {repository}")}],
    });
    if !platform.variant.is_empty() {
        image["variant"] = json!(platform.variant);
    }
    if platform.os == "windows" {
        image["os.version"] = json!("10.0.20348.2849");
    }
    if component == "emptyimage" {
        image["config"] = json!({"Cmd": ["/bin/sh"]});
        image["rootfs"] = json!({"type": "layers"});
        image["history"] = json!([]);
    }
    image
}
