//! The config of an image that is complete: layers named, times filled in.

use bud_image::config::History;
use bud_image::{Digest, ImageConfig, Platform};
use bud_protocol::errors::BuildError;
use serde_json::{Map, Value};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Where programs are looked for in an image that no front end described.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is known of a layer beside its blob.
#[derive(Clone, Debug)]
pub struct LayerNotes {
    /// Digest of its tar.
    pub diff_id: Digest,
    /// When it was made.
    pub created: SystemTime,
    /// By what.
    pub description: String,
}

/// Returns the config of a result that no front end described.
#[must_use]
pub fn default_config(platform: &Platform) -> Vec<u8> {
    let config = ImageConfig {
        architecture: platform.architecture.clone(),
        os: platform.os.clone(),
        variant: platform.variant.clone(),
        config: bud_image::config::RunConfig {
            env: Some(vec![DEFAULT_PATH.into()]),
            working_dir: "/".into(),
            ..Default::default()
        },
        rootfs: bud_image::config::RootFs { kind: "layers".into(), diff_ids: None },
        ..ImageConfig::default()
    };
    // A struct of texts always has a JSON form.
    serde_json::to_vec(&config).unwrap_or_default()
}

/// Completes a config: names the layers, brings history and layers in step, fills in and limits times. What else is in it stays
/// as it is, fields unknown here too.
///
/// # Errors
/// The config is not one.
pub fn complete(
    config: &[u8],
    layers: &[LayerNotes],
    epoch: Option<i64>,
    base: Option<&ImageConfig>,
) -> Result<Vec<u8>, BuildError> {
    let invalid = |e: &dyn std::fmt::Display| BuildError::invalid(format!("invalid image config for export: {e}"));
    let parsed: ImageConfig = serde_json::from_slice(config).map_err(|e| invalid(&e))?;
    let mut map: Map<String, Value> = serde_json::from_slice(config).map_err(|e| invalid(&e))?;
    for (field, value) in [("os", &parsed.os), ("architecture", &parsed.architecture)] {
        if value.is_empty() {
            return Err(invalid(&format!("missing {field}")));
        }
    }
    let mut history = history(parsed.history.unwrap_or_default(), layers);
    if let Some(epoch) = epoch {
        limit_times(&mut history, epoch, base);
    }
    let mut created = parsed.created;
    if let Some(epoch) = epoch
        && created.as_deref().is_some_and(|t| is_after(t, epoch))
    {
        created = Some(format_time(at(epoch)));
    }
    if !map.contains_key("created") {
        created = history.iter().rev().find_map(|h| h.created.clone());
    }
    if let Some(created) = created {
        map.insert("created".into(), Value::String(created));
    }
    let diff_ids: Vec<Value> = layers.iter().map(|l| Value::String(l.diff_id.to_string())).collect();
    let mut rootfs = Map::new();
    rootfs.insert("type".into(), "layers".into());
    rootfs.insert("diff_ids".into(), if diff_ids.is_empty() { Value::Null } else { diff_ids.into() });
    map.insert("rootfs".into(), rootfs.into());
    map.insert("history".into(), serde_json::to_value(&history).map_err(|e| invalid(&e))?);
    Ok(go_json(&map))
}

/// Writes JSON as Go writes a map: keys in order at the top, `<`, `>` and `&` escaped.
fn go_json(map: &Map<String, Value>) -> Vec<u8> {
    let mut entries: Vec<_> = map.iter().collect();
    entries.sort_by_key(|(key, _)| key.as_str());
    let sorted: Map<String, Value> = entries.into_iter().map(|(k, v)| (k.clone(), v.clone())).collect();
    go_escaped(&Value::Object(sorted).to_string()).into_bytes()
}

/// Escapes what Go's JSON writer escapes beyond the standard. Such characters are only in texts, so the whole can be treated as one.
pub fn go_escaped(json: &str) -> String {
    let mut out = String::with_capacity(json.len() + 16);
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            '\u{2028}' => out.push_str("\\u2028"),
            '\u{2029}' => out.push_str("\\u2029"),
            c => out.push(c),
        }
    }
    out
}

