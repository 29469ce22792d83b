//! Builds that ran: their records in the database, their logs in files.

use crate::build::Build;
use crate::progress::{Counts, timestamp};
use bud_image::Digest;
use bud_protocol::control::{self, BuildHistoryEvent, BuildHistoryEventType, BuildHistoryRecord};
use bud_protocol::errors::BuildError;
use bud_protocol::rpc;
use bud_store::Store;
use prost::Message as _;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::broadcast;

/// So many records are kept, the newest.
const KEPT: usize = 200;
/// Media type of a build's log.
pub const LOG_TYPE: &str = "application/vnd.buildkit.status.v0";

/// A build's record, as it is stored.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct BuildRecord {
    /// The build's id.
    pub id: String,
    /// The front end.
    pub frontend: String,
    /// Its options. Secrets are never among them.
    pub attrs: BTreeMap<String, String>,
    /// Exporters.
    pub exporters: Vec<(String, BTreeMap<String, String>)>,
    /// What they answered.
    pub response: BTreeMap<String, String>,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Milliseconds since 1970.
    pub completed: u64,
    /// The error, as an encoded `google.rpc.Status`.
    pub error: Option<Vec<u8>>,
    /// Length of the log in bytes.
    pub log: u64,
    /// Vertices.
    pub total: i32,
    /// Of them ended.
    pub ended: i32,
    /// Of them cached.
    pub cached: i32,
    /// Warnings.
    pub warnings: i32,
    /// Never removed by itself.
    pub pinned: bool,
    /// How each vertex was looked up.
    pub lookups: serde_json::Value,
}

/// Builds that ran.
pub struct History {
    store: Arc<Store>,
    dir: PathBuf,
    events: broadcast::Sender<BuildHistoryEvent>,
}

