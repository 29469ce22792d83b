//! `bud.v1`: what BuildKit's API has no call for. Optional; a client without it still builds.

use crate::daemon::Daemon;
use crate::gc::{self, objects};
use crate::images;
use crate::memory;
use crate::value::{blocking, store_error};
use bud_protocol::bud::bud_server::Bud;
use bud_protocol::bud::*;
use futures_util::Stream;
use std::pin::Pin;
use std::sync::Arc;
use tonic::{Request, Response, Status, Streaming};

/// The service.
#[derive(Clone, Debug)]
pub struct BudService {
    /// The daemon.
    pub daemon: Arc<Daemon>,
}

#[tonic::async_trait]
impl Bud for BudService {
    async fn status(&self, request: Request<StatusRequest>) -> Result<Response<StatusResponse>, Status> {
        let daemon = &self.daemon;
        let settings = &daemon.settings;
        let store = Arc::clone(&daemon.store);
        // Every build asks who we are; only a person asks how big.
        let (disk, (memory_bytes, processes)) = match request.into_inner().brief {
            true => (0, (0, 0)),
            false => {
                let disk = move || store.usage().map(|all| all.iter().map(|u| u.size).sum::<u64>());
                blocking(move || Ok((disk().map_err(store_error)?, memory::of_all()))).await?
            }
        };
        let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        Ok(Response::new(StatusResponse {
            version: settings.version.clone(),
            address: settings.address.clone(),
            mode: settings.mode.clone(),
            uptime_seconds: number(settings.started.elapsed().unwrap_or_default().as_secs()),
            active_builds: i32::try_from(daemon.builds.count()).unwrap_or(i32::MAX),
            memory_bytes: number(memory_bytes),
            disk_bytes: number(disk),
            pid: i32::try_from(std::process::id()).unwrap_or(0),
            root: settings.root.display().to_string(),
            notices: settings.notices.clone(),
            descriptor_socket: daemon.descriptors.socket().map(|s| s.display().to_string()).unwrap_or_default(),
            finished_builds: number(daemon.life.finished()),
            snapshotter: settings.snapshotter.clone(),
            idle_timeout_seconds: daemon.life.idle_timeout.map_or(0, |t| number(t.as_secs())),
            build: settings.program.build.to_string(),
            activated: settings.activated,
            replaced: settings.program.is_replaced(),
            processes,
        }))
    }

    async fn stop(&self, request: Request<StopRequest>) -> Result<Response<StopResponse>, Status> {
        let request = request.into_inner();
        let count = || i32::try_from(self.daemon.builds.count()).unwrap_or(i32::MAX);
        if request.hand_over {
            let stopping = self.daemon.life.hand_over().await;
            return Ok(Response::new(StopResponse { active_builds: count(), stopping }));
        }
        let mut changes = self.daemon.builds.changes();
        while request.wait && !request.force && count() > 0 {
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { break },
                () = self.daemon.life.stopped() => break,
            }
        }
        let active_builds = count();
        let stopping = active_builds == 0 || request.force;
        if stopping {
            self.daemon.life.stop();
        }
        Ok(Response::new(StopResponse { active_builds, stopping }))
    }

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Result<Response<ListImagesResponse>, Status> {
        let images = images::list(&self.daemon).await?;
        Ok(Response::new(ListImagesResponse { images }))
    }

    async fn remove_image(
        &self,
        request: Request<RemoveImageRequest>,
    ) -> Result<Response<RemoveImageResponse>, Status> {
        let removed = images::remove(&self.daemon, &request.into_inner().name).await?;
        Ok(Response::new(RemoveImageResponse { removed }))
    }

    type SaveImageStream = Pin<Box<dyn Stream<Item = Result<SaveImageResponse, Status>> + Send>>;

    async fn save_image(&self, request: Request<SaveImageRequest>) -> Result<Response<Self::SaveImageStream>, Status> {
        use futures_util::StreamExt as _;
        let request = request.into_inner();
        let saved = images::save(&self.daemon, &request.name, &request.skip_layers).await?;
        let counts =
            SaveImageResponse { layers: saved.layers, left_out: saved.left_out, ..SaveImageResponse::default() };
        let pieces = saved.archive.map(|data| {
            data.map(|data| SaveImageResponse { data, ..SaveImageResponse::default() }).map_err(Status::from)
        });
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(counts)).chain(pieces))))
    }

    async fn plan_prune(&self, request: Request<PlanPruneRequest>) -> Result<Response<PlanPruneResponse>, Status> {
        let records = gc::plan(&self.daemon, request.into_inner()).await?;
        Ok(Response::new(PlanPruneResponse { records }))
    }

    async fn list_cache_mounts(
        &self,
        _: Request<ListCacheMountsRequest>,
    ) -> Result<Response<ListCacheMountsResponse>, Status> {
        let mounts = objects::list(&self.daemon).await?;
        Ok(Response::new(ListCacheMountsResponse { mounts }))
    }

    async fn remove_cache_mount(
        &self,
        request: Request<RemoveCacheMountRequest>,
    ) -> Result<Response<RemoveCacheMountResponse>, Status> {
        let bytes = objects::remove(&self.daemon, request.into_inner().id).await?;
        Ok(Response::new(RemoveCacheMountResponse { bytes }))
    }

    type ExportCacheMountStream = Pin<Box<dyn Stream<Item = Result<ExportCacheMountResponse, Status>> + Send>>;

    async fn export_cache_mount(
        &self,
        request: Request<ExportCacheMountRequest>,
    ) -> Result<Response<Self::ExportCacheMountStream>, Status> {
        let pieces = objects::export(&self.daemon, request.into_inner().id).await?;
        Ok(Response::new(Box::pin(pieces)))
    }

    async fn import_cache_mount(
        &self,
        request: Request<Streaming<ImportCacheMountRequest>>,
    ) -> Result<Response<ImportCacheMountResponse>, Status> {
        Ok(Response::new(objects::import(&self.daemon, request.into_inner()).await?))
    }
}
