//! File: copies, makes and removes files, in the daemon itself.

use super::{ByContent, OpCx, Outputs, check_input};
use crate::solver::graph::{MAX_OUTPUTS, Vertex};
use crate::value::{Stop, Value, blocking, file_error, store_error};
use bud_protocol::errors::BuildError;
use bud_protocol::pb;
use bud_protocol::pb::file_action::Action;
use bud_store::content::Selection;
use bud_store::fileop::{self, FileOpError, ModeChange, Owner};
use bud_store::{Info, RecordType, Store, Tree};
use prost::Message as _;
use std::sync::Arc;

const MAX_ACTIONS: usize = 10_000;

/// Checks the op.
///
/// # Errors
/// What is wrong.
pub fn validate(op: &pb::FileOp, inputs: usize) -> Result<(), String> {
    if op.actions.is_empty() || op.actions.len() > MAX_ACTIONS {
        return Err(format!("file op has {} actions", op.actions.len()));
    }
    let mut seen = std::collections::BTreeSet::new();
    for (number, action) in op.actions.iter().enumerate() {
        let what = format!("file action {number}");
        // Results of earlier actions are numbered after the inputs.
        let there = inputs + number;
        check_input(&what, action.input, there, true)?;
        check_input(&what, action.secondary_input, there, true)?;
        if action.output >= MAX_OUTPUTS as i64 || action.output < -1 {
            return Err(format!("{what}: output {} is out of range", action.output));
        }
        if action.output >= 0 && !seen.insert(action.output) {
            return Err(format!("{what}: output {} is there twice", action.output));
        }
        let owner = match &action.action {
            None => return Err(format!("{what} does nothing")),
            Some(Action::Copy(copy)) => &copy.owner,
            Some(Action::Mkfile(mkfile)) => &mkfile.owner,
            Some(Action::Mkdir(mkdir)) => &mkdir.owner,
            Some(Action::Symlink(symlink)) => &symlink.owner,
            Some(Action::Rm(_)) => continue,
        };
        for name in owner.iter().flat_map(|o| [&o.user, &o.group]).flatten() {
            if let Some(pb::user_opt::User::ByName(name)) = &name.user {
                check_input(&format!("{what}, owner"), name.input, there, true)?;
            }
        }
    }
    if seen.is_empty() {
        return Err("file op has no output".into());
    }
    // Numbered from 0 without gaps, so that every output is one.
    if seen.len() as i64 != seen.last().map_or(0, |l| l + 1) {
        return Err("file op's outputs have gaps".into());
    }
    Ok(())
}

/// Returns the op's name for people.
#[must_use]
pub fn name(op: &pb::FileOp) -> String {
    let of = |action: &pb::FileAction| match &action.action {
        Some(Action::Copy(copy)) => format!("copy {} {}", copy.src, copy.dest),
        Some(Action::Mkfile(mkfile)) => format!("mkfile {}", mkfile.path),
        Some(Action::Mkdir(mkdir)) => format!("mkdir {}", mkdir.path),
        Some(Action::Rm(rm)) => format!("rm {}", rm.path),
        Some(Action::Symlink(symlink)) => format!("symlink {} -> {}", symlink.newpath, symlink.oldpath),
        None => String::new(),
    };
    op.actions.iter().take(10).map(of).collect::<Vec<_>>().join(", ")
}

fn selection(copy: &pb::FileActionCopy) -> Selection {
    Selection {
        path: copy.src.clone(),
        follow_symlink: copy.follow_symlink,
        wildcard: copy.allow_wildcard,
        include_patterns: copy.include_patterns.clone(),
        exclude_patterns: copy.exclude_patterns.clone(),
        required_paths: copy.required_paths.clone(),
    }
}

