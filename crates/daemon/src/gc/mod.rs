//! What uses the disk, and taking it back: on request, and by itself.

pub mod filter;
pub mod objects;
pub mod policy;

use crate::daemon::Daemon;
use crate::progress::timestamp;
use crate::value::{blocking, store_error};
use bud_protocol::bud::{PlanPruneRequest, PlannedRecord};
use bud_protocol::control::{DiskUsageRequest, PruneRequest, UsageRecord};
use bud_protocol::errors::BuildError;
use bud_protocol::types::GcPolicy;
use bud_store::{Pruned, Store, Usage};
use policy::Policy;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Between two looks at whether to collect.
const INTERVAL: Duration = Duration::from_secs(60);
/// While builds run it is collected this seldom, if the disk has space.
const WHILE_BUSY: Duration = Duration::from_secs(600);
/// When nothing was built, only time makes things old.
const WHILE_IDLE: Duration = Duration::from_secs(3600);

fn record(usage: &Usage) -> UsageRecord {
    UsageRecord {
        id: usage.id.clone(),
        mutable: usage.mutable,
        in_use: usage.in_use,
        size: number(usage.size),
        created_at: Some(timestamp(usage.created)),
        last_used_at: Some(timestamp(usage.last_used)),
        usage_count: number(usage.usage_count),
        description: usage.description.clone(),
        record_type: usage.record_type.as_str().into(),
        shared: usage.shared,
        parents: usage.parents.clone(),
        ..UsageRecord::default()
    }
}

fn number(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Returns a field of a record as filters name it. What is true or not is there or not, without a value.
fn field(usage: &Usage, name: &str) -> Option<String> {
    let flag = |is: bool| is.then(String::new);
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    match name {
        "id" => given(&usage.id),
        "type" => given(usage.record_type.as_str()),
        "description" => given(&usage.description),
        "inuse" => flag(usage.in_use),
        "mutable" => flag(usage.mutable),
        "immutable" => flag(!usage.mutable),
        "shared" => flag(usage.shared),
        "private" => flag(!usage.shared),
        "parents" => given(&usage.parents.join(";")),
        _ => None,
    }
}

/// Lists what takes space.
///
/// # Errors
/// A filter is bad, or the store fails.
pub async fn usage(daemon: &Arc<Daemon>, request: DiskUsageRequest) -> Result<Vec<UsageRecord>, BuildError> {
    let filters = filter::parse(&request.filter)?;
    let store = Arc::clone(&daemon.store);
    let usage = blocking(move || store.usage().map_err(store_error)).await?;
    let limit = u64::try_from(request.age_limit).ok().filter(|n| *n > 0).map(Duration::from_nanos);
    let is_old = |u: &Usage| limit.is_none_or(|limit| u.last_used.elapsed().is_ok_and(|age| age >= limit));
    let wanted = usage.iter().filter(|u| is_old(u) && filter::matches(&filters, |name| field(u, name)));
    Ok(wanted.map(record).collect())
}

/// Returns a request's policy.
fn requested(request: PruneRequest) -> Result<Policy, BuildError> {
    let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
    let keep = Duration::from_nanos(bytes(request.keep_duration));
    let limits = [request.reserved_space, request.max_used_space, request.min_free_space].map(bytes);
    Policy::new(request.filter, request.all, keep, limits)
}

fn apply(store: &Arc<Store>, policy: &Policy) -> Result<Pruned, BuildError> {
    let accepts = |usage: &Usage| filter::matches(&policy.compiled, |name| field(usage, name));
    store.prune_where(&policy.prune, &accepts).map_err(store_error)
}

/// Removes what the request says, and returns what was removed.
///
/// # Errors
/// A filter is bad, or the store fails.
pub async fn prune(daemon: &Arc<Daemon>, request: PruneRequest) -> Result<Vec<UsageRecord>, BuildError> {
    let policy = requested(request)?;
    let store = Arc::clone(&daemon.store);
    let pruned = blocking(move || apply(&store, &policy)).await?;
    Ok(pruned.removed.iter().map(record).collect())
}

/// Returns what a request would remove now.
///
/// # Errors
/// A filter is bad, or the store fails.
pub async fn plan(daemon: &Arc<Daemon>, request: PlanPruneRequest) -> Result<Vec<PlannedRecord>, BuildError> {
    let policy = requested(PruneRequest {
        filter: request.filter,
        all: request.all,
        keep_duration: request.keep_duration,
        reserved_space: request.reserved_space,
        max_used_space: request.max_used_space,
        min_free_space: request.min_free_space,
    })?;
    let store = Arc::clone(&daemon.store);
    let planned = blocking(move || {
        let accepts = |usage: &Usage| filter::matches(&policy.compiled, |name| field(usage, name));
        store.plan_prune(&policy.prune, &accepts).map_err(store_error)
    });
    let planned = planned.await?.removed;
    Ok(planned
        .into_iter()
        .map(|usage| PlannedRecord {
            id: usage.id,
            size: number(usage.size),
            description: usage.description,
            record_type: usage.record_type.as_str().into(),
        })
        .collect())
}

/// Returns the policies that are told to clients.
#[must_use]
pub fn policies(daemon: &Daemon) -> Vec<GcPolicy> {
    daemon.settings.gc_policies.iter().map(Policy::to_control).collect()
}

/// Tells whether less of the disk is free than some policy wants.
fn is_tight(daemon: &Daemon) -> bool {
    let wanted = daemon.settings.gc_policies.iter().filter_map(|p| p.prune.min_free).max();
    let free = || rustix::fs::statvfs(daemon.store.root()).map_or(u64::MAX, |s| s.f_bavail.saturating_mul(s.f_frsize));
    wanted.is_some_and(|wanted| free() < wanted)
}

/// Collects rubbish now and then: old build records always, the cache by its policies. What running builds hold is never among
/// it; they only make it rarer, so that it doesn't take the disk from them.
pub async fn collect(daemon: Arc<Daemon>) {
    let mut last: Option<(Instant, u64)> = None;
    loop {
        tokio::select! {
            () = tokio::time::sleep(INTERVAL) => {}
            () = daemon.life.stopped() => return,
        }
        let this = Arc::clone(&daemon);
        let trimmed = blocking(move || {
            this.history.trim();
            Ok(())
        });
        if let Err(error) = trimmed.await {
            tracing::warn!(%error, "old build records could not be removed");
        }
        let finished = daemon.life.finished();
        let wait = match last {
            None => Duration::ZERO,
            Some(_) if daemon.builds.count() > 0 => WHILE_BUSY,
            Some((_, then)) if then == finished => WHILE_IDLE,
            Some(_) => Duration::ZERO,
        };
        let is_time = last.is_none_or(|(at, _)| at.elapsed() >= wait);
        if daemon.settings.gc_policies.is_empty() || !(is_time || is_tight(&daemon)) {
            continue;
        }
        last = Some((Instant::now(), finished));
        let this = Arc::clone(&daemon);
        let collected = blocking(move || {
            this.settings.gc_policies.iter().try_fold(0, |bytes, policy| Ok(bytes + apply(&this.store, policy)?.bytes))
        });
        match collected.await {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "removed what was not used for long"),
            Err(error) => tracing::warn!(%error, "the cache could not be cleaned"),
        }
    }
}
