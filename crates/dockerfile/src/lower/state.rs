//! What a step stands on: a file system, and what a process in it gets.

use super::env::{Env, split};
use super::graph::{Exec, Files, Graph, Meta, Output, Source};
use crate::text::path;
use bud_image::{ImageConfig, Platform};
use bud_protocol::pb;

/// A file system in the making.
#[derive(Clone, Debug)]
pub(crate) struct State {
    /// None: empty.
    pub(crate) output: Option<Output>,
    pub(crate) env: Env,
    pub(crate) dir: String,
    pub(crate) user: String,
    pub(crate) hostname: String,
    pub(crate) network: pb::NetMode,
    pub(crate) platform: Option<Platform>,
}

impl State {
    /// An empty file system.
    pub(crate) fn scratch() -> Self {
        Self::of(None, None)
    }

    /// A file system that comes from elsewhere.
    pub(crate) fn of(output: Option<Output>, platform: Option<&Platform>) -> Self {
        Self {
            output,
            env: Env::default(),
            dir: "/".into(),
            user: String::new(),
            hostname: String::new(),
            network: pb::NetMode::Unset,
            platform: platform.map(Platform::normalize),
        }
    }

    pub(crate) fn source(graph: &mut Graph, source: Source, meta: Meta) -> Self {
        let platform = source.platform.clone();
        let output = graph.source(source, meta);
        Self::of(Some(output), platform.as_ref())
    }

    /// Takes over environment, directory and platform of an image.
    pub(crate) fn with_image(mut self, image: &ImageConfig) -> Self {
        for pair in image.config.env.iter().flatten() {
            let (name, value) = split(pair);
            if !name.is_empty() {
                self.env.set(name, value);
            }
        }
        self.set_dir(&image.config.working_dir);
        if !image.architecture.is_empty() && !image.os.is_empty() {
            self.platform = Some(platform_of(image).normalize());
        }
        self
    }

    pub(crate) fn set_dir(&mut self, dir: &str) {
        self.dir = if dir.starts_with('/') { dir.to_owned() } else { path::join(&self.dir, dir) };
    }

    /// Does file actions on it.
    pub(crate) fn files(&mut self, graph: &mut Graph, files: Files, meta: Meta) {
        self.output = Some(graph.files(files, meta));
    }

    /// Runs a process in it. The process's platform is that of the file system.
    pub(crate) fn run(&mut self, graph: &mut Graph, mut exec: Exec, meta: Meta) {
        exec.root = self.output;
        exec.platform.clone_from(&self.platform);
        self.output = Some(graph.exec(exec, meta));
    }
}

/// Returns the platform that an image says it is for.
pub(crate) fn platform_of(image: &ImageConfig) -> Platform {
    Platform {
        architecture: image.architecture.clone(),
        os: image.os.clone(),
        os_version: image.os_version.clone(),
        os_features: image.os_features.clone().unwrap_or_default(),
        variant: image.variant.clone(),
    }
}

/// Writes a platform into an image's config.
pub(crate) fn set_platform(image: &mut ImageConfig, platform: &Platform) {
    image.architecture.clone_from(&platform.architecture);
    image.os.clone_from(&platform.os);
    image.os_version.clone_from(&platform.os_version);
    image.os_features = Some(platform.os_features.clone()).filter(|f| !f.is_empty());
    image.variant.clone_from(&platform.variant);
}