/// Copy sources count by content; what is copied onto does not.
#[must_use]
pub fn by_content(op: &pb::FileOp, inputs: usize) -> Vec<Option<ByContent>> {
    let mut uses: Vec<Option<ByContent>> = vec![None; inputs];
    let mut whole = vec![false; inputs];
    let mut mark = |number: i64| {
        if let Some(whole) = usize::try_from(number).ok().and_then(|n| whole.get_mut(n)) {
            *whole = true;
        }
    };
    for action in &op.actions {
        mark(action.input);
        let owner = match &action.action {
            Some(Action::Copy(copy)) => &copy.owner,
            Some(Action::Mkfile(mkfile)) => &mkfile.owner,
            Some(Action::Mkdir(mkdir)) => &mkdir.owner,
            Some(Action::Symlink(symlink)) => &symlink.owner,
            Some(Action::Rm(_)) | None => &None,
        };
        for name in owner.iter().flat_map(|o| [&o.user, &o.group]).flatten() {
            if let Some(pb::user_opt::User::ByName(name)) = &name.user {
                mark(name.input);
            }
        }
        if let Some(Action::Copy(copy)) = &action.action
            && let Some(slot) = usize::try_from(action.secondary_input).ok().and_then(|n| uses.get_mut(n))
        {
            slot.get_or_insert_default().selections.push(selection(copy));
        }
    }
    for (used, whole) in uses.iter_mut().zip(whole) {
        if let Some(used) = used {
            used.also_by_key = whole;
        }
    }
    uses
}

/// Returns the bytes that say what the op does.
#[must_use]
pub fn identity(op: &pb::FileOp, content: bool) -> Vec<u8> {
    if !content {
        return op.encode_to_vec();
    }
    let mut op = op.clone();
    for action in &mut op.actions {
        if let Some(Action::Copy(copy)) = &mut action.action {
            // Where the files come from doesn't matter, what they are called does.
            let name = copy.src.rsplit('/').find(|part| !part.is_empty()).unwrap_or("/").to_owned();
            copy.src = name;
            copy.required_paths.clear();
        }
    }
    op.encode_to_vec()
}

/// Runs the actions.
///
/// # Errors
/// An action fails.
pub async fn execute(cx: &OpCx, vertex: &Vertex, op: &pb::FileOp, inputs: Vec<Value>) -> Result<Outputs, BuildError> {
    let work = Work {
        store: cx.daemon.store.clone(),
        op: op.clone(),
        inputs,
        results: Vec::new(),
        description: vertex.name.clone(),
    };
    let cancel = cx.cancel.clone();
    blocking(move || work.run(&cancel)).await
}

struct Work {
    store: Arc<Store>,
    op: pb::FileOp,
    inputs: Vec<Value>,
    /// Each action's result, once it is settled.
    results: Vec<Option<Value>>,
    description: String,
}

impl Work {
    fn run(mut self, cancel: &tokio_util::sync::CancellationToken) -> Result<Outputs, BuildError> {
        let stop = Stop(cancel);
        let count = self.op.actions.iter().filter(|a| a.output >= 0).count();
        let mut outputs: Outputs = vec![None; count];
        let mut number = 0;
        while number < self.op.actions.len() {
            let last = self.chain(number);
            let base = self.state(self.op.actions[number].input)?;
            let (parent, _kept) = base.snapshot(&self.store, &stop).map_err(file_error)?;
            let draft = self.store.draft(&parent).map_err(store_error)?;
            for action in number..=last {
                if cancel.is_cancelled() {
                    return Err(BuildError::canceled());
                }
                self.act(&draft, action, &stop)?;
                self.results.push(None);
            }
            let info = Info { description: self.description.clone(), record_type: RecordType::Regular };
            let value = Value::kept(draft.commit(&info).map_err(store_error)?);
            self.results[last] = Some(value.clone());
            if let Ok(output) = usize::try_from(self.op.actions[last].output) {
                outputs[output] = Some(value);
            }
            number = last + 1;
        }
        Ok(outputs)
    }

    /// Returns the last action of a run that can share one layer: each changes what the one before left, and nobody else
    /// sees what is between.
    fn chain(&self, first: usize) -> usize {
        let inputs = self.inputs.len() as i64;
        let mut last = first;
        while last + 1 < self.op.actions.len() {
            let result = inputs + last as i64;
            let between = self.op.actions[last].output >= 0
                || self.op.actions[last + 1].input != result
                || self.op.actions.iter().enumerate().any(|(n, a)| {
                    n != last + 1 && a.input == result
                        || a.secondary_input == result && matches!(a.action, Some(Action::Copy(_)))
                });
            if between {
                break;
            }
            last += 1;
        }
        last
    }

