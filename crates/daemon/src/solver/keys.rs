//! Keys of vertices: by definition, and by content.

use super::graph::Vertex;
use super::{Node, Resolved, VertexKey, outputs_of};
use crate::build::Build;
use crate::ops::{self, ByContent};
use crate::value::{Stop, Value, blocking, everything, file_error, store_error};
use bud_image::Digest;
use bud_protocol::errors::BuildError;
use bud_store::content::{self, Selection};
use bud_store::fileop::FileOpError;
use futures_util::future::try_join_all;
use std::sync::Arc;

/// Returns the key of one output.
#[must_use]
pub fn of_output(key: &Digest, output: usize) -> Digest {
    Digest::of(format!("output:{output}:{key}"))
}

/// Returns a key that nothing else has: for what must not be found.
fn fresh() -> Digest {
    let mut bytes = [0; 32];
    // Sixteen bytes that come from the kernel; the rest tells calls apart should it refuse.
    let random = rustix::rand::getrandom(&mut bytes[..16], rustix::rand::GetRandomFlags::empty());
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_nanos();
    bytes[16..].copy_from_slice(&now.to_le_bytes());
    Digest::of(format!("fresh:{random:?}:{bytes:?}"))
}

/// Puts a key together.
fn combine(kind: &str, identity: &Digest, parts: &[String]) -> Digest {
    let mut text = format!("{kind}:{identity}");
    for part in parts {
        text.push('\n');
        text.push_str(part);
    }
    Digest::of(text)
}

/// Looks a vertex up whose inputs are looked up: by definition first, then by content.
pub(super) async fn look_up(
    build: &Arc<Build>,
    vertex: &Vertex,
    inputs: &[(Arc<Node>, usize)],
    resolved: &[Resolved],
) -> Result<Resolved, BuildError> {
    let store = &build.daemon.store;
    let platform = build.daemon.settings.platform();
    let uses = ops::by_content(vertex);
    // What an input is by key. A client's directory has none; where its key counts, its whole content does.
    let mut by_key: Vec<Option<Digest>> = Vec::with_capacity(inputs.len());
    for (((input, output), resolved), used) in inputs.iter().zip(resolved).zip(&uses) {
        by_key.push(match (resolved.key, used) {
            (VertexKey::Fixed(key), _) => Some(of_output(&key, *output)),
            (VertexKey::Content, Some(used)) if !used.also_by_key => None,
            (VertexKey::Content, _) => {
                let value = build.output_of(input, *output).await?;
                Some(digest(build, value, vec![everything()]).await?)
            }
        });
    }
    let definition = by_key.iter().all(Option::is_some).then(|| {
        let parts: Vec<String> = by_key.iter().flatten().map(ToString::to_string).collect();
        combine("definition", &ops::identity(vertex, false, &platform), &parts)
    });
    if vertex.ignore_cache {
        // A key of its own: what stands on it is found by content only. Later builds that may use the cache find it.
        build.note(vertex, "not asked", definition.as_ref(), &by_key);
        return Ok(Resolved {
            key: VertexKey::Fixed(fresh()),
            found: None,
            also: definition.into_iter().collect(),
            pin: None,
        });
    }
    if let Some(key) = &definition
        && let Some(record) = super::look_up(store, key)?
    {
        build.note(vertex, "hit", Some(key), &by_key);
        build.reporter(vertex).cached();
        let key = VertexKey::Fixed(record.key);
        return Ok(Resolved { key, found: Some(outputs_of(record)), also: Vec::new(), pin: None });
    }
    let content = if uses.iter().any(Option::is_some) {
        let key = by_contents(build, vertex, inputs, &uses, &by_key).await?;
        if let Some(record) = super::look_up(store, &key)? {
            if let Some(definition) = &definition {
                store.alias(definition, record.id).map_err(store_error)?;
            }
            build.note(vertex, "hit by content", Some(&key), &by_key);
            build.reporter(vertex).cached();
            let key = VertexKey::Fixed(record.key);
            return Ok(Resolved { key, found: Some(outputs_of(record)), also: Vec::new(), pin: None });
        }
        Some(key)
    } else {
        None
    };
    build.note(vertex, "miss", content.as_ref().or(definition.as_ref()), &by_key);
    let (key, also) = match (definition, content) {
        (Some(key), content) => (key, content.into_iter().collect()),
        (None, Some(key)) => (key, Vec::new()),
        // Without a use by content every input has a key.
        (None, None) => return Err(BuildError::new(tonic::Code::Internal, "a vertex without a key")),
    };
    Ok(Resolved { key: VertexKey::Fixed(key), found: None, also, pin: None })
}

async fn by_contents(
    build: &Arc<Build>,
    vertex: &Vertex,
    inputs: &[(Arc<Node>, usize)],
    uses: &[Option<ByContent>],
    by_key: &[Option<Digest>],
) -> Result<Digest, BuildError> {
    let parts = inputs.iter().zip(uses).zip(by_key).map(|(((input, output), used), key)| async move {
        let key = key.as_ref().map(ToString::to_string).unwrap_or_default();
        let Some(used) = used else { return Ok(format!("key:{key}")) };
        let value = build.output_of(input, *output).await?;
        let digest = digest(build, value, used.selections.clone()).await?;
        Ok::<_, BuildError>(if used.also_by_key {
            format!("content:{digest}:{key}")
        } else {
            format!("content:{digest}")
        })
    });
    let parts = try_join_all(parts).await?;
    Ok(combine("content", &ops::identity(vertex, true, &build.daemon.settings.platform()), &parts))
}

/// Returns the digest over selected parts of a value.
async fn digest(build: &Arc<Build>, value: Value, selections: Vec<Selection>) -> Result<Digest, BuildError> {
    let (store, cancel) = (Arc::clone(&build.daemon.store), build.cancel.clone());
    blocking(move || {
        let opened = value.open(&store).map_err(store_error)?;
        let mut text = String::new();
        for selection in &selections {
            let digest = content::digest(&store, opened.source(), selection, &Stop(&cancel)).map_err(|e| match e {
                FileOpError::NotFound { path } => BuildError::other(format!("{path:?}: not found")),
                other => file_error(other),
            });
            text.push_str(&digest.map_err(|e| e.context("failed to compute cache key"))?.to_string());
            text.push('\n');
        }
        Ok(Digest::of(text))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_have_keys_of_their_own_and_fresh_keys_differ() {
        let key = Digest::of("x");
        assert_ne!(of_output(&key, 0), of_output(&key, 1));
        assert_ne!(fresh(), fresh());
    }

    #[test]
    fn parts_do_not_run_into_one_another() {
        let identity = Digest::of("op");
        let of = |parts: &[&str]| combine("k", &identity, &parts.iter().map(|p| (*p).to_owned()).collect::<Vec<_>>());
        assert_ne!(of(&["a", "b"]), of(&["ab"]));
        assert_ne!(of(&["a"]), of(&["a", ""]));
    }
}