/// Brings history and layers in step: one entry with a layer for each layer, each with a time.
fn history(mut history: Vec<History>, layers: &[LayerNotes]) -> Vec<History> {
    let mut with_layer = 0;
    for entry in history.iter_mut().filter(|h| !h.empty_layer) {
        if with_layer < layers.len() {
            with_layer += 1;
        } else {
            entry.empty_layer = true;
        }
    }
    // Layers that no entry speaks of.
    history.extend(layers[with_layer..].iter().map(|layer| History {
        created: Some(format_time(layer.created)),
        created_by: layer.description.clone(),
        comment: "buildkit.exporter.image.v0".into(),
        ..History::default()
    }));
    let mut layer = layers.iter();
    for entry in history.iter_mut().filter(|h| !h.empty_layer) {
        let notes = layer.next();
        if entry.created.is_none() {
            entry.created = notes.map(|n| format_time(n.created));
        }
    }
    // Entries without a layer take the time of the layer before, those above the base's the first new layer's.
    let mut time = None;
    let mut missing = false;
    for entry in &history {
        match &entry.created {
            Some(created) => {
                time = Some(created.clone());
                if missing {
                    break;
                }
            }
            None => missing = true,
        }
    }
    missing = false;
    for entry in &mut history {
        match &entry.created {
            Some(created) => {
                if missing {
                    time = Some(created.clone());
                }
            }
            None => {
                missing = true;
                entry.created.clone_from(&time);
            }
        }
    }
    history
}

/// Makes no entry younger than the epoch, but for those that are the base image's own.
fn limit_times(history: &mut [History], epoch: i64, base: Option<&ImageConfig>) {
    let base = base.and_then(|b| b.history.as_deref()).unwrap_or_default();
    let own = history.iter().zip(base).take_while(|(a, b)| a == b).count();
    for entry in &mut history[own..] {
        if entry.created.as_deref().is_none_or(|t| is_after(t, epoch)) {
            entry.created = Some(format_time(at(epoch)));
        }
    }
}

fn at(epoch: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(epoch.unsigned_abs())
}

fn is_after(text: &str, epoch: i64) -> bool {
    text.parse::<jiff::Timestamp>()
        .is_ok_and(|time| time > jiff::Timestamp::from_second(epoch).unwrap_or(jiff::Timestamp::MAX))
}