    fn state(&self, number: i64) -> Result<Value, BuildError> {
        let Ok(n) = usize::try_from(number) else { return Ok(Value::scratch()) };
        if let Some(value) = self.inputs.get(n) {
            return Ok(value.clone());
        }
        let result = self.results.get(n - self.inputs.len()).cloned().flatten();
        result.ok_or_else(|| BuildError::invalid(format!("file op uses the result {number} before it is there")))
    }

    fn act(&self, draft: &bud_store::LayerDraft, number: usize, stop: &Stop<'_>) -> Result<(), BuildError> {
        let action = &self.op.actions[number];
        let owner = |chown: &Option<pb::ChownOpt>| self.owner(draft, chown.as_ref(), stop);
        let result = match &action.action {
            Some(Action::Copy(copy)) => {
                let source = self.state(action.secondary_input)?.open(&self.store).map_err(store_error)?;
                let copy = fileop::Copy {
                    src: copy.src.clone(),
                    dest: copy.dest.clone(),
                    follow_symlink: copy.follow_symlink,
                    dir_copy_contents: copy.dir_copy_contents,
                    create_dest_path: copy.create_dest_path,
                    allow_wildcard: copy.allow_wildcard,
                    allow_empty_wildcard: copy.allow_empty_wildcard,
                    unpack: copy.attempt_unpack_docker_compatibility,
                    include_patterns: copy.include_patterns.clone(),
                    exclude_patterns: copy.exclude_patterns.clone(),
                    required_paths: copy.required_paths.clone(),
                    always_replace_existing_dest_paths: copy.always_replace_existing_dest_paths,
                    mode: mode(copy.mode, &copy.mode_str),
                    owner: owner(&copy.owner)?,
                    timestamp: timestamp(copy.timestamp),
                };
                fileop::copy(draft, source.source(), &copy, stop).map(|_| ())
            }
            Some(Action::Mkdir(mkdir)) => fileop::mkdir(
                draft,
                &fileop::Mkdir {
                    path: mkdir.path.clone(),
                    mode: bits(mkdir.mode),
                    make_parents: mkdir.make_parents,
                    owner: owner(&mkdir.owner)?,
                    timestamp: timestamp(mkdir.timestamp),
                },
            ),
            Some(Action::Mkfile(mkfile)) => fileop::mkfile(
                draft,
                &fileop::Mkfile {
                    path: mkfile.path.clone(),
                    mode: bits(mkfile.mode),
                    data: mkfile.data.clone(),
                    owner: owner(&mkfile.owner)?,
                    timestamp: timestamp(mkfile.timestamp),
                },
            ),
            Some(Action::Symlink(symlink)) => fileop::symlink(
                draft,
                &fileop::Symlink {
                    old_path: symlink.oldpath.clone(),
                    new_path: symlink.newpath.clone(),
                    owner: owner(&symlink.owner)?,
                    timestamp: timestamp(symlink.timestamp),
                },
            ),
            Some(Action::Rm(rm)) => fileop::rm(
                draft,
                &fileop::Rm {
                    path: rm.path.clone(),
                    allow_not_found: rm.allow_not_found,
                    allow_wildcard: rm.allow_wildcard,
                },
            ),
            None => Ok(()),
        };
        result.map_err(file_error)
    }

    /// Looks owner and group up.
    fn owner(
        &self,
        draft: &bud_store::LayerDraft,
        chown: Option<&pb::ChownOpt>,
        stop: &Stop<'_>,
    ) -> Result<Option<Owner>, BuildError> {
        let Some(chown) = chown else { return Ok(None) };
        let (mut uid, mut gid) = (0, 0);
        match chown.user.as_ref().and_then(|u| u.user.as_ref()) {
            None => {}
            Some(pb::user_opt::User::ById(id)) => (uid, gid) = (*id, *id),
            Some(pb::user_opt::User::ByName(name)) => {
                let found = fileop::lookup_user(&self.names(draft, name.input, stop)?, &name.name);
                let found = found.map_err(|e| lookup_error(e, "user", &name.name))?;
                (uid, gid) = (found.uid, found.gid);
            }
        }
        match chown.group.as_ref().and_then(|g| g.user.as_ref()) {
            None => {}
            Some(pb::user_opt::User::ById(id)) => gid = *id,
            Some(pb::user_opt::User::ByName(name)) => {
                let found = fileop::lookup_group(&self.names(draft, name.input, stop)?, &name.name);
                gid = found.map_err(|e| lookup_error(e, "group", &name.name))?;
            }
        }
        Ok(Some(Owner { uid, gid }))
    }