impl std::fmt::Debug for History {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("History").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl History {
    /// Keeps records in the store and logs in its `builds/`.
    ///
    /// # Errors
    /// The directory can't be made.
    pub fn new(store: &Arc<Store>) -> std::io::Result<Self> {
        let dir = store.root().join("builds");
        match std::fs::create_dir(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok(Self { store: Arc::clone(store), dir, events: broadcast::channel(64).0 })
    }

    /// Returns the file of a build's log. The id is the client's: only its digest becomes a name.
    #[must_use]
    pub fn log_file(&self, id: &str) -> PathBuf {
        self.dir.join(Digest::of(id).hex())
    }

    /// Returns where the whole output of a step goes.
    #[must_use]
    pub fn step_log(&self, build: &str, vertex: &str) -> PathBuf {
        self.steps(build).join(Digest::of(vertex).hex())
    }

    fn steps(&self, build: &str) -> PathBuf {
        self.log_file(build).with_extension("steps")
    }

    /// Follows what happens from now on.
    #[must_use]
    pub fn follow(&self) -> broadcast::Receiver<BuildHistoryEvent> {
        self.events.subscribe()
    }

    fn tell(&self, kind: BuildHistoryEventType, record: BuildHistoryRecord) {
        // Nobody may listen.
        let _nobody = self.events.send(BuildHistoryEvent { r#type: kind as i32, record: Some(record) });
    }

    /// Tells of a build that begins.
    pub fn started(&self, build: &Build) {
        self.tell(BuildHistoryEventType::Started, active(build));
    }

    /// Stores the record of a build that ended.
    pub fn completed(&self, build: &Build, outcome: &Result<BTreeMap<String, String>, BuildError>) {
        let log = build.progress.save().unwrap_or_else(|error| {
            tracing::warn!(%error, build = build.id, "the build's log can't be kept");
            0
        });
        let Counts { total, completed, cached, warnings } = build.progress.counts();
        let record = BuildRecord {
            id: build.id.clone(),
            frontend: build.request.frontend.clone(),
            attrs: build.request.attrs.clone(),
            exporters: build.request.exporters.clone(),
            response: outcome.as_ref().cloned().unwrap_or_default(),
            created: millis(build.created),
            completed: millis(SystemTime::now()),
            error: outcome.as_ref().err().map(|e| e.to_rpc().encode_to_vec()),
            log,
            total,
            ended: completed,
            cached,
            warnings,
            pinned: false,
            lookups: serde_json::to_value(build.lookups()).unwrap_or_default(),
        };
        self.put(&record, build.created);
        self.tell(BuildHistoryEventType::Complete, self.to_control(&record));
    }

    fn put(&self, record: &BuildRecord, created: SystemTime) {
        let stored = serde_json::to_string(record)
            .map_err(|e| e.to_string())
            .and_then(|text| self.store.put_build(&record.id, &text, created).map_err(|e| e.to_string()));
        if let Err(error) = stored {
            tracing::warn!(%error, build = record.id, "the build's record can't be kept");
        }
    }

    /// Removes the oldest records above what is kept. Blocking.
    pub fn trim(&self) {
        let Ok(builds) = self.store.builds() else { return };
        for (id, text) in builds.iter().skip(KEPT) {
            let pinned = serde_json::from_str::<BuildRecord>(text).is_ok_and(|r| r.pinned);
            if !pinned {
                self.remove(id);
            }
        }
    }

    fn remove(&self, id: &str) -> bool {
        let removed = self.store.remove_build(id).unwrap_or_else(|error| {
            tracing::warn!(%error, build = id, "the build's record can't be removed");
            false
        });
        if let Err(error) = std::fs::remove_file(self.log_file(id)) {
            tracing::debug!(%error, build = id, "the build's log can't be removed");
        }
        match std::fs::remove_dir_all(self.steps(id)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, build = id, "the output of the build's steps can't be removed");
            }
            _ => {}
        }
        removed
    }

    /// Returns a build's record.
    ///
    /// # Errors
    /// The database fails.
    pub fn get(&self, id: &str) -> Result<Option<BuildRecord>, BuildError> {
        let text = self.store.build(id).map_err(crate::value::store_error)?;
        Ok(text.and_then(|t| serde_json::from_str(&t).ok()))
    }

    /// Returns all records, newest first.
    ///
    /// # Errors
    /// The database fails.
    pub fn all(&self) -> Result<Vec<BuildRecord>, BuildError> {
        let all = self.store.builds().map_err(crate::value::store_error)?;
        Ok(all.iter().filter_map(|(_, text)| serde_json::from_str(text).ok()).collect())
    }

    /// Deletes a record, or pins it.
    ///
    /// # Errors
    /// There is none.
    pub fn update(&self, request: &control::UpdateBuildHistoryRequest) -> Result<(), BuildError> {
        let Some(mut record) = self.get(&request.r#ref)? else {
            if request.finalize {
                return Ok(());
            }
            return Err(BuildError::not_found(format!("no build {:?} in the history", request.r#ref)));
        };
        if request.delete {
            self.remove(&record.id);
            self.tell(BuildHistoryEventType::Deleted, self.to_control(&record));
        } else if !request.finalize {
            record.pinned = request.pinned;
            let created = UNIX_EPOCH + Duration::from_millis(record.created);
            self.put(&record, created);
            self.tell(BuildHistoryEventType::Complete, self.to_control(&record));
        }
        Ok(())
    }

    /// Converts a record for the wire.
    #[must_use]
    pub fn to_control(&self, record: &BuildRecord) -> BuildHistoryRecord {
        let time = |ms: u64| Some(timestamp(UNIX_EPOCH + Duration::from_millis(ms)));
        BuildHistoryRecord {
            r#ref: record.id.clone(),
            frontend: record.frontend.clone(),
            frontend_attrs: record.attrs.clone(),
            exporters: exporters(&record.exporters),
            error: record.error.as_ref().and_then(|e| rpc::Status::decode(e.as_slice()).ok()),
            created_at: time(record.created),
            completed_at: time(record.completed),
            exporter_response: record.response.clone(),
            pinned: record.pinned,
            num_cached_steps: record.cached,
            num_total_steps: record.total,
            num_completed_steps: record.ended,
            num_warnings: record.warnings,
            ..BuildHistoryRecord::default()
        }
    }
}

fn exporters(exporters: &[(String, BTreeMap<String, String>)]) -> Vec<control::Exporter> {
    exporters.iter().map(|(kind, attrs)| control::Exporter { r#type: kind.clone(), attrs: attrs.clone() }).collect()
}

/// Returns the record of a build that runs.
#[must_use]
pub fn active(build: &Build) -> BuildHistoryRecord {
    let counts = build.progress.counts();
    BuildHistoryRecord {
        r#ref: build.id.clone(),
        frontend: build.request.frontend.clone(),
        frontend_attrs: build.request.attrs.clone(),
        exporters: exporters(&build.request.exporters),
        created_at: Some(timestamp(build.created)),
        num_cached_steps: counts.cached,
        num_total_steps: counts.total,
        num_completed_steps: counts.completed,
        num_warnings: counts.warnings,
        ..BuildHistoryRecord::default()
    }
}

fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}
