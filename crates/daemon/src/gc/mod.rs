//! What uses the disk, and taking it back: on request, and by itself.

pub mod filter;

use crate::daemon::Daemon;
use crate::progress::timestamp;
use crate::value::{blocking, store_error};
use bud_protocol::control::{DiskUsageRequest, PruneRequest, UsageRecord};
use bud_protocol::errors::BuildError;
use bud_protocol::types::GcPolicy;
use bud_store::{PrunePolicy, RecordType, Usage};
use std::sync::Arc;
use std::time::Duration;

/// Between two collections.
const INTERVAL: Duration = Duration::from_secs(60);
/// What is used within this time is kept by itself even if the cache is too large.
const DAY: u64 = 24 * 3600;

fn record(usage: &Usage) -> UsageRecord {
    UsageRecord {
        id: usage.id.clone(),
        mutable: usage.mutable,
        in_use: usage.in_use,
        size: i64::try_from(usage.size).unwrap_or(i64::MAX),
        created_at: Some(timestamp(usage.created)),
        last_used_at: Some(timestamp(usage.last_used)),
        usage_count: i64::try_from(usage.usage_count).unwrap_or(i64::MAX),
        description: usage.description.clone(),
        record_type: usage.record_type.as_str().into(),
        shared: usage.shared,
        parents: usage.parents.clone(),
        ..UsageRecord::default()
    }
}

/// Returns a field of a record as filters name it.
fn field(record: &UsageRecord, name: &str) -> Option<String> {
    let flag = |is: bool| is.then(|| "true".to_owned());
    match name {
        "id" => Some(record.id.clone()),
        "type" => Some(record.record_type.clone()),
        "description" => Some(record.description.clone()),
        "inuse" => flag(record.in_use),
        "mutable" => flag(record.mutable),
        "immutable" => flag(!record.mutable),
        "shared" => flag(record.shared),
        "private" => flag(!record.shared),
        "parents" | "parent" => (!record.parents.is_empty()).then(|| record.parents.join(";")),
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
    let young = u64::try_from(request.age_limit).ok().filter(|n| *n > 0).map(Duration::from_nanos);
    let is_young = |u: &Usage| young.is_none_or(|limit| u.last_used.elapsed().is_ok_and(|age| age <= limit));
    let records = usage.iter().filter(|u| is_young(u)).map(record);
    Ok(records.filter(|r| filter::matches(&filters, |name| field(r, name))).collect())
}

/// Removes what the request says, and returns what was removed.
///
/// # Errors
/// A filter is bad, or the store fails.
pub async fn prune(daemon: &Arc<Daemon>, request: PruneRequest) -> Result<Vec<UsageRecord>, BuildError> {
    let filters = filter::parse(&request.filter)?;
    let bytes = |n: i64| u64::try_from(n).unwrap_or(0);
    let policy = PrunePolicy {
        record_types: Vec::new(),
        keep_duration: Some(bytes(request.keep_duration)).filter(|n| *n > 0).map(Duration::from_nanos),
        reserved: bytes(request.reserved_space),
        max_used: Some(bytes(request.max_used_space)).filter(|n| *n > 0),
        min_free: Some(bytes(request.min_free_space)).filter(|n| *n > 0),
        all: request.all,
    };
    let store = Arc::clone(&daemon.store);
    let pruned = blocking(move || {
        store
            .prune_where(&policy, &|usage| filter::matches(&filters, |name| field(&record(usage), name)))
            .map_err(store_error)
    })
    .await?;
    Ok(pruned.removed.iter().map(record).collect())
}

/// Returns what is kept of the cache by itself: a tenth of the disk, at least 2 GB, unless the operator says otherwise.
fn keep_storage(daemon: &Daemon) -> u64 {
    daemon.settings.gc_keep_storage.unwrap_or_else(|| {
        let total = rustix::fs::statvfs(&daemon.settings.root).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize));
        (total / 10).max(2 << 30)
    })
}

/// Returns the policies that are told to clients.
#[must_use]
pub fn policies(daemon: &Daemon) -> Vec<GcPolicy> {
    if !daemon.settings.gc {
        return Vec::new();
    }
    let keep = i64::try_from(keep_storage(daemon)).unwrap_or(i64::MAX);
    let short = ["source.local", "exec.cachemount", "source.git.checkout"];
    vec![
        GcPolicy {
            filters: vec![short.map(|t| format!("type=={t}")).join(",")],
            keep_duration: 48 * 3600 * 1_000_000_000,
            max_used_space: 512 << 20,
            ..GcPolicy::default()
        },
        GcPolicy { keep_duration: 60 * 24 * 3600 * 1_000_000_000, max_used_space: keep, ..GcPolicy::default() },
        GcPolicy { max_used_space: keep, ..GcPolicy::default() },
        GcPolicy { all: true, max_used_space: keep, ..GcPolicy::default() },
    ]
}

/// Collects rubbish now and then, when nothing runs: old build records always, the cache if that is wanted.
pub async fn collect(daemon: Arc<Daemon>) {
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
        if daemon.builds.count() > 0 || !daemon.settings.gc {
            continue;
        }
        let store = Arc::clone(&daemon.store);
        let keep = keep_storage(&daemon);
        let collected = blocking(move || {
            let short = PrunePolicy {
                record_types: vec![RecordType::LocalSource, RecordType::CacheMount, RecordType::GitCheckout],
                keep_duration: Some(Duration::from_secs(2 * DAY)),
                max_used: Some(512 << 20),
                ..PrunePolicy::default()
            };
            let rest = PrunePolicy { max_used: Some(keep), ..PrunePolicy::default() };
            let bytes =
                store.prune(&short).map_err(store_error)?.bytes + store.prune(&rest).map_err(store_error)?.bytes;
            Ok(bytes)
        });
        match collected.await {
            Ok(0) => {}
            Ok(bytes) => tracing::info!(bytes, "removed what was not used for long"),
            Err(error) => tracing::warn!(%error, "the cache could not be cleaned"),
        }
    }
}