    fn names(&self, draft: &bud_store::LayerDraft, input: i64, stop: &Stop<'_>) -> Result<Tree, BuildError> {
        // A result between two actions of this very layer: it is the layer as it is now.
        let unsettled = usize::try_from(input)
            .ok()
            .and_then(|n| n.checked_sub(self.inputs.len()))
            .is_some_and(|n| self.results.get(n).is_none_or(Option::is_none));
        if unsettled {
            return draft.tree().map_err(store_error);
        }
        let (snapshot, _kept) = self.state(input)?.snapshot(&self.store, stop).map_err(file_error)?;
        self.store.tree(&snapshot).map_err(store_error)
    }
}

fn lookup_error(error: FileOpError, what: &str, name: &str) -> BuildError {
    match error {
        FileOpError::NotFound { .. } => BuildError::other(format!(
            "unable to convert {what} {name:?}: no such {what} in the image's /etc/{}",
            if what == "user" { "passwd" } else { "group" }
        )),
        other => file_error(other),
    }
}

fn bits(mode: i32) -> u32 {
    u32::try_from(mode).unwrap_or(0) & 0o7777
}

fn mode(mode: i32, text: &str) -> Option<ModeChange> {
    if !text.is_empty() {
        return Some(match u32::from_str_radix(text, 8) {
            Ok(bits) => ModeChange::Bits(bits & 0o7777),
            Err(_) => ModeChange::Symbolic(text.to_owned()),
        });
    }
    u32::try_from(mode).ok().map(|m| ModeChange::Bits(m & 0o7777))
}

fn timestamp(nanoseconds: i64) -> Option<i64> {
    (nanoseconds != -1).then_some(nanoseconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn copy(input: i64, source: i64, output: i64, src: &str) -> pb::FileAction {
        pb::FileAction {
            input,
            secondary_input: source,
            output,
            action: Some(Action::Copy(pb::FileActionCopy { src: src.into(), dest: "/x".into(), ..Default::default() })),
        }
    }

    #[test]
    fn indices_and_outputs_are_checked() {
        let op = |actions: Vec<pb::FileAction>| pb::FileOp { actions };
        assert!(validate(&op(vec![copy(0, 1, 0, "a")]), 2).is_ok());
        assert!(validate(&op(vec![copy(-1, 0, -1, "a"), copy(1, 0, 0, "b")]), 1).is_ok());
        for bad in [
            op(vec![]),
            op(vec![copy(0, 1, -1, "a")]),
            op(vec![copy(-2, 1, 0, "a")]),
            op(vec![copy(0, 7, 0, "a")]),
            op(vec![copy(1 << 31, 0, 0, "a")]),
            op(vec![copy(0, 1, 0, "a"), copy(2, 1, 0, "b")]),
            op(vec![copy(0, 1, 3, "a")]),
            op(vec![pb::FileAction { output: 0, ..Default::default() }]),
        ] {
            assert!(validate(&bad, 2).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_copy_sources_count_by_content() {
        let op = pb::FileOp { actions: vec![copy(0, 1, 0, "/a/b")] };
        let uses = by_content(&op, 3);
        assert!(uses[0].is_none() && uses[2].is_none());
        let used = uses[1].as_ref().unwrap();
        assert_eq!(used.selections[0].path, "/a/b");
        assert!(!used.also_by_key);
        let both = by_content(&pb::FileOp { actions: vec![copy(0, 0, 0, "/a")] }, 1);
        assert!(both[0].as_ref().unwrap().also_by_key);
    }

    #[test]
    fn where_a_copied_file_lies_is_not_in_the_content_identity() {
        let of = |src: &str, content| identity(&pb::FileOp { actions: vec![copy(0, 1, 0, src)] }, content);
        assert_eq!(of("/a/b", true), of("/c/b", true));
        assert_ne!(of("/a/b", true), of("/a/c", true));
        assert_ne!(of("/a/b", false), of("/c/b", false));
    }
}