/// Writes a time as RFC 3339 in UTC, without zeros at its end.
#[must_use]
pub fn format_time(time: SystemTime) -> String {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn notes(seconds: u64, description: &str) -> LayerNotes {
        LayerNotes {
            diff_id: Digest::of(description),
            created: UNIX_EPOCH + Duration::from_secs(seconds),
            description: description.into(),
        }
    }

    fn times(config: &[u8]) -> Vec<(String, bool)> {
        let config: ImageConfig = serde_json::from_slice(config).unwrap();
        let history = config.history.unwrap_or_default();
        history.into_iter().map(|h| (h.created.unwrap_or_default(), h.empty_layer)).collect()
    }

    #[test]
    fn history_and_layers_come_in_step() {
        let config = br#"{"os":"linux","architecture":"amd64","x-own":{"b":1,"a":"<&>"},"config":{"Env":["A=<b>"]},
            "history":[{"created":"1970-01-01T00:00:01Z","created_by":"base"},{"created_by":"env","empty_layer":true},
                       {"created_by":"run"},{"created_by":"cmd","empty_layer":true}]}"#;
        let layers = [notes(1, "base"), notes(50, "run"), notes(60, "more")];
        let done = complete(config, &layers, None, None).unwrap();
        let expected = [("01", false), ("50", true), ("50", false), ("50", true), ("60", false)].map(|(s, empty)| {
            (if s == "60" { "1970-01-01T00:01:00Z".to_owned() } else { format!("1970-01-01T00:00:{s}Z") }, empty)
        });
        assert_eq!(times(&done), expected);
        let text = String::from_utf8(done).unwrap();
        assert!(text.starts_with(r#"{"architecture":"amd64","config":{"Env":["A=\u003cb\u003e"]},"created":"1970-01-01T00:01:00Z","history":"#), "{text}");
        assert!(text.ends_with(r#""x-own":{"b":1,"a":"\u003c\u0026\u003e"}}"#), "{text}");
        // Too many entries: those above the layers have none.
        let done = complete(config, &layers[..1], None, None).unwrap();
        assert_eq!(times(&done).iter().map(|t| t.1).collect::<Vec<_>>(), [false, true, true, true]);
    }

    /// The digest is that of the config that BuildKit (of mid-2026) makes of the same build with `SOURCE_DATE_EPOCH=1000`.
    #[test]
    fn the_bytes_are_those_of_buildkit() {
        let given = r#"{"os":"linux","architecture":"amd64","config":{"User":"5",
            "Env":["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin","A=<b>&c"],
            "Cmd":["/f"],"WorkingDir":"/","Labels":{"x":"y"},"ArgsEscaped":true},
            "rootfs":{"type":"layers","diff_ids":null},"history":[
            {"created_by":"COPY f /f # buildkit","comment":"buildkit.dockerfile.v0"},
            {"created_by":"ENV A=<b>&c","comment":"buildkit.dockerfile.v0","empty_layer":true},
            {"created_by":"LABEL x=y","comment":"buildkit.dockerfile.v0","empty_layer":true},
            {"created_by":"CMD [\"/f\"]","comment":"buildkit.dockerfile.v0","empty_layer":true},
            {"created_by":"COPY f /g/h # buildkit","comment":"buildkit.dockerfile.v0"},
            {"created_by":"USER 5","comment":"buildkit.dockerfile.v0","empty_layer":true}]}"#;
        let layer = |diff_id: &str| LayerNotes { diff_id: diff_id.parse().unwrap(), ..notes(1_700_000_000, "") };
        let layers = [
            layer("sha256:7f95d9632eaf715be9837cd16bde9228e573bf1b30c8eff639dbe9af9620c2c7"),
            layer("sha256:2526a0ee33ea4b0b9410896baaefe6776222c1c87021ef9d9c13a2efdc2c5dab"),
        ];
        let done = complete(given.as_bytes(), &layers, Some(1000), None).unwrap();
        let expected = "sha256:01115d6b6476aac9604a82898b0f47e4a640d8787030b5238e5adaca97990aa1";
        assert_eq!(Digest::of(&done).to_string(), expected, "{}", String::from_utf8_lossy(&done));
    }

    #[test]
    fn nothing_new_is_younger_than_the_epoch() {
        let text = r#"{"os":"linux","architecture":"amd64","created":"2020-01-01T00:00:00Z",
            "history":[{"created":"2019-01-01T00:00:00Z","created_by":"base"},{"created_by":"run"}]}"#;
        let base: ImageConfig =
            serde_json::from_str(r#"{"history":[{"created":"2019-01-01T00:00:00Z","created_by":"base"}]}"#).unwrap();
        let layers = [notes(1, "base"), notes(2_000_000_000, "run")];
        let done = complete(text.as_bytes(), &layers, Some(1000), Some(&base)).unwrap();
        assert_eq!(
            times(&done),
            [("2019-01-01T00:00:00Z".to_owned(), false), ("1970-01-01T00:16:40Z".to_owned(), false)]
        );
        assert!(String::from_utf8(done).unwrap().contains(r#""created":"1970-01-01T00:16:40Z","history""#));
    }

    #[test]
    fn a_config_without_platform_is_refused() {
        for bad in ["{}", "[]", "null", "{\"os\":\"linux\"}", ""] {
            assert!(complete(bad.as_bytes(), &[], None, None).is_err(), "{bad}");
        }
        let made = default_config(&"linux/arm64".parse().unwrap());
        assert!(String::from_utf8(complete(&made, &[], None, None).unwrap()).unwrap().contains("arm64"));
    }
}
